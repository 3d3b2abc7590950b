//! `genus train`: pretrain a preset or a model folder, or go on with a run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use genus_text::Corpus;
use genus_train::{Outcome, RunOptions, TrainConfig};
use serde_json::json;

use crate::commands::train_options::Training;
use crate::data::Data;
use crate::global::Global;
use crate::options::{Args, Group, Layers, Options};
use crate::progress::{duration, grouped};
use crate::report::{Interrupted, Usage, json_line, program};
use crate::training::TrainHooks;
use crate::{Context, corpus, interrupt};

/// Pretrain a preset or a model folder on text, or go on with a run exactly where it stopped.
///
/// The run folder gets config.toml (the effective configuration), metrics.jsonl, TensorBoard event files and checkpoint-N folders, each of
/// which is a model that `genus generate` and `transformers` load.
#[derive(Debug, clap::Args)]
pub(crate) struct Train {
    #[command(flatten)]
    training: Args<Training>,
    #[command(flatten)]
    data: Args<Data>,
    /// Folder of the run: new, or empty.
    #[arg(long, value_name = "RUN", required_unless_present = "resume")]
    output: Option<PathBuf>,
    /// Go on with this run, bit for bit as if it had not stopped; --steps may lengthen it.
    #[arg(long, value_name = "RUN", conflicts_with = "output")]
    resume: Option<PathBuf>,
    /// TOML file with options; its keys are the flags' names, and flags win.
    #[arg(long, value_name = "FILE.toml", conflicts_with = "resume")]
    config: Option<PathBuf>,
}

impl Train {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        if let Some(run) = &self.resume {
            return self.resume(context, run);
        }
        let groups = [Group::of::<Training>(), Group::of::<Data>(), Group::of::<Global>()];
        let mut layers = Layers::new();
        layers.add::<Data>("defaults", &Data::defaults())?.add::<Global>("defaults", &Global::defaults())?;
        if let Some(file) = &self.config {
            layers.file(file, &groups)?;
        }
        layers
            .add::<Training>("command line", &self.training.0)?
            .add::<Data>("command line", &self.data.0)?
            .add::<Global>("command line", &context.global)?;
        let global: Global = layers.resolve()?;
        global.apply()?;
        if !layers.has("model") && !layers.has("init") {
            return Err(
                Usage("nothing to train: pass a preset (`genus tree` lists them) or a model folder".into()).into()
            );
        }
        if !["data", "source", "target"].iter().any(|k| layers.has(k)) {
            let message = "no data: pass --data PATH (files or folders of text, JSON lines or Parquet), or --source FILE and --target FILE";
            return Err(Usage(message.into()).into());
        }
        let config = config(&layers)?;
        let options = RunOptions {
            output: self.output.clone().unwrap_or_default(),
            stop: Some(Arc::clone(interrupt::flag())),
            device: Some(global.device()?),
            ..RunOptions::default()
        };
        interrupt::listen()?;
        let mut hooks = TrainHooks::new(context.json);
        let outcome = genus_train::train(&config, &options, &mut hooks);
        hooks.finish();
        report(context, &outcome?)
    }

    fn resume(&self, context: &Context, run: &Path) -> anyhow::Result<()> {
        let mut given = Layers::new();
        given.add::<Training>("command line", &self.training.0)?.add::<Data>("command line", &self.data.0)?;
        if let Some(key) = given.keys().find(|k| *k != "steps") {
            return Err(Usage(format!(
                "--resume goes on with the run's own configuration ({}); found {key} beside it, and only --steps may change. \
                 To train on from its weights with other options: --init {}/checkpoint-N",
                run.join("config.toml").display(),
                run.display()
            ))
            .into());
        }
        let device = Some(context.global()?.device()?);
        if let Some(precision) = context.global.precision {
            let of_run = TrainConfig::read(&run.join("config.toml"))?.precision;
            if of_run != precision.into() {
                return Err(Usage(format!(
                    "--precision {}: the run is in {of_run} ({}), and goes on in it; leave --precision out",
                    genus_ops::Precision::from(precision),
                    run.join("config.toml").display()
                ))
                .into());
            }
        }
        let corpus = if run.join("config.toml").is_file() { built_in(run)? } else { None };
        let options = RunOptions { output: run.to_owned(), corpus, stop: Some(Arc::clone(interrupt::flag())), device };
        interrupt::listen()?;
        let mut hooks = TrainHooks::new(context.json);
        let outcome = genus_train::resume(self.training.0.steps, &options, &mut hooks);
        hooks.finish();
        report(context, &outcome?)
    }
}

