//! Kernels of the affine map: products with bias and activation, and the sums over rows that biases' gradients are.

#![allow(unsafe_code)]

use super::Layout;
use crate::activation::{GELU_CUBIC, GELU_TANH};
use crate::array::SendPtr;
use crate::gemm::packed::{self, Prepared};
use crate::gemm::{Epilogue, Init, Mat, gemm, gemm_then};
use crate::profile::{Operation, running};
use crate::simd::{Simd, kernel, math};
use crate::{Activation, Precision, pool};

/// `f(x)` on a vector.
///
/// # Safety
/// Level `S` is enabled.
#[inline(always)]
pub(crate) unsafe fn value<S: Simd>(f: Activation, x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        match f {
            Activation::Identity => x,
            Activation::GeluTanh => {
                let inner = S::mul(S::splat(GELU_TANH as f32), S::mul(x, gelu_cubic::<S>(S::mul(x, x), 1.0)));
                S::mul(S::mul(S::splat(0.5), x), S::add(S::splat(1.0), math::tanh::<S>(inner)))
            }
            Activation::GeluErf => {
                let e = math::erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
                S::mul(S::mul(S::splat(0.5), x), S::add(S::splat(1.0), e))
            }
            // The argument second: a NaN comes out again.
            Activation::Relu => S::max(S::splat(0.0), x),
            Activation::Tanh => math::tanh::<S>(x),
            Activation::Silu => S::div(x, S::add(S::splat(1.0), math::exp::<S>(S::sub(S::splat(0.0), x)))),
        }
    }
}

/// `1 + factor * 0.044715 * x2`.
#[inline(always)]
unsafe fn gelu_cubic<S: Simd>(x2: S::V, factor: f32) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { S::fma(x2, S::splat(factor * GELU_CUBIC as f32), S::splat(1.0)) }
}

/// `(f(x), f'(x))` on a vector; the value has the bits of [`value`].
///
/// # Safety
/// Level `S` is enabled.
#[inline(always)]
pub(crate) unsafe fn value_and_slope<S: Simd>(f: Activation, x: S::V) -> (S::V, S::V) {
    // SAFETY: the caller's promise.
    unsafe {
        let (one, half) = (S::splat(1.0), S::splat(0.5));
        match f {
            Activation::Identity => (x, one),
            Activation::GeluTanh => {
                let x2 = S::mul(x, x);
                let t = math::tanh::<S>(S::mul(S::splat(GELU_TANH as f32), S::mul(x, gelu_cubic::<S>(x2, 1.0))));
                let rise = S::mul(S::splat(0.5 * GELU_TANH as f32), gelu_cubic::<S>(x2, 3.0));
                let bell = S::mul(x, S::sub(one, S::mul(t, t)));
                let up = S::add(one, t);
                (S::mul(S::mul(half, x), up), S::fma(bell, rise, S::mul(half, up)))
            }
            Activation::GeluErf => {
                let e = math::erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
                // 1 / sqrt(2 pi)
                let density = S::mul(S::splat(0.398_942_3), math::exp::<S>(S::mul(S::mul(x, x), S::splat(-0.5))));
                let up = S::add(one, e);
                (S::mul(S::mul(half, x), up), S::fma(x, density, S::mul(half, up)))
            }
            Activation::Relu => (S::max(S::splat(0.0), x), S::select_lt(S::splat(0.0), x, one, S::splat(0.0))),
            Activation::Tanh => {
                let t = math::tanh::<S>(x);
                (t, S::sub(one, S::mul(t, t)))
            }
            Activation::Silu => {
                let e = math::exp::<S>(S::sub(S::splat(0.0), x));
                let below = S::add(one, e);
                let (y, sigmoid) = (S::div(x, below), S::div(one, below));
                // s + y (1 - s), where 1 - s = e s has no cancellation.
                (y, S::fma(y, S::mul(e, sigmoid), sigmoid))
            }
        }
    }
}

