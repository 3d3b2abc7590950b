//! What a run needs besides its weights to go on exactly: a JSON object (step, random state, data position, schedule) and
//! named `f32` tensors (the optimiser's moments).
//!
//! A checkpoint is a model folder `checkpoint-<step>` that also holds `optimizer.safetensors` and `training_state.json`.
//! The latter is written last and records length and CRC-32 of every other file, so that a half-written or damaged
//! checkpoint is recognised and passed over.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::Value;

use crate::atomic::{atomic_write, remove_folder};
use crate::error::shorten;
use crate::write::write_single;
use crate::{Dtype, Error, Result, Weights, WriteOptions, config};

/// Name of the JSON file.
pub const STATE_FILE: &str = "training_state.json";
/// Name of the file with the tensors.
pub const TENSORS_FILE: &str = "optimizer.safetensors";
/// Version of the layout of [`STATE_FILE`].
const FORMAT: u64 = 1;

/// A run's state at one step. Numbers come back as they were: every finite f64 and every i64 and u64 in the JSON, every
/// bit of the tensors. (JSON has no NaN or infinity: they become null.)
#[derive(Debug, Clone, Default)]
pub struct TrainingState {
    /// Anything that JSON can hold.
    pub json: Value,
    /// `f32` tensors by name.
    pub tensors: Vec<(String, Tensor)>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Manifest {
    format: u64,
    /// CRC-32 of `state` in its shortest spelling.
    state_crc32: String,
    state: Value,
    files: BTreeMap<String, Recorded>,
}

/// What is known of a file when the checkpoint is finished.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Recorded {
    bytes: u64,
    crc32: String,
}

/// How thoroughly a checkpoint is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// All files are there and have the recorded lengths.
    Sizes,
    /// And the recorded checksums; reads every byte.
    Contents,
}

impl TrainingState {
    /// Write the state into `folder`, after everything else of the checkpoint: the checksums of all files that are there
    /// now become part of it. Meant to be called within [`atomic_folder`](crate::atomic::atomic_folder).
    ///
    /// # Errors
    /// Those of writing; [`Error::Argument`] for a tensor that is not `f32`.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        for (name, tensor) in &self.tensors {
            if tensor.dtype() != candle_core::DType::F32 {
                return Err(Error::Argument {
                    what: format!("training state, tensor `{name}`"),
                    found: tensor.dtype().as_str().into(),
                    expected: "f32".into(),
                });
            }
        }
        // An old manifest must not vouch for a new file while this one is being written.
        let manifest_path = folder.join(STATE_FILE);
        if manifest_path.exists() {
            fs::remove_file(&manifest_path).map_err(Error::io("remove", &manifest_path))?;
        }
        let options = WriteOptions { dtype: Dtype::F32, ..WriteOptions::default() };
        write_single(folder.join(TENSORS_FILE), &self.tensors, &options)?;
        let mut files = BTreeMap::new();
        record(folder, "", &mut files)?;
        let state_crc32 = crc_text(&self.json.to_string());
        let manifest = Manifest { format: FORMAT, state_crc32, state: self.json.clone(), files };
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::Argument {
            what: "training state".into(),
            found: e.to_string(),
            expected: "a value that JSON can hold".into(),
        })?;
        atomic_write(manifest_path, text.as_bytes())
    }

    /// Read the state of the checkpoint `folder` after checking all of its files.
    ///
    /// # Errors
    /// [`Error::BrokenCheckpoint`] with the reason.
    pub fn load(folder: impl AsRef<Path>) -> Result<TrainingState> {
        let folder = folder.as_ref();
        let json = verify(folder, Check::Contents)?;
        let weights = Weights::open(folder.join(TENSORS_FILE))?;
        let tensors = weights.names().map(|n| Ok((n.to_string(), weights.tensor(n)?))).collect::<Result<_>>()?;
        Ok(TrainingState { json, tensors })
    }
}

