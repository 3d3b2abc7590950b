//! The affine map `y = act(x W + b)`.

pub(crate) mod cpu;
pub(crate) mod definition;

use crate::array::{tensor, uninit, with_slices};
use crate::{Activation, Error, Precision, Result, Tape, Value};

/// How a weight matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[d_in, d_out]`: GPT and GPT-2 (`Conv1D` in their code).
    InOut,
    /// `[d_out, d_in]`: BERT and most later models (`nn.Linear` in PyTorch).
    OutIn,
}

impl Layout {
    /// The shape of a weight from `d_in` to `d_out`.
    pub fn shape(self, d_in: usize, d_out: usize) -> [usize; 2] {
        match self {
            Layout::InOut => [d_in, d_out],
            Layout::OutIn => [d_out, d_in],
        }
    }

    /// `(d_in, d_out)` of a weight in this layout.
    ///
    /// # Errors
    /// When the weight is not a matrix.
    pub fn dims(self, op: &'static str, weight: &Value) -> Result<(usize, usize)> {
        match (self, weight.dims()) {
            (Layout::InOut, &[i, o]) | (Layout::OutIn, &[o, i]) => Ok((i, o)),
            (_, dims) => Err(Error::shape(op, "weight", dims, "a matrix")),
        }
    }
}

/// The rows and columns of a matrix argument.
pub(crate) fn matrix(op: &'static str, what: &'static str, x: &Value) -> Result<(usize, usize)> {
    match x.dims() {
        &[n, d] => Ok((n, d)),
        dims => Err(Error::shape(op, what, dims, "a matrix")),
    }
}

/// Checks a vector argument's length.
pub(crate) fn vector(op: &'static str, what: &'static str, x: &Value, len: usize) -> Result<()> {
    if x.dims() == [len] { Ok(()) } else { Err(Error::shape(op, what, x.dims(), format!("[{len}]"))) }
}

/// `act(x W + b)`.
///
/// # Shapes
/// `x` `[n, d_in]`, `weight` as `layout` says, `bias` `[d_out]`; the result `[n, d_out]`.
///
/// # Errors
/// When shapes do not fit.
pub fn linear(
    tape: &Tape,
    x: &Value,
    weight: &Value,
    bias: Option<&Value>,
    layout: Layout,
    activation: Activation,
) -> Result<Value> {
    let (n, d) = matrix("linear", "x", x)?;
    let (d_in, d_out) = layout.dims("linear", weight)?;
    if d != d_in {
        return Err(Error::shape("linear", "x", x.dims(), format!("[n, {d_in}]")));
    }
    if let Some(b) = bias {
        vector("linear", "bias", b, d_out)?;
    }
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    if tape.kernel(x.tensor()) {
        if let Some(w) = tape.prepared(weight)
            && !tape.tracks(&inputs)
        {
            let mut y = uninit(n * d_out);
            let bias_or_x = bias.map_or(x.tensor(), |b| b.tensor());
            with_slices([x.tensor(), bias_or_x], |[x, b]| {
                cpu::forward_prepared(n, x, w, [d_in, d_out], bias.map(|_| b), activation, &mut y);
            })?;
            return Ok(Value::constant(tensor(y, &[n, d_out])?));
        }
        let s = cpu::Sizes { n, d_in, d_out, precision: tape.precision() };
        return kernel(tape, &inputs, layout, activation, s);
    }
    by_definition(tape, &inputs, layout, activation)
}

/// The definition on the tape; `inputs`: x, weight and perhaps bias. In bf16 the product's backward is written out, since it
/// rounds the output's gradient, which candle's own would not.
pub(crate) fn by_definition(tape: &Tape, inputs: &[&Value], layout: Layout, activation: Activation) -> Result<Value> {
    if tape.precision() == Precision::Bf16 {
        let product = definition::rounded_product(tape, inputs[0], inputs[1], layout)?;
        let mut inputs = inputs[1..].to_vec();
        inputs[0] = &product;
        let [y] = tape.composed(&inputs, |t| Ok([definition::finish(&t[0], t.get(1), activation)?]))?;
        return Ok(y);
    }
    let [y] = tape.composed(inputs, |t| Ok([definition::linear(&t[0], &t[1], t.get(2), layout, activation)?]))?;
    Ok(y)
}

/// The kernel path; `inputs`: x, weight and perhaps bias.
fn kernel(tape: &Tape, inputs: &[&Value], layout: Layout, f: Activation, s: cpu::Sizes) -> Result<Value> {
    let cpu::Sizes { n, d_in, d_out, .. } = s;
    let (x, w) = (inputs[0].tensor().clone(), inputs[1].tensor().clone());
    let bias = inputs.get(2).map(|b| b.tensor());
    let keep_pre = f != Activation::Identity && tape.tracks(inputs);
    let mut y = uninit(n * d_out);
    let mut pre = keep_pre.then(|| uninit(n * d_out));
    with_slices([&x, &w, bias.unwrap_or(&w)], |[x, w, b]| {
        cpu::forward(s, x, w, layout, bias.map(|_| b), f, pre.as_deref_mut(), &mut y);
    })?;
    let targets: Vec<_> = inputs.iter().map(|v| v.target()).collect();
    Ok(tape.push(inputs, tensor(y, &[n, d_out])?, move |g, grads| {
        let mut own = None;
        with_slices([&x, &w, &g], |[x, w, dy]| {
            let du = match &pre {
                Some(pre) => {
                    let du = own.insert(uninit(n * d_out));
                    cpu::activation_gradient(f, pre, dy, du);
                    &du[..]
                }
                None => dy,
            };
            grads.write(&targets[0], &[n, d_in], |dx, add| cpu::input_gradient(s, du, w, layout, dx, add))?;
            let shape = layout.shape(d_in, d_out);
            grads.write(&targets[1], &shape, |dw, add| cpu::weight_gradient(s, x, du, layout, dw, add))?;
            match targets.get(2) {
                Some(bias) => grads.write(bias, &[d_out], |db, add| cpu::column_sums(du, n, db, add)),
                None => Ok(()),
            }
        })?
    }))
}
