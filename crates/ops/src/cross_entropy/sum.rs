//! The norm of a row of logits.

#![allow(unsafe_code)]

use crate::simd::{Simd, kernel, math};

/// Elements that are summed in f32 before they join the sum in f64.
const PART: usize = 1024;

#[inline(always)]
unsafe fn of_row<S: Simd>(row: &[f32], out: &mut f64) {
    // SAFETY: whole vectors lie inside their part; of the last one only the lanes that it has are read.
    unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        let whole = row.len() / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            most = S::max(most, S::load(row.as_ptr().add(at)));
        }
        let max = row[whole..].iter().fold(S::reduce_max(most), |m, &x| if x > m { x } else { m });
        let m = S::splat(max);
        let mut sum = 0f64;
        for part in row.chunks(PART) {
            let p = part.as_ptr();
            let mut sums = S::splat(0.0);
            let whole = part.len() / S::LANES * S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                sums = S::add(sums, math::exp::<S>(S::sub(S::load(p.add(at)), m)));
            }
            let rest = part.len() - whole;
            if rest > 0 {
                let mut e = [0f32; 16];
                S::store(e.as_mut_ptr(), math::exp::<S>(S::sub(S::load_n(p.add(whole), rest), m)));
                sum += e[..rest].iter().map(|&x| f64::from(x)).sum::<f64>();
            }
            sum += f64::from(S::reduce_add(sums));
        }
        *out = f64::from(max) + sum.ln();
    }
}
kernel!(unsafe fn row_kernel(row: &[f32], out: &mut f64) = of_row);

/// `ln(sum(exp(x)))` of finite numbers: what is subtracted from a logit for its log-probability.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let mut out = f64::NEG_INFINITY;
    if !row.is_empty() {
        // SAFETY: the kernel reads the slice alone.
        unsafe { row_kernel(row, &mut out) };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Level, with_level};

    #[test]
    fn as_in_double_precision() {
        for n in [1usize, 3, 15, 16, 17, 100, 1023, 1024, 1025, 3001] {
            for scale in [0.0f32, 1.0, 30.0] {
                let row: Vec<f32> = (0..n).map(|i| scale * ((i * 37 % 101) as f32 / 50.0 - 1.0)).collect();
                let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(top)).exp()).sum();
                let expected = f64::from(top) + sum.ln();
                for level in Level::available() {
                    let found = with_level(level, || log_sum_exp(&row));
                    assert!((found - expected).abs() < 1e-6, "{n} by {scale}, {level:?}: {found}, {expected}");
                }
            }
        }
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[2.5]), 2.5);
    }
}
