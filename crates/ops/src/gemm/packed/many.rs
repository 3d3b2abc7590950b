//! Products of many rows: the blocking of [`crate::gemm`], with panels of B that need no packing.

use super::product::{Way, finish, most_rows};
use super::{Prepared, elements};
use crate::array::SendPtr;
use crate::gemm::micro::{Next, Start};
#[cfg(target_arch = "x86_64")]
use crate::gemm::step::NativePairs;
use crate::gemm::step::{Step, Whole};
use crate::gemm::{A_STRIDE, DEPTH, Epilogue, Init, SCRATCH, pack_rows, tile};
use crate::pool;
#[cfg(target_arch = "x86_64")]
use crate::simd::Avx512;
use crate::simd::{Simd, kernel};

/// Products of many rows: blocks of columns small enough for the L2 cache at each depth, rows packed for the L1 cache.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn many<E: Epilogue>(
    m: usize,
    a: *const f32,
    lda: usize,
    w: &Prepared,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    epilogue: E,
) {
    let (threads, most, way) = (pool::threads(), most_rows(), Way::of(w));
    let panels = w.d_out.div_ceil(w.width);
    // Blocks of columns times ranges of rows, as many as keep the threads busy to the end.
    let widest = 512usize.div_ceil(w.width);
    let mut blocks = panels.div_ceil(widest);
    let row_parts = m.div_ceil(1024);
    if blocks * row_parts < 8 * threads {
        blocks = blocks.next_multiple_of(threads).min(panels);
    }
    let block = panels.div_ceil(blocks);
    let blocks = panels.div_ceil(block);
    let row_parts = if blocks < threads && m >= 96 { row_parts.max(threads) } else { row_parts };
    let part = m.div_ceil(row_parts).next_multiple_of(12);
    let row_parts = m.div_ceil(part);
    let (k, steps, elements) = (w.d_in, w.steps(), elements(w.precision));
    // Steps of B taken together.
    let deep = if way == Way::Widened { DEPTH / 2 } else { DEPTH };
    let (a, c) = (SendPtr(a.cast_mut()), SendPtr(c));
    let unit = move |i: usize| {
        let (a, c) = (a, c);
        let (bi, mi) = (i / row_parts, i % row_parts);
        let (i0, from) = (mi * part, bi * block);
        let (i1, to) = ((i0 + part).min(m), (from + block).min(panels));
        let (j0, j1) = (from * w.width, (to * w.width).min(w.d_out));
        SCRATCH.with(|s| {
            let s = &mut *s.borrow_mut();
            if s.a.len() < 16 * A_STRIDE {
                s.a.resize(16 * A_STRIDE, 0.0);
            }
            let mut s0 = 0;
            loop {
                let sc = deep.min(steps - s0);
                let p0 = s0 * elements;
                let kc = (sc * elements).min(k - p0);
                let (b, panel, depth) = if way == Way::Widened {
                    let need = (to - from) * kc * w.width;
                    if s.b.len() < need {
                        s.b.resize(need, 0.0);
                    }
                    // SAFETY: the panels exist, and there is room.
                    unsafe { widen(w, from, to, s0, kc, s.b.as_mut_ptr()) };
                    (s.b.as_ptr(), kc * w.width, kc)
                } else {
                    (w.data()[(from * steps + s0) * w.width..].as_ptr(), steps * w.width, sc)
                };
                let tiles = Tiles {
                    a: a.0,
                    lda,
                    columns: [j0, j1],
                    b,
                    panel,
                    width: w.width,
                    p0,
                    kc,
                    depth,
                    rounded: way == Way::Widened,
                    c: c.0,
                    ldc,
                    init: if s0 > 0 { Init::Accumulate } else { init },
                    packed: s.a.as_mut_ptr(),
                };
                for i in (i0..i1).step_by(most) {
                    let rows = [i, (i + most).min(i1), (i + 2 * most).min(i1)];
                    // SAFETY: units write disjoint parts of C; the caller's promise for the rest.
                    unsafe {
                        match way {
                            #[cfg(target_arch = "x86_64")]
                            Way::Native => tiles_native(tiles, rows),
                            _ => tiles_whole(tiles, rows),
                        }
                        if s0 + sc >= steps {
                            finish(i, rows[1] - i, j0, j1 - j0, c.0, ldc, epilogue);
                        }
                    }
                }
                s0 += sc;
                if s0 >= steps {
                    return;
                }
            }
        });
    };
    pool::run(blocks * row_parts, unit);
}

