//! Tagged sentences as examples: words are turned into tokens one by one, and a word's tag stands at its first token.

use super::{Examples, Sample};
use crate::corpus::{Tagged, TaggedSentence};
use crate::error::{Result, TextError};
use crate::rng::{Key, Permutation};
use crate::tokenizer::Tokenizer;

/// How sentences become examples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedOptions {
    /// The tags, in the order of the model's outputs; others are not learned from.
    pub labels: Vec<String>,
    /// Longest example in tokens; longer sentences are cut between words.
    pub longest: usize,
    /// Another order in each epoch; otherwise that of the files.
    pub shuffle: bool,
    /// Seed of the shuffling.
    pub seed: u64,
}

/// A sentence as tokens, or a part of a long one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaggedPiece {
    /// Token ids, with what the tokenizer puts around a sequence.
    pub ids: Vec<u32>,
    /// For each word where its first token is.
    pub places: Vec<usize>,
}

/// Turns words into pieces of at most `longest` tokens; all words in order, each in one piece. Tokens of a word that alone is longer
/// are cut off.
///
/// # Errors
/// When the vocabulary cannot spell a word and has no unknown token, or `longest` leaves no room for a token.
pub fn tagged_pieces(words: &[String], tokenizer: &Tokenizer, longest: usize) -> Result<Vec<TaggedPiece>> {
    let (before, after) = tokenizer.around();
    let room = longest.saturating_sub(before.len() + after.len());
    if room == 0 {
        let expected = format!("more than the {} tokens around a sequence", before.len() + after.len());
        return Err(TextError::Argument { name: "context", found: longest.to_string(), expected });
    }
    let mut pieces = Vec::new();
    let new = || TaggedPiece { ids: before.to_vec(), places: Vec::new() };
    let mut piece = new();
    let mut finish = |mut piece: TaggedPiece| {
        piece.ids.extend(after);
        pieces.push(piece);
    };
    for word in words {
        let mut ids = tokenizer.encode_word(word)?;
        if ids.is_empty() {
            // A word of characters that the tokenizer removes.
            let unknown = tokenizer.special().unk;
            ids.push(unknown.ok_or_else(|| TextError::library(format!("no token for the word {word:?}")))?);
        }
        ids.truncate(room);
        if piece.ids.len() + ids.len() > before.len() + room {
            finish(std::mem::replace(&mut piece, new()));
        }
        piece.places.push(piece.ids.len());
        piece.ids.extend(ids);
    }
    if !piece.places.is_empty() {
        finish(piece);
    }
    Ok(pieces)
}

/// Encoded tagged sentences.
#[derive(Debug, Clone)]
pub struct TaggedExamples {
    samples: Vec<Sample>,
    options: TaggedOptions,
    /// Words whose tag is none of the labels.
    unknown: u64,
}

impl TaggedExamples {
    /// Encodes sentences.
    ///
    /// # Errors
    /// Those of [`tagged_pieces`].
    pub fn build(text: &Tagged, tokenizer: &Tokenizer, options: TaggedOptions) -> Result<Self> {
        let (mut samples, mut unknown) = (Vec::new(), 0);
        for TaggedSentence { words, tags } in text.sentences() {
            let mut tags = tags.iter();
            for piece in tagged_pieces(words, tokenizer, options.longest)? {
                let mut labels = vec![-100; piece.ids.len()];
                for (&place, tag) in piece.places.iter().zip(&mut tags) {
                    match options.labels.iter().position(|l| l == tag) {
                        Some(label) => labels[place] = label as i32,
                        None => unknown += 1,
                    }
                }
                samples.push(Sample { spans: vec![piece.ids.len()], ids: piece.ids, labels, ..Sample::default() });
            }
        }
        Ok(TaggedExamples { samples, options, unknown })
    }

    /// Checks that an epoch fills a batch.
    ///
    /// # Errors
    /// [`TextError::TooShort`] that tells how many sentences there are and how many are needed.
    pub fn require(&self, batch: usize) -> Result<()> {
        let found = self.samples.len();
        if found >= batch.max(1) {
            return Ok(());
        }
        Err(TextError::TooShort { what: format!("a batch of {batch}"), found, needed: batch.max(1), unit: "sentences" })
    }

    /// Number of ids.
    pub fn tokens(&self) -> usize {
        self.samples.iter().map(|s| s.ids.len()).sum()
    }

    /// Words whose tag is none of the labels.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }
}

impl Examples for TaggedExamples {
    fn epoch_len(&self, _epoch: u64) -> usize {
        self.samples.len()
    }

    fn sample(&self, epoch: u64, index: usize) -> Sample {
        let n = self.samples.len();
        let i = match self.options.shuffle {
            true => Permutation::new(n, Key::new(self.options.seed).child(epoch)).get(index),
            false => index,
        };
        self.samples[i].clone()
    }

    fn locate(&self, position: u64) -> (u64, usize) {
        let n = self.samples.len() as u64;
        (position / n, (position % n) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_stands_at_the_first_token_and_long_sentences_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        std::fs::write(&path, "ab X\nc Y\ndefghijkl Z\n\nm X\n").unwrap();
        let text = Tagged::open(&[path]).unwrap();
        let labels = ["X", "Y"].map(String::from).to_vec();
        let options = TaggedOptions { labels, longest: 6, shuffle: false, seed: 0 };
        let examples = TaggedExamples::build(&text, &Tokenizer::bytes(), options.clone()).unwrap();
        let ids = |s: &str| s.bytes().map(u32::from).collect::<Vec<_>>();
        assert_eq!(examples.epoch_len(0), 3);
        let [a, b, c] = [0, 1, 2].map(|i| examples.sample(0, i));
        assert_eq!((a.ids, a.labels), (ids(" ab c"), vec![0, -100, -100, 1, -100]));
        assert_eq!((b.ids, b.labels), (ids(" defgh"), vec![-100; 6]));
        assert_eq!((c.ids, c.labels), (ids(" m"), vec![0, -100]));
        assert_eq!((examples.tokens(), examples.unknown()), (13, 1));
        assert!(examples.require(4).is_err());
        let options = TaggedOptions { longest: 0, ..options };
        assert!(TaggedExamples::build(&text, &Tokenizer::bytes(), options).is_err());
    }
}
