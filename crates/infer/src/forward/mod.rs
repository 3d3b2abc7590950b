//! Raw outputs, losses and gradients under the reference's names and padded shapes: how a model is checked against it.

mod batch;

pub use batch::PaddedBatch;

use crate::{Error, Result};
use batch::Ragged;
use candle_core::{DType, Device, Tensor};
use genus_models::{Encoded, Input, Model, Task};
use genus_nn::{ClassTargets, Hidden};
use genus_ops::{IGNORE, Path, Precision, Tape, Value, columns, gather_rows, join_rows, weighted_sum};
use std::ops::Range;

/// What to compute beside the task's outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForwardOptions {
    /// Gradients of the loss, for every tensor of the checkpoint that the task uses.
    pub grad: bool,
    /// The embeddings and every layer's output.
    pub hidden_states: bool,
    /// Length of the segments that a recurrent model reads one after the other.
    pub segment_length: Option<usize>,
    /// How operations run.
    pub path: Path,
    /// Precision of matrix products.
    pub precision: Precision,
}

/// Runs `batch` through the model, without dropout, for the task that it was loaded for. Returns names and f32 tensors on the CPU:
/// the reference's outputs with zeros at padded places (`loss` of shape `[]` only with labels), `hidden_states.<i>` and
/// `grad.<name in the checkpoint>` if asked for.
///
/// Positions count each row's real tokens from 0 where the batch does not give them. Two deviations: the pooled token of a row
/// padded at the left is its first real one, where the reference takes the padded place; and a decoder's class is read off the
/// last real token by the mask (passing over real tokens that are `pad_token_id`, as the reference does), where the reference
/// goes by ids alone.
///
/// # Errors
/// When the batch does not fit the model or the task; when gradients are asked for and there is no loss.
pub fn forward(model: &Model, batch: &PaddedBatch, options: &ForwardOptions) -> Result<Vec<(String, Tensor)>> {
    let ragged = batch.ragged(model)?;
    let tape = if options.grad { Tape::recording() } else { Tape::inference() };
    let tape = tape.with_path(options.path).with_precision(options.precision);
    let real = Rows::real(batch);
    let mut out = Outputs { batch, options: *options, tensors: Vec::new(), rows: real.clone() };
    let hidden = match &ragged.target {
        None => match options.segment_length {
            None => model.hidden(&tape, &ragged.input, None, options.hidden_states)?,
            Some(n) => segments(model, batch, &tape, &ragged.input, n, options.hidden_states)?,
        },
        Some(target) => {
            let read = model.encode(&tape, &ragged.input, options.hidden_states)?;
            let encoded = Encoded { states: read.last.clone(), spans: ragged.input.spans.clone() };
            let written = model.decode(&tape, target, &encoded, options.hidden_states)?;
            out.tokens("encoder_last_hidden_state".into(), &read.last)?;
            for (i, h) in read.all.iter().enumerate() {
                out.tokens(format!("encoder_hidden_states.{i}"), h)?;
            }
            out.rows = Rows::whole(target);
            written
        }
    };
    let loss = out.heads(&tape, model, &hidden, &ragged)?;
    if let Some(loss) = &loss {
        let value = loss.tensor().to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.sum_all()?;
        out.tensors.insert(0, ("loss".into(), value));
    }
    for (i, h) in hidden.all.iter().enumerate() {
        let side = if ragged.target.is_some() { "decoder_" } else { "" };
        out.tokens(format!("{side}hidden_states.{i}"), h)?;
    }
    if options.grad {
        let Some(loss) = loss else {
            let labels = match model.task() {
                Task::Pretraining => "labels and next_sentence_label",
                Task::Base => "a task with a loss (base has none)",
                _ => "labels",
            };
            return Err(batch.bad("labels", "no loss to take gradients of", labels));
        };
        out.gradients(&tape, model, &loss)?;
    }
    Ok(out.tensors)
}

