//! Fused, differentiable operations and their kernels.

mod array;
mod error;
mod gemm;
pub mod pool;
pub mod rng;
mod simd;
mod spans;
mod tape;

pub use array::{scalar, to_vec, with_slice, with_slice_mut};
pub use candle_core::{DType, Device, Tensor};
pub use error::{Error, Result};
pub use simd::{Level, level, with_level};
pub use spans::Spans;
pub use tape::{Gradients, Param, Path, Tape, Value, check_reached};
