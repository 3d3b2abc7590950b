//! Training examples: pure functions of (seed, position).

mod causal;
mod mask;
mod pairs;
mod stream;
mod streams;
mod tagged;
mod translation;

pub use causal::{CausalWindows, WindowOptions};
pub use mask::{MaskingConfig, mask_tokens};
pub use pairs::{PairExamples, PairOptions, Segments};
pub use stream::{BuildProgress, SentenceSplit, SentenceStream, TokenStream, Tokens};
pub use streams::StreamWindows;
pub use tagged::{TaggedExamples, TaggedOptions, TaggedPiece, tagged_pieces};
pub use translation::{TranslationExamples, TranslationOptions};

/// What is known about a whole example, for models that classify sequences.
#[derive(Debug, Clone, PartialEq)]
pub enum SequenceLabel {
    /// Its class, from 0.
    Class(u32),
    /// For each class whether it applies, from 0 to 1.
    Classes(Vec<f32>),
    /// A number for each of the model's outputs.
    Numbers(Vec<f32>),
}

/// One training example.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Lengths of the spans that the ids consist of; attention stays within a span. They add up to `ids.len()`.
    pub spans: Vec<usize>,
    /// Segment of each id (0 or 1); empty for causal examples.
    pub token_types: Vec<u32>,
    /// What the model must say at each place; -100 where nothing is asked.
    pub labels: Vec<i32>,
    /// 0: the second segment follows the first; 1: it comes from elsewhere. `None` without pairs.
    pub next_sentence: Option<u32>,
    /// What the whole example is labelled with, if it is. It has one span then.
    pub label: Option<SequenceLabel>,
    /// What is read before, of examples that translate. They have one span.
    pub source: Vec<u32>,
    /// Whether it goes on where the example at its place in the batch before ended. It has one span then.
    pub continues: bool,
}

/// Examples behind one another, as plain vectors. `n` is the number of ids, `s` of spans, `b` of examples.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Token ids `[n]`.
    pub ids: Vec<u32>,
    /// Span lengths `[s]`, which add up to `n`.
    pub spans: Vec<usize>,
    /// Segments `[n]`, or empty.
    pub token_types: Vec<u32>,
    /// Labels `[n]`, -100 where nothing is asked.
    pub labels: Vec<i32>,
    /// Next-sentence labels `[b]`, or empty. One span an example then.
    pub next_sentence: Vec<u32>,
    /// Labels of whole examples `[b]`, or empty. One span an example then.
    pub sequence_labels: Vec<SequenceLabel>,
    /// What is read before, of all examples behind one another; empty where nothing is.
    pub sources: Vec<u32>,
    /// Lengths of the sources `[b]`, or empty. One span an example then.
    pub source_spans: Vec<usize>,
    /// Whether each example goes on where the one at its place in the batch before ended, `[b]`.
    pub continues: Vec<bool>,
    /// Number of examples.
    pub examples: usize,
}

impl Batch {
    /// Appends an example.
    pub fn push(&mut self, sample: Sample) {
        self.ids.extend(sample.ids);
        self.spans.extend(sample.spans);
        self.token_types.extend(sample.token_types);
        self.labels.extend(sample.labels);
        self.next_sentence.extend(sample.next_sentence);
        self.sequence_labels.extend(sample.label);
        if !sample.source.is_empty() {
            self.source_spans.push(sample.source.len());
            self.sources.extend(sample.source);
        }
        self.continues.push(sample.continues);
        self.examples += 1;
    }

    /// The token before each one in its span, -100 for the first.
    pub fn tokens_before(&self) -> Vec<i32> {
        let mut before = Vec::with_capacity(self.ids.len());
        let mut start = 0;
        for &n in self.spans.iter().filter(|n| **n > 0) {
            before.push(-100);
            before.extend(self.ids[start..start + n - 1].iter().map(|&id| id as i32));
            start += n;
        }
        before
    }

    /// Number of places with a label.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|&&l| l >= 0).count()
    }
}

impl FromIterator<Sample> for Batch {
    fn from_iter<I: IntoIterator<Item = Sample>>(samples: I) -> Self {
        let mut batch = Batch::default();
        samples.into_iter().for_each(|s| batch.push(s));
        batch
    }
}

/// A set of examples in an order for each epoch. Everything is a pure function of its arguments and of what the set was
/// built from, so a run resumes from a single number: the count of examples seen.
pub trait Examples: Send + Sync {
    /// Examples in an epoch. At least one.
    fn epoch_len(&self, epoch: u64) -> usize;

    /// The `index`-th example of an epoch.
    ///
    /// # Panics
    /// When `index` is not below `epoch_len(epoch)`.
    fn sample(&self, epoch: u64, index: usize) -> Sample;

    /// Epoch and index of the example number `position`, counted over all epochs from 0.
    fn locate(&self, position: u64) -> (u64, usize);

    /// Examples `position .. position + size`; runs on into the next epoch.
    fn batch(&self, position: u64, size: usize) -> Batch {
        let (mut epoch, mut index) = self.locate(position);
        let mut batch = Batch::default();
        for _ in 0..size {
            batch.push(self.sample(epoch, index));
            index += 1;
            if index == self.epoch_len(epoch) {
                (epoch, index) = (epoch + 1, 0);
            }
        }
        batch
    }
}
