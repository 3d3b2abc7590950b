//! What follows a product, row by row.

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Level, Portable, Simd, level};

/// What happens to a row of the result, segment by segment, as soon as its chains are complete and while it is still in cache.
pub(crate) trait Epilogue: Copy + Send + Sync {
    /// Whether nothing happens.
    const NONE: bool = false;

    /// `c` points at the `n` finished elements of row `i` from column `j` on.
    ///
    /// # Safety
    /// The elements exist; level `S` is enabled.
    unsafe fn row<S: Simd>(self, i: usize, j: usize, n: usize, c: *mut f32);
}

/// Nothing more to do.
impl Epilogue for () {
    const NONE: bool = true;

    #[inline(always)]
    unsafe fn row<S: Simd>(self, _: usize, _: usize, _: usize, _: *mut f32) {}
}

/// An epilogue behind a pointer, so that the products are compiled once, whatever follows them.
pub(super) trait Rows: Sync {
    /// Epilogue of `count` rows from `i` on, `ldc` apart.
    ///
    /// # Safety
    /// As [`Epilogue::row`] for each row.
    unsafe fn rows(&self, i: usize, j: usize, count: usize, n: usize, c: *mut f32, ldc: usize);
}

impl<E: Epilogue> Rows for E {
    unsafe fn rows(&self, i: usize, j: usize, count: usize, n: usize, c: *mut f32, ldc: usize) {
        // SAFETY: the caller's promise; `level` returns only levels that the machine has.
        unsafe {
            match level() {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Bf16 => rows_avx512(*self, i, j, count, n, c, ldc),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => rows_avx2(*self, i, j, count, n, c, ldc),
                _ => rows::<Portable, E>(*self, i, j, count, n, c, ldc),
            }
        }
    }
}

#[inline(always)]
unsafe fn rows<S: Simd, E: Epilogue>(e: E, i: usize, j: usize, count: usize, n: usize, c: *mut f32, ldc: usize) {
    for r in 0..count {
        // SAFETY: the caller's promise.
        unsafe { e.row::<S>(i + r, j, n, c.add(r * ldc)) };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn rows_avx512<E: Epilogue>(e: E, i: usize, j: usize, count: usize, n: usize, c: *mut f32, ldc: usize) {
    // SAFETY: AVX-512 is enabled here; the rest is the caller's promise.
    unsafe { rows::<Avx512, E>(e, i, j, count, n, c, ldc) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_avx2<E: Epilogue>(e: E, i: usize, j: usize, count: usize, n: usize, c: *mut f32, ldc: usize) {
    // SAFETY: AVX2 and FMA are enabled here; the rest is the caller's promise.
    unsafe { rows::<Avx2, E>(e, i, j, count, n, c, ldc) }
}

/// What a unit does to its finished rows, and the unit's first row and column in C.
pub(super) type Then<'a> = (Option<&'a dyn Rows>, usize, usize);
