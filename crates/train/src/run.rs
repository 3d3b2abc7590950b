//! The run folder and its checkpoints.

use crate::{Error, Evaluation, Fingerprint, Result, TrainConfig, Trainer};
use genus_checkpoint::atomic::{atomic_folder, atomic_write};
use genus_checkpoint::{WriteOptions, state};
use genus_models::{Model, Task};
use genus_ops::{DType, Tensor, to_vec, with_slice};
use genus_text::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The name of the effective configuration.
pub(crate) const CONFIG: &str = "config.toml";
/// The name of the folder with the run's tokenizer.
pub(crate) const TOKENIZER: &str = "tokenizer";

/// Everything that a run needs besides weights, moments and configuration to go on exactly. Dropout, masks and the order of
/// the data are functions of the seed and these numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub step: u64,
    pub updates: u64,
    pub skipped: u64,
    pub skipped_in_a_row: u64,
    /// Training examples seen, over all epochs.
    pub position: u64,
    pub seed: u64,
    pub data: Fingerprint,
    pub first_dev: Option<Dev>,
    pub last_dev: Option<(u64, Dev)>,
}

/// An [`Evaluation`] as it is stored.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Dev {
    dev_loss: Option<f64>,
    bits_per_byte: Option<f64>,
    pair_loss: Option<f64>,
    targets: usize,
}

impl From<Evaluation> for Dev {
    fn from(e: Evaluation) -> Self {
        // JSON has no NaN; it comes back as one.
        let dev_loss = e.dev_loss.is_finite().then_some(e.dev_loss);
        Dev { dev_loss, bits_per_byte: e.bits_per_byte, pair_loss: e.pair_loss, targets: e.targets }
    }
}

impl From<Dev> for Evaluation {
    fn from(d: Dev) -> Self {
        let dev_loss = d.dev_loss.unwrap_or(f64::NAN);
        Evaluation { dev_loss, bits_per_byte: d.bits_per_byte, pair_loss: d.pair_loss, targets: d.targets }
    }
}

/// Refuses a folder that holds anything but hidden files (a lock, leftovers of a run that died before it began).
pub(crate) fn expect_empty(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let name = entry.map_err(Error::io(folder))?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') {
            return Err(Error::RunExists { folder: folder.to_owned(), found: name.into_owned() });
        }
    }
    Ok(())
}

/// Writes the configuration and the tokenizer of a run.
pub(crate) fn write_frame(folder: &Path, config: &TrainConfig, tokenizer: &Tokenizer, n_ctx: usize) -> Result<()> {
    // The configuration first: it is what makes the folder a run, which can be resumed if it dies before the tokenizer is there.
    write_config(folder, config)?;
    within(&folder.join(TOKENIZER), |tmp| Ok(tokenizer.save(tmp, Some(n_ctx))?))
}

/// Writes the configuration of a run.
pub(crate) fn write_config(folder: &Path, config: &TrainConfig) -> Result<()> {
    Ok(atomic_write(folder.join(CONFIG), config.to_toml()?.as_bytes())?)
}

/// [`atomic_folder`] with this crate's errors.
fn within(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut failure = None;
    let result = atomic_folder(path, |tmp| {
        fill(tmp).map_err(|e| {
            let what = "folder".to_owned();
            let e2 = genus_checkpoint::Error::Argument { what, found: e.to_string(), expected: "no error".into() };
            failure = Some(e);
            e2
        })
    });
    match failure {
        Some(e) => Err(e),
        None => Ok(result?),
    }
}

/// Sets the ids of special tokens in a model's configuration, where it does not have them.
pub(crate) fn set_special_ids(model: &mut Model, tokenizer: &Tokenizer) {
    let s = tokenizer.special();
    let generates = matches!(model.task(), Task::CausalLm | Task::Seq2SeqLm);
    let eos = if generates { tokenizer.end_of_text() } else { s.eos };
    let bos = if model.task() == Task::CausalLm { s.bos.or(eos) } else { s.bos };
    let mut ids = vec![("bos_token_id", bos), ("eos_token_id", eos), ("pad_token_id", s.pad)];
    if model.task() == Task::Seq2SeqLm {
        // A target is read from a token that is never predicted on: padding, or else the end, as fairseq has it.
        let pad = s.pad.or(eos);
        ids = vec![("eos_token_id", eos), ("forced_eos_token_id", eos), ("pad_token_id", pad)];
        if model.config_field("decoder_start_token_id").is_none() {
            ids.push(("decoder_start_token_id", pad));
        }
    }
    for (field, id) in ids {
        if let Some(id) = id {
            model.set_config_field(field, json!(id));
        }
    }
}

/// Writes `checkpoint-<step>` whole or not at all.
///
/// Returns `None`, and writes nothing, when a weight is not finite.
pub(crate) fn save(folder: &Path, trainer: &Trainer, tokenizer: &Tokenizer, state: &State) -> Result<Option<PathBuf>> {
    let model = trainer.model();
    for p in model.params() {
        if !finite(&p.tensor())? {
            return Ok(None);
        }
    }
    let path = state::checkpoint_folder(folder, state.step);
    let json = serde_json::to_value(state).unwrap_or_default();
    within(&path, |tmp| {
        model.save(tmp, &WriteOptions::default())?;
        tokenizer.save(tmp, Some(model.spec().n_ctx))?;
        if model.generator().is_some() {
            tokenizer.save(tmp.join("generator"), Some(model.spec().n_ctx))?;
        }
        if matches!(model.task(), Task::CausalLm | Task::Seq2SeqLm) {
            let file = tmp.join("generation_config.json");
            let text = serde_json::to_string_pretty(&generation_config(model)).unwrap_or_default() + "\n";
            std::fs::write(&file, text).map_err(Error::io(&file))?;
        }
        let tensors = trainer.state();
        Ok(state::TrainingState { json, tensors }.save(tmp)?)
    })?;
    Ok(Some(path))
}

fn generation_config(model: &Model) -> Value {
    let mut config = Map::new();
    for field in ["bos_token_id", "eos_token_id", "forced_eos_token_id", "pad_token_id", "decoder_start_token_id"] {
        if let Some(id) = model.config_field(field) {
            config.insert(field.into(), id.clone());
        }
    }
    Value::Object(config)
}

fn finite(t: &Tensor) -> Result<bool> {
    if t.dtype() == DType::F32 && t.device().is_cpu() {
        return Ok(with_slice(t, |v| v.iter().all(|x| x.is_finite()))?);
    }
    Ok(to_vec(t)?.iter().all(|x| x.is_finite()))
}

/// The state in a checkpoint, with the optimiser's tensors.
pub(crate) fn load_state(checkpoint: &Path) -> Result<(State, Vec<(String, Tensor)>)> {
    let loaded = state::TrainingState::load(checkpoint)?;
    let state = serde_json::from_value(loaded.json).map_err(|e| Error::State {
        checkpoint: checkpoint.to_owned(),
        what: "state".into(),
        found: e.to_string(),
        expected: "the state of a training run".into(),
    })?;
    Ok((state, loaded.tensors))
}
