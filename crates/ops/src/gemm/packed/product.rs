//! Products with prepared weights.

use super::Prepared;
use super::few::few;
use super::many::many;
use crate::Precision;
use crate::gemm::{Epilogue, Init, Rows};
use crate::simd::{Level, level};

/// The most rows for which the weights are streamed once, past sums in registers.
const FEW: usize = 32;

/// Rows of a tile: as many as have two accumulators each in registers.
pub(super) const fn tile_rows(lanes: usize) -> usize {
    match lanes {
        16 => 12,
        8 => 6,
        _ => 4,
    }
}

/// How a product is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// f32.
    Whole,
    /// Pairs of bf16, by the processor's own instruction.
    Native,
    /// Pairs of bf16, each half widened to f32.
    Widened,
}

impl Way {
    pub fn of(w: &Prepared) -> Self {
        match (w.precision, level()) {
            (Precision::F32, _) => Way::Whole,
            (Precision::Bf16, Level::Bf16) => Way::Native,
            (Precision::Bf16, _) => Way::Widened,
        }
    }
}

/// [`tile_rows`] of the level in force.
pub(super) fn most_rows() -> usize {
    match level() {
        Level::Portable => tile_rows(4),
        Level::Avx2 => tile_rows(8),
        _ => tile_rows(16),
    }
}

/// C (`[m, d_out]`, rows of `ldc`) from A (`[m, d_in]`, rows of `lda`) times a prepared weight, with something done to each row
/// segment of C when it is complete.
///
/// # Safety
/// A and C cover the stated shapes and do not overlap; and what the epilogue needs.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn multiply<E: Epilogue>(
    m: usize,
    a: *const f32,
    lda: usize,
    w: &Prepared,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    epilogue: E,
) {
    if m == 0 || w.d_out == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        if m <= FEW {
            few(m, a, lda, w, c, ldc, init, epilogue);
        } else {
            many(m, a, lda, w, c, ldc, init, epilogue);
        }
    }
}

/// The epilogue over `m` rows from `i` on and `n` columns from `j` on, at the level in force.
pub(super) unsafe fn finish<E: Epilogue>(i: usize, m: usize, j: usize, n: usize, c: *mut f32, ldc: usize, epilogue: E) {
    if !E::NONE {
        // SAFETY: the caller's promise: the rows and columns exist.
        unsafe { epilogue.rows(i, j, m, n, c.add(i * ldc + j), ldc) };
    }
}
