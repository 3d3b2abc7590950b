//! Losses of given numbers against targets: for regression and for labels that do not exclude each other.

use crate::array::{tensor, uninit, with_slice};
use crate::linear::matrix;
use crate::{Error, Result, Tape, Value};

pub(crate) mod definition;

/// How far a number `x` is from its target `t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Distance {
    /// `(x - t)^2`.
    Square,
    /// The cross-entropy of a target in 0..=1 under the probability `sigmoid(x)`: `softplus(x) - x t`.
    Binary,
}

impl Distance {
    /// Loss and slope.
    fn at(self, x: f64, t: f64) -> (f64, f64) {
        match self {
            Distance::Square => ((x - t) * (x - t), 2.0 * (x - t)),
            Distance::Binary => {
                // Of the negative absolute value, so that the exponential cannot overflow.
                let e = (-x.abs()).exp();
                let sigmoid = if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
                (x.max(0.0) + e.ln_1p() - x * t, sigmoid - t)
            }
        }
    }
}

/// `scale * sum of distance(x, target)`, a scalar.
///
/// # Shapes
/// `x` `[n, d]`; `targets` the `n * d` numbers row by row.
///
/// # Errors
/// When the number of targets is another, or a target is not a finite number (of `Binary`: not within 0..=1).
pub fn distance(tape: &Tape, x: &Value, distance: Distance, targets: &[f32], scale: f64) -> Result<Value> {
    const OP: &str = "distance";
    let (n, d) = matrix(OP, "x", x)?;
    if targets.len() != n * d {
        return Err(Error::value(OP, "number of targets", targets.len(), (n * d).to_string()));
    }
    let (sound, expected): (fn(f32) -> bool, _) = match distance {
        Distance::Square => (f32::is_finite, "a finite number"),
        Distance::Binary => (|t| (0.0..=1.0).contains(&t), "from 0 to 1"),
    };
    if let Some(t) = targets.iter().find(|t| !sound(**t)) {
        return Err(Error::value(OP, "target", t, expected));
    }
    if !tape.kernel(x.tensor()) {
        let [y] = tape.composed(&[x], |t| Ok([definition::distance(&t[0], distance, targets, scale)?]))?;
        return Ok(y);
    }
    // A few numbers a sequence: one thread does them in f64.
    let mut slopes = uninit(n * d);
    let mut sum = 0.0;
    with_slice(x.tensor(), |x| {
        for ((slope, x), t) in slopes.iter_mut().zip(x).zip(targets) {
            let (loss, s) = distance.at(f64::from(*x), f64::from(*t));
            sum += loss;
            *slope = (scale * s) as f32;
        }
    })?;
    let to = x.target();
    Ok(tape.push(&[x], tensor(vec![(scale * sum) as f32], &[])?, move |g, grads| {
        let upstream = crate::scalar(&g)? as f32;
        slopes.iter_mut().for_each(|s| *s *= upstream);
        grads.add(&to, tensor(slopes, &[n, d])?)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_stay_finite_and_exact() {
        let tape = Tape::recording();
        let x = tape.leaf(tensor(vec![200.0, -200.0, 0.0, 1.0], &[2, 2]).unwrap());
        let loss = distance(&tape, &x, Distance::Binary, &[0.0, 1.0, 0.25, 1.0], 0.5).unwrap();
        let expected = 0.5 * (200.0 + 200.0 + 2f64.ln() + (-1f64).exp().ln_1p());
        assert!((crate::scalar(loss.tensor()).unwrap() - expected).abs() < 1e-4);
        let g = crate::to_vec(&tape.backward(&loss).unwrap().of(&x).unwrap()).unwrap();
        assert_eq!(g[..3], [0.5, -0.5, 0.125]);
    }

    #[test]
    fn impossible_targets_are_refused() {
        let tape = Tape::inference();
        let x = Value::constant(tensor(vec![0.0; 4], &[2, 2]).unwrap());
        let error = |kind, targets: &[f32]| distance(&tape, &x, kind, targets, 1.0).unwrap_err().to_string();
        assert_eq!(error(Distance::Square, &[0.0; 3]), "distance: number of targets is 3, expected 4");
        assert!(
            error(Distance::Square, &[0.0, f32::NAN, 0.0, 0.0]).contains("target is NaN, expected a finite number")
        );
        assert!(error(Distance::Binary, &[0.0, 1.5, 0.0, 0.0]).contains("target is 1.5, expected from 0 to 1"));
    }
}
