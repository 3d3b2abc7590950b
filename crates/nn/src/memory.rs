//! What a stack carries from one segment of a text to the next (Dai et al. 2019, arXiv 1901.02860, section 3.2).

use crate::{Error, Result, StackSpec};
use candle_core::{DType, Device, Tensor};
use genus_ops::{Spans, Value};

/// Each layer's inputs for the last tokens of one text, all zeros at its beginning.
#[derive(Clone, Debug)]
pub struct StreamMemory {
    layers: Vec<Tensor>,
}

impl StreamMemory {
    /// That of a text of which nothing was read.
    ///
    /// # Errors
    /// When memory on the device is short.
    pub fn new(spec: &StackSpec, dtype: DType, device: &Device) -> Result<Self> {
        let zeros = Tensor::zeros((spec.memory_length(), spec.d_model), dtype, device)?;
        Ok(StreamMemory { layers: vec![zeros; spec.n_layers] })
    }

    /// A memory from its layers' tensors `[length, d]`.
    ///
    /// # Errors
    /// When their number or shapes are not those of the specification.
    pub fn from_tensors(spec: &StackSpec, layers: Vec<Tensor>) -> Result<Self> {
        if layers.len() != spec.n_layers {
            return Err(Error::Length { what: "layers of a memory", found: layers.len(), expected: spec.n_layers });
        }
        for t in &layers {
            if t.dims() != [spec.memory_length(), spec.d_model] {
                let found = t.dims().first().copied().unwrap_or(0);
                return Err(Error::Length { what: "tokens of a memory", found, expected: spec.memory_length() });
            }
        }
        Ok(StreamMemory { layers })
    }

    /// The layers' tensors `[length, d]`.
    pub fn tensors(&self) -> &[Tensor] {
        &self.layers
    }

    /// Takes up the layers' inputs `rows` of a batch.
    pub(crate) fn take_up(&mut self, inputs: &[Value], rows: std::ops::Range<usize>) -> Result<()> {
        for (memory, x) in self.layers.iter_mut().zip(inputs) {
            let (length, n) = (memory.dim(0)?, rows.len());
            let new = n.min(length);
            let tail = x.tensor().narrow(0, rows.end - new, new)?;
            *memory = if new == length {
                // Not `copy`, which would take and keep the whole batch.
                tail.force_contiguous()?
            } else {
                Tensor::cat(&[&memory.narrow(0, new, length - new)?, &tail.contiguous()?], 0)?
            };
        }
        Ok(())
    }
}

/// The memories of a batch, laid out for its layers.
#[derive(Debug)]
pub(crate) struct Carried {
    /// The rows of all sequences' memories for each layer, `[sequences * length, d]`.
    pub layers: Vec<Tensor>,
    /// The rows of memories and of the batch (which come behind them) in the order of the keys.
    pub order: Vec<u32>,
    /// The keys of each sequence.
    pub spans: Spans,
    /// Where the batch's own tokens are among the keys.
    pub own: Vec<u32>,
}

impl Carried {
    pub fn new(memories: &[StreamMemory], spans: &Spans, length: usize) -> Result<Self> {
        let n_layers = memories.first().map_or(0, |m| m.layers.len());
        let rows = |l: usize| Tensor::cat(&memories.iter().map(|m| &m.layers[l]).collect::<Vec<_>>(), 0);
        let layers = (0..n_layers).map(rows).collect::<candle_core::Result<_>>()?;
        let all = memories.len() * length;
        let (mut order, mut own) = (Vec::new(), Vec::new());
        for (s, r) in spans.iter().enumerate() {
            order.extend((s * length..(s + 1) * length).map(|i| i as u32));
            own.extend((0..r.len()).map(|i| (order.len() + i) as u32));
            order.extend(r.map(|i| (all + i) as u32));
        }
        let spans = Spans::from_lengths(spans.iter().map(|r| length + r.len()));
        Ok(Carried { layers, order, spans, own })
    }
}
