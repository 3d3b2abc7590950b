//! Writing the weights of a model folder: safetensors, one file or shards with an index, as `transformers` names them.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Storage, Tensor};
use serde_json::{Map, Value, json};

use crate::atomic::{Pending, sync_dir};
use crate::{Dtype, Error, Result, Weights, dtype};

/// How weights are written.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Type that float tensors get in the file: F32, F16, BF16 (or F64). Integer tensors keep theirs.
    pub dtype: Dtype,
    /// Start a new shard where a file would exceed this many bytes of tensors; `None` writes one file.
    pub max_shard_bytes: Option<u64>,
    /// Further `__metadata__` of the files beside `format: pt`.
    pub metadata: BTreeMap<String, String>,
}

impl Default for WriteOptions {
    /// One file in f32.
    fn default() -> Self {
        WriteOptions { dtype: Dtype::F32, max_shard_bytes: None, metadata: BTreeMap::new() }
    }
}

/// Name, shape and whether it is a float: what must be known of a tensor before its content is needed.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The tensor's own type; floats are written as [`WriteOptions::dtype`].
    pub dtype: DType,
}

/// What is to stand in a file.
struct Planned<'a> {
    index: usize,
    name: &'a str,
    shape: &'a [usize],
    dtype: Dtype,
    bytes: u64,
}

/// Appends the content of a planned tensor to a file.
type Emit<'e> = dyn FnMut(&Planned<'_>, &mut Pending) -> Result<()> + 'e;

/// Write `tensors` into `folder` as `model.safetensors`, or as `model-00001-of-0000N.safetensors` with
/// `model.safetensors.index.json` when they exceed [`WriteOptions::max_shard_bytes`].
///
/// Files are finished under temporary names and then renamed, so a failure leaves the old ones as they were and a mapped
/// old file stays valid; shards of an older model are removed at the end. Tensors go out one at a time: memory grows by
/// one converted tensor at most.
///
/// # Errors
/// [`Error::Write`] (disk full and its kin, with file and bytes), [`Error::Argument`] (duplicate names, a type that
/// cannot be written).
pub fn write_model(folder: impl AsRef<Path>, tensors: &[(String, Tensor)], options: &WriteOptions) -> Result<()> {
    write_tensors(folder, &specs(tensors), |i| Ok(tensors[i].1.clone()), options)
}

fn specs(tensors: &[(String, Tensor)]) -> Vec<TensorSpec> {
    let spec =
        |(name, t): &(String, Tensor)| TensorSpec { name: name.clone(), shape: t.dims().to_vec(), dtype: t.dtype() };
    tensors.iter().map(spec).collect()
}

/// Like [`write_model`] for tensors that are made on demand: `fetch(i)` gives the content of `specs[i]`, and is called
/// once for each, in the order in which they stand in the files. So a model can be written that is never whole in memory.
///
/// # Errors
/// As [`write_model`], those of `fetch`, and [`Error::Argument`] when `fetch` gives another shape than announced.
pub fn write_tensors(
    folder: impl AsRef<Path>,
    specs: &[TensorSpec],
    mut fetch: impl FnMut(usize) -> Result<Tensor>,
    options: &WriteOptions,
) -> Result<()> {
    let planned = plan_specs(specs, options)?;
    write_planned(folder.as_ref(), &planned, &mut |p, file| emit_spec(specs, &mut fetch, p, file), options)
}

/// Write tensors of an opened checkpoint into `folder`, under the names that `names` pairs with theirs (old, new). Floats
/// are converted to [`WriteOptions::dtype`] in pieces, others are copied; nothing is held in memory.
///
/// # Errors
/// As [`write_model`], and [`Error::NoTensor`].
pub fn copy_weights(
    weights: &Weights,
    names: &[(String, String)],
    folder: impl AsRef<Path>,
    options: &WriteOptions,
) -> Result<()> {
    let mut infos = Vec::with_capacity(names.len());
    for (old, _) in names {
        let entry = weights.entry(old)?;
        infos.push((entry.shape.clone(), if entry.dtype.is_float() { options.dtype } else { entry.dtype }));
    }
    let items = names.iter().zip(&infos).map(|((_, new), (shape, dtype))| (new.as_str(), shape.as_slice(), *dtype));
    let planned = plan(items, options)?;
    let mut emit = |p: &Planned<'_>, file: &mut Pending| {
        let Some((old, _)) = names.get(p.index) else { return Ok(()) };
        let (raw, from) = (weights.raw(old)?, weights.entry(old)?.dtype);
        if from == p.dtype {
            return file.write(&raw);
        }
        let (mut values, mut bytes) = (vec![0.0f32; PIECE], Vec::new());
        for piece in raw.chunks(PIECE * from.size()) {
            let values = &mut values[..piece.len() / from.size()];
            // Only floats are planned with another type than their own.
            dtype::to_f32(from, piece, values);
            dtype::from_f32(p.dtype, values, &mut bytes);
            file.write(&bytes)?;
        }
        Ok(())
    };
    write_planned(folder.as_ref(), &planned, &mut emit, options)
}