/// The built-in corpus, for a run that has no data of its own: quickstart's.
fn built_in(run: &Path) -> anyhow::Result<Option<Corpus>> {
    let config = TrainConfig::read(&run.join("config.toml"))?;
    if config.data.is_empty() && config.source.is_empty() {
        Ok(Some(Corpus::from_documents("built-in corpus", corpus::documents()?)))
    } else {
        Ok(None)
    }
}

/// The training library's configuration from the layers; what no layer says keeps the library's default.
pub(crate) fn config(layers: &Layers) -> anyhow::Result<TrainConfig> {
    let keys = [Training::KEYS, Data::KEYS];
    let global = Global::KEYS.iter().filter(|k| matches!(k.field, "seed" | "precision"));
    let table = layers.table(keys.into_iter().flatten().chain(global));
    let mut config: TrainConfig = table.try_into().context("the options do not make a configuration")?;
    // Only the weights' folder was named: it is the model, too.
    if config.model.is_empty()
        && let Some(init) = &config.init
    {
        config.model = init.display().to_string();
    }
    for (name, model) in
        [("model", Some(config.model.clone())), ("init", config.init.as_ref().map(|p| p.display().to_string()))]
    {
        let Some(model) = model else { continue };
        // A hub id becomes the folder that it is kept in. A preset stays, unless a folder has its name.
        let folder = Path::new(&model).is_dir();
        if !folder && (name == "init" || model.contains('/')) {
            let found = crate::source::model_folder(&model).with_context(|| format!("{name} {model}"))?;
            match name {
                "init" => config.init = Some(found),
                _ => config.model = found.display().to_string(),
            }
        }
    }
    Ok(config)
}

/// What is said at the end of a run.
pub(crate) fn report(context: &Context, outcome: &Outcome) -> anyhow::Result<()> {
    if context.json {
        json_line(&json!({
            "output": outcome.folder,
            "step": outcome.step,
            "steps": outcome.steps,
            "stopped": outcome.stopped,
            "checkpoint": outcome.checkpoint,
            "loss": outcome.loss,
            "first_dev": outcome.first_dev,
            "last_dev": outcome.last_dev.map(|(_, e)| e),
            "skipped": outcome.skipped,
            "seconds": outcome.seconds,
            "data_wait": outcome.data_wait,
        }))?;
    } else if !outcome.stopped {
        let mut out = anstream::stdout().lock();
        let seconds = duration(std::time::Duration::from_secs_f64(outcome.seconds.max(0.0)));
        writeln!(out, "trained to step {} in {seconds}", grouped(outcome.step))?;
        write_evaluations(&mut out, outcome)?;
        if outcome.skipped > 0 {
            writeln!(out, "{} updates were left out: loss or gradient was not finite", outcome.skipped)?;
        }
        if let Some(checkpoint) = &outcome.checkpoint {
            writeln!(out, "model      {}", checkpoint.display())?;
        }
        writeln!(
            out,
            "go on      {} train --resume {} --steps {}",
            program(),
            outcome.folder.display(),
            2 * outcome.steps
        )?;
    }
    if outcome.stopped {
        // The hooks have said where it stopped and how to go on.
        return Err(Interrupted(String::new()).into());
    }
    Ok(())
}

/// The held-out figures before and after.
pub(crate) fn write_evaluations(out: &mut impl Write, outcome: &Outcome) -> anyhow::Result<()> {
    let Some((_, last)) = &outcome.last_dev else { return Ok(()) };
    let first = outcome.first_dev.as_ref();
    let row = |out: &mut dyn Write, name: &str, before: Option<f64>, after: f64| match before {
        Some(before) => writeln!(out, "{name}  {before:.3} before, {after:.3} after"),
        None => writeln!(out, "{name}  {after:.3}"),
    };
    row(out, "held out   loss", first.map(|e| e.dev_loss), last.dev_loss)?;
    if let Some(bits) = last.bits_per_byte {
        row(out, "           bits per byte", first.and_then(|e| e.bits_per_byte), bits)?;
    }
    Ok(())
}
