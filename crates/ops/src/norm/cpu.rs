//! Kernels of residual connection, dropout and normalisation.

#![allow(unsafe_code)]

use crate::array::SendPtr;
use crate::linear::cpu::{lanes, load, store};
use crate::pool;
use crate::profile::{Operation, running};
use crate::rng::{Key, drop_row};
use crate::simd::{Simd, kernel};

/// Rows of one task. Gradients of weight and bias are summed in one chain over a task's rows, then over the tasks in order.
const BLOCK: usize = 32;

/// What stays fixed over the rows.
#[derive(Clone, Copy)]
pub(crate) struct Spec<'a> {
    pub d: usize,
    pub weight: &'a [f32],
    /// With a bias layer normalisation, without RMS normalisation.
    pub bias: Option<&'a [f32]>,
    pub eps: f64,
}

/// `out = x + dropout(branch)`, rows numbered from `row0`.
#[inline(always)]
unsafe fn residual_rows<S: Simd>(
    d: usize,
    row0: usize,
    x: &[f32],
    branch: &[f32],
    dropout: Option<(Key, f32)>,
    out: &mut [f32],
) {
    // SAFETY: three slices of one length.
    unsafe {
        match dropout {
            None => lanes!(S, x.len(), |at, len| {
                let sum = S::add(load::<S>(x.as_ptr().add(at), len), load::<S>(branch.as_ptr().add(at), len));
                store::<S>(out.as_mut_ptr().add(at), sum, len);
            }),
            Some((key, p)) => {
                for (i, out) in out.chunks_mut(d).enumerate() {
                    out.copy_from_slice(&branch[i * d..][..d]);
                    drop_row(key, (row0 + i) as u64, 0, p, out);
                    let x = &x[i * d..][..d];
                    out.iter_mut().zip(x).for_each(|(o, x)| *o += x);
                }
            }
        }
    }
}

/// Sum over a row of vectors computed from each part of it.
macro_rules! row_sum {
    ($S:ty, $d:expr, |$at:ident, $len:ident| $value:expr) => {{
        let mut sum = <$S>::splat(0.0);
        lanes!($S, $d, |$at, $len| { sum = <$S>::add(sum, $value) });
        <$S>::reduce_add(sum)
    }};
}

