//! Matrix products with f32 sums whose order of summation is fixed: every element of the result is one chain of fused multiply-adds
//! over the depth, from 0 up, started from 0, the bias or the element's old value.
//!
//! So a row's result depends neither on the number of threads, nor on the rows that share the call, nor on the blocking. That
//! is what batch-invariant serving, cached decoding and exact resuming stand on.
//!
//! In bf16 the operands are rounded while they are packed: where the processor multiplies pairs of bf16, a packed step holds two
//! elements of the depth and the chain is one of pairs; elsewhere it holds one f32 and the chain is that of f32.
//!
//! Structure (Goto and van de Geijn 2008): a block of B, at most [`DEPTH`] deep and small enough for the L2 cache, is packed
//! into panels two vectors wide; panels of a few rows of A are packed for the L1 cache; a microkernel multiplies the two with all
//! accumulators in registers, while the rows of the next A panel are prefetched.

#![allow(unsafe_code)]

mod epilogue;
mod few;
pub(crate) mod micro;
mod pack;
pub(crate) mod packed;
pub(crate) mod step;

pub(crate) use epilogue::Epilogue;
use epilogue::{Rows, Then};

use crate::Precision;
use crate::array::SendPtr;
use crate::pool;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Level, Portable, Simd, level};
use micro::{Next, Start, micro};
use pack::{pack_b, pack_columns, pack_rows};
use std::cell::RefCell;
#[cfg(target_arch = "x86_64")]
use step::NativePairs;
pub(crate) use step::round_bf16;
use step::{Step, Whole};

/// Depth of a block in steps.
const DEPTH: usize = 384;
/// Distance of the rows of a packed row-major A panel: not a multiple of the L1 cache's 4 KiB, so that rows do not evict each other.
const A_STRIDE: usize = DEPTH + 16;
/// Rows of a transposed A that are packed together: a multiple of every level's rows, three cache lines wide.
const COLUMNS: usize = 48;

/// A matrix in memory: element `(i, j)` is at `ptr + i * row + j * col`.
#[derive(Clone, Copy)]
pub(crate) struct Mat {
    pub ptr: *const f32,
    pub row: usize,
    pub col: usize,
}

// SAFETY: read-only views; whoever builds one keeps the memory alive and unchanged while the product runs.
unsafe impl Send for Mat {}
// SAFETY: as above.
unsafe impl Sync for Mat {}

impl Mat {
    /// Rows of `stride` floats.
    pub fn rows(ptr: *const f32, stride: usize) -> Self {
        Mat { ptr, row: stride, col: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Mat { ptr: self.ptr, row: self.col, col: self.row }
    }

    /// The part from row `i`, column `j` on.
    unsafe fn at(self, i: usize, j: usize) -> *const f32 {
        // SAFETY: the caller's promise that the element exists.
        unsafe { self.ptr.add(i * self.row + j * self.col) }
    }
}

/// What the chains of a product start from.
#[derive(Clone, Copy)]
pub(crate) enum Init<'a> {
    /// 0: the result replaces what is in C.
    Zero,
    /// The old element of C.
    Accumulate,
    /// One value a column.
    Bias(&'a [f32]),
}

impl Init<'_> {
    /// `Accumulate` or `Zero`.
    pub fn accumulate(yes: bool) -> Self {
        if yes { Init::Accumulate } else { Init::Zero }
    }
}

#[derive(Default)]
struct Scratch {
    a: Vec<f32>,
    b: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// C (`[m, n]`, rows of `ldc`) from A (`[m, k]`) times B (`[k, n]`).
///
/// # Safety
/// The views and `c` cover the stated shapes, and `c` overlaps neither of the inputs.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn gemm(
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    precision: Precision,
) {
    // SAFETY: the caller's promise.
    unsafe { multiply(m, n, k, a, b, c, ldc, init, precision, None) }
}

/// `c = a b`, all row-major, for `a` `[m, k]` and `b` `[k, n]`, each stored transposed if said so: the product that the
/// operations use, for measurements.
///
/// # Panics
/// When a slice's length does not fit.
#[allow(clippy::too_many_arguments)]
pub fn product(
    precision: Precision,
    [m, n, k]: [usize; 3],
    a: &[f32],
    a_transposed: bool,
    b: &[f32],
    b_transposed: bool,
    c: &mut [f32],
) {
    assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n);
    let view = |x: &[f32], rows, cols, t| if t { Mat::rows(x.as_ptr(), rows).t() } else { Mat::rows(x.as_ptr(), cols) };
    // SAFETY: sizes checked above.
    unsafe {
        let (a, b) = (view(a, m, k, a_transposed), view(b, k, n, b_transposed));
        gemm(m, n, k, a, b, c.as_mut_ptr(), n, Init::Zero, precision)
    }
}

/// As [`gemm`], with something done to each row segment of C when it is complete.
///
/// # Safety
/// As [`gemm`], and what the epilogue needs.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn gemm_then<E: Epilogue>(
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    precision: Precision,
    epilogue: E,
) {
    // SAFETY: the caller's promise.
    unsafe { multiply(m, n, k, a, b, c, ldc, init, precision, Some(&epilogue)) }
}

