//! The recurrent part of a layer of long short-term memory over a ragged batch.

mod cpu;
mod definition;

use crate::array::{tensor, uninit, with_slice, with_slices};
use crate::gemm::packed::{Floats, Prepared};
use crate::linear::cpu::weight_gradient;
use crate::linear::{Layout, matrix};
use crate::rows::cpu as rows;
use crate::{Error, Result, Spans, Tape, Value};
use cpu::{Clips, Shape, Steps};

/// The weights of a recurrence.
pub struct Lstm<'a> {
    /// From the last output to the gates, `[4 h, p]`.
    pub recurrent: &'a Value,
    /// From cells to the output, `[p, h]`; without one the output is as wide as the cells (Sak et al. 2014, arXiv 1402.1128).
    pub projection: Option<&'a Value>,
    /// Cells are kept within plus and minus this.
    pub cell_clip: Option<f32>,
    /// Projected outputs are kept within plus and minus this.
    pub projection_clip: Option<f32>,
}

/// Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000): for each sequence, from
/// `c = 0`, `y = 0`,
///
/// `i, f, g, o = gates_t + y R^T` (in this order), `c = sigmoid(f) c + sigmoid(i) tanh(g)`, `y = sigmoid(o) tanh(c)`, then the
/// projection, if there is one. `gates` is the part of the input, biases included: an affine map of all tokens at once.
///
/// Each step takes the sequences that are long enough together, so nothing is computed for padding.
///
/// # Shapes
/// `gates` `[n, 4 h]`; the result `[n, p]`, or `[n, h]` without projection.
///
/// # Errors
/// When shapes do not fit or a clip is not a positive number.
pub fn lstm(tape: &Tape, gates: &Value, w: &Lstm<'_>, spans: &Spans) -> Result<Value> {
    const OP: &str = "lstm";
    let (n, wide) = matrix(OP, "gates", gates)?;
    let h = wide / 4;
    if wide % 4 != 0 || h == 0 {
        return Err(Error::shape(OP, "gates", gates.dims(), "[n, 4 h]"));
    }
    if spans.total() != n {
        return Err(Error::shape(
            OP,
            "gates",
            gates.dims(),
            format!("[{}, 4 h], the tokens of the spans", spans.total()),
        ));
    }
    let p = match w.projection {
        None => h,
        Some(projection) => match projection.dims() {
            &[p, from] if from == h => p,
            dims => return Err(Error::shape(OP, "projection", dims, format!("[p, {h}]"))),
        },
    };
    if w.recurrent.dims() != [4 * h, p] {
        return Err(Error::shape(OP, "recurrent", w.recurrent.dims(), format!("[{}, {p}]", 4 * h)));
    }
    for (what, clip) in [("cell clip", w.cell_clip), ("projection clip", w.projection_clip)] {
        if let Some(c) = clip.filter(|c| !(*c > 0.0 && c.is_finite())) {
            return Err(Error::value(OP, what, c, "a positive number"));
        }
    }
    let steps = Steps::new(spans);
    if !tape.kernel(gates.tensor()) {
        return definition::lstm(tape, gates, w, &steps);
    }
    let clips = Clips { cell: w.cell_clip, output: w.projection.and(w.projection_clip) };
    kernel(tape, gates, w, steps, Shape { n, h, p, clips, precision: tape.precision() })
}

/// A weight packed for the products of all steps; that of a prepared parameter is one already.
fn with_packed<R>(tape: &Tape, v: &Value, d_in: usize, d_out: usize, f: impl FnOnce(&Prepared) -> R) -> Result<R> {
    match tape.prepared(v) {
        Some(packed) => Ok(f(packed)),
        None => {
            with_slice(v.tensor(), |w| f(&Prepared::pack(Floats::F32(w), Layout::OutIn, d_in, d_out, tape.precision())))
        }
    }
}

fn kernel(tape: &Tape, gates: &Value, w: &Lstm<'_>, steps: Steps, s: Shape) -> Result<Value> {
    let Shape { n, h, p, precision, .. } = s;
    let mut inputs = vec![gates, w.recurrent];
    inputs.extend(w.projection);
    // In the order of the steps: gates, cells, what the cells put out, and what the projection makes of that.
    let (mut open, mut cells, mut inner) = (uninit(n * 4 * h), uninit(n * h), uninit(n * h));
    let mut outer = w.projection.map(|_| uninit(n * p));
    with_slice(gates.tensor(), |g| rows::gather(g, 4 * h, &steps.rows, &mut open))?;
    with_packed(tape, w.recurrent, p, 4 * h, |recurrent| {
        let mut run = |projection: Option<&Prepared>| {
            cpu::forward(s, &steps, recurrent, projection, &mut open, &mut cells, &mut inner, outer.as_deref_mut());
        };
        match w.projection {
            None => {
                run(None);
                Ok(())
            }
            Some(v) => with_packed(tape, v, h, p, |projection| run(Some(projection))),
        }
    })??;
    let mut y = uninit(n * p);
    rows::gather(outer.as_ref().unwrap_or(&inner), p, &steps.places(), &mut y);
    let y = tensor(y, &[n, p])?;
    if !tape.tracks(&inputs) {
        return Ok(Value::constant(y));
    }
    let (recurrent, projection) = (w.recurrent.tensor().clone(), w.projection.map(|v| v.tensor().clone()));
    let targets: Vec<_> = inputs.iter().map(|v| v.target()).collect();
    Ok(tape.push(&inputs, y, move |g, grads| {
        let outputs = outer.as_ref().unwrap_or(&inner);
        let mut dy = uninit(n * p);
        with_slice(&g, |g| rows::gather(g, p, &steps.rows, &mut dy))?;
        drop(g);
        with_slices([&recurrent, projection.as_ref().unwrap_or(&recurrent)], |[r, w]| {
            // The same matrices, read the other way.
            let back = |w: &[f32], d_in, d_out| Prepared::pack(Floats::F32(w), Layout::InOut, d_in, d_out, precision);
            let recurrent = back(r, 4 * h, p);
            let projection = projection.as_ref().map(|_| back(w, p, h));
            cpu::backward(s, &steps, &recurrent, projection.as_ref(), &mut open, &cells, outputs, &mut dy);
        })?;
        drop(cells);
        let dgates = open;
        // What each step but the first read.
        let first = steps.count(0);
        let mut read = uninit((n - first) * p);
        rows::gather(outputs, p, &steps.before(), &mut read);
        let map = |n, d_in, d_out| crate::linear::cpu::Sizes { n, d_in, d_out, precision };
        grads.write(&targets[1], &[4 * h, p], |dw, add| {
            weight_gradient(map(n - first, p, 4 * h), &read, &dgates[first * 4 * h..], Layout::OutIn, dw, add);
        })?;
        if let Some(to) = targets.get(2) {
            grads.write(to, &[p, h], |dw, add| weight_gradient(map(n, h, p), &inner, &dy, Layout::OutIn, dw, add))?;
        }
        let mut dg = uninit(n * 4 * h);
        rows::gather(&dgates, 4 * h, &steps.places(), &mut dg);
        grads.add(&targets[0], tensor(dg, &[n, 4 * h])?)
    }))
}
