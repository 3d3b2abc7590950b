//! Attention whose scores also depend on the distance between query and key.

#![allow(unsafe_code)]

use super::{AttentionSpec, cpu, definition, sequences};
use crate::array::{SendPtr, tensor, uninit, with_rows, with_slices};
use crate::rng::Key;
use crate::{Error, Result, Spans, Tape, Tensor, Value};

/// The inputs of [`attention_relative`].
pub struct RelativeQkv<'a> {
    /// Queries for the keys' contents (the paper's `q + u`), `[n, n_heads d_head]`.
    pub q: &'a Value,
    /// Queries for their distances (`q + v`), `[n, n_heads d_head]`.
    pub p: &'a Value,
    /// A vector for each distance, that of the longest first and distance 0 last, `[distances, n_heads d_head]`; at least as many as
    /// the longest sequence has keys.
    pub r: &'a Value,
    /// Keys and values.
    pub kv: RelativeKeys<'a>,
}

/// Where keys and values come from.
pub enum RelativeKeys<'a> {
    /// Matrices `[m, n_heads d_head]` with spans of their own.
    Rows {
        /// Keys.
        k: &'a Value,
        /// Values.
        v: &'a Value,
        /// As many as there are query spans; queries are their sequence's last rows.
        spans: &'a Spans,
    },
    /// Those of a cache for each sequence. No gradient flows.
    Cached(&'a [(Tensor, Tensor)]),
}

/// `softmax(scale (q k^T + p r^T shifted) + mask) v` per sequence and head: query `i` and key `j` meet the vector of their distance
/// (Dai et al. 2019, arXiv 1901.02860, section 3.3 and appendix B). A key that comes after its query is not seen, whatever the mask.
///
/// # Shapes
/// `spans` are the queries'; the result `[n, n_heads d_head]`.
///
/// # Errors
/// When shapes, spans or heads do not fit, heads are grouped, or there are fewer distances than keys.
pub fn attention_relative(tape: &Tape, x: &RelativeQkv<'_>, spans: &Spans, spec: &AttentionSpec) -> Result<Value> {
    const OP: &str = "relative attention";
    let width = spec.n_heads * spec.d_head;
    if width == 0 || spec.n_heads != spec.n_kv_heads {
        let found = format!("{} query heads and {} key heads of width {}", spec.n_heads, spec.n_kv_heads, spec.d_head);
        return Err(Error::value(OP, "heads", found, "as many of one as of the other"));
    }
    if spec.mask == super::Mask::Full {
        return Err(Error::value(OP, "mask", "full", "causal or a band: a distance is never negative"));
    }
    let rows = |what, dims: &[usize], n: usize| {
        if dims == [n, width] { Ok(()) } else { Err(Error::shape(OP, what, dims, format!("[{n}, {width}]"))) }
    };
    rows("q", x.q.dims(), spans.total())?;
    rows("p", x.p.dims(), spans.total())?;
    let distances = x.r.rows();
    rows("r", x.r.dims(), distances)?;
    let fits = |keys: &[usize]| {
        if keys.len() != spans.len() {
            return Err(Error::value(OP, "number of key spans", keys.len(), spans.len().to_string()));
        }
        for (&m, q) in keys.iter().zip(spans.iter()) {
            if m < q.len() || m > distances {
                let expected = format!("from {} (the queries) to {distances} (the distances)", q.len());
                return Err(Error::value(OP, "number of keys", m, expected));
            }
        }
        Ok(())
    };
    let drop = tape.draw(spec.dropout).map(|k| (k, spec.dropout));
    match x.kv {
        RelativeKeys::Rows { k, v, spans: k_spans } => {
            rows("k", k.dims(), k_spans.total())?;
            rows("v", v.dims(), k_spans.total())?;
            fits(&k_spans.iter().map(|r| r.len()).collect::<Vec<_>>())?;
            if tape.kernel(x.q.tensor()) {
                return of_rows(tape, [x.q, x.p, x.r, k, v], spans, k_spans, spec, drop);
            }
            let [y] = tape.composed(&[x.q, x.p, x.r, k, v], |t| {
                let relative = definition::Relative { q: &t[1], r: &t[2] };
                Ok([definition::attention(&t[0], &t[3], &t[4], spans, k_spans, Some(&relative), spec, drop)?])
            })?;
            Ok(y)
        }
        RelativeKeys::Cached(kv) => {
            for (k, v) in kv {
                rows("cached k", k.dims(), k.dim(0)?)?;
                rows("cached v", v.dims(), k.dim(0)?)?;
            }
            let lengths: Vec<usize> = kv.iter().map(|(k, _)| k.dims()[0]).collect();
            fits(&lengths)?;
            if tape.kernel(x.q.tensor()) {
                return of_caches(x, kv, spans, spec);
            }
            let k_spans = Spans::from_lengths(lengths);
            let k = Tensor::cat(&kv.iter().map(|p| &p.0).collect::<Vec<_>>(), 0)?;
            let v = Tensor::cat(&kv.iter().map(|p| &p.1).collect::<Vec<_>>(), 0)?;
            let relative = definition::Relative { q: x.p.tensor(), r: x.r.tensor() };
            let y = definition::attention(x.q.tensor(), &k, &v, spans, &k_spans, Some(&relative), spec, None)?;
            Ok(Value::constant(y))
        }
    }
}

