//! The training loop.

use crate::metrics::Metrics;
use crate::prefetch::{Place, Prefetch};
use crate::run::{self, State};
use crate::setup::{self, Plan, absolute};
use crate::text::Text;
use crate::{
    CheckpointInfo, Data, Error, Evaluation, Hooks, Objective, Resolved, Result, Schedule, StartInfo, StepInfo,
    TrainConfig, Trainer, Update, evaluate, freeze, peak_rss, rss,
};
use genus_checkpoint::{RunLock, atomic::clean_leftovers, state};
use genus_models::{LoadOptions, Model};
use genus_text::{Corpus, Tokenizer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Where a run lives, and how it is stopped.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The run folder.
    pub output: PathBuf,
    /// Text in memory, instead of the configuration's `data`.
    pub corpus: Option<Corpus>,
    /// Looked at after each step: when set, the run writes a checkpoint and ends.
    pub stop: Option<Arc<AtomicBool>>,
    /// Where to compute; the CPU when not given.
    pub device: Option<genus_ops::Device>,
}

impl RunOptions {
    fn place(&self, model: &Model) -> Result<()> {
        match &self.device {
            Some(device) => Ok(model.move_to(device)?),
            None => Ok(()),
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run folder.
    pub folder: PathBuf,
    /// The last step taken.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Whether it was stopped before the end.
    pub stopped: bool,
    /// The last checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// The loss of the last step taken in this call.
    pub loss: Option<f64>,
    /// The evaluation before the first step of the run.
    pub first_dev: Option<Evaluation>,
    /// The last evaluation, with its step.
    pub last_dev: Option<(u64, Evaluation)>,
    /// Updates left out because loss or gradient was not finite.
    pub skipped: u64,
    /// Seconds of this call, from the first step on.
    pub seconds: f64,
    /// Share of the time of the steps spent waiting for data.
    pub data_wait: f64,
}

/// Starts a run in a new folder.
///
/// # Errors
/// When the configuration, the model or the data cannot be, the folder is in use or not empty, or training fails; a
/// checkpoint that was written stays as it is.
pub fn train(config: &TrainConfig, options: &RunOptions, hooks: &mut dyn Hooks) -> Result<Outcome> {
    config.validate()?;
    let _lock = RunLock::acquire(&options.output)?;
    run::expect_empty(&options.output)?;
    clean_leftovers(&options.output)?;
    fresh(config, None, options, hooks)
}

/// Continues the run in `options.output` exactly, from its newest sound checkpoint (from the beginning, when it has none).
/// `steps` changes the number of steps; schedules that depend on it follow from there on.
///
/// # Errors
/// When the folder holds no run or is in use, the data has changed, or training fails.
pub fn resume(steps: Option<u64>, options: &RunOptions, hooks: &mut dyn Hooks) -> Result<Outcome> {
    let folder = &options.output;
    let config_path = folder.join(run::CONFIG);
    if !config_path.is_file() {
        return Err(Error::NotARun { folder: folder.clone() });
    }
    let _lock = RunLock::acquire(folder)?;
    clean_leftovers(folder)?;
    let mut config = TrainConfig::read(&config_path)?;
    config.steps = steps.unwrap_or(config.steps);
    config.validate()?;
    let latest = state::latest_valid(folder)?;
    for (step, reason) in &latest.skipped {
        hooks.on_message(&format!("checkpoint of step {step} is passed over: {reason}"));
    }
    let Some((step, checkpoint)) = latest.found else {
        hooks.on_message("the run has no checkpoint yet: it starts again from the beginning");
        let path = folder.join(run::TOKENIZER);
        let tokenizer = if path.is_dir() { Some(Tokenizer::open(path)?) } else { None };
        return fresh(&config, tokenizer, options, hooks);
    };
    if config.steps < step {
        return Err(Error::config("steps", config.steps, format!("at least {step}, where the run is already")));
    }
    let (state, moments) = run::load_state(&checkpoint)?;
    let tokenizer = Tokenizer::open(&checkpoint)?;
    let objective = config.objective.ok_or_else(|| Error::config("objective", "missing", "as the run was started"))?;
    let load = LoadOptions { task: Some(objective.task()), ..LoadOptions::default() };
    let mut model = Model::load(&checkpoint, &load)?.model;
    if objective == Objective::ReplacedTokens {
        model = model.load_generator(&checkpoint, &load)?;
    }
    options.place(&model)?;
    let resolved = config.resolve(objective, model.spec().n_ctx)?;
    if steps.is_some() {
        run::write_config(folder, &resolved.config)?;
    }
    let text = Text::open(&resolved.config, objective, options.corpus.as_ref())?;
    let data = Data::build(&text, tokenizer, &resolved, &model, |p| hooks.on_prepare(&p))?;
    same_data(&state, &data, &checkpoint)?;
    let mut run = Run::new(model, data, resolved, options)?;
    run.trainer.restore(&state, moments, &checkpoint)?;
    run.position = state.position;
    run.first_dev = state.first_dev.map(Into::into);
    run.last_dev = state.last_dev.map(|(s, d)| (s, d.into()));
    run.checkpoint = Some(checkpoint);
    run.go(hooks)
}

/// A run from step 0, into a folder that may hold the beginning of it.
fn fresh(
    config: &TrainConfig,
    tokenizer: Option<Tokenizer>,
    options: &RunOptions,
    hooks: &mut dyn Hooks,
) -> Result<Outcome> {
    let mut config = absolute(config);
    let mut plan = Plan::new(&config, &mut |m| hooks.on_message(m))?;
    plan.check_memory(&mut config)?;
    // What is wrong with batch and context is told before the data is read.
    let mut resolved = config.resolve(plan.objective, plan.spec.n_ctx)?;
    let text = Text::open(&resolved.config, plan.objective, options.corpus.as_ref())?;
    if let Text::Tagged { train, .. } = &text {
        plan.set_labels(train.labels())?;
    }
    let tokenizer = match tokenizer {
        Some(t) => t,
        None => {
            let spec = plan.tokenizer_spec(&config, &mut |m| hooks.on_message(m))?;
            resolved.config.tokenizer = Some(spec.to_string());
            setup::tokenizer(&spec, &text, &mut |p| hooks.on_prepare(&p))?
        }
    };
    plan.fit_vocabulary(&config, &tokenizer, &mut |m| hooks.on_message(m))?;
    resolved.config.vocab_size = Some(plan.spec.vocab_size);
    let mut model = plan.model(&config, &tokenizer, &mut |m| hooks.on_message(m))?;
    options.place(&model)?;
    run::set_special_ids(&mut model, &tokenizer);
    let frozen = freeze(&model, &config.freeze)?;
    if frozen > 0 {
        hooks.on_message(&format!("{frozen} of {} parameters are frozen", model.params().len()));
    }
    let data = Data::build(&text, tokenizer, &resolved, &model, |p| hooks.on_prepare(&p))?;
    let n_ctx = model.spec().n_ctx;
    let run = Run::new(model, data, resolved, options)?;
    run::write_frame(&options.output, &run.resolved.config, &run.data.tokenizer, n_ctx)?;
    run.go(hooks)
}

fn same_data(state: &State, data: &Data, checkpoint: &Path) -> Result<()> {
    let (now, then) = (&data.fingerprint, &state.data);
    let rows = [
        ("number of documents", now.documents.to_string(), then.documents.to_string()),
        ("number of bytes", now.bytes.to_string(), then.bytes.to_string()),
        ("number of held-out bytes", now.dev_bytes.to_string(), then.dev_bytes.to_string()),
        ("number of tokens", now.tokens.to_string(), then.tokens.to_string()),
        ("checksum", now.crc32.clone(), then.crc32.clone()),
    ];
    match rows.into_iter().find(|(_, now, then)| now != then) {
        None => Ok(()),
        Some((what, found, expected)) => {
            Err(Error::DataChanged { checkpoint: checkpoint.to_owned(), what, found, expected })
        }
    }
}

/// A run that is ready to go.
struct Run<'a> {
    options: &'a RunOptions,
    resolved: Resolved,
    data: Data,
    trainer: Trainer,
    position: u64,
    first_dev: Option<Evaluation>,
    last_dev: Option<(u64, Evaluation)>,
    checkpoint: Option<PathBuf>,
    /// The newest checkpoint whose weights are known to give a finite loss and gradient: those of the step after it were.
    good: Option<PathBuf>,
    /// What the machine can do at most.
    peak: Option<f64>,
}

/// Floating-point operations a second of products in this precision that the machine can do at most; takes some 50 ms. Of the processor alone.
fn peak(model: &Model, precision: genus_ops::Precision) -> Option<f64> {
    let on_cpu = |p: &genus_ops::Param| p.tensor().device().is_cpu();
    model.params().iter().all(on_cpu).then(|| genus_ops::ceiling::product_flops(precision))
}

impl<'a> Run<'a> {
    fn new(model: Model, data: Data, resolved: Resolved, options: &'a RunOptions) -> Result<Self> {
        let c = &resolved.config;
        freeze(&model, &c.freeze)?;
        let schedule = Schedule {
            kind: c.schedule,
            lr: c.lr,
            warmup_steps: resolved.warmup_steps,
            steps: c.steps,
            floor: c.lr_floor,
            d_model: model.spec().d_model,
        };
        let peak = peak(&model, c.precision);
        let mut trainer = Trainer::new(model, resolved.objective, c.optimizer(), schedule, c.seed)?;
        trainer.set_recompute(c.recompute);
        trainer.set_precision(c.precision);
        trainer.set_label_smoothing(c.label_smoothing.unwrap_or(0.0));
        let (first_dev, last_dev, checkpoint, good) = (None, None, None, None);
        Ok(Run { options, resolved, data, trainer, position: 0, first_dev, last_dev, checkpoint, good, peak })
    }

