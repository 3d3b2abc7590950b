//! The innermost product, and products of small matrices inside other kernels.

use super::step::{Step, Whole};
use crate::simd::Simd;

/// What a tile's chains start from.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    Zero,
    Old,
    Bias(*const f32),
}

/// Steps of depth by which B is prefetched.
const AHEAD: usize = 12;

/// The innermost product: `R` rows by two vectors over `kc` steps, the accumulators in registers.
///
/// Step `(i, p)` of A is at `a + i * ARS + p * AKS`; row `p` of B at `b + p * ldb`; `nr` columns are stored.
///
/// # Safety
/// All elements exist. Two whole vectors of each row of B are readable if `padded`, else `nr` floats.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn micro<S: Simd, T: Step<S>, const R: usize, const ARS: usize, const AKS: usize>(
    nr: usize,
    padded: bool,
    kc: usize,
    a: *const f32,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    start: Start,
) {
    let l = S::LANES;
    let (n0, n1) = (nr.min(l), nr.saturating_sub(l));
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::splat(0.0); 2]; R];
        match start {
            Start::Zero => {}
            Start::Old if nr == 2 * l => {
                for (i, row) in acc.iter_mut().enumerate() {
                    let p = c.add(i * ldc);
                    *row = [S::load(p), S::load(p.add(l))];
                }
            }
            Start::Old => {
                for (i, row) in acc.iter_mut().enumerate() {
                    let p = c.add(i * ldc);
                    *row = [S::load_n(p, n0), S::load_n(p.wrapping_add(l), n1)];
                }
            }
            Start::Bias(bias) => {
                acc = [[S::load_n(bias, n0), S::load_n(bias.wrapping_add(l), n1)]; R];
            }
        }
        if nr == 2 * l || padded {
            for p in 0..kc {
                let bp = b.add(p * ldb);
                let (b0, b1) = (S::load(bp), S::load(bp.add(l)));
                // B comes from the L2 cache: the lines of a later step are asked for now.
                let ahead = bp.wrapping_add(AHEAD * ldb);
                S::prefetch(ahead);
                S::prefetch(ahead.wrapping_add(16));
                let ap = a.add(p * AKS);
                for (i, row) in acc.iter_mut().enumerate() {
                    let x = S::splat(*ap.add(i * ARS));
                    row[0] = T::dot(x, b0, row[0]);
                    row[1] = T::dot(x, b1, row[1]);
                }
            }
        } else {
            for p in 0..kc {
                let bp = b.add(p * ldb);
                let (b0, b1) = (S::load_n(bp, n0), S::load_n(bp.wrapping_add(l), n1));
                let ap = a.add(p * AKS);
                for (i, row) in acc.iter_mut().enumerate() {
                    let x = S::splat(*ap.add(i * ARS));
                    row[0] = T::dot(x, b0, row[0]);
                    row[1] = T::dot(x, b1, row[1]);
                }
            }
        }
        for (i, row) in acc.iter().enumerate() {
            let p = c.add(i * ldc);
            if nr == 2 * l {
                S::store(p, row[0]);
                S::store(p.add(l), row[1]);
            } else {
                S::store_n(p, row[0], n0);
                S::store_n(p.wrapping_add(l), row[1], n1);
            }
        }
    }
}

/// Rows of A that [`multiply`] takes together, and so the rows of one group of a packed A.
pub(crate) const fn group<S: Simd>() -> usize {
    if S::LANES == 16 { 12 } else { 4 }
}

/// The product of small matrices inside one kernel, on the calling thread: C `[m, n]` from A (element `(i, p)` at
/// `a + i * ARS + p * AKS` inside a group of [`group`] rows, groups `next` floats apart) and B (rows of `ldb`), with the same
/// chains as [`super::gemm`].
///
/// # Safety
/// As [`micro`]; runs where level `S` is enabled.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn multiply<S: Simd, const ARS: usize, const AKS: usize>(
    m: usize,
    n: usize,
    k: usize,
    a: *const f32,
    next: usize,
    b: *const f32,
    ldb: usize,
    padded: bool,
    c: *mut f32,
    ldc: usize,
    start: Start,
) {
    let width = 2 * S::LANES;
    let rows = group::<S>();
    // SAFETY: the caller's promise; the loops cover [m, n] without overlap.
    unsafe {
        let mut j = 0;
        while j < n {
            let nr = width.min(n - j);
            let bp = b.add(j);
            let mut i0 = 0;
            while i0 < m {
                let mut i = 0;
                let left = rows.min(m - i0);
                while i < left {
                    let ap = a.add(i0 / rows * next + i * ARS);
                    let cp = c.add((i0 + i) * ldc + j);
                    macro_rules! go {
                        ($r:literal) => {{
                            micro::<S, Whole, $r, ARS, AKS>(nr, padded, k, ap, bp, ldb, cp, ldc, start);
                            i += $r;
                        }};
                    }
                    let rest = left - i;
                    if S::LANES == 16 && rest >= 12 {
                        go!(12)
                    } else if rest >= 4 {
                        go!(4)
                    } else if rest >= 2 {
                        go!(2)
                    } else {
                        go!(1)
                    }
                }
                i0 += rows;
            }
            j += nr;
        }
    }
}
