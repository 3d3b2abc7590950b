//! Objectives: what a model learns from a batch.

use crate::{Error, Result};
use genus_models::nn::{ClassTargets, Segments};
use genus_models::{Encoded, Input, Model, StreamMemory, Task};
use genus_ops::{Spans, Tape, Value, columns, gather_rows, weighted_sum};
use genus_text::{Batch, SequenceLabel};
use serde::{Deserialize, Serialize};

/// What is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The next token (GPT).
    Causal,
    /// Tokens that were masked (RoBERTa's half of BERT's objective).
    Masked,
    /// Masked tokens, and whether the second segment follows the first (BERT): the sum of the two means.
    Pretraining,
    /// The next token from what is before, and the one before from what is behind (ELMo).
    Bidirectional,
    /// The label of each sequence: a class, several, or numbers.
    Classification,
    /// The next token of a target, given its source (the Transformer).
    Translation,
    /// Masked tokens, by a generator, and which tokens it put in, by the model (ELECTRA): the first mean and 50 times the second.
    ReplacedTokens,
    /// A class for each labelled token.
    Tagging,
}

/// How many predictions a batch asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Of tokens.
    pub tokens: usize,
    /// Of whole sequences: next sentences, or labels.
    pub sequences: usize,
}

/// What summed losses are multiplied by. One over the numbers of targets of a whole step makes the losses of its batches
/// add up to the mean over the step, however it is cut into batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// For tokens.
    pub tokens: f64,
    /// For whole sequences.
    pub sequences: f64,
}

/// A loss on a tape.
#[derive(Debug)]
pub struct Loss {
    /// The scalar to send back.
    pub total: Value,
    /// The part of the tokens.
    pub tokens: Option<Value>,
    /// The part of whole sequences: next sentences, or labels.
    pub sequences: Option<Value>,
}

impl std::ops::Add for Targets {
    type Output = Targets;
    fn add(self, other: Targets) -> Targets {
        Targets { tokens: self.tokens + other.tokens, sequences: self.sequences + other.sequences }
    }
}

impl Targets {
    /// The scales that make means of sums over these targets.
    pub fn scales(self) -> Scales {
        let one_over = |n: usize| if n == 0 { 0.0 } else { 1.0 / n as f64 };
        Scales { tokens: one_over(self.tokens), sequences: one_over(self.sequences) }
    }
}

impl std::str::FromStr for Objective {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "causal" => Ok(Objective::Causal),
            "masked" => Ok(Objective::Masked),
            "pretraining" => Ok(Objective::Pretraining),
            "bidirectional" => Ok(Objective::Bidirectional),
            "classification" => Ok(Objective::Classification),
            "translation" => Ok(Objective::Translation),
            "replaced-tokens" => Ok(Objective::ReplacedTokens),
            "tagging" => Ok(Objective::Tagging),
            _ => Err(Error::config(
                "objective",
                format!("{s:?}"),
                "causal, bidirectional, masked, pretraining, replaced-tokens, classification, tagging or translation",
            )),
        }
    }
}

impl std::fmt::Display for Objective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Objective::Causal => "causal",
            Objective::Masked => "masked",
            Objective::Pretraining => "pretraining",
            Objective::Bidirectional => "bidirectional",
            Objective::Classification => "classification",
            Objective::Translation => "translation",
            Objective::ReplacedTokens => "replaced-tokens",
            Objective::Tagging => "tagging",
        })
    }
}

impl Objective {
    /// The heads that the model needs.
    pub fn task(self) -> Task {
        match self {
            Objective::Causal => Task::CausalLm,
            Objective::Masked => Task::MaskedLm,
            Objective::Pretraining => Task::Pretraining,
            Objective::Bidirectional => Task::BidirectionalLm,
            Objective::Classification => Task::SequenceClassification,
            Objective::Translation => Task::Seq2SeqLm,
            Objective::ReplacedTokens => Task::ReplacedToken,
            Objective::Tagging => Task::TokenClassification,
        }
    }

    /// The objective that a task is trained with.
    pub fn of(task: Task) -> Option<Self> {
        match task {
            Task::CausalLm => Some(Objective::Causal),
            Task::BidirectionalLm => Some(Objective::Bidirectional),
            Task::MaskedLm => Some(Objective::Masked),
            Task::Pretraining => Some(Objective::Pretraining),
            Task::SequenceClassification => Some(Objective::Classification),
            Task::Seq2SeqLm => Some(Objective::Translation),
            Task::ReplacedToken => Some(Objective::ReplacedTokens),
            Task::TokenClassification => Some(Objective::Tagging),
            _ => None,
        }
    }

