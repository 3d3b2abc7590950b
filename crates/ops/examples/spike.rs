//! Residual, norm and feed-forward with recomputation, on the tape and inside candle's graph, with the same kernels: the figures
//! behind the decision for a tape (`docs/decisions/0001-tape.md`).
//!
//! `cargo run --release -p genus-ops --example spike -- dense|gated tape|custom [recompute] [steps]`, one process a
//! figure.
//!
//! Inside candle's graph an operation is a custom op of three tensors and one result. What its backward needs and what does not
//! fit (a fourth weight, biases) is in stores beside the graph; the residual is candle's addition. A recomputed layer is a custom
//! op of one tensor that builds the layer's graph again, and leaves its parameters' gradients in such a store too.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, InplaceOp1, Layout as Strides, Shape, Var, backprop::GradStore};
use genus_ops::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: memory::Recycler = memory::Recycler;

type Candle<T> = candle_core::Result<T>;

const LAYERS: usize = 6;
const N: usize = 2048;
const D: usize = 768;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Dense,
    Gated,
}

/// The norm's two parameters, the network's two that are tensors of a custom op, and those beside it.
fn shapes(kind: Kind) -> Vec<(usize, Vec<usize>)> {
    let wide = if kind == Kind::Dense { 3072 } else { 2048 };
    let (vector, up, down) = (|n| vec![n], vec![wide, D], vec![D, wide]);
    let rest = match kind {
        Kind::Dense => vec![up, down, vector(wide), vector(D)],
        Kind::Gated => vec![up.clone(), up, down],
    };
    [vector(D), vector(D)].into_iter().chain(rest).enumerate().collect()
}

/// `w` in the order of [`shapes`], after the norm's.
fn network(kind: Kind, tape: &Tape, x: &Value, w: &[Value]) -> Result<Value> {
    let layout = Layout::OutIn;
    match kind {
        Kind::Dense => {
            let activation = Activation::GeluTanh;
            feed_forward(
                tape,
                x,
                &Dense { up: &w[0], down: &w[1], up_bias: &w[2], down_bias: &w[3], layout, activation },
            )
        }
        Kind::Gated => {
            let (gate_bias, up_bias, down_bias, activation) = (None, None, None, Activation::Silu);
            let (gate, up, down) = (&w[0], &w[1], &w[2]);
            gated_feed_forward(tape, x, &Gated { gate, gate_bias, up, up_bias, down, down_bias, layout, activation })
        }
    }
}

/// The sum of the stream and its pending branch, and the layer's own branch.
fn layer(kind: Kind, tape: &Tape, x: &Value, pending: Option<&Value>, w: &[Value]) -> Result<[Value; 2]> {
    let branch = pending.map(|value| Branch { value, dropout: 0.0 });
    let [sum, y] = residual_norm(tape, x, branch, Norm::Layer { weight: &w[0], bias: &w[1], eps: 1e-5 })?;
    let f = network(kind, tape, &y, &w[2..])?;
    Ok([sum, f])
}

fn values(tape: &Tape, params: &[Param]) -> Vec<Value> {
    params.iter().map(|p| tape.param(p)).collect()
}

fn join(tape: &Tape, x: &Value, f: &Value) -> Result<Value> {
    residual(tape, x, Branch { value: f, dropout: 0.0 })
}

/// A step on the tape; the input's gradient.
fn on_tape(kind: Kind, again: bool, params: &[Vec<Param>], x: &Tensor, g: &Tensor) -> Result<Tensor> {
    let tape = Tape::recording();
    let input = tape.leaf(x.clone());
    let (mut x, mut pending) = (input.clone(), None);
    for p in params {
        if again {
            let p = p.clone();
            let block = move |tape: &Tape, x: &[Value]| {
                let [x, f] = layer(kind, tape, &x[0], None, &values(tape, &p))?;
                Ok::<_, Error>(vec![join(tape, &x, &f)?])
            };
            x = tape.recompute(&[&x], block)?.remove(0);
        } else {
            let [sum, f] = layer(kind, &tape, &x, pending.as_ref(), &values(&tape, p))?;
            (x, pending) = (sum, Some(f));
        }
    }
    let y = match pending.take() {
        Some(f) => join(&tape, &x, &f)?,
        None => x.clone(),
    };
    drop(x);
    let grads = tape.backward_from(&y, g.clone())?;
    grads.of(&input).ok_or(Error::NotRecorded)
}

