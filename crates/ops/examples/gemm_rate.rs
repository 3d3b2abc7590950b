//! Rates of the matrix products of a GPT-2 124M training step, beside the machine's ceiling and the `gemm` crate.
//!
//! `cargo run --release -p genus-ops --example gemm_rate [-- seconds a product]`. The crate is built with its default features:
//! on AVX-512 machines it needs `x86-v4` beside the version in `Cargo.toml` for a fair comparison.

use genus_ops::{Precision, ceiling, pool, product};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: genus_ops::memory::Recycler = genus_ops::memory::Recycler;

fn median(seconds: f64, mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || start.elapsed().as_secs_f64() < seconds {
        let t = Instant::now();
        f();
        times.push(t.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let seconds: f64 = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0.5);
    let threads = pool::threads();
    println!("{threads} threads, level {:?}", genus_ops::level());
    println!("ceiling: {:.1} GFLOP/s", ceiling::fma_flops() / 1e9);
    println!("ceiling of bf16 pairs: {:.1} GFLOP/s", ceiling::product_flops(Precision::Bf16) / 1e9);
    println!("{:<34}{:>12}{:>12}{:>12}", "m x n x k (transposed operands)", "f32", "bf16", "gemm crate");
    let (mut time, mut half_time, mut crate_time, mut flops) = (0.0, 0.0, 0.0, 0.0);
    // Rows, columns, depth, A transposed, B transposed, how often a step has it.
    let mut shapes = Vec::new();
    for (i, o) in [(768, 2304), (768, 768), (768, 3072), (3072, 768)] {
        shapes.push((2048, o, i, false, false, 12.0));
        shapes.push((2048, i, o, false, true, 12.0));
        shapes.push((i, o, 2048, true, false, 12.0));
    }
    shapes.push((1024, 50257, 768, false, true, 2.0));
    shapes.push((1024, 768, 50257, false, false, 2.0));
    shapes.push((50257, 768, 1024, true, false, 2.0));
    for (m, n, k, ta, tb, times) in shapes {
        let data = |n: usize| (0..n).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect::<Vec<f32>>();
        let (a, b, mut c) = (data(m * k), data(k * n), vec![0f32; m * n]);
        let ours = median(seconds, || product(Precision::F32, [m, n, k], &a, ta, &b, tb, &mut c));
        let half = median(seconds, || product(Precision::Bf16, [m, n, k], &a, ta, &b, tb, &mut c));
        let strides = |rows: usize, cols: usize, t: bool| if t { (1, rows as isize) } else { (cols as isize, 1) };
        let ((ar, ac), (br, bc)) = (strides(m, k, ta), strides(k, n, tb));
        // SAFETY: the strides are those of matrices of the slices' sizes.
        #[allow(unsafe_code)]
        let theirs = median(if std::env::var_os("OURS").is_some() { 0.0 } else { seconds }, || unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr(),
                ac,
                ar,
                b.as_ptr(),
                bc,
                br,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(threads),
            )
        });
        let f = 2.0 * (m * n * k) as f64;
        let mark = |t| if t { "'" } else { "" };
        let name = format!("{m}{} x {n} x {k}{}", mark(ta), mark(tb));
        println!("{name:<34}{:>12.1}{:>12.1}{:>12.1}", f / ours / 1e9, f / half / 1e9, f / theirs / 1e9);
        time += times * ours;
        half_time += times * half;
        crate_time += times * theirs;
        flops += times * f;
    }
    let rate = |t| flops / t / 1e9;
    let (ours, half, theirs) = (rate(time), rate(half_time), rate(crate_time));
    println!("{:<34}{ours:>12.1}{half:>12.1}{theirs:>12.1}", "all products of a step");
    println!("seconds a step {time:.2}, in bf16 {half_time:.2}, with the crate {crate_time:.2}");

    // One token: the weights of all layers and the vocabulary are read once.
    let x: Vec<f32> = (0..3072).map(|i| i as f32 * 1e-3).collect();
    let widths = [(768, 2304), (768, 768), (768, 3072), (3072, 768)];
    let layers: Vec<Vec<f32>> = (0..12).flat_map(|_| widths.map(|(i, o)| vec![0.5f32; i * o])).collect();
    let vocabulary = vec![0.5f32; 50257 * 768];
    let mut y = vec![0f32; 50257];
    println!("reading: {:.1} GB/s", ceiling::read_bytes() / 1e9);
    for rows in [1, 4, 8, 16] {
        let x: Vec<f32> = (0..rows * 3072).map(|i| x[i % 3072]).collect();
        y.resize(rows * 50257, 0.0);
        let layer_time = median(seconds, || {
            for (w, (i, o)) in layers.iter().zip(widths.iter().cycle()) {
                product(Precision::F32, [rows, *o, *i], &x[..rows * i], false, w, false, &mut y[..rows * o]);
            }
        });
        let vocabulary_time = median(seconds, || {
            product(Precision::F32, [rows, 50257, 768], &x[..rows * 768], false, &vocabulary, true, &mut y);
        });
        let gb = |n: usize, t: f64| n as f64 * 4.0 / t / 1e9;
        println!(
            "{rows} rows: layers {:.1} GB/s, vocabulary {:.1} GB/s, {:.1} ms",
            gb(layers.iter().map(Vec::len).sum(), layer_time),
            gb(vocabulary.len(), vocabulary_time),
            1e3 * (layer_time + vocabulary_time)
        );
    }
}
