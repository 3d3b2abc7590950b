//! ELECTRA's objective (Clark et al. 2020, arXiv 2003.10555, section 2): a generator predicts masked tokens; tokens drawn from its
//! predictions are put in their places, and the model tells for every token whether it was put there.

use crate::objective::{input, labelled};
use crate::{Error, Loss, Result, Scales};
use genus_models::Model;
use genus_ops::rng::{Key, mix64};
use genus_ops::{Tape, Value, gather_rows, pool, to_vec, weighted_sum};
use genus_text::Batch;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the loss of the model counts beside the generator's.
pub(crate) const WEIGHT: f64 = 50.0;

/// The generator's loss on masked tokens times `scales.tokens`, and that of telling replaced ones times `scales.sequences`. What is
/// drawn depends on the tape's key (a run's seed and step) and on the predictions; no gradient flows through it.
pub(crate) fn loss(model: &Model, tape: &Tape, batch: &Batch, scales: Scales) -> Result<Loss> {
    let generator = model.generator().ok_or(Error::NoGenerator)?;
    let mut input = input(generator, batch)?;
    let hidden = generator.hidden(tape, &input, None, false)?.last; // [n, d of the generator]
    let (rows, labels) = labelled(batch);
    let masked = gather_rows(tape, &hidden, &rows)?; // [masked, d of the generator]
    let head = generator.lm_head()?;
    let tokens = head.loss(tape, &masked, &labels, scales.tokens, 0.0)?;
    let plain = Tape::inference().with_path(tape.path()).with_precision(tape.precision());
    let logits = head.logits(&plain, &Value::constant(masked.tensor().clone()))?; // [masked, v]
    let key = match tape.key() {
        Some(key) => key.child(u64::MAX),
        // Held-out text: the same places each time.
        None => Key::new(0, batch.ids.iter().fold(0, |h, &id| mix64(h ^ u64::from(id)))),
    };
    let drawn = draw(&to_vec(logits.tensor())?, rows.len(), key);
    let mut replaced = vec![0.0; batch.ids.len()];
    for ((&row, &label), id) in rows.iter().zip(&labels).zip(drawn) {
        input.ids[row as usize] = id;
        replaced[row as usize] = if id == label as u32 { 0.0 } else { 1.0 };
    }
    let hidden = model.hidden(tape, &input, None, false)?.last; // [n, d]
    let told = model.detector()?.loss(tape, &hidden, &replaced, scales.sequences)?;
    let total = weighted_sum(tape, &[(&tokens, 1.0), (&told, WEIGHT)])?;
    Ok(Loss { total, tokens: Some(tokens), sequences: Some(told) })
}

/// One token a row from the distributions that logits `[rows, v]` say, by the inverse of their sums; row `i` uses number `i` of the
/// key's.
fn draw(logits: &[f32], rows: usize, key: Key) -> Vec<u32> {
    let width = logits.len() / rows.max(1);
    let drawn: Vec<AtomicU32> = (0..rows).map(|_| AtomicU32::new(0)).collect();
    pool::run_chunks(rows, 1, |part| {
        for i in part {
            let row = &logits[i * width..(i + 1) * width];
            let u = (key.child(i as u64).bits() >> 11) as f64 / (1u64 << 53) as f64;
            drawn[i].store(pick(row, u), Ordering::Relaxed);
        }
    });
    drawn.into_iter().map(AtomicU32::into_inner).collect()
}

/// The first token up to which the probabilities sum to more than `u`.
fn pick(logits: &[f32], u: f64) -> u32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| f64::from((x - most).exp());
    let wanted = u * logits.iter().map(|&x| weight(x)).sum::<f64>();
    let mut sum = 0.0;
    for (i, &x) in logits.iter().enumerate() {
        sum += weight(x);
        if sum > wanted {
            return i as u32;
        }
    }
    // Logits that are not finite: the loss is not either, and the step is left out.
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_as_often_as_predicted() {
        let p = [0.5f64, 0.0, 0.2, 0.3];
        let (rows, key) = (40_000, Key::new(3, 4));
        let logits: Vec<f32> = (0..rows).flat_map(|_| p.map(|p| p.ln() as f32 + 7.0)).collect();
        let drawn = draw(&logits, rows, key);
        for (id, p) in p.iter().enumerate() {
            let share = drawn.iter().filter(|&&d| d as usize == id).count() as f64 / rows as f64;
            // A standard deviation is at most 0.0025.
            assert!((share - p).abs() < 0.01, "{id}: {share} instead of {p}");
        }
        assert_eq!(draw(&logits, rows, key), drawn);
        assert_ne!(draw(&logits, rows, Key::new(3, 5)), drawn);
        assert_eq!((pick(&[1.0, 2.0], 0.0), pick(&[1.0, 2.0], 1.0 - 1e-12), pick(&[f32::NAN; 2], 0.5)), (0, 1, 0));
    }
}
