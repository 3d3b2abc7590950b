//! Projection to a vocabulary and cross-entropy in one operation: the logits of the whole batch are never held.

pub(crate) mod definition;

use crate::linear::{Layout, matrix, vector};
use crate::{Error, Result, Tape, Value};

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
    let mut inputs = vec![x, p.weight];
    inputs.extend(p.bias);
    let [y] =
        tape.composed(&inputs, |t| Ok([definition::cross_entropy(t, p.layout, p.smoothing, p.scale, targets)?]))?;
    Ok(y)
}
