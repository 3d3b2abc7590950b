//! BERT's pretraining examples (Devlin et al. 2018, appendix A.2; `create_pretraining_data.py` of the published code).

use super::{Examples, MaskingConfig, Sample, SentenceStream, mask_tokens};
use crate::error::{Result, TextError};
use crate::rng::{Key, Permutation};
use crate::tokenizer::Tokenizer;
use std::sync::Arc;

/// What an example consists of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Segments {
    /// `[CLS] a [SEP] b [SEP]`, where b follows a in half of the examples and otherwise comes from another document.
    #[default]
    Pairs,
    /// `[CLS] sentences [SEP]`, filled from consecutive sentences, on into the next document after a `[SEP]` (RoBERTa's
    /// full sentences); masked words alone.
    Full,
}

/// How examples are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairOptions {
    /// Most ids in an example, special tokens included.
    pub max_length: usize,
    /// Pairs, or masked words alone.
    pub segments: Segments,
    /// Share of documents whose examples aim at a random shorter length.
    pub short_probability: f64,
    /// How many different ways of cutting the documents are used in turn, an epoch each (`dupe_factor`). Masks, random
    /// second segments and truncation differ in every epoch anyway.
    pub layouts: usize,
    /// Masking.
    pub masking: MaskingConfig,
    /// Shuffle examples anew in each epoch; otherwise in file order.
    pub shuffle: bool,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for PairOptions {
    fn default() -> Self {
        PairOptions {
            max_length: 512,
            segments: Segments::Pairs,
            short_probability: 0.1,
            layouts: 10,
            masking: MaskingConfig::default(),
            shuffle: true,
            seed: 0,
        }
    }
}

/// Where an example's text lies: tokens `start..middle` and `middle..end` of the stream.
#[derive(Debug, Clone, Copy)]
struct Piece {
    document: u32,
    /// Length aimed at without special tokens.
    target: u32,
    start: u64,
    middle: u64,
    end: u64,
    /// The second segment comes from elsewhere.
    random: bool,
}

/// BERT's pretraining examples over a [`SentenceStream`], masked.
///
/// As published: sentences of a document are gathered until they reach the length aimed at, cut between two sentences
/// into a and b; b is kept, or replaced by text from another document, and what it held then starts the next example.
/// Two differences: a gathering that is a single sentence is cut within the sentence (published: b is always random
/// then, which makes true continuations rarer than half), and the other document is never the same one (published: ten
/// tries).
#[derive(Clone)]
pub struct PairExamples {
    stream: Arc<SentenceStream>,
    tokenizer: Tokenizer,
    options: PairOptions,
    cls: u32,
    sep: u32,
    layouts: Vec<Vec<Piece>>,
}

impl std::fmt::Debug for PairExamples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PairExamples").field("options", &self.options).field("tokenizer", &self.tokenizer).finish()
    }
}

impl PairExamples {
    /// # Errors
    /// [`TextError::Argument`] for a tokenizer without cls, sep or mask token, or a length or number of layouts too
    /// small; [`TextError::TooShort`] for pairs from fewer than two documents, or no example at all.
    pub fn new(stream: Arc<SentenceStream>, tokenizer: &Tokenizer, options: PairOptions) -> Result<Self> {
        let special = tokenizer.special();
        let (Some(cls), Some(sep), Some(_)) = (special.cls, special.sep, special.mask) else {
            return Err(TextError::Argument {
                name: "tokenizer",
                found: format!("{special:?}"),
                expected: "cls, sep and mask tokens (train:wordpiece:SIZE makes them)".into(),
            });
        };
        if options.max_length < 5 || options.layouts == 0 {
            return Err(TextError::Argument {
                name: "pair options",
                found: format!("length {}, {} layouts", options.max_length, options.layouts),
                expected: "a length of at least 5, and a layout".into(),
            });
        }
        if options.segments == Segments::Pairs && stream.documents() < 2 {
            return Err(TextError::TooShort {
                what: "next-sentence pairs (`documents` blank-lines or lines splits files; or train on masked words alone, `objective` masked)".into(),
                found: stream.documents(),
                needed: 2,
                unit: "documents",
            });
        }
        let layouts: Vec<Vec<Piece>> = match options.segments {
            Segments::Pairs => {
                let key = Key::new(options.seed).child(u64::MAX);
                (0..options.layouts).map(|l| pair_layout(&stream, &options, key.child(l as u64))).collect()
            }
            Segments::Full => vec![full_layout(&stream, options.max_length - 2)],
        };
        if let Some(found) = layouts.iter().map(Vec::len).min().filter(|&n| n == 0) {
            return Err(TextError::TooShort { what: "an example".into(), found, needed: 1, unit: "examples" });
        }
        Ok(PairExamples { stream, tokenizer: tokenizer.clone(), options, cls, sep, layouts })
    }

