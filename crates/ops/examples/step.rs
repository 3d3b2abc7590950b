//! A GPT-2 124M training step built from the operations alone (random weights, 4 x 512 tokens): the time that the kernels and
//! the tape need, without any model code.
//!
//! `cargo run --release -p genus-ops --example step [-- steps [system] [bf16]]`; `system` keeps the system's allocator, `bf16` is
//! the precision of the products.

use genus_ops::*;
use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

/// One of the two allocators, chosen when the program starts.
struct Either;
static RECYCLE: AtomicBool = AtomicBool::new(false);
#[global_allocator]
static ALLOCATOR: Either = Either;
// SAFETY: the choice falls before the first large allocation and does not change.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Either {
    unsafe fn alloc(&self, l: Memory) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { if RECYCLE.load(Relaxed) { memory::Recycler.alloc(l) } else { System.alloc(l) } }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Memory) {
        // SAFETY: the caller's promise.
        unsafe { if RECYCLE.load(Relaxed) { memory::Recycler.dealloc(p, l) } else { System.dealloc(p, l) } }
    }
}

const D: usize = 768;
const VOCAB: usize = 50257;

fn param(name: &str, dims: &[usize], params: &mut Vec<Param>) -> Param {
    let n: usize = dims.iter().product();
    let data: Vec<f32> = (0..n as u64).map(|i| ((rng::mix64(i) >> 40) as f32 / 8_388_608.0 - 1.0) * 0.03).collect();
    let data = if dims.len() == 1 { vec![if name.ends_with("gain") { 1.0 } else { 0.0 }; n] } else { data };
    let p = Param::new(name, Tensor::from_vec(data, dims, &Device::Cpu).expect("a shape that fits"));
    params.push(p.clone());
    p
}

fn main() -> Result<()> {
    let steps: usize = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(4);
    let named = |name| std::env::args().skip(2).any(|a| a == name);
    RECYCLE.store(!named("system"), Relaxed);
    let precision = if named("bf16") { Precision::Bf16 } else { Precision::F32 };
    let mut all = Vec::new();
    let tokens = param("tokens", &[VOCAB, D], &mut all);
    let positions = param("positions", &[1024, D], &mut all);
    let layers: Vec<[Param; 12]> = (0..12)
        .map(|_| {
            [
                ("gain", &[D][..]),
                ("bias", &[D]),
                ("qkv", &[D, 3 * D]),
                ("bias", &[3 * D]),
                ("out", &[D, D]),
                ("bias", &[D]),
                ("gain", &[D]),
                ("bias", &[D]),
                ("up", &[D, 4 * D]),
                ("bias", &[4 * D]),
                ("down", &[4 * D, D]),
                ("bias", &[D]),
            ]
            .map(|(name, dims)| param(name, dims, &mut all))
        })
        .collect();
    let (gain, bias) = (param("gain", &[D], &mut all), param("bias", &[D], &mut all));
    let mut moments: Vec<Moments> = all.iter().map(Moments::zeros).collect::<Result<_>>()?;
    let (batch, context) = (4, 512);
    let n = batch * context;
    let spans = Spans::from_lengths(vec![context; batch]);
    let ids: Vec<u32> = (0..n as u64).map(|i| (rng::mix64(i * 31) % VOCAB as u64) as u32).collect();
    let targets: Vec<i32> = ids.iter().cycle().skip(1).take(n).map(|&i| i as i32).collect();
    let spec =
        AttentionSpec { n_heads: 12, n_kv_heads: 12, d_head: 64, mask: Mask::Causal, scale: 0.125, dropout: 0.0 };
    let mut times = Vec::new();
    for step in 1..=steps as u64 {
        let start = Instant::now();
        let tape = Tape::recording().with_precision(precision);
        let wte = tape.param(&tokens);
        let mut x = embedding(&tape, &[(&wte, &ids), (&tape.param(&positions), &spans.positions())], 1.0, 0.0)?;
        let mut branch: Option<Value> = None;
        let norm = |x: &Value, b: Option<Value>, gain: &Param, bias: &Param| {
            let (weight, bias) = (tape.param(gain), tape.param(bias));
            let b = b.as_ref().map(|value| Branch { value, dropout: 0.0 });
            residual_norm(&tape, x, b, Norm::Layer { weight: &weight, bias: &bias, eps: 1e-5 })
        };
        for l in &layers {
            let v = |i: usize| tape.param(&l[i]);
            let [sum, y] = norm(&x, branch.take(), &l[0], &l[1])?;
            let qkv = linear(&tape, &y, &v(2), Some(&v(3)), Layout::InOut, Activation::Identity)?;
            let a = attention(&tape, Qkv::Packed(&qkv), &spans, &spec)?;
            let a = linear(&tape, &a, &v(4), Some(&v(5)), Layout::InOut, Activation::Identity)?;
            let [sum, y] = norm(&sum, Some(a), &l[6], &l[7])?;
            let w = Dense {
                up: &v(8),
                up_bias: &v(9),
                down: &v(10),
                down_bias: &v(11),
                layout: Layout::InOut,
                activation: Activation::GeluTanh,
            };
            branch = Some(feed_forward(&tape, &y, &w)?);
            x = sum;
        }
        let [_, y] = norm(&x, branch.take(), &gain, &bias)?;
        let head =
            Projection { weight: &wte, bias: None, layout: Layout::OutIn, smoothing: 0.0, scale: 1.0 / n as f64 };
        let loss = cross_entropy(&tape, &y, &head, &targets)?;
        let forward = start.elapsed().as_secs_f64();
        drop((x, y));
        tape.backward(&loss)?;
        let backward = start.elapsed().as_secs_f64();
        let norm = grad_norm(&all)?;
        let h = AdamW {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: (1.0 / norm).min(1.0),
        };
        for (p, m) in all.iter().zip(&mut moments) {
            adamw(p, m, &h)?;
        }
        let total = start.elapsed().as_secs_f64();
        println!(
            "loss {:.4}  {total:.2} s  {:.1} tokens/s  (forward with loss {forward:.2}, backward {:.2}, update {:.2})",
            scalar(loss.tensor())?,
            n as f64 / total,
            backward - forward,
            total - backward
        );
        times.push(total);
    }
    times.sort_by(f64::total_cmp);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("");
    println!("median {:.1} tokens/s  {peak}", n as f64 / times[times.len() / 2]);
    Ok(())
}
