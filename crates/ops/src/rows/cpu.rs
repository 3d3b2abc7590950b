//! Kernels on rows: dropout, gathering, and the scattered sums that are its gradient.

#![allow(unsafe_code)]

use crate::array::SendPtr;
use crate::pool;
use crate::profile::{Operation, running};
use crate::rng::{Key, drop_row};
use crate::simd::{Simd, kernel};

#[inline(always)]
unsafe fn drop_block<S: Simd>(key: Key, p: f32, d: usize, row0: usize, x: &mut [f32]) {
    let _ = S::LANES;
    for (i, row) in x.chunks_mut(d).enumerate() {
        drop_row(key, (row0 + i) as u64, 0, p, row);
    }
}
kernel!(unsafe fn drop_kernel(key: Key, p: f32, d: usize, row0: usize, x: &mut [f32]) = drop_block);

/// Multiplies `x` (`[n, d]`) by the factors of dropout, in place.
pub(crate) fn drop_in_place(x: &mut [f32], d: usize, (key, p): (Key, f32)) {
    let _running = running(Operation::Rows, 0.0);
    if d == 0 {
        return;
    }
    let n = x.len() / d;
    let to = SendPtr(x.as_mut_ptr());
    pool::run_chunks(n, 64, |r| {
        // SAFETY: chunks of rows are disjoint.
        unsafe { drop_kernel(key, p, d, r.start, to.slice(r.start * d, r.len() * d)) }
    });
}

/// `out[i] = x[indices[i]]`, rows of `d`.
pub(crate) fn gather(x: &[f32], d: usize, indices: &[u32], out: &mut [f32]) {
    let _running = running(Operation::Rows, 0.0);
    assert_eq!(out.len(), indices.len() * d);
    let to = SendPtr(out.as_mut_ptr());
    pool::run_chunks(indices.len(), 128, |r| {
        for i in r {
            let from = indices[i] as usize * d;
            // SAFETY: one row of the output each.
            unsafe { to.slice(i * d, d) }.copy_from_slice(&x[from..from + d]);
        }
    });
}

/// As [`gather`] from the rows of `a` and, behind them, of `b`.
pub(crate) fn gather_two(a: &[f32], b: &[f32], d: usize, indices: &[u32], out: &mut [f32]) {
    let _running = running(Operation::Rows, 0.0);
    assert_eq!(out.len(), indices.len() * d);
    let to = SendPtr(out.as_mut_ptr());
    pool::run_chunks(indices.len(), 128, |r| {
        for i in r {
            let from = indices[i] as usize * d;
            let row = if from < a.len() { &a[from..from + d] } else { &b[from - a.len()..][..d] };
            // SAFETY: one row of the output each.
            unsafe { to.slice(i * d, d) }.copy_from_slice(row);
        }
    });
}

/// `out = x + b`, rows of `b`'s length.
pub(crate) fn plus_row(x: &[f32], b: &[f32], out: &mut [f32]) {
    let _running = running(Operation::Rows, 0.0);
    assert_eq!(x.len(), out.len());
    let d = b.len().max(1);
    let to = SendPtr(out.as_mut_ptr());
    pool::run_chunks(x.len() / d, 64, |r| {
        // SAFETY: chunks of rows are disjoint.
        let out = unsafe { to.slice(r.start * d, r.len() * d) };
        for (out, x) in out.chunks_mut(d).zip(x[r.start * d..].chunks(d)) {
            out.iter_mut().zip(x).zip(b).for_each(|((o, x), b)| *o = x + b);
        }
    });
}

/// `out[indices[i]] += g[i]`, rows of `d`, in the order of `i`: each task takes some columns of all rows.
pub(crate) fn scatter_add(g: &[f32], d: usize, indices: &[u32], out: &mut [f32]) {
    let _running = running(Operation::Rows, 0.0);
    assert_eq!(g.len(), indices.len() * d);
    let rows = out.len() / d.max(1);
    assert!(indices.iter().all(|&i| (i as usize) < rows));
    let to = SendPtr(out.as_mut_ptr());
    pool::run_chunks(d, 64, |c| {
        for (i, &index) in indices.iter().enumerate() {
            // SAFETY: the row exists (checked above), and the columns belong to this task alone.
            let out = unsafe { to.slice(index as usize * d + c.start, c.len()) };
            out.iter_mut().zip(&g[i * d + c.start..i * d + c.end]).for_each(|(o, g)| *o += g);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::dropout_factors;
    use crate::testing::{data, every_level, thread_invariant};

    #[test]
    fn gather_and_scatter_are_transposes() {
        let (rows, d) = (11, 150);
        let indices: Vec<u32> = (0..200u64).map(|i| (crate::rng::mix64(i) % rows as u64) as u32).collect();
        let (x, g) = (data(rows * d, 1), data(indices.len() * d, 2));
        let [y, dx] = thread_invariant(|| {
            let (mut y, mut dx) = (vec![0.0; indices.len() * d], vec![1.0; rows * d]);
            gather(&x, d, &indices, &mut y);
            scatter_add(&g, d, &indices, &mut dx);
            [y, dx]
        });
        for (i, &r) in indices.iter().enumerate() {
            assert_eq!(y[i * d..(i + 1) * d], x[r as usize * d..(r as usize + 1) * d]);
        }
        for e in 0..rows * d {
            let mut sum = 1f32;
            for (i, _) in indices.iter().enumerate().filter(|(_, r)| **r as usize == e / d) {
                sum += g[i * d + e % d];
            }
            assert_eq!(sum, dx[e]);
        }
    }

    #[test]
    fn dropout_multiplies_by_its_factors() {
        let (n, d, key) = (130, 37, Key::new(1, 2));
        let x = data(n * d, 3);
        let factors = dropout_factors(key, 0, n, d, 0.2);
        every_level(|| {
            let mut y = x.clone();
            drop_in_place(&mut y, d, (key, 0.2));
            assert!(y.iter().zip(x.iter().zip(&factors)).all(|(y, (x, f))| *y == x * f));
        });
    }
}
