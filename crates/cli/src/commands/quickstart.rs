//! `genus quickstart`: from nothing to a small trained model in about a minute.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use genus_infer::{Engine, GenerateOptions, Request, Sampling};
use genus_models::Model;
use genus_ops::Precision;
use genus_text::{Corpus, CorpusOptions, Tokenizer};
use genus_train::{CheckpointInfo, Evaluation, Hooks, Outcome, Phase, RunOptions, StartInfo, StepInfo, TrainConfig};
use serde_json::json;

use crate::commands::train::write_evaluations;
use crate::progress::{duration, grouped};
use crate::report::{Interrupted, json_line, program};
use crate::training::TrainHooks;
use crate::{Context, corpus, interrupt};

/// Train a tokenizer and a small GPT-2 in about a minute, on text that ships with the program or on your own; then show what it learned.
///
/// Writes a new folder each time. Needs no network.
#[derive(Debug, clap::Args)]
pub(crate) struct Quickstart {
    /// Text, JSON lines or Parquet files, or folders of them; without it, this project's own source and documentation.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Number of steps.
    #[arg(long, value_name = "N", default_value_t = 1200, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Folder of the run; without it, the first free of runs/quickstart-1, runs/quickstart-2, ...
    #[arg(long, value_name = "RUN")]
    output: Option<PathBuf>,
}

/// Length of a sample, in tokens.
const SAMPLE_TOKENS: usize = 64;

impl Quickstart {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let global = context.global()?;
        let (corpus, about) = self.corpus()?;
        let output = match &self.output {
            Some(folder) => folder.clone(),
            None => free_folder(Path::new("runs"))?,
        };
        if !context.json {
            anstream::eprintln!("\x1b[1mquickstart\x1b[0m: a small GPT-2, trained from nothing on {about}");
        }
        let config = TrainConfig { precision: global.precision(), ..self.config(global.seed) };
        let options = RunOptions {
            output,
            corpus: Some(corpus),
            stop: Some(Arc::clone(interrupt::flag())),
            device: Some(global.device()?),
        };
        interrupt::listen()?;
        let mut hooks = Show {
            inner: TrainHooks::new(context.json),
            steps: self.steps,
            samples: Vec::new(),
            seed: global.seed,
            precision: global.precision(),
        };
        let outcome = genus_train::train(&config, &options, &mut hooks);
        hooks.inner.finish();
        let outcome = outcome?;
        if outcome.stopped {
            return Err(Interrupted(String::new()).into());
        }
        report(context, &outcome, &hooks.samples, self.data.is_empty())
    }

    /// The text, and what it is in words.
    fn corpus(&self) -> anyhow::Result<(Corpus, String)> {
        if !self.data.is_empty() {
            let names: Vec<String> = self.data.iter().map(|p| p.display().to_string()).collect();
            return Ok((Corpus::open(&self.data, CorpusOptions::default())?, names.join(", ")));
        }
        let documents = corpus::documents()?;
        let about = format!("this project's own source and documentation ({} files)", grouped(documents.len() as u64));
        Ok((Corpus::from_documents("built-in corpus", documents), about))
    }

    /// Small enough for a minute on two cores.
    fn config(&self, seed: u64) -> TrainConfig {
        TrainConfig {
            model: "gpt2".into(),
            data: self.data.clone(),
            n_layers: Some(4),
            d_model: Some(128),
            n_heads: Some(4),
            n_ctx: Some(256),
            context: Some(128),
            dropout: Some(0.0),
            tokenizer: Some("train:bpe:2048".into()),
            batch: Some(8),
            steps: self.steps,
            lr: 2e-3,
            warmup_steps: Some(self.steps / 20),
            eval_every: Some((self.steps / 5).max(1)),
            eval_tokens: Some(8192),
            save_every: Some(0),
            seed,
            ..TrainConfig::default()
        }
    }
}

/// `parent/quickstart-N` with the first free N.
fn free_folder(parent: &Path) -> anyhow::Result<PathBuf> {
    for n in 1..100_000 {
        let folder = parent.join(format!("quickstart-{n}"));
        if !folder.try_exists().with_context(|| format!("cannot look at {}", folder.display()))? {
            return Ok(folder);
        }
    }
    bail!("{}: no free folder quickstart-N; choose one with --output", parent.display())
}

/// The run's hooks, and samples at its end.
struct Show {
    inner: TrainHooks,
    steps: u64,
    samples: Vec<Sample>,
    seed: u64,
    precision: Precision,
}

/// A prompt and what the model made of it.
struct Sample {
    prompt: String,
    text: String,
}

