//! What [`super::attention`] computes, in candle's primitives: the scores of each sequence are materialised.

use super::AttentionSpec;
use crate::rng::{Key, drop_row};
use crate::{Result, Spans};
use candle_core::{D, Tensor};

/// The factors of dropout of one sequence's attention weights `[heads, queries, keys]`: the stream of a query's row `r` in the
/// batch and head `h` is row `r * heads + h`, its columns the key's position in the sequence.
fn factors(key: Key, p: f32, row0: usize, heads: usize, queries: usize, keys: usize) -> Vec<f32> {
    let mut mask = vec![1f32; heads * queries * keys];
    for h in 0..heads {
        for i in 0..queries {
            let at = (h * queries + i) * keys;
            drop_row(key, ((row0 + i) * heads + h) as u64, 0, p, &mut mask[at..at + keys]);
        }
    }
    mask
}

/// The relative term: queries for distances, and a vector for each distance, that of the longest first.
pub(crate) struct Relative<'a> {
    pub q: &'a Tensor,
    pub r: &'a Tensor,
}

/// The scores of distances `[n_heads, queries, keys]` of one sequence; keys that come after their query have any.
fn distances(q: &Tensor, r: &Tensor, m: usize, spec: &AttentionSpec) -> Result<Tensor> {
    let (n, all) = (q.dim(0)?, r.dim(0)?);
    let heads = |t: &Tensor, rows: usize| -> Result<Tensor> {
        Ok(t.reshape((rows, spec.n_heads, spec.d_head))?.transpose(0, 1)?.contiguous()?)
    };
    let scores = heads(q, n)?.matmul(&heads(r, all)?.transpose(1, 2)?)?; // [h, n, distances]
    let at = |i: usize, j: usize| (all - 1 - (m - n + i).saturating_sub(j)) as u32;
    let one: Vec<u32> = (0..n).flat_map(|i| (0..m).map(move |j| at(i, j))).collect();
    let index = Tensor::from_vec(one, (1, n, m), q.device())?.broadcast_as((spec.n_heads, n, m))?.contiguous()?;
    Ok(scores.contiguous()?.gather(&index, 2)?)
}

/// Attention weights `[n_heads, queries, keys]` of one sequence from its rows of q and k.
pub(crate) fn weights(q: &Tensor, k: &Tensor, relative: Option<&Relative<'_>>, spec: &AttentionSpec) -> Result<Tensor> {
    let (n, m) = (q.dim(0)?, k.dim(0)?);
    let heads = |t: &Tensor, rows: usize, heads: usize| -> Result<Tensor> {
        Ok(t.reshape((rows, heads, spec.d_head))?.transpose(0, 1)?.contiguous()?)
    };
    let group = spec.n_heads / spec.n_kv_heads;
    let q = heads(q, n, spec.n_heads)?.reshape((spec.n_kv_heads, group * n, spec.d_head))?;
    let k = heads(k, m, spec.n_kv_heads)?;
    let mut scores = q.matmul(&k.transpose(1, 2)?)?.reshape((spec.n_heads, n, m))?;
    if let Some(relative) = relative {
        scores = scores.add(&distances(relative.q, relative.r, m, spec)?)?;
    }
    let scores = scores.affine(spec.scale as f64, 0.0)?;
    let mut hidden = vec![f32::NEG_INFINITY; n * m];
    for i in 0..n {
        hidden[i * m..(i + 1) * m][spec.mask.visible((m + i).saturating_sub(n), m)].fill(0.0);
    }
    let hidden = Tensor::from_vec(hidden, (1, n, m), scores.device())?.to_dtype(scores.dtype())?;
    let scores = scores.broadcast_add(&hidden)?;
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &Spans,
    k_spans: &Spans,
    relative: Option<&Relative<'_>>,
    spec: &AttentionSpec,
    dropout: Option<(Key, f32)>,
) -> Result<Tensor> {
    let mut rows = Vec::new();
    for (qr, kr) in spans.iter().zip(k_spans.iter()) {
        let (n, m) = (qr.len(), kr.len());
        if n == 0 {
            continue;
        }
        if m == 0 {
            rows.push(q.narrow(0, qr.start, n)?.affine(0.0, 0.0)?);
            continue;
        }
        let of_positions = relative.map(|r| r.q.narrow(0, qr.start, n)).transpose()?;
        let here = relative.zip(of_positions.as_ref()).map(|(r, q)| Relative { q, r: r.r });
        let mut p = weights(&q.narrow(0, qr.start, n)?, &k.narrow(0, kr.start, m)?, here.as_ref(), spec)?;
        if let Some((key, rate)) = dropout {
            let f = Tensor::from_vec(factors(key, rate, qr.start, spec.n_heads, n, m), p.shape(), p.device())?;
            p = p.mul(&f.to_dtype(p.dtype())?)?;
        }
        let v = v.narrow(0, kr.start, m)?.reshape((m, spec.n_kv_heads, spec.d_head))?.transpose(0, 1)?.contiguous()?;
        let group = spec.n_heads / spec.n_kv_heads;
        let o = p.reshape((spec.n_kv_heads, group * n, m))?.matmul(&v)?.reshape((spec.n_heads, n, spec.d_head))?;
        rows.push(o.transpose(0, 1)?.contiguous()?.reshape((n, spec.n_heads * spec.d_head))?);
    }
    if rows.is_empty() {
        return Ok(q.narrow(0, 0, 0)?.contiguous()?);
    }
    Ok(Tensor::cat(&rows, 0)?)
}