/// Applies `$body` to each vector of `$n` elements: `$at` is the offset and `$len` the number of lanes in use.
macro_rules! lanes {
    ($S:ty, $n:expr, |$at:ident, $len:ident| $body:block) => {{
        let (n, lanes) = ($n, <$S as $crate::simd::Simd>::LANES);
        let mut $at = 0;
        while $at + lanes <= n {
            let $len = lanes;
            $body
            $at += lanes;
        }
        if $at < n {
            let $len = n - $at;
            $body
        }
    }};
}
pub(crate) use lanes;

/// Loads a whole vector without a mask where it can.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's promise: n floats, level S.
    unsafe { if n == S::LANES { S::load(p) } else { S::load_n(p, n) } }
}

/// Stores a whole vector without a mask where it can.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(p: *mut f32, v: S::V, n: usize) {
    // SAFETY: the caller's promise: n floats, level S.
    unsafe { if n == S::LANES { S::store(p, v) } else { S::store_n(p, v, n) } }
}

/// Epilogue of a product: `f(c)` goes to the same place of `out`, which may be C itself.
#[derive(Clone, Copy)]
struct Activate {
    f: Activation,
    out: SendPtr,
    ldo: usize,
}

impl Epilogue for Activate {
    #[inline(always)]
    unsafe fn row<S: Simd>(self, i: usize, j: usize, n: usize, c: *mut f32) {
        // SAFETY: `out` has the shape of C, and the segment belongs to the caller alone.
        unsafe {
            let out = self.out.0.add(i * self.ldo + j);
            lanes!(S, n, |at, len| { store::<S>(out.add(at), value::<S>(self.f, load::<S>(c.add(at), len)), len) });
        }
    }
}

/// The weight as the matrix `[d_in, d_out]`.
fn weight(w: &[f32], layout: Layout, d_in: usize, d_out: usize) -> Mat {
    assert_eq!(w.len(), d_in * d_out);
    match layout {
        Layout::InOut => Mat::rows(w.as_ptr(), d_out),
        Layout::OutIn => Mat::rows(w.as_ptr(), d_in).t(),
    }
}

/// Sizes of a map (rows, inputs, outputs), and the precision of its products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub n: usize,
    pub d_in: usize,
    pub d_out: usize,
    pub precision: Precision,
}

impl Sizes {
    /// Floating-point operations of one product: `2 n d_in d_out`.
    pub fn flops(self) -> f64 {
        2.0 * self.n as f64 * self.d_in as f64 * self.d_out as f64
    }
}

/// `y = f(x W + b)`; the pre-activation goes to `pre` if given.
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(
    s: Sizes,
    x: &[f32],
    w: &[f32],
    layout: Layout,
    bias: Option<&[f32]>,
    f: Activation,
    pre: Option<&mut [f32]>,
    y: &mut [f32],
) {
    let size = s.n * s.d_out;
    assert!(y.len() == size && pre.as_ref().is_none_or(|p| p.len() == size));
    let out = SendPtr(y.as_mut_ptr());
    // SAFETY: sizes checked above; `y` and `pre` are exclusive borrows.
    unsafe {
        if f == Activation::Identity && pre.is_none() {
            forward_then(s, x, w, layout, bias, out, ());
        } else {
            let c = pre.map_or(out, |p| SendPtr(p.as_mut_ptr()));
            forward_then(s, x, w, layout, bias, c, Activate { f, out, ldo: s.d_out });
        }
    }
}

/// `c = x W + b`, with something done to each segment of a row when it is complete.
///
/// # Safety
/// `c` is `[n, d_out]` and the caller's alone; and what the epilogue needs.
pub(crate) unsafe fn forward_then<E: Epilogue>(
    s: Sizes,
    x: &[f32],
    w: &[f32],
    layout: Layout,
    bias: Option<&[f32]>,
    c: SendPtr,
    then: E,
) {
    let Sizes { n, d_in, d_out, precision } = s;
    assert!(x.len() == n * d_in && bias.is_none_or(|b| b.len() == d_out));
    let _running = running(Operation::LinearForward, s.flops());
    let init = bias.map_or(Init::Zero, Init::Bias);
    let (a, b) = (Mat::rows(x.as_ptr(), d_in), weight(w, layout, d_in, d_out));
    // SAFETY: sizes checked here and in `weight`; the rest is the caller's promise.
    unsafe { gemm_then(n, d_out, d_in, a, b, c.0, d_out, init, precision, then) }
}

