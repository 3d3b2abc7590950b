//! Residual connection, dropout and normalisation in one pass.

pub(crate) mod cpu;
pub(crate) mod definition;

use crate::array::{tensor, uninit, with_slice, with_slices};
use crate::linear::{matrix, vector};
use crate::rng::Key;
use crate::rows::cpu::drop_in_place;
use crate::tape::{Grads, Target};
use crate::{Error, Result, Tape, Tensor, Value};

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
    let (n, d) = matrix(OP, "x", x)?;
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
    if tape.kernel(x.tensor()) {
        return kernel(tape, &inputs, has_bias, branch.is_some(), drop, eps, [n, d]);
    }
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
    if tape.kernel(x.tensor()) {
        let (_, d) = matrix("residual", "x", x)?;
        let mut y = uninit(x.tensor().elem_count());
        with_slices([x.tensor(), branch.value.tensor()], |[x, b]| cpu::residual(d, x, b, drop, &mut y))?;
        let (to_x, to_branch) = (x.target(), branch.value.target());
        return Ok(tape.push(&[x, branch.value], tensor(y, x.dims())?, move |g, grads| {
            branch_gradient(&g, &to_branch, drop, grads)?;
            grads.add_shared(&to_x, &g)
        }));
    }
    let [y] = tape.composed(&[x, branch.value], |t| Ok([definition::residual(&t[0], Some(&t[1]), drop)?]))?;
    Ok(y)
}

/// Sends the gradient of the sum through dropout to the branch.
fn branch_gradient(dsum: &Tensor, to: &Option<Target>, drop: Option<(Key, f32)>, grads: &mut Grads) -> Result<()> {
    match drop {
        Some(drop) if to.is_some() => {
            let mut g = with_slice(dsum, <[f32]>::to_vec)?;
            drop_in_place(&mut g, dsum.dim(1)?, drop);
            grads.add(to, tensor(g, dsum.dims())?)
        }
        _ => grads.add_shared(to, dsum),
    }
}

/// The kernel path; `inputs`: x, weight, perhaps bias, perhaps branch.
fn kernel(
    tape: &Tape,
    inputs: &[&Value],
    has_bias: bool,
    has_branch: bool,
    drop: Option<(Key, f32)>,
    eps: f64,
    [n, d]: [usize; 2],
) -> Result<[Value; 2]> {
    let branch_at = 2 + has_bias as usize;
    let (x, weight) = (inputs[0].tensor(), inputs[1].tensor().clone());
    let bias = if has_bias { inputs[2].tensor().clone() } else { weight.clone() };
    let branch = if has_branch { inputs[branch_at].tensor() } else { x };
    let mut sum = if has_branch { uninit(n * d) } else { Vec::new() };
    let (mut y, mut stats) = (uninit(n * d), vec![0f32; 2 * n]);
    with_slices([x, &weight, &bias, branch], |[x, weight, bias, branch]| {
        let s = cpu::Spec { d, weight, bias: has_bias.then_some(bias), eps };
        cpu::forward(s, x, has_branch.then_some(branch), drop, &mut sum, &mut y, &mut stats);
    })?;
    let sum = if has_branch { tensor(sum, &[n, d])? } else { x.clone() };
    let targets: Vec<_> = inputs.iter().map(|v| v.target()).collect();
    let kept = sum.clone();
    Ok(tape.push2(inputs, [sum, tensor(y, &[n, d])?], move |[gsum, gy], grads| {
        let gy = match gy {
            Some(g) => g,
            None => kept.zeros_like()?,
        };
        let other = gsum.as_ref().unwrap_or(&gy);
        let mut dsum = uninit(n * d);
        with_slices([&kept, &weight, &bias, &gy, other], |[sum, weight, bias, gy, other]| {
            let s = cpu::Spec { d, weight, bias: has_bias.then_some(bias), eps };
            let up = cpu::Upstream { y: gy, sum: gsum.is_some().then_some(other) };
            let (dweight, dbias) = cpu::backward(s, sum, &stats, up, &mut dsum);
            grads.write(&targets[1], &[d], |g, add| cpu::combine(&dweight, g, add))?;
            if has_bias {
                grads.write(&targets[2], &[d], |g, add| cpu::combine(&dbias, g, add))?;
            }
            Ok::<_, Error>(())
        })??;
        let dsum = tensor(dsum, &[n, d])?;
        if has_branch {
            branch_gradient(&dsum, &targets[branch_at], drop, grads)?;
        }
        grads.add_shared(&targets[0], &dsum)
    }))
}
