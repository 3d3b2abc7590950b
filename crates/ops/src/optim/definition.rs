//! What the optimiser computes, in candle's primitives.

use super::{AdamW, Moments};
use crate::Result;
use candle_core::{DType, Tensor};

pub(crate) fn adamw(w: &Tensor, g: &Tensor, m: &Moments, h: &AdamW) -> Result<(Tensor, Tensor, Tensor)> {
    let g = g.affine(h.grad_scale, 0.0)?;
    let first = m.first.affine(h.beta1, 0.0)?.add(&g.affine(1.0 - h.beta1, 0.0)?)?;
    let second = m.second.affine(h.beta2, 0.0)?.add(&g.mul(&g)?.affine(1.0 - h.beta2, 0.0)?)?;
    let (c1, c2) = (1.0 - h.beta1.powf(h.step as f64), 1.0 - h.beta2.powf(h.step as f64));
    let root = second.affine(1.0 / c2, 0.0)?.sqrt()?.affine(1.0, h.eps)?;
    let w = w.affine(1.0 - h.lr * h.weight_decay, 0.0)?.sub(&first.div(&root)?.affine(h.lr / c1, 0.0)?)?;
    Ok((w, first, second))
}

pub(crate) fn sum_of_squares(g: &Tensor) -> Result<f64> {
    let g = g.to_dtype(DType::F64)?;
    Ok(g.mul(&g)?.sum_all()?.to_scalar::<f64>()?)
}
