//! Products against f64 sums, and their bits against each other.

use super::*;
use crate::simd::with_level;
use proptest::prelude::*;

fn data(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|i| (crate::rng::mix64(seed.wrapping_mul(77).wrapping_add(i)) >> 40) as f32 / 8_388_608.0 - 1.0)
        .collect()
}

#[allow(clippy::too_many_arguments)]
fn product(
    precision: Precision,
    [m, n, k]: [usize; 3],
    ta: bool,
    tb: bool,
    a: &[f32],
    b: &[f32],
    init: Init<'_>,
    c: &mut [f32],
) {
    let view = |x: &[f32], rows: usize, cols: usize, t: bool| {
        if t { Mat::rows(x.as_ptr(), rows).t() } else { Mat::rows(x.as_ptr(), cols) }
    };
    // SAFETY: the slices have the sizes that the shapes say.
    unsafe { gemm(m, n, k, view(a, m, k, ta), view(b, k, n, tb), c.as_mut_ptr(), n, init, precision) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Every level, layout and start against f64; and each row alone, with any number of threads, has the same bits.
    #[test]
    fn right_and_row_invariant(
        m in 1usize..200, n in 1usize..129, k in 0usize..900,
        ta: bool, tb: bool, start in 0..3, bf16: bool, seed: u64,
    ) {
        let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
        let operand = |x: f32| if bf16 { half(x) } else { x };
        let (a, b, old, bias) = (data(m * k, seed), data(k * n, seed ^ 1), data(m * n, seed ^ 2), data(n, seed ^ 3));
        let init = match start { 0 => Init::Zero, 1 => Init::Accumulate, _ => Init::Bias(&bias) };
        for level in Level::available() {
            with_level(level, || {
                let mut c = old.clone();
                product(precision, [m, n, k], ta, tb, &a, &b, init, &mut c);
                let mut one_thread = old.clone();
                pool::with_threads(1, || product(precision, [m, n, k], ta, tb, &a, &b, init, &mut one_thread));
                assert_eq!(c, one_thread);
                for i in [0, m / 2, m - 1] {
                    let row: Vec<f32> = (0..k).map(|p| if ta { a[p * m + i] } else { a[i * k + p] }).collect();
                    let mut alone = old[i * n..(i + 1) * n].to_vec();
                    product(precision, [1, n, k], false, tb, &row, &b, init, &mut alone);
                    assert_eq!(alone, c[i * n..(i + 1) * n], "row {i} of {m}x{n}x{k} at {level:?}");
                    for j in [0, n / 2, n - 1] {
                        let mut exact = match start { 0 => 0.0, 1 => old[i * n + j] as f64, _ => bias[j] as f64 };
                        let mut size = exact.abs();
                        for p in 0..k {
                            let y = if tb { b[j * k + p] } else { b[p * n + j] };
                            let term = operand(row[p]) as f64 * operand(y) as f64;
                            exact += term;
                            size += term.abs();
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
    for precision in [Precision::F32, Precision::Bf16] {
        crate::testing::every_level(|| {
            let mut all = vec![0.0; m * n];
            product(precision, [m, n, k], false, true, &a, &b, Init::Zero, &mut all);
            for rows in [1, 2, 7, 12, 13, 40] {
                let mut some = vec![0.0; rows * n];
                product(precision, [rows, n, k], false, true, &a, &b, Init::Zero, &mut some);
                assert_eq!(some, all[..rows * n], "{rows} rows in {precision}");
            }
        });
    }
}

/// Rounding to bf16 by the value, not by the bits: to the nearer neighbour, and to the even one of two equally near.
fn half(x: f32) -> f32 {
    let below = f32::from_bits(x.to_bits() & 0xffff_0000);
    let above = f32::from_bits((x.to_bits() & 0xffff_0000) + 0x1_0000);
    let (down, up) = ((x as f64 - below as f64).abs(), (above as f64 - x as f64).abs());
    let even = below.to_bits() >> 16 & 1 == 0;
    if down < up || down == up && even { below } else { above }
}

#[test]
fn rounding_is_to_nearest_even_at_every_level() {
    let mut x = data(4096, 9);
    x.extend([0.0, -0.0, 1.0, 1.003_906_2, 1.011_718_8, -1.003_906_2, 3.0e38, 1e-30, 65_535.0, 0.1]);
    x.resize(x.len().next_multiple_of(32), 0.5);
    for &x in &x {
        assert_eq!(round_bf16(x).to_bits(), half(x).to_bits(), "{x}");
    }
    for quiet_or_not in [0x7f80_0001, 0x7fc0_0000, 0xffff_ffff, 0xff80_0001] {
        assert!(round_bf16(f32::from_bits(quiet_or_not)).is_nan());
    }
    assert_eq!(round_bf16(f32::MAX), f32::INFINITY);
    assert_eq!(round_bf16(f32::NEG_INFINITY), f32::NEG_INFINITY);
    // Through products with one: what a product sees is the rounded operand, on either side.
    for level in Level::available() {
        with_level(level, || {
            let n = x.len();
            let mut c = vec![0.0; n];
            product(Precision::Bf16, [1, n, 1], false, false, &[1.0], &x, Init::Zero, &mut c);
            let rounded: Vec<f32> = x.iter().map(|&x| half(x)).collect();
            assert_eq!(c, rounded, "{level:?}");
            product(Precision::Bf16, [n, 1, 1], false, false, &x, &[1.0], Init::Zero, &mut c);
            assert_eq!(c, rounded, "{level:?}");
            for bad in [f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY] {
                for k in [1, 2, 33, 800] {
                    let mut a = vec![1.0; k];
                    a[k / 2] = bad;
                    let mut c = vec![0.0; 33];
                    product(Precision::Bf16, [1, 33, k], false, false, &a, &vec![1.0; 33 * k], Init::Zero, &mut c);
                    assert!(c.iter().all(|c| !c.is_finite() && c.is_nan() == bad.is_nan()), "{level:?} {bad} {k}");
                }
            }
        });
    }
}

/// In f32 the level with bf16 instructions computes what the level without them does; and with operands that bf16 holds, a
/// product in bf16 without those instructions has the bits of the one in f32.
#[test]
fn levels_agree_where_they_must() {
    let (m, n, k) = (30, 70, 900);
    let (a, b): (Vec<f32>, Vec<f32>) = (data(m * k, 5), data(k * n, 6));
    let at = |level, precision, a: &[f32], b: &[f32]| {
        let mut c = vec![0.0; m * n];
        with_level(level, || product(precision, [m, n, k], true, false, a, b, Init::Zero, &mut c));
        c
    };
    let levels = Level::available();
    if levels.contains(&Level::Bf16) {
        let f32_at = |level| at(level, Precision::F32, &a, &b);
        assert_eq!(f32_at(Level::Bf16), f32_at(Level::Avx512));
    }
    let (a, b): (Vec<f32>, Vec<f32>) = (a.into_iter().map(half).collect(), b.into_iter().map(half).collect());
    for level in levels.into_iter().filter(|l| *l != Level::Bf16) {
        assert_eq!(at(level, Precision::F32, &a, &b), at(level, Precision::Bf16, &a, &b), "{level:?}");
    }
}
