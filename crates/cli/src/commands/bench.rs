//! `genus bench`: speed beside the machine's ceilings.

mod compare;
mod print;
mod translation;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use genus_infer::bench::{self, Ceilings, Measured, Report, Runs};
use genus_infer::{EmbedOptions, encode_lines, read_lines};
use genus_models::{Model, Task, find_preset};
use genus_nn::Attend;
use genus_ops::Precision;
use genus_text::Tokenizer;
use genus_train::Objective;
use genus_train::bench::{Timing, natural_batch, random_batch, train_step};

use super::labelled;
use crate::Context;
use crate::global::Global;
use crate::model::{self, DimensionFlags, Purpose};
use crate::report::{Usage, json_line};

/// Measure training steps, forward passes, reading prompts or decoding, beside the machine's ceilings.
///
/// Ceilings are taken in the same run with the same threads: multiply-adds in registers, and reading memory. Operations are those of the matrix
/// products that the definition needs; a training step counts three times its forward pass. Where the time went is told per kind of operation.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Bench {
    /// Repeat the measurement of this file, which --json wrote, and tell whether it has become slower than the spread of the runs explains.
    ///
    /// Exit code 3 when time or memory regressed, 0 when not. The file says what is run, so no other argument is needed.
    #[arg(long, value_name = "BASELINE.json")]
    compare: Option<PathBuf>,
    #[command(subcommand)]
    workload: Option<Workload>,
}

/// What is measured.
#[derive(Debug, clap::Subcommand)]
enum Workload {
    Train(TrainBench),
    Forward(ForwardBench),
    Prefill(PrefillBench),
    Decode(DecodeBench),
    Translate(translation::TranslateBench),
    Tokenize(TokenizeBench),
}

/// What is measured, and how often.
#[derive(Debug, clap::Args)]
struct Subject {
    /// Preset (random weights; `genus tree` lists them), folder or hub id.
    #[arg(value_name = "PRESET|MODEL")]
    model: String,
    /// Runs that are timed; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Runs before them that are not.
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: usize,
    #[command(flatten)]
    dimensions: DimensionFlags,
}

/// What goes through the model.
#[derive(Debug, clap::Args)]
struct Rows {
    /// Sequences in a batch.
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch: usize,
    /// Tokens of each.
    #[arg(long, value_name = "N", default_value_t = 512)]
    context: usize,
    /// Text file: its lines, at their natural lengths, instead of random tokens.
    #[arg(long, value_name = "FILE", conflicts_with = "context")]
    lines: Option<PathBuf>,
    /// Tokenizer for text: a folder, or bytes; without it, the model's own.
    #[arg(long, value_name = "TOKENIZER")]
    tokenizer: Option<String>,
}

/// Training steps: forward, backward, clipping to norm 1, AdamW, without dropout; data already in memory.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainBench {
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    rows: Rows,
    #[command(flatten)]
    pairs: translation::PairFlags,
    /// causal, masked, pretraining, classification or translation; without it, what the model was published with.
    #[arg(long, value_name = "OBJECTIVE")]
    objective: Option<Objective>,
    /// What is trained, by the name of the task: sequence-classification takes --lines with a tab and a class behind the text.
    #[arg(long, value_name = "TASK", conflicts_with = "objective")]
    task: Option<Task>,
    /// Recompute every layer in the backward pass instead of remembering it.
    #[arg(long)]
    recompute: bool,
}

/// Forward passes; with --lines, text in and vectors out, tokenising included.
#[derive(Debug, clap::Args)]
pub(crate) struct ForwardBench {
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    rows: Rows,
    /// What the model is loaded for; without it, causal-lm for a decoder and base for an encoder.
    #[arg(long, value_name = "TASK")]
    task: Option<Task>,
}

/// Reading a prompt, to the first new token.
#[derive(Debug, clap::Args)]
pub(crate) struct PrefillBench {
    #[command(flatten)]
    subject: Subject,
    /// Tokens of the prompt.
    #[arg(long, value_name = "P", default_value_t = 512)]
    prompt_tokens: usize,
}

/// Greedy decoding with the cache.
#[derive(Debug, clap::Args)]
pub(crate) struct DecodeBench {
    #[command(flatten)]
    subject: Subject,
    /// Sequences decoded together.
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Tokens of each prompt.
    #[arg(long, value_name = "P", default_value_t = 32)]
    prompt_tokens: usize,
    /// Tokens that each gets.
    #[arg(long, value_name = "N", default_value_t = 64)]
    new_tokens: usize,
}

