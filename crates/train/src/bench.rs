//! Timing of training steps.

use crate::{BatchSize, Error, Objective, Optimizer, OptimizerSettings, Result, peak_rss, reset_peak_rss};
use genus_models::{Model, StackSpec};
use genus_ops::profile::{self, Entry};
use genus_ops::{Precision, Spans, Tape, scalar};
use genus_text::{Batch, Parallel, Sample, SequenceLabel, Tokenizer, TranslationExamples, TranslationOptions, rng};
use std::time::Instant;

/// How [`train_step`] measures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Runs that are not timed.
    pub warmup: usize,
    /// Runs that are.
    pub runs: usize,
    /// Recompute every layer in the backward pass.
    pub recompute: bool,
    /// Precision of matrix products.
    pub precision: Precision,
    /// Weight of the uniform distribution in the targets of tokens.
    pub smoothing: f64,
}

/// What [`train_step`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainStepReport {
    /// Seconds of every timed run.
    pub seconds: Vec<f64>,
    /// Tokens of a run.
    pub tokens: u64,
    /// Floating-point operations of a run: those of the definition's matrix products, forward and backward.
    pub flops: f64,
    /// The most memory that the process held during the workload; `None` where the system does not say.
    pub peak_rss_bytes: Option<u64>,
    /// Loss of every run, warm-up included: it falls, or the step does not train.
    pub losses: Vec<f64>,
    /// Where the time of all timed runs went.
    pub operations: Vec<Entry>,
}

impl TrainStepReport {
    /// The median of the runs' seconds.
    pub fn median(&self) -> f64 {
        let mut s = self.seconds.clone();
        s.sort_by(f64::total_cmp);
        let n = s.len();
        if n == 0 { f64::NAN } else { (s[(n - 1) / 2] + s[n / 2]) / 2.0 }
    }
}

/// A batch of random tokens: `batch` sequences of `context`, with what the objective asks for (15 % of the places for
/// masked words).
///
/// # Errors
/// When a number is 0, or the context is longer than the model's.
pub fn random_batch(spec: &StackSpec, objective: Objective, batch: usize, context: usize, seed: u64) -> Result<Batch> {
    if batch == 0 {
        return Err(Error::config("batch", 0, "at least 1"));
    }
    if context == 0 || context > spec.n_ctx {
        return Err(Error::config("context", context, format!("from 1 to the model's n_ctx = {}", spec.n_ctx)));
    }
    let key = rng::Key::new(seed);
    let sequences: Vec<Vec<u32>> = (0..batch as u64)
        .map(|row| {
            let mut draw = key.child(row).stream();
            (0..context).map(|_| draw.below(spec.vocab_size) as u32).collect()
        })
        .collect();
    natural_batch(objective, &sequences, seed)
}

/// A batch of given sequences, each a span, with what the objective asks for (one of two classes for classification).
///
/// # Errors
/// When there is no sequence, or one is empty.
pub fn natural_batch(objective: Objective, sequences: &[Vec<u32>], seed: u64) -> Result<Batch> {
    if sequences.is_empty() {
        return Err(Error::config("batch", "without sequences", "at least one"));
    }
    let key = rng::Key::new(seed ^ 0x6265_6e63_6868);
    let mut batch = Batch::default();
    for (i, ids) in sequences.iter().enumerate() {
        let mut draw = key.child(i as u64).stream();
        let n = ids.len();
        if n == 0 {
            return Err(Error::config(
                "batch",
                format!("with an empty sequence (number {i})"),
                "at least one token each",
            ));
        }
        let labels = match objective {
            // The last token predicts the first: every row counts, as in a window of a longer text.
            Objective::Causal | Objective::Bidirectional => (0..n).map(|j| ids[(j + 1) % n] as i32).collect(),
            Objective::Classification => vec![-100; n],
            Objective::Tagging => ids.iter().map(|&id| (id % 2) as i32).collect(),
            Objective::Translation => ids.iter().map(|&id| id as i32).collect(),
            _ => {
                let mut labels = vec![-100; n];
                let wanted = ((n as f64 * 0.15).round() as usize).max(1);
                let mut places: Vec<usize> = (0..n).collect();
                draw.shuffle(&mut places);
                places[..wanted.min(n)].iter().for_each(|&p| labels[p] = ids[p] as i32);
                labels
            }
        };
        let (token_types, next_sentence) = match objective {
            Objective::Causal | Objective::Bidirectional | Objective::Translation => (Vec::new(), None),
            Objective::Masked | Objective::Classification | Objective::Tagging | Objective::ReplacedTokens => {
                (vec![0; n], None)
            }
            Objective::Pretraining => ((0..n).map(|j| u32::from(j >= n / 2)).collect(), Some(draw.below(2) as u32)),
        };
        let label = (objective == Objective::Classification).then(|| SequenceLabel::Class(draw.below(2) as u32));
        // A translation repeats its source; the first token stands for the one that targets begin with.
        let (mut ids, mut source) = (ids.clone(), Vec::new());
        if objective == Objective::Translation {
            source.clone_from(&ids);
            ids.rotate_right(1);
        }
        batch.push(Sample { ids, spans: vec![n], token_types, labels, next_sentence, label, source, continues: false });
    }
    Ok(batch)
}

