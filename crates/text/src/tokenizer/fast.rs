//! A shorter way to the same ids for the two commonest tokenizers.
//!
//! The library builds, for every text, a table that aligns each normalised character with the original. Training needs
//! ids only. Here a text is cut at places where the tokenizer provably forgets what came before, and the ids of each
//! piece come from a table of pieces seen before, or from the library itself. So the ids are the library's ids, always;
//! only the bookkeeping is skipped.
//!
//! - **Byte-level BPE** with GPT-2's pattern: pieces are exactly the pattern's matches, found by hand with the character
//!   classes of the same regular-expression library. No match looks behind, and none continues from a non-space
//!   character into a white-space one, so between the two a text may also be cut for working in parallel.
//! - **BERT** (its normaliser and pre-tokenizer): every step works character by character except accent stripping,
//!   which decomposes within a combining sequence; white space and, once padded with spaces, Chinese characters end
//!   such sequences and words alike.
//!
//! Added tokens that contain or swallow white space, or that look at their neighbours, rule the short way out.

use crate::error::{Result, TextError};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Model, Tokenizer};

/// Texts longer than this are cut and worked on in parallel.
const CHUNK: usize = 1 << 17;
/// Longer pieces are not remembered.
const MAX_PIECE: usize = 64;
/// A thread's table is emptied when it holds this many pieces.
const MAX_PIECES: usize = 1 << 18;

enum Mode {
    ByteLevel,
    Bert { chinese: bool },
}

pub(super) struct Fast {
    id: u64,
    mode: Mode,
    /// Added tokens as they occur in a text; a chunk with one of them goes to the library as a whole.
    added: Vec<memchr::memmem::Finder<'static>>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Fast {
    /// The short way for this tokenizer, if it is one of the two kinds.
    pub(super) fn of(library: &Tokenizer) -> Option<Self> {
        let mode = match (library.get_normalizer(), library.get_pre_tokenizer()?, library.get_model()) {
            (None, PreTokenizerWrapper::ByteLevel(p), ModelWrapper::BPE(m))
                if !p.add_prefix_space && p.use_regex && m.dropout.unwrap_or(0.0) == 0.0 =>
            {
                Mode::ByteLevel
            }
            (
                Some(NormalizerWrapper::BertNormalizer(n)),
                PreTokenizerWrapper::BertPreTokenizer(_),
                ModelWrapper::WordPiece(_),
            ) => Mode::Bert { chinese: n.handle_chinese_chars },
            _ => return None,
        };
        let tokens = library.get_added_tokens_decoder();
        let plain = |c: &str| !c.is_empty() && c.is_ascii() && !c.bytes().any(|b| b.is_ascii_whitespace() || b < b' ');
        if tokens.values().any(|t| t.rstrip || t.single_word || !plain(&t.content)) || tokens.len() > 64 {
            return None;
        }
        // BERT's pieces go through the library, which finds added tokens in them itself.
        let added = match mode {
            Mode::ByteLevel => tokens.values().map(|t| memchr::memmem::Finder::new(&t.content).into_owned()).collect(),
            Mode::Bert { .. } => Vec::new(),
        };
        Some(Fast { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), mode, added })
    }

    pub(super) fn encode(&self, library: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        if text.len() <= CHUNK {
            let mut ids = Vec::with_capacity(text.len() / 3);
            self.chunk(library, text, &mut ids)?;
            return Ok(ids);
        }
        let chunks = cut(text, CHUNK);
        let parts: Result<Vec<Vec<u32>>> = chunks
            .par_iter()
            .map(|chunk| {
                let mut ids = Vec::with_capacity(chunk.len() / 3);
                self.chunk(library, chunk, &mut ids)?;
                Ok(ids)
            })
            .collect();
        Ok(parts?.concat())
    }

    fn chunk(&self, library: &Tokenizer, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if self.added.iter().any(|f| f.find(text.as_bytes()).is_some()) {
            ids.extend(library.encode_fast(text, false).map_err(TextError::library)?.get_ids());
            return Ok(());
        }
        PIECES.with_borrow_mut(|pieces| {
            if pieces.owner != self.id {
                *pieces = Pieces { owner: self.id, ..Pieces::default() };
            }
            match self.mode {
                Mode::ByteLevel => {
                    let mut at = 0;
                    let mut spelled = String::new();
                    while at < text.len() {
                        let end = gpt2_piece(text, at);
                        pieces.ids(&text[at..end], ids, |piece, out| {
                            spelled.clear();
                            spelled.extend(piece.bytes().map(|b| BYTE_CHARS[b as usize]));
                            let tokens = library.get_model().tokenize(&spelled).map_err(TextError::library)?;
                            out.extend(tokens.iter().map(|t| t.id));
                            Ok(())
                        })?;
                        at = end;
                    }
                }
                Mode::Bert { chinese } => {
                    let mut at = 0;
                    while at < text.len() {
                        let end = bert_piece(text, at, chinese);
                        let piece = text[at..end].trim_start_matches([' ', '\t', '\n', '\r']);
                        if !piece.is_empty() {
                            pieces.ids(piece, ids, |piece, out| {
                                let encoding = library.encode_fast(piece, false).map_err(TextError::library)?;
                                out.extend(encoding.get_ids());
                                Ok(())
                            })?;
                        }
                        at = end;
                    }
                }
            }
            Ok(())
        })
    }
}

