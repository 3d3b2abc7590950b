//! From the data that a pickle describes to named tensors within the file.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use super::vm::{Machine, Node, TensorRef};
use crate::error::shorten;
use crate::weights::Entry;
use crate::{Error, Result};

/// Keys under which training programs put the state dict.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// All tensors of the state dict at `root`, or under one of [`WRAPPERS`] in it. `place` gives the range of a storage in
/// the file, whose length is `file_len`.
pub(super) fn tensors(
    file: &Path,
    machine: &Machine<'_>,
    root: u32,
    index: usize,
    file_len: usize,
    place: impl Fn(&str) -> Result<Range<usize>>,
) -> Result<Vec<(String, Entry)>> {
    let Some(items) = state_dict(machine, root, 3) else {
        let expected = format!("a state dict (names to tensors), also under one of {}", WRAPPERS.join(", "));
        return Err(Error::malformed(file, "content", "no tensors", expected));
    };
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for &(key, value) in items {
        let Node::Tensor(tensor) = machine.node(value) else { continue };
        let Node::Str(name) = machine.node(key) else {
            return Err(Error::malformed(file, "state dict", "a tensor under a key that is no text", "text"));
        };
        if !seen.insert(name) {
            let item = format!("tensor `{}`", shorten(name, 120));
            return Err(Error::malformed(file, item, "the name twice", "every name once"));
        }
        out.push((name.clone(), entry(file, machine, name, tensor, index, file_len, &place)?));
    }
    Ok(out)
}

/// The items of the dict that holds tensors.
fn state_dict<'m>(machine: &'m Machine<'_>, id: u32, depth: usize) -> Option<&'m [(u32, u32)]> {
    let Node::Dict(items) = machine.node(id) else { return None };
    if items.iter().any(|(_, v)| matches!(machine.node(*v), Node::Tensor(_))) {
        return Some(items);
    }
    if depth == 0 {
        return None;
    }
    WRAPPERS.iter().find_map(|w| state_dict(machine, machine.dict_get(id, w)?, depth - 1))
}

fn entry(
    file: &Path,
    machine: &Machine<'_>,
    name: &str,
    tensor: &TensorRef,
    index: usize,
    file_len: usize,
    place: impl Fn(&str) -> Result<Range<usize>>,
) -> Result<Entry> {
    let bad = |found: String, expected: String| {
        Error::malformed(file, format!("tensor `{}`", shorten(name, 120)), found, expected)
    };
    let Some(storage) = machine.storages().get(tensor.storage) else {
        return Err(bad("an unknown storage".into(), "a storage of the file".into()));
    };
    let range = place(&storage.key)?;
    let size = storage.dtype.size();
    if storage.elements.checked_mul(size) != Some(range.len()) {
        let found = format!("{} bytes in storage `{}`", range.len(), shorten(&storage.key, 80));
        return Err(bad(found, format!("{} elements of {}", storage.elements, storage.dtype)));
    }
    // With empty dimensions left out, because strides are products of the others and must be countable too.
    let span = tensor.shape.iter().try_fold(1usize, |acc, &d| acc.checked_mul(d.max(1)));
    let elements = span.map(|s| if tensor.shape.contains(&0) { 0 } else { s });
    // A stride of 0 repeats elements; reading such a tensor must not need more memory than the file has bytes.
    let bytes = elements.and_then(|e| e.checked_mul(size)).filter(|b| *b <= file_len);
    if bytes.is_none() {
        let found = format!("shape {:?} of {}", tensor.shape, storage.dtype);
        return Err(bad(found, format!("at most the {file_len} bytes of the file")));
    }
    let empty = elements == Some(0);
    let last = tensor
        .shape
        .iter()
        .zip(&tensor.strides)
        .try_fold(tensor.offset, |acc, (&d, &s)| acc.checked_add(d.saturating_sub(1).checked_mul(s)?));
    if !empty && last.is_none_or(|l| l >= storage.elements) {
        let found = format!("offset {}, shape {:?}, strides {:?}", tensor.offset, tensor.shape, tensor.strides);
        return Err(bad(found, format!("a place within the {} elements of its storage", storage.elements)));
    }
    // In range: offset < elements, whose bytes are all in the file.
    let begin = if empty { range.start } else { range.start + tensor.offset * size };
    let strides = (!empty && !contiguous(&tensor.shape, &tensor.strides)).then(|| {
        // Nobody steps along a dimension of one element, whatever its stride says.
        tensor.shape.iter().zip(&tensor.strides).map(|(&d, &s)| if d == 1 { 0 } else { s }).collect()
    });
    Ok(Entry { file: index, begin, shape: tensor.shape.clone(), dtype: storage.dtype, strides })
}

/// Whether the elements lie in row-major order; the stride of a dimension of one element does not matter.
fn contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1usize;
    for (&d, &s) in shape.iter().zip(strides).rev() {
        if d != 1 && s != step {
            return false;
        }
        step = step.saturating_mul(d);
    }
    true
}
