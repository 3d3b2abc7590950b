//! Loss on held-out text.

use crate::carried::Carried;
use crate::{Objective, Result, Targets};
use genus_models::Model;
use genus_ops::{Precision, Tape, scalar};
use genus_text::{Batch, Sample, TokenStream};
use serde::Serialize;

/// How well a model predicts a held-out set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean loss over all targets, in nats, without smoothing; for pretraining, the sum of the two means, and for replaced tokens the
    /// generator's mean and 50 times the model's.
    pub dev_loss: f64,
    /// `dev_loss` in bits for each byte of text; for causal models and translation (of the target).
    pub bits_per_byte: Option<f64>,
    /// The mean of next sentences, for pretraining, or of telling replaced tokens.
    pub pair_loss: Option<f64>,
    /// Number of tokens predicted (of replaced tokens: judged), or of sequences classified.
    pub targets: usize,
}

/// Evaluates a model without dropout, `rows` samples at a time.
///
/// `bytes_per_token` is how many bytes of text a token stands for, if bits per byte are wanted.
///
/// # Errors
/// When an operation fails.
pub fn evaluate(
    model: &Model,
    objective: Objective,
    samples: &[Sample],
    rows: usize,
    bytes_per_token: Option<f64>,
    precision: Precision,
) -> Result<Evaluation> {
    let mut carried = Carried::default();
    let mut total = Targets::default();
    let (mut tokens, mut sequences) = (0.0, 0.0);
    for chunk in samples.chunks(rows.max(1)) {
        let batch: Batch = chunk.iter().cloned().collect();
        let targets = objective.targets(&batch);
        if targets == Targets::default() {
            continue;
        }
        let tape = Tape::inference().with_precision(precision);
        // Means of single batches keep f32 sums small; they are weighted in f64.
        let loss = objective.loss(model, &tape, &batch, targets.scales(), 0.0, carried.of(model, &batch)?)?;
        if let Some(t) = loss.tokens {
            tokens += scalar(t.tensor())? * targets.tokens as f64;
        }
        if let Some(s) = loss.sequences {
            sequences += scalar(s.tensor())? * targets.sequences as f64;
        }
        total = total + targets;
    }
    let scales = total.scales();
    let of_sequences = sequences * scales.sequences;
    let pair_loss = objective.second().map(|_| of_sequences);
    let dev_loss = tokens * scales.tokens + objective.weight() * of_sequences;
    let bits_per_byte = bytes_per_token.map(|b| dev_loss / std::f64::consts::LN_2 / b);
    Ok(Evaluation { dev_loss, bits_per_byte, pair_loss, targets: total.tokens.max(total.sequences) })
}

/// A stream as windows of at most `context` ids in file order, the last one shorter: every id but the first is predicted
/// once. At most `most` ids are taken (0: all).
pub(crate) fn windows(stream: &TokenStream, context: usize, separate_documents: bool, most: usize) -> Vec<Sample> {
    let end = stream.len().saturating_sub(1);
    let end = if most == 0 { end } else { end.min(most) };
    let ends = stream.document_ends();
    let mut samples = Vec::new();
    let mut start = 0;
    while start < end {
        let stop = (start + context).min(end);
        let mut ids = stream.tokens().get(start..stop + 1);
        let mut labels: Vec<i32> = ids[1..].iter().map(|&id| id as i32).collect();
        ids.pop();
        let mut spans = Vec::new();
        let mut from = start;
        if separate_documents {
            for &e in ends[ends.partition_point(|&e| e <= start)..].iter().take_while(|&&e| e <= stop) {
                labels[e - start - 1] = -100;
                spans.push(e - from);
                from = e;
            }
        }
        if from < stop {
            spans.push(stop - from);
        }
        samples.push(Sample { ids, spans, labels, ..Sample::default() });
        start = stop;
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;
    use genus_text::{Corpus, Tokenizer};

    #[test]
    fn every_id_but_the_first_is_predicted_once() {
        let documents = ["abcdefg", "hi", "jklmnopqrstuvw"].map(String::from).to_vec();
        let stream = TokenStream::build(&Corpus::from_documents("t", documents), &Tokenizer::bytes(), |_| {}).unwrap();
        let all = stream.tokens().get(0..stream.len());
        for context in [1, 3, 8, 100] {
            let w = windows(&stream, context, false, 0);
            let ids: Vec<u32> = w.iter().flat_map(|s| s.ids.clone()).collect();
            let labels: Vec<u32> = w.iter().flat_map(|s| s.labels.iter().map(|&l| l as u32)).collect();
            assert_eq!((&ids[..], &labels[..]), (&all[..all.len() - 1], &all[1..]));
            let separate: Batch = windows(&stream, context, true, 0).into_iter().collect();
            assert_eq!(separate.spans.iter().sum::<usize>(), separate.ids.len());
            // The first ids of two of the three documents are not asked for.
            assert_eq!(separate.targets(), all.len() - 3, "context {context}");
            let ends: Vec<usize> = separate
                .spans
                .iter()
                .scan(0, |e, n| {
                    *e += n;
                    Some(*e)
                })
                .collect();
            assert!(stream.document_ends()[..2].iter().all(|e| ends.contains(e)));
        }
        assert_eq!(windows(&stream, 4, false, 10).iter().map(|s| s.ids.len()).sum::<usize>(), 10);
    }
}
