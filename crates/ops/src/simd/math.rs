//! Elementary functions on vectors.
//!
//! Where an argument is clamped it stands second in `max` and `min`: those return their second operand when one is not a
//! number, and a NaN must come out again for a broken step to be noticed.

use super::Simd;

/// `exp(x)` to about one unit in the last place; 0 below -87.3, and the largest finite power above 88.
///
/// Cody-Waite reduction by ln 2 in two parts and a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients).
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller runs at level S.
    unsafe {
        let low = S::splat(-87.336_55);
        let clamped = S::min(S::splat(88.376_26), S::max(low, x));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(c));
        }
        let y = S::fma(S::mul(p, r), r, S::add(r, S::splat(1.0)));
        let y = S::mul(y, S::pow2(n));
        S::select_lt(x, low, S::splat(0.0), y)
    }
}

/// `tanh(x)` to about two units in the last place.
///
/// An odd rational function on [-7.9, 7.9] (the one of Eigen), constant outside, where tanh rounds to one.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller runs at level S.
    unsafe {
        let x = S::min(S::splat(7.905_311), S::max(S::splat(-7.905_311), x));
        let x2 = S::mul(x, x);
        let mut p = S::splat(-2.760_768_5e-16);
        for c in [2.000_188e-13, -8.604_672e-11, 5.122_297_1e-8, 1.485_722_4e-5, 6.372_619_3e-4, 4.893_525e-3] {
            p = S::fma(p, x2, S::splat(c));
        }
        let mut q = S::splat(1.198_258_4e-6);
        for c in [1.185_347_1e-4, 2.268_434_6e-3, 4.893_525_3e-3] {
            q = S::fma(q, x2, S::splat(c));
        }
        S::div(S::mul(x, p), q)
    }
}

/// `erf(x)` to about two units in the last place: an odd rational function on [-4, 4], constant outside.
#[inline(always)]
pub(crate) unsafe fn erf<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller runs at level S.
    unsafe {
        let x = S::min(S::splat(4.0), S::max(S::splat(-4.0), x));
        let x2 = S::mul(x, x);
        let mut p = S::splat(-2.726_142_3e-10);
        for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_4e-4, -2.954_6e-3, -1.609_603_3e-2] {
            p = S::fma(p, x2, S::splat(c));
        }
        let mut q = S::splat(-1.456_607_2e-5);
        for c in [-2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
            q = S::fma(q, x2, S::splat(c));
        }
        S::div(S::mul(x, p), q)
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::super::{Level, kernel, with_level};
    use super::*;

    #[inline(always)]
    unsafe fn map<S: Simd>(which: u8, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks(S::LANES).zip(y.chunks_mut(S::LANES)) {
            // SAFETY: chunks of at most LANES elements; the level is the dispatcher's.
            unsafe {
                let v = S::load_n(x.as_ptr(), x.len());
                let r = match which {
                    0 => exp::<S>(v),
                    1 => tanh::<S>(v),
                    _ => erf::<S>(v),
                };
                S::store_n(y.as_mut_ptr(), r, y.len());
            }
        }
    }
    kernel!(unsafe fn run(which: u8, x: &[f32], y: &mut [f32]) = map);

    /// Against f64 over the whole range, as multiples of the unit in the last place of the result.
    #[test]
    fn close_to_f64() {
        let x: Vec<f32> = (-200_000..200_000).map(|i| i as f32 * 4.3e-4).collect();
        let erf64 = |x: f64| {
            // Series for small, continued fraction for large arguments.
            if x.abs() < 3.0 {
                let (mut term, mut sum, mut n) = (x, x, 0.0);
                while term.abs() > 1e-18 {
                    n += 1.0;
                    term *= -x * x / n;
                    sum += term / (2.0 * n + 1.0);
                }
                sum * 2.0 / std::f64::consts::PI.sqrt()
            } else {
                let mut f = 0.0;
                for k in (1..60).rev() {
                    f = k as f64 / 2.0 / (x.abs() + f);
                }
                x.signum() * (1.0 - (-x * x).exp() / ((x.abs() + f) * std::f64::consts::PI.sqrt()))
            }
        };
        for level in Level::available() {
            for (which, exact, worst) in
                [(0u8, &f64::exp as &dyn Fn(f64) -> f64, 3.0), (1, &f64::tanh, 6.0), (2, &erf64, 12.0)]
            {
                let mut y = vec![0f32; x.len()];
                // SAFETY: slices of equal length.
                with_level(level, || unsafe { run(which, &x, &mut y) });
                let mut max = 0f64;
                for (&x, &y) in x.iter().zip(&y) {
                    let e = exact(x as f64);
                    if which == 0 && !(1.2e-38..3e38).contains(&e) {
                        continue;
                    }
                    let ulp = (e.abs() * 1.2e-7).max(1e-44);
                    max = max.max((y as f64 - e).abs() / ulp);
                }
                println!("{level:?} {which} {max}");
                assert!(max < worst, "{level:?} function {which}: {max} units");
            }
        }
    }
}
