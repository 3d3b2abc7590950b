//! Running models: generation, raw outputs for checking, sentence vectors, scores and measurements.
//!
//! - [`Engine`] continues prompts, many together, greedily, by sampling or by beam search.
//! - [`embed`] turns lines into vectors; [`score_continuations`] and [`score_stream`] tell how likely tokens are; [`ContextLosses`] how much
//!   context a model makes use of.
//! - [`fn@translate`] translates lines by beam search; [`fn@bleu`] compares translations with references.
//! - [`fn@represent`] gives a word's vector in its context.
//! - [`fn@fill`] tells how well hidden words are filled, [`tag`] and [`tag_scores`] what and how good the tags of words are.
//! - [`mod@bench`] measures, beside the machine's ceilings.
//! - [`forward`] computes a model's outputs, loss and gradients under the reference's names and padded shapes.

pub mod bench;
mod bleu;
mod context_length;
mod embed;
mod engine;
mod error;
mod fill;
mod forward;
mod represent;
mod score;
mod tagging;
mod translate;

pub use bleu::{Bleu, BleuOptions, bleu};
pub use context_length::{ContextLosses, EffectiveContext};
pub use embed::{EmbedOptions, Embeddings, Pooling, embed, embed_ids, encode_lines, read_lines};
pub use engine::{
    Batch, Beam, BeamOptions, Completion, Engine, Event, FinishReason, GenerateOptions, GenerationConfig,
    MAX_NEW_TOKENS, Overrides, Request, Sampling,
};
pub use error::{Error, Result};
pub use fill::{FillOptions, FillScore, Filling, fill};
pub use forward::{ForwardOptions, PaddedBatch, forward};
pub use represent::{Representation, cosine, represent};
pub use score::{Score, StreamOptions, StreamScore, score_continuations, score_stream, score_tokens};
pub use tagging::{EntityScore, TagScores, tag, tag_scores};
pub use translate::{BEYOND, Sources, TranslateOptions, Translation, translate};
