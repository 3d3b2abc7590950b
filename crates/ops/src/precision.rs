//! In what precision a run multiplies matrices.

use crate::Result;
use candle_core::{DType, Tensor};
use std::fmt;
use std::str::FromStr;

/// The precision of matrix products: an argument of the run, not of the model.
///
/// Weights, moments, activations, norms, softmax, losses and all sums are f32 in either (or f64 in the definitions).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// The operands as they are.
    #[default]
    F32,
    /// The operands of matrix products, forward and backward, are rounded to bfloat16 (to the nearest, ties to even); the
    /// products are summed in f32 (Kalamkar et al. 2019, arXiv 1905.12322).
    Bf16,
}

impl Precision {
    /// `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// The operand as a product sees it, for the definitions.
    pub(crate) fn operand(self, t: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Precision::F32 => t.clone(),
            Precision::Bf16 => t.to_dtype(DType::BF16)?.to_dtype(t.dtype())?,
        })
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, Self::Err> {
        match s {
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            _ => Err(format!("found `{s}`, expected f32 or bf16")),
        }
    }
}