/// `y = f(x W + b)` for a weight prepared for the precision asked for, without anything for a backward pass.
pub(crate) fn forward_prepared(
    n: usize,
    x: &[f32],
    w: &Prepared,
    [d_in, d_out]: [usize; 2],
    bias: Option<&[f32]>,
    f: Activation,
    y: &mut [f32],
) {
    assert!(x.len() == n * d_in && y.len() == n * d_out && bias.is_none_or(|b| b.len() == d_out));
    assert_eq!(w.dims(), w.layout().shape(d_in, d_out));
    let _running = running(Operation::LinearForward, 2.0 * (n * d_in * d_out) as f64);
    let init = bias.map_or(Init::Zero, Init::Bias);
    let c = y.as_mut_ptr();
    // SAFETY: sizes checked above; `y` is an exclusive borrow.
    unsafe {
        if f == Activation::Identity {
            packed::multiply(n, x.as_ptr(), d_in, w, c, d_out, init, ());
        } else {
            let then = Activate { f, out: SendPtr(c), ldo: d_out };
            packed::multiply(n, x.as_ptr(), d_in, w, c, d_out, init, then);
        }
    }
}

/// `dx (+)= dy W^T`.
pub(crate) fn input_gradient(s: Sizes, dy: &[f32], w: &[f32], layout: Layout, dx: &mut [f32], accumulate: bool) {
    // SAFETY: no epilogue.
    unsafe { input_gradient_then(s, dy, w, layout, dx, accumulate, ()) }
}

/// As [`input_gradient`], with something done to each segment of a row when it is complete.
///
/// # Safety
/// What the epilogue needs.
pub(crate) unsafe fn input_gradient_then<E: Epilogue>(
    s: Sizes,
    dy: &[f32],
    w: &[f32],
    layout: Layout,
    dx: &mut [f32],
    accumulate: bool,
    then: E,
) {
    let Sizes { n, d_in, d_out, precision } = s;
    assert!(dy.len() == n * d_out && dx.len() == n * d_in);
    let _running = running(Operation::LinearInput, s.flops());
    let (a, b) = (Mat::rows(dy.as_ptr(), d_out), weight(w, layout, d_in, d_out).t());
    // SAFETY: sizes checked here and in `weight`; the epilogue is the caller's promise.
    unsafe { gemm_then(n, d_in, d_out, a, b, dx.as_mut_ptr(), d_in, Init::accumulate(accumulate), precision, then) }
}

/// `dW (+)= x^T dy` in the weight's layout.
pub(crate) fn weight_gradient(s: Sizes, x: &[f32], dy: &[f32], layout: Layout, dw: &mut [f32], accumulate: bool) {
    let Sizes { n, d_in, d_out, precision } = s;
    assert!(x.len() == n * d_in && dy.len() == n * d_out && dw.len() == d_in * d_out);
    let _running = running(Operation::LinearWeight, s.flops());
    let (x, dy) = (Mat::rows(x.as_ptr(), d_in), Mat::rows(dy.as_ptr(), d_out));
    let init = Init::accumulate(accumulate);
    // SAFETY: sizes checked above.
    unsafe {
        match layout {
            Layout::InOut => gemm(d_in, d_out, n, x.t(), dy, dw.as_mut_ptr(), d_out, init, precision),
            Layout::OutIn => gemm(d_out, d_in, n, dy.t(), x, dw.as_mut_ptr(), d_in, init, precision),
        }
    }
}

#[inline(always)]
unsafe fn slope_chunk<S: Simd>(f: Activation, pre: &[f32], dy: &[f32], out: &mut [f32]) {
    // SAFETY: three slices of one length.
    unsafe {
        lanes!(S, pre.len(), |at, len| {
            let (_, slope) = value_and_slope::<S>(f, load::<S>(pre.as_ptr().add(at), len));
            let g = S::mul(load::<S>(dy.as_ptr().add(at), len), slope);
            store::<S>(out.as_mut_ptr().add(at), g, len);
        });
    }
}
kernel!(unsafe fn slope_kernel(f: Activation, pre: &[f32], dy: &[f32], out: &mut [f32]) = slope_chunk);

