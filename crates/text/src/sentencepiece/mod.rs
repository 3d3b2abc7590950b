//! SentencePiece's own model files (`.spm`, `.model`): Unigram models (Kudo 2018, "Subword regularization") with their
//! normaliser, as the C++ library applies them.
//!
//! Kudo, Richardson 2018, "SentencePiece: a simple and language independent subword tokenizer and detokenizer for neural
//! text processing". The rounding of scores (sums in f32, compared in f64) follows the library's, so that ties and near
//! ties fall alike.

mod normalizer;
mod proto;
#[cfg(test)]
mod tests;
mod trie;

pub(crate) use normalizer::SPACE;

use crate::error::{Result, TextError};
use normalizer::Normalizer;
use proto::{Fields, Malformed, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use trie::Trie;

/// What an unknown character costs more than the least likely piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// What a piece is for; the numbers are those of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

#[derive(Debug, Clone)]
struct Piece {
    text: String,
    score: f32,
    kind: Kind,
}

/// A piece of an encoded text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part<'t> {
    /// Its spelling; of what the model does not know, the text itself.
    pub text: Cow<'t, str>,
    /// Its number in the model; the unknown piece's for what the model does not know.
    pub id: u32,
    /// Bytes of the text that it stands for.
    pub range: Range<usize>,
}

/// A text as the model reads it.
#[derive(Debug)]
pub(crate) struct Prepared {
    text: String,
    from: Vec<usize>,
}

/// A Unigram model with its normaliser.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    pieces: Vec<Piece>,
    /// Normal, user-defined and unused pieces.
    trie: Trie,
    by_text: HashMap<String, u32>,
    normalizer: Normalizer,
    denormalizer: Option<Normalizer>,
    unknown: u32,
    unknown_score: f32,
    byte_fallback: bool,
    /// How the unknown piece is read.
    unknown_surface: String,
}