fn write_planned(folder: &Path, planned: &[Planned<'_>], emit: &mut Emit<'_>, options: &WriteOptions) -> Result<()> {
    let shards = split(planned, options.max_shard_bytes);
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;

    // Finish every file before the first one gets its name.
    let mut pending = Vec::new();
    let mut names = Vec::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_string(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        pending.push(write_file(&folder.join(&name), shard, emit, &options.metadata)?);
        names.push(name);
    }
    if shards.len() > 1 {
        let mut map: BTreeMap<&str, &str> = BTreeMap::new();
        for (shard, name) in shards.iter().zip(&names) {
            map.extend(shard.iter().map(|p| (p.name, name.as_str())));
        }
        let total: u64 = planned.iter().map(|p| p.bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        let text = format!("{index:#}\n");
        let name = "model.safetensors.index.json".to_string();
        let mut file = Pending::create(&folder.join(&name), text.len() as u64)?;
        file.write(text.as_bytes())?;
        file.finish()?;
        pending.push(file);
        names.push(name);
    }
    // Shards before their index, so that an index never names a file that is not there.
    for file in pending {
        file.commit()?;
    }
    sync_dir(folder)?;
    remove_old(folder, &names)
}

/// Write one safetensors file without the folder's conventions (optimiser state, outputs and the like). It appears complete or
/// not at all; its folder must exist.
///
/// # Errors
/// As [`write_model`].
pub fn write_single(path: impl AsRef<Path>, tensors: &[(String, Tensor)], options: &WriteOptions) -> Result<()> {
    let path = path.as_ref();
    let specs = specs(tensors);
    let planned = plan_specs(&specs, options)?;
    let all: Vec<&Planned<'_>> = planned.iter().collect();
    let mut fetch = |i: usize| Ok(tensors[i].1.clone());
    write_file(path, &all, &mut |p, file| emit_spec(&specs, &mut fetch, p, file), &options.metadata)?.commit()
}

/// The types that tensors get in the file.
fn plan_specs<'a>(specs: &'a [TensorSpec], options: &WriteOptions) -> Result<Vec<Planned<'a>>> {
    let mut items = Vec::with_capacity(specs.len());
    for spec in specs {
        let dtype = match spec.dtype {
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 => options.dtype,
            DType::U8 => Dtype::U8,
            DType::U32 => Dtype::U32,
            DType::I64 => Dtype::I64,
            other => {
                return Err(Error::Argument {
                    what: format!("tensor `{}`, data type", spec.name),
                    found: other.as_str().into(),
                    expected: "f64, f32, f16, bf16, u8, u32 or i64".into(),
                });
            }
        };
        items.push((spec.name.as_str(), spec.shape.as_slice(), dtype));
    }
    plan(items.into_iter(), options)
}

fn plan<'a>(
    items: impl Iterator<Item = (&'a str, &'a [usize], Dtype)>,
    options: &WriteOptions,
) -> Result<Vec<Planned<'a>>> {
    if !options.dtype.is_float() {
        return Err(Error::Argument {
            what: "data type to write weights in".into(),
            found: options.dtype.name().into(),
            expected: "F32, F16, BF16 or F64".into(),
        });
    }
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for (index, (name, shape, dtype)) in items.enumerate() {
        if !seen.insert(name) || name == "__metadata__" {
            return Err(Error::Argument {
                what: "tensors to write".into(),
                found: format!("the name `{name}` twice or reserved"),
                expected: "distinct names other than `__metadata__`".into(),
            });
        }
        let bytes = shape.iter().try_fold(dtype.size() as u64, |acc, &d| acc.checked_mul(d as u64));
        let bytes = bytes.ok_or_else(|| Error::Argument {
            what: format!("tensor `{name}`, shape"),
            found: format!("{shape:?}"),
            expected: "a size below 2^64 bytes".into(),
        })?;
        out.push(Planned { index, name, shape, dtype, bytes });
    }
    Ok(out)
}

/// Consecutive tensors together until the next one would exceed the limit; at least one shard, none empty but the only.
fn split<'p, 'a>(planned: &'p [Planned<'a>], limit: Option<u64>) -> Vec<Vec<&'p Planned<'a>>> {
    let limit = limit.unwrap_or(u64::MAX);
    let mut shards: Vec<Vec<&Planned<'a>>> = vec![Vec::new()];
    let mut size = 0u64;
    for p in planned {
        if size > 0 && size.saturating_add(p.bytes) > limit {
            shards.push(Vec::new());
            size = 0;
        }
        size = size.saturating_add(p.bytes);
        if let Some(last) = shards.last_mut() {
            last.push(p);
        }
    }
    shards
}

