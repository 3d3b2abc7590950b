//! Batches that grow over the first steps.

use crate::{BatchSize, Error, Result, TrainConfig};

/// How a batch grows over the first steps of a run, evenly, in the unit of its [`BatchSize`] (Brown et al. 2020, appendix B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    /// The size of the first step's.
    pub start: usize,
    /// Steps until it is whole; 0: it always is.
    pub steps: u64,
}

impl Ramp {
    /// The size in a step, counted from 0.
    pub fn at(self, whole: BatchSize, step: u64) -> BatchSize {
        if step >= self.steps {
            return whole;
        }
        let grown = |whole: usize| {
            let more = whole.saturating_sub(self.start) as u128 * u128::from(step) / u128::from(self.steps);
            self.start + more as usize
        };
        match whole {
            BatchSize::Sequences(n) => BatchSize::Sequences(grown(n)),
            BatchSize::Tokens(n) => BatchSize::Tokens(grown(n)),
        }
    }
}

impl TrainConfig {
    /// How the batch grows to `batch`.
    pub(crate) fn ramp(&self, batch: BatchSize, context: usize) -> Result<Ramp> {
        let (BatchSize::Sequences(whole) | BatchSize::Tokens(whole)) = batch;
        if self.batch_ramp_steps == 0 {
            return Ok(Ramp { start: whole, steps: 0 });
        }
        let wrong = |found: String, expected: String| Err(Error::config("batch_start", found, expected));
        let Some(given) = self.batch_start else {
            return wrong("not given".into(), "the size of the first batch, since batch_ramp_steps is given".into());
        };
        let start = match batch {
            BatchSize::Sequences(_) if self.batch_tokens.is_some() => given / context,
            _ => given,
        };
        if start == 0 || start > whole {
            let unit = if self.batch_tokens.is_some() { "tokens" } else { "sequences" };
            return wrong(given.to_string(), format!("{unit} of at least one sequence and at most the whole batch"));
        }
        Ok(Ramp { start, steps: self.batch_ramp_steps })
    }
}