impl Hooks for Show {
    fn on_prepare(&mut self, phase: &Phase) {
        self.inner.on_prepare(phase);
    }

    fn on_start(&mut self, start: &StartInfo) {
        self.inner.on_start(start);
    }

    fn on_step(&mut self, step: &StepInfo) {
        self.inner.on_step(step);
    }

    fn on_eval(&mut self, step: u64, evaluation: &Evaluation) {
        self.inner.on_eval(step, evaluation);
    }

    fn on_model(&mut self, step: u64, model: &Model, tokenizer: &Tokenizer) {
        if step == self.steps {
            match samples(model, tokenizer, self.seed, self.precision) {
                Ok(samples) => self.samples = samples,
                Err(error) => self.inner.on_message(&format!("no samples: {error}")),
            }
        }
    }

    fn on_checkpoint(&mut self, checkpoint: &CheckpointInfo) {
        self.inner.on_checkpoint(checkpoint);
    }

    fn on_message(&mut self, message: &str) {
        self.inner.on_message(message);
    }
}

/// Three continuations: of nothing, and of two beginnings that most texts of code or English know.
fn samples(model: &Model, tokenizer: &Tokenizer, seed: u64, precision: Precision) -> anyhow::Result<Vec<Sample>> {
    let engine = Engine::new(model, Some(tokenizer))?.with_precision(precision);
    let prompts = ["", "The ", "    let "];
    let mut requests = Vec::new();
    for prompt in prompts {
        let mut ids = engine.encode(prompt)?;
        if ids.is_empty() {
            ids.extend(tokenizer.end_of_text());
        }
        let sampling = Sampling::Random { temperature: 0.8, top_k: 50, top_p: 1.0, min_p: 0.0 };
        let options = GenerateOptions { sampling, max_new_tokens: SAMPLE_TOKENS, seed, ..GenerateOptions::default() };
        requests.push(Request { prompt: ids, options });
    }
    let completions = engine.generate(&requests, |_, _| {})?;
    let text = |c: genus_infer::Completion| c.text.unwrap_or_default();
    Ok(prompts.iter().zip(completions).map(|(p, c)| Sample { prompt: (*p).to_owned(), text: text(c) }).collect())
}

fn report(context: &Context, outcome: &Outcome, samples: &[Sample], built_in: bool) -> anyhow::Result<()> {
    if context.json {
        return json_line(&json!({
            "output": outcome.folder,
            "checkpoint": outcome.checkpoint,
            "steps": outcome.steps,
            "loss": outcome.loss,
            "first_dev": outcome.first_dev,
            "last_dev": outcome.last_dev.map(|(_, e)| e),
            "seconds": outcome.seconds,
            "samples": samples.iter().map(|s| json!({"prompt": s.prompt, "text": s.text})).collect::<Vec<_>>(),
        }));
    }
    let mut out = anstream::stdout().lock();
    for (i, sample) in samples.iter().enumerate() {
        writeln!(out, "\n\x1b[1m--- sample {}\x1b[0m", i + 1)?;
        writeln!(out, "\x1b[2m{}\x1b[0m{}", sample.prompt, sample.text.trim_end())?;
    }
    let seconds = duration(std::time::Duration::try_from_secs_f64(outcome.seconds).unwrap_or_default());
    writeln!(out, "\n\x1b[1mtrained\x1b[0m    {} steps in {seconds}", outcome.steps)?;
    write_evaluations(&mut out, outcome)?;
    let run = outcome.folder.display();
    writeln!(out, "folder     {run}  (config.toml, metrics.jsonl, TensorBoard events)")?;
    if let Some(checkpoint) = &outcome.checkpoint {
        writeln!(out, "model      {}  (`transformers` loads it, too)", checkpoint.display())?;
        let genus = program();
        writeln!(out, "\n\x1b[1mgo on\x1b[0m")?;
        writeln!(out, "  {genus} generate {} --prompt \"The \" --temperature 0.8", checkpoint.display())?;
        writeln!(out, "  {genus} train --resume {run} --steps {}", 2 * outcome.steps)?;
        if built_in {
            writeln!(out, "  {genus} quickstart --data YOUR_FILE.txt")?;
        }
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::free_folder;

    #[test]
    fn a_new_folder_each_time() {
        let dir = tempfile::tempdir().unwrap();
        for n in 1..4 {
            let folder = free_folder(dir.path()).unwrap();
            assert_eq!(folder, dir.path().join(format!("quickstart-{n}")));
            std::fs::create_dir(&folder).unwrap();
        }
    }
}
