//! A word's vector in its context.

use crate::{Error, Result};
use genus_models::{Input, Model};
use genus_ops::{Precision, Tape, to_vec};
use genus_text::Tokenizer;
use std::ops::Range;

/// A word in a text, as a model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Representation {
    /// The text's tokens, special ones included.
    pub tokens: Vec<String>,
    /// Which of them are the word's.
    pub word: Range<usize>,
    /// The mean of their hidden states, `[d_hidden]`.
    pub vector: Vec<f32>,
}

/// The vectors of the first occurrence of `word` in each text, off layer `layer`: 0 is the embeddings, by default the last one's.
/// Upper and lower case are told apart.
///
/// In a model that reads from left to right a word's vector depends on what is before it alone; in one that reads in both
/// directions, on the whole text.
///
/// # Errors
/// When a text does not hold the word, is too long, or the layer does not exist.
pub fn represent<T: AsRef<str>>(
    model: &Model,
    tokenizer: &Tokenizer,
    texts: &[T],
    word: &str,
    layer: Option<usize>,
    precision: Precision,
) -> Result<Vec<Representation>> {
    let spec = model.spec();
    let layers = spec.encoder().map_or(spec.n_layers, |e| e.n_layers);
    let layer = layer.unwrap_or(layers);
    if layer > layers {
        return Err(Error::option("layer", layer, format!("from 0 (embeddings) to {layers}")));
    }
    texts
        .iter()
        .map(|text| {
            let text = text.as_ref();
            let place = find(text, word)
                .ok_or_else(|| Error::option("word", format!("{word:?}"), format!("a word of the text {text:?}")))?;
            let encoded = tokenizer.encode_with_offsets(text, true)?;
            let touches = |r: &Range<usize>| r.start < place.end && place.start < r.end;
            let first = encoded.iter().position(|(_, r)| touches(r));
            let last = encoded.iter().rposition(|(_, r)| touches(r));
            let (Some(first), Some(last)) = (first, last) else {
                return Err(Error::option("word", format!("{word:?}"), format!("a word with a token, in {text:?}")));
            };
            let ids: Vec<u32> = encoded.iter().map(|e| e.0).collect();
            let vector = mean(model, &ids, first..last + 1, layer, precision)?;
            let tokens = ids.iter().map(|&id| tokenizer.token(id).unwrap_or_default()).collect();
            Ok(Representation { tokens, word: first..last + 1, vector })
        })
        .collect()
}

/// The first place of `word` in `text` that is not a part of a longer word.
fn find(text: &str, word: &str) -> Option<Range<usize>> {
    if word.is_empty() {
        return None;
    }
    let joins = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(word)
        .map(|(at, found)| at..at + found.len())
        .find(|r| !joins(text[..r.start].chars().next_back()) && !joins(text[r.end..].chars().next()))
}

fn mean(model: &Model, ids: &[u32], rows: Range<usize>, layer: usize, precision: Precision) -> Result<Vec<f32>> {
    let tape = Tape::inference().with_precision(precision);
    let hidden = model.states(&tape, &Input::from_sequences(&[ids]), true)?;
    let states = hidden.all.get(layer).unwrap_or(&hidden.last);
    let x = to_vec(states.tensor())?;
    let d = model.spec().d_hidden();
    let n = rows.len() as f32;
    Ok((0..d).map(|j| rows.clone().map(|i| x[i * d + j]).sum::<f32>() / n).collect())
}

/// The cosine of the angle between two vectors; 0 where one is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    let size = (dot(a, a) * dot(b, b)).sqrt();
    if size == 0.0 { 0.0 } else { dot(a, b) / size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_only() {
        assert_eq!(find("the banker at the bank", "bank"), Some(18..22));
        assert_eq!(find("banks", "bank"), None);
        assert_eq!(find("a bank.", "bank"), Some(2..6));
        assert_eq!(find("银行 bank", "bank"), Some(7..11));
        assert_eq!(find("anything", ""), None);
    }

    #[test]
    fn angles() {
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
        assert!((cosine(&[1.0, 2.0], &[2.0, 4.0]) - 1.0).abs() < 1e-12);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
