//! Residual connection, dropout and normalisation in one pass.

pub(crate) mod definition;

use crate::linear::{matrix, vector};
use crate::rng::Key;
use crate::{Error, Result, Tape, Value};

/// A normalisation over the last dimension.
#[derive(Clone, Copy, Debug)]
pub enum Norm<'a> {
    /// Layer normalisation (Ba et al. 2016, arXiv 1607.06450): mean and (biased) variance removed.
    Layer {
        /// `[d]`.
        weight: &'a Value,
        /// `[d]`.
        bias: &'a Value,
        /// Added to the variance.
        eps: f64,
    },
    /// RMS normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).
    Rms {
        /// `[d]`.
        weight: &'a Value,
        /// Added to the mean square.
        eps: f64,
    },
}

/// A branch that is added to the residual stream, after dropout of rate `p`.
#[derive(Clone, Copy, Debug)]
pub struct Branch<'a> {
    /// `[n, d]`.
    pub value: &'a Value,
    /// Probability that an element is dropped.
    pub dropout: f32,
}

/// `sum = x + dropout(branch)` and `y = norm(sum)`, as `[sum, y]`; either may stay unused.
///
/// # Shapes
/// `x`, the branch and both results `[n, d]`.
///
/// # Errors
/// When shapes do not fit.
pub fn residual_norm(tape: &Tape, x: &Value, branch: Option<Branch<'_>>, norm: Norm<'_>) -> Result<[Value; 2]> {
    const OP: &str = "residual norm";
    let (_, d) = matrix(OP, "x", x)?;
    let mut inputs = vec![x];
    let (weight, bias, eps) = match norm {
        Norm::Layer { weight, bias, eps } => (weight, Some(bias), eps),
        Norm::Rms { weight, eps } => (weight, None, eps),
    };
    vector(OP, "weight", weight, d)?;
    inputs.push(weight);
    if let Some(b) = bias {
        vector(OP, "bias", b, d)?;
        inputs.push(b);
    }
    let mut drop: Option<(Key, f32)> = None;
    if let Some(b) = branch {
        if b.value.dims() != x.dims() {
            return Err(Error::shape(OP, "branch", b.value.dims(), format!("{:?}", x.dims())));
        }
        drop = tape.draw(b.dropout).map(|k| (k, b.dropout));
        inputs.push(b.value);
    }
    let has_bias = bias.is_some();
    tape.composed(&inputs, |t| {
        let branch = t.get(2 + has_bias as usize);
        let bias = if has_bias { t.get(2) } else { None };
        definition::residual_norm(&t[0], branch, drop, &t[1], bias, eps)
    })
}

/// `x + dropout(branch)` alone: the end of a stack without a final norm.
///
/// # Errors
/// When the shapes differ.
pub fn residual(tape: &Tape, x: &Value, branch: Branch<'_>) -> Result<Value> {
    if branch.value.dims() != x.dims() {
        return Err(Error::shape("residual", "branch", branch.value.dims(), format!("{:?}", x.dims())));
    }
    let drop = tape.draw(branch.dropout).map(|k| (k, branch.dropout));
    let [y] = tape.composed(&[x, branch.value], |t| Ok([definition::residual(&t[0], Some(&t[1]), drop)?]))?;
    Ok(y)
}