/// `out = dy * f'(pre)`.
pub(crate) fn activation_gradient(f: Activation, pre: &[f32], dy: &[f32], out: &mut [f32]) {
    assert!(pre.len() == dy.len() && pre.len() == out.len());
    let _running = running(Operation::LinearOther, 0.0);
    let to = SendPtr(out.as_mut_ptr());
    pool::run_chunks(pre.len(), 1 << 14, |r| {
        // SAFETY: chunks are disjoint parts of `out`; all lengths agree.
        unsafe { slope_kernel(f, &pre[r.clone()], &dy[r.clone()], to.slice(r.start, r.len())) }
    });
}

/// Rows whose sum is taken in one chain; the blocks' sums are then added in order.
const BLOCK: usize = 64;

#[inline(always)]
unsafe fn sum_columns<S: Simd>(x: &[f32], n: usize, d: usize, j0: usize, out: &mut [f32], accumulate: bool) {
    // SAFETY: columns `j0 .. j0 + out.len()` of the rows exist.
    unsafe {
        lanes!(S, out.len(), |at, len| {
            let o = out.as_mut_ptr().add(at);
            let mut total = if accumulate { load::<S>(o, len) } else { S::splat(0.0) };
            for i0 in (0..n).step_by(BLOCK) {
                let mut sum = S::splat(0.0);
                for i in i0..(i0 + BLOCK).min(n) {
                    sum = S::add(sum, load::<S>(x.as_ptr().add(i * d + j0 + at), len));
                }
                total = S::add(total, sum);
            }
            store::<S>(o, total, len);
        });
    }
}
kernel!(unsafe fn sum_columns_kernel(
    x: &[f32], n: usize, d: usize, j0: usize, out: &mut [f32], accumulate: bool) = sum_columns);

