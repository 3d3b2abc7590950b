//! The optimiser's update and the norm of the gradients.

pub(crate) mod cpu;
pub(crate) mod definition;

use crate::array::{on_kernel, with_slice, with_slice_mut};
use crate::profile::{Operation, running};
use crate::{Param, Result, Tensor};

/// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2) for one update of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this update.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this update, from 1: corrects the moments' bias.
    pub step: u64,
    /// What gradients are multiplied by first: the factor of gradient clipping.
    pub grad_scale: f64,
}

/// First and second moments of a parameter.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Running mean of the gradient, in the parameter's shape.
    pub first: Tensor,
    /// Running mean of its square.
    pub second: Tensor,
}

impl Moments {
    /// Moments before the first update.
    ///
    /// # Errors
    /// When memory on the device is short.
    pub fn zeros(param: &Param) -> Result<Self> {
        let t = param.tensor();
        Ok(Moments { first: t.zeros_like()?, second: t.zeros_like()? })
    }
}

/// Updates `param` from its gradient, in place, and clears the gradient.
///
/// A parameter without gradient is left alone.
///
/// # Errors
/// When the moments do not fit the parameter.
pub fn adamw(param: &Param, moments: &mut Moments, hyper: &AdamW) -> Result<()> {
    let Some(grad) = param.grad() else { return Ok(()) };
    let _running = running(Operation::Optimizer, 0.0);
    let value = param.tensor();
    let all = [&value, &grad, &moments.first, &moments.second];
    if all.iter().all(|t| on_kernel(t) && t.is_contiguous() && t.dims() == value.dims()) {
        with_slice(&grad, |g| {
            with_slice_mut(&value, |w| {
                with_slice_mut(&moments.first, |m| with_slice_mut(&moments.second, |v| cpu::adamw(hyper, w, g, m, v)))
            })
        })????;
        param.clear_grad();
        return Ok(());
    }
    let (value, first, second) = definition::adamw(&param.tensor(), &grad, moments, hyper)?;
    param.set(value)?;
    *moments = Moments { first, second };
    param.clear_grad();
    Ok(())
}

/// The Euclidean norm of the gradients of all parameters together, accumulated in f64; infinite or NaN when a gradient is.
///
/// # Errors
/// When a gradient cannot be read.
pub fn grad_norm<'a>(params: impl IntoIterator<Item = &'a Param>) -> Result<f64> {
    let _running = running(Operation::Optimizer, 0.0);
    let mut sum = 0.0;
    for p in params {
        if let Some(g) = p.grad() {
            sum += if on_kernel(&g) { with_slice(&g, cpu::sum_of_squares)? } else { definition::sum_of_squares(&g)? };
        }
    }
    Ok(sum.sqrt())
}