#[inline(always)]
unsafe fn norm_rows<S: Simd>(s: Spec<'_>, sum: &[f32], y: &mut [f32], stats: &mut [f32]) {
    let d = s.d;
    let ones = [1f32; 16];
    // SAFETY: rows of d elements; `stats` has two a row.
    unsafe {
        for ((x, y), stats) in sum.chunks(d).zip(y.chunks_mut(d)).zip(stats.chunks_mut(2)) {
            let (xp, yp) = (x.as_ptr(), y.as_mut_ptr());
            let mean = match s.bias {
                Some(_) => row_sum!(S, d, |at, len| load::<S>(xp.add(at), len)) / d as f32,
                None => 0.0,
            };
            let m = S::splat(mean);
            let squares = row_sum!(S, d, |at, len| {
                // Lanes beyond the row would count the mean: they are multiplied by 0.
                let c = S::mul(S::sub(load::<S>(xp.add(at), len), m), load::<S>(ones.as_ptr(), len));
                S::mul(c, c)
            });
            let scale = (1.0 / (squares as f64 / d as f64 + s.eps).sqrt()) as f32;
            let r = S::splat(scale);
            lanes!(S, d, |at, len| {
                let c = S::mul(S::sub(load::<S>(xp.add(at), len), m), r);
                let w = load::<S>(s.weight.as_ptr().add(at), len);
                let v = match s.bias {
                    Some(b) => S::fma(c, w, load::<S>(b.as_ptr().add(at), len)),
                    None => S::mul(c, w),
                };
                store::<S>(yp.add(at), v, len);
            });
            stats.copy_from_slice(&[mean, scale]);
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn forward_block<S: Simd>(
    s: Spec<'_>,
    row0: usize,
    x: &[f32],
    branch: Option<&[f32]>,
    dropout: Option<(Key, f32)>,
    sum: &mut [f32],
    y: &mut [f32],
    stats: &mut [f32],
) {
    // SAFETY: slices of whole rows, as many in each.
    unsafe {
        match branch {
            Some(b) => {
                residual_rows::<S>(s.d, row0, x, b, dropout, sum);
                norm_rows::<S>(s, sum, y, stats);
            }
            None => norm_rows::<S>(s, x, y, stats),
        }
    }
}
kernel!(unsafe fn forward_kernel(s: Spec<'_>, row0: usize, x: &[f32], branch: Option<&[f32]>,
    dropout: Option<(Key, f32)>, sum: &mut [f32], y: &mut [f32], stats: &mut [f32]) = forward_block);
kernel!(unsafe fn residual_kernel(d: usize, row0: usize, x: &[f32], branch: &[f32],
    dropout: Option<(Key, f32)>, out: &mut [f32]) = residual_rows);

/// `sum = x + dropout(branch)` and `y = norm(sum)`; without a branch `sum` stays untouched (it is `x`) and may be empty.
/// `stats` receives mean and reciprocal deviation of every row.
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(
    s: Spec<'_>,
    x: &[f32],
    branch: Option<&[f32]>,
    dropout: Option<(Key, f32)>,
    sum: &mut [f32],
    y: &mut [f32],
    stats: &mut [f32],
) {
    let d = s.d;
    if d == 0 || x.is_empty() {
        return;
    }
    let _running = running(Operation::Norm, 0.0);
    let n = x.len() / d;
    assert!(x.len() == n * d && y.len() == n * d && stats.len() == 2 * n && s.weight.len() == d);
    assert!(s.bias.is_none_or(|b| b.len() == d));
    assert!(branch.is_none_or(|b| b.len() == n * d && sum.len() == n * d));
    let outs = (SendPtr(sum.as_mut_ptr()), SendPtr(y.as_mut_ptr()), SendPtr(stats.as_mut_ptr()));
    pool::run_chunks(n, BLOCK, |r| {
        let (sum, y, stats) = outs;
        let (at, len) = (r.start * d, r.len() * d);
        // SAFETY: chunks of rows are disjoint parts of the outputs, whose sizes were checked.
        unsafe {
            let sum = if branch.is_some() { sum.slice(at, len) } else { &mut [] };
            let branch = branch.map(|b| &b[at..at + len]);
            let stats = stats.slice(2 * r.start, 2 * r.len());
            forward_kernel(s, r.start, &x[at..at + len], branch, dropout, sum, y.slice(at, len), stats);
        }
    });
}

/// `out = x + dropout(branch)`.
pub(crate) fn residual(d: usize, x: &[f32], branch: &[f32], dropout: Option<(Key, f32)>, out: &mut [f32]) {
    if d == 0 {
        return;
    }
    let _running = running(Operation::Norm, 0.0);
    let n = x.len() / d;
    assert!(x.len() == n * d && branch.len() == n * d && out.len() == n * d);
    let to = SendPtr(out.as_mut_ptr());
    pool::run_chunks(n, BLOCK, |r| {
        let (at, len) = (r.start * d, r.len() * d);
        // SAFETY: chunks of rows are disjoint parts of the output.
        unsafe { residual_kernel(d, r.start, &x[at..at + len], &branch[at..at + len], dropout, to.slice(at, len)) }
    });
}

/// Gradients with respect to the outputs: of `y` always, of `sum` if something else used it.
#[derive(Clone, Copy)]
pub(crate) struct Upstream<'a> {
    pub y: &'a [f32],
    pub sum: Option<&'a [f32]>,
}

/// One block of rows: `dsum` is written, the sums over the rows for weight and bias go to `dweight` and `dbias`.
#[inline(always)]
unsafe fn backward_block<S: Simd>(
    s: Spec<'_>,
    sum: &[f32],
    stats: &[f32],
    up: Upstream<'_>,
    dsum: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    let d = s.d;
    // SAFETY: whole rows, as many in each slice; `dweight` has d elements, `dbias` d or none.
    unsafe {
        let zero = S::splat(0.0);
        dweight.fill(0.0);
        dbias.fill(0.0);
        for (i, x) in sum.chunks(d).enumerate() {
            let (m, r) = (S::splat(stats[2 * i]), S::splat(stats[2 * i + 1]));
            let (xp, gp) = (x.as_ptr(), up.y.as_ptr().add(i * d));
            let (mut along, mut mean) = (zero, zero);
            lanes!(S, d, |at, len| {
                let g = load::<S>(gp.add(at), len);
                let xhat = S::mul(S::sub(load::<S>(xp.add(at), len), m), r);
                let w = dweight.as_mut_ptr().add(at);
                store::<S>(w, S::fma(g, xhat, load::<S>(w, len)), len);
                // Lanes beyond the row are 0 here because g is.
                let gw = S::mul(g, load::<S>(s.weight.as_ptr().add(at), len));
                along = S::fma(gw, xhat, along);
                if s.bias.is_some() {
                    let b = dbias.as_mut_ptr().add(at);
                    store::<S>(b, S::add(g, load::<S>(b, len)), len);
                    mean = S::add(mean, gw);
                }
            });
            let along = S::splat(S::reduce_add(along) / d as f32);
            let mean = S::splat(S::reduce_add(mean) / d as f32);
            let out = dsum.as_mut_ptr().add(i * d);
            lanes!(S, d, |at, len| {
                let gw = S::mul(load::<S>(gp.add(at), len), load::<S>(s.weight.as_ptr().add(at), len));
                let xhat = S::mul(S::sub(load::<S>(xp.add(at), len), m), r);
                let inner = S::sub(S::sub(gw, mean), S::mul(xhat, along));
                let other = match up.sum {
                    Some(g) => load::<S>(g.as_ptr().add(i * d + at), len),
                    None => zero,
                };
                store::<S>(out.add(at), S::fma(r, inner, other), len);
            });
        }
    }
}
kernel!(unsafe fn backward_kernel(s: Spec<'_>, sum: &[f32], stats: &[f32], up: Upstream<'_>, dsum: &mut [f32],
    dweight: &mut [f32], dbias: &mut [f32]) = backward_block);

/// The gradient of `sum` (and so of `x`), and for the two parameters partial sums `[blocks, d]` (see [`combine`]).
pub(crate) fn backward(
    s: Spec<'_>,
    sum: &[f32],
    stats: &[f32],
    up: Upstream<'_>,
    dsum: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let d = s.d;
    if d == 0 || sum.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let _running = running(Operation::Norm, 0.0);
    let n = sum.len() / d;
    assert!(sum.len() == n * d && stats.len() == 2 * n && up.y.len() == n * d && dsum.len() == n * d);
    assert!(up.sum.is_none_or(|g| g.len() == n * d) && s.weight.len() == d);
    let blocks = n.div_ceil(BLOCK);
    let mut dweight = vec![0f32; blocks * d];
    let mut dbias = vec![0f32; if s.bias.is_some() { blocks * d } else { 0 }];
    let outs = (SendPtr(dsum.as_mut_ptr()), SendPtr(dweight.as_mut_ptr()), SendPtr(dbias.as_mut_ptr()));
    pool::run_chunks(n, BLOCK, |r| {
        let (dsum, dweight, dbias) = outs;
        let (at, len, block) = (r.start * d, r.len() * d, r.start / BLOCK);
        let part = Upstream { y: &up.y[at..at + len], sum: up.sum.map(|g| &g[at..at + len]) };
        // SAFETY: chunks of rows, and the blocks' partial sums, are disjoint parts of the outputs.
        unsafe {
            let dbias = if s.bias.is_some() { dbias.slice(block * d, d) } else { &mut [] };
            let dweight = dweight.slice(block * d, d);
            let stats = &stats[2 * r.start..2 * r.end];
            backward_kernel(s, &sum[at..at + len], stats, part, dsum.slice(at, len), dweight, dbias);
        }
    });
    (dweight, dbias)
}

/// `out (+)= sum of the blocks`, in order.
pub(crate) fn combine(partial: &[f32], out: &mut [f32], accumulate: bool) {
    let _running = running(Operation::Norm, 0.0);
    if !accumulate {
        out.fill(0.0);
    }
    for block in partial.chunks_exact(out.len().max(1)) {
        out.iter_mut().zip(block).for_each(|(o, x)| *o += x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::dropout_factors;
    use crate::testing::{close, data, every_level, thread_invariant};

    /// `sum` and `y` of one row in f64.
    fn exact(s: &Spec<'_>, x: &[f64]) -> Vec<f64> {
        let d = s.d as f64;
        let mean = if s.bias.is_some() { x.iter().sum::<f64>() / d } else { 0.0 };
        let size = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d + s.eps).sqrt();
        (0..s.d).map(|j| (x[j] - mean) / size * s.weight[j] as f64 + s.bias.map_or(0.0, |b| b[j] as f64)).collect()
    }

    #[test]
    fn forward_and_backward_against_f64() {
        for (n, d) in [(1, 1), (3, 12), (75, 33), (40, 100)] {
            let (x, branch, weight, bias) = (data(n * d, 1), data(n * d, 2), data(d, 3), data(d, 4));
            let (gy, gsum) = (data(n * d, 5), data(n * d, 6));
            let key = Key::new(3, 4);
            for (layer, dropout) in [(true, None), (false, None), (true, Some((key, 0.3)))] {
                let s = Spec { d, weight: &weight, bias: layer.then_some(&bias[..]), eps: 1e-5 };
                let factors = dropout.map_or(vec![1.0; n * d], |(k, p)| dropout_factors(k, 0, n, d, p));
                every_level(|| {
                    thread_invariant(|| {
                        let (mut sum, mut y, mut stats) = (vec![0.0; n * d], vec![0.0; n * d], vec![0.0; 2 * n]);
                        forward(s, &x, Some(&branch), dropout, &mut sum, &mut y, &mut stats);
                        let mut plain = vec![0.0; n * d];
                        residual(d, &x, &branch, dropout, &mut plain);
                        assert_eq!(plain, sum);
                        let mut again = vec![0.0; n * d];
                        forward(s, &sum, None, None, &mut [], &mut again, &mut stats);
                        assert_eq!(again, y);
                        let mut dsum = vec![0.0; n * d];
                        let up = Upstream { y: &gy, sum: Some(&gsum) };
                        let (w, b) = backward(s, &sum, &stats, up, &mut dsum);
                        let (mut dweight, mut dbias) = (vec![2.0; d], vec![2.0; d]);
                        combine(&w, &mut dweight, true);
                        combine(&b, &mut dbias, true);
                        let row = |i: usize| -> Vec<f64> {
                            (i * d..(i + 1) * d).map(|e| x[e] as f64 + (branch[e] * factors[e]) as f64).collect()
                        };
                        for i in [0, n / 2, n - 1] {
                            let mut r = row(i);
                            exact(&s, &r).iter().zip(&y[i * d..]).for_each(|(e, y)| close(*y, *e, 1e-5));
                            for j in [0, d - 1] {
                                let h = 1e-4;
                                let mut side = |step: f64| {
                                    r[j] += step;
                                    let v = exact(&s, &r);
                                    r[j] -= step;
                                    (0..d).map(|c| v[c] * gy[i * d + c] as f64).sum::<f64>()
                                };
                                let slope = (side(h) - side(-h)) / (2.0 * h) + gsum[i * d + j] as f64;
                                // A row of one element has the deviation 0 and a steep slope at eps = 1e-5.
                                close(dsum[i * d + j], slope, 1e-4);
                            }
                        }
                        let unit: Vec<f32> = vec![1.0; d];
                        let hat = Spec { weight: &unit, bias: s.bias.map(|_| &[0f32; 100][..d]), ..s };
                        let (mut along, mut plain) = (2.0, 2.0);
                        for i in 0..n {
                            along += exact(&hat, &row(i))[d - 1] * gy[i * d + d - 1] as f64;
                            plain += gy[i * d + d - 1] as f64;
                        }
                        close(dweight[d - 1], along, 1e-5);
                        close(dbias[d - 1], if layer { plain } else { 2.0 }, 1e-5);
                        [y, sum, dsum, dweight, dbias]
                    });
                });
            }
        }
    }
}
