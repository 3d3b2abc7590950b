//! Kernel of projection and cross-entropy. The logits exist for some rows at a time, and their gradient takes their place; so
//! when gradients are wanted they are computed here, together with the loss, for an upstream gradient of 1.

#![allow(unsafe_code)]

use super::IGNORE;
use crate::array::{SendPtr, uninit};
use crate::linear::Layout;
use crate::linear::cpu::{Sizes, column_sums, forward as project, input_gradient, lanes, load, store, weight_gradient};
use crate::pool;
use crate::profile::{Operation, running};
use crate::rows::cpu::gather;
use crate::simd::{Simd, kernel, math};
use crate::{Activation, Precision};

/// Rows whose logits exist together, unless the vocabulary is so large that [`MAX_LOGITS`] allows fewer.
const ROWS: usize = 1024;
/// Logits that exist together (200 MB).
const MAX_LOGITS: usize = 52_000_000;

/// The projection and the loss.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub d: usize,
    pub vocab: usize,
    pub weight: &'a [f32],
    pub layout: Layout,
    pub bias: Option<&'a [f32]>,
    pub smoothing: f64,
    pub scale: f64,
    pub precision: Precision,
}

/// Where the gradients that are wanted go; all of each is written.
#[derive(Default)]
pub(crate) struct Wanted<'a> {
    pub x: Option<&'a mut [f32]>,
    pub weight: Option<&'a mut [f32]>,
    pub bias: Option<&'a mut [f32]>,
    /// Not a gradient: each row's loss, without the scale; 0 without a target.
    pub losses: Option<&'a mut [f64]>,
}

/// Elements that are summed in f32 before they join the row's sum in f64.
const PART: usize = 1024;

/// The loss of one row of logits; if `gradient`, the row becomes `scale * d loss / d logits`.
#[inline(always)]
unsafe fn row_loss<S: Simd>(
    logits: &mut [f32],
    target: usize,
    smoothing: f64,
    scale: f64,
    gradient: bool,
    loss: &mut f64,
) {
    let n = logits.len();
    let p = logits.as_mut_ptr();
    // SAFETY: all offsets are below n.
    unsafe {
        let mut most = [S::splat(f32::NEG_INFINITY); 2];
        let mut turn = 0;
        let whole = n / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            most[turn] = S::max(most[turn], S::load(p.add(at)));
            turn ^= 1;
        }
        let mut max = S::reduce_max(S::max(most[0], most[1]));
        for x in &logits[whole..] {
            max = if *x > max { *x } else { max };
        }
        let at_target = logits[target] as f64;
        let mut total = 0f64;
        if smoothing != 0.0 {
            for x in logits.iter() {
                total += *x as f64;
            }
        }
        let m = S::splat(max);
        let mut sum = 0f64;
        for part in logits.chunks_mut(PART) {
            let p = part.as_mut_ptr();
            let mut sums = S::splat(0.0);
            let whole = part.len() / S::LANES * S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                let e = math::exp::<S>(S::sub(S::load(p.add(at)), m));
                S::store(p.add(at), e);
                sums = S::add(sums, e);
            }
            let rest = part.len() - whole;
            if rest > 0 {
                let mut e = [0f32; 16];
                S::store(e.as_mut_ptr(), math::exp::<S>(S::sub(S::load_n(p.add(whole), rest), m)));
                for (x, e) in part[whole..].iter_mut().zip(e) {
                    *x = e;
                    sum += e as f64;
                }
            }
            sum += S::reduce_add(sums) as f64;
        }
        *loss = max as f64 + sum.ln() - (1.0 - smoothing) * at_target - smoothing * total / n as f64;
        if gradient {
            let factor = S::splat((scale / sum) as f32);
            let uniform = S::splat((-scale * smoothing / n as f64) as f32);
            lanes!(S, n, |at, len| {
                let e = load::<S>(p.add(at), len);
                store::<S>(p.add(at), S::fma(e, factor, uniform), len);
            });
            *p.add(target) -= (scale * (1.0 - smoothing)) as f32;
        }
    }
}
kernel!(unsafe fn row_kernel(logits: &mut [f32], target: usize, smoothing: f64, scale: f64, gradient: bool,
    loss: &mut f64) = row_loss);