/// Runs rows in segments of `n` tokens, the memory carried from one to the next; the hidden states are those of the whole rows.
fn segments(
    model: &Model,
    batch: &PaddedBatch,
    tape: &Tape,
    input: &Input,
    n: usize,
    keep_all: bool,
) -> Result<Hidden> {
    let Some(memory) = model.new_memory()? else {
        let expected = format!("none: {} is not recurrent", model.family().name);
        return Err(Error::option("segment_length", n, expected));
    };
    if n == 0 {
        return Err(Error::option("segment_length", n, "at least 1"));
    }
    let width = input.spans.iter().next().map_or(0, |r| r.len());
    if let Some((r, span)) = input.spans.iter().enumerate().find(|(_, r)| r.len() != width) {
        let expected = format!("{width}, as the first row: rows that are run in segments have one length");
        return Err(batch.bad(format!("attention_mask[{r}]"), format!("{} real tokens", span.len()), expected));
    }
    let rows = input.spans.len();
    let mut memories = vec![memory; rows];
    let mut parts: Vec<Hidden> = Vec::new();
    for at in (0..width).step_by(n) {
        let end = (at + n).min(width);
        let pieces: Vec<&[u32]> = input.spans.iter().map(|r| &input.ids[r.start + at..r.start + end]).collect();
        parts.push(model.hidden_carrying(tape, &Input::from_sequences(&pieces), &mut memories, keep_all)?);
    }
    // Rows come segment by segment; they are put back in the order of the batch.
    let place = |row: usize, at: usize| {
        let (segment, within) = (at / n, at % n);
        let length = n.min(width - segment * n);
        (rows * segment * n + row * length + within) as u32
    };
    let order: Vec<u32> = (0..rows).flat_map(|r| (0..width).map(move |at| place(r, at))).collect();
    let whole = |parts: Vec<Value>| -> Result<Value> {
        let mut parts = parts.into_iter();
        let mut all = parts.next().ok_or_else(|| batch.bad("input_ids", "no token", "at least one"))?;
        for part in parts {
            let both = (all.rows() + part.rows()) as u32;
            all = join_rows(tape, &all, &part, &(0..both).collect::<Vec<_>>())?;
        }
        Ok(gather_rows(tape, &all, &order)?)
    };
    let layers = parts.first().map_or(0, |p| p.all.len());
    let all = (0..layers).map(|i| whole(parts.iter().map(|p| p.all[i].clone()).collect())).collect::<Result<_>>()?;
    Ok(Hidden { last: whole(parts.into_iter().map(|p| p.last).collect())?, all })
}

/// Where the real tokens of padded rows lie.
#[derive(Clone)]
struct Rows {
    width: usize,
    real: Vec<Range<usize>>,
}

impl Rows {
    fn real(batch: &PaddedBatch) -> Self {
        Rows { width: batch.width(), real: batch.real().to_vec() }
    }

    /// Rows of one length, without padding.
    fn whole(input: &Input) -> Self {
        let real: Vec<Range<usize>> = input.spans.iter().map(|r| 0..r.len()).collect();
        Rows { width: real.first().map_or(0, Range::len), real }
    }
}

struct Outputs<'a> {
    batch: &'a PaddedBatch,
    options: ForwardOptions,
    tensors: Vec<(String, Tensor)>,
    /// Of values with one row a real token.
    rows: Rows,
}

