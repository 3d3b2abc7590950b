//! What lies in one step of a packed operand: 32 bits a lane, which are one f32, or two consecutive elements of the depth in
//! bf16. So one blocking, one packing and one microkernel serve both.

use crate::simd::Simd;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx512, dot_bf16, pairs_across_bf16, pairs_along_bf16};

/// The meaning of the 32 bits, at vector level `S`.
///
/// # Safety
/// As for [`Simd`]: methods may only be called where the level's instructions (and those of the step) are available.
pub(crate) trait Step<S: Simd>: Copy + Send + Sync + 'static {
    /// Elements of the depth in a step: 1 or 2.
    const DEPTH: usize;

    /// Whether packing copies f32 as they are.
    fn plain(self) -> bool;

    /// A step a lane, from the lanes of the step's first element of the depth and of its second (ignored if there is one).
    unsafe fn across(self, first: S::V, second: S::V) -> S::V;

    /// As many steps as lanes, from `DEPTH` vectors of consecutive elements of the depth (the second ignored if there is one).
    unsafe fn along(self, first: S::V, second: S::V) -> S::V;

    /// One step.
    fn single(self, first: f32, second: f32) -> f32;

    /// `c` plus the products of the steps of `a` and `b`, in the order of the depth.
    unsafe fn dot(a: S::V, b: S::V, c: S::V) -> S::V;
}

/// The f32 nearest to `x` that bf16 holds, ties to even; NaN stays NaN.
pub(crate) fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return f32::from_bits((bits | 0x0040_0000) & 0xffff_0000);
    }
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// One f32 a step, rounded to bf16 in packing if said so: bf16 on machines without its instructions.
#[derive(Clone, Copy)]
pub(crate) struct Whole {
    pub rounded: bool,
}

impl<S: Simd> Step<S> for Whole {
    const DEPTH: usize = 1;

    #[inline(always)]
    fn plain(self) -> bool {
        !self.rounded
    }
    #[inline(always)]
    unsafe fn across(self, first: S::V, _: S::V) -> S::V {
        // SAFETY: the caller's promise.
        if self.rounded { unsafe { S::round_bf16(first) } } else { first }
    }
    #[inline(always)]
    unsafe fn along(self, first: S::V, _: S::V) -> S::V {
        // SAFETY: the caller's promise.
        if self.rounded { unsafe { S::round_bf16(first) } } else { first }
    }
    #[inline(always)]
    fn single(self, first: f32, _: f32) -> f32 {
        if self.rounded { round_bf16(first) } else { first }
    }
    #[inline(always)]
    unsafe fn dot(a: S::V, b: S::V, c: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::fma(a, b, c) }
    }
}

/// Two bf16 a step, the first in the low half, multiplied by the processor's own instruction.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct NativePairs;

// SAFETY: the trait's contract, and AVX512_BF16 is available.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Step<Avx512> for NativePairs {
    const DEPTH: usize = 2;

    #[inline(always)]
    fn plain(self) -> bool {
        false
    }
    #[inline(always)]
    unsafe fn across(self, first: <Avx512 as Simd>::V, second: <Avx512 as Simd>::V) -> <Avx512 as Simd>::V {
        unsafe { pairs_across_bf16(first, second) }
    }
    #[inline(always)]
    unsafe fn along(self, first: <Avx512 as Simd>::V, second: <Avx512 as Simd>::V) -> <Avx512 as Simd>::V {
        unsafe { pairs_along_bf16(first, second) }
    }
    #[inline(always)]
    fn single(self, first: f32, second: f32) -> f32 {
        pair(first, second)
    }
    #[inline(always)]
    unsafe fn dot(a: <Avx512 as Simd>::V, b: <Avx512 as Simd>::V, c: <Avx512 as Simd>::V) -> <Avx512 as Simd>::V {
        unsafe { dot_bf16(a, b, c) }
    }
}

/// Two elements as the bits of one f32, the first in the low half.
pub(crate) fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits(round_bf16(first).to_bits() >> 16 | round_bf16(second).to_bits())
}
