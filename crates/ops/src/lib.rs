//! Fused, differentiable operations and their kernels.
//!
//! Every operation takes a [`Tape`] and [`Value`]s, checks shapes, and runs its CPU kernel (f32) or its definition, which is
//! composed of candle's primitives and holds for any device and for f64. Hidden states are `[n, d]`, a flat stream of the
//! tokens of all sequences; [`Spans`] says where each begins.

mod activation;
mod array;
mod attention;
pub mod ceiling;
mod convolution;
pub mod cores;
mod cross_entropy;
mod embedding;
mod error;
mod feed_forward;
mod gemm;
mod linear;
mod lstm;
pub mod memory;
mod mix;
mod norm;
mod optim;
pub mod pool;
mod precision;
pub mod profile;
pub mod rng;
mod rows;
mod sampled;
mod simd;
mod spans;
mod tape;
mod targets;
#[cfg(test)]
mod testing;

pub use activation::Activation;
pub use array::{scalar, to_vec, with_slice, with_slice_mut};
pub use attention::{AttentionSpec, Mask, Qkv, RelativeKeys, RelativeQkv, attention, attention_relative};
pub use candle_core::{DType, Device, Tensor};
pub use convolution::convolve_max;
pub use cross_entropy::{IGNORE, Projection, cross_entropy, cross_entropy_rows, log_sum_exp};
pub use embedding::embedding;
pub use error::{Error, Result};
pub use feed_forward::{Dense, Gated, feed_forward, gated_feed_forward};
pub use gemm::packed::{Floats, Prepared};
pub use gemm::product;
pub use linear::{Layout, linear};
pub use lstm::{Lstm, lstm};
pub use mix::{activate, highway, scalar_mix};
pub use norm::{Branch, Norm, residual, residual_norm};
pub use optim::{AdamW, Moments, adamw, grad_norm};
pub use precision::Precision;
pub use rows::{add_row, beside, columns, copy_rows, dropout, gather_rows, join_rows, reshape, weighted_sum};
pub use sampled::{Expected, row_products, sampled_cross_entropy};
pub use simd::{Level, level, with_level};
pub use spans::Spans;
pub use tape::{Gradients, Param, Path, Tape, Value, check_reached};
pub use targets::{Distance, distance};
