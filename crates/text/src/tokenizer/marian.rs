//! Marian's tokenizers: a SentencePiece model for each language, and one vocabulary for both.
//!
//! A folder holds `source.spm`, `target.spm` and `vocab.json` (piece to id; the ids are not those of the models). As in
//! `transformers`' `MarianTokenizer`: pieces that the vocabulary lacks are unknown, `</s>` ends a text, a `>>code<<` at
//! the beginning of a text is one token, special tokens written out in a text are themselves.

use super::open::{Config, added_token, check_vocab, from_value, read_json};
use super::{SpecialTokens, Tokenizer};
use crate::error::{Result, TextError, json_kind};
use crate::sentencepiece::{SPACE, SentencePiece};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

pub(super) const SOURCE: &str = "source.spm";
pub(super) const TARGET: &str = "target.spm";
const VOCAB: &str = "vocab.json";

/// One of so many pieces of a model must be in the vocabulary, or it is another model's.
const LEAST_SHARE: usize = 10;

/// The two sides of a tokenizer that translates.
pub(super) struct Marian {
    source: Side,
    target: Side,
    unk: u32,
    eos: u32,
    special: Vec<(String, u32)>,
    /// The folder's files as they were read: names and contents.
    files: Vec<(&'static str, Vec<u8>)>,
}

struct Side {
    model: SentencePiece,
    /// The vocabulary's ids of the model's pieces.
    ids: Vec<u32>,
}

/// Which language a text is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Source,
    Target,
}

/// Whether a folder's tokenizer is of this kind.
pub(super) fn is_here(folder: &Path) -> bool {
    // Folders made for other programs hold a tokenizer.json as well, of one side; it counts where the models are incomplete.
    folder.join(SOURCE).is_file() && (folder.join(TARGET).is_file() || !folder.join("tokenizer.json").is_file())
}

pub(super) fn open(folder: &Path, config: &Config) -> Result<Tokenizer> {
    let mut files = Vec::new();
    for name in [SOURCE, TARGET, VOCAB, "tokenizer_config.json", "special_tokens_map.json"] {
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => files.push((name, bytes)),
            // The configurations may be missing.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && name.ends_with("json") && name != VOCAB => {}
            Err(e) => return Err(TextError::io(&path, e)),
        }
    }
    let content = |name: &str| files.iter().find(|f| f.0 == name).map_or(&[][..], |f| &f.1);
    let path = folder.join(VOCAB);
    let value = read_json(&path)?;
    let Value::Object(vocab) = &value else {
        return Err(TextError::file(&path, "top level", json_kind(&value), "an object of pieces and ids"));
    };
    check_vocab(&path, "vocabulary", vocab)?;
    let mut pieces: HashMap<u64, &str> = HashMap::with_capacity(vocab.len());
    for (piece, id) in vocab {
        if let Some(other) = pieces.insert(id.as_u64().unwrap_or_default(), piece) {
            let found = format!("{piece:?} and {other:?} with the id {id}");
            return Err(TextError::file(&path, "vocabulary", found, "ids that differ"));
        }
    }
    let id_of = |piece: &str| vocab.get(piece).and_then(Value::as_u64).map(|id| id as u32);
    let token = |name, default: &str| -> Result<(String, u32)> {
        let token = config.token(name).unwrap_or(default);
        let id = id_of(token).ok_or_else(|| {
            TextError::file(&path, token, "nothing", format!("an id of the {}", name.replace('_', " ")))
        })?;
        Ok((token.to_owned(), id))
    };
    let (unk, eos, pad) = (token("unk_token", "<unk>")?, token("eos_token", "</s>")?, token("pad_token", "<pad>")?);
    let side = |name: &str| -> Result<Side> {
        let model = SentencePiece::read(&folder.join(name), content(name))?;
        let known = model.pieces().filter(|(p, _)| id_of(p).is_some()).count();
        let all = model.pieces().len();
        if known * LEAST_SHARE < all {
            let (field, found) = (format!("pieces of {name}"), format!("{known} of {all}"));
            return Err(TextError::file(&path, field, found, "most of them (the vocabulary of these models)"));
        }
        let ids = model.pieces().map(|(p, _)| id_of(p).unwrap_or(unk.1)).collect();
        Ok(Side { model, ids })
    };
    let (source, target) = (side(SOURCE)?, side(TARGET)?);
    let ids = SpecialTokens { eos: Some(eos.1), pad: Some(pad.1), unk: Some(unk.1), ..SpecialTokens::default() };
    let (unk_token, unk_id, eos_id) = (unk.0.clone(), unk.1, eos.1);
    let mut special = vec![unk, eos, pad];
    special.extend(more_special(folder)?.into_iter().filter_map(|t| Some((t.clone(), id_of(&t)?))));
    special.sort_by_key(|t| t.1);
    special.dedup();
    // The library keeps the vocabulary; it encodes nothing.
    let library = from_value(&json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "added_tokens": special.iter().map(|(t, id)| added_token(u64::from(*id), t)).collect::<Vec<_>>(),
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": unk_token},
    }))
    .map_err(|e| TextError::file(&path, "vocabulary", e, "pieces and ids"))?;
    let class = config.class.clone().unwrap_or_else(|| "MarianTokenizer".into());
    let marian = Marian { source, target, unk: unk_id, eos: eos_id, special, files };
    Tokenizer::assemble(library, ids, Some(class), Some(marian))
}

