//! Attention over ragged batches, once for all models.

#![allow(unsafe_code)]

pub(crate) mod cpu;
pub(crate) mod definition;
mod relative;
#[cfg(test)]
mod tests;

pub use relative::{RelativeKeys, RelativeQkv, attention_relative};

use crate::array::{Rows, SendPtr, tensor, uninit, with_rows, with_slices};
use crate::linear::matrix;
use crate::rng::Key;
use crate::{Error, Result, Spans, Tape, Tensor, Value};

/// Which keys a query sees. Queries and keys are aligned at their ends: query `i` of `n` stands at position `m - n + i` among
/// `m` keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All keys of its sequence.
    Full,
    /// Keys up to its own position.
    Causal,
    /// Its own position and the `window - 1` before it (Child et al. 2019; Beltagy et al. 2020).
    Band {
        /// Number of keys seen, its own included.
        window: usize,
    },
}

impl Mask {
    /// The keys that a query at position `p` (of `m` keys) sees.
    pub fn visible(self, p: usize, m: usize) -> std::ops::Range<usize> {
        match self {
            Mask::Full => 0..m,
            Mask::Causal => 0..(p + 1).min(m),
            Mask::Band { window } => (p + 1).saturating_sub(window)..(p + 1).min(m),
        }
    }
}

/// Sizes and options of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads` (grouped-query attention, Ainslie et al. 2023).
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Which keys are seen.
    pub mask: Mask,
    /// What scores are multiplied by, `1 / sqrt(d_head)` as a rule.
    pub scale: f32,
    /// Probability that an attention weight is dropped.
    pub dropout: f32,
}

/// Where queries, keys and values come from.
pub enum Qkv<'a> {
    /// One matrix `[n, (n_heads + 2 n_kv_heads) d_head]`: queries, keys and values side by side; self-attention.
    Packed(&'a Value),
    /// Three matrices; the keys have spans of their own (the queries' own spans for self-attention).
    Separate {
        /// `[n, n_heads d_head]`.
        q: &'a Value,
        /// `[m, n_kv_heads d_head]`.
        k: &'a Value,
        /// `[m, n_kv_heads d_head]`.
        v: &'a Value,
        /// Spans of the keys: as many as there are query spans.
        k_spans: &'a Spans,
    },
    /// Queries against cached keys and values, one pair a sequence, each `[keys, n_kv_heads d_head]`. No gradient flows.
    Cached {
        /// `[n, n_heads d_head]`; may be a view of a wider matrix.
        q: &'a Tensor,
        /// Keys and values of each sequence.
        kv: &'a [(Tensor, Tensor)],
    },
}

