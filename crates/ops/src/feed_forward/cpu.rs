//! Kernels of the feed-forward networks: the linear maps' products, with the activation, the gate and their slopes applied to
//! each block of rows while it is in cache.

#![allow(unsafe_code)]

use crate::array::SendPtr;
use crate::gemm::Epilogue;
use crate::linear::Layout;
use crate::linear::cpu::{self as linear, Sizes, lanes, load, store, value, value_and_slope};
use crate::simd::Simd;
use crate::{Activation, Precision};

/// Rows and widths of the network, and the precision of its products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub n: usize,
    pub d_model: usize,
    pub d_ff: usize,
    pub d_out: usize,
    pub precision: Precision,
}

impl Shape {
    /// The first map, and the gate's.
    pub fn up(self) -> Sizes {
        Sizes { n: self.n, d_in: self.d_model, d_out: self.d_ff, precision: self.precision }
    }

    /// The second map.
    pub fn down(self) -> Sizes {
        Sizes { n: self.n, d_in: self.d_ff, d_out: self.d_out, precision: self.precision }
    }
}

/// Epilogue of `dh = dy W2^T`: C becomes `f(pre)`, computed again, and `pre` becomes `dh * f'(pre)`.
#[derive(Clone, Copy)]
struct Slope {
    f: Activation,
    pre: SendPtr,
    d: usize,
}

impl Epilogue for Slope {
    #[inline(always)]
    unsafe fn row<S: Simd>(self, i: usize, j: usize, n: usize, c: *mut f32) {
        // SAFETY: `pre` has the shape of C, and the segment belongs to the caller alone.
        unsafe {
            let pre = self.pre.0.add(i * self.d + j);
            lanes!(S, n, |at, len| {
                let (value, slope) = value_and_slope::<S>(self.f, load::<S>(pre.add(at), len));
                store::<S>(pre.add(at), S::mul(load::<S>(c.add(at), len), slope), len);
                store::<S>(c.add(at), value, len);
            });
        }
    }
}

/// From the pre-activation `pre` the inner layer `hidden = f(pre)` and, in its place, its gradient `(dy W2^T) * f'(pre)`, both
/// `[n, d_ff]`: from these come all gradients of the network.
pub(crate) fn hidden_gradient(
    s: Shape,
    dy: &[f32],
    down: &[f32],
    layout: Layout,
    f: Activation,
    pre: &mut [f32],
    hidden: &mut [f32],
) {
    assert!(pre.len() == s.n * s.d_ff && hidden.len() == pre.len());
    let then = Slope { f, pre: SendPtr(pre.as_mut_ptr()), d: s.d_ff };
    // SAFETY: sizes checked above; `pre` is an exclusive borrow.
    unsafe { linear::input_gradient_then(s.down(), dy, down, layout, hidden, false, then) }
}

/// Epilogue of `up = x Wu + bu`: `f(gate) * up` goes to the same place of `out`, which may be C itself.
#[derive(Clone, Copy)]
struct Gate {
    f: Activation,
    gate: SendPtr,
    out: SendPtr,
    d: usize,
}

impl Epilogue for Gate {
    #[inline(always)]
    unsafe fn row<S: Simd>(self, i: usize, j: usize, n: usize, c: *mut f32) {
        // SAFETY: `gate` and `out` have the shape of C, and the segment belongs to the caller alone.
        unsafe {
            let (gate, out) = (self.gate.0.add(i * self.d + j), self.out.0.add(i * self.d + j));
            lanes!(S, n, |at, len| {
                let open = value::<S>(self.f, load::<S>(gate.add(at), len));
                store::<S>(out.add(at), S::mul(open, load::<S>(c.add(at), len)), len);
            });
        }
    }
}

/// Epilogue of `dh = dy Wd^T`: C becomes `f(gate) * up`, computed again, and the two factors become their gradients.
#[derive(Clone, Copy)]
struct GateSlope {
    f: Activation,
    gate: SendPtr,
    up: SendPtr,
    d: usize,
}

impl Epilogue for GateSlope {
    #[inline(always)]
    unsafe fn row<S: Simd>(self, i: usize, j: usize, n: usize, c: *mut f32) {
        // SAFETY: `gate` and `up` have the shape of C, and the segment belongs to the caller alone.
        unsafe {
            let (gate, up) = (self.gate.0.add(i * self.d + j), self.up.0.add(i * self.d + j));
            lanes!(S, n, |at, len| {
                let (open, slope) = value_and_slope::<S>(self.f, load::<S>(gate.add(at), len));
                let (u, dh) = (load::<S>(up.add(at), len), load::<S>(c.add(at), len));
                store::<S>(c.add(at), S::mul(open, u), len);
                store::<S>(up.add(at), S::mul(dh, open), len);
                store::<S>(gate.add(at), S::mul(S::mul(dh, u), slope), len);
            });
        }
    }
}

/// A map's weight and its bias, if it has one.
pub(crate) type Map<'a> = (&'a [f32], Option<&'a [f32]>);