/// The header: its own length, then JSON padded with spaces so that the data starts at a multiple of 8.
fn header(shard: &[&Planned<'_>], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut map = Map::new();
    let mut meta = Map::from_iter([("format".to_string(), Value::from("pt"))]);
    meta.extend(metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))));
    map.insert("__metadata__".into(), Value::Object(meta));
    let mut at = 0u64;
    for p in shard {
        let end = at + p.bytes;
        map.insert(p.name.into(), json!({"dtype": p.dtype.name(), "shape": p.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.append(&mut text);
    out
}

fn write_file(
    path: &Path,
    shard: &[&Planned<'_>],
    emit: &mut Emit<'_>,
    metadata: &BTreeMap<String, String>,
) -> Result<Pending> {
    // Wide types first, so that every tensor stays aligned to its type in the file and can be used where it lies.
    let mut order: Vec<&Planned<'_>> = shard.to_vec();
    order.sort_by_key(|p| std::cmp::Reverse(p.dtype.size()));
    let head = header(&order, metadata);
    let total = head.len() as u64 + order.iter().map(|p| p.bytes).sum::<u64>();
    let mut file = Pending::create(path, total)?;
    file.write(&head)?;
    for p in order {
        emit(p, &mut file)?;
    }
    file.finish()?;
    Ok(file)
}

/// Fetch a tensor, see that it is what was announced, and append it.
fn emit_spec(
    specs: &[TensorSpec],
    fetch: &mut dyn FnMut(usize) -> Result<Tensor>,
    p: &Planned<'_>,
    file: &mut Pending,
) -> Result<()> {
    let tensor = fetch(p.index)?;
    let spec = &specs[p.index];
    if tensor.dims() != spec.shape || tensor.dtype() != spec.dtype {
        return Err(Error::Argument {
            what: format!("tensor `{}`", spec.name),
            found: format!("{:?} of {}", tensor.dims(), tensor.dtype().as_str()),
            expected: format!("{:?} of {}, as announced", spec.shape, spec.dtype.as_str()),
        });
    }
    write_tensor(file, &tensor, p)
}

/// Elements that are converted at a time.
const PIECE: usize = 1 << 16;

/// The tensor's elements, converted in pieces of bounded size.
fn write_tensor(file: &mut Pending, tensor: &Tensor, p: &Planned<'_>) -> Result<()> {
    let wrap = |source| Error::Tensor { name: p.name.into(), source };
    let tensor = tensor.to_device(&Device::Cpu).and_then(|t| t.contiguous()).map_err(wrap)?;
    let tensor = match (tensor.dtype(), p.dtype) {
        // f64 to f64 stays exact; every other float goes through f32, which holds f16 and bf16 exactly.
        (DType::F64, Dtype::F64) => tensor,
        (DType::F64 | DType::F16 | DType::BF16, _) => tensor.to_dtype(DType::F32).map_err(wrap)?,
        _ => tensor,
    };
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) =
        layout.contiguous_offsets().ok_or_else(|| wrap(candle_core::Error::Msg("not contiguous".into())))?;
    let Storage::Cpu(cpu) = &*storage else {
        return Err(wrap(candle_core::Error::Msg("not in the memory of the CPU".into())));
    };
    let mut bytes = Vec::with_capacity(PIECE * 8);
    macro_rules! pieces {
        ($t:ty, $convert:expr) => {{
            let values = cpu.as_slice::<$t>().map_err(wrap)?;
            for piece in values.get(start..end).unwrap_or(&[]).chunks(PIECE) {
                $convert(piece, &mut bytes);
                file.write(&bytes)?;
            }
        }};
    }
    fn le<const N: usize, T: Copy>(f: impl Fn(T) -> [u8; N]) -> impl Fn(&[T], &mut Vec<u8>) {
        move |piece, out| {
            out.clear();
            out.extend(piece.iter().flat_map(|&v| f(v)));
        }
    }
    match tensor.dtype() {
        DType::F32 => pieces!(f32, |piece, out: &mut Vec<u8>| dtype::from_f32(p.dtype, piece, out)),
        DType::F64 => pieces!(f64, le(f64::to_le_bytes)),
        DType::U8 => pieces!(u8, le(u8::to_le_bytes)),
        DType::U32 => pieces!(u32, le(u32::to_le_bytes)),
        DType::I64 => pieces!(i64, le(i64::to_le_bytes)),
        other => return Err(wrap(candle_core::Error::Msg(format!("cannot write {}", other.as_str())))),
    }
    Ok(())
}

/// Remove weights in safetensors that are not part of what has just been written.
fn remove_old(folder: &Path, keep: &[String]) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let ours = name == "model.safetensors" || name == "model.safetensors.index.json" || is_shard(&name);
        if ours && !keep.contains(&name) {
            let path = entry.path();
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    sync_dir(folder)
}

/// `model-00001-of-00002.safetensors` with any digits.
fn is_shard(name: &str) -> bool {
    let digits = |s: &str| s.len() >= 5 && s.bytes().all(|b| b.is_ascii_digit());
    let middle = name.strip_prefix("model-").and_then(|s| s.strip_suffix(".safetensors"));
    middle.and_then(|s| s.split_once("-of-")).is_some_and(|(a, b)| digits(a) && digits(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names() {
        assert!(is_shard("model-00001-of-00002.safetensors"));
        assert!(!is_shard("model-x-of-00002.safetensors") && !is_shard("model.safetensors"));
    }
}