/// `scale * sum over the rows with a target of the loss`.
pub(crate) fn forward(h: &Head<'_>, x: &[f32], targets: &[i32], mut wanted: Wanted<'_>) -> f64 {
    let _running = running(Operation::CrossEntropy, 0.0);
    let (d, vocab) = (h.d, h.vocab);
    assert!(x.len() == targets.len() * d && h.weight.len() == d * vocab);
    assert!(h.bias.is_none_or(|b| b.len() == vocab));
    assert!(targets.iter().all(|&t| t == IGNORE || (t >= 0 && (t as usize) < vocab)));
    assert!(wanted.x.as_ref().is_none_or(|g| g.len() == x.len()));
    assert!(wanted.weight.as_ref().is_none_or(|g| g.len() == h.weight.len()));
    assert!(wanted.bias.as_ref().is_none_or(|g| g.len() == vocab));
    assert!(wanted.losses.as_ref().is_none_or(|l| l.len() == targets.len()));
    if let Some(l) = &mut wanted.losses {
        l.fill(0.0);
    }
    let kept: Vec<u32> = (0..targets.len()).filter(|&i| targets[i] != IGNORE).map(|i| i as u32).collect();
    if kept.is_empty() {
        [wanted.x, wanted.weight, wanted.bias].into_iter().flatten().for_each(|g| g.fill(0.0));
        return 0.0;
    }
    let all = kept.len() == targets.len();
    if let (false, Some(g)) = (all, &mut wanted.x) {
        g.fill(0.0);
    }
    let gradient = wanted.x.is_some() || wanted.weight.is_some() || wanted.bias.is_some();
    let most = ROWS.min((MAX_LOGITS / vocab).max(16));
    // Chunks of nearly the same number of rows.
    let rows = kept.len().div_ceil(kept.len().div_ceil(most));
    let mut logits = uninit(rows * vocab);
    let mut losses = vec![0f64; rows];
    let mut total = 0.0;
    for (c, chunk) in kept.chunks(rows).enumerate() {
        let (n, first) = (chunk.len(), c * rows);
        let gathered;
        let x = if all {
            &x[first * d..(first + n) * d]
        } else {
            let mut g = uninit(n * d);
            gather(x, d, chunk, &mut g);
            gathered = g;
            &gathered[..]
        };
        let s = Sizes { n, d_in: d, d_out: vocab, precision: h.precision };
        let logits = &mut logits[..n * vocab];
        project(s, x, h.weight, h.layout, h.bias, Activation::Identity, None, logits);
        each_row(h, chunk, targets, gradient, logits, &mut losses);
        total += losses[..n].iter().sum::<f64>();
        if let Some(l) = &mut wanted.losses {
            chunk.iter().zip(&losses).for_each(|(&i, loss)| l[i as usize] = *loss);
        }
        if let Some(g) = &mut wanted.weight {
            weight_gradient(s, x, logits, h.layout, g, c > 0);
        }
        if let Some(g) = &mut wanted.bias {
            column_sums(logits, n, g, c > 0);
        }
        match &mut wanted.x {
            Some(g) if all => {
                input_gradient(s, logits, h.weight, h.layout, &mut g[first * d..(first + n) * d], false);
            }
            Some(g) => {
                let mut dx = uninit(n * d);
                input_gradient(s, logits, h.weight, h.layout, &mut dx, false);
                for (row, &i) in dx.chunks(d.max(1)).zip(chunk) {
                    g[i as usize * d..][..d].copy_from_slice(row);
                }
            }
            None => {}
        }
    }
    h.scale * total
}

/// Losses and gradients of the rows of one chunk.
fn each_row(h: &Head<'_>, rows: &[u32], targets: &[i32], gradient: bool, logits: &mut [f32], losses: &mut [f64]) {
    struct Losses(*mut f64);
    // SAFETY: each task writes the losses of its own rows.
    unsafe impl Sync for Losses {}
    impl Losses {
        /// # Safety
        /// In bounds.
        unsafe fn at(&self, i: usize) -> *mut f64 {
            // SAFETY: the caller's promise.
            unsafe { self.0.add(i) }
        }
    }
    assert!(logits.len() == rows.len() * h.vocab && losses.len() >= rows.len());
    let (to, losses) = (SendPtr(logits.as_mut_ptr()), Losses(losses.as_mut_ptr()));
    pool::run_chunks(rows.len(), 4, |r| {
        for i in r {
            let target = targets[rows[i] as usize] as usize;
            // SAFETY: one row of logits and one loss each; the targets were checked against the vocabulary.
            unsafe {
                let row = to.slice(i * h.vocab, h.vocab);
                row_kernel(row, target, h.smoothing, h.scale, gradient, &mut *losses.at(i));
            }
        }
    });
}

