//! From files to training and held-out examples.

use crate::evaluate::windows;
use crate::text::Text;
use crate::{Error, Objective, Resolved, Result};
use genus_models::Model;
use genus_models::nn::Memory;
use genus_text::{
    BuildProgress, CausalWindows, Corpus, Examples, PairExamples, PairOptions, Parallel, Sample, Segments,
    SentenceSplit, SentenceStream, StreamWindows, Tagged, TaggedExamples, TaggedOptions, TokenStream, Tokenizer,
    TranslationExamples, TranslationOptions, WindowOptions,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What goes on before the first step.
#[derive(Clone, Debug)]
pub enum Phase {
    /// A tokenizer is learned from the training text.
    Tokenizer(genus_text::TrainProgress),
    /// Training text is turned into ids.
    Train(BuildProgress),
    /// Held-out text is turned into ids.
    Dev(BuildProgress),
    /// Something that whoever trains should know.
    Note(String),
}

/// Tells one data set from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Documents of the training text, or pairs.
    pub documents: u64,
    /// Bytes of the training text.
    pub bytes: u64,
    /// Bytes of the held-out text.
    pub dev_bytes: u64,
    /// Ids of the training set.
    pub tokens: u64,
    /// CRC-32 over all documents and ids.
    pub crc32: String,
}

/// Held-out examples.
#[derive(Clone, Debug)]
pub struct Dev {
    /// The examples, in order; masked always the same way.
    pub samples: Vec<Sample>,
    /// Ids of them.
    pub tokens: u64,
    /// Bytes of text that an id stands for; for causal models and translation.
    pub bytes_per_token: Option<f64>,
}

/// The examples of a run.
pub struct Data {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Training examples.
    pub train: Arc<dyn Examples>,
    /// Ids of the training set.
    pub train_tokens: u64,
    /// Held-out examples.
    pub dev: Option<Dev>,
    /// Of the text.
    pub fingerprint: Fingerprint,
}

impl Data {
    /// Encodes training and held-out text for a model.
    ///
    /// # Errors
    /// When the text cannot be read, or there is less than one batch of it.
    pub(crate) fn build(
        text: &Text,
        tokenizer: Tokenizer,
        run: &Resolved,
        model: &Model,
        progress: impl FnMut(Phase),
    ) -> Result<Self> {
        match text {
            Text::Tagged { train, dev } => Self::of_tagged(train, dev.as_ref(), tokenizer, run, model, progress),
            Text::Documents { train, dev } => Self::of_documents(train, dev.as_ref(), tokenizer, run, model, progress),
            Text::Pairs { train, dev } => Self::of_pairs(train, dev.as_ref(), tokenizer, run, model, progress),
        }
    }

    fn of_documents(
        train: &Corpus,
        dev: Option<&Corpus>,
        tokenizer: Tokenizer,
        run: &Resolved,
        model: &Model,
        mut progress: impl FnMut(Phase),
    ) -> Result<Self> {
        let of_files = |e: genus_text::TextError| Error::from(e).of_files(&run.config.data);
        let batch = least_batch(run);
        let most = run.config.eval_tokens.unwrap_or(0);
        let mut hash = crc32fast::Hasher::new();
        let (examples, train_tokens): (Arc<dyn Examples>, usize) = match run.objective {
            Objective::Causal | Objective::Bidirectional => {
                let stream = TokenStream::build(train, &tokenizer, |p| progress(Phase::Train(p)))?;
                let options = WindowOptions {
                    context: run.context,
                    separate_documents: run.config.separate_documents,
                    shuffle: true,
                    seed: run.config.seed,
                };
                let tokens = stream.len();
                hash_tokens(&mut hash, &stream);
                if model.spec().memory != Memory::None {
                    let rows = batch * run.config.accumulate;
                    let windows = StreamWindows::new(Arc::new(stream), run.context, rows).map_err(of_files)?;
                    (Arc::new(windows), tokens)
                } else {
                    let windows = CausalWindows::new(Arc::new(stream), options).map_err(of_files)?;
                    windows.require(batch).map_err(of_files)?;
                    (Arc::new(windows), tokens)
                }
            }
            _ => {
                let split = SentenceSplit::default();
                let stream = SentenceStream::build(train, &tokenizer, split, |p| progress(Phase::Train(p)))?;
                let tokens = stream.len();
                let pairs = PairExamples::new(Arc::new(stream), &tokenizer, pair_options(run)).map_err(of_files)?;
                pairs.require(batch).map_err(of_files)?;
                (Arc::new(pairs), tokens)
            }
        };
        let (documents, bytes) = hash_documents(&mut hash, train)?;
        let dev_bytes = match dev {
            Some(corpus) => hash_documents(&mut hash, corpus)?.1,
            None => 0,
        };
        let crc32 = format!("{:08x}", hash.finalize());
        let fingerprint = Fingerprint { documents, bytes, dev_bytes, tokens: train_tokens as u64, crc32 };
        let dev = match dev {
            None => None,
            Some(corpus) => Some(Dev::build(corpus, &tokenizer, run, model, most, |p| progress(Phase::Dev(p)))?),
        };
        Ok(Data { tokenizer, train: examples, train_tokens: train_tokens as u64, dev, fingerprint })
    }

