//! Multi-head attention of a layer's tokens to their own sequence, with its projections.

use crate::layer::{Affine, Cached, Ends, NormParams, residual_std};
use crate::memory::Carried;
use crate::relative::Relative;
use crate::{AttentionBias, Builder, Encoded, Error, Positions, Projections, Result, SequenceCache, StackSpec};
use genus_ops::{
    Activation, AttentionSpec, Param, Precision, Qkv, RelativeKeys, Spans, Tape, Value, attention, columns,
    gather_rows, join_rows, residual_norm,
};

#[derive(Debug)]
enum Projection {
    Packed(Affine),
    Separate([Affine; 3]),
}

/// Multi-head attention with its projections (Vaswani et al. 2017, section 3.2.2).
#[derive(Debug)]
pub(crate) struct Attention {
    qkv: Projection,
    out: Affine,
    relative: Option<Relative>,
    spec: AttentionSpec,
    /// Tokens of memory.
    memory: usize,
}

/// What a layer's attention reads besides its own tokens.
#[derive(Clone, Copy, Default)]
pub(crate) struct Around<'a> {
    /// What an encoder made, where there are no caches that have kept it.
    pub encoded: Option<&'a Encoded>,
    /// The memories of the batch, where there are no caches.
    pub carried: Option<&'a Carried>,
    /// Sines and cosines of distances.
    pub distances: Option<&'a Value>,
}

impl Attention {
    pub fn build(
        b: &mut Builder<'_>,
        name: &str,
        spec: &StackSpec,
        layer: usize,
        shared: Option<&[Param; 2]>,
    ) -> Result<Self> {
        let (d, q, kv) = (spec.d_model, spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
        let std = spec.init.std;
        let mut map = |part: &str, d_in, d_out, std| projection(b, name, part, spec, [d_in, d_out], std);
        let qkv = match spec.projections {
            Projections::Packed => Projection::Packed(map("qkv", d, q + 2 * kv, std)?),
            Projections::Separate => {
                Projection::Separate([map("query", d, q, std)?, map("key", d, kv, std)?, map("value", d, kv, std)?])
            }
        };
        let out = map("out", q, d, residual_std(spec))?;
        let relative = match spec.positions {
            Positions::Relative { .. } => Some(Relative::build(b, name, spec, shared)?),
            _ => None,
        };
        Ok(Attention { qkv, out, relative, spec: spec.attention(layer), memory: spec.memory_length() })
    }

    pub fn prepare(&self, precision: Precision) -> Result<()> {
        match &self.qkv {
            Projection::Packed(map) => map.prepare(precision)?,
            Projection::Separate(maps) => maps.iter().try_for_each(|m| m.prepare(precision))?,
        }
        self.relative.as_ref().map_or(Ok(()), |r| r.prepare(precision))?;
        self.out.prepare(precision)
    }

    /// `x` are the rows of `spans`, normalised where the layer normalises first; `norm` does the same to those of a memory.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        tape: &Tape,
        x: &Value,
        spans: &Spans,
        layer: usize,
        around: &Around<'_>,
        norm: Option<&NormParams>,
        cached: Cached<'_>,
    ) -> Result<Value> {
        if let (Some(relative), Projection::Packed(map)) = (&self.relative, &self.qkv) {
            let y = match cached {
                None => self.carried(tape, relative, map, x, spans, layer, around, norm)?,
                Some(cached) => self.cached_relative(tape, relative, map, x, spans, layer, around, norm, cached)?,
            };
            return self.out.forward(tape, &y, Activation::Identity);
        }
        let (q_width, kv_width) = (self.spec.n_heads * self.spec.d_head, self.spec.n_kv_heads * self.spec.d_head);
        let y = match &self.qkv {
            Projection::Packed(map) => {
                let qkv = map.forward(tape, x, Activation::Identity)?;
                match cached {
                    None => attention(tape, Qkv::Packed(&qkv), spans, &self.spec)?,
                    Some(cached) => {
                        let t = qkv.tensor();
                        let k = t.narrow(1, q_width, kv_width)?;
                        let v = t.narrow(1, q_width + kv_width, kv_width)?;
                        self.cached(tape, &t.narrow(1, 0, q_width)?, &k, &v, spans, layer, cached)?
                    }
                }
            }
            Projection::Separate(maps) => {
                let [q, k, v] = [0, 1, 2].map(|i| maps[i].forward(tape, x, Activation::Identity));
                let (q, k, v) = (q?, k?, v?);
                match cached {
                    None => attention(tape, Qkv::Separate { q: &q, k: &k, v: &v, k_spans: spans }, spans, &self.spec)?,
                    Some(cached) => self.cached(tape, q.tensor(), k.tensor(), v.tensor(), spans, layer, cached)?,
                }
            }
        };
        self.out.forward(tape, &y, Activation::Identity)
    }

    /// Rows of a memory as a layer that normalises first reads them.
    fn normalised(tape: &Tape, rows: Value, norm: Option<&NormParams>) -> Result<Value> {
        match norm {
            None => Ok(rows),
            Some(norm) => {
                let [_, y] = norm.with(tape, |norm| residual_norm(tape, &rows, None, norm))?;
                Ok(y)
            }
        }
    }

