//! What a run tells the outside.

use crate::{Evaluation, Phase, Resolved};
use genus_models::Model;
use genus_text::Tokenizer;
use std::path::PathBuf;

/// A run that is about to take its first step.
#[derive(Clone, Debug)]
pub struct StartInfo {
    /// The effective configuration.
    pub config: Resolved,
    /// The step that the run starts from; 0 for a new run.
    pub from_step: u64,
    /// Parameters of the model.
    pub parameters: u64,
    /// Those that learn.
    pub trainable: u64,
    /// Tokens of the training set.
    pub train_tokens: u64,
    /// Tokens of the held-out set.
    pub dev_tokens: Option<u64>,
    /// Floating-point operations a second that this machine can do at most, with the run's threads and precision, measured
    /// just now; `None` on a device whose peak is not measured.
    pub peak_flops_per_second: Option<f64>,
}

/// One step.
#[derive(Clone, Debug)]
pub struct StepInfo {
    /// The step, from 1.
    pub step: u64,
    /// Steps of the whole run.
    pub total: u64,
    /// Mean loss over the step's targets, before the update; NaN or infinite in a step that was left out.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens a second since the last step that was logged; evaluation and checkpoints do not count.
    pub tokens_per_second: f64,
    /// Tokens of this step.
    pub tokens: u64,
    /// Floating-point operations a second of the definition's matrix products, over the same time.
    pub flops_per_second: f64,
    /// That as a fraction of [`StartInfo::peak_flops_per_second`].
    pub peak_fraction: Option<f64>,
    /// Epoch of the data, with its fraction.
    pub epoch: f64,
    /// Share of the time so far that was spent waiting for data.
    pub data_wait: f64,
    /// Updates left out so far because loss or gradient was not finite.
    pub skipped: u64,
    /// The latest evaluation and its step.
    pub dev: Option<(u64, Evaluation)>,
    /// Bytes of memory that the process holds.
    pub memory: Option<u64>,
    /// The most bytes of memory that the process has held.
    pub peak_memory: Option<u64>,
    /// Seconds until the end at the present pace, evaluation included.
    pub eta_seconds: f64,
}

/// A checkpoint that was written.
#[derive(Clone, Debug)]
pub struct CheckpointInfo {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub folder: PathBuf,
    /// How long writing took.
    pub seconds: f64,
}

/// Hears of everything that happens in a run. All methods do nothing by default.
pub trait Hooks {
    /// Reading, tokenising or learning a tokenizer goes on.
    fn on_prepare(&mut self, _phase: &Phase) {}
    /// The first step comes next.
    fn on_start(&mut self, _start: &StartInfo) {}
    /// A step was taken.
    fn on_step(&mut self, _step: &StepInfo) {}
    /// The held-out text was evaluated (at step 0 before training).
    fn on_eval(&mut self, _step: u64, _evaluation: &Evaluation) {}
    /// Called with the model after an evaluation, and at the end: the place for samples.
    fn on_model(&mut self, _step: u64, _model: &Model, _tokenizer: &Tokenizer) {}
    /// A checkpoint was written.
    fn on_checkpoint(&mut self, _checkpoint: &CheckpointInfo) {}
    /// Something that the user should know.
    fn on_message(&mut self, _message: &str) {}
}

/// Hooks that do nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Hooks for Quiet {}