/// `softmax(scale q k^T + mask) v` (Vaswani et al. 2017, equation 1), per sequence and head.
///
/// The dropout mask of a weight depends on the query's row in the batch, its head and the key's position in its sequence.
///
/// # Shapes
/// `spans` are the queries'; the result `[n, n_heads d_head]`.
///
/// # Errors
/// When shapes, spans or heads do not fit.
pub fn attention(tape: &Tape, qkv: Qkv<'_>, spans: &Spans, spec: &AttentionSpec) -> Result<Value> {
    const OP: &str = "attention";
    let AttentionSpec { n_heads, n_kv_heads, d_head, .. } = *spec;
    if n_heads == 0 || n_kv_heads == 0 || n_heads % n_kv_heads != 0 || d_head == 0 {
        return Err(Error::value(
            OP,
            "heads",
            format!("{n_heads} query heads, {n_kv_heads} key heads of width {d_head}"),
            "positive numbers, the second dividing the first",
        ));
    }
    let (q_width, kv_width) = (n_heads * d_head, n_kv_heads * d_head);
    let rows = |what, dims: &[usize], n: usize, width: usize| {
        if dims == [n, width] { Ok(()) } else { Err(Error::shape(OP, what, dims, format!("[{n}, {width}]"))) }
    };
    let drop = || tape.draw(spec.dropout).map(|k| (k, spec.dropout));
    match qkv {
        Qkv::Packed(x) => {
            matrix(OP, "qkv", x)?;
            rows("qkv", x.dims(), spans.total(), q_width + 2 * kv_width)?;
            let drop = drop();
            if tape.kernel(x.tensor()) {
                return packed(tape, x, spans, spec, drop);
            }
            let [y] = tape.composed(&[x], |t| {
                let part = |from, width| Ok::<_, Error>(t[0].narrow(1, from, width)?);
                let (q, k, v) = (part(0, q_width)?, part(q_width, kv_width)?, part(q_width + kv_width, kv_width)?);
                Ok([definition::attention(&q, &k, &v, spans, spans, None, spec, drop)?])
            })?;
            Ok(y)
        }
        Qkv::Separate { q, k, v, k_spans } => {
            rows("q", q.dims(), spans.total(), q_width)?;
            rows("k", k.dims(), k_spans.total(), kv_width)?;
            rows("v", v.dims(), k_spans.total(), kv_width)?;
            if k_spans.len() != spans.len() {
                return Err(Error::value(OP, "number of key spans", k_spans.len(), spans.len().to_string()));
            }
            let drop = drop();
            if tape.kernel(q.tensor()) {
                return separate(tape, [q, k, v], spans, k_spans, spec, drop);
            }
            let [y] = tape.composed(&[q, k, v], |t| {
                Ok([definition::attention(&t[0], &t[1], &t[2], spans, k_spans, None, spec, drop)?])
            })?;
            Ok(y)
        }
        Qkv::Cached { q, kv } => {
            rows("q", q.dims(), spans.total(), q_width)?;
            if kv.len() != spans.len() {
                return Err(Error::value(OP, "number of caches", kv.len(), spans.len().to_string()));
            }
            for (k, v) in kv {
                rows("cached k", k.dims(), k.dim(0)?, kv_width)?;
                rows("cached v", v.dims(), k.dim(0)?, kv_width)?;
            }
            if tape.kernel(q) {
                return cached(q, kv, spans, spec);
            }
            let k_spans = Spans::from_lengths(kv.iter().map(|(k, _)| k.dims()[0]));
            let k = Tensor::cat(&kv.iter().map(|p| &p.0).collect::<Vec<_>>(), 0)?;
            let v = Tensor::cat(&kv.iter().map(|p| &p.1).collect::<Vec<_>>(), 0)?;
            Ok(Value::constant(definition::attention(q, &k, &v, spans, &k_spans, None, spec, None)?))
        }
    }
}

/// Sequences whose keys and values are rows of two views.
fn sequences(spans: &Spans, k_spans: &Spans, k: Rows, v: Rows) -> Vec<cpu::Sequence> {
    let from = |r: Rows, i: usize| Rows { ptr: r.ptr.wrapping_add(i * r.stride), stride: r.stride };
    spans
        .iter()
        .zip(k_spans.iter())
        .map(|(q, kr)| cpu::Sequence {
            q0: q.start,
            nq: q.len(),
            nk: kr.len(),
            k: from(k, kr.start),
            v: from(v, kr.start),
        })
        .collect()
}

/// Columns of a view from `j` on.
fn columns(r: Rows, j: usize) -> Rows {
    Rows { ptr: r.ptr.wrapping_add(j), stride: r.stride }
}