/// `x *= factor`.
pub(crate) fn scale(x: &mut [f32], factor: f32) {
    let to = SendPtr(x.as_mut_ptr());
    pool::run_chunks(x.len(), 1 << 16, |r| {
        // SAFETY: chunks are disjoint.
        unsafe { to.slice(r.start, r.len()) }.iter_mut().for_each(|x| *x *= factor);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, data, every_level, thread_invariant};

    /// Loss in f64 and its gradient with respect to the logits.
    fn exact(h: &Head<'_>, x: &[f32], targets: &[i32]) -> (f64, Vec<f64>) {
        let (d, v) = (h.d, h.vocab);
        let mut loss = 0.0;
        let mut g = vec![0.0; targets.len() * v];
        for (r, &t) in targets.iter().enumerate().filter(|(_, t)| **t != IGNORE) {
            let at = |i: usize, j: usize| match h.layout {
                Layout::InOut => i * v + j,
                Layout::OutIn => j * d + i,
            };
            let logits: Vec<f64> = (0..v)
                .map(|j| {
                    let dot: f64 = (0..d).map(|i| x[r * d + i] as f64 * h.weight[at(i, j)] as f64).sum();
                    dot + h.bias.map_or(0.0, |b| b[j] as f64)
                })
                .collect();
            let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
            for j in 0..v {
                let hot = (1.0 - h.smoothing) * (j as i32 == t) as u8 as f64 + h.smoothing / v as f64;
                loss += h.scale * hot * (lse - logits[j]);
                g[r * v + j] = h.scale * ((logits[j] - lse).exp() - hot);
            }
        }
        (loss, g)
    }

    #[test]
    fn loss_and_gradients_against_f64() {
        for (n, d, v) in [(1, 3, 2), (9, 12, 101), (50, 20, 1500), (1100, 4, 37)] {
            let (x, w, b) = (data(n * d, 1), data(d * v, 2), data(v, 3));
            for (layout, smoothing, ignore) in
                [(Layout::OutIn, 0.0, false), (Layout::InOut, 0.1, true), (Layout::OutIn, 0.1, true)]
            {
                let h = Head {
                    d,
                    vocab: v,
                    weight: &w,
                    layout,
                    bias: ignore.then_some(&b[..]),
                    smoothing,
                    scale: 1.0 / n as f64,
                    precision: Precision::F32,
                };
                let targets: Vec<i32> =
                    (0..n).map(|i| if ignore && i % 3 == 0 && n > 1 { IGNORE } else { (i * 31 % v) as i32 }).collect();
                let (loss, g) = exact(&h, &x, &targets);
                every_level(|| {
                    thread_invariant(|| {
                        let (mut dx, mut dw, mut db) = (vec![7.0; n * d], vec![7.0; d * v], vec![7.0; v]);
                        let mut each = vec![7.0; n];
                        let losses = Some(&mut each[..]);
                        let wanted = Wanted { x: Some(&mut dx), weight: Some(&mut dw), bias: Some(&mut db), losses };
                        let found = forward(&h, &x, &targets, wanted);
                        assert_eq!(found.to_bits(), forward(&h, &x, &targets, Wanted::default()).to_bits());
                        close(found as f32, loss, 2e-6);
                        close((each.iter().sum::<f64>() * h.scale) as f32, loss, 2e-6);
                        assert!(each.iter().zip(&targets).all(|(l, t)| (*l == 0.0) == (*t == IGNORE)));
                        let at = |i: usize, j: usize| match layout {
                            Layout::InOut => i * v + j,
                            Layout::OutIn => j * d + i,
                        };
                        for r in [0, n / 2, n - 1] {
                            let sum: f64 = (0..v).map(|j| g[r * v + j] * w[at(d - 1, j)] as f64).sum();
                            close(dx[r * d + d - 1], sum, 1e-6);
                        }
                        for j in [0, v / 2, v - 1] {
                            let sum: f64 = (0..n).map(|r| g[r * v + j] * x[r * d] as f64).sum();
                            close(dw[at(0, j)], sum, 1e-6);
                            close(db[j], (0..n).map(|r| g[r * v + j]).sum(), 1e-6);
                        }
                        [vec![found as f32], dx, dw, db]
                    });
                });
            }
        }
    }

    #[test]
    fn without_targets_all_is_zero() {
        let w = data(12, 1);
        let h = Head {
            d: 3,
            vocab: 4,
            weight: &w,
            layout: Layout::OutIn,
            bias: None,
            smoothing: 0.0,
            scale: 1.0,
            precision: Precision::F32,
        };
        let (mut dx, mut dw) = (vec![7.0; 6], vec![7.0; 12]);
        let wanted = Wanted { x: Some(&mut dx), weight: Some(&mut dw), ..Wanted::default() };
        assert_eq!(forward(&h, &data(6, 2), &[IGNORE, IGNORE], wanted), 0.0);
        assert!(dx.iter().chain(&dw).all(|g| *g == 0.0));
    }

    #[test]
    fn a_nan_in_the_input_reaches_the_loss() {
        every_level(|| {
            let w = data(3 * 50, 1);
            let h = Head {
                d: 3,
                vocab: 50,
                weight: &w,
                layout: Layout::OutIn,
                bias: None,
                smoothing: 0.0,
                scale: 1.0,
                precision: Precision::F32,
            };
            assert!(forward(&h, &[f32::NAN, 0.0, 0.0], &[1], Wanted::default()).is_nan());
        });
    }
}
