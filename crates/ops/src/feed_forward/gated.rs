//! The gated network (Shazeer 2020, arXiv 2002.05202): one map's activation scales another's output before the last.

use super::{cpu, definition, shape};
use crate::array::{tensor, uninit, with_slices};
use crate::linear::cpu as maps;
use crate::linear::{Layout, by_definition, vector};
use crate::{Activation, Error, Precision, Result, Tape, Value};

/// The weights of a gated feed-forward network.
pub struct Gated<'a> {
    /// From `d_model` to `d_ff`, before the activation.
    pub gate: &'a Value,
    /// `[d_ff]`.
    pub gate_bias: Option<&'a Value>,
    /// From `d_model` to `d_ff`, what the gate scales.
    pub up: &'a Value,
    /// `[d_ff]`.
    pub up_bias: Option<&'a Value>,
    /// From `d_ff` to `d_model`.
    pub down: &'a Value,
    /// `[d_model]`.
    pub down_bias: Option<&'a Value>,
    /// How the three matrices lie in memory.
    pub layout: Layout,
    /// Of the gate: [`Activation::Silu`] makes it SwiGLU (Llama), [`Activation::GeluTanh`] GEGLU (T5 1.1).
    pub activation: Activation,
}

/// `(act(x Wg + bg) * (x Wu + bu)) Wd + bd` (Shazeer 2020, equation 6), each bias only if given. `x` and the results of the first
/// two maps are kept for the backward pass, which puts their gradients in the same place.
///
/// # Shapes
/// `x` `[n, d_model]`; the result as `x`.
///
/// # Errors
/// When shapes do not fit.
pub fn gated_feed_forward(tape: &Tape, x: &Value, w: &Gated<'_>) -> Result<Value> {
    const OP: &str = "gated feed-forward";
    let s = shape(tape, OP, x, w.up, w.down, w.layout)?;
    if w.gate.dims() != w.up.dims() {
        return Err(Error::shape(OP, "gate", w.gate.dims(), format!("{:?}", w.up.dims())));
    }
    let biases = [w.gate_bias, w.up_bias, w.down_bias];
    for (what, bias, len) in
        [("gate bias", biases[0], s.d_ff), ("up bias", biases[1], s.d_ff), ("down bias", biases[2], s.d_out)]
    {
        if let Some(bias) = bias {
            vector(OP, what, bias, len)?;
        }
    }
    if tape.kernel(x.tensor()) {
        return kernel(tape, [x, w.gate, w.up, w.down], biases, w.layout, w.activation, s);
    }
    if tape.precision() == Precision::Bf16 {
        let map = |x: &Value, weight: &Value, bias: Option<&Value>, f| {
            let mut inputs = vec![x, weight];
            inputs.extend(bias);
            by_definition(tape, &inputs, w.layout, f)
        };
        let gate = map(x, w.gate, w.gate_bias, w.activation)?;
        let up = map(x, w.up, w.up_bias, Activation::Identity)?;
        let [hidden] = tape.composed(&[&gate, &up], |t| Ok([t[0].mul(&t[1])?]))?;
        return map(&hidden, w.down, w.down_bias, Activation::Identity);
    }
    let mut inputs = vec![x, w.gate, w.up, w.down];
    inputs.extend(biases.iter().flatten());
    let (has_bias, layout, activation) = (biases.map(|b| b.is_some()), w.layout, w.activation);
    let [y] = tape.composed(&inputs, |t| Ok([definition::gated_feed_forward(t, has_bias, layout, activation)?]))?;
    Ok(y)
}

/// The kernel path; `main`: x, gate, up, down; `biases`: of the three maps.
fn kernel(
    tape: &Tape,
    main: [&Value; 4],
    biases: [Option<&Value>; 3],
    layout: Layout,
    f: Activation,
    s: cpu::Shape,
) -> Result<Value> {
    let cpu::Shape { n, d_model, d_ff, d_out, .. } = s;
    let mut inputs = main.to_vec();
    inputs.extend(biases.iter().flatten());
    let [x, gate, up, down] = main.map(|v| v.tensor().clone());
    let mut y = uninit(n * d_out);
    let (mut hidden, mut opened) = (uninit(n * d_ff), uninit(n * d_ff));
    let mut scaled = tape.tracks(&inputs).then(|| uninit(n * d_ff));
    // A bias that is not there is read from a matrix that is, and left out below.
    let [b0, b1, b2] = biases.map(|b| b.map_or(&down, |b| b.tensor()));
    with_slices([&x, &gate, &up, &down, b0, b1, b2], |[x, gate, up, down, b0, b1, b2]| {
        let given = |i: usize, b| biases[i].map(|_| b);
        let maps = [(gate, given(0, b0)), (up, given(1, b1)), (down, given(2, b2))];
        cpu::gated_forward(s, x, maps, layout, f, &mut opened, scaled.as_deref_mut(), &mut hidden, &mut y);
    })?;
    drop(hidden);
    let y = tensor(y, &[n, d_out])?;
    let Some(mut scaled) = scaled else { return Ok(Value::constant(y)) };
    let [to_x, to_gate, to_up, to_down] = main.map(|v| v.target());
    let [to_gate_bias, to_up_bias, to_down_bias] = biases.map(|b| b.and_then(|b| b.target()));
    Ok(tape.push(&inputs, y, move |g, grads| {
        with_slices([&x, &gate, &up, &down, &g], |[x, gate, up, down, dy]| {
            let mut hidden = uninit(n * d_ff);
            cpu::gated_hidden_gradient(s, dy, down, layout, f, &mut opened, &mut scaled, &mut hidden);
            let (dgate, dup) = (opened, scaled);
            grads.write(&to_down, &layout.shape(d_ff, d_out), |dw, add| {
                maps::weight_gradient(s.down(), &hidden, dy, layout, dw, add);
            })?;
            drop(hidden);
            grads.write(&to_down_bias, &[d_out], |db, add| maps::column_sums(dy, n, db, add))?;
            for (to_weight, to_bias, du) in [(&to_gate, &to_gate_bias, &dgate), (&to_up, &to_up_bias, &dup)] {
                grads.write(to_weight, &layout.shape(d_model, d_ff), |dw, add| {
                    maps::weight_gradient(s.up(), x, du, layout, dw, add);
                })?;
                grads.write(to_bias, &[d_ff], |db, add| maps::column_sums(du, n, db, add))?;
            }
            grads.write(&to_x, &[n, d_model], |dx, add| {
                maps::input_gradient(s.up(), &dgate, gate, layout, dx, add);
                maps::input_gradient(s.up(), &dup, up, layout, dx, true);
            })
        })?
    }))
}
