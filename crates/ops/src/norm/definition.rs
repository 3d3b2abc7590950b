//! What [`super::residual_norm`] computes, in candle's primitives.

use crate::Result;
use crate::rng::Key;
use crate::rows::definition::drop;
use candle_core::{D, Tensor};

pub(crate) fn residual(x: &Tensor, branch: Option<&Tensor>, dropout: Option<(Key, f32)>) -> Result<Tensor> {
    Ok(match branch {
        Some(r) => x.add(&drop(r, dropout)?)?,
        None => x.clone(),
    })
}

/// With a bias layer normalisation, without RMS normalisation.
pub(crate) fn residual_norm(
    x: &Tensor,
    branch: Option<&Tensor>,
    dropout: Option<(Key, f32)>,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<[Tensor; 2]> {
    let sum = residual(x, branch, dropout)?;
    let y = match bias {
        Some(bias) => {
            let centred = sum.broadcast_sub(&sum.mean_keepdim(D::Minus1)?)?;
            let deviation = centred.mul(&centred)?.mean_keepdim(D::Minus1)?.affine(1.0, eps)?.sqrt()?;
            centred.broadcast_div(&deviation)?.broadcast_mul(weight)?.broadcast_add(bias)?
        }
        None => {
            let size = sum.mul(&sum)?.mean_keepdim(D::Minus1)?.affine(1.0, eps)?.sqrt()?;
            sum.broadcast_div(&size)?.broadcast_mul(weight)?
        }
    };
    Ok([sum, y])
}
