//! Text from ids as they arrive.

use super::Tokenizer;
use super::fast::BYTE_CHARS;
use crate::error::Result;
use std::collections::HashMap;
use std::sync::LazyLock;
use tokenizers::decoders::DecoderWrapper;

/// Decodes ids one at a time; only complete characters come out. The pieces and what [`finish`](Self::finish) returns,
/// joined, are what [`Tokenizer::decode`] makes of all the ids together.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    seen: usize,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// Byte-level vocabularies: the bytes of a character that is not complete yet.
    Bytes(Vec<u8>),
    /// Others: the ids of the last piece (`known` of them, whose text by themselves is `text`), and those after it.
    Window { ids: Vec<u32>, known: usize, text: String },
}

static CHAR_BYTES: LazyLock<HashMap<char, u8>> =
    LazyLock::new(|| BYTE_CHARS.iter().zip(0..=255).map(|(&c, b)| (c, b)).collect());

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let state = match tokenizer.library().get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => State::Bytes(Vec::new()),
            _ => State::Window { ids: Vec::new(), known: 0, text: String::new() },
        };
        StreamDecoder { tokenizer, skip_special, seen: 0, state }
    }

    /// Takes the next id and returns the text that became complete, which may be empty.
    ///
    /// # Errors
    /// [`crate::TextError::UnknownId`] for an id that the vocabulary does not have; the decoder is then as before.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.tokenizer.check_id(id, self.seen)?;
        self.seen += 1;
        match &mut self.state {
            State::Bytes(pending) => {
                if !(self.skip_special && self.tokenizer.is_special(id)) {
                    let token = self.tokenizer.token(id).unwrap_or_default();
                    let bytes: Option<Vec<u8>> = token.chars().map(|c| CHAR_BYTES.get(&c).copied()).collect();
                    // An added token outside the byte alphabet stands for itself.
                    pending.extend(bytes.unwrap_or_else(|| token.into_bytes()));
                }
                Ok(take_complete(pending))
            }
            State::Window { ids, known, text } => {
                ids.push(id);
                let now = self.tokenizer.decode(ids, self.skip_special)?;
                let Some(new) = now.strip_prefix(text.as_str()).filter(|n| !n.is_empty()) else {
                    return Ok(String::new());
                };
                if now.ends_with(char::REPLACEMENT_CHARACTER) {
                    return Ok(String::new()); // Bytes of an unfinished character, most likely.
                }
                let new = new.to_owned();
                // What came out just now is context enough for what follows: decoders look at most one piece back.
                let last = self.tokenizer.decode(&ids[*known..], self.skip_special)?;
                if last.is_empty() {
                    *text = now;
                } else {
                    ids.drain(..*known);
                    *text = last;
                }
                *known = ids.len();
                Ok(new)
            }
        }
    }

    /// What is left at the end: an unfinished character becomes U+FFFD. The decoder starts afresh.
    ///
    /// # Errors
    /// [`crate::TextError::Tokenizer`] if the library cannot decode what is left.
    pub fn finish(&mut self) -> Result<String> {
        self.seen = 0;
        match &mut self.state {
            State::Bytes(pending) => Ok(String::from_utf8_lossy(&std::mem::take(pending)).into_owned()),
            State::Window { ids, known, text } => {
                *known = 0;
                let (ids, text) = (std::mem::take(ids), std::mem::take(text));
                let now = self.tokenizer.decode(&ids, self.skip_special)?;
                Ok(now.strip_prefix(text.as_str()).unwrap_or_default().to_owned())
            }
        }
    }
}

/// Moves whole characters out of `pending`; bytes that can never become one turn into U+FFFD, as
/// `String::from_utf8_lossy` would have it for the whole.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < pending.len() {
        match std::str::from_utf8(&pending[at..]) {
            Ok(text) => {
                out.push_str(text);
                at = pending.len();
            }
            Err(e) => {
                let valid = at + e.valid_up_to();
                out.push_str(std::str::from_utf8(&pending[at..valid]).unwrap_or_default());
                at = valid;
                match e.error_len() {
                    Some(bad) => {
                        out.push(char::REPLACEMENT_CHARACTER);
                        at += bad;
                    }
                    None => break,
                }
            }
        }
    }
    pending.drain(..at);
    out
}
