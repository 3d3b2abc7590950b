//! The weights of a model folder, whatever format they are in, opened lazily.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::error::shorten;
use crate::mapped::Mapped;
use crate::{Dtype, Error, Result, config, dtype, safetensors};

/// File names that [`Weights::open`] looks for in a folder, in this order.
pub const FILE_NAMES: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// What is known of a tensor without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Type of the elements in the file.
    pub dtype: Dtype,
    /// The file that holds it.
    pub file: PathBuf,
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Index of the file.
    pub(crate) file: usize,
    /// First byte, from the start of the file.
    pub(crate) begin: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    /// Distances between neighbours along each dimension in elements, where they are not those of a contiguous tensor.
    pub(crate) strides: Option<Vec<usize>>,
}

impl Entry {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Opened weights: names, shapes and types at once, contents when asked for. Files are mapped, not read; the value can be
/// shared between threads.
#[derive(Debug)]
pub struct Weights {
    root: PathBuf,
    files: Vec<Mapped>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl Weights {
    /// Open a folder (see [`FILE_NAMES`]), a single file (safetensors or torch, told apart by content) or an index file
    /// (`*.index.json`).
    ///
    /// # Errors
    /// Any deviation from the format, before any tensor is read: see [`Error`].
    pub fn open(path: impl AsRef<Path>) -> Result<Weights> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(Error::io("open", path))?;
        if !meta.is_dir() {
            return Self::open_file(path, path);
        }
        for name in FILE_NAMES {
            let file = path.join(name);
            // `metadata` rather than `exists`: a file that is there but cannot be looked at must not be passed over.
            match std::fs::metadata(&file) {
                Ok(_) => return Self::open_file(path, &file),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("open", &file)(e)),
            }
        }
        Err(Error::NoWeights { folder: path.to_path_buf(), expected: FILE_NAMES.join(", ") })
    }

    fn open_file(root: &Path, file: &Path) -> Result<Weights> {
        let mut out = Weights {
            root: root.to_path_buf(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        if file.extension().is_some_and(|e| e == "json") {
            out.add_sharded(file)?;
        } else {
            let tensors = out.add_file(file)?;
            out.tensors = tensors.into_iter().collect();
        }
        Ok(out)
    }

    /// Map one file and list its tensors; `out.files` grows by one.
    fn add_file(&mut self, path: &Path) -> Result<Vec<(String, Entry)>> {
        let mapped = Mapped::open(path)?;
        let index = self.files.len();
        let bytes = mapped.bytes();
        let tensors = if crate::pickle::is_torch(bytes) {
            crate::pickle::read(path, bytes, index)?
        } else if path.extension().is_some_and(|e| e == "bin" || e == "pt" || e == "pth") {
            return Err(Error::malformed(
                path,
                "content",
                "another format",
                "a file written by torch.save (truncated?)",
            ));
        } else {
            let header = safetensors::parse(path, bytes)?;
            self.metadata.extend(header.metadata);
            let entry = |e: safetensors::HeaderEntry| {
                (e.name, Entry { file: index, begin: e.begin, shape: e.shape, dtype: e.dtype, strides: None })
            };
            header.entries.into_iter().map(entry).collect()
        };
        self.files.push(mapped);
        Ok(tensors)
    }

    /// All shards that an index names; index and shards must agree about which tensor is where.
    fn add_sharded(&mut self, index: &Path) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let parsed: Index = config::read_json_bounded(index, safetensors::MAX_HEADER)?;
        let folder = index.parent().unwrap_or(Path::new(""));
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in &parsed.weight_map {
            shards.entry(shard).or_default().push(tensor);
        }
        for (shard, listed) in shards {
            check_shard_name(index, shard, listed.first().copied().unwrap_or_default())?;
            let path = folder.join(shard);
            if !path.exists() {
                let expected = format!("the shard `{shard}` beside it, for {} tensors", listed.len());
                return Err(Error::malformed(index, "weight_map", "a shard that does not exist", expected));
            }
            let held = self.add_file(&path)?;
            for (name, entry) in held {
                if let Some(other) = self.tensors.get(&name) {
                    let found = format!("in this file and in {}", self.files[other.file].path().display());
                    let item = format!("tensor `{}`", shorten(&name, 120));
                    return Err(Error::malformed(&path, item, found, "in one shard only"));
                }
                match parsed.weight_map.get(&name) {
                    Some(s) if s == shard => {}
                    Some(s) => {
                        let found = format!("in shard `{shard}`");
                        let expected = format!("in shard `{}`, as the index says", shorten(s, 120));
                        return Err(Error::malformed(
                            index,
                            format!("tensor `{}`", shorten(&name, 120)),
                            found,
                            expected,
                        ));
                    }
                    None => {
                        let item = format!("tensor `{}`", shorten(&name, 120));
                        let found = format!("in shard `{shard}` but not in the index");
                        return Err(Error::malformed(index, item, found, "every tensor of a shard in the index"));
                    }
                }
                self.tensors.insert(name, entry);
            }
            if let Some(missing) = listed.iter().find(|n| !self.tensors.contains_key(**n)) {
                let item = format!("tensor `{}`", shorten(missing, 120));
                let found = format!("in the index for shard `{shard}`");
                return Err(Error::malformed(index, item, found, "a tensor of that name in that shard"));
            }
        }
        Ok(())
    }

    /// The folder or file that was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(Mapped::path)
    }