    /// Attention to the memories of the batch and its own tokens.
    #[allow(clippy::too_many_arguments)]
    fn carried(
        &self,
        tape: &Tape,
        relative: &Relative,
        map: &Affine,
        x: &Value,
        spans: &Spans,
        layer: usize,
        around: &Around<'_>,
        norm: Option<&NormParams>,
    ) -> Result<Value> {
        let (Some(carried), Some(distances)) = (around.carried, around.distances) else { return Err(Error::NoMemory) };
        let w = self.spec.n_heads * self.spec.d_head;
        let memory = Self::normalised(tape, Value::constant(carried.layers[layer].clone()), norm)?;
        let keys = join_rows(tape, &memory, x, &carried.order)?;
        let qkv = map.forward(tape, &keys, Activation::Identity)?;
        let [q, k, v] = [0, 1, 2].map(|i| columns(tape, &qkv, i * w, w));
        let q = gather_rows(tape, &q?, &carried.own)?;
        let kv = RelativeKeys::Rows { k: &k?, v: &v?, spans: &carried.spans };
        relative.attend(tape, &q, kv, &relative.mapped(tape, distances)?, spans, &self.spec)
    }

    /// The same with the keys and values that caches have kept; a new cache begins with those of a memory of zeros.
    #[allow(clippy::too_many_arguments)]
    fn cached_relative(
        &self,
        tape: &Tape,
        relative: &Relative,
        map: &Affine,
        x: &Value,
        spans: &Spans,
        layer: usize,
        around: &Around<'_>,
        norm: Option<&NormParams>,
        (caches, ends): (&mut [SequenceCache], Option<&Ends>),
    ) -> Result<Value> {
        let w = self.spec.n_heads * self.spec.d_head;
        if self.memory > 0 && caches.iter().any(|c| c.is_new(layer)) {
            let (d, t) = (x.dims()[1], x.tensor());
            let zeros = Value::constant(genus_ops::Tensor::zeros((1, d), t.dtype(), t.device())?);
            let row = map.forward(tape, &Self::normalised(tape, zeros, norm)?, Activation::Identity)?;
            let part = |i: usize| row.tensor().narrow(1, i * w, w)?.broadcast_as((self.memory, w))?.contiguous();
            let (k, v) = (part(1)?, part(2)?);
            for cache in caches.iter_mut().filter(|c| c.is_new(layer)) {
                cache.append(layer, &k, &v, 0, self.memory)?;
            }
        }
        let qkv = map.forward(tape, x, Activation::Identity)?;
        let t = qkv.tensor();
        let (k, v) = (t.narrow(1, w, w)?, t.narrow(1, 2 * w, w)?);
        let append =
            |(r, cache): (std::ops::Range<usize>, &mut SequenceCache)| cache.append(layer, &k, &v, r.start, r.len());
        let kv = spans.iter().zip(caches.iter_mut()).map(append).collect::<Result<Vec<_>>>()?;
        let needed = kv.iter().map(|(k, _)| k.dims()[0]).max().unwrap_or(0);
        let kept = caches.iter().find_map(|c| c.distances(layer, needed).cloned());
        let distances = match (kept, around.distances) {
            (Some(kept), _) => kept,
            (None, Some(distances)) => relative.mapped(tape, distances)?.tensor().clone(),
            (None, None) => return Err(Error::NoMemory),
        };
        caches.iter_mut().for_each(|c| c.keep_distances(layer, distances.clone()));
        let (q, spans) = match ends {
            None => (t.narrow(1, 0, w)?.contiguous()?, spans),
            Some(ends) => {
                let q = Value::constant(t.narrow(1, 0, w)?.contiguous()?);
                (gather_rows(tape, &q, &ends.rows)?.tensor().clone(), &ends.spans)
            }
        };
        // A sequence that does not count has no query, whatever its keys.
        let distances = Value::constant(distances);
        relative.attend(tape, &Value::constant(q), RelativeKeys::Cached(&kv), &distances, spans, &self.spec)
    }

    #[allow(clippy::too_many_arguments)]
    fn cached(
        &self,
        tape: &Tape,
        q: &genus_ops::Tensor,
        k: &genus_ops::Tensor,
        v: &genus_ops::Tensor,
        spans: &Spans,
        layer: usize,
        (caches, ends): (&mut [SequenceCache], Option<&Ends>),
    ) -> Result<Value> {
        let kv = spans
            .iter()
            .zip(caches)
            .map(|(r, cache)| cache.append(layer, k, v, r.start, r.len()))
            .collect::<Result<Vec<_>>>()?;
        match ends {
            None => Ok(attention(tape, Qkv::Cached { q, kv: &kv }, spans, &self.spec)?),
            Some(ends) => {
                let q = gather_rows(tape, &Value::constant(q.clone()), &ends.rows)?;
                Ok(attention(tape, Qkv::Cached { q: q.tensor(), kv: &kv }, &ends.spans, &self.spec)?)
            }
        }
    }
}

/// One of an attention's maps.
pub(crate) fn projection(
    b: &mut Builder<'_>,
    name: &str,
    part: &str,
    spec: &StackSpec,
    [d_in, d_out]: [usize; 2],
    std: f64,
) -> Result<Affine> {
    let build = match spec.attention_bias {
        AttentionBias::Output if part != "out" => Affine::linear,
        AttentionBias::None => Affine::linear,
        AttentionBias::Output | AttentionBias::All => Affine::build,
    };
    build(b, &format!("{name}.{part}"), d_in, d_out, spec.layout, std)
}
