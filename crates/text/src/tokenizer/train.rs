//! Learning vocabularies from documents.

use super::bpe::byte_level_json;
use super::fast::{BYTE_CHARS, gpt2_piece};
use super::open::{END_OF_TEXT, added_token, from_value, word_piece_value};
use super::{SpecialTokens, Tokenizer};
use crate::error::{Result, TextError};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::{AddedToken, Model, PreTokenizer, Trainer};

/// BERT's special tokens, in the order of their ids.
const BERT: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// Special tokens of a Unigram vocabulary, in the order of their ids (as T5).
const UNIGRAM: [&str; 3] = ["<pad>", "</s>", "<unk>"];
/// Documents are learnt from in pieces of about this many bytes.
const PIECE: usize = 1 << 14;
/// Longer words are cut (byte-level BPE, in bytes) or left out (WordPiece, which does not spell them): the time to learn
/// from a word grows faster than its length.
const MAX_WORD: usize = 256;
/// The longest word, in characters, that WordPiece spells (`max_input_chars_per_word`).
pub(super) const MAX_WORD_PIECE: usize = 100;

/// The kind of vocabulary to learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainKind {
    /// Byte-level byte-pair encoding (GPT-2), with `<|endoftext|>`.
    Bpe,
    /// WordPiece (BERT), with `[PAD] [UNK] [CLS] [SEP] [MASK]`.
    WordPiece,
    /// Whole words (ELMo), the most frequent ones, with `</S> <S> <UNK>`.
    Words,
    /// Unigram language model over NFKC text with `▁` for spaces, with `<pad> </s> <unk>`.
    Unigram,
}

impl TrainKind {
    pub(super) fn least_size(self) -> usize {
        match self {
            TrainKind::Bpe => 257,
            TrainKind::WordPiece => 32,
            TrainKind::Words => super::words::SPECIAL.len() + 1,
            TrainKind::Unigram => 32,
        }
    }
}

impl std::fmt::Display for TrainKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TrainKind::Bpe => "bpe",
            TrainKind::WordPiece => "wordpiece",
            TrainKind::Words => "words",
            TrainKind::Unigram => "unigram",
        })
    }
}

/// How to learn a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainOptions {
    /// The kind of vocabulary.
    pub kind: TrainKind,
    /// The size aimed at, special tokens included; little text gives fewer.
    pub vocab_size: usize,
    /// WordPiece: fold case and strip accents, as `bert-base-uncased`.
    pub lowercase: bool,
    /// Pairs seen less often are not merged (not used by Unigram).
    pub min_frequency: u64,
    /// Reading stops after about this much text; more rarely changes a vocabulary and always costs memory.
    pub max_bytes: u64,
}

impl TrainOptions {
    /// Lower case, pairs seen at least twice, at most 1 GiB of text.
    pub fn new(kind: TrainKind, vocab_size: usize) -> Self {
        TrainOptions { kind, vocab_size, lowercase: true, min_frequency: 2, max_bytes: 1 << 30 }
    }
}

/// How far training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrainProgress {
    /// Words are being counted.
    Reading {
        /// Documents so far.
        documents: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// The vocabulary is being made from the counts.
    Learning,
}

impl Tokenizer {
    /// Learns a vocabulary. The same documents in the same order give the same tokenizer, on any number of threads.
    ///
    /// # Errors
    /// The first error of `documents`; [`TextError::Argument`] for a size too small for the kind;
    /// [`TextError::NoText`] when the documents hold nothing to learn from.
    pub fn train(
        options: &TrainOptions,
        documents: impl Iterator<Item = Result<String>> + Send,
        progress: impl FnMut(TrainProgress) + Send,
    ) -> Result<Self> {
        if options.vocab_size < options.kind.least_size() {
            return Err(TextError::Argument {
                name: "vocabulary size",
                found: options.vocab_size.to_string(),
                expected: format!("at least {} for {}", options.kind.least_size(), options.kind),
            });
        }
        let mut reader = Reader {
            documents,
            progress,
            limit: options.max_bytes,
            counts: (0, 0),
            pieces: Vec::new().into_iter(),
            error: None,
        };
        let tokenizer = match options.kind {
            TrainKind::Bpe => bpe(options, &mut reader),
            TrainKind::WordPiece => word_piece(options, &mut reader),
            TrainKind::Words => words(options, &mut reader),
            TrainKind::Unigram => unigram(options, &mut reader),
        };
        match reader.error {
            Some(error) => Err(error),
            None => tokenizer,
        }
    }
}

