//! Packing: parts of the operands in the order in which the microkernel reads them, as steps of 32 bits.

use super::step::Step;
use super::{A_STRIDE, COLUMNS, Mat};
use crate::simd::Simd;

/// Packs a panel of B, `kc` deep and `nr` columns wide, padded with zeros to two vectors and to whole steps.
#[inline(always)]
pub(super) unsafe fn pack_b<S: Simd, T: Step<S>>(
    kind: T,
    kc: usize,
    nr: usize,
    src: *const f32,
    b: Mat,
    dst: *mut f32,
) {
    let l = S::LANES;
    let width = 2 * l;
    let steps = kc.div_ceil(T::DEPTH);
    // SAFETY: the panel's elements exist in B, and dst has room for as many steps of `width` lanes.
    unsafe {
        if b.col == 1 && nr == width {
            for s in 0..steps {
                let row = src.add(s * T::DEPTH * b.row);
                let second = T::DEPTH == 2 && s * 2 + 1 < kc;
                for half in [0, l] {
                    let first = S::load(row.add(half));
                    let second = if second { S::load(row.add(b.row + half)) } else { S::splat(0.0) };
                    S::store(dst.add(s * width + half), kind.across(first, second));
                }
            }
        } else if b.row == 1 && nr == width {
            let whole = kc / (l * T::DEPTH) * l;
            let mut square = [0f32; 256];
            for s in (0..whole).step_by(l) {
                for half in [0, l] {
                    let columns = src.add(half * b.col + s * T::DEPTH);
                    let to = dst.add(s * width + half);
                    if kind.plain() {
                        S::transpose(columns, b.col, to, width);
                        continue;
                    }
                    for j in 0..l {
                        let column = columns.add(j * b.col);
                        let first = S::load(column);
                        let second = if T::DEPTH == 2 { S::load(column.add(l)) } else { first };
                        S::store(square.as_mut_ptr().add(j * l), kind.along(first, second));
                    }
                    S::transpose(square.as_ptr(), l, to, width);
                }
            }
            for s in whole..steps {
                for j in 0..width {
                    *dst.add(s * width + j) = single::<S, T>(kind, kc, s, src.add(j * b.col), 1);
                }
            }
        } else {
            for s in 0..steps {
                for j in 0..width {
                    let to = dst.add(s * width + j);
                    *to = if j < nr { single::<S, T>(kind, kc, s, src.add(j * b.col), b.row) } else { 0.0 };
                }
            }
        }
    }
}

/// Step `s` of the `kc` elements from `p` on, `stride` floats apart.
#[inline(always)]
unsafe fn single<S: Simd, T: Step<S>>(kind: T, kc: usize, s: usize, p: *const f32, stride: usize) -> f32 {
    // SAFETY: the caller's promise that the elements exist.
    unsafe {
        let second = T::DEPTH == 2 && s * 2 + 1 < kc;
        kind.single(*p.add(s * T::DEPTH * stride), if second { *p.add((s * 2 + 1) * stride) } else { 0.0 })
    }
}

/// Packs a panel of a row-major A: its rows one after the other.
#[inline(always)]
pub(super) unsafe fn pack_rows<S: Simd, T: Step<S>>(
    kind: T,
    mr: usize,
    kc: usize,
    src: *const f32,
    stride: usize,
    dst: *mut f32,
) {
    let l = S::LANES;
    let whole = kc / (l * T::DEPTH) * l;
    for i in 0..mr {
        // SAFETY: the rows exist in A, and dst has room for 16 rows of A_STRIDE floats, a vector more than a block is deep.
        unsafe {
            let (from, to) = (src.add(i * stride), dst.add(i * A_STRIDE));
            if kind.plain() {
                std::ptr::copy_nonoverlapping(from, to, kc);
                continue;
            }
            for s in (0..whole).step_by(l) {
                let p = from.add(s * T::DEPTH);
                let first = S::load(p);
                let second = if T::DEPTH == 2 { S::load(p.add(l)) } else { first };
                S::store(to.add(s), kind.along(first, second));
            }
            let rest = kc - whole * T::DEPTH;
            if rest > 0 {
                let p = from.add(whole * T::DEPTH);
                let first = S::load_n(p, rest.min(l));
                let second = if rest > l { S::load_n(p.add(l), rest - l) } else { S::splat(0.0) };
                S::store(to.add(whole), kind.along(first, second));
            }
        }
    }
}

/// Packs up to [`COLUMNS`] rows of a transposed A, whose elements lie side by side for each depth, into groups of `MR` rows,
/// `next` floats apart, each step by step.
#[inline(always)]
pub(super) unsafe fn pack_columns<S: Simd, T: Step<S>, const MR: usize>(
    kind: T,
    rows: usize,
    kc: usize,
    src: *const f32,
    a: Mat,
    dst: *mut f32,
    next: usize,
) {
    let steps = kc.div_ceil(T::DEPTH);
    // SAFETY: the elements exist in A; each group has room for MR lanes of all steps and one vector more.
    unsafe {
        if a.row == 1 && rows == COLUMNS {
            for s in 0..steps {
                let from = src.add(s * T::DEPTH * a.col);
                let to = dst.add(s * MR);
                let second = T::DEPTH == 2 && s * 2 + 1 < kc;
                // Whole vectors are stored: what is too much is overwritten by the next step's.
                for g in 0..COLUMNS / MR {
                    let last = g == COLUMNS / MR - 1;
                    let load = |p: *const f32| if last { S::load_n(p, MR) } else { S::load(p) };
                    let first = load(from.add(g * MR));
                    let second = if second { load(from.add(a.col + g * MR)) } else { S::splat(0.0) };
                    S::store(to.add(g * next), kind.across(first, second));
                }
            }
        } else {
            for s in 0..steps {
                for i in 0..rows {
                    *dst.add(i / MR * next + s * MR + i % MR) = single::<S, T>(kind, kc, s, src.add(i * a.row), a.col);
                }
            }
        }
    }
}
