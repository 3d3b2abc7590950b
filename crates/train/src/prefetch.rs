//! The batches of the steps to come, made on a thread of their own.

use crate::{Error, Ramp, Result};
use genus_text::{Batch, Examples};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

/// How large a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchSize {
    /// That many examples.
    Sequences(usize),
    /// As many examples as have no more than that many tokens together, at least one. Of translations, neither the sources nor the
    /// targets have more (Vaswani et al. 2017, section 5.1).
    Tokens(usize),
}

impl BatchSize {
    /// The batch that starts at a position of the examples, and the position after it.
    pub fn take(self, examples: &dyn Examples, position: u64) -> (Batch, u64) {
        let most = match self {
            BatchSize::Sequences(n) => return (examples.batch(position, n), position + n as u64),
            BatchSize::Tokens(n) => n,
        };
        let (mut batch, mut at) = (Batch::default(), position);
        loop {
            let (epoch, index) = examples.locate(at);
            let sample = examples.sample(epoch, index);
            let targets = batch.ids.len() + sample.ids.len();
            let sources = batch.sources.len() + sample.source.len();
            if batch.examples > 0 && targets.max(sources) > most {
                return (batch, at);
            }
            batch.push(sample);
            at += 1;
        }
    }
}

/// Where a run's batches begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The step, counted from 0.
    pub step: u64,
    /// The position of the examples.
    pub position: u64,
}

/// The batches of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepBatches {
    /// Those whose gradients are added up.
    pub batches: Vec<Batch>,
    /// The position of the examples after them.
    pub next: u64,
}

/// How many steps are prepared ahead.
const AHEAD: usize = 3;

/// Prepares batches in order while the model works.
pub struct Prefetch {
    /// Closed first on drop, which ends the thread.
    receiver: Option<Receiver<StepBatches>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Starts from a step; each takes `accumulate` batches.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(
        examples: Arc<dyn Examples>,
        whole: BatchSize,
        ramp: Ramp,
        accumulate: usize,
        from: Place,
    ) -> Result<Self> {
        let (sender, receiver) = sync_channel(AHEAD);
        let work = move || {
            let mut next = from.position;
            for step in from.step.. {
                let size = ramp.at(whole, step);
                let mut batches = Vec::with_capacity(accumulate);
                for _ in 0..accumulate.max(1) {
                    let (batch, after) = size.take(&*examples, next);
                    next = after;
                    batches.push(batch);
                }
                if sender.send(StepBatches { batches, next }).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("genus-data".into()).spawn(work);
        let thread = thread.map_err(|source| Error::Io { path: "thread genus-data".into(), source })?;
        Ok(Prefetch { receiver: Some(receiver), thread: Some(thread) })
    }

    /// The batches of the next step.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn next(&mut self) -> Result<StepBatches> {
        self.receiver.as_ref().and_then(|r| r.recv().ok()).ok_or(Error::DataThread)
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use genus_text::Sample;

    /// Example number `i` has `1 + i % 5` tokens of id `i`.
    struct Counting;

    impl Examples for Counting {
        fn epoch_len(&self, _: u64) -> usize {
            7
        }
        fn sample(&self, epoch: u64, index: usize) -> Sample {
            let i = epoch as usize * 7 + index;
            let n = 1 + i % 5;
            Sample { ids: vec![i as u32; n], spans: vec![n], labels: vec![0; n], ..Sample::default() }
        }
        fn locate(&self, position: u64) -> (u64, usize) {
            (position / 7, (position % 7) as usize)
        }
    }

    #[test]
    fn tokens_are_a_bound_that_one_example_may_pass() {
        let mut at = 0;
        let mut seen = Vec::new();
        while seen.len() < 40 {
            let (batch, next) = BatchSize::Tokens(4).take(&Counting, at);
            assert!(batch.ids.len() <= 4 || batch.examples == 1);
            assert_eq!(next, at + batch.examples as u64);
            seen.extend(batch.spans.iter().scan(0, |end, n| {
                *end += n;
                Some(batch.ids[*end - 1])
            }));
            at = next;
        }
        assert!(seen.iter().copied().eq(0..seen.len() as u32), "{seen:?}");
    }

    #[test]
    fn the_thread_gives_what_a_call_would_and_ends() {
        let (ramp, from) = (Ramp { start: 3, steps: 0 }, Place { step: 0, position: 4 });
        let mut fetch = Prefetch::start(Arc::new(Counting), BatchSize::Sequences(3), ramp, 2, from).unwrap();
        let mut at = 4;
        for _ in 0..10 {
            let step = fetch.next().unwrap();
            let expected: Vec<Batch> = (0..2).map(|k| Counting.batch(at + 3 * k, 3)).collect();
            at += 6;
            assert_eq!(step, StepBatches { batches: expected, next: at });
        }
        drop(fetch);
    }

    #[test]
    fn a_batch_grows_evenly_and_from_any_step() {
        let ramp = Ramp { start: 2, steps: 4 };
        let size = |step| match ramp.at(BatchSize::Sequences(9), step) {
            BatchSize::Sequences(n) => n,
            BatchSize::Tokens(_) => panic!("another unit"),
        };
        assert_eq!((0..6).map(size).collect::<Vec<_>>(), [2, 3, 5, 7, 9, 9]);
        assert_eq!(ramp.at(BatchSize::Tokens(10), 2), BatchSize::Tokens(6));
        let batches = |step: u64, position: u64, steps: usize| {
            let from = Place { step, position };
            let mut fetch = Prefetch::start(Arc::new(Counting), BatchSize::Sequences(9), ramp, 1, from).unwrap();
            (0..steps).map(|_| fetch.next().unwrap()).collect::<Vec<_>>()
        };
        let all = batches(0, 0, 6);
        assert_eq!(all.iter().map(|s| s.batches[0].examples).collect::<Vec<_>>(), [2, 3, 5, 7, 9, 9]);
        assert_eq!(batches(3, all[2].next, 3), all[3..]);
    }
}
