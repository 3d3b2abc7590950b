//! How well a model fills a word that is hidden from it.

use crate::{Error, Result};
use genus_models::{Input, Model, Task};
use genus_ops::log_sum_exp;
use genus_ops::{Precision, Tape, Value, columns, gather_rows, to_vec};
use genus_text::Tokenizer;
use genus_text::rng::{Key, Permutation};
use serde::Serialize;
use std::ops::Range;

/// From what a model fills a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filling {
    /// From both sides, with the mask token in the place.
    Masked,
    /// From the left side alone: all that a model that reads from left to right can do.
    Left,
    /// From the left side by one half of the model and from the right side by the other; the two predictions are multiplied.
    Both,
}

impl Filling {
    /// How a model fills places.
    ///
    /// # Errors
    /// When it does not predict tokens of a text.
    pub fn of(model: &Model) -> Result<Self> {
        match model.task() {
            Task::CausalLm => Ok(Filling::Left),
            Task::MaskedLm | Task::Pretraining => Ok(Filling::Masked),
            Task::BidirectionalLm => Ok(Filling::Both),
            task => {
                let expected =
                    "a task that predicts tokens of the text (causal-lm, masked-lm, pretraining, bidirectional-lm)";
                Err(Error::option("task", task, expected.to_owned()))
            }
        }
    }
}

/// Which places are filled, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillOptions {
    /// How many places, at most.
    pub places: usize,
    /// Tokens of the window around a place, the place included; shorter at the ends of documents.
    pub context: usize,
    /// Which places.
    pub seed: u64,
    /// Windows are run together up to that many tokens.
    pub batch_tokens: usize,
    /// Precision of matrix products.
    pub precision: Precision,
}

impl Default for FillOptions {
    fn default() -> Self {
        FillOptions { places: 1000, context: 128, seed: 0, batch_tokens: 4096, precision: Precision::default() }
    }
}

/// How well places were filled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FillScore {
    /// From what.
    pub filling: Filling,
    /// Number of places.
    pub places: usize,
    /// Share of the places whose true token was the likeliest.
    pub top1: f64,
    /// Share of the places whose true token was among the five likeliest.
    pub top5: f64,
    /// Mean natural logarithm of the true token's probability.
    pub log_probability: f64,
}

/// A place: its document, and where in it.
type Place = (usize, usize);

/// The places that are filled: a sample of the tokens that are words of their own (with a letter or digit; neither they nor the tokens
/// behind them continue a word), neither first nor last of their document. Where a vocabulary has no such words (bytes), of all tokens
/// that are not special. They follow from the tokens and the seed alone.
fn places(tokenizer: &Tokenizer, documents: &[Vec<u32>], wanted: usize, seed: u64) -> Vec<Place> {
    let unknown = tokenizer.special().unk;
    let plain = |id: u32| !tokenizer.is_special(id) && Some(id) != unknown;
    let mut spelled: std::collections::HashMap<u32, bool> = std::collections::HashMap::new();
    let mut has_letter = |id: u32| {
        let spell = || tokenizer.decode(&[id], false).is_ok_and(|text| text.chars().any(char::is_alphanumeric));
        *spelled.entry(id).or_insert_with(spell)
    };
    let (mut words, mut all) = (Vec::new(), Vec::new());
    for (d, ids) in documents.iter().enumerate() {
        for i in 1..ids.len().saturating_sub(1) {
            if !plain(ids[i]) {
                continue;
            }
            all.push((d, i));
            if !tokenizer.continues_word(ids[i]) && !tokenizer.continues_word(ids[i + 1]) && has_letter(ids[i]) {
                words.push((d, i));
            }
        }
    }
    let from = if words.is_empty() { all } else { words };
    if from.is_empty() {
        return from;
    }
    let order = Permutation::new(from.len(), Key::new(seed).child(0x6669_6c6c));
    let mut chosen: Vec<Place> = (0..wanted.min(from.len())).map(|i| from[order.get(i)]).collect();
    chosen.sort_unstable();
    chosen
}

/// The window around place `i` of a document of `n` tokens: the place in the middle where there is room on both sides.
fn window(i: usize, n: usize, context: usize) -> Range<usize> {
    let start = i.saturating_sub(context / 2).min(n.saturating_sub(context));
    start..(start + context).min(n)
}

/// What is run for a place.
struct Question {
    ids: Vec<u32>,
    /// The place within `ids`; behind them where they are the left side.
    at: usize,
    truth: u32,
}

