//! Matrix products in f32 whose order of summation is fixed: every element of the result is one chain of fused multiply-adds
//! over the depth, from 0 up, started from 0, the bias or the element's old value.
//!
//! So a row's result depends neither on the number of threads, nor on the rows that share the call, nor on the blocking. That
//! is what batch-invariant serving, cached decoding and exact resuming stand on.
//!
//! Structure (Goto and van de Geijn 2008): a block of B, at most [`DEPTH`] deep and small enough for the L2 cache, is packed
//! into panels two vectors wide; panels of a few rows of A are packed for the L1 cache; a microkernel multiplies the two with all
//! accumulators in registers, while the rows of the next A panel are prefetched.

#![allow(unsafe_code)]

use crate::array::SendPtr;
use crate::pool;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Level, Portable, Simd, level};
use std::cell::RefCell;

/// Depth of a block.
const DEPTH: usize = 384;
/// Distance of the rows of a packed row-major A panel: not a multiple of the L1 cache's 4 KiB, so that rows do not evict each other.
const A_STRIDE: usize = DEPTH + 16;

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
pub(crate) unsafe fn gemm(m: usize, n: usize, k: usize, a: Mat, b: Mat, c: *mut f32, ldc: usize, init: Init<'_>) {
    if m == 0 || n == 0 {
        return;
    }
    let level = level();
    let (width, widest) = match level {
        Level::Avx512 => (32, 512),
        _ => (16, 256),
    };
    // Units of work: blocks of columns times ranges of rows, enough of them to keep the threads busy, but each large enough
    // to pay for packing its block of B.
    let threads = pool::threads();
    let panels = n.div_ceil(width);
    let mut blocks = n.div_ceil(widest);
    let row_parts = m.div_ceil(1024).max(1);
    if blocks * row_parts < 2 * threads {
        blocks = blocks.next_multiple_of(threads).min(panels);
    }
    let block = panels.div_ceil(blocks) * width;
    let blocks = n.div_ceil(block);
    let row_parts = if blocks < threads && m >= 96 { row_parts.max(threads) } else { row_parts };
    let part = m.div_ceil(row_parts).next_multiple_of(12);
    let row_parts = m.div_ceil(part);
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
            SCRATCH.with(|s| {
                let s = &mut *s.borrow_mut();
                match level {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => unit_avx512(mb, nb, k, a, b, c, ldc, init, s),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => unit_avx2(mb, nb, k, a, b, c, ldc, init, s),
                    _ => unit::<Portable, 4>(mb, nb, k, a, b, c, ldc, init, s),
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
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
#[allow(clippy::too_many_arguments)]
unsafe fn unit_avx512(
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    s: &mut Scratch,
) {
    // SAFETY: AVX-512 is enabled here; the rest is the caller's promise.
    unsafe { unit::<Avx512, 12>(m, n, k, a, b, c, ldc, init, s) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn unit_avx2(
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    s: &mut Scratch,
) {
    // SAFETY: AVX2 and FMA are enabled here; the rest is the caller's promise.
    unsafe { unit::<Avx2, 6>(m, n, k, a, b, c, ldc, init, s) }
}

/// One unit of work on one thread.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn unit<S: Simd, const MR: usize>(
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: Mat,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    scratch: &mut Scratch,
) {
    let width = 2 * S::LANES;
    let panels = n.div_ceil(width);
    // With few rows, packing B costs more than it saves, if its rows can be read as they lie.
    let direct = b.col == 1 && m <= 2 * MR;
    scratch.a.resize(16 * A_STRIDE, 0.0);
    if !direct {
        let need = panels * width * DEPTH.min(k.max(1));
        if scratch.b.len() < need {
            scratch.b.resize(need, 0.0);
        }
    }
    let row_major = a.col == 1;
    // SAFETY (whole block): indices stay inside the unit's shapes by construction of the loops.
    unsafe {
        let mut p0 = 0;
        loop {
            let kc = DEPTH.min(k - p0);
            if !direct {
                for j in 0..panels {
                    let nr = width.min(n - j * width);
                    let dst = scratch.b.as_mut_ptr().add(j * width * kc);
                    pack_b::<S>(kc, nr, b.at(p0, j * width), b, dst);
                }
            }
            let start = match init {
                _ if p0 > 0 => Start::Old,
                Init::Zero => Start::Zero,
                Init::Accumulate => Start::Old,
                Init::Bias(bias) => Start::Bias(bias.as_ptr()),
            };
            let mut i0 = 0;
            while i0 < m {
                let mr = MR.min(m - i0);
                pack_a(mr, kc, a.at(i0, p0), a, row_major, scratch.a.as_mut_ptr());
                // The next panel's rows are asked for while this one is multiplied.
                let next_rows = if row_major { MR.min(m - i0 - mr) } else { 0 };
                let next = a.ptr.wrapping_add((i0 + mr) * a.row + p0);
                for j in 0..panels {
                    let nr = width.min(n - j * width);
                    if next_rows > 0 {
                        let lines = kc.div_ceil(16);
                        for l in (j * lines / panels)..((j + 1) * lines / panels) {
                            for r in 0..next_rows {
                                S::prefetch(next.wrapping_add(r * a.row + l * 16));
                            }
                        }
                    }
                    let (bp, ldb) = if direct {
                        (b.at(p0, j * width), b.row)
                    } else {
                        (scratch.b.as_ptr().add(j * width * kc), width)
                    };
                    let cp = c.add(i0 * ldc + j * width);
                    let start = match start {
                        Start::Bias(bias) => Start::Bias(bias.add(j * width)),
                        other => other,
                    };
                    tile::<S, MR>(mr, nr, kc, scratch.a.as_ptr(), row_major, bp, ldb, cp, ldc, start);
                }
                i0 += mr;
            }
            p0 += kc;
            if p0 >= k {
                return;
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Start {
    Zero,
    Old,
    Bias(*const f32),
}

/// Packs `kc` rows of a panel of B, `nr` columns wide, padded with zeros to two vectors.
#[inline(always)]
unsafe fn pack_b<S: Simd>(kc: usize, nr: usize, src: *const f32, b: Mat, dst: *mut f32) {
    let width = 2 * S::LANES;
    // SAFETY: the panel's elements exist in B, and dst has room for kc * width floats.
    unsafe {
        if b.col == 1 && nr == width {
            for p in 0..kc {
                let row = src.add(p * b.row);
                S::store(dst.add(p * width), S::load(row));
                S::store(dst.add(p * width + S::LANES), S::load(row.add(S::LANES)));
            }
        } else if b.row == 1 && nr == width {
            let whole = kc / S::LANES * S::LANES;
            for p in (0..whole).step_by(S::LANES) {
                for half in 0..2 {
                    let rows = src.add(half * S::LANES * b.col + p);
                    S::transpose(rows, b.col, dst.add(p * width + half * S::LANES), width);
                }
            }
            for p in whole..kc {
                for j in 0..width {
                    *dst.add(p * width + j) = *src.add(j * b.col + p);
                }
            }
        } else {
            for p in 0..kc {
                for j in 0..width {
                    *dst.add(p * width + j) = if j < nr { *src.add(p * b.row + j * b.col) } else { 0.0 };
                }
            }
        }
    }
}

/// Packs a panel of A: rows one after the other when A is row-major, else columns of `mr`.
#[inline(always)]
unsafe fn pack_a(mr: usize, kc: usize, src: *const f32, a: Mat, row_major: bool, dst: *mut f32) {
    // SAFETY: the panel's elements exist in A, and dst has room for 16 rows of A_STRIDE floats.
    unsafe {
        if row_major {
            for i in 0..mr {
                std::ptr::copy_nonoverlapping(src.add(i * a.row), dst.add(i * A_STRIDE), kc);
            }
        } else {
            for p in 0..kc {
                for i in 0..mr {
                    *dst.add(p * mr + i) = *src.add(i * a.row + p * a.col);
                }
            }
        }
    }
}

/// Multiplies a packed panel of A with a panel of B, whatever the number of rows left.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<S: Simd, const MR: usize>(
    mr: usize,
    nr: usize,
    kc: usize,
    a: *const f32,
    row_major: bool,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    start: Start,
) {
    macro_rules! rows {
        ($($r:literal)*) => {
            match mr {
                // SAFETY: the caller's promise for mr rows.
                $($r if $r <= MR => unsafe {
                    if row_major {
                        micro::<S, $r, A_STRIDE, 1>(nr, kc, a, b, ldb, c, ldc, start)
                    } else {
                        micro::<S, $r, 1, $r>(nr, kc, a, b, ldb, c, ldc, start)
                    }
                },)*
                _ => {}
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// The innermost product: `R` rows by two vectors, the accumulators in registers.
///
/// Element `(i, p)` of A is at `a + i * ARS + p * AKS`; row `p` of B at `b + p * ldb`.
///
/// # Safety
/// All elements exist; two whole vectors of each row of B are readable unless it is narrower (`nr`), then `nr` floats.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn micro<S: Simd, const R: usize, const ARS: usize, const AKS: usize>(
    nr: usize,
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
    // SAFETY (whole block): the caller's promise.
    unsafe {
        let mut acc = [[S::splat(0.0); 2]; R];
        match start {
            Start::Zero => {}
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
        if nr == 2 * l || ldb == 2 * l {
            for p in 0..kc {
                let bp = b.add(p * ldb);
                let (b0, b1) = (S::load(bp), S::load(bp.add(l)));
                let ap = a.add(p * AKS);
                for (i, row) in acc.iter_mut().enumerate() {
                    let x = S::splat(*ap.add(i * ARS));
                    row[0] = S::fma(x, b0, row[0]);
                    row[1] = S::fma(x, b1, row[1]);
                }
            }
        } else {
            for p in 0..kc {
                let bp = b.add(p * ldb);
                let (b0, b1) = (S::load_n(bp, n0), S::load_n(bp.wrapping_add(l), n1));
                let ap = a.add(p * AKS);
                for (i, row) in acc.iter_mut().enumerate() {
                    let x = S::splat(*ap.add(i * ARS));
                    row[0] = S::fma(x, b0, row[0]);
                    row[1] = S::fma(x, b1, row[1]);
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

/// The product of small matrices inside one kernel, on the calling thread, at level `S`: C `[m, n]` from A (element `(i, p)` at
/// `a + i * ars + p * aks`, packed here) and B (rows of `ldb`), with the same chains as [`gemm`].
///
/// # Safety
/// As [`gemm`]; runs where level `S` is enabled. `pack` has room for `12 * k` floats.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn small<S: Simd>(
    m: usize,
    n: usize,
    k: usize,
    a: *const f32,
    ars: usize,
    aks: usize,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
    pack: *mut f32,
) {
    let most = if S::LANES == 16 { 12 } else { 6 };
    let width = 2 * S::LANES;
    let start = if accumulate { Start::Old } else { Start::Zero };
    let mut i0 = 0;
    // SAFETY (whole block): the caller's promise.
    unsafe {
        while i0 < m {
            let mr = most.min(m - i0);
            let src = a.add(i0 * ars);
            for p in 0..k {
                for i in 0..mr {
                    *pack.add(p * mr + i) = *src.add(i * ars + p * aks);
                }
            }
            let mut j = 0;
            while j < n {
                let nr = width.min(n - j);
                macro_rules! rows {
                    ($($r:literal)*) => {
                        match mr {
                            $($r => micro::<S, $r, 1, $r>(
                                nr, k, pack, b.add(j), ldb, c.add(i0 * ldc + j), ldc, start),)*
                            _ => {}
                        }
                    };
                }
                if S::LANES == 16 {
                    rows!(1 2 3 4 5 6 7 8 9 10 11 12)
                } else {
                    rows!(1 2 3 4 5 6)
                }
                j += nr;
            }
            i0 += mr;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::with_level;
    use proptest::prelude::*;

    fn data(n: usize, seed: u64) -> Vec<f32> {
        (0..n as u64)
            .map(|i| (crate::rng::mix64(seed.wrapping_mul(77).wrapping_add(i)) >> 40) as f32 / 8_388_608.0 - 1.0)
            .collect()
    }

    fn product(m: usize, n: usize, k: usize, ta: bool, tb: bool, a: &[f32], b: &[f32], init: Init<'_>, c: &mut [f32]) {
        let view = |x: &[f32], rows: usize, cols: usize, t: bool| {
            if t { Mat::rows(x.as_ptr(), rows).t() } else { Mat::rows(x.as_ptr(), cols) }
        };
        // SAFETY: the slices have the sizes that the shapes say.
        unsafe { gemm(m, n, k, view(a, m, k, ta), view(b, k, n, tb), c.as_mut_ptr(), n, init) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Every level, layout and start against f64; and each row alone, with any number of threads, has the same bits.
        #[test]
        fn right_and_row_invariant(
            m in 1usize..200, n in 1usize..129, k in 0usize..900,
            ta: bool, tb: bool, start in 0..3, seed: u64,
        ) {
            let (a, b, old, bias) = (data(m * k, seed), data(k * n, seed ^ 1), data(m * n, seed ^ 2), data(n, seed ^ 3));
            let init = match start { 0 => Init::Zero, 1 => Init::Accumulate, _ => Init::Bias(&bias) };
            for level in Level::available() {
                with_level(level, || {
                    let mut c = old.clone();
                    product(m, n, k, ta, tb, &a, &b, init, &mut c);
                    let mut one_thread = old.clone();
                    pool::with_threads(1, || product(m, n, k, ta, tb, &a, &b, init, &mut one_thread));
                    assert_eq!(c, one_thread);
                    for i in [0, m / 2, m - 1] {
                        let row: Vec<f32> = (0..k).map(|p| if ta { a[p * m + i] } else { a[i * k + p] }).collect();
                        let mut alone = old[i * n..(i + 1) * n].to_vec();
                        product(1, n, k, false, tb, &row, &b, init, &mut alone);
                        assert_eq!(alone, c[i * n..(i + 1) * n], "row {i} of {m}x{n}x{k} at {level:?}");
                        for j in [0, n / 2, n - 1] {
                            let mut exact = match start { 0 => 0.0, 1 => old[i * n + j] as f64, _ => bias[j] as f64 };
                            let mut size = exact.abs();
                            for p in 0..k {
                                let y = if tb { b[j * k + p] } else { b[p * n + j] };
                                exact += row[p] as f64 * y as f64;
                                size += (row[p] as f64 * y as f64).abs();
                            }
                            // A chain of k additions errs by at most k half-units of its running size; measured: a tenth of this.
                            let tolerance = 6e-8 * size * (k as f64).sqrt().max(1.0) + 1e-7;
                            assert!((c[i * n + j] as f64 - exact).abs() <= tolerance, "{level:?} {m}x{n}x{k}");
                        }
                    }
                });
            }
        }
    }

    #[test]
    fn deep_products_are_row_invariant() {
        let (m, n, k) = (41, 70, 3072);
        let (a, b) = (data(m * k, 5), data(k * n, 6));
        let mut all = vec![0.0; m * n];
        product(m, n, k, false, true, &a, &b, Init::Zero, &mut all);
        for rows in [1, 2, 7, 12, 13, 40] {
            let mut some = vec![0.0; rows * n];
            product(rows, n, k, false, true, &a, &b, Init::Zero, &mut some);
            assert_eq!(some, all[..rows * n], "{rows} rows");
        }
    }
}