/// What custom ops keep for their backward: a record of the one operation.
struct Kept {
    tape: Tape,
    leaves: Vec<Value>,
    output: Value,
}

thread_local! {
    static KEPT: RefCell<HashMap<usize, Kept>> = RefCell::default();
    static NEXT: RefCell<usize> = const { RefCell::new(0) };
    /// Gradients of the parameters of recomputed layers.
    static SIDE: RefCell<Vec<Tensor>> = const { RefCell::new(Vec::new()) };
}

/// Takes the data out of a tensor that nobody else reads.
struct Take(RefCell<Vec<f32>>);

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Strides) -> Candle<()> {
        if let CpuStorage::F32(data) = storage {
            *self.0.borrow_mut() = std::mem::take(data);
        }
        Ok(())
    }
}

fn take(t: &Tensor) -> Candle<(CpuStorage, Shape)> {
    let op = Take(RefCell::default());
    t.inplace_op1(&op)?;
    Ok((CpuStorage::F32(op.0.into_inner()), t.shape().clone()))
}

/// An operation of this crate as a node of candle's graph.
struct Fused<F> {
    run: F,
    inputs: [Tensor; 3],
    id: usize,
}

impl<F: Fn(&Tape, &[Value]) -> Result<Value>> CustomOp3 for Fused<F> {
    fn name(&self) -> &'static str {
        "fused"
    }
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Strides,
        _: &CpuStorage,
        _: &Strides,
        _: &CpuStorage,
        _: &Strides,
    ) -> Candle<(CpuStorage, Shape)> {
        let tape = Tape::recording();
        let leaves: Vec<Value> = self.inputs.iter().map(|t| tape.leaf(t.clone())).collect();
        let output = (self.run)(&tape, &leaves).map_err(candle_core::Error::wrap)?;
        let y = take(output.tensor())?;
        KEPT.with_borrow_mut(|kept| kept.insert(self.id, Kept { tape, leaves, output }));
        Ok(y)
    }
    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Candle<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = KEPT.with_borrow_mut(|kept| kept.remove(&self.id)) else {
            candle_core::bail!("the second backward pass of an operation");
        };
        let grads = kept.tape.backward_from(&kept.output, g.clone()).map_err(candle_core::Error::wrap)?;
        let of = |i: usize| grads.of(&kept.leaves[i]);
        Ok((of(0), of(1), of(2)))
    }
}

fn fused(
    inputs: [&Tensor; 3],
    run: impl Fn(&Tape, &[Value]) -> Result<Value> + Send + Sync + 'static,
) -> Candle<Tensor> {
    let id = NEXT.with_borrow_mut(|n| std::mem::replace(n, *n + 1));
    let [a, b, c] = inputs;
    a.apply_op3(b, c, Fused { run, inputs: inputs.map(Tensor::detach), id })
}

/// A layer's parameters in candle's graph and beside it.
#[derive(Clone)]
struct Split {
    vars: Vec<Var>,
    side: Vec<Param>,
}

fn in_graph(kind: Kind, x: &Tensor, p: &Split) -> Candle<Tensor> {
    let y = fused([x, &p.vars[0], &p.vars[1]], |tape, v| {
        let [_, y] = residual_norm(tape, &v[0], None, Norm::Layer { weight: &v[1], bias: &v[2], eps: 1e-5 })?;
        Ok(y)
    })?;
    let side = p.side.clone();
    let f = fused([&y, &p.vars[2], &p.vars[3]], move |tape, v| {
        let w: Vec<Value> = v[1..].iter().cloned().chain(values(tape, &side)).collect();
        network(kind, tape, &v[0], &w)
    })?;
    x.add(&f)
}

fn backward(y: &Tensor, g: &Tensor) -> Candle<GradStore> {
    y.mul(g)?.sum_all()?.backward()
}

fn gradient(store: &mut GradStore, of: &Tensor) -> Candle<Tensor> {
    store.remove(of).ok_or_else(|| candle_core::Error::Msg("no gradient".into()))
}

/// A layer that keeps its input only.
struct Again {
    kind: Kind,
    p: Split,
    input: Tensor,
}

