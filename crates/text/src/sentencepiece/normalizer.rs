//! How SentencePiece prepares a text: characters are replaced by a compiled table (NFKC and more), white space is
//! joined and spelled `▁`, and every byte remembers where it came from.
//!
//! The `tokenizers` library applies the same table grapheme by grapheme, SentencePiece itself wherever its longest rule
//! fits; this does as SentencePiece.

use super::proto::{Fields, Malformed, Value};
use super::trie::Trie;

/// SentencePiece's spelling of a space.
pub(crate) const SPACE: &str = "\u{2581}";

/// A `NormalizerSpec`.
#[derive(Debug)]
pub(super) struct Normalizer {
    table: Option<Table>,
    pub(super) dummy_prefix: bool,
    pub(super) remove_extra_spaces: bool,
    pub(super) escape_spaces: bool,
    /// The dummy prefix becomes a suffix.
    pub(super) space_behind: bool,
    /// Strings that stay as they are.
    pub(super) kept: Option<Trie>,
}

impl Default for Normalizer {
    fn default() -> Self {
        Normalizer {
            table: None,
            dummy_prefix: true,
            remove_extra_spaces: true,
            escape_spaces: true,
            space_behind: false,
            kept: None,
        }
    }
}

/// A double array (Yata et al. 2007, as the library `darts-clone` lays it out) that leads from strings to their
/// replacements, which lie behind one another and end with a zero.
#[derive(Debug)]
struct Table {
    units: Vec<u32>,
    replacements: String,
}

impl Table {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| format!("{} bytes", bytes.len()))?;
        let size = u32::from_le_bytes(*size) as usize;
        if !size.is_multiple_of(4) || size > rest.len() {
            return Err(format!("a table of {size} bytes where {} are left", rest.len()));
        }
        let (units, replacements) = rest.split_at(size);
        let (units, _) = units.as_chunks::<4>();
        let replacements = std::str::from_utf8(replacements).map_err(|e| e.to_string())?.to_owned();
        Ok(Table { units: units.iter().map(|&u| u32::from_le_bytes(u)).collect(), replacements })
    }

    /// The longest string with a replacement that `text` begins with: its length, and the replacement.
    fn longest<'t>(&'t self, text: &[u8]) -> Option<(usize, &'t str)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut place = offset(*self.units.first()?);
        let mut found = None;
        for (i, &byte) in text.iter().enumerate() {
            place ^= usize::from(byte);
            let Some(&unit) = self.units.get(place).filter(|&&u| u & 0x8000_00ff == u32::from(byte)) else { break };
            place ^= offset(unit);
            if unit >> 8 & 1 == 1
                && let Some(leaf) = self.units.get(place)
            {
                found = Some((i + 1, (leaf & 0x7fff_ffff) as usize));
            }
        }
        let (length, at) = found?;
        let rest = self.replacements.get(at..)?;
        Some((length, rest.split('\0').next().unwrap_or_default()))
    }
}

impl Normalizer {
    /// Reads a `NormalizerSpec`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut n = Normalizer::default();
        for field in Fields::new(bytes) {
            match field? {
                (2, Value::Bytes(b)) if !b.is_empty() => {
                    let table = Table::read(b);
                    n.table = Some(
                        table.map_err(|found| Malformed { at: 0, found: format!("precompiled_charsmap: {found}") })?,
                    );
                }
                (3, Value::Number(v)) => n.dummy_prefix = v != 0,
                (4, Value::Number(v)) => n.remove_extra_spaces = v != 0,
                (5, Value::Number(v)) => n.escape_spaces = v != 0,
                _ => {}
            }
        }
        Ok(n)
    }

    /// Whether it replaces anything.
    pub(super) fn has_table(&self) -> bool {
        self.table.is_some()
    }

    /// What the beginning of a text becomes, and how many of its bytes that takes.
    fn prefix<'t>(&'t self, text: &'t str) -> (&'t str, usize) {
        if let Some((n, _)) = self.kept.as_ref().and_then(|k| k.prefixes(text.as_bytes()).last()) {
            return (&text[..n], n);
        }
        if let Some((n, replacement)) = self.table.as_ref().and_then(|t| t.longest(text.as_bytes())) {
            // A rule that ends inside a character is none of SentencePiece's.
            if text.is_char_boundary(n) {
                return (replacement, n);
            }
        }
        let n = text.chars().next().map_or(0, char::len_utf8);
        (&text[..n], n)
    }

    /// The prepared text; for each of its bytes, and for its end, the byte of `text` that it stands for.
    pub(super) fn run(&self, text: &str) -> (String, Vec<usize>) {
        let (mut out, mut from) = (String::with_capacity(text.len() + 8), Vec::with_capacity(text.len() + 8));
        let space = if self.escape_spaces { SPACE } else { " " };
        let mut at = 0;
        if self.remove_extra_spaces {
            while let (" ", n) = self.prefix(&text[at..]) {
                at += n;
            }
        }
        if at == text.len() {
            return (out, vec![at]);
        }
        let push = |out: &mut String, from: &mut Vec<usize>, piece: &str, at: usize| {
            out.push_str(piece);
            from.resize(out.len(), at);
        };
        if self.dummy_prefix && !self.space_behind {
            push(&mut out, &mut from, space, at);
        }
        let mut after_space = self.remove_extra_spaces;
        while at < text.len() {
            let (mut piece, n) = self.prefix(&text[at..]);
            if after_space {
                piece = piece.trim_start_matches(' ');
            }
            if !piece.is_empty() {
                for (i, part) in piece.split(' ').enumerate() {
                    if i > 0 {
                        push(&mut out, &mut from, space, at);
                    }
                    push(&mut out, &mut from, part, at);
                }
                after_space = piece.ends_with(' ');
            }
            at += n;
            after_space &= self.remove_extra_spaces;
        }
        if self.remove_extra_spaces {
            while out.ends_with(space) {
                out.truncate(out.len() - space.len());
                at = from[out.len()];
                from.truncate(out.len());
            }
        }
        if self.dummy_prefix && self.space_behind {
            push(&mut out, &mut from, space, at);
        }
        from.push(at);
        (out, from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_are_joined_and_bytes_know_their_origin() {
        let n = Normalizer::default();
        let (text, from) = n.run("  a  bc ");
        assert_eq!(text, "▁a▁bc");
        assert_eq!(from, [2, 2, 2, 2, 3, 3, 3, 5, 6, 7]);
        assert_eq!(n.run("   ").0, "");
        assert_eq!(n.run("").0, "");
        let plain = Normalizer { dummy_prefix: false, remove_extra_spaces: false, ..Normalizer::default() };
        assert_eq!(plain.run(" a  b ").0, "▁a▁▁b▁");
        let behind = Normalizer { space_behind: true, escape_spaces: false, ..Normalizer::default() };
        assert_eq!(behind.run(" a b ").0, "a b ");
        let kept = Normalizer { kept: Some(Trie::new([("b c", 0)])), ..Normalizer::default() };
        assert_eq!(kept.run("a b c").0, "▁a▁b▁c");
    }

    #[test]
    fn tables_that_are_none_are_refused() {
        for bytes in [&[0x12, 2, 1, 0][..], &[0x12, 5, 8, 0, 0, 0, 1], &[0x12, 5, 0, 0, 0, 0, 0xff]] {
            assert!(Normalizer::read(bytes).unwrap_err().found.contains("charsmap"));
        }
        assert!(Normalizer::read(&[0x12, 4, 0, 0, 0, 0]).unwrap().run("a").0 == "▁a");
    }
}
