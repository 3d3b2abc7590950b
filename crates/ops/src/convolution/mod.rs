//! The strongest answer of each of several patterns anywhere in a short row of vectors: a convolution and its maximum.

mod cpu;
mod definition;

use crate::array::{tensor, uninit, with_slices};
use crate::linear::cpu::column_sums;
use crate::linear::{matrix, vector};
use crate::{Error, Result, Tape, Value};

/// `y[i, f] = b[f] + max over p of w[f] . x[i, p .. p + width]` (Kim 2014, arXiv 1408.5882; over characters Kim et al. 2016,
/// arXiv 1508.06615), for rows of `length` vectors each. Of equal answers the first counts. Products
/// are f32 in every precision: rounding would let other windows win.
///
/// # Shapes
/// `x` `[n length, d]`, `weight` `[f, width d]` (the vectors of a pattern one after the other), `bias` `[f]`; the result `[n, f]`.
///
/// # Errors
/// When shapes do not fit.
pub fn convolve_max(tape: &Tape, x: &Value, weight: &Value, bias: &Value, length: usize) -> Result<Value> {
    const OP: &str = "convolve";
    let ((rows, d), (f, long)) = (matrix(OP, "x", x)?, matrix(OP, "weight", weight)?);
    vector(OP, "bias", bias, f)?;
    if length == 0 || rows % length != 0 {
        return Err(Error::shape(OP, "x", x.dims(), format!("[n times {length}, d]")));
    }
    let width = long.checked_div(d).unwrap_or(0);
    if width == 0 || width > length || width * d != long {
        let expected = format!("[f, width times {d}] of a width from 1 to {length}");
        return Err(Error::shape(OP, "weight", weight.dims(), expected));
    }
    let s = cpu::Shape { n: rows / length, length, d, width, f };
    if !tape.kernel(x.tensor()) {
        let [y] = tape.composed(&[x, weight, bias], |t| Ok([definition::convolve_max(t, s)?]))?;
        return Ok(y);
    }
    let (mut y, mut best) = (uninit(s.n * f), vec![0u32; s.n * f]);
    with_slices([x.tensor(), weight.tensor(), bias.tensor()], |[x, w, b]| {
        cpu::forward(s, x, w, b, &mut y, &mut best);
    })?;
    let (tx, tw) = (x.tensor().clone(), weight.tensor().clone());
    let [to_x, to_weight, to_bias] = [x, weight, bias].map(Value::target);
    Ok(tape.push(&[x, weight, bias], tensor(y, &[s.n, f])?, move |g, grads| {
        with_slices([&tx, &tw, &g], |[x, w, dy]| {
            grads.write(&to_weight, &[f, long], |dw, add| cpu::weight_gradient(s, x, dy, &best, dw, add))?;
            grads.write(&to_x, &[rows, d], |dx, add| cpu::input_gradient(s, w, dy, &best, dx, add))?;
            grads.write(&to_bias, &[f], |db, add| column_sums(dy, s.n, db, add))
        })?
    }))
}
