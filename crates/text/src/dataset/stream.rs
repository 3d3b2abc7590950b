//! Documents as ids.

use crate::corpus::{Corpus, CorpusStats, split_sentences};
use crate::error::{Result, TextError};
use crate::tokenizer::Tokenizer;
use rayon::prelude::*;
use std::ops::Range;

/// Text that is encoded at a time; bounds what building needs beyond its result.
const BATCH_BYTES: usize = 8 << 20;

/// Ids, two bytes each where the vocabulary allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tokens {
    /// Ids below 65,536.
    U16(Vec<u16>),
    /// Any ids.
    U32(Vec<u32>),
}

impl Tokens {
    /// An empty list for a vocabulary of this size.
    pub fn for_vocab(vocab_size: usize) -> Self {
        match vocab_size <= 1 << 16 {
            true => Tokens::U16(Vec::new()),
            false => Tokens::U32(Vec::new()),
        }
    }

    /// Appends ids of the vocabulary that the list was made for.
    pub fn extend(&mut self, ids: &[u32]) {
        match self {
            Tokens::U16(v) => v.extend(ids.iter().map(|&id| id as u16)),
            Tokens::U32(v) => v.extend_from_slice(ids),
        }
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        match self {
            Tokens::U16(v) => v.len(),
            Tokens::U32(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids of a range, appended to `out`.
    ///
    /// # Panics
    /// When the range goes beyond the end.
    pub fn read(&self, range: Range<usize>, out: &mut Vec<u32>) {
        match self {
            Tokens::U16(v) => out.extend(v[range].iter().map(|&id| id as u32)),
            Tokens::U32(v) => out.extend_from_slice(&v[range]),
        }
    }

    /// The ids of a range.
    ///
    /// # Panics
    /// When the range goes beyond the end.
    pub fn get(&self, range: Range<usize>) -> Vec<u32> {
        let mut out = Vec::with_capacity(range.len());
        self.read(range, &mut out);
        out
    }
}

/// How far building is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BuildProgress {
    /// Documents so far.
    pub documents: u64,
    /// Bytes of text so far.
    pub bytes: u64,
    /// Tokens so far.
    pub tokens: u64,
}

/// All documents of a corpus as one stream of ids, each ended by the end-of-text id.
#[derive(Debug, Clone)]
pub struct TokenStream {
    tokens: Tokens,
    /// Where each document ends.
    ends: Vec<usize>,
    stats: CorpusStats,
}

impl TokenStream {
    /// Encodes a corpus, in parallel and in order.
    ///
    /// # Errors
    /// The corpus's; [`TextError::Argument`] when the tokenizer has no token to end a text with.
    pub fn build(corpus: &Corpus, tokenizer: &Tokenizer, progress: impl FnMut(BuildProgress)) -> Result<Self> {
        let Some(end) = tokenizer.end_of_text() else {
            return Err(TextError::Argument {
                name: "tokenizer",
                found: "neither an eos nor a sep token".into(),
                expected: "one of them, to end documents with".into(),
            });
        };
        let mut tokens = Tokens::for_vocab(tokenizer.vocab_size());
        let mut ends = Vec::new();
        let encode = |document: &String| {
            let mut ids = tokenizer.encode(document, false)?;
            ids.push(end);
            Ok(ids)
        };
        let stats = in_batches(corpus, encode, progress, |ids: Vec<u32>| {
            tokens.extend(&ids);
            ends.push(tokens.len());
            ids.len()
        })?;
        Ok(TokenStream { tokens, ends, stats })
    }

    /// The ids.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Number of ids, end-of-text ids included.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Where each document ends (one past its end-of-text id).
    pub fn document_ends(&self) -> &[usize] {
        &self.ends
    }

    /// What was read, and put right, on the way.
    pub fn stats(&self) -> CorpusStats {
        self.stats
    }

    /// Bytes of text that a token stands for, on average; turns a loss a token into bits per byte:
    /// `loss / ln 2 / bytes_per_token`.
    pub fn bytes_per_token(&self) -> f64 {
        self.stats.bytes as f64 / self.len().max(1) as f64
    }
}

/// Walks a corpus as [`in_parallel`] does.
fn in_batches<T: Send>(
    corpus: &Corpus,
    encode: impl Fn(&String) -> Result<T> + Sync,
    progress: impl FnMut(BuildProgress),
    take: impl FnMut(T) -> usize,
) -> Result<CorpusStats> {
    let mut documents = corpus.documents();
    in_parallel(documents.by_ref(), String::len, encode, progress, take)?;
    Ok(documents.stats())
}

/// Walks texts a few megabytes at a time: encodes in parallel, hands the results over in order.
pub(super) fn in_parallel<D: Send + Sync, T: Send>(
    mut texts: impl Iterator<Item = Result<D>>,
    size: impl Fn(&D) -> usize,
    encode: impl Fn(&D) -> Result<T> + Sync,
    mut progress: impl FnMut(BuildProgress),
    mut take: impl FnMut(T) -> usize,
) -> Result<()> {
    let mut so_far = BuildProgress::default();
    loop {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for text in texts.by_ref() {
            let text = text?;
            bytes += size(&text);
            batch.push(text);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let encoded: Result<Vec<T>> = batch.par_iter().map(&encode).collect();
        so_far.documents += batch.len() as u64;
        so_far.bytes += bytes as u64;
        so_far.tokens += encoded?.into_iter().map(&mut take).sum::<usize>() as u64;
        progress(so_far);
    }
}

/// How documents fall into sentences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SentenceSplit {
    /// Unicode's sentence boundaries.
    #[default]
    Unicode,
    /// A sentence a line, as the published BERT data.
    Lines,
}

/// All documents of a corpus as sentences of ids, without special tokens.
#[derive(Debug, Clone)]
pub struct SentenceStream {
    pub(super) tokens: Tokens,
    /// Where each sentence ends, in tokens.
    pub(super) sentence_ends: Vec<usize>,
    /// Where each document ends, in sentences.
    pub(super) document_ends: Vec<usize>,
    stats: CorpusStats,
}

impl SentenceStream {
    /// Encodes a corpus sentence by sentence, in parallel and in order. Sentences without tokens are dropped, and
    /// documents without sentences.
    ///
    /// # Errors
    /// The corpus's.
    pub fn build(
        corpus: &Corpus,
        tokenizer: &Tokenizer,
        split: SentenceSplit,
        progress: impl FnMut(BuildProgress),
    ) -> Result<Self> {
        let mut tokens = Tokens::for_vocab(tokenizer.vocab_size());
        let (mut sentence_ends, mut document_ends) = (Vec::new(), Vec::new());
        let encode = |document: &String| -> Result<Vec<Vec<u32>>> {
            let sentences = split_sentences(document, split == SentenceSplit::Lines);
            sentences.into_iter().map(|s| tokenizer.encode(s, false)).collect()
        };
        let stats = in_batches(corpus, encode, progress, |sentences: Vec<Vec<u32>>| {
            let before = tokens.len();
            for ids in sentences.into_iter().filter(|ids| !ids.is_empty()) {
                tokens.extend(&ids);
                sentence_ends.push(tokens.len());
            }
            if tokens.len() > before {
                document_ends.push(sentence_ends.len());
            }
            tokens.len() - before
        })?;
        Ok(SentenceStream { tokens, sentence_ends, document_ends, stats })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.document_ends.len()
    }

    /// Number of sentences.
    pub fn sentences(&self) -> usize {
        self.sentence_ends.len()
    }

    /// What was read, and put right, on the way.
    pub fn stats(&self) -> CorpusStats {
        self.stats
    }

    /// Bytes of text that a token stands for, on average.
    pub fn bytes_per_token(&self) -> f64 {
        self.stats.bytes as f64 / self.len().max(1) as f64
    }

    /// The sentences of a document.
    pub(super) fn document(&self, d: usize) -> Range<usize> {
        let from = if d == 0 { 0 } else { self.document_ends[d - 1] };
        from..self.document_ends[d]
    }

    /// The tokens of a sentence.
    pub(super) fn sentence(&self, s: usize) -> Range<usize> {
        let from = if s == 0 { 0 } else { self.sentence_ends[s - 1] };
        from..self.sentence_ends[s]
    }

    /// The document that holds a token.
    pub(super) fn document_of(&self, token: usize) -> usize {
        let sentence = self.sentence_ends.partition_point(|&end| end <= token);
        self.document_ends.partition_point(|&end| end <= sentence)
    }
}
