//! Genus: the Transformer and its descendants, to pretrain, generate with, embed with and convert, without Python.
//!
//! The packages of the project under one roof; each can be used alone. The program `genus` (feature `cli`, on by default) is a thin layer over them: what a command does, a
//! function here does.
//!
//! | module | is for |
//! |---|---|
//! | [`text`] | tokenizers, corpora, data sets: text in, ids out |
//! | [`models`] | the members of the family, their published sizes; loading and saving folders in the layout of `transformers` |
//! | [`train`] | runs: objectives, optimiser, schedule, checkpoints, resuming |
//! | [`infer`] | generation, sentence vectors, scores, raw outputs for checking |
//! | [`checkpoint`] | weights in safetensors and pickle, training state, the hub |
//! | [`nn`], [`ops`] | the blocks, and the fused operations with their gradients |
//!
//! # From text to a model, and from the model to text
//!
//! ```
//! use genus::{infer, models, text, train};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let output = folder.path().join("run");
//! // Text in memory; `text::Corpus::open` reads files and folders.
//! let verse = "Whether 'tis nobler in the mind to suffer the slings and arrows of outrageous fortune. ";
//! let corpus = text::Corpus::from_documents("example", vec![verse.repeat(20)]);
//!
//! // A preset with other dimensions; what is left open has the documented defaults.
//! let config = train::TrainConfig {
//!     model: "gpt2".into(),
//!     n_layers: Some(1),
//!     d_model: Some(32),
//!     n_heads: Some(2),
//!     n_ctx: Some(32),
//!     tokenizer: Some("bytes".into()),
//!     batch: Some(4),
//!     steps: 10,
//!     ..Default::default()
//! };
//! let options = train::RunOptions { output, corpus: Some(corpus), ..Default::default() };
//! let outcome = train::train(&config, &options, &mut train::Quiet)?;
//! let (before, after) = (outcome.first_dev.unwrap(), outcome.last_dev.unwrap().1);
//! assert!(after.bits_per_byte < before.bits_per_byte);
//!
//! // A checkpoint is a model folder like any other.
//! let folder = outcome.checkpoint.unwrap();
//! let model = models::Model::load(&folder, &models::LoadOptions::default())?.model;
//! let tokenizer = text::Tokenizer::open(&folder)?;
//! let engine = infer::Engine::new(&model, Some(&tokenizer))?;
//! let options = infer::GenerateOptions { max_new_tokens: 8, ..Default::default() };
//! let request = infer::Request { prompt: engine.encode("Whether ")?, options };
//! let completion = engine.generate(&[request], |_, _| {})?.remove(0);
//! assert_eq!(completion.ids.len(), 8);
//! # Ok(())
//! # }
//! ```
//!
//! # What holds everywhere
//!
//! - **Ragged batches.** A batch is one flat stream of tokens with span offsets; there is no padding. Hidden states are `[n, d_model]`.
//! - **The same bits.** A sequence gives the same result alone and in any batch, with the cache and without, on any number of threads; a run that was killed and
//!   resumed ends with the weights of the run that was not.
//! - **Errors.** Libraries return typed errors that name file, field, what was found and what was expected. Bad input does not panic.

pub use genus_checkpoint as checkpoint;
pub use genus_infer as infer;
pub use genus_models as models;
pub use genus_nn as nn;
pub use genus_ops as ops;
pub use genus_text as text;
pub use genus_train as train;
