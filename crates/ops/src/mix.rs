//! Functions of every element, and ways of mixing matrices of one shape.

use crate::activation::sigmoid;
use crate::linear::matrix;
use crate::{Activation, Error, Result, Tape, Tensor, Value};

/// An activation by itself, where no product precedes it.
///
/// # Errors
/// When memory is short.
pub fn activate(tape: &Tape, x: &Value, activation: Activation) -> Result<Value> {
    let [y] = tape.composed(&[x], |t| Ok([activation.definition(&t[0])?]))?;
    Ok(y)
}

/// A highway layer (Srivastava et al. 2015, arXiv 1505.00387): `g x + (1 - g) relu(h)`, where `h` and, through a sigmoid, the gate
/// `g` are what an affine map made of `x`.
///
/// # Shapes
/// `x` `[n, d]`, `mapped` `[n, 2 d]`: h and the gate side by side; the result `[n, d]`.
///
/// # Errors
/// When shapes do not fit.
pub fn highway(tape: &Tape, x: &Value, mapped: &Value) -> Result<Value> {
    const OP: &str = "highway";
    let (n, d) = matrix(OP, "x", x)?;
    if mapped.dims() != [n, 2 * d] {
        return Err(Error::shape(OP, "mapped", mapped.dims(), format!("[{n}, {}]", 2 * d)));
    }
    let [y] = tape.composed(&[x, mapped], |t| {
        let h = t[1].narrow(1, 0, d)?.relu()?;
        let gate = sigmoid(&t[1].narrow(1, d, d)?)?;
        // g x + h - g h
        Ok([gate.mul(&t[0].sub(&h)?)?.add(&h)?])
    })?;
    Ok(y)
}

/// A scalar mix (Peters et al. 2018, arXiv 1802.05365, equation 1): `gamma` times the sum of the layers, weighted by the softmax
/// of `weights`.
///
/// # Shapes
/// Each layer `[n, d]`, `weights` one number a layer, `gamma` `[1]`; the result `[n, d]`.
///
/// # Errors
/// When shapes do not fit.
pub fn scalar_mix(tape: &Tape, layers: &[&Value], weights: &Value, gamma: &Value) -> Result<Value> {
    const OP: &str = "scalar mix";
    let Some(first) = layers.first() else { return Err(Error::value(OP, "layers", 0, "at least one")) };
    let (n, d) = matrix(OP, "layer", first)?;
    if let Some(l) = layers.iter().find(|l| l.dims() != [n, d]) {
        return Err(Error::shape(OP, "layer", l.dims(), format!("[{n}, {d}]")));
    }
    if weights.dims() != [layers.len()] || gamma.dims() != [1] {
        return Err(Error::shape(OP, "weights", weights.dims(), format!("[{}], with gamma [1]", layers.len())));
    }
    let mut inputs = layers.to_vec();
    inputs.extend([weights, gamma]);
    let count = layers.len();
    let [y] = tape.composed(&inputs, |t| {
        let w = t[count].broadcast_sub(&t[count].max_keepdim(0)?)?.exp()?;
        let w = w.broadcast_div(&w.sum_keepdim(0)?)?.broadcast_mul(&t[count + 1])?;
        let mut sum: Option<Tensor> = None;
        for (i, layer) in t[..count].iter().enumerate() {
            let term = layer.broadcast_mul(&w.narrow(0, i, 1)?.reshape((1, 1))?)?;
            sum = Some(match sum {
                Some(s) => s.add(&term)?,
                None => term,
            });
        }
        sum.map(|s| [s]).ok_or_else(|| Error::value(OP, "layers", 0, "at least one"))
    })?;
    Ok(y)
}
