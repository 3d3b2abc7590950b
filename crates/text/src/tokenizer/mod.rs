//! Text to ids and back.

mod bpe;
mod fast;
mod gaps;
mod marian;
mod open;
mod save;
mod spec;
mod stream;
mod train;
mod unigram;
mod words;

pub use spec::TokenizerSpec;
pub use stream::StreamDecoder;
pub use train::{TrainKind, TrainOptions, TrainProgress};

use crate::error::{Result, TextError};
use fast::Fast;
use gaps::Gaps;
use marian::{Language, Marian};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::ModelWrapper;

/// The ids of a tokenizer's special tokens; `None` where it has no such token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of sequence.
    pub bos: Option<u32>,
    /// End of sequence (GPT-2: `<|endoftext|>`).
    pub eos: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Stands for what the vocabulary cannot spell.
    pub unk: Option<u32>,
    /// BERT's first token.
    pub cls: Option<u32>,
    /// BERT's separator.
    pub sep: Option<u32>,
    /// The token that hides a word in masked language modelling.
    pub mask: Option<u32>,
}

/// The family of a vocabulary; decides where words start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerKind {
    /// Byte-pair encoding over bytes (GPT-2; the built-in bytes too).
    ByteLevelBpe,
    /// WordPiece with a continuation prefix (BERT).
    WordPiece,
    /// Unigram language model (SentencePiece).
    Unigram,
    /// Anything else that `tokenizer.json` can describe.
    Other,
}

/// One encoded sequence or pair.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// 0 for the first segment, 1 for the second; as long as `ids`.
    pub token_types: Vec<u32>,
}

/// A tokenizer. Cheap to clone and to share between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    library: tokenizers::Tokenizer,
    special: SpecialTokens,
    kind: TokenizerKind,
    vocab_size: usize,
    /// `tokenizer_class` of the configuration, where it had one.
    class: Option<String>,
    fast: Option<Fast>,
    gaps: Option<Gaps>,
    /// Models of two languages, which then do all encoding and decoding; the library only keeps the vocabulary.
    marian: Option<Marian>,
    /// What adding special tokens puts before and after a single sequence; `None` where that is not so simple.
    wrap: Option<(Vec<u32>, Vec<u32>)>,
    continues: OnceLock<Vec<bool>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("kind", &self.kind()).field("vocab_size", &self.vocab_size()).finish()
    }
}

impl Tokenizer {
    fn assemble(
        mut library: tokenizers::Tokenizer,
        special: SpecialTokens,
        class: Option<String>,
        marian: Option<Marian>,
    ) -> Result<Self> {
        // Cutting and padding are the caller's business; a folder's settings for them would silently lose text.
        library.with_truncation(None).map_err(TextError::library)?;
        library.with_padding(None);
        let vocab_size = library.get_vocab(true).values().max().map_or(0, |&m| m as usize + 1);
        let kind = match library.get_model() {
            ModelWrapper::BPE(_) if matches!(library.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) => {
                TokenizerKind::ByteLevelBpe
            }
            ModelWrapper::WordPiece(_) => TokenizerKind::WordPiece,
            ModelWrapper::Unigram(_) => TokenizerKind::Unigram,
            _ if marian.is_some() => TokenizerKind::Unigram,
            _ => TokenizerKind::Other,
        };
        let wrap = match &marian {
            Some(marian) => Some((Vec::new(), vec![marian.end()])),
            None => wrap_of(&library)?,
        };
        let fast = Fast::of(&library);
        let gaps = Gaps::of(&library);
        let continues = OnceLock::new();
        let inner = Inner { library, special, kind, vocab_size, class, fast, gaps, marian, wrap, continues };
        Ok(Tokenizer { inner: Arc::new(inner) })
    }

