//! Products of a few rows, as in decoding: B is read once, as it lies in memory, at the memory's speed. The chains are those of
//! all products, so a token decoded alone has the bits that it has inside a prompt.

use super::{Init, Mat};
use crate::simd::Simd;

/// The most rows that take this way.
pub(super) fn most(b: Mat) -> usize {
    match (b.col, b.row) {
        (1, _) => 4,
        (_, 1) => 8,
        _ => 0,
    }
}

/// Columns of C that one unit of work computes.
pub(super) fn block(n: usize, k: usize, b: Mat, threads: usize) -> usize {
    let share = n.div_ceil(threads);
    // Parts of rows of B that stay, as accumulators, in the L1 cache; or about a megabyte of whole rows of its transpose.
    let most = if b.col == 1 { 2048 } else { ((1 << 18) / k.max(1)).max(16) };
    share.min(most).next_multiple_of(16)
}

/// One unit on one thread.
///
/// # Safety
/// As [`super::gemm`]; level `S` is enabled and `m <= most(b)`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn unit<S: Simd>(
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
) {
    macro_rules! rows {
        ($($r:literal)*) => {
            match m {
                $($r => {
                    for i in 0..$r {
                        // SAFETY: row i of C has n elements.
                        let row = unsafe { std::slice::from_raw_parts_mut(c.add(i * ldc), n) };
                        match init {
                            Init::Zero => row.fill(0.0),
                            Init::Accumulate => {}
                            Init::Bias(bias) => row.copy_from_slice(bias),
                        }
                    }
                    // SAFETY: the caller's promise.
                    unsafe {
                        if b.col == 1 {
                            rows_of_b::<S, $r>(n, k, a, b, c, ldc)
                        } else {
                            columns_of_b::<S, $r>(n, k, a, b, c, ldc)
                        }
                    }
                })*
                _ => {}
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8)
}

/// B by rows: each is added, times an element of A, to the rows of C, which stay in the L1 cache.
#[inline(always)]
unsafe fn rows_of_b<S: Simd, const R: usize>(n: usize, k: usize, a: Mat, b: Mat, c: *mut f32, ldc: usize) {
    let whole = n / S::LANES * S::LANES;
    /// Floats by which the stream is prefetched.
    const AHEAD: usize = 256;
    // SAFETY: the caller's promise.
    unsafe {
        for p in 0..k {
            let row = b.ptr.add(p * b.row);
            let following = row.wrapping_add(b.row).wrapping_sub(n);
            let x: [S::V; R] = std::array::from_fn(|i| S::splat(*a.at(i, p)));
            let mut j = 0;
            while j < whole {
                let ahead = if j + AHEAD < n { row } else { following };
                S::prefetch(ahead.wrapping_add(j + AHEAD));
                let w = S::load(row.add(j));
                for (i, x) in x.iter().enumerate() {
                    let to = c.add(i * ldc + j);
                    S::store(to, S::fma(*x, w, S::load(to)));
                }
                j += S::LANES;
            }
            if j < n {
                let w = S::load_n(row.add(j), n - j);
                for (i, x) in x.iter().enumerate() {
                    let to = c.add(i * ldc + j);
                    S::store_n(to, S::fma(*x, w, S::load_n(to, n - j)), n - j);
                }
            }
        }
    }
}

/// B by columns, each contiguous: as many columns as a vector has lanes are transposed piece by piece on the way.
#[inline(always)]
unsafe fn columns_of_b<S: Simd, const R: usize>(n: usize, k: usize, a: Mat, b: Mat, c: *mut f32, ldc: usize) {
    let l = S::LANES;
    let mut piece = [0f32; 256];
    // SAFETY: the caller's promise; `piece` has room for a square of vectors of at most 16 lanes.
    unsafe {
        for j in (0..n).step_by(l) {
            let columns = l.min(n - j);
            let from = b.ptr.add(j * b.col);
            // The next columns lie behind these in memory: asked for in the order of addresses, one stream.
            let next = from.wrapping_add(l * b.col);
            let mut acc: [S::V; R] = std::array::from_fn(|i| S::load_n(c.add(i * ldc + j), columns));
            for p0 in (0..k).step_by(l) {
                let depth = l.min(k - p0);
                for line in 0..l {
                    let at = p0 * l + line * l;
                    if at.is_multiple_of(16) {
                        S::prefetch(next.wrapping_add(at));
                    }
                }
                if columns == l && depth == l {
                    S::transpose(from.add(p0), b.col, piece.as_mut_ptr(), l);
                } else {
                    for p in 0..depth {
                        for i in 0..l {
                            piece[p * l + i] = if i < columns { *from.add(i * b.col + p0 + p) } else { 0.0 };
                        }
                    }
                }
                for p in 0..depth {
                    let w = S::load(piece.as_ptr().add(p * l));
                    for (i, acc) in acc.iter_mut().enumerate() {
                        *acc = S::fma(S::splat(*a.at(i, p0 + p)), w, *acc);
                    }
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                S::store_n(c.add(i * ldc + j), *acc, columns);
            }
        }
    }
}