/// Hands out documents in pieces, reports progress, and keeps the first error.
struct Reader<D, P> {
    documents: D,
    progress: P,
    limit: u64,
    counts: (u64, u64),
    pieces: std::vec::IntoIter<String>,
    error: Option<TextError>,
}

impl<D: Iterator<Item = Result<String>>, P: FnMut(TrainProgress)> Reader<D, P> {
    fn learning(&mut self) -> Result<()> {
        (self.progress)(TrainProgress::Learning);
        match (self.error.take(), self.counts.1) {
            (Some(error), _) => Err(error),
            (None, 0) => Err(TextError::NoText { names: vec!["the training documents".into()] }),
            _ => Ok(()),
        }
    }
}

impl<D: Iterator<Item = Result<String>>, P: FnMut(TrainProgress)> Iterator for Reader<D, P> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            if let Some(piece) = self.pieces.next() {
                return Some(piece);
            }
            if self.error.is_some() || self.counts.1 >= self.limit {
                return None;
            }
            match self.documents.next()? {
                Ok(document) => {
                    self.counts.0 += 1;
                    self.counts.1 += document.len() as u64;
                    let (documents, bytes) = self.counts;
                    (self.progress)(TrainProgress::Reading { documents, bytes });
                    self.pieces = pieces(&document).map(str::to_owned).collect::<Vec<_>>().into_iter();
                }
                Err(e) => self.error = Some(e),
            }
        }
    }
}

/// Cuts a document before white space, or where it must be.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = rest.as_bytes();
        let space = |i: &usize| bytes[*i].is_ascii_whitespace() && !bytes[*i - 1].is_ascii_whitespace();
        let mut at = match bytes.len() > PIECE {
            true => (PIECE..bytes.len().min(4 * PIECE)).find(space).unwrap_or(bytes.len().min(4 * PIECE)),
            false => bytes.len(),
        };
        while !rest.is_char_boundary(at) {
            at += 1;
        }
        let (piece, tail) = rest.split_at(at);
        rest = tail;
        Some(piece)
    })
}

fn bpe(options: &TrainOptions, reader: &mut Reader<impl Documents, impl Progress>) -> Result<Tokenizer> {
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(options.vocab_size)
        .min_frequency(options.min_frequency)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(BYTE_CHARS.iter().copied().collect())
        .build();
    let words = |text: &str| {
        let (mut at, mut words) = (0, Vec::new());
        while at < text.len() {
            let end = gpt2_piece(text, at);
            let bytes = text.as_bytes()[at..end].chunks(MAX_WORD);
            words.extend(bytes.map(|part| part.iter().map(|&b| BYTE_CHARS[b as usize]).collect::<String>()));
            at = end;
        }
        Ok(words)
    };
    trainer.feed(reader.by_ref(), words).map_err(TextError::library)?;
    reader.learning()?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(TextError::library)?;
    let end = model.token_to_id(END_OF_TEXT);
    let model = serde_json::to_value(&model).map_err(TextError::library)?;
    let vocab = model["vocab"].as_object().cloned().unwrap_or_default();
    let merges = model["merges"].as_array().cloned().unwrap_or_default();
    let mut value = byte_level_json(vocab, merges);
    value["added_tokens"] = json!([added_token(end.unwrap_or(0) as u64, END_OF_TEXT)]);
    let library = from_value(&value).map_err(TextError::library)?;
    // As GPT-2's published configuration has it.
    let special = SpecialTokens { bos: end, eos: end, unk: end, ..SpecialTokens::default() };
    Tokenizer::assemble(library, special, None, None)
}

