//! From files to training and held-out examples.

use crate::evaluate::windows;
use crate::{Error, Objective, Resolved, Result};
use genus_text::{
    BuildProgress, CausalWindows, Corpus, Examples, PairExamples, PairOptions, Sample, Segments, SentenceSplit,
    SentenceStream, TokenStream, Tokenizer, WindowOptions,
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
}

/// Tells one data set from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Documents of the training text.
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
    /// Bytes of text that an id stands for; for causal models.
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
    /// Encodes training and held-out text.
    ///
    /// # Errors
    /// When the text cannot be read, or there is less than one batch of it.
    pub fn build(
        train: &Corpus,
        dev: Option<&Corpus>,
        tokenizer: Tokenizer,
        run: &Resolved,
        mut progress: impl FnMut(Phase),
    ) -> Result<Self> {
        let of_files = |e: genus_text::TextError| Error::from(e).of_files(&run.config.data);
        let batch = match run.batch {
            crate::BatchSize::Sequences(n) => n,
            crate::BatchSize::Tokens(_) => 1,
        };
        let most = run.config.eval_tokens.unwrap_or(0);
        let mut hash = crc32fast::Hasher::new();
        let (examples, train_tokens): (Arc<dyn Examples>, usize) = match run.objective {
            Objective::Causal => {
                let stream = TokenStream::build(train, &tokenizer, |p| progress(Phase::Train(p)))?;
                let options = WindowOptions {
                    context: run.context,
                    separate_documents: run.config.separate_documents,
                    shuffle: true,
                    seed: run.config.seed,
                };
                let tokens = stream.len();
                hash_tokens(&mut hash, &stream);
                let windows = CausalWindows::new(Arc::new(stream), options).map_err(of_files)?;
                windows.require(batch).map_err(of_files)?;
                (Arc::new(windows), tokens)
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
            Some(corpus) => Some(Dev::build(corpus, &tokenizer, run, most, |p| progress(Phase::Dev(p)))?),
        };
        Ok(Data { tokenizer, train: examples, train_tokens: train_tokens as u64, dev, fingerprint })
    }
}

impl Dev {
    fn build(
        corpus: &Corpus,
        tokenizer: &Tokenizer,
        run: &Resolved,
        most: usize,
        progress: impl FnMut(BuildProgress),
    ) -> Result<Self> {
        if run.objective == Objective::Causal {
            let stream = TokenStream::build(corpus, tokenizer, progress)?;
            let samples = windows(&stream, run.context, run.config.separate_documents, most);
            return Ok(Dev::of(samples, Some(stream.bytes_per_token())));
        }
        let stream = SentenceStream::build(corpus, tokenizer, SentenceSplit::default(), progress)?;
        let options = PairOptions { shuffle: false, layouts: 1, ..pair_options(run) };
        let pairs = PairExamples::new(Arc::new(stream), tokenizer, options)?;
        let (mut samples, mut tokens) = (Vec::new(), 0);
        // Always the first epoch, so that masks and second segments are the same at every evaluation.
        for i in 0..pairs.epoch_len(0) {
            let sample = pairs.sample(0, i);
            tokens += sample.ids.len();
            if most > 0 && tokens > most && !samples.is_empty() {
                break;
            }
            samples.push(sample);
        }
        Ok(Dev::of(samples, None))
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
        let bytes: Vec<u8> = stream.tokens().get(at..end).iter().flat_map(|id| id.to_le_bytes()).collect();
        hash.update(&bytes);
        at = end;
    }
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
