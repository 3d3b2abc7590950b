//! What [`super::feed_forward`] and [`super::gated_feed_forward`] compute, in candle's primitives.

use crate::linear::{Layout, definition::linear};
use crate::{Activation, Result};
use candle_core::Tensor;

/// `t`: x, up, up bias, down, down bias.
pub(crate) fn feed_forward(t: &[Tensor], layout: Layout, activation: Activation) -> Result<Tensor> {
    let a = linear(&t[0], &t[1], Some(&t[2]), layout, activation)?;
    linear(&a, &t[3], Some(&t[4]), layout, Activation::Identity)
}

/// `t`: x, gate, up, down and the biases that there are, in that order.
pub(crate) fn gated_feed_forward(
    t: &[Tensor],
    has_bias: [bool; 3],
    layout: Layout,
    activation: Activation,
) -> Result<Tensor> {
    let mut rest = t[4..].iter();
    let [gate_bias, up_bias, down_bias] = has_bias.map(|has| if has { rest.next() } else { None });
    let gate = linear(&t[0], &t[1], gate_bias, layout, activation)?;
    let up = linear(&t[0], &t[2], up_bias, layout, Activation::Identity)?;
    linear(&gate.mul(&up)?, &t[3], down_bias, layout, Activation::Identity)
}