fn word_piece(options: &TrainOptions, reader: &mut Reader<impl Documents, impl Progress>) -> Result<Tokenizer> {
    let normalizer = tokenizers::normalizers::BertNormalizer::new(true, true, None, options.lowercase);
    let mut trainer = WordPieceTrainer::builder()
        .show_progress(false)
        .vocab_size(options.vocab_size)
        .min_frequency(options.min_frequency)
        .build();
    // How often each character starts a word and continues one. The library numbers continuations in the order of a
    // hash table, and breaks ties between merges by those numbers; naming them beforehand makes training repeatable.
    let symbols: Mutex<BTreeMap<char, [u64; 2]>> = Mutex::default();
    let words = |text: &str| {
        let mut words = normalized_words(text, &normalizer, &tokenizers::pre_tokenizers::bert::BertPreTokenizer)?;
        words.retain(|word| word.chars().count() <= MAX_WORD_PIECE);
        let mut local: HashMap<char, [u64; 2]> = HashMap::new();
        for word in &words {
            for (i, c) in word.chars().enumerate() {
                local.entry(c).or_default()[usize::from(i > 0)] += 1;
            }
        }
        if let Ok(mut symbols) = symbols.lock() {
            for (c, n) in local {
                let total = symbols.entry(c).or_default();
                *total = [total[0] + n[0], total[1] + n[1]];
            }
        }
        Ok(words)
    };
    trainer.feed(reader.by_ref(), words).map_err(TextError::library)?;
    reader.learning()?;
    let mut symbols: Vec<(char, [u64; 2])> = symbols.into_inner().unwrap_or_default().into_iter().collect();
    symbols.sort_by_key(|&(c, [a, b])| (std::cmp::Reverse(a + b), c));
    // Characters may take four fifths of the vocabulary; the rarest become [UNK].
    let mut room = (options.vocab_size - BERT.len()) * 4 / 5;
    let kept: Vec<(char, bool)> = symbols
        .into_iter()
        .map(|(c, [_, inside])| (c, inside > 0))
        .take_while(|&(_, inside)| {
            let need = 1 + usize::from(inside);
            let fits = need <= room;
            room = room.saturating_sub(need);
            fits
        })
        .collect();
    let mut continuations: Vec<char> = kept.iter().filter(|k| k.1).map(|k| k.0).collect();
    continuations.sort_unstable();
    let alphabet: HashSet<char> = kept.iter().map(|k| k.0).collect();
    let names = BERT.iter().map(|t| t.to_string()).chain(continuations.iter().map(|c| format!("##{c}")));
    trainer.set_special_tokens(names.map(|n| AddedToken::from(n, true)).collect());
    trainer.set_limit_alphabet(Some(alphabet.len()));
    trainer.set_initial_alphabet(alphabet);
    let mut model = WordPiece::default();
    trainer.train(&mut model).map_err(TextError::library)?;

    let mut vocab: Vec<(String, u32)> = model.get_vocab().into_iter().collect();
    vocab.sort_by_key(|v| v.1);
    let vocab: Map<String, Value> = vocab.into_iter().map(|(t, id)| (t, json!(id))).collect();
    let normalizer = serde_json::to_value(normalizer).map_err(TextError::library)?;
    let names = BERT.map(str::to_owned);
    let value = word_piece_value(vocab, normalizer, "[UNK]", "[CLS]", "[SEP]", &names).map_err(TextError::library)?;
    let library = from_value(&value).map_err(TextError::library)?;
    let id = |t: &str| library.token_to_id(t);
    let special = SpecialTokens {
        pad: id("[PAD]"),
        unk: id("[UNK]"),
        cls: id("[CLS]"),
        sep: id("[SEP]"),
        mask: id("[MASK]"),
        ..SpecialTokens::default()
    };
    Tokenizer::assemble(library, special, None, None)
}

/// The words that a normaliser and a pre-tokenizer make of a text.
fn normalized_words(
    text: &str,
    normalizer: &impl tokenizers::Normalizer,
    pre: &impl PreTokenizer,
) -> Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
    let mut normalized = tokenizers::NormalizedString::from(text);
    normalizer.normalize(&mut normalized)?;
    let mut words = tokenizers::PreTokenizedString::from(normalized);
    pre.pre_tokenize(&mut words)?;
    let splits = words.get_splits(tokenizers::OffsetReferential::Normalized, tokenizers::OffsetType::None);
    Ok(splits.into_iter().map(|(s, _, _)| s.to_owned()).collect())
}