/// `out (+)= sum over rows of x`, x `[n, out.len()]`.
pub(crate) fn column_sums(x: &[f32], n: usize, out: &mut [f32], accumulate: bool) {
    let d = out.len();
    assert_eq!(x.len(), n * d);
    let _running = running(Operation::LinearOther, 0.0);
    let to = SendPtr(out.as_mut_ptr());
    pool::run_chunks(d, 64, |r| {
        // SAFETY: chunks of columns are disjoint parts of `out`.
        unsafe { sum_columns_kernel(x, n, d, r.start, to.slice(r.start, r.len()), accumulate) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, data, every_level, thread_invariant};

    const ALL: [Activation; 6] = [
        Activation::Identity,
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::Relu,
        Activation::Tanh,
        Activation::Silu,
    ];

    /// In f64, with erf by its Maclaurin series (arguments stay below 3).
    pub(crate) fn exact(f: Activation, x: f64) -> f64 {
        match f {
            Activation::Identity => x,
            Activation::GeluTanh => 0.5 * x * (1.0 + (GELU_TANH * (x + GELU_CUBIC * x * x * x)).tanh()),
            Activation::GeluErf => {
                let z = x * std::f64::consts::FRAC_1_SQRT_2;
                let (mut term, mut sum) = (z, z);
                for n in 1..60 {
                    term *= -z * z / n as f64;
                    sum += term / (2 * n + 1) as f64;
                }
                0.5 * x * (1.0 + sum * 2.0 / std::f64::consts::PI.sqrt())
            }
            Activation::Relu => x.max(0.0),
            Activation::Tanh => x.tanh(),
            Activation::Silu => x / (1.0 + (-x).exp()),
        }
    }

    /// Far from 0 too, where sums of large and small terms would lose what is left.
    #[test]
    fn silu_and_its_slope_over_the_whole_range() {
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.0231).collect();
        let n = x.len();
        every_level(|| {
            let (mut y, mut slope) = (vec![0.0; n], vec![0.0; n]);
            forward(
                Sizes { n, d_in: 1, d_out: 1, precision: Precision::F32 },
                &x,
                &[1.0],
                Layout::InOut,
                None,
                Activation::Silu,
                None,
                &mut y,
            );
            activation_gradient(Activation::Silu, &x, &vec![1.0; n], &mut slope);
            for ((&x, &y), &slope) in x.iter().zip(&y).zip(&slope) {
                let s = 1.0 / (1.0 + (-x as f64).exp());
                let (value, exact) = (x as f64 * s, s + x as f64 * s * (1.0 - s));
                // Relative, down to where single precision has no full digits left.
                assert!((y as f64 - value).abs() <= 1e-6 * value.abs() + 1e-36, "silu({x}) = {y}, not {value}");
                assert!((slope as f64 - exact).abs() <= 1e-6 * (s + value.abs()) + 1e-36, "{x}: {slope}, not {exact}");
            }
        });
    }

    #[test]
    fn forward_and_backward_against_f64() {
        for (n, d_in, d_out) in [(5, 7, 33), (70, 40, 20)] {
            let s = Sizes { n, d_in, d_out, precision: Precision::F32 };
            let (x, b, dy) = (data(n * d_in, 1), data(d_out, 3), data(n * d_out, 4));
            for (f, layout) in ALL.into_iter().flat_map(|f| [(f, Layout::InOut), (f, Layout::OutIn)]) {
                let w: Vec<f32> = data(d_in * d_out, 2).iter().map(|w| 0.2 * w).collect();
                let at = |i: usize, j: usize| match layout {
                    Layout::InOut => i * d_out + j,
                    Layout::OutIn => j * d_in + i,
                };
                every_level(|| {
                    thread_invariant(|| {
                        let (mut y, mut pre, mut plain) =
                            (vec![0.0; n * d_out], vec![0.0; n * d_out], vec![0.0; n * d_out]);
                        forward(s, &x, &w, layout, Some(&b), f, Some(&mut pre), &mut y);
                        forward(s, &x, &w, layout, Some(&b), f, None, &mut plain);
                        assert_eq!(y, plain);
                        let (mut du, mut dx) = (vec![0.0; n * d_out], vec![0.0; n * d_in]);
                        let (mut dw, mut db) = (vec![1.0; d_in * d_out], vec![1.0; d_out]);
                        activation_gradient(f, &pre, &dy, &mut du);
                        input_gradient(s, &du, &w, layout, &mut dx, false);
                        weight_gradient(s, &x, &du, layout, &mut dw, true);
                        column_sums(&du, n, &mut db, true);
                        let u = |r: usize, j: usize| {
                            b[j] as f64 + (0..d_in).map(|i| x[r * d_in + i] as f64 * w[at(i, j)] as f64).sum::<f64>()
                        };
                        let slope = |r: usize, j: usize| {
                            let (u, h) = (u(r, j), 1e-5);
                            dy[r * d_out + j] as f64 * (exact(f, u + h) - exact(f, u - h)) / (2.0 * h)
                        };
                        for (r, j) in [(0, 0), (n - 1, d_out - 1), (n / 2, d_out / 3)] {
                            close(y[r * d_out + j], exact(f, u(r, j)), 1e-5);
                            close(du[r * d_out + j], slope(r, j), 1e-5);
                        }
                        for (r, i) in [(0, 0), (n - 1, d_in - 1)] {
                            close(dx[r * d_in + i], (0..d_out).map(|j| slope(r, j) * w[at(i, j)] as f64).sum(), 2e-5);
                        }
                        for (i, j) in [(0, 0), (d_in - 1, d_out - 1)] {
                            let sum: f64 = (0..n).map(|r| slope(r, j) * x[r * d_in + i] as f64).sum();
                            close(dw[at(i, j)], 1.0 + sum, 2e-5);
                            close(db[j], 1.0 + (0..n).map(|r| slope(r, j)).sum::<f64>(), 2e-5);
                        }
                        [y, dx, dw, db]
                    });
                });
            }
        }
    }

    #[test]
    fn a_nan_comes_out_of_every_activation() {
        every_level(|| {
            for f in ALL {
                let mut y = [0.0; 3];
                let s = Sizes { n: 1, d_in: 1, d_out: 3, precision: Precision::F32 };
                forward(s, &[f32::NAN], &[1.0; 3], Layout::InOut, None, f, None, &mut y);
                assert!(y.iter().all(|y| y.is_nan()), "{f:?}");
            }
        });
    }
}
