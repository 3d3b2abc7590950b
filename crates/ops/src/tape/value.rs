//! Values: tensors in a computation, and where their gradients go.

use super::param::{Param, unpacked};
use crate::gemm::packed::Prepared;
use candle_core::Tensor;
use std::sync::{Arc, OnceLock};

/// Where a gradient goes: an entry's output on the tape, or a parameter.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Node(usize),
    Param(Param),
}

/// A tensor in a computation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Value {
    /// Empty until somebody asks for the tensor of a prepared weight.
    pub(super) tensor: OnceLock<Tensor>,
    pub(super) prepared: Option<(Arc<Prepared>, [usize; 2])>,
    pub(super) target: Option<Target>,
}

impl Value {
    pub(super) fn new(tensor: Tensor, target: Option<Target>) -> Self {
        Value { tensor: OnceLock::from(tensor), prepared: None, target }
    }

    /// A value that no gradient flows to.
    pub fn constant(tensor: Tensor) -> Self {
        Self::new(tensor, None)
    }

    /// The tensor; of a prepared weight a copy, unpacked when first asked for.
    pub fn tensor(&self) -> &Tensor {
        self.tensor.get_or_init(|| match &self.prepared {
            Some((p, _)) => unpacked(p),
            None => unreachable!("a value has a tensor or is prepared"),
        })
    }

    /// The weight packed for inference, if it is one.
    pub fn prepared(&self) -> Option<&Prepared> {
        self.prepared.as_ref().map(|(p, _)| &**p)
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        match &self.prepared {
            Some((_, dims)) => dims,
            None => self.tensor().dims(),
        }
    }

    /// Number of rows of a `[rows, ...]` value.
    pub fn rows(&self) -> usize {
        self.dims().first().copied().unwrap_or(1)
    }

    /// Whether a gradient is wanted.
    pub fn tracked(&self) -> bool {
        self.target.is_some()
    }

    pub(crate) fn target(&self) -> Option<Target> {
        self.target.clone()
    }

    /// Takes the gradient buffer that a parameter keeps between steps, if it holds no gradient now: for an operation that
    /// computes the gradient ahead of the backward pass and hands the buffer back through [`Grads::add`].
    pub(crate) fn spare_gradient(&self) -> Option<Tensor> {
        match &self.target {
            Some(Target::Param(p)) => {
                let mut g = p.gradient();
                if g.reached { None } else { g.tensor.take() }
            }
            _ => None,
        }
    }
}
