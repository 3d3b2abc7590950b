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