impl Outputs<'_> {
    /// A tape that records nothing.
    fn plain(&self) -> Tape {
        Tape::inference().with_path(self.options.path).with_precision(self.options.precision)
    }

    /// The outputs of the task's heads, and its loss where there are labels.
    fn heads(&mut self, tape: &Tape, model: &Model, hidden: &Hidden, ragged: &Ragged) -> Result<Option<Value>> {
        let (task, x, spans) = (model.task(), &hidden.last, &ragged.input.spans);
        let mut losses = Vec::new();
        if task == Task::BidirectionalLm {
            return self.both_directions(tape, model, x, ragged);
        }
        if task.predicts_tokens() {
            let head = model.lm_head()?;
            let name = if task == Task::Pretraining { "prediction_logits" } else { "logits" };
            let logits = head.logits(&self.plain(), &Value::constant(x.tensor().clone()))?;
            self.tokens(name.into(), &logits)?;
            if let Some(targets) = &ragged.token_labels {
                losses.push(head.loss(tape, x, targets, mean(targets), 0.0)?);
            }
        }
        if task.predicts_next_sentence() {
            let pooled = model.pooler()?.forward(tape, x, spans, 0.0)?;
            let head = model.next_sentence()?;
            let name = if task == Task::Pretraining { "seq_relationship_logits" } else { "logits" };
            let logits = head.logits(&self.plain(), &Value::constant(pooled.tensor().clone()))?;
            self.push(name.into(), logits.tensor())?;
            if let Some(targets) = &ragged.pair_labels {
                losses.push(head.loss(tape, &pooled, ClassTargets::One(targets), mean(targets))?);
            }
        }
        if task == Task::ReplacedToken {
            let head = model.detector()?;
            let logits = head.logits(&self.plain(), &Value::constant(x.tensor().clone()))?;
            self.tokens("logits".into(), &logits)?;
            // One number a token.
            if let Some((_, t)) = self.tensors.last_mut() {
                *t = t.squeeze(2)?;
            }
            if let Some(labels) = &ragged.token_labels {
                let judged = (0u32..).zip(labels).filter(|(_, l)| **l != IGNORE);
                let (rows, replaced): (Vec<u32>, Vec<f32>) = judged.map(|(i, &l)| (i, l as f32)).unzip();
                let x = if rows.len() == labels.len() { x.clone() } else { gather_rows(tape, x, &rows)? };
                losses.push(head.loss(tape, &x, &replaced, mean(labels))?);
            }
        }
        if task == Task::TokenClassification {
            let (head, x) = (model.classifier()?, model.tokens(tape, x)?);
            let logits = head.logits(&self.plain(), &Value::constant(x.tensor().clone()))?;
            self.tokens("logits".into(), &logits)?;
            if let Some(labels) = &ragged.token_labels {
                losses.push(head.loss(tape, &x, ClassTargets::One(labels), mean(labels))?);
            }
        }
        if task == Task::SequenceClassification {
            let summary = model.summary(tape, x, &ragged.input)?;
            let head = model.classifier()?;
            let plain = self.plain();
            let logits = head.logits(&plain, &Value::constant(summary.tensor().clone()))?;
            self.push("logits".into(), logits.tensor())?;
            if let Some(labels) = &ragged.class_labels {
                let targets = labels.targets();
                let scale = match targets {
                    ClassTargets::One(targets) => mean(targets),
                    _ => 1.0 / self.batch.rows() as f64,
                };
                losses.push(head.loss(tape, &summary, targets, scale)?);
            }
        }
        if task == Task::Base {
            self.tokens("last_hidden_state".into(), x)?;
            if let Ok(pooler) = model.pooler() {
                let pooled = pooler.forward(tape, x, spans, 0.0)?;
                self.push("pooler_output".into(), pooled.tensor())?;
            }
        }
        // As the reference: pretraining has a loss only with both labels.
        let wanted = 1 + usize::from(task == Task::Pretraining);
        match losses.as_slice() {
            [loss] if wanted == 1 => Ok(Some(loss.clone())),
            [a, b] if wanted == 2 => Ok(Some(weighted_sum(tape, &[(a, 1.0), (b, 1.0)])?)),
            _ => Ok(None),
        }
    }

    /// The predictions of both directions, and the mean loss over all of them.
    fn both_directions(&mut self, tape: &Tape, model: &Model, x: &Value, ragged: &Ragged) -> Result<Option<Value>> {
        let (head, d) = (model.lm_head()?, model.spec().d_model);
        let targets = [&ragged.token_labels, &ragged.before_labels];
        let count = targets.iter().flat_map(|t| t.iter().flatten()).filter(|&&t| t != IGNORE).count();
        let mut losses = Vec::new();
        for (i, (name, targets)) in ["forward_logits", "backward_logits"].into_iter().zip(targets).enumerate() {
            let half = columns(tape, x, i * d, d)?;
            let logits = head.logits(&self.plain(), &Value::constant(half.tensor().clone()))?;
            self.tokens(name.into(), &logits)?;
            if let Some(targets) = targets {
                losses.push(head.loss(tape, &half, targets, 1.0 / count.max(1) as f64, 0.0)?);
            }
        }
        match losses.as_slice() {
            [a, b] => Ok(Some(weighted_sum(tape, &[(a, 1.0), (b, 1.0)])?)),
            _ => Ok(None),
        }
    }

    fn push(&mut self, name: String, t: &Tensor) -> Result<()> {
        self.tensors.push((name, t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?));
        Ok(())
    }

    /// A value with one row a real token, `[n, d]`, as `[rows, width, d]` with zeros at padded places.
    fn tokens(&mut self, name: String, v: &Value) -> Result<()> {
        let d = v.dims().last().copied().unwrap_or(0);
        let flat = genus_ops::to_vec(v.tensor())?;
        let (rows, width) = (self.rows.real.len(), self.rows.width);
        let mut padded = vec![0f32; rows * width * d];
        let mut at = 0;
        for (r, real) in self.rows.real.iter().enumerate() {
            let n = real.len() * d;
            let to = (r * width + real.start) * d;
            padded[to..to + n].copy_from_slice(&flat[at..at + n]);
            at += n;
        }
        self.tensors.push((name, Tensor::from_vec(padded, (rows, width, d), &Device::Cpu)?));
        Ok(())
    }

    /// The gradients of `loss`, in the layout and under all names of the checkpoint.
    fn gradients(&mut self, tape: &Tape, model: &Model, loss: &Value) -> Result<()> {
        model.params().iter().for_each(|p| p.clear_grad());
        tape.backward(loss)?;
        for p in model.params() {
            if let Some(g) = p.grad() {
                for name in model.file_names(p)? {
                    self.push(format!("grad.{name}"), &g)?;
                }
            }
            p.clear_grad();
        }
        Ok(())
    }
}

/// What makes a sum over targets their mean.
fn mean(targets: &[i32]) -> f64 {
    1.0 / targets.iter().filter(|&&t| t != IGNORE).count().max(1) as f64
}
