//! Windows of a token stream for causal language models.

use super::{Examples, Sample, TokenStream};
use crate::error::{Result, TextError};
use crate::rng::{Key, Permutation};
use std::sync::Arc;

/// How windows are cut and ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowOptions {
    /// Ids in a window.
    pub context: usize,
    /// Each document of a window is a span of its own, and does not predict the next one's first token.
    pub separate_documents: bool,
    /// Shuffle windows anew in each epoch, and shift their grid by what would be left over; otherwise in file order.
    pub shuffle: bool,
    /// Seed of the shuffling.
    pub seed: u64,
}

impl Default for WindowOptions {
    fn default() -> Self {
        WindowOptions { context: 1024, separate_documents: false, shuffle: true, seed: 0 }
    }
}

/// Windows of `context` ids; each one's targets are the ids one further on, so a window takes `context + 1` ids of the
/// stream and neighbours share one. A remainder shorter than a window is left out (a different one each epoch).
#[derive(Debug, Clone)]
pub struct CausalWindows {
    stream: Arc<TokenStream>,
    options: WindowOptions,
    len: usize,
}

impl CausalWindows {
    /// # Errors
    /// [`TextError::Argument`] for a context of 0; [`TextError::TooShort`] for a stream shorter than one window.
    pub fn new(stream: Arc<TokenStream>, options: WindowOptions) -> Result<Self> {
        if options.context == 0 {
            let expected = "at least 1".into();
            return Err(TextError::Argument { name: "context", found: "0".into(), expected });
        }
        let len = stream.len().saturating_sub(1) / options.context;
        let windows = CausalWindows { stream, options, len };
        windows.require(1)?;
        Ok(windows)
    }

    /// Checks that an epoch fills a batch.
    ///
    /// # Errors
    /// [`TextError::TooShort`] that tells how many tokens there are and how many are needed.
    pub fn require(&self, batch: usize) -> Result<()> {
        let (context, found) = (self.options.context, self.stream.len());
        if self.len >= batch {
            return Ok(());
        }
        Err(TextError::TooShort {
            what: match batch {
                1 => format!("a window of {context} tokens (and the one after)"),
                _ => format!("a batch of {batch} windows of {context} tokens"),
            },
            found,
            needed: batch.saturating_mul(context).saturating_add(1),
            unit: "tokens",
        })
    }

    /// Windows in an epoch.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The stream that the windows are cut from.
    pub fn stream(&self) -> &Arc<TokenStream> {
        &self.stream
    }
}

impl Examples for CausalWindows {
    fn epoch_len(&self, _epoch: u64) -> usize {
        self.len
    }

    fn sample(&self, epoch: u64, index: usize) -> Sample {
        assert!(index < self.len, "window {index} of {}", self.len);
        let context = self.options.context;
        let (shift, index) = match self.options.shuffle {
            true => {
                let key = Key::new(self.options.seed).child(epoch);
                let slack = (self.stream.len() - 1) % context;
                (key.child(0).stream().below(slack + 1), Permutation::new(self.len, key.child(1)).get(index))
            }
            false => (0, index),
        };
        let start = shift + index * context;
        let mut ids = self.stream.tokens().get(start..start + context + 1);
        let mut labels: Vec<i32> = ids[1..].iter().map(|&id| id as i32).collect();
        ids.pop();
        let mut spans = Vec::new();
        if self.options.separate_documents {
            let ends = self.stream.document_ends();
            let mut from = start;
            for &end in &ends[ends.partition_point(|&end| end <= start)..] {
                if end >= start + context {
                    break;
                }
                spans.push(end - from);
                labels[end - start - 1] = -100;
                from = end;
            }
            spans.push(start + context - from);
            if ends.binary_search(&(start + context)).is_ok() {
                labels[context - 1] = -100;
            }
        } else {
            spans.push(context);
        }
        Sample { ids, spans, labels, ..Sample::default() }
    }

    fn locate(&self, position: u64) -> (u64, usize) {
        (position / self.len as u64, (position % self.len as u64) as usize)
    }
}
