//! What [`super::distance`] computes, in candle's primitives.

use super::Distance;
use crate::Result;
use candle_core::Tensor;

pub(crate) fn distance(x: &Tensor, distance: Distance, targets: &[f32], scale: f64) -> Result<Tensor> {
    let t = Tensor::from_slice(targets, x.dims(), x.device())?.to_dtype(x.dtype())?;
    let terms = match distance {
        Distance::Square => x.sub(&t)?.sqr()?,
        Distance::Binary => {
            // softplus(x) = max(x, 0) + ln(1 + exp(-|x|))
            let softplus = x.relu()?.add(&x.abs()?.neg()?.exp()?.affine(1.0, 1.0)?.log()?)?;
            softplus.sub(&x.mul(&t)?)?
        }
    };
    Ok(terms.sum_all()?.affine(scale, 0.0)?)
}
