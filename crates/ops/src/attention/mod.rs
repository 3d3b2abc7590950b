//! Attention over ragged batches, once for all models.

pub(crate) mod definition;

use crate::linear::matrix;
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
            let [y] = tape.composed(&[x], |t| {
                let part = |from, width| Ok::<_, Error>(t[0].narrow(1, from, width)?);
                let (q, k, v) = (part(0, q_width)?, part(q_width, kv_width)?, part(q_width + kv_width, kv_width)?);
                Ok([definition::attention(&q, &k, &v, spans, spans, spec, drop)?])
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
            let [y] = tape.composed(&[q, k, v], |t| {
                Ok([definition::attention(&t[0], &t[1], &t[2], spans, k_spans, spec, drop)?])
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
            let k_spans = Spans::from_lengths(kv.iter().map(|(k, _)| k.dims()[0]));
            let k = Tensor::cat(&kv.iter().map(|p| &p.0).collect::<Vec<_>>(), 0)?;
            let v = Tensor::cat(&kv.iter().map(|p| &p.1).collect::<Vec<_>>(), 0)?;
            Ok(Value::constant(definition::attention(q, &k, &v, spans, &k_spans, spec, None)?))
        }
    }
}