impl SentencePiece {
    /// Reads a model; `path` is for messages.
    ///
    /// # Errors
    /// [`TextError::TokenizerFile`] for what is no model, or one of another type than Unigram.
    pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let expected = "a SentencePiece model";
        if bytes.is_empty() {
            return Err(TextError::file(path, "content", "an empty file", expected));
        }
        let bad = |field: &str| {
            let field = field.to_owned();
            move |e: Malformed| TextError::file(path, format!("{field}, byte {}", e.at), e.found, expected)
        };
        let mut pieces = Vec::new();
        let (mut normalizer, mut denormalizer) = (Normalizer::default(), None);
        let (mut model_type, mut byte_fallback, mut surface) = (1, false, " \u{2047} ".to_owned());
        for field in Fields::new(bytes) {
            match field.map_err(bad("content"))? {
                (1, Value::Bytes(b)) => {
                    let field = format!("pieces[{}]", pieces.len());
                    pieces.push(piece(b).map_err(bad(&field))?);
                }
                (2, Value::Bytes(b)) => {
                    for field in Fields::new(b) {
                        match field.map_err(bad("trainer_spec"))? {
                            (3, Value::Number(n)) => model_type = n,
                            (24, Value::Number(n)) => normalizer.space_behind = n != 0,
                            (35, Value::Number(n)) => byte_fallback = n != 0,
                            (44, Value::Bytes(b)) => surface = String::from_utf8_lossy(b).into_owned(),
                            _ => {}
                        }
                    }
                }
                (3, Value::Bytes(b)) => {
                    let space_behind = normalizer.space_behind;
                    normalizer = Normalizer::read(b).map_err(bad("normalizer_spec"))?;
                    normalizer.space_behind = space_behind;
                }
                (5, Value::Bytes(b)) => {
                    let spec = Normalizer::read(b).map_err(bad("denormalizer_spec"))?;
                    // Without rules of its own there is nothing to undo.
                    denormalizer = spec.has_table().then_some(spec);
                }
                _ => {}
            }
        }
        if model_type != 1 {
            let found = match model_type {
                2 => "BPE (2)".to_owned(),
                3 => "WORD (3)".to_owned(),
                4 => "CHAR (4)".to_owned(),
                n => n.to_string(),
            };
            return Err(TextError::file(path, "trainer_spec.model_type", found, "UNIGRAM (1)"));
        }
        Self::assemble(pieces, normalizer, denormalizer, byte_fallback, surface)
            .map_err(|(field, found, expected)| TextError::file(path, field, found, expected))
    }

    fn assemble(
        pieces: Vec<Piece>,
        mut normalizer: Normalizer,
        denormalizer: Option<Normalizer>,
        byte_fallback: bool,
        unknown_surface: String,
    ) -> Result<Self, (String, String, &'static str)> {
        let mut by_text = HashMap::with_capacity(pieces.len());
        let mut unknown = None;
        for (i, piece) in pieces.iter().enumerate() {
            let field = || format!("pieces[{i}]");
            if piece.text.is_empty() {
                return Err((field(), "an empty piece".into(), "text"));
            }
            if !piece.score.is_finite() {
                return Err((field(), piece.score.to_string(), "a finite score"));
            }
            if by_text.insert(piece.text.clone(), i as u32).is_some() {
                return Err((field(), format!("{:?} again", piece.text), "pieces that differ"));
            }
            if piece.kind == Kind::Unknown && unknown.replace(i as u32).is_some() {
                return Err((field(), "a second unknown piece".into(), "one of them"));
            }
        }
        let unknown =
            unknown.ok_or_else(|| ("pieces".into(), "none that stands for the unknown".into(), "one that does"))?;
        let of = |wanted: &'static [Kind]| {
            pieces.iter().zip(0..).filter(move |(p, _)| wanted.contains(&p.kind)).map(|(p, i)| (p.text.as_str(), i))
        };
        let least = pieces.iter().filter(|p| p.kind == Kind::Normal).map(|p| p.score).fold(f32::MAX, f32::min);
        let trie = Trie::new(of(&[Kind::Normal, Kind::UserDefined, Kind::Unused]));
        normalizer.kept = of(&[Kind::UserDefined]).next().is_some().then(|| Trie::new(of(&[Kind::UserDefined])));
        let unknown_score = least - UNKNOWN_PENALTY;
        Ok(SentencePiece {
            trie,
            by_text,
            normalizer,
            denormalizer,
            unknown,
            unknown_score,
            byte_fallback,
            unknown_surface,
            pieces,
        })
    }

    /// The pieces in the order of their numbers: their spelling, and whether texts are encoded with them.
    pub(crate) fn pieces(&self) -> impl ExactSizeIterator<Item = (&str, bool)> {
        self.pieces.iter().map(|p| (p.text.as_str(), matches!(p.kind, Kind::Normal | Kind::UserDefined | Kind::Byte)))
    }

    /// The unknown piece's number.
    pub(crate) fn unknown(&self) -> u32 {
        self.unknown
    }

    /// Replaces characters and spells spaces.
    pub(crate) fn prepare(&self, text: &str) -> Prepared {
        let (text, from) = self.normalizer.run(text);
        Prepared { text, from }
    }

    /// The likeliest pieces of a text. Unknown characters next to each other are one part.
    pub(crate) fn encode<'t>(&self, prepared: &'t Prepared) -> Vec<Part<'t>> {
        let Prepared { text, from } = prepared;
        let mut parts: Vec<Part<'t>> = Vec::new();
        let mut unknown_before = false;
        for (range, id) in self.cut(text) {
            let is_unknown = id == self.unknown;
            let origin = from[range.start]..from[range.end];
            if is_unknown && self.byte_fallback {
                for byte in text[range].bytes() {
                    let piece = format!("<0x{byte:02X}>");
                    let id = self.by_text.get(&piece).copied().unwrap_or(self.unknown);
                    parts.push(Part { text: Cow::Owned(piece), id, range: origin.clone() });
                }
            } else if is_unknown
                && unknown_before
                && let Some(last) = parts.last_mut()
            {
                // The parts lie next to each other.
                let start = range.start - last.text.len();
                last.text = Cow::Borrowed(&text[start..range.end]);
                last.range.end = origin.end;
            } else {
                parts.push(Part { text: Cow::Borrowed(&text[range]), id, range: origin });
            }
            unknown_before = is_unknown;
        }
        parts
    }

    /// Viterbi's search over all ways of cutting a prepared text.
    fn cut(&self, text: &str) -> Vec<(Range<usize>, u32)> {
        #[derive(Clone, Copy)]
        struct Best {
            id: u32,
            score: f32,
            /// Where the last piece begins; `usize::MAX` where nothing ends.
            start: usize,
        }
        let none = Best { id: 0, score: 0.0, start: usize::MAX };
        let mut ends = vec![none; text.len() + 1];
        for (start, c) in text.char_indices() {
            let here = ends[start].score;
            let one = c.len_utf8();
            let mut single = false;
            for (length, id) in self.trie.prefixes(&text.as_bytes()[start..]) {
                let piece = &self.pieces[id as usize];
                let score = match piece.kind {
                    Kind::Unused => continue,
                    // The library's highest score starts from the smallest positive number, so that no score below 0
                    // raises it: this is what its formula comes to.
                    Kind::UserDefined => length as f64 * f64::from(f32::MIN_POSITIVE) - 0.1,
                    _ => f64::from(piece.score),
                };
                let candidate = score + f64::from(here);
                let end = &mut ends[start + length];
                if end.start == usize::MAX || candidate > f64::from(end.score) {
                    *end = Best { id, score: candidate as f32, start };
                }
                single |= length == one;
            }
            if !single {
                let candidate = self.unknown_score + here;
                let end = &mut ends[start + one];
                if end.start == usize::MAX || candidate > end.score {
                    *end = Best { id: self.unknown, score: candidate, start };
                }
            }
        }
        let (mut at, mut cut) = (text.len(), Vec::new());
        while at > 0 {
            let Best { id, start, .. } = ends[at];
            cut.push((start..at, id));
            at = start;
        }
        cut.reverse();
        cut
    }

    /// The text of pieces by their spelling; what is none of the model's stands for itself.
    pub(crate) fn decode(&self, pieces: &[&str]) -> String {
        let mut out = String::new();
        let (mut at_start, mut space_seen) = (true, false);
        let mut bytes: Vec<u8> = Vec::new();
        for &piece in pieces {
            let id = self.by_text.get(piece).copied();
            let kind = id.map_or(Kind::Unknown, |i| self.pieces[i as usize].kind);
            if kind == Kind::Byte
                && let Some(byte) = byte_of(piece)
            {
                bytes.push(byte);
                continue;
            }
            flush(&mut bytes, &mut out);
            at_start &= !space_seen && out.is_empty();
            space_seen = false;
            match kind {
                Kind::Control => {}
                Kind::Unknown if id.is_some() => out += &self.unknown_surface,
                Kind::Unknown => out += piece,
                _ => {
                    let n = &self.normalizer;
                    let mut rest = piece;
                    if at_start
                        && (n.dummy_prefix || n.remove_extra_spaces)
                        && let Some(r) = piece.strip_prefix(SPACE)
                    {
                        rest = r;
                        // Where extra spaces are removed, all of the leading ones are.
                        space_seen = !n.remove_extra_spaces;
                    }
                    out += &rest.replace(SPACE, " ");
                }
            }
        }
        flush(&mut bytes, &mut out);
        match &self.denormalizer {
            Some(d) => d.run(&out).0,
            None => out,
        }
    }
}

/// The byte of `<0x0A>`.
fn byte_of(piece: &str) -> Option<u8> {
    u8::from_str_radix(piece.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

/// Bytes become text; those that are none become U+FFFD, one each.
fn flush(bytes: &mut Vec<u8>, out: &mut String) {
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                break;
            }
            Err(e) => {
                let (valid, bad) = rest.split_at(e.valid_up_to());
                out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                out.push(char::REPLACEMENT_CHARACTER);
                rest = &bad[1..];
            }
        }
    }
    bytes.clear();
}

fn piece(bytes: &[u8]) -> Result<Piece, Malformed> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    for field in Fields::new(bytes) {
        match field? {
            (1, Value::Bytes(b)) => {
                let text = std::str::from_utf8(b).map_err(|e| Malformed { at: 0, found: e.to_string() })?;
                text.clone_into(&mut piece.text);
            }
            (2, Value::Four(b)) => piece.score = f32::from_le_bytes(b),
            (3, Value::Number(n)) => {
                piece.kind = match n {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    n => return Err(Malformed { at: 0, found: format!("a piece of type {n}") }),
                }
            }
            _ => {}
        }
    }
    Ok(piece)
}
