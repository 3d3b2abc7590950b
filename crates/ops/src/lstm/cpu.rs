//! Kernels of the recurrence: the products of a step for all sequences that reach it, and the cells.

#![allow(unsafe_code)]

use crate::array::{SendPtr, uninit};
use crate::gemm::Init;
use crate::gemm::packed::{self, Prepared};
use crate::linear::cpu::{lanes, load, store};
use crate::profile::{Operation, running};
use crate::simd::{Simd, kernel, math};
use crate::{Precision, Spans, pool};
use std::ops::Range;

/// The tokens of a ragged batch in the order of time: the first of every sequence, the longest sequence first, then the second of
/// those that have one, and so on.
pub(crate) struct Steps {
    /// The token at each place.
    pub rows: Vec<u32>,
    offsets: Vec<usize>,
}

impl Steps {
    pub fn new(spans: &Spans) -> Self {
        let mut ranges: Vec<Range<usize>> = spans.iter().filter(|r| !r.is_empty()).collect();
        ranges.sort_by_key(|r| std::cmp::Reverse(r.len()));
        let (mut rows, mut offsets, mut active) = (Vec::with_capacity(spans.total()), vec![0], ranges.len());
        for t in 0..spans.longest() {
            while ranges[active - 1].len() <= t {
                active -= 1;
            }
            rows.extend(ranges[..active].iter().map(|r| (r.start + t) as u32));
            offsets.push(rows.len());
        }
        Steps { rows, offsets }
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The places of step `t`.
    pub fn range(&self, t: usize) -> Range<usize> {
        self.offsets[t]..self.offsets[t + 1]
    }

    /// Sequences that reach step `t`.
    pub fn count(&self, t: usize) -> usize {
        if t < self.len() { self.range(t).len() } else { 0 }
    }

    /// The place of every token.
    pub fn places(&self) -> Vec<u32> {
        let mut places = vec![0; self.rows.len()];
        (0..).zip(&self.rows).for_each(|(place, &row)| places[row as usize] = place);
        places
    }

    /// The place of the same sequence one step before, for all places behind the first step's.
    pub fn before(&self) -> Vec<u32> {
        let of = |t: usize| (0..self.count(t)).map(move |r| (self.offsets[t - 1] + r) as u32);
        (1..self.len()).flat_map(of).collect()
    }
}

/// Bounds of cells and projected outputs.
#[derive(Clone, Copy)]
pub(crate) struct Clips {
    pub cell: Option<f32>,
    pub output: Option<f32>,
}

/// Tokens, width of cells and of the output, bounds, and the precision of products.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub n: usize,
    pub h: usize,
    pub p: usize,
    pub clips: Clips,
    pub precision: Precision,
}

impl Shape {
    /// Floating-point operations of the products of one pass.
    fn flops(self, projected: bool) -> f64 {
        2.0 * (self.n * self.p) as f64 * (4 * self.h + if projected { self.h } else { 0 }) as f64
    }
}

/// Elements of cells that one piece of work has at least.
const GRAIN: usize = 4096;

#[inline(always)]
unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller runs at level S.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, math::exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

#[inline(always)]
unsafe fn clip<S: Simd>(x: S::V, bound: f32) -> S::V {
    // SAFETY: the caller runs at level S.
    unsafe { S::min(S::splat(bound), S::max(S::splat(-bound), x)) }
}

/// Opens the gates of one row in place and moves its cells on: `before` may be null (all 0).
#[inline(always)]
unsafe fn cell<S: Simd>(
    h: usize,
    bound: Option<f32>,
    gates: *mut f32,
    before: *const f32,
    cells: *mut f32,
    out: *mut f32,
) {
    // SAFETY: four times h gates, h cells (and cells before, unless null) and h outputs of one row.
    unsafe {
        lanes!(S, h, |at, len| {
            let gate = |i: usize| gates.add(i * h + at);
            let i = sigmoid::<S>(load::<S>(gate(0), len));
            let f = sigmoid::<S>(load::<S>(gate(1), len));
            let g = math::tanh::<S>(load::<S>(gate(2), len));
            let o = sigmoid::<S>(load::<S>(gate(3), len));
            let mut c = S::mul(i, g);
            if !before.is_null() {
                c = S::fma(f, load::<S>(before.add(at), len), c);
            }
            if let Some(bound) = bound {
                c = clip::<S>(c, bound);
            }
            store::<S>(cells.add(at), c, len);
            store::<S>(out.add(at), S::mul(o, math::tanh::<S>(c)), len);
            for (k, v) in [i, f, g, o].into_iter().enumerate() {
                store::<S>(gate(k), v, len);
            }
        });
    }
}
kernel!(unsafe fn cell_kernel(
    h: usize, bound: Option<f32>, gates: *mut f32, before: *const f32, cells: *mut f32, out: *mut f32) = cell);