/// Chunks of about `size` bytes, cut between a character that is not white space and one that is.
fn cut(text: &str, size: usize) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut chunks = Vec::with_capacity(text.len() / size + 1);
    let mut start = 0;
    while text.len() - start > size {
        let from = start + size;
        let safe = |&i: &usize| {
            matches!(bytes[i], b' ' | b'\n' | b'\t' | b'\r')
                && text[..i].chars().next_back().is_some_and(|c| class(c) != Class::Space)
        };
        let Some(at) = (from..bytes.len()).find(safe) else { break };
        chunks.push(&text[start..at]);
        start = at;
    }
    chunks.push(&text[start..]);
    chunks
}

/// The characters by which byte-level BPE spells the 256 bytes (GPT-2's `bytes_to_unicode`).
pub(super) static BYTE_CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    std::array::from_fn(|b| {
        let b = b as u32;
        let code = if printable(b) {
            b
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
});

thread_local! {
    static PIECES: RefCell<Pieces> = RefCell::default();
}

/// A thread's table of pieces: key bytes to a range of `pool`.
#[derive(Default)]
struct Pieces {
    owner: u64,
    table: HashMap<Box<str>, (u32, u32), BuildHasherDefault<PieceHasher>>,
    pool: Vec<u32>,
}

impl Pieces {
    fn ids(
        &mut self,
        piece: &str,
        out: &mut Vec<u32>,
        miss: impl FnOnce(&str, &mut Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        if let Some(&(start, end)) = self.table.get(piece) {
            out.extend_from_slice(&self.pool[start as usize..end as usize]);
            return Ok(());
        }
        let from = out.len();
        miss(piece, out)?;
        if piece.len() <= MAX_PIECE {
            if self.table.len() >= MAX_PIECES {
                self.table.clear();
                self.pool.clear();
            }
            let start = self.pool.len() as u32;
            self.pool.extend_from_slice(&out[from..]);
            self.table.insert(piece.into(), (start, self.pool.len() as u32));
        }
        Ok(())
    }
}

/// Eight bytes at a time, multiply and fold: the keys are short and the table is bounded.
#[derive(Default)]
struct PieceHasher(u64);

impl Hasher for PieceHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0u8; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let product =
                (u64::from_le_bytes(word) ^ self.0 ^ 0x9e37_79b9_7f4a_7c15) as u128 * 0xd6e8_feb8_6659_fd93u128;
            self.0 = product as u64 ^ (product >> 64) as u64;
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Other,
    Letter,
    Number,
    Space,
}

/// The classes of GPT-2's pattern for the Basic Multilingual Plane, and ranges above it.
struct Classes {
    low: Vec<Class>,
    high: Vec<(u32, u32, Class)>,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(|| {
    let mut classes = Classes { low: vec![Class::Other; 0x10000], high: Vec::new() };
    for (pattern, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)] {
        let hir = regex_syntax::parse(pattern).expect("a constant pattern");
        if let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(set)) = hir.kind() {
            for range in set.ranges() {
                let (start, end) = (range.start() as u32, range.end() as u32);
                for c in start..=end.min(0xffff) {
                    classes.low[c as usize] = class;
                }
                if end > 0xffff {
                    classes.high.push((start.max(0x10000), end, class));
                }
            }
        }
    }
    classes.high.sort_by_key(|r| r.0);
    classes
});

fn class(c: char) -> Class {
    let (classes, c) = (&*CLASSES, c as u32);
    if let Some(&class) = classes.low.get(c as usize) {
        return class;
    }
    let i = classes.high.partition_point(|r| r.0 <= c);
    match i.checked_sub(1).map(|i| classes.high[i]) {
        Some((_, end, class)) if c <= end => class,
        _ => Class::Other,
    }
}

