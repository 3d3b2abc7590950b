//! Running models: generation, raw outputs for checking, sentence vectors, scores and measurements.
//!
//! - [`Engine`] continues prompts, many together, greedily, by sampling or by beam search.
//! - [`forward`] computes a model's outputs, loss and gradients under the reference's names and padded shapes.

mod engine;
mod error;
mod forward;

pub use engine::{
    Batch, Beam, BeamOptions, Completion, Engine, Event, FinishReason, GenerateOptions, GenerationConfig,
    MAX_NEW_TOKENS, Overrides, Request, Sampling,
};
pub use error::{Error, Result};
pub use forward::{ForwardOptions, PaddedBatch, forward};
