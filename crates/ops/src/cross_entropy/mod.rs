//! Projection to a vocabulary and cross-entropy in one operation: the logits of the whole batch are never held.

pub(crate) mod cpu;
pub(crate) mod definition;
mod sum;

pub use sum::log_sum_exp;

use crate::array::{tensor, uninit, with_slice_mut, with_slices};
use crate::linear::{Layout, by_definition, matrix, vector};
use crate::{Activation, Error, Precision, Result, Tape, Tensor, Value};

/// Target of a row that does not count.
pub const IGNORE: i32 = -100;

/// The projection and how its loss is weighted.
pub struct Projection<'a> {
    /// From `d` to the vocabulary.
    pub weight: &'a Value,
    /// `[vocab_size]`.
    pub bias: Option<&'a Value>,
    /// How the weight lies in memory.
    pub layout: Layout,
    /// The weight of the uniform distribution in the target (Szegedy et al. 2016); 0 for none.
    pub smoothing: f64,
    /// What the sum of the rows' losses is multiplied by: one over the number of targets for a mean.
    pub scale: f64,
}

/// `scale * sum over rows of -log softmax(x W + b)[target]`, a scalar.
///
/// Rows whose target is [`IGNORE`] count nothing. With smoothing s, a row's loss is `(1 - s)` times that plus `s` times the
/// mean of `-log softmax` over the vocabulary.
///
/// # Shapes
/// `x` `[n, d]`, `targets` `n` entries; the result a scalar.
///
/// # Errors
/// When shapes do not fit or a target is beyond the vocabulary.
pub fn cross_entropy(tape: &Tape, x: &Value, p: &Projection<'_>, targets: &[i32]) -> Result<Value> {
    let sizes = sizes(x, p, targets)?;
    let mut inputs = vec![x, p.weight];
    inputs.extend(p.bias);
    if tape.kernel(x.tensor()) {
        return kernel(tape, &inputs, p, targets, sizes);
    }
    if tape.precision() == Precision::Bf16 {
        let logits = by_definition(tape, &inputs, p.layout, Activation::Identity)?;
        let [y] = tape.composed(&[&logits], |t| Ok([definition::loss(&t[0], p.smoothing, p.scale, targets)?]))?;
        return Ok(y);
    }
    let [y] =
        tape.composed(&inputs, |t| Ok([definition::cross_entropy(t, p.layout, p.smoothing, p.scale, targets)?]))?;
    Ok(y)
}

/// The loss of each row, unscaled and 0 where there is no target: what [`cross_entropy`] sums. No gradient flows.
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_rows(tape: &Tape, x: &Value, p: &Projection<'_>, targets: &[i32]) -> Result<Vec<f64>> {
    let sizes = sizes(x, p, targets)?;
    let mut inputs = vec![x, p.weight];
    inputs.extend(p.bias);
    if !tape.kernel(x.tensor()) {
        let logits = by_definition(tape, &inputs, p.layout, Activation::Identity)?;
        let losses = definition::losses(logits.tensor(), p.smoothing, targets)?;
        return Ok(losses.to_dtype(crate::DType::F64)?.to_vec1::<f64>()?);
    }
    let (x, w) = (x.tensor(), p.weight.tensor());
    let mut losses = vec![0.0; targets.len()];
    with_slices([x, w, p.bias.map_or(w, |b| b.tensor())], |[x, w, b]| {
        let head = head(p, [w, b], sizes, tape.precision());
        cpu::forward(&head, x, targets, cpu::Wanted { losses: Some(&mut losses), ..cpu::Wanted::default() })
    })?;
    Ok(losses)
}

/// Rows, width and vocabulary, checked.
fn sizes(x: &Value, p: &Projection<'_>, targets: &[i32]) -> Result<[usize; 3]> {
    const OP: &str = "cross-entropy";
    let (n, d) = matrix(OP, "x", x)?;
    let (d_in, vocab) = p.layout.dims(OP, p.weight)?;
    if d != d_in {
        return Err(Error::shape(OP, "x", x.dims(), format!("[n, {d_in}]")));
    }
    if let Some(b) = p.bias {
        vector(OP, "bias", b, vocab)?;
    }
    if targets.len() != n {
        return Err(Error::value(OP, "number of targets", targets.len(), n.to_string()));
    }
    if let Some(t) = targets.iter().find(|&&t| t != IGNORE && (t < 0 || t as usize >= vocab)) {
        return Err(Error::value(OP, "target", t, format!("{IGNORE} or from 0 to {}", vocab.saturating_sub(1))));
    }
    Ok([n, d, vocab])
}

fn head<'a>(
    p: &Projection<'_>,
    [weight, bias]: [&'a [f32]; 2],
    [_, d, vocab]: [usize; 3],
    precision: Precision,
) -> cpu::Head<'a> {
    let bias = p.bias.is_some().then_some(bias);
    cpu::Head { d, vocab, weight, layout: p.layout, bias, smoothing: p.smoothing, scale: p.scale, precision }
}

/// The kernel path; `inputs`: x, weight and perhaps bias. While recording the gradients for an upstream gradient of 1 are
/// computed here, and the backward pass only hands them on.
fn kernel(tape: &Tape, inputs: &[&Value], p: &Projection<'_>, targets: &[i32], sizes: [usize; 3]) -> Result<Value> {
    let [n, d, _] = sizes;
    let record = tape.tracks(inputs);
    // A parameter's own gradient buffer, if it is free, receives the gradient right away.
    let buffer = |v: &&Value| -> Result<Option<Tensor>> {
        if !record || !v.tracked() {
            return Ok(None);
        }
        Ok(Some(match v.spare_gradient() {
            Some(t) if t.dims() == v.dims() => t,
            _ => tensor(uninit(v.tensor().elem_count()), v.dims())?,
        }))
    };
    let mut dx = (record && inputs[0].tracked()).then(|| uninit(n * d));
    let (dw, db) = (buffer(&inputs[1])?, inputs.get(2).map(buffer).transpose()?.flatten());
    let (x, w) = (inputs[0].tensor(), inputs[1].tensor());
    let bias = inputs.get(2).map_or(w, |b| b.tensor());
    let loss = with_slices([x, w, bias], |[x, w, b]| {
        let head = head(p, [w, b], sizes, tape.precision());
        let mut run = |weight: Option<&mut [f32]>, bias: Option<&mut [f32]>| {
            cpu::forward(&head, x, targets, cpu::Wanted { x: dx.as_deref_mut(), weight, bias, losses: None })
        };
        match (&dw, &db) {
            (Some(w), Some(b)) => with_slice_mut(w, |w| with_slice_mut(b, |b| run(Some(w), Some(b))))?,
            (Some(w), None) => with_slice_mut(w, |w| run(Some(w), None)),
            (None, Some(b)) => with_slice_mut(b, |b| run(None, Some(b))),
            (None, None) => Ok(run(None, None)),
        }
    })??;
    let mut ready = Vec::new();
    for (v, g) in inputs.iter().zip([dx.map(|g| tensor(g, &[n, d])).transpose()?, dw, db]) {
        ready.extend(g.map(|g| (v.target(), g)));
    }
    Ok(tape.push(inputs, tensor(vec![loss as f32], &[])?, move |g, grads| {
        let upstream = crate::scalar(&g)? as f32;
        for (target, g) in ready {
            if upstream != 1.0 {
                with_slice_mut(&g, |g| cpu::scale(g, upstream))?;
            }
            grads.add(&target, g)?;
        }
        Ok(())
    }))
}
