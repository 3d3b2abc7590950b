//! Activation functions and their composed definitions.

use crate::Result;
use candle_core::Tensor;

/// The function between or after matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// None: the product itself.
    Identity,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, the approximation of GPT and GPT-2 (Hendrycks and Gimpel 2016,
    /// arXiv 1606.08415; `gelu_new` in Hugging Face's configurations).
    GeluTanh,
    /// `x/2 (1 + erf(x / sqrt(2)))`, the exact form of BERT (`gelu`).
    GeluErf,
    /// `max(x, 0)`.
    Relu,
    /// The hyperbolic tangent (BERT's pooler).
    Tanh,
    /// `x / (1 + exp(-x))`, the sigmoid-weighted linear unit (Elfwing et al. 2017, arXiv 1702.03118; Swish with beta 1): Llama's
    /// gate.
    Silu,
}

/// `sqrt(2 / pi)`.
pub(crate) const GELU_TANH: f64 = 0.797_884_560_802_865_4;
/// The cubic coefficient of [`Activation::GeluTanh`].
pub(crate) const GELU_CUBIC: f64 = 0.044_715;

impl Activation {
    /// The activation composed of candle's differentiable primitives.
    pub fn definition(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::Identity => x.clone(),
            Activation::GeluTanh => {
                let inner = x.add(&x.mul(x)?.mul(x)?.affine(GELU_CUBIC, 0.0)?)?.affine(GELU_TANH, 0.0)?;
                x.affine(0.5, 0.0)?.mul(&inner.tanh()?.affine(1.0, 1.0)?)?
            }
            Activation::GeluErf => {
                let e = x.affine(std::f64::consts::FRAC_1_SQRT_2, 0.0)?.erf()?;
                x.affine(0.5, 0.0)?.mul(&e.affine(1.0, 1.0)?)?
            }
            Activation::Relu => x.relu()?,
            Activation::Tanh => x.tanh()?,
            Activation::Silu => x.silu()?,
        })
    }
}

/// `1 / (1 + exp(-x))`, by the tangent, whose gradient is finite wherever x is.
pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok(x.affine(0.5, 0.0)?.tanh()?.affine(0.5, 0.5)?)
}
