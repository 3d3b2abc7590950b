//! The memories of the texts that a model with memory reads side by side.

use crate::{Error, Result};
use genus_models::{Model, StreamMemory};
use genus_ops::Tensor;
use genus_text::Batch;
use std::path::Path;

/// A memory for each place of a batch; empty for models without.
#[derive(Clone, Default)]
pub(crate) struct Carried(Vec<StreamMemory>);

impl Carried {
    /// What each example of a batch goes on from: the memory of its place, or a new one where it begins anew.
    pub fn of(&mut self, model: &Model, batch: &Batch) -> Result<Option<&mut [StreamMemory]>> {
        let Some(new) = model.new_memory()? else { return Ok(None) };
        let rows = batch.spans.len();
        self.0.resize(rows, new.clone());
        for (row, memory) in self.0.iter_mut().enumerate() {
            if !batch.continues.get(row).copied().unwrap_or(false) {
                *memory = new.clone();
            }
        }
        Ok(Some(&mut self.0))
    }

    /// The memories by name, for a checkpoint.
    pub fn state(&self, batch: usize) -> Vec<(String, Tensor)> {
        let name = |row: usize, layer: usize| format!("{PREFIX}{batch}.{row}.{layer}");
        let of = |(row, m): (usize, &StreamMemory)| -> Vec<(String, Tensor)> {
            m.tensors().iter().enumerate().map(|(layer, t)| (name(row, layer), t.clone())).collect()
        };
        self.0.iter().enumerate().flat_map(of).collect()
    }
}

/// What the names of memories in a checkpoint begin with.
const PREFIX: &str = "memory.";

/// Takes the memories of a run's batches out of a checkpoint's tensors.
pub(crate) fn restore(model: &Model, tensors: &mut Vec<(String, Tensor)>, checkpoint: &Path) -> Result<Vec<Carried>> {
    let mut found: Vec<([usize; 3], Tensor)> = Vec::new();
    let mut bad = None;
    tensors.retain(|(name, t)| {
        let Some(rest) = name.strip_prefix(PREFIX) else { return true };
        let numbers: Vec<usize> = rest.split('.').filter_map(|n| n.parse().ok()).collect();
        match numbers.try_into() {
            Ok(place) => found.push((place, t.clone())),
            Err(_) => bad = Some(name.clone()),
        }
        false
    });
    let wrong = |what: String, found: String, expected: &str| {
        let expected = expected.to_owned();
        Error::State { checkpoint: checkpoint.to_owned(), what, found, expected }
    };
    if let Some(name) = bad {
        return Err(wrong(name, "a name".into(), "memory.<batch>.<row>.<layer>"));
    }
    found.sort_by_key(|(place, _)| *place);
    let mut all: Vec<Carried> = Vec::new();
    let layers = model.spec().n_layers;
    for group in found.chunk_by(|a, b| a.0[..2] == b.0[..2]) {
        let [batch, row, _] = group[0].0;
        let whole = group.iter().enumerate().all(|(layer, (place, _))| place[2] == layer) && group.len() == layers;
        if all.len() <= batch {
            all.resize_with(batch + 1, Carried::default);
        }
        if !whole || all[batch].0.len() != row {
            let found = format!("{} layers for row {row} of batch {batch}", group.len());
            return Err(wrong("memory".into(), found, "all layers of all rows"));
        }
        let device = model.params()[0].tensor().device().clone();
        let tensors = group
            .iter()
            .map(|(_, t)| Ok(t.to_device(&device).map_err(genus_ops::Error::from)?))
            .collect::<Result<Vec<_>>>()?;
        let memory = StreamMemory::from_tensors(model.spec(), tensors)
            .map_err(|e| wrong("memory".into(), e.to_string(), "that of the model"))?;
        all[batch].0.push(memory);
    }
    Ok(all)
}
