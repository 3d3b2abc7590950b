//! What the user sees of a training run.

use std::time::Duration;

use genus_text::TrainProgress;
use genus_train::{CheckpointInfo, Evaluation, Hooks, Phase, StartInfo, StepInfo};

use crate::progress::{Progress, bytes, duration, grouped, short_count};

/// The share of the time spent waiting for data that the user is told of.
const WAIT: f64 = 0.01;

/// Shows a run on standard error: a live line, evaluations, checkpoints, messages.
#[derive(Debug)]
pub(crate) struct TrainHooks {
    progress: Option<Progress>,
    phase: &'static str,
    quiet: bool,
}

impl TrainHooks {
    /// With `quiet`, only messages and the progress line are written.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { progress: None, phase: "", quiet }
    }

    /// Removes the line.
    pub(crate) fn finish(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
    }

    fn line(&self, text: &str) {
        match &self.progress {
            Some(progress) => progress.line(text),
            None => anstream::eprintln!("{text}"),
        }
    }

    /// The progress of this phase; a new one when the phase is new.
    fn phase(&mut self, name: &'static str, total: Option<u64>) -> &mut Progress {
        if self.phase != name {
            self.finish();
            self.phase = name;
        }
        self.progress.get_or_insert_with(|| Progress::new(name, total))
    }
}

impl Hooks for TrainHooks {
    fn on_prepare(&mut self, phase: &Phase) {
        match phase {
            Phase::Tokenizer(TrainProgress::Reading { documents, bytes: n }) => {
                self.phase("tokenizer", None).update(*documents, &format!("documents read, {}", bytes(*n)));
            }
            Phase::Tokenizer(_) => self.phase("learning tokens", None).update(0, ""),
            Phase::Train(p) => {
                self.phase("training text", None)
                    .update(p.documents, &format!("documents, {} tokens", grouped(p.tokens)));
            }
            Phase::Note(text) => self.on_message(text),
            Phase::Dev(p) => {
                self.phase("held-out text", None)
                    .update(p.documents, &format!("documents, {} tokens", grouped(p.tokens)));
            }
        }
    }

    fn on_start(&mut self, start: &StartInfo) {
        self.finish();
        if self.quiet {
            return;
        }
        let c = &start.config.config;
        let mut text = format!("{}: {} parameters", c.model, grouped(start.parameters));
        if start.trainable != start.parameters {
            text.push_str(&format!(", {} of them learn", grouped(start.trainable)));
        }
        text.push_str(&format!("; {} training tokens", grouped(start.train_tokens)));
        if let Some(n) = start.dev_tokens {
            text.push_str(&format!(", {} held out", grouped(n)));
        }
        anstream::eprintln!("{text}");
        if let Some(peak) = start.peak_flops_per_second {
            let threads = genus_ops::pool::threads();
            let plural = if threads == 1 { "" } else { "s" };
            anstream::eprintln!("{threads} thread{plural}, peak {:.0} GFLOP/s", peak / 1e9);
        }
        if start.from_step > 0 {
            anstream::eprintln!("goes on after step {}", start.from_step);
        }
    }

    fn on_step(&mut self, step: &StepInfo) {
        let mut detail = format!("loss {:.3}", step.loss);
        if let Some((_, dev)) = &step.dev {
            match dev.bits_per_byte {
                Some(bits) => detail.push_str(&format!("  held out {bits:.3} bits/byte")),
                None => detail.push_str(&format!("  held out {:.3}", dev.dev_loss)),
            }
        }
        detail.push_str(&format!("  {} tokens/s", short_count(step.tokens_per_second)));
        if let Some(fraction) = step.peak_fraction {
            detail.push_str(&format!("  {:.0} % of peak", 100.0 * fraction));
        }
        if let Some(memory) = step.peak_memory.or(step.memory) {
            detail.push_str(&format!("  {}", bytes(memory)));
        }
        if step.data_wait >= WAIT {
            detail.push_str(&format!("  \x1b[33m{:.0} % waiting for data\x1b[0m", 100.0 * step.data_wait));
        }
        if step.skipped > 0 {
            detail.push_str(&format!("  \x1b[33m{} skipped\x1b[0m", step.skipped));
        }
        let left = Duration::try_from_secs_f64(step.eta_seconds).ok();
        self.phase("step", Some(step.total)).show(step.step, &detail, left);
    }

    fn on_eval(&mut self, step: u64, evaluation: &Evaluation) {
        if self.quiet {
            return;
        }
        let mut text = format!("step {step:>6}  held out: loss {:.4}", evaluation.dev_loss);
        if let Some(bits) = evaluation.bits_per_byte {
            text.push_str(&format!(", {bits:.4} bits per byte"));
        }
        self.line(&text);
    }

    fn on_checkpoint(&mut self, checkpoint: &CheckpointInfo) {
        if self.quiet {
            return;
        }
        let seconds = duration(Duration::try_from_secs_f64(checkpoint.seconds).unwrap_or_default());
        self.line(&format!("step {:>6}  saved {} in {seconds}", checkpoint.step, checkpoint.folder.display()));
    }

    fn on_message(&mut self, message: &str) {
        self.line(&format!("\x1b[33mnote:\x1b[0m {message}"));
    }
}
