//! A token stream cut into texts that are read side by side, for models that carry a memory.

use super::{Examples, Sample, TokenStream};
use crate::error::{Result, TextError};
use std::sync::Arc;

/// The stream in `rows` parts of equal length; example `i` is the next window of part `i % rows`, so that a batch of `rows` examples
/// goes on where the one before ended. Every epoch is the same. What is left over at the end is left out.
#[derive(Debug, Clone)]
pub struct StreamWindows {
    stream: Arc<TokenStream>,
    context: usize,
    rows: usize,
    /// Windows of a part.
    windows: usize,
}

impl StreamWindows {
    /// # Errors
    /// [`TextError::Argument`] for a context or a number of rows of 0; [`TextError::TooShort`] for a stream that has no window for
    /// each row.
    pub fn new(stream: Arc<TokenStream>, context: usize, rows: usize) -> Result<Self> {
        for (name, n) in [("context", context), ("rows", rows)] {
            if n == 0 {
                return Err(TextError::Argument { name, found: "0".into(), expected: "at least 1".into() });
            }
        }
        let windows = stream.len().saturating_sub(1) / context / rows;
        if windows == 0 {
            return Err(TextError::TooShort {
                what: format!("a window of {context} tokens (and the one after) for each of {rows} rows"),
                found: stream.len(),
                needed: context.saturating_mul(rows).saturating_add(1),
                unit: "tokens",
            });
        }
        Ok(StreamWindows { stream, context, rows, windows })
    }

    /// Number of parts.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl Examples for StreamWindows {
    fn epoch_len(&self, _epoch: u64) -> usize {
        self.rows * self.windows
    }

    fn sample(&self, _epoch: u64, index: usize) -> Sample {
        let (row, step) = (index % self.rows, index / self.rows);
        assert!(step < self.windows, "window {step} of {}", self.windows);
        let start = (row * self.windows + step) * self.context;
        let mut ids = self.stream.tokens().get(start..start + self.context + 1);
        let labels = ids[1..].iter().map(|&id| id as i32).collect();
        ids.pop();
        Sample { spans: vec![ids.len()], ids, labels, continues: step > 0, ..Sample::default() }
    }

    fn locate(&self, position: u64) -> (u64, usize) {
        let n = self.epoch_len(0) as u64;
        (position / n, (position % n) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Corpus, Tokenizer};

    #[test]
    fn each_row_reads_its_part_from_end_to_end() {
        let text: String = (0..100).map(|i| char::from(b' ' + i as u8 % 90)).collect();
        let corpus = Corpus::from_documents("t", vec![text.clone()]);
        let stream = Arc::new(TokenStream::build(&corpus, &Tokenizer::bytes(), |_| {}).unwrap());
        let windows = StreamWindows::new(stream.clone(), 7, 4).unwrap();
        assert_eq!(windows.epoch_len(0), 4 * 3);
        let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        for row in 0..4 {
            let mut ids = Vec::new();
            for step in 0..3 {
                let s = windows.sample(5, step * 4 + row);
                assert_eq!(s.continues, step > 0);
                assert_eq!(s.labels[..6], s.ids[1..].iter().map(|&i| i as i32).collect::<Vec<_>>());
                ids.extend(s.ids);
            }
            assert_eq!(ids, bytes[row * 21..(row + 1) * 21]);
        }
        let batch = windows.batch(12, 4);
        assert_eq!(batch.continues, [false; 4]);
        assert!(matches!(StreamWindows::new(stream, 30, 4), Err(TextError::TooShort { needed: 121, .. })));
    }
}
