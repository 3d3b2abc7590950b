//! One update of the weights.

use crate::carried::{self, Carried};
use crate::{Error, Objective, Optimizer, OptimizerSettings, Result, Schedule, Targets};
use genus_models::Model;
use genus_ops::{Precision, Spans, Tape, rng::Key, scalar};
use genus_text::Batch;

/// Repeats: forward, backward, clip, update.
pub struct Trainer {
    model: Model,
    objective: Objective,
    optimizer: Optimizer,
    schedule: Schedule,
    precision: Precision,
    seed: u64,
    step: u64,
    skipped: u64,
    in_a_row: u64,
    recompute: bool,
    smoothing: f64,
    /// Of a model with memory, for each batch of a step.
    carried: Vec<Carried>,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The step, from 1.
    pub step: u64,
    /// Mean loss over the targets of the step, before the update.
    pub loss: f64,
    /// The mean of next sentences, or of telling replaced tokens.
    pub pair_loss: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Whether the weights were updated; not when loss or gradient was not finite.
    pub applied: bool,
    /// Tokens that went through the model, those of sources included.
    pub tokens: u64,
    /// Floating-point operations of the definition's matrix products, forward and backward.
    pub flops: f64,
}

impl Trainer {
    /// A trainer at step 0. Parameters that are to be frozen are frozen before.
    ///
    /// # Errors
    /// When nothing learns, or memory is short.
    pub fn new(
        model: Model,
        objective: Objective,
        settings: OptimizerSettings,
        schedule: Schedule,
        seed: u64,
    ) -> Result<Self> {
        let optimizer = Optimizer::new(model.params(), settings)?;
        Ok(Trainer {
            model,
            objective,
            optimizer,
            schedule,
            seed,
            step: 0,
            skipped: 0,
            in_a_row: 0,
            recompute: false,
            smoothing: 0.0,
            carried: Vec::new(),
            precision: Precision::F32,
        })
    }

    /// Sets the precision of matrix products; it is f32 at first.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Sets the uniform distribution's weight in the targets of tokens; it is 0 at first.
    pub fn set_label_smoothing(&mut self, smoothing: f64) {
        self.smoothing = smoothing;
    }

    /// Lets every layer be recomputed in the backward pass, or not: less memory, more time, the same results bit for bit.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// Takes one step: the mean loss over all targets of `batches`, whose gradients are added up, and one update. Dropout
    /// depends on the seed, the step and the batch's number within it alone.
    ///
    /// When loss or gradient is not finite, the weights stay as they are and the step counts as skipped.
    ///
    /// # Errors
    /// When there is nothing to predict, a parameter that learns gets no gradient (all are named), or an operation fails.
    pub fn update(&mut self, batches: &[Batch]) -> Result<Update> {
        self.step += 1;
        let step = self.step;
        let targets = batches.iter().fold(Targets::default(), |t, b| t + self.objective.targets(b));
        if self.objective.is_empty(targets) {
            return Err(Error::NoTargets { step });
        }
        let key = Key::new(self.seed, step);
        let mut update = Update {
            step,
            loss: 0.0,
            pair_loss: None,
            lr: self.schedule.at(step),
            grad_norm: f64::NAN,
            applied: false,
            tokens: batches.iter().map(|b| (b.ids.len() + b.sources.len()) as u64).sum(),
            flops: 0.0,
        };
        if self.carried.len() < batches.len() {
            self.carried.resize_with(batches.len(), Carried::default);
        }
        // Shares its tensors, which are replaced and never written.
        let before = self.carried.clone();
        for (i, batch) in (0..).zip(batches) {
            let tape = Tape::training(key.child(i));
            let tape = tape.with_recompute(self.recompute).with_precision(self.precision);
            let memories = self.carried[i as usize].of(&self.model, batch)?;
            let scales = targets.scales();
            let loss = self.objective.loss(&self.model, &tape, batch, scales, self.smoothing, memories)?;
            let spans = Spans::from_lengths(batch.spans.iter().copied());
            let sources = Spans::from_lengths(batch.source_spans.iter().copied());
            update.flops += self.model.flops(&spans, &sources, self.objective.predicted(batch)).training();
            update.loss += scalar(loss.total.tensor())?;
            if let (Some(_), Some(pairs)) = (&loss.tokens, &loss.sequences) {
                update.pair_loss = Some(update.pair_loss.unwrap_or(0.0) + scalar(pairs.tensor())?);
            }
            if !update.loss.is_finite() {
                break;
            }
            tape.backward(&loss.total)?;
        }
        if update.loss.is_finite() {
            update.grad_norm = self.optimizer.norm()?;
        }
        if update.grad_norm.is_finite() {
            self.optimizer.update(update.lr, update.grad_norm)?;
            update.applied = true;
            self.in_a_row = 0;
        } else {
            self.optimizer.clear();
            // What is not finite must not be carried on.
            self.carried = before;
            self.skipped += 1;
            self.in_a_row += 1;
        }
        Ok(update)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What is learned.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Steps taken.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Steps whose update was left out.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Steps without update since the last update.
    pub fn skipped_in_a_row(&self) -> u64 {
        self.in_a_row
    }

    /// What a checkpoint holds besides weights: moments, and the memories of a model that carries some.
    pub(crate) fn state(&self) -> Vec<(String, genus_ops::Tensor)> {
        let mut tensors = self.optimizer.state();
        tensors.extend(self.carried.iter().enumerate().flat_map(|(i, c)| c.state(i)));
        tensors
    }

    /// Goes on from a saved state; the weights are in the model already.
    ///
    /// # Errors
    /// When the moments do not fit the model; `checkpoint` is for the message.
    pub(crate) fn restore(
        &mut self,
        state: &crate::run::State,
        mut moments: Vec<(String, genus_ops::Tensor)>,
        checkpoint: &std::path::Path,
    ) -> Result<()> {
        self.carried = carried::restore(&self.model, &mut moments, checkpoint)?;
        self.optimizer.restore(moments, state.updates, checkpoint)?;
        (self.step, self.skipped, self.in_a_row) = (state.step, state.skipped, state.skipped_in_a_row);
        Ok(())
    }
}