    /// Checks that every epoch fills a batch.
    ///
    /// # Errors
    /// [`TextError::TooShort`] that tells how many examples there are and how many are needed.
    pub fn require(&self, batch: usize) -> Result<()> {
        let found = self.layouts.iter().map(Vec::len).min().unwrap_or(0);
        match found >= batch {
            true => Ok(()),
            false => Err(TextError::TooShort {
                what: format!("a batch of {batch} examples of up to {} tokens", self.options.max_length),
                found,
                needed: batch,
                unit: "examples",
            }),
        }
    }

    /// The stream that the examples are cut from.
    pub fn stream(&self) -> &Arc<SentenceStream> {
        &self.stream
    }

    fn layout(&self, epoch: u64) -> &[Piece] {
        &self.layouts[(epoch % self.layouts.len() as u64) as usize]
    }

    /// Text for a second segment from a random place of another document.
    fn elsewhere(&self, piece: &Piece, key: Key) -> Vec<u32> {
        let mut rng = key.stream();
        let other = rng.below(self.stream.documents() - 1);
        let other = other + usize::from(other >= piece.document as usize);
        let sentences = self.stream.document(other);
        let first = sentences.start + rng.below(sentences.len());
        let wanted = (piece.target as usize).saturating_sub((piece.middle - piece.start) as usize).max(1);
        let mut ids = Vec::new();
        for s in first..sentences.end {
            self.stream.tokens.read(self.stream.sentence(s), &mut ids);
            if ids.len() >= wanted {
                break;
            }
        }
        ids
    }

    fn pair(&self, piece: &Piece, key: Key) -> Sample {
        let mut a = self.stream.tokens.get(piece.start as usize..piece.middle as usize);
        let mut b = match piece.random {
            true => self.elsewhere(piece, key.child(0)),
            false => self.stream.tokens.get(piece.middle as usize..piece.end as usize),
        };
        truncate_pair(&mut a, &mut b, self.options.max_length - 3, key.child(1));
        let mut ids = vec![self.cls];
        ids.append(&mut a);
        ids.push(self.sep);
        let first = ids.len();
        ids.append(&mut b);
        ids.push(self.sep);
        let token_types = (0..ids.len()).map(|i| u32::from(i >= first)).collect();
        Sample { ids, token_types, next_sentence: Some(u32::from(piece.random)), ..Sample::default() }
    }

    fn full(&self, piece: &Piece) -> Sample {
        let mut ids = vec![self.cls];
        let (mut at, end) = (piece.start as usize, piece.end as usize);
        let mut document = piece.document as usize;
        while at < end {
            let stop = self.stream.sentence(self.stream.document_ends[document] - 1).end.min(end);
            self.stream.tokens.read(at..stop, &mut ids);
            ids.push(self.sep);
            (at, document) = (stop, document + 1);
        }
        Sample { token_types: vec![0; ids.len()], ids, ..Sample::default() }
    }
}

impl Examples for PairExamples {
    fn epoch_len(&self, epoch: u64) -> usize {
        self.layout(epoch).len()
    }

    fn sample(&self, epoch: u64, index: usize) -> Sample {
        let layout = self.layout(epoch);
        assert!(index < layout.len(), "example {index} of {}", layout.len());
        let key = Key::new(self.options.seed).child(epoch);
        let index = match self.options.shuffle {
            true => Permutation::new(layout.len(), key.child(0)).get(index),
            false => index,
        };
        let key = key.child(1).child(index as u64);
        let mut sample = match self.options.segments {
            Segments::Pairs => self.pair(&layout[index], key.child(0)),
            Segments::Full => self.full(&layout[index]),
        };
        sample.labels = mask_tokens(&mut sample.ids, &self.tokenizer, key.child(1), &self.options.masking);
        sample.spans = vec![sample.ids.len()];
        sample
    }