/// Queries, keys and values in one matrix.
fn packed(tape: &Tape, x: &Value, spans: &Spans, spec: &AttentionSpec, drop: Option<(Key, f32)>) -> Result<Value> {
    let (spec, spans) = (*spec, spans.clone());
    let (wq, wk) = (spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
    let (n, width) = (spans.total(), wq + 2 * wk);
    let mut out = uninit(n * wq);
    let mut lse = tape.tracks(&[x]).then(|| uninit(n * spec.n_heads));
    with_rows(&[x.tensor()], |r| {
        let seqs = sequences(&spans, &spans, columns(r[0], wq), columns(r[0], wq + wk));
        // SAFETY: the matrix has the spans' rows and `width` columns.
        unsafe { cpu::forward(&spec, &seqs, r[0], None, drop, &mut out, lse.as_deref_mut()) }
    })?;
    let out = tensor(out, &[n, wq])?;
    let (saved, kept, to) = (x.tensor().clone(), out.clone(), x.target());
    Ok(tape.push(&[x], out, move |g, grads| {
        let lse = lse.unwrap_or_default();
        let mut dx = uninit(n * width);
        let to_rows = |p: *mut f32| cpu::RowsMut { ptr: SendPtr(p), stride: width };
        with_slices([&kept, &g], |[out, dout]| {
            with_rows(&[&saved], |r| {
                let seqs = sequences(&spans, &spans, columns(r[0], wq), columns(r[0], wq + wk));
                let p = dx.as_mut_ptr();
                let b = cpu::Backward {
                    q: r[0],
                    out,
                    dout,
                    lse: &lse,
                    dq: to_rows(p),
                    dk: to_rows(p.wrapping_add(wq)),
                    dv: to_rows(p.wrapping_add(wq + wk)),
                    relative: None,
                };
                // SAFETY: as above; the three gradients are columns of their own, and the spans cover all rows.
                unsafe { cpu::backward(&spec, &seqs, spans.offsets(), drop, &b) }
            })
        })??;
        grads.add(&to, tensor(dx, &[n, width])?)
    }))
}

/// Queries, keys and values in three matrices.
fn separate(
    tape: &Tape,
    inputs: [&Value; 3],
    spans: &Spans,
    k_spans: &Spans,
    spec: &AttentionSpec,
    drop: Option<(Key, f32)>,
) -> Result<Value> {
    let (spec, spans, k_spans) = (*spec, spans.clone(), k_spans.clone());
    let (wq, wk) = (spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
    let (n, m) = (spans.total(), k_spans.total());
    let mut out = uninit(n * wq);
    let mut lse = tape.tracks(&inputs).then(|| uninit(n * spec.n_heads));
    let saved = inputs.map(|v| v.tensor().clone());
    with_rows(&saved.each_ref(), |r| {
        let seqs = sequences(&spans, &k_spans, r[1], r[2]);
        // SAFETY: the matrices have the rows of their spans.
        unsafe { cpu::forward(&spec, &seqs, r[0], None, drop, &mut out, lse.as_deref_mut()) }
    })?;
    let out = tensor(out, &[n, wq])?;
    let (kept, targets) = (out.clone(), inputs.map(|v| v.target()));
    Ok(tape.push(&inputs, out, move |g, grads| {
        let lse = lse.unwrap_or_default();
        let (mut dq, mut dk, mut dv) = (uninit(n * wq), uninit(m * wk), uninit(m * wk));
        let to_rows = |x: &mut Vec<f32>, stride| cpu::RowsMut { ptr: SendPtr(x.as_mut_ptr()), stride };
        with_slices([&kept, &g], |[out, dout]| {
            with_rows(&saved.each_ref(), |r| {
                let seqs = sequences(&spans, &k_spans, r[1], r[2]);
                let b = cpu::Backward {
                    q: r[0],
                    out,
                    dout,
                    lse: &lse,
                    dq: to_rows(&mut dq, wq),
                    dk: to_rows(&mut dk, wk),
                    dv: to_rows(&mut dv, wk),
                    relative: None,
                };
                // SAFETY: as above, and the gradients have the shapes of the inputs.
                unsafe { cpu::backward(&spec, &seqs, k_spans.offsets(), drop, &b) }
            })
        })??;
        grads.add(&targets[0], tensor(dq, &[n, wq])?)?;
        grads.add(&targets[1], tensor(dk, &[m, wk])?)?;
        grads.add(&targets[2], tensor(dv, &[m, wk])?)
    }))
}

/// Queries against a cache of each sequence.
fn cached(q: &Tensor, kv: &[(Tensor, Tensor)], spans: &Spans, spec: &AttentionSpec) -> Result<Value> {
    let (n, wq) = (spans.total(), spec.n_heads * spec.d_head);
    let mut out = uninit(n * wq);
    let mut views = vec![q];
    views.extend(kv.iter().flat_map(|(k, v)| [k, v]));
    with_rows(&views, |r| {
        let seqs: Vec<_> = spans
            .iter()
            .zip(kv)
            .enumerate()
            .map(|(i, (range, (k, _)))| cpu::Sequence {
                q0: range.start,
                nq: range.len(),
                nk: k.dims()[0],
                k: r[1 + 2 * i],
                v: r[2 + 2 * i],
            })
            .collect();
        // SAFETY: the caches have the rows and columns that `attention` checked.
        unsafe { cpu::forward(spec, &seqs, r[0], None, None, &mut out, None) }
    })?;
    Ok(Value::constant(tensor(out, &[n, wq])?))
}
