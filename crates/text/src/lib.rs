//! Genus: tokenizers, corpora and data sets. Text in, ids out; ids in, text out; no tensors.
//!
//! - [`Tokenizer`] reads and writes Hugging Face folders (`tokenizer.json`, `vocab.txt`, `vocab.json` + `merges.txt`),
//!   trains byte-level BPE, WordPiece and Unigram vocabularies, and encodes in parallel. [`StreamDecoder`] turns ids into
//!   text while they arrive.
//! - [`Corpus`] reads documents from text, JSON lines and Parquet files and folders of them, and says exactly what is
//!   wrong with a file that it cannot read.
//! - [`TokenStream`], [`CausalWindows`], [`PairExamples`] and [`mask_tokens`] make training examples. Each example is a
//!   pure function of (seed, position): resuming a run needs only a counter.
//!
//! ```
//! use genus_text::{Corpus, CausalWindows, Examples, TokenStream, Tokenizer, WindowOptions};
//!
//! let tokenizer = Tokenizer::bytes();
//! let corpus = Corpus::from_documents("example", vec!["to be or not to be".into(), "that is the question".into()]);
//! let stream = TokenStream::build(&corpus, &tokenizer, |_| {})?;
//! let windows = CausalWindows::new(stream.into(), WindowOptions { context: 8, ..Default::default() })?;
//! let batch = windows.batch(0, 2);
//! assert_eq!(batch.ids.len(), 16);
//! assert_eq!(batch.labels[0], batch.ids[1] as i32);
//! # Ok::<(), genus_text::TextError>(())
//! ```

mod corpus;
mod dataset;
mod error;
pub mod rng;
mod sentencepiece;
mod spelling;
mod tokenizer;

pub use corpus::{
    Corpus, CorpusOptions, CorpusStats, DevSplit, DocumentSplit, Documents, Pairs, Parallel, Tagged, TaggedSentence,
    split_sentences,
};
pub use dataset::{
    Batch, BuildProgress, CausalWindows, Examples, MaskingConfig, PairExamples, PairOptions, Sample, Segments,
    SentenceSplit, SentenceStream, SequenceLabel, StreamWindows, TaggedExamples, TaggedOptions, TaggedPiece,
    TokenStream, Tokens, TranslationExamples, TranslationOptions, WindowOptions, mask_tokens, tagged_pieces,
};
pub use error::{Result, TextError};
pub use spelling::{SENTENCE_BEGIN, SENTENCE_END, spelling, spellings};
pub use tokenizer::{
    Encoded, SpecialTokens, StreamDecoder, Tokenizer, TokenizerKind, TokenizerSpec, TrainKind, TrainOptions,
    TrainProgress,
};
