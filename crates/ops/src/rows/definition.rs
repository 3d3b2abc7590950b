//! Dropout in candle's primitives.

use crate::Result;
use crate::rng::{Key, dropout_factors};
use candle_core::Tensor;

/// `x` times the factors (0 or `1 / (1 - p)`) of its elements; rows are numbered from 0.
pub(crate) fn drop(x: &Tensor, dropout: Option<(Key, f32)>) -> Result<Tensor> {
    let Some((key, p)) = dropout else { return Ok(x.clone()) };
    let (n, d) = x.dims2()?;
    let factors = Tensor::from_vec(dropout_factors(key, 0, n, d, p), (n, d), x.device())?;
    Ok(x.mul(&factors.to_dtype(x.dtype())?)?)
}
