//! Loading models for commands.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use genus_models::{Dimensions, Family, LoadOptions, Model, StackSpec, Task, find_preset};
use genus_text::Tokenizer;

use crate::global::Global;
use crate::source::model_folder;

/// A loaded model and its folder.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) folder: PathBuf,
    pub(crate) model: Model,
}

/// Dimensions that replace a preset's.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct DimensionFlags {
    /// Number of layers, instead of the preset's.
    #[arg(long, value_name = "N", help_heading = "Dimensions of a preset")]
    n_layers: Option<usize>,
    /// Width, instead of the preset's.
    #[arg(long, value_name = "N", help_heading = "Dimensions of a preset")]
    d_model: Option<usize>,
    /// Number of heads, instead of the preset's.
    #[arg(long, value_name = "N", help_heading = "Dimensions of a preset")]
    n_heads: Option<usize>,
    /// Width inside the feed-forward network, instead of the preset's.
    #[arg(long, value_name = "N", help_heading = "Dimensions of a preset")]
    d_ff: Option<usize>,
    /// Number of tokens, instead of the preset's.
    #[arg(long, value_name = "N", help_heading = "Dimensions of a preset")]
    vocab_size: Option<usize>,
    /// Longest sequence, instead of the preset's.
    #[arg(long, value_name = "N", help_heading = "Dimensions of a preset")]
    n_ctx: Option<usize>,
    /// Tokens of memory, instead of the preset's (Transformer-XL).
    #[arg(long, value_name = "N", help_heading = "Dimensions of a preset")]
    memory: Option<usize>,
}

impl From<DimensionFlags> for Dimensions {
    fn from(flags: DimensionFlags) -> Self {
        let DimensionFlags { n_layers, d_model, n_heads, d_ff, vocab_size, n_ctx, memory } = flags;
        Dimensions { n_layers, d_model, n_heads, d_ff, vocab_size, n_ctx, memory }
    }
}

/// What a model is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Forward passes only: weights are packed for them.
    Inference,
    /// Gradients too.
    Gradients,
}

/// Loads a folder or hub id for a task (by default the one that its configuration names). What there is to say about unused tensors goes to
/// standard error.
pub(crate) fn open(model: &str, task: Option<Task>, purpose: Purpose, global: &Global) -> anyhow::Result<Opened> {
    open_with_memory(model, task, None, purpose, global)
}

/// As [`open`], with that many tokens of memory instead of the configuration's.
pub(crate) fn open_with_memory(
    model: &str,
    task: Option<Task>,
    memory: Option<usize>,
    purpose: Purpose,
    global: &Global,
) -> anyhow::Result<Opened> {
    let folder = model_folder(model)?;
    let prepare = (purpose == Purpose::Inference).then(|| global.precision());
    let options = LoadOptions { task, device: global.device()?, prepare, memory, ..LoadOptions::default() };
    let loaded = Model::load(&folder, &options)?;
    for warning in &loaded.warnings {
        anstream::eprintln!("\x1b[33mnote:\x1b[0m {warning}");
    }
    Ok(Opened { folder, model: loaded.model })
}

/// Whether a folder or hub id is a model that reads one sequence and writes another.
pub(crate) fn has_encoder(model: &str) -> anyhow::Result<bool> {
    Ok(Model::read_config(&model_folder(model)?)?.1.encoder().is_some())
}

/// The preset of that name, with its dimensions changed; none for a folder or hub id, which has its own.
pub(crate) fn preset(name: &str, dimensions: &Dimensions) -> anyhow::Result<Option<(&'static Family, StackSpec)>> {
    let known = find_preset(name);
    if !Path::new(name).is_dir() && (known.is_ok() || !name.contains('/')) {
        let (family, preset) = known?;
        return Ok(Some((family, dimensions.apply((preset.spec)())?)));
    }
    if *dimensions != Dimensions::default() {
        bail!("{name}: dimensions (--n-layers and the like) change a preset; a model folder has its own");
    }
    Ok(None)
}

/// The model to measure: a folder or hub id with its weights, or a preset with random ones. Dimensions change presets only.
pub(crate) fn open_or_random(
    name: &str,
    task: Option<Task>,
    dimensions: &Dimensions,
    purpose: Purpose,
    global: &Global,
) -> anyhow::Result<(Model, Option<PathBuf>)> {
    if let Some((family, spec)) = preset(name, dimensions)? {
        let model = Model::random(family, spec, task.unwrap_or(family.default_task()), global.seed)?;
        model.move_to(&global.device()?)?;
        if purpose == Purpose::Inference {
            model.prepare(global.precision())?;
        }
        return Ok((model, None));
    }
    let opened = open(name, task, purpose, global)?;
    Ok((opened.model, Some(opened.folder)))
}

/// The tokenizer of a model folder, with what to do when it has none.
pub(crate) fn tokenizer(folder: &Path, way_out: &str) -> anyhow::Result<Tokenizer> {
    Tokenizer::open(folder).with_context(|| format!("the model's tokenizer is needed; {way_out}"))
}
