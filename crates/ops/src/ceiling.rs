//! What the machine can do at most, measured: arithmetic without memory, and reading without arithmetic. Speeds are reported
//! beside these ceilings, taken in the same run with the same threads.

#![allow(unsafe_code)]

use crate::array::Rows;
#[cfg(target_arch = "x86_64")]
use crate::gemm::step::pair;
use crate::simd::{Simd, kernel};
use crate::{Precision, pool};
use std::hint::black_box;
use std::time::Instant;

/// Accumulators of the arithmetic loop: enough that each one's latency is hidden, few enough to stay in registers at every level.
const CHAINS: usize = 12;

#[inline(always)]
unsafe fn fma_loop<S: Simd>(rounds: usize) -> f32 {
    // SAFETY: the caller enabled the level; nothing is read from memory.
    unsafe {
        let (a, b) = (S::splat(black_box(0.999)), S::splat(black_box(0.001)));
        let mut acc = [S::splat(1.0); CHAINS];
        for _ in 0..rounds {
            for x in &mut acc {
                *x = S::fma(*x, a, b);
            }
        }
        acc.into_iter().map(|x| S::reduce_add(x)).sum()
    }
}

kernel!(unsafe fn fma_kernel(rounds: usize) -> f32 = fma_loop);

/// As [`fma_loop`], of pairs of bf16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pairs_kernel(rounds: usize) -> f32 {
    use crate::simd::{Avx512, dot_bf16};
    // SAFETY: the level is enabled here; nothing is read from memory.
    unsafe {
        let (a, b) = (Avx512::splat(black_box(pair(1e-3, 0.0))), Avx512::splat(black_box(pair(1e-3, 0.0))));
        let mut acc = [Avx512::splat(1.0); CHAINS];
        for _ in 0..rounds {
            for x in &mut acc {
                *x = dot_bf16(a, b, *x);
            }
        }
        acc.into_iter().map(|x| Avx512::reduce_add(x)).sum()
    }
}

#[inline(always)]
unsafe fn lanes_of<S: Simd>() -> usize {
    S::LANES
}

kernel!(unsafe fn lanes() -> usize = lanes_of);

#[inline(always)]
unsafe fn sum_loop<S: Simd>(x: Rows, n: usize) -> f32 {
    const WAYS: usize = 8;
    // SAFETY: the caller enabled the level, and `x` points to `n` floats. A prefetch beyond the end does nothing.
    unsafe {
        let mut acc = [S::splat(0.0); WAYS];
        let step = WAYS * S::LANES;
        let mut i = 0;
        while i + step <= n {
            for (w, a) in acc.iter_mut().enumerate() {
                *a = S::add(*a, S::load(x.ptr.add(i + w * S::LANES)));
            }
            for line in 0..step.div_ceil(16) {
                S::prefetch(x.ptr.wrapping_add(i + 512 + line * 16));
            }
            i += step;
        }
        while i < n {
            let m = S::LANES.min(n - i);
            acc[0] = S::add(acc[0], S::load_n(x.ptr.add(i), m));
            i += m;
        }
        acc.into_iter().map(|a| S::reduce_add(a)).sum()
    }
}

kernel!(unsafe fn sum_kernel(x: Rows, n: usize) -> f32 = sum_loop);

/// Floating-point operations a second of a loop of fused multiply-adds in registers, on all threads at the level in force (a
/// product and a sum each count one). The best of several runs.
pub fn fma_flops() -> f64 {
    best_flops(1, || {
        // SAFETY: the level in force is one that the machine has.
        black_box(unsafe { fma_kernel(black_box(ROUNDS)) });
    })
}

/// Steps of the arithmetic loop that one task takes.
const ROUNDS: usize = 200_000;

/// The best rate of several runs of the loop, whose lanes take `products` products a round and chain.
fn best_flops(products: usize, kernel: impl Fn() + Sync) -> f64 {
    let tasks = pool::threads() * 8;
    // SAFETY: the level in force is one that the machine has.
    let lanes = unsafe { lanes() };
    let run = || {
        let start = Instant::now();
        pool::run(tasks, |_| kernel());
        (tasks * ROUNDS * CHAINS * lanes * products * 2) as f64 / start.elapsed().as_secs_f64()
    };
    (0..8).map(|_| run()).fold(0.0, f64::max)
}

/// As [`fma_flops`], for the products of a precision: in bf16, where the level in force multiplies pairs of bf16, a loop of those
/// (two products and two sums a lane); else the same as in f32.
pub fn product_flops(precision: Precision) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if precision == Precision::Bf16 && crate::level() == crate::Level::Bf16 {
        return best_flops(2, || {
            // SAFETY: the level in force has AVX-512 with BF16.
            black_box(unsafe { pairs_kernel(black_box(ROUNDS)) });
        });
    }
    let _ = precision;
    fma_flops()
}