    fn go(mut self, hooks: &mut dyn Hooks) -> Result<Outcome> {
        let folder = self.options.output.clone();
        let from = self.trainer.step();
        let total = self.resolved.config.steps;
        let mut metrics = Metrics::open(&folder, from, self.trainer.objective())?;
        let params = self.trainer.model().params();
        let size = |p: &genus_ops::Param| p.tensor().elem_count() as u64;
        hooks.on_start(&StartInfo {
            config: self.resolved.clone(),
            from_step: from,
            parameters: self.trainer.model().count(),
            trainable: params.iter().filter(|p| p.trainable()).map(size).sum(),
            train_tokens: self.data.train_tokens,
            dev_tokens: self.data.dev.as_ref().map(|d| d.tokens),
            peak_flops_per_second: self.peak,
        });
        if from == 0
            && let Some(e) = self.evaluate(0, hooks)?
        {
            self.first_dev = Some(e);
            metrics.initial(&e)?;
        }
        let examples = Arc::clone(&self.data.train);
        let accumulate = self.resolved.config.accumulate;
        let at = Place { step: from, position: self.position };
        let mut fetch = Prefetch::start(examples, self.resolved.batch, self.resolved.ramp, accumulate, at)?;
        let begin = Instant::now();
        let mut clock = Clock::default();
        let mut stopped = false;
        let mut loss = None;
        while self.trainer.step() < total {
            if self.options.stop.as_ref().is_some_and(|s| s.load(Ordering::Relaxed)) {
                stopped = true;
                break;
            }
            let start = Instant::now();
            let batches = fetch.next()?;
            let waited = start.elapsed().as_secs_f64();
            let update = self.trainer.update(&batches.batches)?;
            self.position = batches.next;
            clock.step(&update, waited, start.elapsed().as_secs_f64());
            let step = update.step;
            loss = Some(update.loss);
            if update.applied && self.good != self.checkpoint {
                self.good.clone_from(&self.checkpoint);
                self.remove_old()?;
            }
            if !update.applied {
                let what = if update.loss.is_finite() { "gradient" } else { "loss" };
                hooks.on_message(&format!("step {step}: {what} is not finite; this update was left out"));
            }
            let due = self.resolved.eval_every > 0 && (step % self.resolved.eval_every == 0 || step == total);
            let dev = if due { self.evaluate(step, hooks)? } else { None };
            let info = self.info(&update, &clock, (step - from) as f64, begin.elapsed().as_secs_f64());
            hooks.on_step(&info);
            let log_every = self.resolved.config.log_every;
            if step % log_every == 0 || step == total || dev.is_some() || !update.applied {
                metrics.step(&info, &update, dev.as_ref())?;
                clock.window();
            }
            if self.trainer.skipped_in_a_row() >= self.resolved.config.max_skipped {
                let (count, last) = (self.trainer.skipped_in_a_row(), self.good.clone());
                return Err(Error::NotFinite { step, count, last });
            }
            let save_every = self.resolved.save_every;
            // Without an update there is nothing new to save, and what is there may be what is wrong.
            if (save_every > 0 && step % save_every == 0 && update.applied) || step == total {
                self.save(&metrics, hooks)?;
            }
        }
        let step = self.trainer.step();
        if stopped && step > from {
            self.save(&metrics, hooks)?;
        }
        if stopped {
            let at = match &self.checkpoint {
                Some(_) => format!("stopped after step {step} of {total}"),
                None => "stopped before the first step".to_owned(),
            };
            hooks.on_message(&format!("{at}; go on with: genus train --resume {}", folder.display()));
        }
        Ok(Outcome {
            folder,
            step,
            steps: total,
            stopped,
            checkpoint: self.checkpoint,
            loss,
            first_dev: self.first_dev,
            last_dev: self.last_dev,
            skipped: self.trainer.skipped(),
            seconds: begin.elapsed().as_secs_f64(),
            data_wait: clock.waited / clock.seconds.max(1e-12),
        })
    }