/// Tokenising a text file, line by line, on all threads.
#[derive(Debug, clap::Args)]
pub(crate) struct TokenizeBench {
    /// Folder or hub id with a tokenizer, or bytes.
    #[arg(value_name = "TOKENIZER")]
    tokenizer: String,
    /// Text file.
    #[arg(long, value_name = "FILE")]
    lines: PathBuf,
    /// Runs that are timed; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Runs before them that are not.
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: usize,
}

impl Subject {
    fn runs(&self) -> Runs {
        Runs { warm_up: self.warm_up, timed: self.runs }
    }

    fn open(&self, task: Option<Task>, purpose: Purpose, global: &Global) -> anyhow::Result<(Model, Option<PathBuf>)> {
        let dimensions = self.dimensions.into();
        if self.runs == 0 {
            return Err(Usage("--runs 0: expected at least 1".into()).into());
        }
        model::open_or_random(&self.model, task, &dimensions, purpose, global)
    }
}

impl Rows {
    fn tokenizer(&self, folder: Option<&Path>) -> anyhow::Result<Tokenizer> {
        match (&self.tokenizer, folder) {
            (Some(name), _) => super::tokenizer::open(name),
            (None, Some(folder)) => model::tokenizer(folder, "or choose one with --tokenizer"),
            (None, None) => bail!("a preset has no tokenizer: choose one for --lines with --tokenizer FOLDER"),
        }
    }
}

impl Bench {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        match (self.workload, &self.compare) {
            (Some(workload), None) => {
                let result = workload.run(context)?;
                let arguments = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned());
                let report = result.report.repeated_by(arguments.filter(|a| a != "--json").collect());
                if context.json {
                    json_line(&report)
                } else {
                    print::report(&report, &result.measured, result.parameters)
                }
            }
            (None, Some(baseline)) => compare::run(baseline, context),
            (Some(_), Some(_)) => {
                Err(Usage("--compare repeats what its file says: leave the workload out".into()).into())
            }
            (None, None) => {
                Err(Usage("nothing to measure: train, forward, prefill, decode, or --compare FILE".into()).into())
            }
        }
    }
}

/// A measurement that was taken.
struct Taken {
    report: Report,
    measured: Measured,
    parameters: Option<u64>,
}

impl Workload {
    fn run(self, context: &Context) -> anyhow::Result<Taken> {
        let global = &context.global()?;
        let precision = global.precision();
        let (subject, model, workload, measured) = match self {
            Self::Train(b) => b.measure(global)?,
            Self::Forward(b) => b.measure(global)?,
            Self::Prefill(b) => {
                let (model, _) = b.subject.open(Some(Task::CausalLm), Purpose::Inference, global)?;
                let measured = bench::prefill(&model, b.prompt_tokens, precision, b.subject.runs())?;
                (b.subject, model, format!("prefill {}", b.prompt_tokens), measured)
            }
            Self::Decode(b) => {
                let (model, _) = b.subject.open(Some(Task::CausalLm), Purpose::Inference, global)?;
                let measured =
                    bench::decode(&model, b.batch, b.prompt_tokens, b.new_tokens, precision, b.subject.runs())?;
                let workload = format!("decode {}x{} after {}", b.batch, b.new_tokens, b.prompt_tokens);
                (b.subject, model, workload, measured)
            }
            Self::Translate(b) => b.measure(global)?,
            Self::Tokenize(b) => return b.measure(),
        };
        // After the workload, so that their memory is not the workload's.
        let report = Report::new(&subject.model, Some(precision), workload, &measured, Ceilings::measure(precision));
        Ok(Taken { report, measured, parameters: Some(model.count()) })
    }
}

impl TokenizeBench {
    fn measure(self) -> anyhow::Result<Taken> {
        let tokenizer = super::tokenizer::open(&self.tokenizer)?;
        let lines = read_lines(&self.lines)?;
        let measured = bench::tokenize(&tokenizer, &lines, Runs { warm_up: self.warm_up, timed: self.runs })?;
        let workload = format!("tokenize {} lines", lines.len());
        let report = Report::new(&self.tokenizer, None, workload, &measured, Ceilings::measure(Precision::F32));
        Ok(Taken { report, measured, parameters: None })
    }
}

type Measurement = (Subject, Model, String, Measured);

