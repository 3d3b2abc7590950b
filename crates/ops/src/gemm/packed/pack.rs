//! From a matrix as it lies in memory to panels.

use super::Floats;
use crate::linear::Layout;
use crate::simd::{Simd, kernel};

/// Elements of the depth that are packed together.
const BLOCK: usize = 16;
/// Columns of the widest panel.
const WIDEST: usize = 32;

/// A matrix `[k, n]` in memory: element `(p, j)` is number `p * row + j * col`.
#[derive(Clone, Copy)]
pub(super) struct Source {
    data: *const u8,
    half: bool,
    row: usize,
    col: usize,
}

// SAFETY: a read-only view; whoever makes one keeps the numbers alive while it is used.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    pub fn new(values: Floats<'_>, layout: Layout, d_in: usize, d_out: usize) -> Self {
        let (data, half) = match values {
            Floats::F32(x) => (x.as_ptr().cast(), false),
            Floats::Bf16(x) => (x.as_ptr().cast(), true),
        };
        let (row, col) = match layout {
            Layout::InOut => (d_out, 1),
            Layout::OutIn => (1, d_in),
        };
        Source { data, half, row, col }
    }

    /// `n` consecutive numbers from number `at` on.
    #[inline(always)]
    unsafe fn read(self, at: usize, n: usize, to: *mut f32) {
        // SAFETY: the caller's promise that the numbers exist, and that `to` has room.
        unsafe {
            if self.half {
                let from = self.data.cast::<u16>().add(at);
                for i in 0..n {
                    *to.add(i) = f32::from_bits(u32::from(*from.add(i)) << 16);
                }
            } else {
                std::ptr::copy_nonoverlapping(self.data.cast::<f32>().add(at), to, n);
            }
        }
    }
}

/// Copies the block of `d` depths from `p` on and `nr` columns from `j` on into `to`, rows of `width`; the rest of it becomes 0.
#[inline(always)]
unsafe fn load_block<S: Simd>(src: Source, p: usize, d: usize, j: usize, nr: usize, width: usize, to: &mut [f32]) {
    let (l, whole) = (S::LANES, d == BLOCK && nr == width);
    if !whole {
        to.fill(0.0);
    }
    let to = to.as_mut_ptr();
    // SAFETY: the caller's promise that the elements exist; `to` has room for BLOCK rows.
    unsafe {
        if src.col == 1 {
            for i in 0..d {
                src.read((p + i) * src.row + j, nr, to.add(i * width));
            }
            return;
        }
        let mut columns = [0f32; WIDEST * BLOCK];
        let (from, stride) = if src.half || !whole {
            for c in 0..nr {
                src.read((j + c) * src.col + p, d, columns.as_mut_ptr().add(c * BLOCK));
            }
            (columns.as_ptr(), BLOCK)
        } else {
            (src.data.cast::<f32>().add(j * src.col + p), src.col)
        };
        for c in (0..width).step_by(l) {
            for i in (0..BLOCK).step_by(l) {
                S::transpose(from.add(c * stride + i), stride, to.add(i * width + c), width);
            }
        }
    }
}

/// Packs panels `from..to` of a matrix `[k, n]`, as pairs of bf16 if said so; returns whether all elements are finite, and whether
/// all were stored as they are.
#[inline(always)]
unsafe fn pack_panels<S: Simd>(
    src: Source,
    k: usize,
    n: usize,
    from: usize,
    to: usize,
    pairs: bool,
    dst: *mut f32,
) -> [bool; 2] {
    let (l, width) = (S::LANES, 2 * S::LANES);
    let steps = if pairs { k.div_ceil(2) } else { k };
    let (blocks, panels) = (k.div_ceil(BLOCK), to - from);
    let mut block = [0f32; WIDEST * BLOCK];
    // SAFETY: the caller's promise: the elements exist, and `dst` has room for all panels.
    unsafe {
        let zero = S::splat(0.0);
        // Times 0 and added up: anything that is not finite leaves NaN. And the largest change by rounding.
        let (mut check, mut change) = (zero, zero);
        for i in 0..blocks * panels {
            // In the order in which the source lies in memory.
            let (b, j) = if src.col == 1 { (i / panels, from + i % panels) } else { (i % blocks, from + i / blocks) };
            let p = b * BLOCK;
            let d = BLOCK.min(k - p);
            load_block::<S>(src, p, d, j * width, width.min(n - j * width), width, &mut block[..width * BLOCK]);
            let x = block.as_mut_ptr();
            let lanes = (0..d * width).step_by(l);
            if !pairs {
                let at = dst.add((j * steps + p) * width);
                for i in lanes {
                    let v = S::load(x.add(i));
                    check = S::fma(v, zero, check);
                    S::store(at.add(i), v);
                }
                continue;
            }
            for i in lanes {
                let v = S::load(x.add(i));
                let r = S::round_bf16(v);
                check = S::fma(v, zero, check);
                change = S::max(change, S::max(S::sub(v, r), S::sub(r, v)));
                S::store(x.add(i), r);
            }
            let at = dst.add((j * steps + p / 2) * width);
            for s in 0..d.div_ceil(2) {
                for c in 0..width {
                    let (first, second) = (*x.add(2 * s * width + c), *x.add((2 * s + 1) * width + c));
                    *at.add(s * width + c) = f32::from_bits(first.to_bits() >> 16 | second.to_bits() & 0xffff_0000);
                }
            }
        }
        [S::reduce_add(check) == 0.0, S::reduce_max(change) == 0.0]
    }
}
kernel!(pub(super) unsafe fn panels(src: Source, k: usize, n: usize, from: usize, to: usize, pairs: bool,
    dst: *mut f32) -> [bool; 2] = pack_panels);
