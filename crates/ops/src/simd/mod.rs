//! One small vector layer under all kernels: a kernel is written once, generic over [`Simd`], and compiled for each level.

#![allow(unsafe_code)]

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod math;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, dot_bf16, pairs_across_bf16, pairs_along_bf16};
pub(crate) use portable::Portable;

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, on any processor.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// AVX-512 with the products of bf16 pairs (AVX512_BF16). In f32 it is the same as [`Level::Avx512`], bit for bit.
    Bf16,
}

impl Level {
    /// The name, as `GENUS_SIMD` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Bf16 => "bf16",
        }
    }

    /// The levels that this machine can run, lowest first.
    pub fn available() -> Vec<Level> {
        #[allow(unused_mut)]
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Level::Avx2);
                if ["avx512f", "avx512bw", "avx512dq", "avx512vl"].iter().all(|f| match *f {
                    "avx512f" => is_x86_feature_detected!("avx512f"),
                    "avx512bw" => is_x86_feature_detected!("avx512bw"),
                    "avx512dq" => is_x86_feature_detected!("avx512dq"),
                    _ => is_x86_feature_detected!("avx512vl"),
                }) {
                    levels.push(Level::Avx512);
                    if is_x86_feature_detected!("avx512bf16") {
                        levels.push(Level::Bf16);
                    }
                }
            }
        }
        levels
    }
}

/// The level in force: the machine's highest, or a lower one named by the environment variable `GENUS_SIMD`
/// (`portable`, `avx2`, `avx512`, `bf16`; a level that the machine lacks falls back to its highest).
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    let base = *LEVEL.get_or_init(|| {
        let available = Level::available();
        let highest = available[available.len() - 1];
        let wanted = std::env::var("GENUS_SIMD").unwrap_or_default();
        available.into_iter().find(|l| l.name() == wanted.trim()).unwrap_or(highest)
    });
    forced().unwrap_or(base)
}

thread_local! {
    static FORCED: std::cell::Cell<Option<Level>> = const { std::cell::Cell::new(None) };
}

/// Runs `f` with the operations that it starts on this thread at another level: for tests of every level in one process.
///
/// A level that the machine lacks is ignored.
pub fn with_level<R>(level: Level, f: impl FnOnce() -> R) -> R {
    if Level::available().contains(&level) { with_forced(level, f) } else { f() }
}

/// The level forced on this thread.
pub(crate) fn forced() -> Option<Level> {
    FORCED.with(|f| f.get())
}

/// As [`with_level`], for a level known to be available.
pub(crate) fn with_forced<R>(level: Level, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Level>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.with(|l| l.set(self.0));
        }
    }
    let _restore = Restore(FORCED.with(|l| l.replace(Some(level))));
    f()
}

/// Vectors of f32 and the operations that the kernels need.
///
/// # Safety
/// Every method may only be called where the implementing level's instructions are available; pointers are valid for the
/// lanes that are read or written (`n` of them for the partial forms).
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// A vector of [`Simd::LANES`] f32.
    type V: Copy;
    /// Number of lanes.
    const LANES: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Loads `n <= LANES` lanes, the others are 0.
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V;
    /// Stores the first `n <= LANES` lanes.
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the level has FMA.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// Rounds to the nearest integer.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^n` for integral `n` in [-126, 127].
    unsafe fn pow2(n: Self::V) -> Self::V;
    /// `if a < b { x } else { y }` per lane.
    unsafe fn select_lt(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Sum of the lanes, in an order fixed per level.
    unsafe fn reduce_add(a: Self::V) -> f32;
    unsafe fn reduce_max(a: Self::V) -> f32;
    /// The nearest value that bf16 holds, ties to even; NaN stays NaN.
    unsafe fn round_bf16(a: Self::V) -> Self::V;
    /// The bf16 in each lane's low half, as f32.
    unsafe fn low_bf16(a: Self::V) -> Self::V;
    /// The bf16 in each lane's high half, as f32.
    unsafe fn high_bf16(a: Self::V) -> Self::V;
    /// Asks for a cache line.
    unsafe fn prefetch(p: *const f32);
    /// Asks for a cache line, into the L2 cache.
    unsafe fn prefetch_l2(p: *const f32);
    /// Writes the transpose of the `LANES` rows `src + i * src_stride` (each of `LANES` floats) to `dst + j * dst_stride`.
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                // SAFETY: the caller's promise: LANES x LANES floats on both sides.
                unsafe { *dst.add(j * dst_stride + i) = *src.add(i * src_stride + j) };
            }
        }
    }
}

/// Defines a function that runs a kernel, generic over [`Simd`], at the level in force.
///
/// `kernel!(pub fn name(args...) -> ret = generic)` where `generic` is `unsafe fn generic<S: Simd>(args...)`, `#[inline(always)]`.
#[allow(unused_macros)]
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $generic:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: AVX2 and FMA are enabled here; the rest is the caller's promise.
                    unsafe { $generic::<$crate::simd::Avx2>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: AVX-512 is enabled here; the rest is the caller's promise.
                    unsafe { $generic::<$crate::simd::Avx512>($($arg),*) }
                }
                match $crate::simd::level() {
                    // SAFETY: `level` returns only levels that the machine has.
                    $crate::simd::Level::Avx512 | $crate::simd::Level::Bf16 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Portable => {}
                }
            }
            // SAFETY: the portable level needs no instructions of its own; the rest is the caller's promise.
            unsafe { $generic::<$crate::simd::Portable>($($arg),*) }
        }
    };
}
#[allow(unused_imports)]
pub(crate) use kernel;