fn unigram(options: &TrainOptions, reader: &mut Reader<impl Documents, impl Progress>) -> Result<Tokenizer> {
    let mut value = unigram_json(json!([["<unk>", 0.0]]), 0);
    let frame = from_value(&value).map_err(TextError::library)?;
    let (Some(normalizer), Some(pre)) = (frame.get_normalizer(), frame.get_pre_tokenizer()) else {
        return Err(TextError::library("the Unigram frame has no pre-tokenizer"));
    };
    let words = count_words(reader, normalizer, pre)?;
    reader.learning()?;
    let size = options.vocab_size - UNIGRAM.len();
    let pieces = super::unigram::learn(words, size);
    if pieces.is_empty() {
        return Err(TextError::NoText { names: vec!["the training documents".into()] });
    }
    let mut vocab: Vec<Value> = UNIGRAM.iter().map(|t| json!([t, 0.0])).collect();
    vocab.extend(pieces.into_iter().map(|(t, s)| json!([t, s])));
    value["model"]["vocab"] = json!(vocab);
    value["model"]["unk_id"] = json!(2);
    value["added_tokens"] = UNIGRAM.iter().enumerate().map(|(i, t)| added_token(i as u64, t)).collect();
    let library = from_value(&value).map_err(TextError::library)?;
    let special = SpecialTokens { pad: Some(0), eos: Some(1), unk: Some(2), ..SpecialTokens::default() };
    Tokenizer::assemble(library, special, None, None)
}

/// The most frequent words; of equally frequent ones those that come first in the alphabet.
fn words(options: &TrainOptions, reader: &mut Reader<impl Documents, impl Progress>) -> Result<Tokenizer> {
    let frame = super::words::frame()?;
    let pre = frame.get_pre_tokenizer().ok_or_else(|| TextError::library("words without a pre-tokenizer"))?;
    let counts =
        count_words(reader, &tokenizers::normalizers::NormalizerWrapper::from(tokenizers::normalizers::NFC), pre)?;
    reader.learning()?;
    let mut counts: Vec<(String, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|c| std::cmp::Reverse(c.1));
    let special = |word: &String| super::words::SPECIAL.contains(&word.as_str());
    let most = options.vocab_size - super::words::SPECIAL.len();
    super::words::tokenizer(counts.into_iter().map(|c| c.0).filter(|w| !special(w)).take(most))
}

/// How often each word occurs; in the order of the alphabet, so that sums over them have one order.
fn count_words(
    reader: &mut Reader<impl Documents, impl Progress>,
    normalizer: &impl tokenizers::Normalizer,
    pre: &(impl PreTokenizer + Sync),
) -> Result<BTreeMap<String, u64>> {
    // A batch of pieces at a time, counted in parallel.
    let mut words: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        let batch: Vec<String> = reader.by_ref().take(256).collect();
        if batch.is_empty() {
            break;
        }
        let counted: Result<Vec<HashMap<String, u64>>> = batch
            .par_iter()
            .map(|text| {
                let mut counts: HashMap<String, u64> = HashMap::new();
                for word in normalized_words(text, normalizer, pre).map_err(TextError::library)? {
                    *counts.entry(word).or_default() += 1;
                }
                Ok(counts)
            })
            .collect();
        for (word, n) in counted?.into_iter().flatten() {
            *words.entry(word).or_default() += n;
        }
    }
    Ok(words)
}

fn unigram_json(vocab: Value, unk: usize) -> Value {
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    // Line ends are words of their own, so that no piece crosses one.
    let lines = json!({"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [lines, metaspace.clone()]},
        "post_processor": null,
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": unk, "vocab": vocab, "byte_fallback": false},
    })
}

trait Documents: Iterator<Item = Result<String>> + Send {}
impl<T: Iterator<Item = Result<String>> + Send> Documents for T {}
trait Progress: FnMut(TrainProgress) + Send {}
impl<T: FnMut(TrainProgress) + Send> Progress for T {}
