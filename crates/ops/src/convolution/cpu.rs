//! Kernels of the convolution: a product over all windows of some rows, and its maxima; backward only the windows that won count.

#![allow(unsafe_code)]

use crate::array::{SendPtr, uninit};
use crate::gemm::{Init, Mat, gemm};
use crate::profile::{Operation, running};
use crate::{Precision, pool};

/// Rows, vectors in a row, their width, vectors of a pattern, and patterns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub n: usize,
    pub length: usize,
    pub d: usize,
    pub width: usize,
    pub f: usize,
}

impl Shape {
    fn windows(self) -> usize {
        self.length + 1 - self.width
    }

    fn flops(self) -> f64 {
        2.0 * (self.n * self.windows() * self.width * self.d * self.f) as f64
    }
}

/// Bytes of answers that are held at a time.
const BLOCK: usize = 1 << 20;

/// Results and the windows that they come from.
pub(crate) fn forward(s: Shape, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32], best: &mut [u32]) {
    let Shape { n, length, d, width, f } = s;
    assert!(x.len() == n * length * d && w.len() == f * width * d && b.len() == f);
    assert!(y.len() == n * f && best.len() == n * f);
    let _running = running(Operation::Convolution, s.flops());
    // Windows overlap: their rows begin `d` apart, also over the border of two rows, whose answers are passed over.
    let most = (BLOCK / (4 * f * length).max(1)).max(1);
    let mut answers = uninit(most.min(n) * length * f);
    let (to, winners) = (SendPtr(y.as_mut_ptr()), SendPtr(best.as_mut_ptr().cast()));
    for first in (0..n).step_by(most) {
        let count = most.min(n - first);
        let windows = count * length + 1 - width;
        // SAFETY: the last window ends with the last vector of the block; `answers` hold `count * length` rows.
        unsafe {
            let a = Mat { ptr: x.as_ptr().add(first * length * d), row: d, col: 1 };
            let patterns = Mat::rows(w.as_ptr(), width * d).t();
            gemm(windows, f, width * d, a, patterns, answers.as_mut_ptr(), f, Init::Zero, Precision::F32);
        }
        let answers = &answers;
        pool::run_chunks(count, 4, |rows| {
            for r in rows {
                // SAFETY: one row of results each; a `u32` takes the place of an `f32`.
                let (y, best) = unsafe {
                    let at = (first + r) * f;
                    (to.slice(at, f), std::slice::from_raw_parts_mut(winners.ptr().cast::<u32>().add(at), f))
                };
                y.copy_from_slice(&answers[r * length * f..][..f]);
                best.fill(0);
                for p in 1..s.windows() {
                    let row = &answers[(r * length + p) * f..][..f];
                    for ((y, best), a) in y.iter_mut().zip(best.iter_mut()).zip(row) {
                        // A NaN wins, so that a broken step is noticed.
                        let wins = (*a > *y || a.is_nan()) && !y.is_nan();
                        *y = if wins { *a } else { *y };
                        *best = if wins { p as u32 } else { *best };
                    }
                }
                y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
            }
        });
    }
}

/// `dw (+)=` of each pattern the windows that won, times the gradients of their answers.
pub(crate) fn weight_gradient(s: Shape, x: &[f32], dy: &[f32], best: &[u32], dw: &mut [f32], accumulate: bool) {
    let Shape { n, length, d, width, f } = s;
    let long = width * d;
    assert!(dy.len() == n * f && dw.len() == f * long && best.len() == n * f);
    let _running = running(Operation::Convolution, 0.0);
    let to = SendPtr(dw.as_mut_ptr());
    pool::run_chunks(f, 8, |patterns| {
        for k in patterns {
            // SAFETY: one pattern each.
            let dw = unsafe { to.slice(k * long, long) };
            if !accumulate {
                dw.fill(0.0);
            }
            for i in 0..n {
                let (g, p) = (dy[i * f + k], best[i * f + k] as usize);
                if g != 0.0 {
                    let window = &x[(i * length + p) * d..][..long];
                    dw.iter_mut().zip(window).for_each(|(w, x)| *w += g * x);
                }
            }
        }
    });
}

/// `dx (+)=` for each window that won its pattern, times the gradient of the answer.
pub(crate) fn input_gradient(s: Shape, w: &[f32], dy: &[f32], best: &[u32], dx: &mut [f32], accumulate: bool) {
    let Shape { n, length, d, width, f } = s;
    let long = width * d;
    assert!(dy.len() == n * f && dx.len() == n * length * d && best.len() == n * f);
    let _running = running(Operation::Convolution, 0.0);
    let to = SendPtr(dx.as_mut_ptr());
    pool::run_chunks(n, 4, |rows| {
        for i in rows {
            // SAFETY: one row each.
            let dx = unsafe { to.slice(i * length * d, length * d) };
            if !accumulate {
                dx.fill(0.0);
            }
            for k in 0..f {
                let (g, p) = (dy[i * f + k], best[i * f + k] as usize);
                if g != 0.0 {
                    dx[p * d..][..long].iter_mut().zip(&w[k * long..]).for_each(|(x, w)| *x += g * w);
                }
            }
        }
    });
}
