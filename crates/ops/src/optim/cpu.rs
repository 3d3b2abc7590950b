//! Kernels of the optimiser: one pass over weights, gradients and moments, and a norm whose bits do not depend on the threads.

#![allow(unsafe_code)]

use super::AdamW;
use crate::array::SendPtr;
use crate::linear::cpu::{lanes, load, store};
use crate::pool;
use crate::simd::{Simd, kernel};

/// Elements of one task.
const CHUNK: usize = 1 << 15;

#[inline(always)]
unsafe fn adamw_chunk<S: Simd>(h: AdamW, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let (c1, c2) = (1.0 - h.beta1.powf(h.step as f64), 1.0 - h.beta2.powf(h.step as f64));
    let of = |x: f64| x as f32;
    // SAFETY: four slices of one length.
    unsafe {
        let (b1, b2) = (S::splat(of(h.beta1)), S::splat(of(h.beta2)));
        let (r1, r2) = (S::splat(of(1.0 - h.beta1)), S::splat(of(1.0 - h.beta2)));
        let (scale, keep) = (S::splat(of(h.grad_scale)), S::splat(of(1.0 - h.lr * h.weight_decay)));
        let (root, eps, rate) = (S::splat(of(1.0 / c2.sqrt())), S::splat(of(h.eps)), S::splat(of(-h.lr / c1)));
        let (wp, gp, mp, vp) = (w.as_mut_ptr(), g.as_ptr(), m.as_mut_ptr(), v.as_mut_ptr());
        lanes!(S, w.len(), |at, len| {
            let g = S::mul(load::<S>(gp.add(at), len), scale);
            let m = S::fma(b1, load::<S>(mp.add(at), len), S::mul(r1, g));
            let v = S::fma(b2, load::<S>(vp.add(at), len), S::mul(S::mul(r2, g), g));
            let step = S::div(m, S::fma(S::sqrt(v), root, eps));
            let w = S::mul(load::<S>(wp.add(at), len), keep);
            store::<S>(mp.add(at), m, len);
            store::<S>(vp.add(at), v, len);
            store::<S>(wp.add(at), S::fma(rate, step, w), len);
        });
    }
}
kernel!(unsafe fn adamw_kernel(h: AdamW, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) = adamw_chunk);

/// One update of the weights `w` and moments `m` and `v` from the gradient `g`.
pub(crate) fn adamw(h: &AdamW, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    assert!(w.len() == g.len() && w.len() == m.len() && w.len() == v.len());
    let (wp, mp, vp) = (SendPtr(w.as_mut_ptr()), SendPtr(m.as_mut_ptr()), SendPtr(v.as_mut_ptr()));
    pool::run_chunks(g.len(), CHUNK, |r| {
        let (wp, mp, vp) = (wp, mp, vp);
        let (at, len) = (r.start, r.len());
        // SAFETY: chunks are disjoint parts of slices of one length.
        unsafe { adamw_kernel(*h, wp.slice(at, len), &g[r], mp.slice(at, len), vp.slice(at, len)) }
    });
}

/// Eight chains in f64: enough to hide the additions' latency, and the compiler makes vectors of them.
#[inline(always)]
unsafe fn squares_chunk<S: Simd>(x: &[f32], out: &mut f64) {
    let _ = S::LANES;
    let mut sums = [0f64; 16];
    let mut chunks = x.chunks_exact(16);
    for c in &mut chunks {
        for (s, x) in sums.iter_mut().zip(c) {
            *s += *x as f64 * *x as f64;
        }
    }
    for (s, x) in sums.iter_mut().zip(chunks.remainder()) {
        *s += *x as f64 * *x as f64;
    }
    *out = sums.iter().sum();
}
kernel!(unsafe fn squares_kernel(x: &[f32], out: &mut f64) = squares_chunk);

/// The sum of the squares, in f64 over fixed blocks in order; infinite or NaN when an element is.
pub(crate) fn sum_of_squares(x: &[f32]) -> f64 {
    struct Out(*mut f64);
    // SAFETY: each task writes one element of its own.
    unsafe impl Sync for Out {}
    impl Out {
        /// # Safety
        /// In bounds.
        unsafe fn at(&self, i: usize) -> *mut f64 {
            // SAFETY: the caller's promise.
            unsafe { self.0.add(i) }
        }
    }
    let mut sums = vec![0f64; x.len().div_ceil(CHUNK)];
    let out = Out(sums.as_mut_ptr());
    pool::run_chunks(x.len(), CHUNK, |r| {
        // SAFETY: one element of `sums` each.
        unsafe { squares_kernel(&x[r.clone()], &mut *out.at(r.start / CHUNK)) }
    });
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, data, every_level, thread_invariant};

    #[test]
    fn three_updates_against_f64() {
        let n = 70_001;
        let (w0, g) = (data(n, 1), data(n, 2));
        every_level(|| {
            let [w] = thread_invariant(|| {
                let (mut w, mut m, mut v) = (w0.clone(), vec![0.0; n], vec![0.0; n]);
                for step in 1..=3 {
                    let h = AdamW {
                        lr: 0.01,
                        beta1: 0.9,
                        beta2: 0.95,
                        eps: 1e-8,
                        weight_decay: 0.1,
                        step,
                        grad_scale: 0.5,
                    };
                    adamw(&h, &mut w, &g, &mut m, &mut v);
                }
                [w]
            });
            for i in [0, 1, n / 2, n - 1] {
                let (mut x, g, mut m, mut v) = (w0[i] as f64, g[i] as f64 * 0.5, 0f64, 0f64);
                for t in 1..=3 {
                    m = 0.9 * m + 0.1 * g;
                    v = 0.95 * v + 0.05 * g * g;
                    let (c1, c2) = (1.0 - 0.9f64.powi(t), 1.0 - 0.95f64.powi(t));
                    x = x * (1.0 - 0.001) - 0.01 * (m / c1) / ((v / c2).sqrt() + 1e-8);
                }
                close(w[i], x, 1e-6);
            }
        });
    }

    #[test]
    fn the_norm_counts_every_element_and_shows_what_is_not_finite() {
        let mut x = data(100_003, 5);
        let exact: f64 = x.iter().map(|x| (*x as f64).powi(2)).sum();
        every_level(|| {
            let (many, one) = (sum_of_squares(&x), pool::with_threads(1, || sum_of_squares(&x)));
            assert_eq!(many.to_bits(), one.to_bits());
            assert!((many - exact).abs() < 1e-9 * exact);
        });
        x[100_002] = f32::INFINITY;
        assert_eq!(sum_of_squares(&x), f64::INFINITY);
        x[7] = f32::NAN;
        assert!(sum_of_squares(&x).is_nan());
        assert_eq!(sum_of_squares(&[]), 0.0);
    }
}
