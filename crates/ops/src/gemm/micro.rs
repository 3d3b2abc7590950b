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

/// What is asked for from memory while a tile is multiplied, bit by bit, so that the loads of the tile itself are never behind
/// more of these than the processor can have under way.
pub(crate) trait Ahead<S: Simd>: Copy {
    /// Whether there is anything.
    const ANY: bool;

    /// Part `i` of `parts`. Prefetches only: addresses need not be valid.
    ///
    /// # Safety
    /// Level `S` is enabled.
    unsafe fn part(self, i: usize, parts: usize);
}

impl<S: Simd> Ahead<S> for () {
    const ANY: bool = false;

    #[inline(always)]
    unsafe fn part(self, _: usize, _: usize) {}
}

/// The tile of C that comes next, and lines of A that will be packed next.
#[derive(Clone, Copy)]
pub(crate) struct Next {
    pub c: *const f32,
    pub ldc: usize,
    pub rows: usize,
    /// The lines: `lines` of them, `line` floats apart, in each of `across` rows (or columns), `row` floats apart.
    pub a: *const f32,
    pub row: usize,
    pub across: usize,
    pub line: usize,
    pub lines: usize,
}

impl<S: Simd> Ahead<S> for Next {
    const ANY: bool = true;

    #[inline(always)]
    unsafe fn part(self, i: usize, parts: usize) {
        // SAFETY: prefetches read nothing.
        unsafe {
            if i < self.rows {
                let c = self.c.wrapping_add(i * self.ldc);
                S::prefetch(c);
                S::prefetch(c.wrapping_add(2 * S::LANES - 1));
            }
            for r in (i..self.across).step_by(parts) {
                for l in 0..self.lines {
                    S::prefetch(self.a.wrapping_add(r * self.row + l * self.line));
                }
            }
        }
    }
}

/// The innermost product: `R` rows by two vectors over `kc` steps, the accumulators in registers.
///
/// Step `(i, p)` of A is at `a + i * ARS + p * AKS`; row `p` of B at `b + p * ldb`; `nr` columns are stored.
///
/// # Safety
/// All elements exist. Two whole vectors of each row of B are readable if `padded`, else `nr` floats.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn micro<S: Simd, T: Step<S>, A: Ahead<S>, const R: usize, const ARS: usize, const AKS: usize>(
    nr: usize,
    padded: bool,
    kc: usize,
    a: *const f32,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    start: Start,
    ahead: A,
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
            let parts = if A::ANY { R } else { 1 };
            for part in 0..parts {
                if A::ANY {
                    ahead.part(part, parts);
                }
                for p in kc * part / parts..kc * (part + 1) / parts {
                    let bp = b.add(p * ldb);
                    let (b0, b1) = (S::load(bp), S::load(bp.add(l)));
                    // B comes from the L2 cache: the lines of a later step are asked for now.
                    let later = bp.wrapping_add(AHEAD * ldb);
                    S::prefetch(later);
                    S::prefetch(later.wrapping_add(16));
                    let ap = a.add(p * AKS);
                    for (i, row) in acc.iter_mut().enumerate() {
                        let x = S::splat(*ap.add(i * ARS));
                        row[0] = T::dot(x, b0, row[0]);
                        row[1] = T::dot(x, b1, row[1]);
                    }
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
                            micro::<S, Whole, (), $r, ARS, AKS>(nr, padded, k, ap, bp, ldb, cp, ldc, start, ());
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
