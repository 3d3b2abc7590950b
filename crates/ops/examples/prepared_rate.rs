//! Products of a few rows with prepared weights, as in decoding GPT-2 124M: `cargo run --release -p genus-ops --example
//! prepared_rate [-- rows ...]`. All layers' weights and the vocabulary's are run through in order, as a step does.

use genus_ops::{Activation, Layout, Param, Precision, Tape, Tensor, Value, ceiling, linear, pool};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: genus_ops::memory::Recycler = genus_ops::memory::Recycler;

fn main() -> genus_ops::Result<()> {
    let rows: Vec<usize> = std::env::args().skip(1).filter_map(|s| s.parse().ok()).collect();
    let rows = if rows.is_empty() { vec![1, 2, 4, 8, 12, 16, 24, 32, 64, 256, 1024] } else { rows };
    let cpu = genus_ops::Device::Cpu;
    let mut weights = Vec::new();
    for layer in 0..12 {
        for (i, o) in [(768, 2304), (768, 768), (768, 3072), (3072, 768)] {
            let values: Vec<f32> = (0..i * o).map(|n| ((n * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
            weights.push((Param::new(format!("{layer}"), Tensor::from_vec(values, (i, o), &cpu)?), Layout::InOut));
        }
    }
    let values: Vec<f32> = (0..50257 * 768).map(|n| ((n * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
    weights.push((Param::new("head", Tensor::from_vec(values, (50257, 768), &cpu)?), Layout::OutIn));
    let count: usize = weights.iter().map(|w| w.0.elem_count()).sum();
    let bandwidth = ceiling::read_bytes();
    println!(
        "{} threads, {:?}; {:.1} GFLOP/s, {:.1} GB/s",
        pool::threads(),
        genus_ops::level(),
        ceiling::fma_flops() / 1e9,
        bandwidth / 1e9
    );
    for prepared in [false, true] {
        if prepared {
            let start = Instant::now();
            for (w, layout) in &weights {
                w.prepare(*layout, Precision::F32)?;
            }
            println!("packing {:.3} s", start.elapsed().as_secs_f64());
        }
        for &m in &rows {
            let run = || {
                let tape = Tape::inference();
                for (w, layout) in &weights {
                    let w = tape.param(w);
                    let d = if *layout == Layout::InOut { w.dims()[0] } else { w.dims()[1] };
                    let head = w.dims()[0] == 50257;
                    let m = if head { m.min(16) } else { m };
                    let x = Value::constant(Tensor::full(0.5f32, (m, d), &cpu)?);
                    std::hint::black_box(linear(&tape, &x, &w, None, *layout, Activation::Identity)?);
                }
                Ok::<_, genus_ops::Error>(())
            };
            run()?;
            let (start, mut times) = (Instant::now(), Vec::new());
            while times.len() < 3 || start.elapsed().as_secs_f64() < 0.7 {
                let t = Instant::now();
                run()?;
                times.push(t.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            let t = times[times.len() / 2];
            println!(
                "prepared {prepared} {m:>5} rows: {:>7.2} ms, {:>5.1} GB/s, {:>6.1} GFLOP/s",
                t * 1e3,
                4e-9 * count as f64 / t,
                2e-9 * (m * (count - 50257 * 768) + m.min(16) * 50257 * 768) as f64 / t
            );
        }
    }
    Ok(())
}