/// One row back: `gates` become their gradients before opening; `dc` is the gradient of the cells from the step behind, and becomes
/// that of the cells before.
#[inline(always)]
unsafe fn cell_back<S: Simd>(
    h: usize,
    bound: Option<f32>,
    gates: *mut f32,
    before: *const f32,
    cells: *const f32,
    dout: *const f32,
    dc: *mut f32,
) {
    // SAFETY: as in `cell`, with h gradients of outputs and of cells.
    unsafe {
        let one = S::splat(1.0);
        // The slope of a sigmoid whose value is y, times x.
        let slope = |x: S::V, y: S::V| S::mul(x, S::mul(y, S::sub(one, y)));
        lanes!(S, h, |at, len| {
            let gate = |i: usize| gates.add(i * h + at);
            let [i, f, g, o] = [0, 1, 2, 3].map(|k| load::<S>(gate(k), len));
            let c = load::<S>(cells.add(at), len);
            let tanh = math::tanh::<S>(c);
            let dy = load::<S>(dout.add(at), len);
            let through = S::mul(S::mul(dy, o), S::sub(one, S::mul(tanh, tanh)));
            let mut d = S::add(load::<S>(dc.add(at), len), through);
            if let Some(bound) = bound {
                let zero = S::splat(0.0);
                // Where the bound holds the cell, nothing flows.
                d = S::select_lt(c, S::splat(bound), d, zero);
                d = S::select_lt(S::splat(-bound), c, d, zero);
            }
            let df = match before.is_null() {
                true => S::splat(0.0),
                false => slope(S::mul(d, load::<S>(before.add(at), len)), f),
            };
            store::<S>(gate(0), slope(S::mul(d, g), i), len);
            store::<S>(gate(1), df, len);
            store::<S>(gate(2), S::mul(S::mul(d, i), S::sub(one, S::mul(g, g))), len);
            store::<S>(gate(3), slope(S::mul(dy, tanh), o), len);
            store::<S>(dc.add(at), S::mul(d, f), len);
        });
    }
}
kernel!(unsafe fn cell_back_kernel(
    h: usize, bound: Option<f32>, gates: *mut f32, before: *const f32, cells: *const f32, dout: *const f32, dc: *mut f32)
    = cell_back);

/// Runs all steps. `gates` hold the input's part and then what is open; `inner` is what the cells put out, `outer` what the
/// projection makes of it. All in the order of the steps.
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(
    s: Shape,
    steps: &Steps,
    recurrent: &Prepared,
    projection: Option<&Prepared>,
    gates: &mut [f32],
    cells: &mut [f32],
    inner: &mut [f32],
    mut outer: Option<&mut [f32]>,
) {
    let Shape { n, h, p, clips, .. } = s;
    assert!(gates.len() == n * 4 * h && cells.len() == n * h && inner.len() == n * h && steps.rows.len() == n);
    assert!(outer.as_ref().map_or(p == h, |o| o.len() == n * p) && outer.is_some() == projection.is_some());
    assert!(recurrent.dims() == [4 * h, p] && projection.is_none_or(|w| w.dims() == [p, h]));
    let _running = running(Operation::Recurrence, s.flops(projection.is_some()));
    let (gates, cells, inner) = (gates.as_mut_ptr(), SendPtr(cells.as_mut_ptr()), SendPtr(inner.as_mut_ptr()));
    let open = SendPtr(gates);
    for t in 0..steps.len() {
        let (at, count) = (steps.range(t).start, steps.count(t));
        let before = t.checked_sub(1).map(|t| steps.range(t).start);
        // SAFETY: all ranges of places lie inside the buffers (checked above); a step's sequences are the first of the step's
        // before; tasks take different rows.
        unsafe {
            if let Some(before) = before {
                let last = outer.as_mut().map_or(inner.ptr(), |o| o.as_mut_ptr()).add(before * p);
                packed::multiply(count, last, p, recurrent, gates.add(at * 4 * h), 4 * h, Init::Accumulate, ());
            }
            pool::run_chunks(count, GRAIN.div_ceil(h), |rows| {
                for r in rows {
                    let row = at + r;
                    let from = before.map_or(std::ptr::null(), |b| cells.ptr().add((b + r) * h).cast_const());
                    cell_kernel(
                        h,
                        clips.cell,
                        open.ptr().add(row * 4 * h),
                        from,
                        cells.ptr().add(row * h),
                        inner.ptr().add(row * h),
                    );
                }
            });
            if let (Some(w), Some(outer)) = (projection, outer.as_deref_mut()) {
                let out = &mut outer[at * p..(at + count) * p];
                packed::multiply(count, inner.ptr().add(at * h), h, w, out.as_mut_ptr(), p, Init::Zero, ());
                if let Some(bound) = clips.output {
                    // A NaN must come out again.
                    out.iter_mut().filter(|x| x.abs() > bound).for_each(|x| *x = bound.copysign(*x));
                }
            }
        }
    }
}

