//! Cross-entropy over the true token and a sample of others.

use crate::linear::matrix;
use crate::{Error, Result, Tape, Tensor, Value};

/// The inner product of each row of `x` with the same row of `y`, `[n, 1]`.
///
/// # Errors
/// When shapes differ.
pub fn row_products(tape: &Tape, x: &Value, y: &Value) -> Result<Value> {
    const OP: &str = "row products";
    let (n, d) = matrix(OP, "x", x)?;
    if y.dims() != [n, d] {
        return Err(Error::shape(OP, "y", y.dims(), format!("[{n}, {d}]")));
    }
    let [z] = tape.composed(&[x, y], |t| Ok([t[0].mul(&t[1])?.sum_keepdim(1)?]))?;
    Ok(z)
}

/// What is taken off logits: the logarithm of how often each is expected to be drawn.
pub struct Expected<'a> {
    /// Of each row's true token.
    pub truth: &'a [f32],
    /// Of the drawn tokens.
    pub drawn: &'a [f32],
    /// Rows whose true token is among the drawn ones, and which: those do not count.
    pub hits: &'a [(u32, u32)],
}

/// `scale` times the sum over rows of `-log p(truth)`, where the probabilities are those of the true token and the drawn ones alone,
/// corrected for how often each is drawn (Jean et al. 2015, arXiv 1412.2007, equation 8, with one sample for all rows).
///
/// # Shapes
/// `truth` `[n, 1]`, `drawn` `[n, s]`; the result a scalar.
///
/// # Errors
/// When shapes do not fit.
pub fn sampled_cross_entropy(
    tape: &Tape,
    truth: &Value,
    drawn: &Value,
    expected: &Expected<'_>,
    scale: f64,
) -> Result<Value> {
    const OP: &str = "sampled cross-entropy";
    let (n, s) = matrix(OP, "drawn", drawn)?;
    if truth.dims() != [n, 1] || expected.truth.len() != n || expected.drawn.len() != s {
        return Err(Error::shape(OP, "truth", truth.dims(), format!("[{n}, 1], with as many corrections")));
    }
    let mut off: Vec<f32> = (0..n).flat_map(|_| expected.drawn.iter().copied()).collect();
    for &(row, column) in expected.hits {
        match off.get_mut(row as usize * s + column as usize) {
            Some(o) if (column as usize) < s => *o = 1e30,
            _ => return Err(Error::value(OP, "hit", format!("({row}, {column})"), format!("below ({n}, {s})"))),
        }
    }
    let like = |values: &[f32], shape: (usize, usize)| -> Result<Tensor> {
        let t = drawn.tensor();
        Ok(Tensor::from_slice(values, shape, t.device())?.to_dtype(t.dtype())?)
    };
    let (less, off) = (like(expected.truth, (n, 1))?, like(&off, (n, s))?);
    let [loss] = tape.composed(&[truth, drawn], |t| {
        let truth = t[0].sub(&less)?;
        let all = Tensor::cat(&[&truth, &t[1].sub(&off)?], 1)?;
        let most = all.detach().max_keepdim(1)?;
        let sum = all.broadcast_sub(&most)?.exp()?.sum_keepdim(1)?.log()?.add(&most)?;
        Ok([sum.sub(&truth)?.sum_all()?.affine(scale, 0.0)?])
    })?;
    Ok(loss)
}
