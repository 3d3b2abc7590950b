//! Scores that depend on the distance between query and key (Dai et al. 2019, arXiv 1901.02860, section 3.3).

use crate::layer::Affine;
use crate::{Builder, Init, Positions, Result, StackSpec};
use candle_core::{DType, Device, Tensor};
use genus_ops::{
    Activation, AttentionSpec, Param, Precision, RelativeKeys, RelativeQkv, Spans, Tape, Value, add_row,
    attention_relative, dropout,
};

/// The map of distances of one layer, and the two vectors a head that are added to its queries: for contents and for distances.
#[derive(Debug)]
pub(crate) struct Relative {
    map: Affine,
    content: Param,
    distance: Param,
}

impl Relative {
    /// The vectors that all layers share, where they do.
    pub fn shared(b: &mut Builder<'_>, spec: &StackSpec) -> Result<Option<[Param; 2]>> {
        match spec.positions {
            Positions::Relative { shared: true, .. } => Ok(Some(Self::vectors(b, "attention", spec)?)),
            _ => Ok(None),
        }
    }

    fn vectors(b: &mut Builder<'_>, name: &str, spec: &StackSpec) -> Result<[Param; 2]> {
        let (shape, init) = ([spec.n_heads, spec.d_head], Init::Normal(spec.init.std));
        Ok([
            b.param(format!("{name}.content_bias"), &shape, init)?,
            b.param(format!("{name}.distance_bias"), &shape, init)?,
        ])
    }

    pub fn build(b: &mut Builder<'_>, name: &str, spec: &StackSpec, shared: Option<&[Param; 2]>) -> Result<Self> {
        let width = spec.n_heads * spec.d_head;
        let map = Affine::linear(b, &format!("{name}.distance"), spec.d_model, width, spec.layout, spec.init.std)?;
        let [content, distance] = match shared {
            Some(vectors) => vectors.clone(),
            None => Self::vectors(b, name, spec)?,
        };
        Ok(Relative { map, content, distance })
    }

    pub fn prepare(&self, precision: Precision) -> Result<()> {
        self.map.prepare(precision)
    }

    /// Sines and cosines of all distances below `n`, that of the longest first; dropped as embeddings are.
    pub fn distances(tape: &Tape, spec: &StackSpec, clamp: usize, n: usize, like: &Tensor) -> Result<Value> {
        let (d, half) = (spec.d_model, spec.d_model / 2);
        let angle = |p: usize, i: usize| p as f64 / 10_000f64.powf(2.0 * i as f64 / d as f64);
        let row = |x: usize| {
            let p = n - 1 - x;
            let p = if clamp > 0 { p.min(clamp) } else { p };
            (0..d).map(move |j| if j < half { angle(p, j).sin() } else { angle(p, j - half).cos() })
        };
        let values: Vec<f64> = (0..n).flat_map(row).collect();
        let table = Tensor::from_vec(values, (n, d), &Device::Cpu)?.to_dtype(match like.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        })?;
        Ok(dropout(tape, &Value::constant(table.to_device(like.device())?), spec.dropout.embedding)?)
    }

    /// What this layer makes of the distances, `[n, n_heads d_head]`.
    pub fn mapped(&self, tape: &Tape, distances: &Value) -> Result<Value> {
        self.map.forward(tape, distances, Activation::Identity)
    }

    /// Attention of queries `q` `[n, n_heads d_head]`.
    pub fn attend(
        &self,
        tape: &Tape,
        q: &Value,
        kv: RelativeKeys<'_>,
        distances: &Value,
        spans: &Spans,
        spec: &AttentionSpec,
    ) -> Result<Value> {
        let content = add_row(tape, q, &tape.param(&self.content))?;
        let distance = add_row(tape, q, &tape.param(&self.distance))?;
        Ok(attention_relative(tape, &RelativeQkv { q: &content, p: &distance, r: distances, kv }, spans, spec)?)
    }
}