/// The first `most` batches of parallel text in a shuffled order, at natural lengths, and the seconds that their part of the text took
/// to be tokenized. Targets begin as the model's configuration says, or
/// else with the tokenizer's padding; pairs that do not fit the model are left out.
///
/// # Errors
/// When the tokenizer has more tokens than the model or names no end of a text; when the text cannot be read or is too short.
pub fn pair_batches(
    model: &Model,
    tokenizer: &Tokenizer,
    text: &Parallel,
    size: BatchSize,
    most: usize,
    seed: u64,
) -> Result<(Vec<Batch>, f64)> {
    let (BatchSize::Sequences(n) | BatchSize::Tokens(n)) = size;
    for (field, n) in [("batch", n), ("batches", most)] {
        if n == 0 {
            return Err(Error::config(field, 0, "at least 1"));
        }
    }
    let (tokens, spec) = (tokenizer.vocab_size(), model.spec());
    if tokens > spec.vocab_size {
        let advice = "choose a smaller tokenizer, or give --vocab-size";
        return Err(Error::Vocabulary { tokenizer: tokens, model: spec.vocab_size, advice });
    }
    let named = |field| model.config_field(field).and_then(|v| v.as_u64()).and_then(|n| u32::try_from(n).ok());
    let end = named("eos_token_id").or_else(|| tokenizer.end_of_text());
    let end = end.ok_or_else(|| Error::config("tokenizer", "without an end of a text", "one that has it"))?;
    let start = named("decoder_start_token_id").or(tokenizer.special().pad).unwrap_or(end);
    let options = TranslationOptions { start, end, longest: spec.n_ctx, shuffle: true, seed };
    let begin = Instant::now();
    let examples = TranslationExamples::build(text, tokenizer, options, |_| {})?;
    let all = begin.elapsed().as_secs_f64() / examples.tokens() as f64;
    let (mut batches, mut at) = (Vec::new(), 0);
    while batches.len() < most {
        let (batch, next) = size.take(&examples, at);
        // A batch that runs into the next epoch is none of this text's.
        if next > examples.len() as u64 {
            break;
        }
        batches.push(batch);
        at = next;
    }
    if batches.is_empty() {
        let (BatchSize::Sequences(n) | BatchSize::Tokens(n)) = size;
        return Err(Error::config("batch", n, format!("what {} pairs fill", examples.len())));
    }
    let tokens: usize = batches.iter().map(|b: &Batch| b.ids.len() + b.sources.len()).sum();
    Ok((batches, all * tokens as f64))
}

/// Times training steps: forward and backward without dropout, clipping to norm 1, AdamW. A run is one step for each of
/// `batches`, which are in memory already.
///
/// # Errors
/// When a batch does not fit the model or the objective.
pub fn train_step(model: &Model, objective: Objective, batches: &[Batch], timing: Timing) -> Result<TrainStepReport> {
    let settings = OptimizerSettings { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0 };
    reset_peak_rss();
    let mut optimizer = Optimizer::new(model.params(), settings)?;
    let mut report = TrainStepReport {
        seconds: Vec::new(),
        tokens: batches.iter().map(|b| (b.ids.len() + b.sources.len()) as u64).sum(),
        flops: 0.0,
        peak_rss_bytes: None,
        losses: Vec::new(),
        operations: Vec::new(),
    };
    for batch in batches {
        let spans = Spans::from_lengths(batch.spans.iter().copied());
        let sources = Spans::from_lengths(batch.source_spans.iter().copied());
        report.flops += model.flops(&spans, &sources, objective.predicted(batch)).training();
        if objective.is_empty(objective.targets(batch)) {
            return Err(Error::NoTargets { step: 0 });
        }
    }
    for run in 0..timing.warmup + timing.runs {
        if run == timing.warmup {
            profile::start();
        }
        let start = Instant::now();
        let mut loss_of_run = 0.0;
        for batch in batches {
            let tape = Tape::recording().with_recompute(timing.recompute).with_precision(timing.precision);
            let scales = objective.targets(batch).scales();
            let loss = objective.loss(model, &tape, batch, scales, timing.smoothing, None)?;
            tape.backward(&loss.total)?;
            let norm = optimizer.norm()?;
            optimizer.update(1e-4, norm)?;
            loss_of_run += scalar(loss.total.tensor())?;
        }
        if run >= timing.warmup {
            report.seconds.push(start.elapsed().as_secs_f64());
        }
        report.losses.push(loss_of_run / batches.len().max(1) as f64);
    }
    report.operations = profile::finish();
    report.peak_rss_bytes = peak_rss();
    Ok(report)
}
