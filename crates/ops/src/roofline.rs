//! What the machine can do at most, measured with the kernels' own threads: the ceilings beside which rates are reported.

#![allow(unsafe_code)]

use crate::gemm::{Init, Mat, gemm};
use crate::pool;
use crate::simd::{Simd, kernel};
use std::time::Instant;

/// Sixteen independent chains of fused multiply-adds that never leave the registers.
#[inline(always)]
unsafe fn fma_loop<S: Simd>(rounds: usize, out: &mut f32) {
    // SAFETY: the dispatcher enables level S.
    unsafe {
        let mut acc: [S::V; 16] = std::array::from_fn(|i| S::splat(i as f32));
        let (a, b) = (S::splat(std::hint::black_box(0.999)), S::splat(std::hint::black_box(1e-3)));
        for _ in 0..rounds {
            for x in &mut acc {
                *x = S::fma(*x, a, b);
            }
        }
        let mut sum = S::splat(0.0);
        for x in acc {
            sum = S::add(sum, x);
        }
        *out = S::reduce_add(sum);
    }
}
kernel!(unsafe fn fma_kernel(rounds: usize, out: &mut f32) = fma_loop);

#[inline(always)]
unsafe fn lanes_of<S: Simd>(out: &mut usize) {
    *out = S::LANES;
}
kernel!(unsafe fn lanes_kernel(out: &mut usize) = lanes_of);

/// Floating-point operations a second of fused multiply-adds in registers, on all of the kernels' threads: the best of several
/// runs that take about `seconds` together.
pub fn fma_peak(seconds: f64) -> f64 {
    let mut lanes = 0;
    // SAFETY: writes one number.
    unsafe { lanes_kernel(&mut lanes) };
    let (threads, rounds) = (pool::threads(), 2_000_000);
    let flops = (threads * rounds * 16 * lanes * 2) as f64;
    best(seconds, || {
        pool::run(threads, |_| {
            let mut x = 0.0;
            // SAFETY: writes one number.
            unsafe { fma_kernel(rounds, &mut x) };
            std::hint::black_box(x);
        });
        flops
    })
}

#[inline(always)]
unsafe fn sum_loop<S: Simd>(x: &[f32], out: &mut f32) {
    // SAFETY: offsets stay below the length.
    unsafe {
        let mut acc = [S::splat(0.0); 8];
        for chunk in x.chunks_exact(8 * S::LANES) {
            S::prefetch(chunk.as_ptr().wrapping_add(1024));
            for (i, a) in acc.iter_mut().enumerate() {
                *a = S::add(*a, S::load(chunk.as_ptr().add(i * S::LANES)));
            }
        }
        let mut sum = S::splat(0.0);
        for a in acc {
            sum = S::add(sum, a);
        }
        *out = S::reduce_add(sum);
    }
}
kernel!(unsafe fn sum_kernel(x: &[f32], out: &mut f32) = sum_loop);

/// Bytes a second of reading `data` once, each of the kernels' threads its own part from end to end: the best of several runs
/// that take about `seconds` together. To measure memory, `data` is to be at least eight times the last-level cache.
pub fn read_bandwidth(data: &[f32], seconds: f64) -> f64 {
    let part = data.len().div_ceil(pool::threads()).max(1);
    best(seconds, || {
        pool::run_chunks(data.len(), part, |r| {
            let mut x = 0.0;
            // SAFETY: a slice and one number.
            unsafe { sum_kernel(&data[r], &mut x) };
            std::hint::black_box(x);
        });
        (data.len() * 4) as f64
    })
}

/// The highest rate of `f`, which returns how much it did.
fn best(seconds: f64, f: impl Fn() -> f64) -> f64 {
    let start = Instant::now();
    let mut rate = 0f64;
    loop {
        let t = Instant::now();
        let amount = f();
        rate = rate.max(amount / t.elapsed().as_secs_f64());
        if start.elapsed().as_secs_f64() >= seconds {
            return rate;
        }
    }
}

/// `c = a b`, all row-major, for `a` `[m, k]` and `b` `[k, n]`, each stored transposed if said so: the product that the
/// operations use, for measurements.
///
/// # Panics
/// When a slice's length does not fit.
#[allow(clippy::too_many_arguments)]
pub fn product([m, n, k]: [usize; 3], a: &[f32], a_transposed: bool, b: &[f32], b_transposed: bool, c: &mut [f32]) {
    assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n);
    let view = |x: &[f32], rows, cols, t| if t { Mat::rows(x.as_ptr(), rows).t() } else { Mat::rows(x.as_ptr(), cols) };
    // SAFETY: sizes checked above.
    unsafe { gemm(m, n, k, view(a, m, k, a_transposed), view(b, k, n, b_transposed), c.as_mut_ptr(), n, Init::Zero) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_positive_and_products_are_products() {
        assert!(fma_peak(0.0) > 0.0);
        assert!(read_bandwidth(&vec![1.0; 100_000], 0.0) > 0.0);
        let mut c = [0.0; 4];
        product([2, 2, 2], &[1.0, 2.0, 3.0, 4.0], false, &[5.0, 6.0, 7.0, 8.0], false, &mut c);
        assert_eq!(c, [19.0, 22.0, 43.0, 50.0]);
        product([2, 2, 2], &[1.0, 3.0, 2.0, 4.0], true, &[5.0, 7.0, 6.0, 8.0], true, &mut c);
        assert_eq!(c, [19.0, 22.0, 43.0, 50.0]);
    }
}