    /// Whether it learns from windows of a stream of text.
    pub fn reads_windows(self) -> bool {
        matches!(self, Objective::Causal | Objective::Bidirectional)
    }

    /// What a batch asks for.
    pub fn targets(self, batch: &Batch) -> Targets {
        match self {
            Objective::Causal | Objective::Masked | Objective::Translation | Objective::Tagging => {
                Targets { tokens: batch.targets(), sequences: 0 }
            }
            Objective::Bidirectional => {
                let before = batch.tokens_before().iter().filter(|l| **l >= 0).count();
                Targets { tokens: batch.targets() + before, sequences: 0 }
            }
            Objective::Pretraining => Targets { tokens: batch.targets(), sequences: batch.next_sentence.len() },
            // Every token is judged.
            Objective::ReplacedTokens => Targets { tokens: batch.targets(), sequences: batch.ids.len() },
            Objective::Classification => Targets { tokens: 0, sequences: batch.sequence_labels.len() },
        }
    }

    /// What the second part of the loss counts, beside that of tokens.
    pub(crate) fn weight(self) -> f64 {
        if self == Objective::ReplacedTokens { crate::replaced::WEIGHT } else { 1.0 }
    }

    /// The name of the second part of the loss, where there are two.
    pub(crate) fn second(self) -> Option<&'static str> {
        match self {
            Objective::Pretraining => Some("next_sentence_loss"),
            Objective::ReplacedTokens => Some("replaced_token_loss"),
            _ => None,
        }
    }

    /// Whether there is nothing to learn from a step with these targets.
    pub(crate) fn is_empty(self, targets: Targets) -> bool {
        let n = if self == Objective::Classification { targets.sequences } else { targets.tokens };
        n == 0
    }

    /// Rows that go through the projection to the vocabulary.
    pub fn predicted(self, batch: &Batch) -> usize {
        match self {
            Objective::Causal | Objective::Translation => batch.ids.len(),
            Objective::Bidirectional => 2 * batch.ids.len(),
            Objective::Masked | Objective::Pretraining | Objective::ReplacedTokens => batch.targets(),
            Objective::Classification | Objective::Tagging => 0,
        }
    }

    /// The loss of a batch: the summed cross-entropy of tokens times `scales.tokens`, and that of next sentences or labels times
    /// `scales.sequences`. Of masked batches only the masked rows go through the head. `smoothing` is the uniform distribution's
    /// weight in the targets of tokens. Of a model that carries a memory, `memories` (one an example) are what each goes on from, and
    /// then carry it on; without them each begins anew.
    ///
    /// # Errors
    /// When the model lacks a head or an encoder, or ids, labels or segments are out of range.
    pub fn loss(
        self,
        model: &Model,
        tape: &Tape,
        batch: &Batch,
        scales: Scales,
        smoothing: f64,
        memories: Option<&mut [StreamMemory]>,
    ) -> Result<Loss> {
        if self == Objective::ReplacedTokens {
            return crate::replaced::loss(model, tape, batch, scales);
        }
        let input = input(model, batch)?;
        let hidden = match self {
            Objective::Translation => {
                let spans = Spans::from_lengths(batch.source_spans.iter().copied());
                let source = Input {
                    ids: batch.sources.clone(),
                    spans: spans.clone(),
                    positions: None,
                    types: None,
                    characters: None,
                };
                let states = model.encode(tape, &source, false)?.last; // [m, d]
                model.decode(tape, &input, &Encoded { states, spans }, false)?.last // [n, d]
            }
            _ => match memories {
                Some(memories) => model.hidden_carrying(tape, &input, memories, false)?.last, // [n, d]
                None => model.hidden(tape, &input, None, false)?.last,
            },
        };
        let tokens = match self {
            Objective::Causal | Objective::Translation => {
                model.lm_head()?.loss(tape, &hidden, &batch.labels, scales.tokens, smoothing)?
            }
            Objective::Bidirectional => {
                let (head, d) = (model.lm_head()?, model.spec().d_model);
                let side = |from: usize, labels: &[i32]| -> Result<Value> {
                    let half = columns(tape, &hidden, from, d)?; // [n, d]
                    Ok(head.loss(tape, &half, labels, scales.tokens, smoothing)?)
                };
                let (next, before) = (side(0, &batch.labels)?, side(d, &batch.tokens_before())?);
                weighted_sum(tape, &[(&next, 1.0), (&before, 1.0)])?
            }
            Objective::Tagging => {
                let (rows, labels) = labelled(batch);
                let x = model.tokens(tape, &gather_rows(tape, &hidden, &rows)?)?; // [labelled, d]
                model.classifier()?.loss(tape, &x, ClassTargets::One(&labels), scales.tokens)?
            }
            Objective::Masked | Objective::Pretraining | Objective::ReplacedTokens => {
                let (rows, labels) = labelled(batch);
                let masked = gather_rows(tape, &hidden, &rows)?; // [masked, d]
                model.lm_head()?.loss(tape, &masked, &labels, scales.tokens, smoothing)?
            }
            Objective::Classification => {
                let summary = model.summary(tape, &hidden, &input)?; // [b, d]
                let total = classes(model, tape, &summary, &batch.sequence_labels, scales.sequences)?;
                return Ok(Loss { total: total.clone(), tokens: None, sequences: Some(total) });
            }
        };
        if self != Objective::Pretraining {
            return Ok(Loss { total: tokens.clone(), tokens: Some(tokens), sequences: None });
        }
        let labels: Vec<i32> = batch.next_sentence.iter().map(|&l| l as i32).collect();
        let pooled = model.pooler()?.forward(tape, &hidden, &input.spans, 0.0)?; // [b, d]
        let pairs = model.next_sentence()?.loss(tape, &pooled, ClassTargets::One(&labels), scales.sequences)?;
        let total = weighted_sum(tape, &[(&tokens, 1.0), (&pairs, 1.0)])?;
        Ok(Loss { total, tokens: Some(tokens), sequences: Some(pairs) })
    }
}