/// The product behind [`gemm`] and [`gemm_then`].
#[allow(clippy::too_many_arguments)]
unsafe fn multiply(
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    precision: Precision,
    epilogue: Option<&dyn Rows>,
) {
    if m == 0 || n == 0 {
        return;
    }
    let level = level();
    let (width, widest) = match level {
        Level::Avx512 | Level::Bf16 => (32, 512),
        _ => (16, 256),
    };
    // Units of work: blocks of columns times ranges of rows, enough of them to keep the threads busy, but each large enough
    // to pay for packing its block of B.
    let threads = pool::threads();
    let panels = n.div_ceil(width);
    let mut blocks = n.div_ceil(widest);
    let row_parts = m.div_ceil(1024).max(1);
    if blocks * row_parts < 8 * threads && !(blocks * row_parts).is_multiple_of(threads) {
        blocks = blocks.next_multiple_of(threads).min(panels);
    }
    let block = panels.div_ceil(blocks) * width;
    let blocks = n.div_ceil(block);
    let row_parts = if blocks < threads && m >= 96 { row_parts.max(threads) } else { row_parts };
    let part = m.div_ceil(row_parts).next_multiple_of(12);
    let row_parts = m.div_ceil(part);
    let rounded = precision == Precision::Bf16;
    let is_few = !rounded && m <= few::most(b);
    let (block, blocks, part, row_parts) = if is_few {
        let block = few::block(n, k, b, threads);
        (block, n.div_ceil(block), m, 1)
    } else {
        (block, blocks, part, row_parts)
    };
    let c = SendPtr(c);
    let small = 2 * m * n * k < 40_000;
    let unit = move |i: usize| {
        let c = c;
        let (bi, mi) = (i / row_parts, i % row_parts);
        let (j0, i0) = (bi * block, mi * part);
        let (nb, mb) = (block.min(n - j0), part.min(m - i0));
        // SAFETY: the unit's part of each matrix lies inside the caller's shapes; units write disjoint parts of C.
        unsafe {
            let a = Mat { ptr: a.at(i0, 0), ..a };
            let b = Mat { ptr: b.at(0, j0), ..b };
            let c = c.0.add(i0 * ldc + j0);
            let init = match init {
                Init::Bias(bias) => Init::Bias(&bias[j0..j0 + nb]),
                other => other,
            };
            let then = (epilogue, i0, j0);
            SCRATCH.with(|s| {
                let s = &mut *s.borrow_mut();
                let step = Whole { rounded };
                match level {
                    #[cfg(target_arch = "x86_64")]
                    Level::Bf16 if rounded => unit_bf16(mb, nb, k, a, b, c, ldc, init, s, then),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 | Level::Bf16 => unit_avx512(step, mb, nb, k, a, b, c, ldc, init, s, then),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => unit_avx2(step, mb, nb, k, a, b, c, ldc, init, s, then),
                    _ => unit::<Portable, Whole, 4>(step, mb, nb, k, a, b, c, ldc, init, s, then),
                }
            });
        }
    };
    if small {
        (0..blocks * row_parts).for_each(unit);
    } else {
        pool::run(blocks * row_parts, unit);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[allow(clippy::too_many_arguments)]
unsafe fn unit_bf16(
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    s: &mut Scratch,
    then: Then<'_>,
) {
    // SAFETY: AVX-512 with BF16 is enabled here; the rest is the caller's promise.
    unsafe { unit::<Avx512, NativePairs, 12>(NativePairs, m, n, k, a, b, c, ldc, init, s, then) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
#[allow(clippy::too_many_arguments)]
unsafe fn unit_avx512(
    step: Whole,
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    s: &mut Scratch,
    then: Then<'_>,
) {
    // SAFETY: AVX-512 is enabled here; the rest is the caller's promise.
    unsafe { unit::<Avx512, Whole, 12>(step, m, n, k, a, b, c, ldc, init, s, then) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn unit_avx2(
    step: Whole,
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    s: &mut Scratch,
    then: Then<'_>,
) {
    // SAFETY: AVX2 and FMA are enabled here; the rest is the caller's promise.
    unsafe { unit::<Avx2, Whole, 6>(step, m, n, k, a, b, c, ldc, init, s, then) }
}

/// One unit of work on one thread.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn unit<S: Simd, T: Step<S>, const MR: usize>(
    kind: T,
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    scratch: &mut Scratch,
    (epilogue, i_first, j_first): Then<'_>,
) {
    if kind.plain() && m <= few::most(b) {
        // SAFETY: the caller's promise.
        unsafe {
            few::unit::<S>(m, n, k, a, b, c, ldc, init);
            if let Some(epilogue) = epilogue {
                epilogue.rows(i_first, j_first, m, n, c, ldc);
            }
        }
        return;
    }
    let width = 2 * S::LANES;
    let panels = n.div_ceil(width);
    // With few rows, packing B costs more than it saves, if its rows can be read as they lie.
    let direct = kind.plain() && b.col == 1 && m <= 2 * MR;
    let row_major = a.col == 1;
    // Rows that are packed together: of a transposed A as many as fill whole cache lines.
    let together = if row_major { MR } else { COLUMNS };
    // The depth in steps.
    let depth = k.div_ceil(T::DEPTH);
    scratch.a.resize((16 * A_STRIDE).max((DEPTH + 16) * COLUMNS), 0.0);
    if !direct {
        let need = panels * width * DEPTH.min(depth.max(1));
        if scratch.b.len() < need {
            scratch.b.resize(need, 0.0);
        }
    }
    // SAFETY: indices stay inside the unit's shapes by construction of the loops.
    unsafe {
        let mut s0 = 0;
        loop {
            // Steps of this block, its first element of the depth, and its elements.
            let sc = DEPTH.min(depth - s0);
            let p0 = s0 * T::DEPTH;
            let kc = (sc * T::DEPTH).min(k - p0);
            if !direct {
                for j in 0..panels {
                    let nr = width.min(n - j * width);
                    let dst = scratch.b.as_mut_ptr().add(j * width * sc);
                    pack_b::<S, T>(kind, kc, nr, b.at(p0, j * width), b, dst);
                }
            }
            let start = match init {
                _ if s0 > 0 => Start::Old,
                Init::Zero => Start::Zero,
                Init::Accumulate => Start::Old,
                Init::Bias(bias) => Start::Bias(bias.as_ptr()),
            };
            let next_group = sc * MR + 16;
            let mut first = 0;
            while first < m {
                let rows = together.min(m - first);
                let packed = scratch.a.as_mut_ptr();
                if row_major {
                    pack_rows::<S, T>(kind, rows, kc, a.at(first, p0), a.row, packed);
                } else {
                    pack_columns::<S, T, MR>(kind, rows, kc, a.at(first, p0), a, packed, next_group);
                }
                // The lines that the next packing reads are asked for while this one is multiplied, and so is the next tile of C.
                let after = together.min(m - first - rows);
                let next = a.ptr.wrapping_add((first + rows) * a.row + p0 * a.col);
                let (lines, line, across, row) = match row_major {
                    true => (kc.div_ceil(16), 16, after, a.row),
                    false => (kc, a.col, after.div_ceil(16), 16),
                };
                let tiles = panels * rows.div_ceil(MR);
                let mut done = 0;
                for i0 in (first..first + rows).step_by(MR) {
                    let mr = MR.min(first + rows - i0);
                    for j in 0..panels {
                        let nr = width.min(n - j * width);
                        let (l0, l1) = (done * lines / tiles, (done + 1) * lines / tiles);
                        done += 1;
                        let (down, right) = if j + 1 < panels { (i0, j + 1) } else { (i0 + mr, 0) };
                        let ahead = Next {
                            c: c.wrapping_add(down * ldc + right * width),
                            ldc,
                            rows: MR.min(m - down),
                            a: next.wrapping_add(l0 * line),
                            row,
                            across,
                            line,
                            lines: l1 - l0,
                        };
                        let (bp, ldb) = if direct {
                            (b.at(p0, j * width), b.row)
                        } else {
                            (scratch.b.as_ptr().add(j * width * sc), width)
                        };
                        let ap = if row_major { packed } else { packed.add((i0 - first) / MR * next_group) };
                        let cp = c.add(i0 * ldc + j * width);
                        let start = match start {
                            Start::Bias(bias) => Start::Bias(bias.add(j * width)),
                            other => other,
                        };
                        tile::<S, T, MR>(mr, nr, !direct, sc, ap, row_major, bp, ldb, cp, ldc, start, ahead);
                    }
                    if s0 + sc >= depth
                        && let Some(epilogue) = epilogue
                    {
                        epilogue.rows(i_first + i0, j_first, mr, n, c.add(i0 * ldc), ldc);
                    }
                }
                first += rows;
            }
            s0 += sc;
            if s0 >= depth {
                return;
            }
        }
    }
}

/// Multiplies a packed panel of A with a panel of B, whatever the number of rows left.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<S: Simd, T: Step<S>, const MR: usize>(
    mr: usize,
    nr: usize,
    padded: bool,
    kc: usize,
    a: *const f32,
    row_major: bool,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    start: Start,
    ahead: Next,
) {
    macro_rules! rows {
        ($($r:literal)*) => {
            match mr {
                // SAFETY: the caller's promise for mr rows.
                $($r if $r <= MR => unsafe {
                    if row_major {
                        micro::<S, T, _, $r, A_STRIDE, 1>(nr, padded, kc, a, b, ldb, c, ldc, start, ahead)
                    } else {
                        micro::<S, T, _, $r, 1, MR>(nr, padded, kc, a, b, ldb, c, ldc, start, ahead)
                    }
                },)*
                _ => {}
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12)
}

#[cfg(test)]
mod tests;