impl CustomOp1 for Again {
    fn name(&self) -> &'static str {
        "again"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Strides) -> Candle<(CpuStorage, Shape)> {
        let tape = Tape::inference();
        let vars = self.p.vars.iter().map(|v| Value::constant(v.as_detached_tensor()));
        let w: Vec<Value> = vars.chain(values(&tape, &self.p.side)).collect();
        let x = Value::constant(self.input.clone());
        let y = layer(self.kind, &tape, &x, None, &w).and_then(|[x, f]| join(&tape, &x, &f));
        take(y.map_err(candle_core::Error::wrap)?.tensor())
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Candle<Option<Tensor>> {
        let x = Var::from_tensor(&x.detach())?;
        let mut store = backward(&in_graph(self.kind, &x, &self.p)?, g)?;
        for v in &self.p.vars {
            let g = gradient(&mut store, v)?;
            SIDE.with_borrow_mut(|side| side.push(g));
        }
        Ok(Some(gradient(&mut store, &x)?))
    }
}

/// A step in candle's graph; the gradients of the input and of all parameters that are tensors of custom ops.
fn in_candle(kind: Kind, again: bool, params: &[Split], x: &Var, g: &Tensor) -> Candle<Vec<Tensor>> {
    let mut y = x.as_tensor().clone();
    for p in params {
        y = if again { y.apply_op1(Again { kind, p: p.clone(), input: y.detach() })? } else { in_graph(kind, &y, p)? };
    }
    let mut store = backward(&y, g)?;
    let mut all = SIDE.take();
    all.push(gradient(&mut store, x)?);
    if !again {
        for v in params.iter().flat_map(|p| &p.vars) {
            all.push(gradient(&mut store, v)?);
        }
    }
    Ok(all)
}

fn random(dims: &[usize], seed: u64, scale: f32) -> Result<Tensor> {
    let n: usize = dims.iter().product();
    let key = seed << 32;
    let data = (0..n as u64).map(|i| ((rng::mix64(key + i) >> 40) as f32 / 8_388_608.0 - 1.0) * scale).collect();
    Ok(Tensor::from_vec::<_, f32>(data, dims, &Device::Cpu)?)
}

fn status(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with(field)).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e3 * 1.024
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|a| a == name);
    let kind = if has("gated") { Kind::Gated } else { Kind::Dense };
    let (custom, again) = (has("custom"), has("recompute"));
    let steps: usize = args.iter().find_map(|a| a.parse().ok()).unwrap_or(7);
    let mut params = Vec::new();
    for l in 0..LAYERS {
        let layer: Result<Vec<Param>> = shapes(kind)
            .into_iter()
            .map(|(i, dims)| {
                let scale = if dims.len() == 2 { 0.05 } else { 1.0 };
                Ok(Param::new(format!("{l}.{i}"), random(&dims, 100 + (10 * l + i) as u64, scale)?))
            })
            .collect();
        params.push(layer?);
    }
    let (x, g) = (random(&[N, D], 1, 1.0)?, random(&[N, D], 2, 1e-3)?);
    let mut graph = Vec::new();
    if custom {
        for p in &mut params {
            let side = p.split_off(4);
            let vars = p.drain(..).map(|p| Var::from_tensor(&p.tensor())).collect::<Candle<_>>()?;
            graph.push(Split { vars, side: side.clone() });
            *p = side;
        }
    }
    let input = Var::from_tensor(&x)?;
    let before = status("VmRSS");
    let (mut times, mut squares) = (Vec::new(), Vec::new());
    for step in 0..=steps {
        params.iter().flatten().for_each(Param::clear_grad);
        let start = Instant::now();
        let grads = match custom {
            true => in_candle(kind, again, &graph, &input, &g)?,
            false => vec![on_tape(kind, again, &params, &x, &g)?],
        };
        if step > 0 {
            times.push(start.elapsed().as_secs_f64());
        } else {
            let of_params = params.iter().flatten().filter_map(Param::grad);
            for t in grads.into_iter().chain(of_params) {
                squares.push(with_slice(&t, |t| t.iter().map(|&x| (x as f64).powi(2)).sum::<f64>())?);
            }
        }
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{}: {:.2} s a step (median of {}), peak {:.0} MB above inputs, squared norm of {} gradients {:.7e}",
        args.join(" "),
        times[times.len() / 2],
        times.len(),
        status("VmHWM") - before,
        squares.len(),
        squares.iter().sum::<f64>()
    );
    Ok(())
}