/// The rows that have a label, and the labels.
pub(crate) fn labelled(batch: &Batch) -> (Vec<u32>, Vec<i32>) {
    (0u32..).zip(&batch.labels).filter(|(_, l)| **l >= 0).unzip()
}

/// The loss of labels of one kind.
fn classes(model: &Model, tape: &Tape, summary: &Value, labels: &[SequenceLabel], scale: f64) -> Result<Value> {
    let head = model.classifier()?;
    let (mut ids, mut numbers) = (Vec::new(), Vec::new());
    let kind = std::mem::discriminant(labels.first().ok_or_else(|| wrong(0, "no label", "one a sequence"))?);
    for (i, label) in labels.iter().enumerate() {
        if std::mem::discriminant(label) != kind {
            return Err(wrong(i, "a label of another kind", "the first one's kind"));
        }
        match label {
            SequenceLabel::Class(c) => ids.push(i32::try_from(*c).unwrap_or(i32::MAX)),
            SequenceLabel::Classes(x) | SequenceLabel::Numbers(x) if x.len() != head.classes() => {
                return Err(wrong(i, &format!("{} numbers", x.len()), &format!("{}, one a class", head.classes())));
            }
            SequenceLabel::Classes(x) | SequenceLabel::Numbers(x) => numbers.extend_from_slice(x),
        }
    }
    let targets = match &labels[0] {
        SequenceLabel::Class(_) => ClassTargets::One(&ids),
        SequenceLabel::Classes(_) => ClassTargets::Many(&numbers),
        SequenceLabel::Numbers(_) => ClassTargets::Numbers(&numbers),
    };
    Ok(head.loss(tape, summary, targets, scale)?)
}

fn wrong(sequence: usize, found: &str, expected: &str) -> Error {
    Error::Label { sequence, found: found.to_owned(), expected: expected.to_owned() }
}

/// A batch as a model takes it.
pub(crate) fn input(model: &Model, batch: &Batch) -> Result<Input> {
    let typed = model.spec().segments != Segments::None && !batch.token_types.is_empty();
    Ok(Input {
        ids: batch.ids.clone(),
        spans: Spans::from_lengths(batch.spans.iter().copied()),
        positions: None,
        types: typed.then(|| batch.token_types.clone()),
        characters: None,
    })
}
