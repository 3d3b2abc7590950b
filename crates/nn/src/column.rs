//! The layers that a stream goes through, one after the other, and their reading from the other end.

use crate::attention::Around;
use crate::layer::{Ends, Layer, NormParams, Stream};
use crate::memory::Carried;
use crate::recurrent::RecurrentLayer;
use crate::relative::Relative;
use crate::{Builder, FinalNorm, Mixing, Result, SequenceCache, StackSpec};
use genus_ops::{Branch, Precision, Spans, Tape, Value, beside, gather_rows, residual};
use std::sync::Arc;

/// Layers of one kind and perhaps a final norm.
#[derive(Debug)]
pub(crate) struct Column {
    layers: Layers,
    final_norm: Option<NormParams>,
    /// Of residual streams.
    dropout: f32,
}

#[derive(Debug)]
enum Layers {
    Attention(Vec<Arc<Layer>>),
    Recurrent(Vec<Arc<RecurrentLayer>>),
}

/// What a pass through the layers is given besides the stream.
pub(crate) struct Pass<'a> {
    pub spans: &'a Spans,
    pub around: Around<'a>,
    /// What `around` borrows of memories and distances, for layers that are run again.
    pub carried: Option<(Arc<Carried>, Value)>,
    pub caches: Option<&'a mut [SequenceCache]>,
    /// Of the last layer.
    pub ends: Option<&'a Ends>,
    pub recompute: bool,
}

impl<'a> Pass<'a> {
    /// Sequences and nothing else.
    pub fn over(spans: &'a Spans) -> Self {
        let around = Around { encoded: None, carried: None, distances: None };
        Pass { spans, around, carried: None, caches: None, ends: None, recompute: false }
    }
}

impl Column {
    pub fn build(b: &mut Builder<'_>, spec: &StackSpec) -> Result<Self> {
        let indices = 0..spec.n_layers;
        let layers = match spec.mixing {
            Mixing::Attention => {
                let shared = Relative::shared(b, spec)?;
                let layer = |i| Layer::build(b, spec, i, shared.as_ref()).map(Arc::new);
                Layers::Attention(indices.map(layer).collect::<Result<_>>()?)
            }
            Mixing::Recurrent { .. } => {
                let layer = |i| RecurrentLayer::build(b, spec, i).map(Arc::new);
                Layers::Recurrent(indices.map(layer).collect::<Result<_>>()?)
            }
        };
        let final_norm = match spec.final_norm {
            FinalNorm::None => None,
            FinalNorm::Norm => Some(NormParams::build(b, "final_norm", spec)?),
        };
        Ok(Column { layers, final_norm, dropout: spec.dropout.residual })
    }

    pub fn prepare(&self, precision: Precision) -> Result<()> {
        match &self.layers {
            Layers::Attention(layers) => layers.iter().try_for_each(|l| l.prepare(precision)),
            Layers::Recurrent(layers) => layers.iter().try_for_each(|l| l.prepare(precision)),
        }
    }

    /// The layers that attend.
    pub fn attention(&self) -> &[Arc<Layer>] {
        match &self.layers {
            Layers::Attention(layers) => layers,
            Layers::Recurrent(_) => &[],
        }
    }

    pub fn is_empty(&self) -> bool {
        match &self.layers {
            Layers::Attention(layers) => layers.is_empty(),
            Layers::Recurrent(layers) => layers.is_empty(),
        }
    }

    /// What the last layer leaves; `keep` receives what every layer reads.
    pub fn forward(&self, tape: &Tape, x: Value, pass: Pass<'_>, keep: &mut dyn FnMut(&Value)) -> Result<Value> {
        let Pass { spans, around, carried, mut caches, ends, recompute } = pass;
        let layers = match &self.layers {
            Layers::Attention(layers) => layers,
            Layers::Recurrent(layers) => {
                return layers.iter().try_fold(x, |x, layer| {
                    keep(&x);
                    match recompute {
                        true => RecurrentLayer::recomputed(layer, tape, &x, spans),
                        false => layer.forward(tape, &x, spans),
                    }
                });
            }
        };
        let mut s = Stream { x, branch: None };
        for (i, layer) in layers.iter().enumerate() {
            if recompute {
                s = Layer::recomputed(layer, tape, s, spans, around.encoded, carried.as_ref(), keep)?;
                continue;
            }
            let ends = ends.filter(|_| i + 1 == layers.len());
            let cached = caches.as_deref_mut().map(|c| (c, ends));
            s = layer.forward(tape, s, spans, &around, cached, keep)?;
        }
        match (&self.final_norm, s.branch.as_ref()) {
            (Some(norm), _) => {
                let [_, y] = Layer::join(tape, &s, norm, self.dropout)?;
                Ok(y)
            }
            (None, Some(value)) => Ok(residual(tape, &s.x, Branch { value, dropout: self.dropout })?),
            (None, None) => Ok(s.x),
        }
    }
}

/// For every token of each sequence the one at the same distance from the other end.
pub(crate) fn reversed(spans: &Spans) -> Vec<u32> {
    spans.iter().flat_map(|r| r.rev().map(|i| i as u32)).collect()
}

/// Both directions, the second of which was read from the other end, as `[n, 2 d]`.
pub(crate) fn side_by_side(tape: &Tape, forward: &Value, backward: &Value, reversed: &[u32]) -> Result<Value> {
    Ok(beside(tape, &[forward, &gather_rows(tape, backward, reversed)?])?)
}
