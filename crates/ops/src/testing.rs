//! What the kernels' tests share.

use crate::{Level, pool, with_level};

/// Reproducible numbers in [-1, 1).
pub(crate) fn data(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|i| (crate::rng::mix64(seed.wrapping_mul(77).wrapping_add(i)) >> 40) as f32 / 8_388_608.0 - 1.0)
        .collect()
}

/// Within `tolerance` of the larger of the value and 1.
#[track_caller]
pub(crate) fn close(found: f32, expected: f64, tolerance: f64) {
    let error = (found as f64 - expected).abs() / expected.abs().max(1.0);
    assert!(error <= tolerance, "{found} instead of {expected}: error {error:.2e}, allowed {tolerance:.0e}");
}

/// Runs `f` at every level that the machine has.
pub(crate) fn every_level(f: impl Fn()) {
    for level in Level::available() {
        with_level(level, &f);
    }
}

/// Runs `f` with all threads and with one: the bits are the same. Returns the result.
#[track_caller]
pub(crate) fn thread_invariant<const N: usize>(f: impl Fn() -> [Vec<f32>; N]) -> [Vec<f32>; N] {
    let (many, one) = (f(), pool::with_threads(1, &f));
    for (i, (many, one)) in many.iter().zip(&one).enumerate() {
        let same = many.iter().zip(one).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same && many.len() == one.len(), "result {i} depends on the number of threads");
    }
    many
}
