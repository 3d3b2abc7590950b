//! Characters that a vocabulary cannot spell. Most have a token for them or spell bytes; byte-pair encoding without either would leave
//! them out without a word.

use super::fast::BYTE_CHARS;
use crate::error::{Result, TextError};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::ModelWrapper;

/// How a vocabulary with gaps is looked through.
pub(crate) enum Gaps {
    /// It spells bytes, and has these of them.
    Bytes(Box<[bool; 256]>),
    /// It spells characters.
    Characters,
}

impl Gaps {
    /// None of a vocabulary that can spell everything.
    pub fn of(library: &tokenizers::Tokenizer) -> Option<Self> {
        let ModelWrapper::BPE(bpe) = library.get_model() else { return None };
        if bpe.unk_token.is_some() || bpe.byte_fallback {
            return None;
        }
        let bytes =
            matches!(library.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) && library.get_normalizer().is_none();
        if !bytes {
            return Some(Gaps::Characters);
        }
        let known = BYTE_CHARS.map(|c| library.token_to_id(&c.to_string()).is_some());
        (!known.iter().all(|&k| k)).then(|| Gaps::Bytes(Box::new(known)))
    }

    /// # Errors
    /// [`TextError::Character`] for the first character of a text that the vocabulary cannot spell.
    pub fn check(&self, library: &tokenizers::Tokenizer, text: &str) -> Result<()> {
        let encoding = library.encode(text, false).map_err(TextError::library)?;
        let added = library.get_added_vocabulary().get_added_tokens_decoder();
        let mut spelt = vec![false; text.len()];
        for (id, &(from, to)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            // Of a character's bytes some may be known and others not, so that only added tokens vouch for all they cover.
            if matches!(self, Gaps::Characters) || added.contains_key(id) {
                spelt[from..to].fill(true);
            }
        }
        let bad = |(at, c): &(usize, char)| match self {
            _ if spelt[*at] => false,
            Gaps::Bytes(known) => text.as_bytes()[*at..at + c.len_utf8()].iter().any(|&b| !known[b as usize]),
            // Between words, or taken out by what normalises text.
            Gaps::Characters => !c.is_whitespace() && !c.is_control(),
        };
        match text.char_indices().find(bad) {
            None => Ok(()),
            Some((position, character)) => Err(TextError::Character { character, position }),
        }
    }
}
