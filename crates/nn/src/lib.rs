//! The blocks that every model of the family is built from.
//!
//! A model is a [`StackSpec`]: one enum per slot. [`Stack::build`] makes its parameters through a [`Builder`], which draws them
//! at random or reads them from a checkpoint, and [`Stack::forward`] turns a ragged batch of token ids into hidden states.
//!
//! Letters in shapes: `n` tokens of all sequences, `d` the model's width, `h` heads, `v` vocabulary.

mod adaptive;
mod attention;
mod build;
mod cache;
mod characters;
mod column;
mod cross;
mod embeddings;
mod error;
mod heads;
mod layer;
mod memory;
mod recurrent;
mod relative;
mod sampled;
mod spec;
mod stack;

pub use build::{Builder, Init, Planned, RandomSource, Source, plan};
pub use cache::SequenceCache;
pub use cross::Encoded;
pub use embeddings::{Embeddings, Input};
pub use error::{Error, Result};
pub use genus_ops as ops;
pub use heads::{ClassTargets, Classifier, Detector, HeadBias, HeadSpec, HeadTransform, LmHead, Pooler};
pub use layer::Layer;
pub use memory::StreamMemory;
pub use spec::{
    Attend, AttentionBias, Bands, CellOutput, Characters, Directions, Dropout, EmbeddingNorm, EmbeddingScale, Encoder,
    FeedForward, FinalNorm, InitScheme, Memory, Mixing, NormKind, OutputDropout, Placement, Positions, Projections,
    Readout, ResidualInit, ScoreScale, Segments, Skip, SoftmaxSample, StackSpec, TokenWidth, Tying, Vocabulary,
};
pub use stack::{Hidden, Stack};
