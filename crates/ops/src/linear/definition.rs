//! What [`super::linear`] computes, in candle's primitives.

use super::Layout;
use crate::{Activation, Precision, Result, Tape, Value};
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
    finish(&product(x, weight, layout)?, bias, activation)
}

/// What follows the product.
pub(crate) fn finish(y: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    let y = match bias {
        Some(b) => y.broadcast_add(b)?,
        None => y.clone(),
    };
    activation.definition(&y)
}

/// `round(x) round(W)` with the operands rounded to bf16, and so in its gradients: `round(dy) round(W)^T` and
/// `round(x)^T round(dy)`.
pub(crate) fn rounded_product(tape: &Tape, x: &Value, weight: &Value, layout: Layout) -> Result<Value> {
    let round = |t: &Tensor| Precision::Bf16.operand(t);
    let (rx, rw) = (round(x.tensor())?, round(weight.tensor())?);
    let y = product(&rx, &rw, layout)?;
    let (to_x, to_weight) = (x.target(), weight.target());
    Ok(tape.push(&[x, weight], y, move |g, grads| {
        let g = round(&g)?;
        match layout {
            Layout::InOut => {
                grads.add(&to_x, g.matmul(&rw.t()?)?)?;
                grads.add(&to_weight, rx.t()?.matmul(&g)?)
            }
            Layout::OutIn => {
                grads.add(&to_x, g.matmul(&rw)?)?;
                grads.add(&to_weight, g.t()?.matmul(&rx)?)
            }
        }
    }))
}
