//! What [`super::cross_entropy`] computes, in candle's primitives.

use super::IGNORE;
use crate::Result;
use crate::linear::{Layout, definition::linear};
use candle_core::{D, Tensor};

/// `log softmax` over the last dimension.
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

/// `t`: x, weight and perhaps bias.
pub(crate) fn cross_entropy(
    t: &[Tensor],
    layout: Layout,
    smoothing: f64,
    scale: f64,
    targets: &[i32],
) -> Result<Tensor> {
    let logits = linear(&t[0], &t[1], t.get(2), layout, crate::Activation::Identity)?;
    loss(&logits, smoothing, scale, targets)
}

/// The loss of given logits.
pub(crate) fn loss(logits: &Tensor, smoothing: f64, scale: f64, targets: &[i32]) -> Result<Tensor> {
    Ok(losses(logits, smoothing, targets)?.sum_all()?.affine(scale, 0.0)?)
}

/// Each row's loss, 0 without a target.
pub(crate) fn losses(logits: &Tensor, smoothing: f64, targets: &[i32]) -> Result<Tensor> {
    let log_p = log_softmax(logits)?;
    let kept: Vec<f32> = targets.iter().map(|&t| if t == IGNORE { 0.0 } else { 1.0 }).collect();
    let index: Vec<u32> = targets.iter().map(|&t| t.max(0) as u32).collect();
    let n = targets.len();
    let kept = Tensor::from_vec(kept, n, logits.device())?.to_dtype(logits.dtype())?;
    let index = Tensor::from_vec(index, (n, 1), logits.device())?;
    let mut loss = log_p.gather(&index, D::Minus1)?.squeeze(1)?.affine(-(1.0 - smoothing), 0.0)?;
    if smoothing != 0.0 {
        loss = loss.sub(&log_p.mean(D::Minus1)?.affine(smoothing, 0.0)?)?;
    }
    Ok(loss.mul(&kept)?)
}