/// Inputs: q, p, r, k, v.
fn of_rows(
    tape: &Tape,
    inputs: [&Value; 5],
    spans: &Spans,
    k_spans: &Spans,
    spec: &AttentionSpec,
    drop: Option<(Key, f32)>,
) -> Result<Value> {
    let (spec, spans, k_spans) = (*spec, spans.clone(), k_spans.clone());
    let w = spec.n_heads * spec.d_head;
    let (n, m, distances) = (spans.total(), k_spans.total(), inputs[2].rows());
    let mut out = uninit(n * w);
    let mut lse = tape.tracks(&inputs).then(|| uninit(n * spec.n_heads));
    let saved = inputs.map(|v| v.tensor().clone());
    with_rows(&saved.each_ref(), |r| {
        let seqs = sequences(&spans, &k_spans, r[3], r[4]);
        let relative = cpu::Relative { q: r[1], r: r[2], n: distances };
        // SAFETY: the matrices have the rows of their spans, and there are as many distances as keys.
        unsafe { cpu::forward(&spec, &seqs, r[0], Some(relative), drop, &mut out, lse.as_deref_mut()) }
    })?;
    let out = tensor(out, &[n, w])?;
    let (kept, targets) = (out.clone(), inputs.map(|v| v.target()));
    Ok(tape.push(&inputs, out, move |g, grads| {
        let lse = lse.unwrap_or_default();
        let [mut dq, mut dp, mut dk, mut dv] = [n, n, m, m].map(|rows| uninit(rows * w));
        // Each sequence adds to all distances; their parts are added in order.
        let mut parts = uninit(spans.len() * distances * w);
        let to_rows = |x: &mut [f32]| cpu::RowsMut { ptr: SendPtr(x.as_mut_ptr()), stride: w };
        let of_sequences: Vec<cpu::RowsMut> = parts.chunks_mut((distances * w).max(1)).map(to_rows).collect();
        with_slices([&kept, &g], |[out, dout]| {
            with_rows(&saved.each_ref(), |r| {
                let seqs = sequences(&spans, &k_spans, r[3], r[4]);
                let relative = cpu::Relative { q: r[1], r: r[2], n: distances };
                let b = cpu::Backward {
                    q: r[0],
                    out,
                    dout,
                    lse: &lse,
                    dq: to_rows(&mut dq),
                    dk: to_rows(&mut dk),
                    dv: to_rows(&mut dv),
                    relative: Some((relative, to_rows(&mut dp), &of_sequences)),
                };
                // SAFETY: as above; the gradients have the shapes of the inputs, and each sequence a copy of the distances'.
                unsafe { cpu::backward(&spec, &seqs, k_spans.offsets(), drop, &b) }
            })
        })??;
        let mut dr = vec![0f32; distances * w];
        for part in parts.chunks((distances * w).max(1)) {
            dr.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        for ((grad, rows), target) in [(dq, n), (dp, n), (dr, distances), (dk, m), (dv, m)].into_iter().zip(&targets) {
            grads.add(target, tensor(grad, &[rows, w])?)?;
        }
        Ok(())
    }))
}

fn of_caches(x: &RelativeQkv<'_>, kv: &[(Tensor, Tensor)], spans: &Spans, spec: &AttentionSpec) -> Result<Value> {
    let (n, w) = (spans.total(), spec.n_heads * spec.d_head);
    let mut out = uninit(n * w);
    let mut views = vec![x.q.tensor(), x.p.tensor(), x.r.tensor()];
    views.extend(kv.iter().flat_map(|(k, v)| [k, v]));
    with_rows(&views, |r| {
        let sequence = |(i, range): (usize, std::ops::Range<usize>)| cpu::Sequence {
            q0: range.start,
            nq: range.len(),
            nk: kv[i].0.dims()[0],
            k: r[3 + 2 * i],
            v: r[4 + 2 * i],
        };
        let seqs: Vec<_> = spans.iter().enumerate().map(sequence).collect();
        let relative = cpu::Relative { q: r[1], r: r[2], n: x.r.rows() };
        // SAFETY: `attention_relative` checked rows, columns and the number of distances.
        unsafe { cpu::forward(spec, &seqs, r[0], Some(relative), None, &mut out, None) }
    })?;
    Ok(Value::constant(tensor(out, &[n, w])?))
}