/// Special tokens beside the usual ones; what is not supported is refused.
fn more_special(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let value = read_json(&path)?;
    let none = Map::new();
    let map = value.as_object().unwrap_or(&none);
    if map.get("separate_vocabs").is_some_and(|v| *v != json!(false) && !v.is_null()) {
        let expected = "false: one vocabulary for both languages (separate ones are not supported)";
        return Err(TextError::file(&path, "separate_vocabs", map["separate_vocabs"].to_string(), expected));
    }
    let lists =
        ["additional_special_tokens", "extra_special_tokens"].into_iter().filter_map(|f| map.get(f)?.as_array());
    let content = |v: &Value| v.as_str().or_else(|| v.get("content")?.as_str()).map(str::to_owned);
    Ok(lists.flatten().filter_map(content).collect())
}

impl Marian {
    /// Ids with the bytes of the text that they stand for; the end is not added.
    fn parts(&self, tokenizer: &Tokenizer, text: &str, language: Language, mut add: impl FnMut(u32, Range<usize>)) {
        let side = match language {
            Language::Source => &self.source,
            Language::Target => &self.target,
        };
        let id = |piece: &str| tokenizer.id(piece).unwrap_or(self.unk);
        let mut at = 0;
        while at < text.len() {
            let special = self.next_special(&text[at..]);
            let end = special.map_or(text.len(), |(place, _, _)| at + place);
            if end > at {
                let mut from = at;
                let part = &text[at..end];
                if part.starts_with(">>")
                    && let Some(code) = part.find("<<")
                {
                    add(id(&part[..code + 2]), at..at + code + 2);
                    from = at + code + 2;
                }
                let prepared = side.model.prepare(&text[from..end]);
                for part in side.model.encode(&prepared) {
                    let known = part.id != side.model.unknown();
                    let id = if known { side.ids[part.id as usize] } else { id(&part.text) };
                    add(id, from + part.range.start..from + part.range.end);
                }
            }
            at = end;
            if let Some((_, length, id)) = special {
                add(id, at..at + length);
                at += length;
            }
        }
    }

    /// The first special token in a text, the longest of those that begin there: place, length and id.
    fn next_special(&self, text: &str) -> Option<(usize, usize, u32)> {
        let found = self.special.iter().filter_map(|(t, id)| Some((text.find(t.as_str())?, t.len(), *id)));
        found.min_by_key(|&(place, length, _)| (place, std::cmp::Reverse(length)))
    }

    /// What ends a text.
    pub(super) fn end(&self) -> u32 {
        self.eos
    }

    pub(super) fn encode(&self, tokenizer: &Tokenizer, text: &str, language: Language, add_special: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.parts(tokenizer, text, language, |id, _| ids.push(id));
        ids.extend(add_special.then_some(self.eos));
        ids
    }

    pub(super) fn encode_with_offsets(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        add_special: bool,
    ) -> Vec<(u32, Range<usize>)> {
        let mut ids = Vec::new();
        self.parts(tokenizer, text, Language::Source, |id, range| ids.push((id, range)));
        ids.extend(add_special.then_some((self.eos, 0..0)));
        ids
    }

    /// Checked ids to text, as the target's model spells it.
    pub(super) fn decode(&self, tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
        let mut out = String::new();
        let tokens: Vec<(String, bool)> =
            ids.iter().map(|&id| (tokenizer.token(id).unwrap_or_default(), tokenizer.is_special(id))).collect();
        let mut plain: Vec<&str> = Vec::new();
        for (token, special) in tokens.iter().filter(|t| !(skip_special && t.1)) {
            if *special {
                out += &self.target.model.decode(&plain);
                out += token;
                out.push(' ');
                plain.clear();
            } else {
                plain.push(token);
            }
        }
        out += &self.target.model.decode(&plain);
        // White space as Python's `str.strip` knows it.
        let space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
        out.replace(SPACE, " ").trim_matches(space).to_owned()
    }

    /// Writes the files as they were read.
    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|e| TextError::io(&path, e))?;
        }
        Ok(())
    }
}
