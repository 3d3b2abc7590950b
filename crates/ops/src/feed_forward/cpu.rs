//! Kernels of the dense feed-forward network: the two linear maps' products, with the activation and its slope applied to each
//! block of rows while it is in cache.

#![allow(unsafe_code)]

use crate::Activation;
use crate::array::SendPtr;
use crate::gemm::{Epilogue, Init, Mat, gemm_then};
use crate::linear::Layout;
use crate::linear::cpu::{self as linear, Sizes, lanes, load, store, value_and_slope, weight};
use crate::simd::Simd;

/// Rows and widths of the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub n: usize,
    pub d_model: usize,
    pub d_ff: usize,
    pub d_out: usize,
}

impl Shape {
    /// The first map.
    pub fn up(self) -> Sizes {
        Sizes { n: self.n, d_in: self.d_model, d_out: self.d_ff }
    }

    /// The second map.
    pub fn down(self) -> Sizes {
        Sizes { n: self.n, d_in: self.d_ff, d_out: self.d_out }
    }
}

/// Epilogue of `dh = dy W2^T`: C becomes `dh * f'(pre)`, and `f(pre)` is computed again on the side.
#[derive(Clone, Copy)]
struct Slope {
    f: Activation,
    pre: *const f32,
    hidden: SendPtr,
    d: usize,
}

// SAFETY: `pre` is only read, and the caller of the product keeps it alive.
unsafe impl Send for Slope {}
// SAFETY: as above.
unsafe impl Sync for Slope {}

impl Epilogue for Slope {
    #[inline(always)]
    unsafe fn row<S: Simd>(self, i: usize, j: usize, n: usize, c: *mut f32) {
        // SAFETY: `pre` and `hidden` have the shape of C, and the segment belongs to the caller alone.
        unsafe {
            let (pre, hidden) = (self.pre.add(i * self.d + j), self.hidden.0.add(i * self.d + j));
            lanes!(S, n, |at, len| {
                let (value, slope) = value_and_slope::<S>(self.f, load::<S>(pre.add(at), len));
                store::<S>(hidden.add(at), value, len);
                store::<S>(c.add(at), S::mul(load::<S>(c.add(at), len), slope), len);
            });
        }
    }
}

/// `du = (dy W2^T) * f'(pre)` and `hidden = f(pre)`, both `[n, d_ff]`: from these come all gradients of the network.
#[allow(clippy::too_many_arguments)]
pub(crate) fn hidden_gradient(
    s: Shape,
    dy: &[f32],
    down: &[f32],
    layout: Layout,
    f: Activation,
    pre: &[f32],
    du: &mut [f32],
    hidden: &mut [f32],
) {
    let Sizes { n, d_in: d, d_out } = s.down();
    assert!(dy.len() == n * d_out && pre.len() == n * d && du.len() == n * d && hidden.len() == n * d);
    let (a, b) = (Mat::rows(dy.as_ptr(), d_out), weight(down, layout, d, d_out).t());
    let then = Slope { f, pre: pre.as_ptr(), hidden: SendPtr(hidden.as_mut_ptr()), d };
    // SAFETY: sizes checked above; the outputs are exclusive borrows.
    unsafe { gemm_then(n, d, d_out, a, b, du.as_mut_ptr(), d, Init::Zero, then) }
}

/// `y = f(x W1 + b1) W2 + b2`. `pre` receives the pre-activation if given; `hidden` is space for `[n, d_ff]`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(
    s: Shape,
    x: &[f32],
    (up, up_bias): (&[f32], &[f32]),
    (down, down_bias): (&[f32], &[f32]),
    layout: Layout,
    f: Activation,
    pre: Option<&mut [f32]>,
    hidden: &mut [f32],
    y: &mut [f32],
) {
    linear::forward(s.up(), x, up, layout, Some(up_bias), f, pre, hidden);
    linear::forward(s.down(), hidden, down, layout, Some(down_bias), Activation::Identity, None, y);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, data, every_level, thread_invariant};

    #[test]
    fn hidden_gradient_is_that_of_the_two_maps() {
        let s = Shape { n: 30, d_model: 9, d_ff: 45, d_out: 13 };
        let (x, up, down) = (data(s.n * 9, 1), data(9 * 45, 2), data(45 * 13, 3));
        let (up_bias, down_bias, dy) = (data(45, 4), data(13, 5), data(s.n * 13, 6));
        for layout in [Layout::InOut, Layout::OutIn] {
            for f in [Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
                every_level(|| {
                    thread_invariant(|| {
                        let space = || vec![0f32; s.n * 45];
                        let (mut pre, mut hidden, mut y) = (space(), space(), vec![0.0; s.n * 13]);
                        let (ups, downs) = ((&up[..], &up_bias[..]), (&down[..], &down_bias[..]));
                        forward(s, &x, ups, downs, layout, f, Some(&mut pre), &mut hidden, &mut y);
                        let (mut again, mut du, mut dh, mut expected) = (space(), space(), space(), space());
                        hidden_gradient(s, &dy, &down, layout, f, &pre, &mut du, &mut again);
                        assert_eq!(hidden, again, "recomputing changed bits");
                        linear::input_gradient(s.down(), &dy, &down, layout, &mut dh, false);
                        linear::activation_gradient(f, &pre, &dh, &mut expected);
                        du.iter().zip(&expected).for_each(|(a, b)| close(*a, *b as f64, 1e-7));
                        [y, du, hidden]
                    });
                });
            }
        }
    }
}