/// The end of the match of GPT-2's pattern that starts at `at`:
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
pub(super) fn gpt2_piece(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    if bytes[at] == b'\'' {
        match bytes[at + 1..] {
            [b's' | b't' | b'm' | b'd', ..] => return at + 2,
            [b'r' | b'v', b'e', ..] | [b'l', b'l', ..] => return at + 3,
            _ => {}
        }
    }
    let from = at + usize::from(bytes[at] == b' ');
    if let Some(first) = text[from..].chars().next() {
        let kind = class(first);
        if kind != Class::Space {
            let rest = text[from..].char_indices().find(|&(_, c)| class(c) != kind);
            return rest.map_or(text.len(), |(i, _)| from + i);
        }
    }
    // White space: all of it at the end of the text; otherwise the last character is left for what follows, unless it
    // is the only one.
    let mut last = at;
    for (i, c) in text[at..].char_indices() {
        if class(c) != Class::Space {
            return if last > at { last } else { at + i };
        }
        last = at + i;
    }
    text.len()
}

/// The end of a piece that BERT's tokenizer treats by itself: white space and what follows up to the next white space or
/// Chinese character; or one Chinese character.
fn bert_piece(text: &str, at: usize, chinese: bool) -> usize {
    let mut started = false;
    for (i, c) in text[at..].char_indices() {
        let space = matches!(c, ' ' | '\t' | '\n' | '\r');
        if chinese && !c.is_ascii() && is_chinese(c) {
            return if started { at + i } else { at + i + c.len_utf8() };
        }
        if space && started {
            return at + i;
        }
        started |= !space;
    }
    text.len()
}

/// Characters that BERT's normaliser surely puts spaces around (it also does for rarer ones; cutting less is safe).
fn is_chinese(c: char) -> bool {
    matches!(c as u32, 0x4e00..=0x9fff | 0x3400..=0x4dbf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::PreTokenizer;

    /// The library's own pieces of a text, spelled in byte characters.
    fn reference(text: &str) -> Vec<String> {
        let pre = tokenizers::pre_tokenizers::byte_level::ByteLevel::new(false, true, true);
        let mut s = tokenizers::PreTokenizedString::from(text);
        pre.pre_tokenize(&mut s).unwrap();
        let splits = s.get_splits(tokenizers::OffsetReferential::Normalized, tokenizers::OffsetType::Byte);
        splits.into_iter().map(|(piece, _, _)| piece.to_owned()).collect()
    }

    fn ours(text: &str) -> Vec<String> {
        let (mut at, mut pieces) = (0, Vec::new());
        while at < text.len() {
            let end = gpt2_piece(text, at);
            pieces.push(text[at..end].bytes().map(|b| BYTE_CHARS[b as usize]).collect());
            at = end;
        }
        pieces
    }

    #[test]
    fn every_character_is_in_the_class_that_the_pattern_gives_it() {
        // One character between a letter, a digit and a symbol tells its class; every scalar value, 4096 at a time.
        let all: Vec<char> = (0..=0x10ffff).filter_map(char::from_u32).collect();
        for block in all.chunks(4096) {
            let text: String = block.iter().flat_map(|&c| ['x', c, '1', c, '-', c, ' ', c, ' ']).collect();
            assert_eq!(ours(&text), reference(&text), "block from {:?}", block[0]);
        }
    }

    proptest! {
        #[test]
        fn ids_are_the_librarys_whole_or_cut(
            text in "([a-zA-Z é中文 \t\n.,!'0-9\u{301}\u{3000}]|\r\n|<\\|endoftext\\|>|\\[MASK\\]|\\[SEP\\] |\\PC){0,80}",
            size in 1usize..20,
        ) {
            for name in ["tiny_gpt2", "tiny_bert", "tiny_bert_cased"] {
                let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
                let tokenizer = crate::Tokenizer::open(folder).unwrap();
                let fast = tokenizer.inner.fast.as_ref().expect("the short way is open to this tokenizer");
                let library = tokenizer.library();
                let expected = library.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
                prop_assert_eq!(&fast.encode(library, &text).unwrap(), &expected);
                let mut joined = Vec::new();
                for chunk in cut(&text, size) {
                    fast.chunk(library, chunk, &mut joined).unwrap();
                }
                prop_assert_eq!(&joined, &expected);
            }
        }

        #[test]
        fn pieces_are_the_patterns_matches(text in "([a-z'é中 \t\n0-9.,!²\u{a0}\u{3000}]|'(s|t|re|ve|m|ll|d)|\\PC){0,60}") {
            prop_assert_eq!(ours(&text), reference(&text));
        }
    }
}