    /// Text to ids. With `add_special`, what the tokenizer puts around a single sequence is added (BERT:
    /// `[CLS] ... [SEP]`; GPT-2: nothing; Marian: `</s>` behind it). Where there are models of two languages, the text is in the
    /// source's.
    ///
    /// # Errors
    /// [`TextError::Character`] or [`TextError::Tokenizer`] when the vocabulary cannot spell the text and has no unknown token.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let inner = &*self.inner;
        self.check_text(text)?;
        if let Some(marian) = &inner.marian {
            return Ok(marian.encode(self, text, Language::Source, add_special));
        }
        if let Some(fast) = &inner.fast {
            if !add_special {
                return fast.encode(&inner.library, text);
            }
            if let Some((before, after)) = &inner.wrap {
                let mut ids = before.clone();
                ids.extend(fast.encode(&inner.library, text)?);
                ids.extend(after);
                return Ok(ids);
            }
        }
        let encoding = inner.library.encode_fast(text, add_special).map_err(TextError::library)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode`], for a text in the language that is translated into; another only where the tokenizer has models of
    /// two languages.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_target(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        match &self.inner.marian {
            Some(marian) => Ok(marian.encode(self, text, Language::Target, add_special)),
            None => self.encode(text, add_special),
        }
    }

    /// As [`Tokenizer::encode`], with the bytes of the text that each token stands for; those of tokens that are put around it
    /// are empty.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Vec<(u32, std::ops::Range<usize>)>> {
        self.check_text(text)?;
        if let Some(marian) = &self.inner.marian {
            return Ok(marian.encode_with_offsets(self, text, add_special));
        }
        let encoding = self.inner.library.encode(text, add_special).map_err(TextError::library)?;
        let ids = encoding.get_ids().iter().copied();
        Ok(ids.zip(encoding.get_offsets()).map(|(id, &(from, to))| (id, from..to)).collect())
    }

    /// A pair of texts with special tokens and token types (BERT: `[CLS] a [SEP]` of type 0, `b [SEP]` of type 1).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_pair(&self, a: &str, b: &str) -> Result<Encoded> {
        [a, b].into_iter().try_for_each(|text| self.check_text(text))?;
        if self.inner.marian.is_some() {
            let ids = [self.encode(a, false)?, self.encode(b, true)?].concat();
            return Ok(Encoded { token_types: vec![0; ids.len()], ids });
        }
        let e = self.inner.library.encode_fast((a, b), true).map_err(TextError::library)?;
        Ok(Encoded { ids: e.get_ids().to_vec(), token_types: e.get_type_ids().to_vec() })
    }

    /// Many texts in parallel (on rayon's current pool), in order; the same ids as [`encode`](Self::encode).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T], add_special: bool) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|t| self.encode(t.as_ref(), add_special)).collect()
    }

    /// Ids to text. Bytes that do not form UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TextError::UnknownId`] for an id that the vocabulary does not have.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        for (position, &id) in ids.iter().enumerate() {
            self.check_id(id, position)?;
        }
        if let Some(marian) = &self.inner.marian {
            return Ok(marian.decode(self, ids, skip_special));
        }
        // Some of the library's decoders take no empty list.
        if ids.iter().all(|&id| skip_special && self.is_special(id)) {
            return Ok(String::new());
        }
        self.inner.library.decode(ids, skip_special).map_err(TextError::library)
    }

    fn check_text(&self, text: &str) -> Result<()> {
        self.inner.gaps.as_ref().map_or(Ok(()), |gaps| gaps.check(&self.inner.library, text))
    }

    pub(crate) fn check_id(&self, id: u32, position: usize) -> Result<()> {
        if id as usize >= self.vocab_size() || self.inner.library.id_to_token(id).is_none() {
            return Err(TextError::UnknownId { id, position, vocab_size: self.vocab_size() });
        }
        Ok(())
    }

    /// A decoder that is fed ids one at a time and hands out text as soon as it is complete.
    pub fn stream_decoder(&self, skip_special: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), skip_special)
    }

    /// One more than the highest id: the least number of rows of an embedding for this tokenizer.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The special tokens' ids.
    pub fn special(&self) -> SpecialTokens {
        self.inner.special
    }

    /// The family of the vocabulary.
    pub fn kind(&self) -> TokenizerKind {
        self.inner.kind
    }

    /// The id that separates documents: end of sequence, or the separator for BERT.
    pub fn end_of_text(&self) -> Option<u32> {
        let s = self.inner.special;
        match s.cls {
            Some(_) => s.sep.or(s.eos),
            None => s.eos.or(s.sep),
        }
    }

    /// The tokens put before and after a single sequence; none where that is not so simple.
    pub fn around(&self) -> (&[u32], &[u32]) {
        self.inner.wrap.as_ref().map_or((&[], &[]), |(before, after)| (before, after))
    }

    /// The ids of one word of a text that is given word by word. As elsewhere, byte-level BPE takes it with a space before it, as most
    /// words have one.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_word(&self, word: &str) -> Result<Vec<u32>> {
        match self.kind() {
            TokenizerKind::ByteLevelBpe => self.encode(&format!(" {word}"), false),
            _ => self.encode(word, false),
        }
    }

    /// The token of an id, in the vocabulary's own spelling (`Ġthe`, `##ing`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.library.id_to_token(id)
    }

    /// The id of a token in the vocabulary's own spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.library.token_to_id(token)
    }

    /// Whether an id is a special token (which decoding can skip and masking leaves alone).
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.library.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// Whether a token continues the word before it. WordPiece: it starts with `##`. Byte-level BPE: it starts with
    /// neither white space nor ASCII punctuation. Unigram: it does not start with `▁`. False for special tokens.
    pub fn continues_word(&self, id: u32) -> bool {
        self.inner.continues.get_or_init(|| self.continuations()).get(id as usize).copied().unwrap_or(false)
    }

    fn continuations(&self) -> Vec<bool> {
        let mut table = vec![false; self.vocab_size()];
        for (token, id) in self.inner.library.get_vocab(true) {
            let first = token.chars().next();
            table[id as usize] = !self.is_special(id)
                && match self.kind() {
                    TokenizerKind::WordPiece => token.starts_with("##"),
                    TokenizerKind::ByteLevelBpe => {
                        // `Ġ Ċ č ĉ` spell space, line feed, carriage return and tab.
                        first.is_some_and(|c| !matches!(c, 'Ġ' | 'Ċ' | 'č' | 'ĉ') && !c.is_ascii_punctuation())
                    }
                    _ => first.is_some_and(|c| c != '▁' && !c.is_whitespace()),
                };
        }
        table
    }

    fn marian(&self) -> Option<&Marian> {
        self.inner.marian.as_ref()
    }

    pub(crate) fn library(&self) -> &tokenizers::Tokenizer {
        &self.inner.library
    }

    pub(crate) fn class(&self) -> Option<&str> {
        self.inner.class.as_deref()
    }
}

/// What the post-processor puts around a single sequence, found by looking at one.
fn wrap_of(library: &tokenizers::Tokenizer) -> Result<Option<(Vec<u32>, Vec<u32>)>> {
    let ids = |text: &str, special| library.encode_fast(text, special).map(|e| e.get_ids().to_vec());
    let probe = |text: &str| -> Option<(Vec<u32>, Vec<u32>)> {
        let (bare, full) = (ids(text, false).ok()?, ids(text, true).ok()?);
        if bare.is_empty() {
            return None;
        }
        let at = full.windows(bare.len()).position(|w| w == bare)?;
        Some((full[..at].to_vec(), full[at + bare.len()..].to_vec()))
    };
    // Two probes must agree, so that a template that repeats or reorders its sequence is not mistaken for a wrapper.
    let (a, b) = (probe("a"), probe("b c"));
    Ok(if a == b { a } else { None })
}