impl TrainBench {
    fn measure(self, global: &Global) -> anyhow::Result<Measurement> {
        let task = self.task.or(self.objective.map(Objective::task));
        let (model, folder) = self.subject.open(task, Purpose::Gradients, global)?;
        let seed = global.seed;
        // What replaces tokens is part of the step.
        let model = match model.task() {
            Task::ReplacedToken => {
                model.with_random_generator(genus_train::TrainConfig::default().generator_share, seed)?
            }
            _ => model,
        };
        let Some(objective) = Objective::of(model.task()) else {
            bail!("{}: the task {} has no objective; choose one with --objective", self.subject.model, model.task());
        };
        let mut tokenizing = None;
        let pairs = self.pairs.given();
        let (batches, workload) = match &self.rows.lines {
            _ if pairs => {
                let (batches, seconds) = self.pairs.batches(&model, folder.as_deref(), &self.rows, objective, seed)?;
                tokenizing = Some(seconds);
                let workload = self.pairs.workload(&batches);
                (batches, workload)
            }
            None => {
                let (batch, context) = (self.rows.batch, self.rows.context);
                let mut batch_of = random_batch(model.spec(), objective, batch, context, seed)?;
                if objective == Objective::Classification {
                    batch_of.sequence_labels = labelled::split(vec!["x".into(); batch], model.labels(), seed)?.1;
                }
                (vec![batch_of], format!("train {batch}x{context}"))
            }
            Some(file) => {
                let tokenizer = self.rows.tokenizer(folder.as_deref())?;
                if self.rows.batch == 0 {
                    return Err(Usage("--batch 0: expected at least 1".into()).into());
                }
                let (lines, mut labels) = match objective {
                    Objective::Classification => labelled::split(read_lines(file)?, model.labels(), seed)
                        .with_context(|| format!("--lines {}", file.display()))?,
                    _ => (read_lines(file)?, Vec::new()),
                };
                let start = Instant::now();
                let (mut ids, _) = encode_lines(&tokenizer, &lines, model.spec().n_ctx)?;
                tokenizing = Some(start.elapsed().as_secs_f64());
                if objective == Objective::Classification {
                    let mut kept = ids.iter().map(|line| !line.is_empty());
                    labels.retain(|_| kept.next().unwrap_or(false));
                }
                ids.retain(|line| !line.is_empty());
                let mut batches = Vec::new();
                for (i, rows) in ids.chunks(self.rows.batch).enumerate() {
                    let mut batch = natural_batch(objective, rows, seed)?;
                    if objective == Objective::Classification {
                        let from = i * self.rows.batch;
                        batch.sequence_labels = labels[from..from + rows.len()].to_vec();
                    }
                    batches.push(batch);
                }
                (batches, format!("train {objective} {} lines in batches of {}", ids.len(), self.rows.batch))
            }
        };
        let timing = Timing {
            warmup: self.subject.warm_up,
            runs: self.subject.runs,
            recompute: self.recompute,
            precision: global.precision(),
            smoothing: if pairs { translation::SMOOTHING } else { 0.0 },
        };
        let r = train_step(&model, objective, &batches, timing)?;
        let measured = Measured {
            tokenizing_seconds: tokenizing.map(|t| vec![t; r.seconds.len()]),
            tokens: r.tokens as usize,
            flops: r.flops,
            seconds: r.seconds,
            peak_rss_bytes: r.peak_rss_bytes,
            operations: r.operations,
            ..Measured::default()
        };
        Ok((self.subject, model, workload, measured))
    }
}

impl ForwardBench {
    fn measure(self, global: &Global) -> anyhow::Result<Measurement> {
        let task = match (self.task, find_preset(&self.subject.model)) {
            (Some(task), _) => Some(task),
            (None, _) if self.rows.lines.is_some() => Some(Task::Base),
            (None, Ok((_, preset))) if (preset.spec)().attend == Attend::All => Some(Task::Base),
            (None, _) => None,
        };
        let (model, folder) = self.subject.open(task, Purpose::Inference, global)?;
        let runs = self.subject.runs();
        if let Some(file) = &self.rows.lines {
            let tokenizer = self.rows.tokenizer(folder.as_deref())?;
            let mut options = match &folder {
                Some(folder) => EmbedOptions::open(folder)?,
                None => EmbedOptions::default(),
            };
            options.precision = global.precision();
            let lines = read_lines(file)?;
            let measured = bench::lines(&model, &tokenizer, &lines, &options, runs)?;
            return Ok((self.subject, model, format!("forward {} lines", lines.len()), measured));
        }
        let (batch, context) = (self.rows.batch, self.rows.context);
        let measured = bench::forward(&model, batch, context, global.precision(), runs)?;
        Ok((self.subject, model, format!("forward {batch}x{context}"), measured))
    }
}
