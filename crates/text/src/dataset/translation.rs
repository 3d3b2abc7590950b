//! Pairs of sequences: a source, and a target that is to be predicted given it.

use super::stream::{BuildProgress, Tokens, in_parallel};
use super::{Examples, Sample};
use crate::corpus::Parallel;
use crate::error::{Result, TextError};
use crate::rng::{Key, Permutation};
use crate::tokenizer::Tokenizer;
use std::ops::Range;

/// How pairs become examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TranslationOptions {
    /// The token that a target begins with as it is read; it is never predicted.
    pub start: u32,
    /// The token that ends source and target.
    pub end: u32,
    /// Longest source or target in tokens, the end included; pairs beyond it are left out.
    pub longest: usize,
    /// Another order in each epoch; otherwise that of the files.
    pub shuffle: bool,
    /// Seed of the shuffling.
    pub seed: u64,
}

/// Sequences of ids behind one another.
#[derive(Debug, Clone)]
struct Side {
    tokens: Tokens,
    ends: Vec<usize>,
}

impl Side {
    fn new(vocab_size: usize) -> Self {
        Side { tokens: Tokens::for_vocab(vocab_size), ends: Vec::new() }
    }

    fn push(&mut self, ids: &[u32]) {
        self.tokens.extend(ids);
        self.ends.push(self.tokens.len());
    }

    fn range(&self, i: usize) -> Range<usize> {
        let from = if i == 0 { 0 } else { self.ends[i - 1] };
        from..self.ends[i]
    }
}

/// Encoded parallel text.
#[derive(Debug, Clone)]
pub struct TranslationExamples {
    source: Side,
    target: Side,
    options: TranslationOptions,
    /// Pairs left out because a side is empty.
    empty: u64,
    /// Pairs left out because a side is too long.
    too_long: u64,
    target_bytes: u64,
}

impl TranslationExamples {
    /// Encodes pairs, in parallel and in order.
    ///
    /// # Errors
    /// Those of walking and encoding; [`TextError::TooShort`] when no pair is left.
    pub fn build(
        text: &Parallel,
        tokenizer: &Tokenizer,
        options: TranslationOptions,
        progress: impl FnMut(BuildProgress),
    ) -> Result<Self> {
        let vocab_size = tokenizer.vocab_size();
        let (mut source, mut target) = (Side::new(vocab_size), Side::new(vocab_size));
        let (mut empty, mut too_long, mut target_bytes) = (0, 0, 0);
        let TranslationOptions { end, longest, .. } = options;
        let encode = |(s, t): &(String, String)| {
            let mut source = tokenizer.encode(s, false)?;
            let mut target = tokenizer.encode_target(t, false)?;
            source.push(end);
            target.push(end);
            Ok((source, target, t.len()))
        };
        let bytes = |(s, t): &(String, String)| s.len() + t.len();
        in_parallel(text.pairs(), bytes, encode, progress, |(s, t, bytes): (Vec<u32>, Vec<u32>, usize)| {
            if s.len() == 1 || t.len() == 1 {
                empty += 1;
                return 0;
            }
            if s.len().max(t.len()) > longest {
                too_long += 1;
                return 0;
            }
            target_bytes += bytes as u64;
            source.push(&s);
            target.push(&t);
            s.len() + t.len()
        })?;
        let examples = TranslationExamples { source, target, options, empty, too_long, target_bytes };
        examples.require(1)?;
        Ok(examples)
    }

    /// Checks that an epoch fills a batch.
    ///
    /// # Errors
    /// [`TextError::TooShort`] that tells how many pairs there are and how many are needed.
    pub fn require(&self, batch: usize) -> Result<()> {
        if self.len() >= batch {
            return Ok(());
        }
        let what = match batch {
            1 => format!("translation (left out: {} with an empty side, {} too long)", self.empty, self.too_long),
            _ => format!("a batch of {batch}"),
        };
        Err(TextError::TooShort { what, found: self.len(), needed: batch, unit: "pairs" })
    }

    /// Number of pairs.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.target.ends.len()
    }

    /// Ids of both sides.
    pub fn tokens(&self) -> usize {
        self.source.tokens.len() + self.target.tokens.len()
    }

    /// Pairs left out: with an empty side, and too long.
    pub fn left_out(&self) -> (u64, u64) {
        (self.empty, self.too_long)
    }

    /// Bytes of target text that a predicted token stands for, on average.
    pub fn bytes_per_token(&self) -> f64 {
        self.target_bytes as f64 / self.target.tokens.len().max(1) as f64
    }

    /// All ids of both sides, some at a time.
    pub fn visit_tokens(&self, mut visit: impl FnMut(&[u32])) {
        for side in [&self.source, &self.target] {
            let n = side.tokens.len();
            (0..n).step_by(1 << 16).for_each(|at| visit(&side.tokens.get(at..(at + (1 << 16)).min(n))));
        }
    }
}

impl Examples for TranslationExamples {
    fn epoch_len(&self, _epoch: u64) -> usize {
        self.len()
    }

    fn sample(&self, epoch: u64, index: usize) -> Sample {
        assert!(index < self.len(), "pair {index} of {}", self.len());
        let i = match self.options.shuffle {
            true => Permutation::new(self.len(), Key::new(self.options.seed).child(epoch)).get(index),
            false => index,
        };
        let target = self.target.tokens.get(self.target.range(i));
        let labels = target.iter().map(|&id| id as i32).collect();
        let mut ids = Vec::with_capacity(target.len());
        ids.push(self.options.start);
        ids.extend(&target[..target.len() - 1]);
        Sample {
            spans: vec![ids.len()],
            ids,
            labels,
            source: self.source.tokens.get(self.source.range(i)),
            ..Sample::default()
        }
    }

    fn locate(&self, position: u64) -> (u64, usize) {
        let n = self.len() as u64;
        (position / n, (position % n) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_shifted_and_epochs_hold_every_pair_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("s"), "ab\n\nc\nlonger than it may be\nd\n").unwrap();
        std::fs::write(path("t"), "A\nB\nCD\nE\nF\n").unwrap();
        let text = Parallel::open(&[path("s")], &[path("t")]).unwrap();
        let options = TranslationOptions { start: 7, end: 256, longest: 6, shuffle: true, seed: 1 };
        let examples = TranslationExamples::build(&text, &Tokenizer::bytes(), options, |_| {}).unwrap();
        assert_eq!((examples.len(), examples.left_out()), (3, (1, 1)));
        let ids = |s: &str| s.bytes().map(u32::from).collect::<Vec<_>>();
        let plain =
            TranslationExamples { options: TranslationOptions { shuffle: false, ..options }, ..examples.clone() };
        let second = plain.sample(0, 1);
        assert_eq!(second.source, [ids("c"), vec![256]].concat());
        assert_eq!(second.ids, [vec![7], ids("CD")].concat());
        assert_eq!(second.labels, [67, 68, 256]);
        assert_eq!((plain.tokens(), plain.bytes_per_token()), (3 + 2 + 2 + 3 + 2 + 2, 4.0 / 7.0));
        for epoch in 0..4 {
            let mut seen: Vec<Vec<u32>> = (0..3).map(|i| examples.sample(epoch, i).source).collect();
            seen.sort();
            let mut all: Vec<Vec<u32>> = (0..3).map(|i| plain.sample(0, i).source).collect();
            all.sort();
            assert_eq!(seen, all, "epoch {epoch}");
        }
        let batch = plain.batch(0, 3);
        assert_eq!((batch.source_spans.as_slice(), batch.sources.len()), (&[3, 2, 2][..], 7));
        assert!(plain.require(4).is_err());
    }
}