/// Fills a sample of the places of texts, given as token ids without special tokens around them, and compares with what stood there.
/// Models with the same tokenizer fill the same places from the same windows.
///
/// # Errors
/// When the model does not predict tokens of a text, the tokenizer has no mask token where one is needed, the window is longer than the
/// model takes, or there is no place.
pub fn fill(model: &Model, tokenizer: &Tokenizer, documents: &[Vec<u32>], options: &FillOptions) -> Result<FillScore> {
    let filling = Filling::of(model)?;
    let (before, after) = if filling == Filling::Masked { tokenizer.around() } else { (&[][..], &[][..]) };
    let room = model.spec().n_ctx.saturating_sub(before.len() + after.len());
    if options.context < 3 || options.context > room {
        return Err(Error::option("context", options.context, format!("from 3 to {room}, which the model takes")));
    }
    let mask = match (filling, tokenizer.special().mask) {
        (Filling::Masked, None) => return Err(Error::option("tokenizer", "no mask token", "one".to_owned())),
        (_, mask) => mask.unwrap_or(0),
    };
    let vocab_size = model.spec().vocab_size;
    let questions: Vec<Question> = places(tokenizer, documents, options.places, options.seed)
        .into_iter()
        .map(|(d, i)| {
            let (document, w) = (&documents[d], window(i, documents[d].len(), options.context));
            let (truth, at) = (document[i], before.len() + i - w.start);
            let mut ids = before.to_vec();
            match filling {
                Filling::Left => ids.extend(&document[w.start..i]),
                Filling::Both => ids.extend(&document[w]),
                Filling::Masked => {
                    ids.extend(&document[w]);
                    ids.extend(after);
                    ids[at] = mask;
                }
            }
            Question { ids, at, truth }
        })
        .collect();
    if questions.is_empty() {
        return Err(Error::option("data", "no word between two others", "at least one to fill".to_owned()));
    }
    if let Some(q) = questions.iter().find(|q| q.truth as usize >= vocab_size) {
        let expected = format!("ids below {vocab_size}, the model's vocab_size");
        return Err(Error::option("tokenizer", format!("token id {}", q.truth), expected));
    }
    let (mut top1, mut top5, mut sum) = (0, 0, 0.0);
    let mut at = 0;
    while at < questions.len() {
        let mut tokens = 0;
        let fits = |q: &&Question| {
            tokens += q.ids.len();
            tokens <= options.batch_tokens
        };
        let n = questions[at..].iter().take_while(fits).count().max(1);
        let batch = &questions[at..at + n];
        let log = log_probabilities(model, filling, batch, options.precision)?;
        for (q, row) in batch.iter().zip(log.chunks(vocab_size)) {
            let truth = row[q.truth as usize];
            let ahead = row.iter().enumerate();
            let ahead = ahead.filter(|&(id, &x)| x > truth || (x == truth && id < q.truth as usize)).count();
            top1 += usize::from(ahead == 0);
            top5 += usize::from(ahead < 5);
            sum += f64::from(truth) - log_sum_exp(row);
        }
        at += n;
    }
    let n = questions.len() as f64;
    let places = questions.len();
    Ok(FillScore { filling, places, top1: top1 as f64 / n, top5: top5 as f64 / n, log_probability: sum / n })
}

/// What the model says of each place, as logarithms of probabilities up to an addend: `[questions, v]`.
fn log_probabilities(model: &Model, filling: Filling, batch: &[Question], precision: Precision) -> Result<Vec<f32>> {
    let tape = Tape::inference().with_precision(precision);
    let ids: Vec<&[u32]> = batch.iter().map(|q| q.ids.as_slice()).collect();
    let input = Input::from_sequences(&ids);
    let hidden = model.hidden(&tape, &input, None, false)?.last;
    let logits = |x: &Value, rows: &[u32]| -> Result<Vec<f32>> {
        let y = model.lm_head()?.logits(&tape, &gather_rows(&tape, x, rows)?)?;
        Ok(to_vec(y.tensor())?)
    };
    // The row that is `off` places from the question's.
    let rows = |off: isize| -> Vec<u32> {
        let row = |(q, span): (&Question, Range<usize>)| (span.start + q.at).wrapping_add_signed(off) as u32;
        batch.iter().zip(input.spans.iter()).map(row).collect()
    };
    match filling {
        Filling::Masked => logits(&hidden, &rows(0)),
        Filling::Left => logits(&hidden, &rows(-1)),
        Filling::Both => {
            let d = model.spec().d_model;
            let mut next = logits(&columns(&tape, &hidden, 0, d)?, &rows(-1))?;
            let before = logits(&columns(&tape, &hidden, d, d)?, &rows(1))?;
            next.iter_mut().zip(before).for_each(|(a, b)| *a += b);
            Ok(next)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_around_their_place() {
        assert_eq!(window(50, 100, 20), 40..60);
        assert_eq!(window(3, 100, 20), 0..20);
        assert_eq!(window(98, 100, 20), 80..100);
        assert_eq!(window(3, 6, 20), 0..6);
    }

    #[test]
    fn places_follow_from_text_and_seed() {
        let tokenizer = Tokenizer::bytes();
        let documents =
            [b"ab".as_slice(), b"some bytes of a text", b""].map(|d| d.iter().map(|&b| u32::from(b)).collect());
        let some = places(&tokenizer, &documents, 5, 1);
        assert_eq!(some, places(&tokenizer, &documents, 5, 1));
        assert_ne!(some, places(&tokenizer, &documents, 5, 2));
        assert!(some.len() == 5 && some.iter().all(|&(d, i)| d == 1 && (1..19).contains(&i)), "{some:?}");
        assert!(some.windows(2).all(|w| w[0] < w[1]));
    }
}
