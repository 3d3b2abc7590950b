//! What [`super::feed_forward`] computes, in candle's primitives.

use crate::linear::{Layout, definition::linear};
use crate::{Activation, Result};
use candle_core::Tensor;

/// `t`: x, up, up bias, down, down bias.
pub(crate) fn feed_forward(t: &[Tensor], layout: Layout, activation: Activation) -> Result<Tensor> {
    let a = linear(&t[0], &t[1], Some(&t[2]), layout, activation)?;
    linear(&a, &t[3], Some(&t[4]), layout, Activation::Identity)
}
