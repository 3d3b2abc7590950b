//! The position-wise feed-forward network `y = act(x W1 + b1) W2 + b2` (Vaswani et al. 2017, equation 2).

pub(crate) mod definition;

use crate::linear::{Layout, matrix, vector};
use crate::{Activation, Error, Result, Tape, Value};

/// The weights of a dense feed-forward network.
pub struct Dense<'a> {
    /// From `d_model` to `d_ff`.
    pub up: &'a Value,
    /// `[d_ff]`.
    pub up_bias: &'a Value,
    /// From `d_ff` to `d_model`.
    pub down: &'a Value,
    /// `[d_model]`.
    pub down_bias: &'a Value,
    /// How both matrices lie in memory.
    pub layout: Layout,
    /// Between the two.
    pub activation: Activation,
}

/// `act(x W1 + b1) W2 + b2`. Only `x` and the pre-activation are kept for the backward pass.
///
/// # Shapes
/// `x` `[n, d_model]`; the result as `x`.
///
/// # Errors
/// When shapes do not fit.
pub fn feed_forward(tape: &Tape, x: &Value, w: &Dense<'_>) -> Result<Value> {
    const OP: &str = "feed-forward";
    let (_, d) = matrix(OP, "x", x)?;
    let (d_in, d_ff) = w.layout.dims(OP, w.up)?;
    let (f, d_out) = w.layout.dims(OP, w.down)?;
    if d != d_in {
        return Err(Error::shape(OP, "x", x.dims(), format!("[n, {d_in}]")));
    }
    if f != d_ff {
        return Err(Error::shape(OP, "down", w.down.dims(), format!("{:?}", w.layout.shape(d_ff, d_out))));
    }
    vector(OP, "up bias", w.up_bias, d_ff)?;
    vector(OP, "down bias", w.down_bias, d_out)?;
    let (layout, activation) = (w.layout, w.activation);
    let inputs = [x, w.up, w.up_bias, w.down, w.down_bias];
    let [y] = tape.composed(&inputs, |t| Ok([definition::feed_forward(t, layout, activation)?]))?;
    Ok(y)
}