/// `y = (f(x Wg + bg) * (x Wu + bu)) Wd + bd`. `gate` receives the gate's pre-activation, `up` what it multiplies if given;
/// `hidden` is space for their product. All three `[n, d_ff]`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn gated_forward(
    s: Shape,
    x: &[f32],
    maps: [Map<'_>; 3],
    layout: Layout,
    f: Activation,
    gate: &mut [f32],
    up: Option<&mut [f32]>,
    hidden: &mut [f32],
    y: &mut [f32],
) {
    let [(w_gate, gate_bias), (w_up, up_bias), (w_down, down_bias)] = maps;
    let size = s.n * s.d_ff;
    assert!(gate.len() == size && hidden.len() == size && up.as_ref().is_none_or(|u| u.len() == size));
    linear::forward(s.up(), x, w_gate, layout, gate_bias, Activation::Identity, None, gate);
    let out = SendPtr(hidden.as_mut_ptr());
    let c = up.map_or(out, |u| SendPtr(u.as_mut_ptr()));
    let then = Gate { f, gate: SendPtr(gate.as_mut_ptr()), out, d: s.d_ff };
    // SAFETY: sizes checked above; all three are exclusive borrows.
    unsafe { linear::forward_then(s.up(), x, w_up, layout, up_bias, c, then) };
    linear::forward(s.down(), hidden, w_down, layout, down_bias, Activation::Identity, None, y);
}

/// From `gate` and `up` the inner layer `hidden = f(gate) * up` and, in their places, their gradients, all `[n, d_ff]`: from
/// these come all gradients of the network.
#[allow(clippy::too_many_arguments)]
pub(crate) fn gated_hidden_gradient(
    s: Shape,
    dy: &[f32],
    down: &[f32],
    layout: Layout,
    f: Activation,
    gate: &mut [f32],
    up: &mut [f32],
    hidden: &mut [f32],
) {
    let size = s.n * s.d_ff;
    assert!(gate.len() == size && up.len() == size && hidden.len() == size);
    let then = GateSlope { f, gate: SendPtr(gate.as_mut_ptr()), up: SendPtr(up.as_mut_ptr()), d: s.d_ff };
    // SAFETY: sizes checked above; `gate` and `up` are exclusive borrows.
    unsafe { linear::input_gradient_then(s.down(), dy, down, layout, hidden, false, then) }
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
        let s = Shape { n: 30, d_model: 9, d_ff: 45, d_out: 13, precision: Precision::F32 };
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
                        let (mut again, mut du, mut dh, mut expected) = (space(), pre.clone(), space(), space());
                        hidden_gradient(s, &dy, &down, layout, f, &mut du, &mut again);
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

    #[test]
    fn gated_gradients_are_those_of_the_three_maps() {
        let s = Shape { n: 30, d_model: 9, d_ff: 45, d_out: 13, precision: Precision::F32 };
        let (x, dy, [w_gate, w_up]) = (data(s.n * 9, 1), data(s.n * 13, 2), [3, 4].map(|i| data(9 * 45, i)));
        let (w_down, gate_bias, up_bias, down_bias) = (data(45 * 13, 5), data(45, 6), data(45, 7), data(13, 8));
        for layout in [Layout::InOut, Layout::OutIn] {
            for f in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
                every_level(|| {
                    thread_invariant(|| {
                        let space = || vec![0f32; s.n * 45];
                        let (mut gate, mut up, mut hidden, mut y) = (space(), space(), space(), vec![0.0; s.n * 13]);
                        let maps: [Map<'_>; 3] =
                            [(&w_gate, Some(&gate_bias)), (&w_up, Some(&up_bias)), (&w_down, Some(&down_bias))];
                        gated_forward(s, &x, maps, layout, f, &mut gate, Some(&mut up), &mut hidden, &mut y);
                        let (mut scratch, mut unkept, mut same) = (space(), space(), vec![0.0; s.n * 13]);
                        gated_forward(s, &x, maps, layout, f, &mut scratch, None, &mut unkept, &mut same);
                        assert_eq!(y, same, "what is kept changed the result");

                        let (mut dgate, mut dup, mut again) = (gate.clone(), up.clone(), space());
                        gated_hidden_gradient(s, &dy, &w_down, layout, f, &mut dgate, &mut dup, &mut again);
                        assert_eq!(hidden, again, "recomputing changed bits");
                        let (mut dh, mut open, mut expected) = (space(), space(), space());
                        linear::input_gradient(s.down(), &dy, &w_down, layout, &mut dh, false);
                        let gated: Vec<f32> = dh.iter().zip(&up).map(|(a, b)| a * b).collect();
                        linear::activation_gradient(f, &gate, &gated, &mut expected);
                        dgate.iter().zip(&expected).for_each(|(a, b)| close(*a, *b as f64, 1e-7));
                        let one = Sizes { n: s.n * 45, d_in: 1, d_out: 1, precision: s.precision };
                        linear::forward(one, &gate, &[1.0], Layout::InOut, None, f, None, &mut open);
                        dup.iter().zip(open.iter().zip(&dh)).for_each(|(a, (o, d))| close(*a, (o * d) as f64, 1e-7));
                        [y, dgate, dup, hidden]
                    });
                });
            }
        }
    }
}
