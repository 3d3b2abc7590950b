//! What [`super::convolve_max`] computes, in candle's primitives.

use super::cpu::Shape;
use crate::{Result, Tensor};

/// `t`: x, weight, bias.
pub(super) fn convolve_max(t: &[Tensor], s: Shape) -> Result<Tensor> {
    let Shape { n, length, d, width, f } = s;
    let x = t[0].reshape((n, length, d))?;
    let answers: Vec<Tensor> = (0..=length - width)
        .map(|p| Ok(x.narrow(1, p, width)?.contiguous()?.reshape((n, width * d))?.matmul(&t[1].t()?)?))
        .collect::<Result<_>>()?;
    let answers = Tensor::stack(&answers, 0)?;
    // The first of equal ones alone, as the kernel; the gradient of `max` would go to all of them.
    let first = answers.detach().argmax_keepdim(0)?;
    let best = answers.gather(&first, 0)?.squeeze(0)?;
    Ok(best.broadcast_add(&t[2].reshape((1, f))?)?)
}