    fn evaluate(&mut self, step: u64, hooks: &mut dyn Hooks) -> Result<Option<Evaluation>> {
        let Some(dev) = self.data.dev.as_ref().filter(|_| self.resolved.eval_every > 0) else { return Ok(None) };
        let rows = match self.resolved.batch {
            crate::BatchSize::Sequences(n) => n,
            crate::BatchSize::Tokens(n) => n / self.resolved.context,
        };
        let (model, precision) = (self.trainer.model(), self.resolved.config.precision);
        let e = evaluate(model, self.trainer.objective(), &dev.samples, rows, dev.bytes_per_token, precision)?;
        self.last_dev = Some((step, e));
        hooks.on_eval(step, &e);
        hooks.on_model(step, model, &self.data.tokenizer);
        Ok(Some(e))
    }

    fn info(&self, update: &Update, clock: &Clock, done: f64, elapsed: f64) -> StepInfo {
        let total = self.resolved.config.steps;
        let (epoch, index) = self.data.train.locate(self.position);
        let flops_per_second = clock.flops / clock.window_seconds.max(1e-12);
        StepInfo {
            step: update.step,
            total,
            loss: update.loss,
            lr: update.lr,
            grad_norm: update.grad_norm,
            tokens_per_second: clock.tokens as f64 / clock.window_seconds.max(1e-12),
            tokens: update.tokens,
            flops_per_second,
            peak_fraction: self.peak.map(|p| flops_per_second / p),
            epoch: epoch as f64 + index as f64 / self.data.train.epoch_len(epoch) as f64,
            data_wait: clock.waited / clock.seconds.max(1e-12),
            skipped: self.trainer.skipped(),
            dev: self.last_dev,
            memory: rss(),
            peak_memory: peak_rss(),
            eta_seconds: elapsed / done.max(1.0) * (total - update.step) as f64,
        }
    }