    fn locate(&self, position: u64) -> (u64, usize) {
        let round: u64 = self.layouts.iter().map(|l| l.len() as u64).sum();
        let mut epoch = position / round * self.layouts.len() as u64;
        let mut rest = position % round;
        while rest >= self.epoch_len(epoch) as u64 {
            rest -= self.epoch_len(epoch) as u64;
            epoch += 1;
        }
        (epoch, rest as usize)
    }
}

/// One way of cutting all documents into pairs.
fn pair_layout(stream: &SentenceStream, options: &PairOptions, key: Key) -> Vec<Piece> {
    let longest = options.max_length - 3;
    let mut pieces = Vec::new();
    for document in 0..stream.documents() {
        let mut rng = key.child(document as u64).stream();
        let target = match rng.unit() < options.short_probability {
            true => 2 + rng.below(longest - 1),
            false => longest,
        };
        let sentences = stream.document(document);
        let mut first = sentences.start;
        while first < sentences.end {
            let start = stream.sentence(first).start;
            let reaches = |&last: &usize| stream.sentence(last).end - start >= target;
            let last = (first..sentences.end).find(reaches).unwrap_or(sentences.end - 1);
            let end = stream.sentence(last).end;
            let random = rng.unit() < 0.5;
            let (middle, next) = if last > first {
                let a_end = first + 1 + rng.below(last - first);
                (stream.sentence(a_end).start, if random { a_end } else { last + 1 })
            } else {
                // Within the sentence; of a random pair's sentence, no more than leaves room for the other.
                let most = (end - start).saturating_sub(1).min(longest - 1);
                (start + 1 + rng.below(most), last + 1)
            };
            // A sentence of one token has no second part to keep.
            let random = random || middle >= end;
            pieces.push(Piece {
                document: document as u32,
                target: target as u32,
                start: start as u64,
                middle: middle as u64,
                end: end as u64,
                random,
            });
            first = next;
        }
    }
    pieces
}

/// Consecutive sentences in examples of at most `longest` ids, a separator for each further document counted.
fn full_layout(stream: &SentenceStream, longest: usize) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut open: Option<Piece> = None;
    let mut used = 0;
    for document in 0..stream.documents() {
        for s in stream.document(document) {
            let mut range = stream.sentence(s);
            while !range.is_empty() {
                let joins = open.as_ref().is_some_and(|p| stream.document_of(p.end as usize - 1) != document);
                if let Some(piece) = &mut open {
                    let need = range.len() + usize::from(joins);
                    if used + need <= longest {
                        piece.end = range.end as u64;
                        used += need;
                        break;
                    }
                    pieces.push(*piece);
                }
                // A sentence longer than an example is cut.
                let end = range.end.min(range.start + longest);
                open = Some(Piece {
                    document: document as u32,
                    target: longest as u32,
                    start: range.start as u64,
                    middle: end as u64,
                    end: end as u64,
                    random: false,
                });
                used = end - range.start;
                range.start = end;
            }
        }
    }
    pieces.extend(open);
    pieces
}

/// Shortens the longer of two segments, at a random end each time, until both fit (`truncate_seq_pair`).
fn truncate_pair(a: &mut Vec<u32>, b: &mut Vec<u32>, longest: usize, key: Key) {
    let mut rng = key.stream();
    let (mut front, mut back) = ([0usize; 2], [0usize; 2]);
    let (mut la, mut lb) = (a.len(), b.len());
    while la + lb > longest {
        let which = usize::from(la <= lb);
        match rng.unit() < 0.5 {
            true => front[which] += 1,
            false => back[which] += 1,
        }
        *[&mut la, &mut lb][which] -= 1;
    }
    for (segment, i) in [(a, 0), (b, 1)] {
        segment.truncate(segment.len() - back[i]);
        segment.drain(..front[i]);
    }
}