    fn of_tagged(
        train: &Tagged,
        dev: Option<&Tagged>,
        tokenizer: Tokenizer,
        run: &Resolved,
        model: &Model,
        mut progress: impl FnMut(Phase),
    ) -> Result<Self> {
        let options = TaggedOptions {
            labels: model.labels().names.clone(),
            longest: run.context,
            shuffle: true,
            seed: run.config.seed,
        };
        let of_files = |e: genus_text::TextError| Error::from(e).of_files(&run.config.data);
        let examples = TaggedExamples::build(train, &tokenizer, options.clone()).map_err(of_files)?;
        examples.require(least_batch(run)).map_err(of_files)?;
        let mut hash = crc32fast::Hasher::new();
        (0..examples.epoch_len(0)).for_each(|i| hash_ids(&mut hash, &examples.sample(0, i).ids));
        let (documents, bytes) = hash_tagged(&mut hash, train);
        let (mut held_out, mut dev_bytes) = (None, 0);
        if let Some(dev) = dev {
            dev_bytes = hash_tagged(&mut hash, dev).1;
            let options = TaggedOptions { shuffle: false, ..options };
            let examples = TaggedExamples::build(dev, &tokenizer, options)?;
            if examples.unknown() > 0 {
                let n = examples.unknown();
                progress(Phase::Note(format!("held-out text: {n} words have tags that the training text has not")));
            }
            held_out = Some(Dev::of(first_samples(&examples, run.config.eval_tokens.unwrap_or(0)), None));
        }
        let tokens = examples.tokens() as u64;
        let crc32 = format!("{:08x}", hash.finalize());
        let fingerprint = Fingerprint { documents, bytes, dev_bytes, tokens, crc32 };
        Ok(Data { tokenizer, train: Arc::new(examples), train_tokens: tokens, dev: held_out, fingerprint })
    }

    fn of_pairs(
        train: &Parallel,
        dev: Option<&Parallel>,
        tokenizer: Tokenizer,
        run: &Resolved,
        model: &Model,
        mut progress: impl FnMut(Phase),
    ) -> Result<Self> {
        let id = |field: &'static str| -> Result<u32> {
            let found = model.config_field(field).and_then(|v| v.as_u64()).and_then(|n| u32::try_from(n).ok());
            found.ok_or_else(|| Error::config(field, "not in the model's configuration", "a token id"))
        };
        let (start, end) = (id("decoder_start_token_id")?, id("eos_token_id")?);
        let options = TranslationOptions { start, end, longest: run.context, shuffle: true, seed: run.config.seed };
        let of_files = |e: genus_text::TextError| Error::from(e).of_files(&run.config.source);
        let examples =
            TranslationExamples::build(train, &tokenizer, options, |p| progress(Phase::Train(p))).map_err(of_files)?;
        examples.require(least_batch(run)).map_err(of_files)?;
        note_left_out("training", &examples, run.context, &mut progress);
        let mut hash = crc32fast::Hasher::new();
        examples.visit_tokens(|ids| hash_ids(&mut hash, ids));
        let (documents, bytes) = hash_pairs(&mut hash, train)?;
        let (mut held_out, mut dev_bytes) = (None, 0);
        if let Some(dev) = dev {
            dev_bytes = hash_pairs(&mut hash, dev)?.1;
            let options = TranslationOptions { shuffle: false, ..options };
            let pairs = TranslationExamples::build(dev, &tokenizer, options, |p| progress(Phase::Dev(p)))?;
            note_left_out("held-out", &pairs, run.context, &mut progress);
            let samples = first_samples(&pairs, run.config.eval_tokens.unwrap_or(0));
            held_out = Some(Dev::of(samples, Some(pairs.bytes_per_token())));
        }
        let tokens = examples.tokens() as u64;
        let crc32 = format!("{:08x}", hash.finalize());
        let fingerprint = Fingerprint { documents, bytes, dev_bytes, tokens, crc32 };
        Ok(Data { tokenizer, train: Arc::new(examples), train_tokens: tokens, dev: held_out, fingerprint })
    }
}

/// The examples that an epoch must have.
fn least_batch(run: &Resolved) -> usize {
    match run.batch {
        crate::BatchSize::Sequences(n) => n,
        crate::BatchSize::Tokens(_) => 1,
    }
}

