//! `genus forward`: raw outputs of any checkpoint, by which it is checked against the reference.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use genus_checkpoint::{WriteOptions, write_single};
use genus_infer::{ForwardOptions, PaddedBatch, forward};
use genus_models::Task;
use serde_json::json;

use crate::Context;
use crate::model::{self, Purpose};
use crate::report::json_line;

/// Raw outputs of a model on a batch, as `transformers` names and shapes them; with --grad also every gradient.
#[derive(Debug, clap::Args)]
pub(crate) struct Forward {
    /// Folder or hub id.
    #[arg(value_name = "MODEL")]
    model: String,
    /// The batch: a JSON object of nested lists (input_ids, attention_mask, token_type_ids, position_ids, decoder_input_ids, labels, ...).
    #[arg(long, value_name = "batch.json")]
    input: PathBuf,
    /// File to write.
    #[arg(long, value_name = "out.safetensors")]
    output: PathBuf,
    /// base, causal-lm, seq2seq-lm, masked-lm, next-sentence, pretraining, replaced-token, sequence-classification or token-classification; without it, what config.json says.
    #[arg(long, value_name = "TASK")]
    task: Option<Task>,
    /// Add the gradient of the loss for every tensor that the task uses.
    #[arg(long)]
    grad: bool,
    /// Add the embeddings and every layer's output.
    #[arg(long)]
    hidden_states: bool,
    /// Recurrent models: length of the segments that rows are run in.
    #[arg(long, value_name = "N")]
    segment_length: Option<usize>,
}

impl Forward {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let global = context.global()?;
        check_output_file(&self.output, &self.input)?;
        let batch = PaddedBatch::open(&self.input)?;
        let purpose = if self.grad { Purpose::Gradients } else { Purpose::Inference };
        let opened = model::open(&self.model, self.task, purpose, &global)?;
        let options = ForwardOptions {
            grad: self.grad,
            hidden_states: self.hidden_states,
            segment_length: self.segment_length,
            precision: global.precision(),
            ..ForwardOptions::default()
        };
        let tensors = forward(&opened.model, &batch, &options)?;
        write_single(&self.output, &tensors, &WriteOptions::default())?;
        if context.json {
            let shapes: serde_json::Map<_, _> =
                tensors.iter().map(|(name, t)| (name.clone(), json!(t.dims()))).collect();
            return json_line(&json!({"output": self.output, "task": opened.model.task().name(), "tensors": shapes}));
        }
        let mut out = anstream::stdout().lock();
        let (gradients, outputs): (Vec<_>, Vec<_>) = tensors.iter().partition(|(name, _)| name.starts_with("grad."));
        for (name, t) in outputs {
            match name.as_str() {
                "loss" => writeln!(out, "loss  {}", t.to_scalar::<f32>()?)?,
                _ => writeln!(out, "{name}  {:?}", t.dims())?,
            }
        }
        if self.grad {
            writeln!(out, "gradients of {} tensors", gradients.len())?;
        }
        writeln!(out, "written to {}", self.output.display())?;
        Ok(())
    }
}

/// Refuses, before any work, an output file that is the input, a folder, or in no folder.
pub(crate) fn check_output_file(output: &Path, input: &Path) -> anyhow::Result<()> {
    if output.is_dir() {
        bail!("--output {}: found a folder, expected a file name", output.display());
    }
    if output.exists() && std::fs::canonicalize(output).ok() == std::fs::canonicalize(input).ok() {
        bail!("--output {}: that is the input; choose another file", output.display());
    }
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let meta = std::fs::metadata(parent)
        .with_context(|| format!("--output {}: the folder {} is missing", output.display(), parent.display()))?;
    if !meta.is_dir() {
        bail!("--output {}: {} is a file, expected a folder", output.display(), parent.display());
    }
    Ok(())
}
