//! The position-wise feed-forward networks: dense, `y = act(x W1 + b1) W2 + b2` (Vaswani et al. 2017, equation 2), and gated.

pub(crate) mod cpu;
pub(crate) mod definition;
mod gated;
#[cfg(test)]
mod tests;

pub use gated::{Gated, gated_feed_forward};

use crate::array::{tensor, uninit, with_slices};
use crate::linear::cpu as maps;
use crate::linear::{Layout, by_definition, matrix, vector};
use crate::{Activation, Error, Precision, Result, Tape, Value};

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
    let s = shape(tape, OP, x, w.up, w.down, w.layout)?;
    vector(OP, "up bias", w.up_bias, s.d_ff)?;
    vector(OP, "down bias", w.down_bias, s.d_out)?;
    let (layout, activation) = (w.layout, w.activation);
    let inputs = [x, w.up, w.up_bias, w.down, w.down_bias];
    if tape.kernel(x.tensor()) {
        if let (Some(up), Some(down), false) = (tape.prepared(w.up), tape.prepared(w.down), tape.tracks(&inputs)) {
            let cpu::Shape { n, d_model, d_ff, d_out, .. } = s;
            let (mut hidden, mut y) = (uninit(n * d_ff), uninit(n * d_out));
            with_slices([x.tensor(), w.up_bias.tensor(), w.down_bias.tensor()], |[x, up_bias, down_bias]| {
                maps::forward_prepared(n, x, up, [d_model, d_ff], Some(up_bias), activation, &mut hidden);
                let f = Activation::Identity;
                maps::forward_prepared(n, &hidden, down, [d_ff, d_out], Some(down_bias), f, &mut y);
            })?;
            return Ok(Value::constant(tensor(y, &[n, d_out])?));
        }
        return kernel(tape, &inputs, layout, activation, s);
    }
    if tape.precision() == Precision::Bf16 {
        let hidden = by_definition(tape, &[x, w.up, w.up_bias], layout, activation)?;
        return by_definition(tape, &[&hidden, w.down, w.down_bias], layout, Activation::Identity);
    }
    let [y] = tape.composed(&inputs, |t| Ok([definition::feed_forward(t, layout, activation)?]))?;
    Ok(y)
}

/// The network's sizes and precision, where `x`, the map into the inner layer and the one out of it fit.
fn shape(tape: &Tape, op: &'static str, x: &Value, up: &Value, down: &Value, layout: Layout) -> Result<cpu::Shape> {
    let (n, d) = matrix(op, "x", x)?;
    let (d_model, d_ff) = layout.dims(op, up)?;
    let (f, d_out) = layout.dims(op, down)?;
    if d != d_model {
        return Err(Error::shape(op, "x", x.dims(), format!("[n, {d_model}]")));
    }
    if f != d_ff {
        return Err(Error::shape(op, "down", down.dims(), format!("{:?}", layout.shape(d_ff, d_out))));
    }
    Ok(cpu::Shape { n, d_model, d_ff, d_out, precision: tape.precision() })
}

/// The kernel path; `inputs`: x, up, up bias, down, down bias.
fn kernel(tape: &Tape, inputs: &[&Value; 5], layout: Layout, f: Activation, s: cpu::Shape) -> Result<Value> {
    let cpu::Shape { n, d_model, d_ff, d_out, .. } = s;
    let [x, up, up_bias, down, down_bias] = inputs.map(|v| v.tensor().clone());
    let mut y = uninit(n * d_out);
    let mut hidden = uninit(n * d_ff);
    let mut pre = tape.tracks(inputs).then(|| uninit(n * d_ff));
    with_slices([&x, &up, &up_bias, &down, &down_bias], |[x, up, up_bias, down, down_bias]| {
        let (up, down) = ((up, up_bias), (down, down_bias));
        cpu::forward(s, x, up, down, layout, f, pre.as_deref_mut(), &mut hidden, &mut y);
    })?;
    drop(hidden);
    let Some(mut pre) = pre else { return Ok(Value::constant(tensor(y, &[n, d_out])?)) };
    let [to_x, to_up, to_up_bias, to_down, to_down_bias] = inputs.map(|v| v.target());
    Ok(tape.push(inputs, tensor(y, &[n, d_out])?, move |g, grads| {
        with_slices([&x, &up, &down, &g], |[x, up, down, dy]| {
            let mut hidden = uninit(n * d_ff);
            cpu::hidden_gradient(s, dy, down, layout, f, &mut pre, &mut hidden);
            let du = pre;
            grads.write(&to_down, &layout.shape(d_ff, d_out), |dw, add| {
                maps::weight_gradient(s.down(), &hidden, dy, layout, dw, add);
            })?;
            drop(hidden);
            grads.write(&to_down_bias, &[d_out], |db, add| maps::column_sums(dy, n, db, add))?;
            grads.write(&to_up, &layout.shape(d_model, d_ff), |dw, add| {
                maps::weight_gradient(s.up(), x, &du, layout, dw, add);
            })?;
            grads.write(&to_up_bias, &[d_ff], |db, add| maps::column_sums(&du, n, db, add))?;
            grads.write(&to_x, &[n, d_model], |dx, add| maps::input_gradient(s.up(), &du, up, layout, dx, add))
        })?
    }))
}