/// Some panels' pairs from step `s0` on, `kc` elements deep, as f32.
#[inline(always)]
unsafe fn widen_panels<S: Simd>(w: &Prepared, from: usize, to: usize, s0: usize, kc: usize, dst: *mut f32) {
    for j in from..to {
        let src = w.data()[(j * w.steps() + s0) * w.width..].as_ptr();
        for p in 0..kc {
            for c in (0..w.width).step_by(S::LANES.min(w.width)) {
                // SAFETY: the step exists, there is room for the panel, and widths are multiples of both or smaller than the lanes.
                unsafe {
                    let n = S::LANES.min(w.width);
                    let pair = S::load_n(src.add(p / 2 * w.width + c), n);
                    let x = if p % 2 == 0 { S::low_bf16(pair) } else { S::high_bf16(pair) };
                    S::store_n(dst.add(((j - from) * kc + p) * w.width + c), x, n);
                }
            }
        }
    }
}
kernel!(unsafe fn widen(w: &Prepared, from: usize, to: usize, s0: usize, kc: usize, dst: *mut f32) = widen_panels);

/// What the tiles of one unit share at one depth.
#[derive(Clone, Copy)]
struct Tiles<'a> {
    a: *const f32,
    lda: usize,
    columns: [usize; 2],
    /// The first panel at this depth, the distance of panels, and their width.
    b: *const f32,
    panel: usize,
    width: usize,
    /// The first element of the depth, the number of elements, and that of steps.
    p0: usize,
    kc: usize,
    depth: usize,
    /// Whether A is rounded to bf16 where a step is an f32.
    rounded: bool,
    c: *mut f32,
    ldc: usize,
    init: Init<'a>,
    /// Room for rows of A.
    packed: *mut f32,
}

/// Rows `from..to` (those up to `next` follow) times a range of columns.
#[inline(always)]
unsafe fn tiles<S: Simd, T: Step<S>>(kind: T, u: Tiles<'_>, [from, to, next]: [usize; 3]) {
    let step = (2 * S::LANES).min(u.width);
    let padded = step == 2 * S::LANES;
    let (Tiles { lda, columns: [j0, j1], width, ldc, packed, .. }, rows) = (u, to - from);
    // SAFETY: the caller's promise: rows and columns exist, rows are not more than `tile_rows`.
    unsafe {
        pack_rows::<S, T>(kind, rows, u.kc, u.a.add(from * lda + u.p0), lda, packed);
        // The lines that the next packing reads are asked for while these rows are multiplied.
        let following = u.a.wrapping_add(to * lda + u.p0);
        let (lines, all) = (u.kc.div_ceil(16), (j1 - j0).div_ceil(step));
        for (i, column) in (j0..j1).step_by(step).enumerate() {
            let (l0, l1) = (i * lines / all, (i + 1) * lines / all);
            let (down, right) = if column + step < j1 { (from, column + step) } else { (to, j0) };
            let ahead = Next {
                c: u.c.wrapping_add(down * ldc + right),
                ldc,
                rows: if down == from { rows } else { next - to },
                a: following.wrapping_add(l0 * 16),
                row: lda,
                across: next - to,
                line: 16,
                lines: l1 - l0,
            };
            let (j, part) = ((column - j0) / width, (column - j0) % width);
            let b = u.b.add(j * u.panel + part);
            let nr = step.min(j1 - column);
            let start = match u.init {
                Init::Zero => Start::Zero,
                Init::Accumulate => Start::Old,
                Init::Bias(bias) => Start::Bias(bias.as_ptr().add(column)),
            };
            let cp = u.c.add(from * ldc + column);
            if S::LANES == 16 {
                tile::<S, T, 12>(rows, nr, padded, u.depth, packed, true, b, width, cp, ldc, start, ahead);
            } else if S::LANES == 8 {
                tile::<S, T, 6>(rows, nr, padded, u.depth, packed, true, b, width, cp, ldc, start, ahead);
            } else {
                tile::<S, T, 4>(rows, nr, padded, u.depth, packed, true, b, width, cp, ldc, start, ahead);
            }
        }
    }
}

#[inline(always)]
unsafe fn whole_tiles<S: Simd>(u: Tiles<'_>, rows: [usize; 3]) {
    // SAFETY: the caller's promise.
    unsafe { tiles::<S, Whole>(Whole { rounded: u.rounded }, u, rows) }
}
kernel!(unsafe fn tiles_whole(u: Tiles<'_>, rows: [usize; 3]) = whole_tiles);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tiles_native(u: Tiles<'_>, rows: [usize; 3]) {
    // SAFETY: AVX-512 with BF16 is enabled here; the rest is the caller's promise.
    unsafe { tiles::<Avx512, NativePairs>(NativePairs, u, rows) }
}
