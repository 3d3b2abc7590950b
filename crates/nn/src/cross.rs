//! Attention of a decoder's tokens to what an encoder made of another sequence.

use crate::attention::projection;
use crate::layer::{Affine, NormParams, residual_std};
use crate::{Builder, Error, Result, SequenceCache, StackSpec};
use genus_ops::{Activation, AttentionSpec, Precision, Qkv, Spans, Tape, Tensor, Value, attention, reshape};

/// An encoder's hidden states of a batch.
#[derive(Clone)]
pub struct Encoded {
    /// `[m, d]`, of the tokens of all sequences.
    pub states: Value,
    /// Where each sequence begins and ends.
    pub spans: Spans,
}

/// What a layer reads.
pub(crate) enum Reading<'a> {
    /// Hidden states, one sequence for each of the batch's.
    States(&'a Encoded),
    /// Keys and values that caches have kept.
    Kept(&'a [SequenceCache]),
}

/// Multi-head attention whose keys and values come from an encoder (Vaswani et al. 2017, section 3.2.3), with the norm of its
/// residual connection.
#[derive(Debug)]
pub(crate) struct Cross {
    query: Affine,
    key: Affine,
    value: Affine,
    out: Affine,
    spec: AttentionSpec,
    pub norm: NormParams,
}

impl Cross {
    pub fn build(b: &mut Builder<'_>, name: &str, spec: &StackSpec) -> Result<Self> {
        let (d, q, kv) = (spec.d_model, spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
        let std = spec.init.std;
        Ok(Cross {
            query: projection(b, name, "query", spec, [d, q], std)?,
            key: projection(b, name, "key", spec, [d, kv], std)?,
            value: projection(b, name, "value", spec, [d, kv], std)?,
            out: projection(b, name, "out", spec, [q, d], residual_std(spec))?,
            spec: spec.cross_attention(),
            norm: NormParams::build(b, &format!("{name}_norm"), spec)?,
        })
    }

    pub fn prepare(&self, precision: Precision) -> Result<()> {
        [&self.query, &self.key, &self.value, &self.out].into_iter().try_for_each(|m| m.prepare(precision))
    }

    fn keys_and_values(&self, tape: &Tape, encoded: &Encoded) -> Result<(Value, Value)> {
        // A place of this layer's own for the gradients of both, so that they are added up before they go back: a layer that is run
        // again in the backward pass adds in this order, too.
        let states = reshape(tape, &encoded.states, encoded.states.dims())?;
        let of = |map: &Affine| map.forward(tape, &states, Activation::Identity);
        Ok((of(&self.key)?, of(&self.value)?))
    }

    /// Keeps keys and values of each sequence in its cache.
    pub fn keep(&self, tape: &Tape, encoded: &Encoded, caches: &mut [SequenceCache]) -> Result<()> {
        let (k, v) = self.keys_and_values(tape, encoded)?;
        for (cache, r) in caches.iter_mut().zip(encoded.spans.iter()) {
            // Copies, so that a finished sequence's neighbours do not keep its rows (`copy` would take all that the view is a part of).
            let rows = |x: &Value| x.tensor().narrow(0, r.start, r.len())?.force_contiguous();
            cache.keep_encoded(rows(&k)?, rows(&v)?);
        }
        Ok(())
    }

    /// `x` `[n, d]` are the rows of `spans`.
    pub fn forward(&self, tape: &Tape, x: &Value, spans: &Spans, layer: usize, from: &Reading<'_>) -> Result<Value> {
        let q = self.query.forward(tape, x, Activation::Identity)?;
        let y = match from {
            Reading::States(encoded) => {
                let (k, v) = self.keys_and_values(tape, encoded)?;
                attention(tape, Qkv::Separate { q: &q, k: &k, v: &v, k_spans: &encoded.spans }, spans, &self.spec)?
            }
            Reading::Kept(caches) => {
                // Neighbours that read the same sequence (beams) are one span: every token sees all of it.
                let (mut kv, mut lengths) = (Vec::<(Tensor, Tensor)>::new(), Vec::<usize>::new());
                for (cache, r) in caches.iter().zip(spans.iter()) {
                    let kept = cache.encoded(layer).ok_or(Error::NotEncoded)?;
                    match (kv.last(), lengths.last_mut()) {
                        (Some(last), Some(length)) if last.0.id() == kept.0.id() => *length += r.len(),
                        _ => {
                            kv.push(kept.clone());
                            lengths.push(r.len());
                        }
                    }
                }
                let spans = Spans::from_lengths(lengths);
                attention(tape, Qkv::Cached { q: q.tensor(), kv: &kv }, &spans, &self.spec)?
            }
        };
        self.out.forward(tape, &y, Activation::Identity)
    }
}