/// Tells of pairs that are not learned from.
fn note_left_out(which: &str, pairs: &TranslationExamples, context: usize, progress: &mut impl FnMut(Phase)) {
    let (empty, too_long) = pairs.left_out();
    if empty + too_long > 0 {
        progress(Phase::Note(format!(
            "{which} text: {empty} pairs with an empty side and {too_long} with more than {context} tokens on a side are left out"
        )));
    }
}

/// The first examples, of no more ids than `most` together (0: all).
fn first_samples(examples: &dyn Examples, most: usize) -> Vec<Sample> {
    let (mut samples, mut tokens) = (Vec::new(), 0);
    // Always the first epoch, so that masks and second segments are the same at every evaluation.
    for i in 0..examples.epoch_len(0) {
        let sample = examples.sample(0, i);
        tokens += sample.ids.len();
        if most > 0 && tokens > most && !samples.is_empty() {
            break;
        }
        samples.push(sample);
    }
    samples
}

impl Dev {
    fn build(
        corpus: &Corpus,
        tokenizer: &Tokenizer,
        run: &Resolved,
        model: &Model,
        most: usize,
        progress: impl FnMut(BuildProgress),
    ) -> Result<Self> {
        if run.objective.reads_windows() {
            let stream = TokenStream::build(corpus, tokenizer, progress)?;
            let (bytes_per_token, in_rows) = (stream.bytes_per_token(), least_batch(run));
            // As many texts side by side as a batch has rows, if each has two windows.
            if model.spec().memory != Memory::None && stream.len() / run.context >= 2 * in_rows {
                let windows = StreamWindows::new(Arc::new(stream), run.context, in_rows)?;
                let all = first_samples(&windows, most);
                let whole = (all.len() / in_rows).max(1) * in_rows;
                return Ok(Dev::of(all.into_iter().take(whole).collect(), Some(bytes_per_token)));
            }
            let samples = windows(&stream, run.context, run.config.separate_documents, most);
            return Ok(Dev::of(samples, Some(stream.bytes_per_token())));
        }
        let stream = SentenceStream::build(corpus, tokenizer, SentenceSplit::default(), progress)?;
        let options = PairOptions { shuffle: false, layouts: 1, ..pair_options(run) };
        let pairs = PairExamples::new(Arc::new(stream), tokenizer, options)?;
        Ok(Dev::of(first_samples(&pairs, most), None))
    }

    fn of(samples: Vec<Sample>, bytes_per_token: Option<f64>) -> Self {
        let tokens = samples.iter().map(|s| s.ids.len() as u64).sum();
        Dev { samples, tokens, bytes_per_token }
    }
}

fn pair_options(run: &Resolved) -> PairOptions {
    PairOptions {
        max_length: run.context,
        segments: if run.objective == Objective::Pretraining { Segments::Pairs } else { Segments::Full },
        short_probability: run.config.short_probability,
        masking: run.config.masking(),
        shuffle: true,
        seed: run.config.seed,
        ..PairOptions::default()
    }
}

fn hash_tokens(hash: &mut crc32fast::Hasher, stream: &TokenStream) {
    let mut at = 0;
    while at < stream.len() {
        let end = (at + (1 << 16)).min(stream.len());
        hash_ids(hash, &stream.tokens().get(at..end));
        at = end;
    }
}

fn hash_ids(hash: &mut crc32fast::Hasher, ids: &[u32]) {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    hash.update(&bytes);
}

/// Number and bytes of parallel text.
fn hash_pairs(hash: &mut crc32fast::Hasher, text: &Parallel) -> Result<(u64, u64)> {
    let (mut pairs, mut bytes) = (0, 0);
    for pair in text.pairs() {
        let (source, target) = pair?;
        for side in [&source, &target] {
            hash.update(side.as_bytes());
            hash.update(&(side.len() as u64).to_le_bytes());
            bytes += side.len() as u64;
        }
        pairs += 1;
    }
    Ok((pairs, bytes))
}

/// Number and bytes of tagged sentences.
fn hash_tagged(hash: &mut crc32fast::Hasher, text: &Tagged) -> (u64, u64) {
    let mut bytes = 0;
    for sentence in text.sentences() {
        for part in sentence.words.iter().chain(&sentence.tags) {
            hash.update(part.as_bytes());
            hash.update(&(part.len() as u64).to_le_bytes());
        }
        bytes += sentence.words.iter().map(|w| w.len() as u64).sum::<u64>();
    }
    (text.sentences().len() as u64, bytes)
}

/// Number and bytes of a corpus's documents.
fn hash_documents(hash: &mut crc32fast::Hasher, corpus: &Corpus) -> Result<(u64, u64)> {
    let (mut documents, mut bytes) = (0, 0);
    for document in corpus.documents() {
        let document = document?;
        hash.update(document.as_bytes());
        hash.update(&(document.len() as u64).to_le_bytes());
        documents += 1;
        bytes += document.len() as u64;
    }
    Ok((documents, bytes))
}