/// All steps back. `gates` hold what is open and then their gradients before opening; `dy` the gradients of `outputs`, and then
/// those of what the bound of outputs let through.
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    s: Shape,
    steps: &Steps,
    recurrent: &Prepared,
    projection: Option<&Prepared>,
    gates: &mut [f32],
    cells: &[f32],
    outputs: &[f32],
    dy: &mut [f32],
) {
    let Shape { n, h, p, clips, .. } = s;
    assert!(gates.len() == n * 4 * h && cells.len() == n * h && outputs.len() == n * p && dy.len() == n * p);
    assert!(recurrent.dims() == [4 * h, p] && projection.is_none_or(|w| w.dims() == [p, h]));
    let _running = running(Operation::Recurrence, s.flops(projection.is_some()));
    let widest = steps.count(0);
    // Sequences that ended have not sent anything back yet.
    let mut dc = vec![0f32; widest * h];
    let mut inner = projection.map(|_| uninit(widest * h));
    let (open, dcells) = (SendPtr(gates.as_mut_ptr()), SendPtr(dc.as_mut_ptr()));
    for t in (0..steps.len()).rev() {
        let (at, count) = (steps.range(t).start, steps.count(t));
        let before = t.checked_sub(1).map(|t| steps.range(t).start);
        if let Some(bound) = clips.output {
            let held = outputs[at * p..(at + count) * p].iter().map(|y| y.abs() >= bound);
            dy[at * p..(at + count) * p].iter_mut().zip(held).filter(|(_, held)| *held).for_each(|(d, _)| *d = 0.0);
        }
        let dy = dy.as_mut_ptr();
        // SAFETY: as in `forward`.
        unsafe {
            let dout = match (projection, inner.as_mut()) {
                (Some(w), Some(inner)) => {
                    packed::multiply(count, dy.add(at * p), p, w, inner.as_mut_ptr(), h, Init::Zero, ());
                    SendPtr(inner.as_mut_ptr())
                }
                _ => SendPtr(dy.add(at * p)),
            };
            pool::run_chunks(count, GRAIN.div_ceil(h), |rows| {
                for r in rows {
                    let from = before.map_or(std::ptr::null(), |b| cells[(b + r) * h..].as_ptr());
                    cell_back_kernel(
                        h,
                        clips.cell,
                        open.ptr().add((at + r) * 4 * h),
                        from,
                        cells[(at + r) * h..].as_ptr(),
                        dout.ptr().add(r * h),
                        dcells.ptr().add(r * h),
                    );
                }
            });
            if let Some(before) = before {
                let (from, to) = (open.ptr().add(at * 4 * h), dy.add(before * p));
                packed::multiply(count, from, 4 * h, recurrent, to, p, Init::Accumulate, ());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_in_the_order_of_time() {
        let steps = Steps::new(&Spans::from_lengths([2, 0, 3, 1]));
        // Sequence 0 has tokens 0 and 1, sequence 2 tokens 2 to 4, sequence 3 token 5.
        assert_eq!(steps.rows, [2, 0, 5, 3, 1, 4]);
        assert_eq!((0..4).map(|t| steps.count(t)).collect::<Vec<_>>(), [3, 2, 1, 0]);
        assert_eq!(steps.places(), [1, 4, 0, 3, 5, 2]);
        assert_eq!(steps.before(), [0, 1, 3]);
        assert_eq!(Steps::new(&Spans::from_lengths([0, 0])).len(), 0);
    }
}