    /// The `__metadata__` of safetensors files (later shards win), empty for others.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape, type and file of a tensor, `None` where there is none of that name.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        let e = self.tensors.get(name)?;
        Some(TensorInfo { shape: e.shape.clone(), dtype: e.dtype, file: self.files[e.file].path().to_path_buf() })
    }

    pub(crate) fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| Error::NoTensor {
            root: self.root.clone(),
            name: name.into(),
            suggestions: crate::names::nearest_names(name, self.names(), 3),
        })
    }

    /// The tensor's elements in row-major order as bytes (little-endian, [`TensorInfo::dtype`]); a view into the file
    /// unless the file holds them in another order.
    ///
    /// # Errors
    /// [`Error::NoTensor`].
    pub fn raw(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let e = self.entry(name)?;
        let bytes = self.files[e.file].bytes();
        let size = e.dtype.size();
        // In range: `open` has checked every entry against its file, and the map keeps its length.
        match &e.strides {
            None => Ok(Cow::Borrowed(&bytes[e.begin..e.begin + e.elements() * size])),
            Some(strides) => Ok(Cow::Owned(gather(&bytes[e.begin..], &e.shape, strides, size))),
        }
    }

    /// The tensor's elements in row-major order as `f32`; a view into the file where that holds aligned `f32`.
    ///
    /// # Errors
    /// [`Error::NoTensor`]; [`Error::Dtype`] when the elements are not f64, f32, f16 or bf16.
    pub fn f32(&self, name: &str) -> Result<Cow<'_, [f32]>> {
        let raw = self.raw(name)?;
        let e = self.entry(name)?;
        if e.dtype == Dtype::F32
            && let Cow::Borrowed(bytes) = raw
            && let Some(view) = dtype::as_f32(bytes)
        {
            return Ok(view);
        }
        let mut out = vec![0.0; e.elements()];
        if !dtype::to_f32(e.dtype, &raw, &mut out) {
            return Err(self.wrong_dtype(name, e, "one of F64, F32, F16, BF16"));
        }
        Ok(Cow::Owned(out))
    }

    /// The bits of a tensor's elements in row-major order, as a view into the file; `None` where that does not hold aligned bf16.
    pub fn bf16(&self, name: &str) -> Option<&[u16]> {
        let e = self.tensors.get(name)?;
        match self.raw(name).ok()? {
            Cow::Borrowed(bytes) if e.dtype == Dtype::BF16 => dtype::aligned_u16(bytes),
            _ => None,
        }
    }

    /// Takes a tensor's part of the mapped file out of this process's memory, for one that has been read to its end; reading it again
    /// works as before.
    pub fn forget(&self, name: &str) {
        if let Some(e) = self.tensors.get(name)
            && e.strides.is_none()
        {
            self.files[e.file].forget(e.begin..e.begin + e.elements() * e.dtype.size());
        }
    }

    /// Like [`Weights::f32`], into a buffer of the caller's.
    ///
    /// # Errors
    /// As [`Weights::f32`]; [`Error::Argument`] when `out` has another length than the tensor.
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let e = self.entry(name)?;
        if out.len() != e.elements() {
            return Err(Error::Argument {
                what: format!("buffer for tensor `{name}`"),
                found: format!("{} elements", out.len()),
                expected: format!("{} (shape {:?})", e.elements(), e.shape),
            });
        }
        if !dtype::to_f32(e.dtype, &self.raw(name)?, out) {
            return Err(self.wrong_dtype(name, e, "one of F64, F32, F16, BF16"));
        }
        Ok(())
    }

    /// The tensor as `f32` on the CPU.
    ///
    /// # Errors
    /// As [`Weights::f32`].
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let shape = self.entry(name)?.shape.clone();
        let values = self.f32(name)?.into_owned();
        Tensor::from_vec(values, shape, &Device::Cpu).map_err(|source| Error::Tensor { name: name.into(), source })
    }

    /// The elements of an integer (or bool) tensor in row-major order.
    ///
    /// # Errors
    /// [`Error::NoTensor`]; [`Error::Dtype`] when the elements are not integers or do not fit `i64`.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let e = self.entry(name)?;
        dtype::to_i64(e.dtype, &self.raw(name)?).ok_or_else(|| self.wrong_dtype(name, e, "an integer type within i64"))
    }

    /// Position (row-major) and value of the first NaN or infinity of a float tensor, `None` when all are finite.
    ///
    /// # Errors
    /// As [`Weights::f32`].
    pub fn first_non_finite(&self, name: &str) -> Result<Option<(usize, f32)>> {
        let values = self.f32(name)?;
        // Chunk by chunk without a branch inside: this runs over whole models at load time.
        for (i, chunk) in values.chunks(1024).enumerate() {
            if !chunk.iter().fold(true, |ok, v| ok & v.is_finite())
                && let Some(j) = chunk.iter().position(|v| !v.is_finite())
            {
                return Ok(Some((i * 1024 + j, chunk[j])));
            }
        }
        Ok(None)
    }

    fn wrong_dtype(&self, name: &str, e: &Entry, expected: &'static str) -> Error {
        Error::Dtype { file: self.files[e.file].path().into(), name: name.into(), found: e.dtype.name(), expected }
    }

    /// Whether two tensors hold the same values in the same shape.
    pub(crate) fn same_content(&self, a: &str, b: &str) -> Result<bool> {
        let (ea, eb) = (self.entry(a)?, self.entry(b)?);
        if ea.shape != eb.shape {
            return Ok(false);
        }
        if ea.dtype == eb.dtype {
            let same_place = ea.file == eb.file && ea.begin == eb.begin && ea.strides == eb.strides;
            return Ok(same_place || self.raw(a)? == self.raw(b)?);
        }
        let (va, vb) = (self.f32(a)?, self.f32(b)?);
        Ok(va.iter().zip(vb.iter()).all(|(x, y)| x.to_bits() == y.to_bits()))
    }
}

