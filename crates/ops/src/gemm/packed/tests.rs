//! Prepared products have the bits of unprepared ones.

use super::*;
use crate::gemm::{Epilogue, Init, Mat, gemm, round_bf16};
use crate::simd::{Level, with_level};
use crate::testing::data;
use proptest::prelude::*;

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

fn view(b: &[f32], layout: Layout, k: usize, n: usize) -> Mat {
    match layout {
        Layout::InOut => Mat::rows(b.as_ptr(), n),
        Layout::OutIn => Mat::rows(b.as_ptr(), k).t(),
    }
}

/// Doubles what it sees.
#[derive(Clone, Copy)]
struct Double;

impl Epilogue for Double {
    unsafe fn row<S: Simd>(self, _: usize, _: usize, n: usize, c: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { (0..n).for_each(|j| *c.add(j) *= 2.0) };
    }
}

fn check(m: usize, n: usize, k: usize, layout: Layout, start: usize, seed: u64) {
    let (a, b, old, bias) = (data(m * k, seed), data(k * n, seed ^ 1), data(m * n, seed ^ 2), data(n, seed ^ 3));
    let init = match start {
        0 => Init::Zero,
        1 => Init::Accumulate,
        _ => Init::Bias(&bias),
    };
    let av = Mat::rows(a.as_ptr(), k);
    for (precision, made) in PRECISIONS.iter().flat_map(|&p| Level::available().into_iter().map(move |l| (p, l))) {
        let w = with_level(made, || Prepared::pack(Floats::F32(&b), layout, k, n, precision));
        assert!(w.is_finite());
        match precision {
            Precision::F32 => assert!(w.unpack() == b),
            Precision::Bf16 => assert!(w.unpack().iter().zip(&b).all(|(p, b)| *p == round_bf16(*b))),
        }
        for level in Level::available() {
            with_level(level, || {
                let (mut plain, mut prepared, mut doubled) = (old.clone(), old.clone(), old.clone());
                let mut one_thread = old.clone();
                // SAFETY: the slices have the sizes that the shapes say.
                unsafe {
                    gemm(m, n, k, av, view(&b, layout, k, n), plain.as_mut_ptr(), n, init, precision);
                    multiply(m, a.as_ptr(), k, &w, prepared.as_mut_ptr(), n, init, ());
                    multiply(m, a.as_ptr(), k, &w, doubled.as_mut_ptr(), n, init, Double);
                    pool::with_threads(1, || {
                        multiply(m, a.as_ptr(), k, &w, one_thread.as_mut_ptr(), n, init, ());
                    });
                }
                assert!(plain == prepared, "{m}x{n}x{k} {layout:?} {precision} made at {made:?}, run at {level:?}");
                assert!(prepared == one_thread);
                assert!(doubled.iter().zip(&plain).all(|(d, p)| *d == 2.0 * p));
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn bits_of_the_plain_product(
        m in 1usize..200, n in 1usize..129, k in 0usize..900, out_in: bool, start in 0usize..3, seed: u64,
    ) {
        check(m, n, k, if out_in { Layout::OutIn } else { Layout::InOut }, start, seed);
    }

    #[test]
    fn few_rows(m in 1usize..34, n in 1usize..129, k in 0usize..700, out_in: bool, start in 0usize..3, seed: u64) {
        check(m, n, k, if out_in { Layout::OutIn } else { Layout::InOut }, start, seed);
    }
}

#[test]
fn no_depth() {
    for (n, layout) in [1, 2, 40].into_iter().flat_map(|n| [(n, Layout::InOut), (n, Layout::OutIn)]) {
        for start in 0..3 {
            check(3, n, 0, layout, start, 5);
        }
    }
}

#[test]
fn shared_between_threads() {
    for (m, n, k) in [(1, 1500, 768), (5, 2304, 301), (16, 768, 3072), (33, 1025, 768), (130, 600, 1000)] {
        for layout in [Layout::InOut, Layout::OutIn] {
            check(m, n, k, layout, 2, 7);
        }
    }
}

#[test]
fn rows_of_a_table() {
    let (rows, cols) = (70, 45);
    let table = data(rows * cols, 3);
    let rounded: Vec<f32> = table.iter().map(|&x| round_bf16(x)).collect();
    for (level, precision) in PRECISIONS.iter().flat_map(|&p| Level::available().into_iter().map(move |l| (l, p))) {
        for (layout, d_in, d_out) in [(Layout::OutIn, cols, rows), (Layout::InOut, rows, cols)] {
            let pack = |values| with_level(level, || Prepared::pack_table(values, layout, d_in, d_out, precision));
            for (values, kept) in [(&table, precision == Precision::Bf16), (&rounded, false)] {
                let w = pack(Floats::F32(values));
                assert_eq!((w.dims(), w.rows.is_some()), ([rows, cols], kept));
                for i in [0, 31, 32, 69] {
                    let mut row = vec![1.0; cols];
                    w.row(i, &mut row);
                    assert_eq!(row, values[i * cols..(i + 1) * cols]);
                    w.add_row(i, &mut row);
                    assert!(row.iter().zip(&values[i * cols..]).all(|(a, b)| *a == 2.0 * b));
                }
            }
            let bits: Vec<u16> = rounded.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
            assert!(pack(Floats::Bf16(&bits)).unpack() == rounded);
        }
    }
}

#[test]
fn what_is_not_finite_is_noticed() {
    for layout in [Layout::InOut, Layout::OutIn] {
        let finite = |b: &[f32], p| Prepared::pack(Floats::F32(b), layout, 70, 45, p).is_finite();
        for (i, bad) in [(0, f32::NAN), (1234, f32::INFINITY), (70 * 45 - 1, f32::NEG_INFINITY)] {
            let mut b = data(70 * 45, 1);
            for precision in PRECISIONS {
                let good = b[i];
                for level in Level::available() {
                    assert!(with_level(level, || finite(&b, precision)));
                    b[i] = bad;
                    assert!(!with_level(level, || finite(&b, precision)), "{i} {layout:?}");
                    b[i] = good;
                }
            }
        }
        // Large numbers alone are.
        assert!(finite(&vec![f32::MAX; 70 * 45], Precision::F32));
    }
}