/// Check the checkpoint `folder`; gives the JSON part of its state.
///
/// # Errors
/// [`Error::BrokenCheckpoint`] with the first thing that is wrong.
pub fn verify(folder: impl AsRef<Path>, check: Check) -> Result<Value> {
    let folder = folder.as_ref();
    let broken = |reason: String| Error::BrokenCheckpoint { folder: folder.to_path_buf(), reason };
    let path = folder.join(STATE_FILE);
    let manifest: Manifest = config::read_json_bounded(&path, 1 << 30).map_err(|e| broken(e.to_string()))?;
    if manifest.format != FORMAT {
        return Err(broken(format!("{STATE_FILE}: found format {}, expected {FORMAT}", manifest.format)));
    }
    if crc_text(&manifest.state.to_string()) != manifest.state_crc32 {
        return Err(broken(format!("{STATE_FILE}: `state` does not match its checksum")));
    }
    if !manifest.files.contains_key(TENSORS_FILE) {
        return Err(broken(format!("{STATE_FILE}: `files` lacks {TENSORS_FILE}")));
    }
    for (name, recorded) in &manifest.files {
        if name.split('/').any(|part| matches!(part, "" | "." | "..")) || name.contains(['\\', ':', '\0']) {
            return Err(broken(format!("{STATE_FILE}: `files` names {}", shorten(name, 120))));
        }
        let path = folder.join(name);
        let bytes = fs::metadata(&path).map_err(|e| broken(format!("{name}: {e}")))?.len();
        if bytes != recorded.bytes {
            return Err(broken(format!("{name}: found {bytes} bytes, expected {}", recorded.bytes)));
        }
        if check == Check::Contents {
            let found = crc_file(&path)?;
            if found != recorded.crc32 {
                return Err(broken(format!("{name}: found checksum {found}, expected {}", recorded.crc32)));
            }
        }
    }
    Ok(manifest.state)
}

/// Note every file below `folder` but the manifest and hidden ones.
fn record(folder: &Path, prefix: &str, out: &mut BTreeMap<String, Recorded>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') || (prefix.is_empty() && name == STATE_FILE) {
            continue;
        }
        let name = format!("{prefix}{name}");
        let meta = fs::metadata(&path).map_err(Error::io("look at", &path))?;
        if meta.is_dir() {
            record(&path, &format!("{name}/"), out)?;
        } else {
            out.insert(name, Recorded { bytes: meta.len(), crc32: crc_file(&path)? });
        }
    }
    Ok(())
}

fn crc_text(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

fn crc_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(format!("{:08x}", hasher.finalize())),
            Ok(n) => hasher.update(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path)(e)),
        }
    }
}

/// The folder of a step's checkpoint in a run.
pub fn checkpoint_folder(run: impl AsRef<Path>, step: u64) -> PathBuf {
    run.as_ref().join(format!("checkpoint-{step}"))
}

/// Steps of all checkpoints in a run, ascending, sound or not.
///
/// # Errors
/// [`Error::Io`].
pub fn list_checkpoints(run: impl AsRef<Path>) -> Result<Vec<u64>> {
    let run = run.as_ref();
    let mut steps = Vec::new();
    for entry in fs::read_dir(run).map_err(Error::io("list", run))? {
        let entry = entry.map_err(Error::io("list", run))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|n| n.strip_prefix("checkpoint-")).and_then(|n| n.parse::<u64>().ok());
        // Only the spelling that `checkpoint_folder` gives: no sign, no leading zeros.
        if let Some(step) = step
            && name.to_str() == Some(&format!("checkpoint-{step}"))
            && entry.path().is_dir()
        {
            steps.push(step);
        }
    }
    steps.sort_unstable();
    Ok(steps)
}

/// The newest sound checkpoint of a run, and why newer ones were passed over.
#[derive(Debug, Default)]
pub struct Latest {
    /// Step and folder; `None` when no checkpoint is sound.
    pub found: Option<(u64, PathBuf)>,
    /// Newer checkpoints that are not, newest first, with the reason.
    pub skipped: Vec<(u64, Error)>,
}

/// Look for the newest checkpoint whose files all match their checksums.
///
/// # Errors
/// [`Error::Io`] when the run's folder cannot be listed.
pub fn latest_valid(run: impl AsRef<Path>) -> Result<Latest> {
    let run = run.as_ref();
    let mut out = Latest::default();
    for step in list_checkpoints(run)?.into_iter().rev() {
        let folder = checkpoint_folder(run, step);
        match verify(&folder, Check::Contents) {
            Ok(_) => {
                out.found = Some((step, folder));
                break;
            }
            Err(e) => out.skipped.push((step, e)),
        }
    }
    Ok(out)
}

/// Remove all checkpoints older than the `n` newest complete ones (at least one is kept). Incomplete ones do not count, so
/// a run never loses its last good checkpoint to a broken newer one. Returns the steps removed.
///
/// # Errors
/// [`Error::Io`].
pub fn keep_last(run: impl AsRef<Path>, n: usize) -> Result<Vec<u64>> {
    let run = run.as_ref();
    let mut complete = 0;
    let mut removed = Vec::new();
    for step in list_checkpoints(run)?.into_iter().rev() {
        let folder = checkpoint_folder(run, step);
        if complete >= n.max(1) {
            remove_folder(&folder)?;
            removed.push(step);
        } else if verify(&folder, Check::Sizes).is_ok() {
            complete += 1;
        }
    }
    removed.reverse();
    Ok(removed)
}