/// Shards are plain file names beside the index: anything else could lead out of the folder.
pub(crate) fn check_shard_name(index: &Path, shard: &str, tensor: &str) -> Result<()> {
    let mut parts = Path::new(shard).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    if plain && !shard.contains(['/', '\\', '\0', ':']) {
        return Ok(());
    }
    let item = format!("weight_map, shard of `{}`", shorten(tensor, 120));
    Err(Error::malformed(index, item, format!("`{}`", shorten(shard, 200)), "the name of a file beside the index"))
}

/// Copy a strided tensor into row-major order. `bytes` starts at its first element and reaches beyond its last one.
fn gather(bytes: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let elements: usize = shape.iter().product();
    let mut out = Vec::with_capacity(elements * size);
    if elements == 0 {
        return out;
    }
    let mut place = vec![0usize; shape.len()];
    let mut at = 0usize;
    loop {
        out.extend_from_slice(&bytes[at * size..(at + 1) * size]);
        // Count up like an odometer, the last dimension fastest.
        let mut d = shape.len();
        loop {
            if d == 0 {
                return out;
            }
            d -= 1;
            place[d] += 1;
            at += strides[d];
            if place[d] < shape[d] {
                break;
            }
            at -= strides[d] * shape[d];
            place[d] = 0;
        }
    }
}