/// Bytes a second of reading a buffer of at least eight times the last-level cache once, on all threads, each its own part in
/// order. The best of several runs. The buffer is freed before this returns.
pub fn read_bytes() -> f64 {
    let n = (8 * last_level_cache()).max(64 << 20) / size_of::<f32>();
    let mut buffer: Vec<f32> = Vec::with_capacity(n);
    advise_huge(buffer.as_ptr() as usize, n * size_of::<f32>());
    // Written, so that every page is there.
    buffer.resize(n, 1.0);
    let threads = pool::threads();
    let part = n.div_ceil(threads);
    let run = || {
        let start = Instant::now();
        let all = Rows { ptr: buffer.as_ptr(), stride: 0 };
        pool::run(threads, |t| {
            let (from, to) = (t * part, ((t + 1) * part).min(n));
            // SAFETY: the part lies inside the buffer, which is only read; the level in force is one that the machine has.
            black_box(unsafe { sum_kernel(from_on(&all, from), to - from) });
        });
        (n * size_of::<f32>()) as f64 / start.elapsed().as_secs_f64()
    };
    (0..6).map(|_| run()).fold(0.0, f64::max)
}

/// The same data from element `i` on.
///
/// # Safety
/// The data has at least `i` elements.
unsafe fn from_on(x: &Rows, i: usize) -> Rows {
    // SAFETY: the caller's promise.
    Rows { ptr: unsafe { x.ptr.add(i) }, stride: x.stride }
}

/// Asks for huge pages, on which reading is faster, for memory that has not been touched yet.
fn advise_huge(start: usize, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        let (start, end) = (start.next_multiple_of(4096), (start + bytes) & !4095);
        if end > start {
            // SAFETY: the range lies inside the caller's buffer, and this advice changes no content.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

/// Size of the last-level cache in bytes: from the operating system, else from the processor, else 32 MiB.
pub fn last_level_cache() -> usize {
    from_system().or_else(from_processor).unwrap_or(32 << 20)
}

fn from_system() -> Option<usize> {
    let folder = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let size = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path.join("size")).ok()?;
        let text = text.trim();
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let unit = match unit {
            "" => 1,
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => return None,
        };
        digits.parse::<usize>().ok()?.checked_mul(unit)
    };
    folder.flatten().filter_map(|e| size(e.path())).max()
}

/// The deterministic cache parameters of `cpuid`: leaf 4 (Intel) or 0x8000001D (AMD).
fn from_processor() -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid_count;
        let mut largest = 0;
        for leaf in [4u32, 0x8000_001d] {
            #[allow(unused_unsafe)]
            // SAFETY: every x86-64 processor has `cpuid`; the leaf is asked for only if the processor lists it.
            let highest = unsafe { __cpuid_count(leaf & 0x8000_0000, 0) }.eax;
            if highest < leaf {
                continue;
            }
            for index in 0..16 {
                #[allow(unused_unsafe)]
                // SAFETY: as above.
                let r = unsafe { __cpuid_count(leaf, index) };
                if r.eax & 31 == 0 {
                    break;
                }
                let ways = (r.ebx >> 22) as usize + 1;
                let partitions = (r.ebx >> 12 & 1023) as usize + 1;
                let line = (r.ebx & 4095) as usize + 1;
                largest = largest.max(ways * partitions * line * (r.ecx as usize + 1));
            }
        }
        (largest > 0).then_some(largest)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_right_at_every_level() {
        let x: Vec<f32> = (0..1000).map(|i| (i % 7) as f32).collect();
        for level in crate::Level::available() {
            for n in [0, 1, 15, 16, 129, 1000] {
                let want: f32 = x[..n].iter().sum();
                // SAFETY: the pointer is valid for n floats.
                let got = crate::with_level(level, || unsafe { sum_kernel(Rows { ptr: x.as_ptr(), stride: 0 }, n) });
                assert_eq!(got, want, "{} {n}", level.name());
            }
            // SAFETY: the level is available.
            let (fixed, lanes) = crate::with_level(level, || unsafe { (fma_kernel(100_000), lanes()) });
            // x = 0.999 x + 0.001 stays at 1.
            assert!((fixed - (CHAINS * lanes) as f32).abs() < 1e-2 * fixed, "{} {fixed}", level.name());
        }
    }

    #[test]
    fn the_cache_has_a_size() {
        assert!((64 << 10..4 << 30).contains(&last_level_cache()));
        if let Some(n) = from_processor() {
            assert!((16 << 10..4 << 30).contains(&n));
        }
    }
}
