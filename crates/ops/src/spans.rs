//! Where each sequence of a ragged batch begins and ends.

use crate::{Error, Result};
use std::ops::Range;

/// Offsets of the sequences of a flat token stream: `[0, 13, 22, 26]` is three sequences of 13, 9 and 4 tokens.
///
/// Cheap to clone. Always starts with 0 and never decreases; empty spans are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans(std::sync::Arc<[usize]>);

impl Spans {
    /// Spans from offsets.
    ///
    /// # Errors
    /// When the offsets do not start with 0 or decrease.
    pub fn from_offsets(offsets: &[usize]) -> Result<Self> {
        if offsets.first() != Some(&0) || offsets.windows(2).any(|w| w[1] < w[0]) {
            return Err(Error::value(
                "spans",
                "offsets",
                format!("{offsets:?}"),
                "a sequence that starts with 0 and never decreases",
            ));
        }
        Ok(Self(offsets.into()))
    }

    /// Spans from the lengths of the sequences.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut offsets = vec![0];
        let mut end = 0;
        for n in lengths {
            end += n;
            offsets.push(end);
        }
        Self(offsets.into())
    }

    /// One sequence of `n` tokens.
    pub fn single(n: usize) -> Self {
        Self([0, n].into())
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// True without any sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of all sequences together.
    pub fn total(&self) -> usize {
        self.0[self.0.len() - 1]
    }

    /// The offsets, one more than there are sequences.
    pub fn offsets(&self) -> &[usize] {
        &self.0
    }

    /// The tokens of sequence `i`.
    pub fn range(&self, i: usize) -> Range<usize> {
        self.0[i]..self.0[i + 1]
    }

    /// The ranges of all sequences in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.0.windows(2).map(|w| w[0]..w[1])
    }

    /// The length of the longest sequence.
    pub fn longest(&self) -> usize {
        self.iter().map(|r| r.len()).max().unwrap_or(0)
    }

    /// The position of every token in its sequence, from 0.
    pub fn positions(&self) -> Vec<u32> {
        self.iter().flat_map(|r| 0..r.len() as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_offsets_agree() {
        let s = Spans::from_lengths([13, 0, 9]);
        assert_eq!(s.offsets(), [0, 13, 13, 22]);
        assert_eq!((s.len(), s.total(), s.longest()), (3, 22, 13));
        assert_eq!(s.range(2), 13..22);
        assert_eq!(s.positions()[12..15], [12, 0, 1]);
    }

    #[test]
    fn bad_offsets_are_refused() {
        for bad in [&[][..], &[1, 2], &[0, 5, 4]] {
            assert!(Spans::from_offsets(bad).is_err(), "{bad:?}");
        }
    }
}
