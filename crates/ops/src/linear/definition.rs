//! What [`super::linear`] computes, in candle's primitives.

use super::Layout;
use crate::{Activation, Result};
use candle_core::Tensor;

pub(crate) fn product(x: &Tensor, weight: &Tensor, layout: Layout) -> Result<Tensor> {
    Ok(match layout {
        Layout::InOut => x.matmul(weight)?,
        Layout::OutIn => x.matmul(&weight.t()?)?,
    })
}

pub(crate) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    layout: Layout,
    activation: Activation,
) -> Result<Tensor> {
    let y = product(x, weight, layout)?;
    let y = match bias {
        Some(b) => y.broadcast_add(b)?,
        None => y,
    };
    activation.definition(&y)
}