    /// Removes checkpoints beyond the number to keep. Only after the step that follows the newest: should that one's weights
    /// turn out to give no finite loss, the ones before are still there.
    fn remove_old(&self) -> Result<()> {
        if self.resolved.config.keep_last > 0 {
            state::keep_last(&self.options.output, self.resolved.config.keep_last)?;
        }
        Ok(())
    }

    /// Writes a checkpoint.
    fn save(&mut self, metrics: &Metrics, hooks: &mut dyn Hooks) -> Result<()> {
        let step = self.trainer.step();
        let start = Instant::now();
        metrics.sync()?;
        let state = State {
            step,
            updates: self.trainer.optimizer().updates(),
            skipped: self.trainer.skipped(),
            skipped_in_a_row: self.trainer.skipped_in_a_row(),
            position: self.position,
            seed: self.resolved.config.seed,
            data: self.data.fingerprint.clone(),
            first_dev: self.first_dev.map(Into::into),
            last_dev: self.last_dev.map(|(s, e)| (s, e.into())),
        };
        let folder = &self.options.output;
        let last = self.checkpoint.clone();
        let failed = |e: Error| Error::Save { step, last, source: Box::new(e) };
        match run::save(folder, &self.trainer, &self.data.tokenizer, &state).map_err(failed)? {
            None => {
                hooks.on_message(&format!("step {step}: weights are not finite; no checkpoint was written"));
            }
            Some(path) => {
                self.checkpoint = Some(path.clone());
                if step == self.resolved.config.steps {
                    self.remove_old()?;
                }
                hooks.on_checkpoint(&CheckpointInfo { step, folder: path, seconds: start.elapsed().as_secs_f64() });
            }
        }
        Ok(())
    }
}

/// Time spent in steps, without evaluation and checkpoints.
#[derive(Default)]
struct Clock {
    seconds: f64,
    waited: f64,
    window_seconds: f64,
    tokens: u64,
    flops: f64,
    closed: bool,
}

impl Clock {
    fn step(&mut self, update: &Update, waited: f64, seconds: f64) {
        if self.closed {
            (self.window_seconds, self.tokens, self.flops, self.closed) = (0.0, 0, 0.0, false);
        }
        self.seconds += seconds;
        self.waited += waited;
        self.window_seconds += seconds;
        self.tokens += update.tokens;
        self.flops += update.flops;
    }

    /// The next step starts a new window.
    fn window(&mut self) {
        self.closed = true;
    }
}
