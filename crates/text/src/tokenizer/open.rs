//! Reading tokenizers from Hugging Face folders.

use super::bpe::{byte_level_json, pairs};
use super::fast::BYTE_CHARS;
use super::marian;
use super::{SpecialTokens, Tokenizer};
use crate::error::{Result, TextError, json_kind};
use serde_json::{Map, Value, json};
use std::path::Path;
use tokenizers::AddedToken;

/// The highest id that is believed: tables are as long as the highest id, and labels are `i32`.
const MAX_ID: u64 = 100_000_000;

/// The token that ends a text in GPT-2's vocabulary and in ours.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";

/// Names in `tokenizer_config.json` and `special_tokens_map.json`.
pub(super) const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Tokenizer {
    /// Reads a tokenizer from a folder: `tokenizer.json`, or `vocab.txt` (WordPiece with BERT's normaliser), or
    /// `vocab.json` with `merges.txt` (byte-level BPE, RoBERTa's with its special tokens included; or GPT's, whose words end in `</w>`), or `source.spm` and `target.spm` with `vocab.json` (Marian). Special tokens come from `tokenizer_config.json` and
    /// `special_tokens_map.json`, where present.
    ///
    /// # Errors
    /// [`TextError::NoTokenizer`], or [`TextError::TokenizerFile`] naming file, field, what was found and expected.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if !folder.is_dir() {
            return Err(match folder.exists() {
                true => TextError::NoTokenizer { path: folder.to_owned() },
                false => TextError::io(folder, std::io::Error::from(std::io::ErrorKind::NotFound)),
            });
        }
        let config = Config::read(folder)?;
        if marian::is_here(folder) {
            return marian::open(folder, &config);
        }
        let library = if folder.join("tokenizer.json").is_file() {
            tokenizer_json(&folder.join("tokenizer.json"))?
        } else if folder.join("vocab.txt").is_file() {
            word_piece(&folder.join("vocab.txt"), &config)?
        } else if folder.join("vocab.json").is_file() && folder.join("merges.txt").is_file() {
            pairs(&folder.join("vocab.json"), &folder.join("merges.txt"), &config)?
        } else {
            return Err(TextError::NoTokenizer { path: folder.to_owned() });
        };
        finish(library, &config)
    }

    /// The 256 bytes as tokens (the id is the byte), and an end-of-text token with id 256.
    pub fn bytes() -> Self {
        let vocab: Map<String, Value> = (0..256).map(|b| (BYTE_CHARS[b].to_string(), json!(b))).collect();
        let mut value = byte_level_json(vocab, Vec::new());
        value["added_tokens"] = json!([added_token(256, END_OF_TEXT)]);
        let library = from_value(&value).expect("a constant tokenizer");
        let special = SpecialTokens { bos: Some(256), eos: Some(256), ..SpecialTokens::default() };
        Tokenizer::assemble(library, special, Some("PreTrainedTokenizerFast".into()), None)
            .expect("a constant tokenizer")
    }
}

/// The parts of `tokenizer_config.json` and `special_tokens_map.json` that matter here.
#[derive(Default)]
pub(super) struct Config {
    /// Content of each of [`NAMES`], where given.
    tokens: [Option<String>; 7],
    pub(super) class: Option<String>,
    lower_case: Option<bool>,
    strip_accents: Option<bool>,
    chinese: Option<bool>,
    pub(super) prefix_space: Option<bool>,
}

impl Config {
    fn read(folder: &Path) -> Result<Self> {
        let mut config = Config::default();
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = folder.join(name);
            if !path.is_file() {
                continue;
            }
            let value = read_json(&path)?;
            let Value::Object(map) = value else {
                return Err(TextError::file(&path, "top level", json_kind(&value), "an object"));
            };
            for (slot, field) in config.tokens.iter_mut().zip(NAMES) {
                let content = match map.get(field) {
                    None | Some(Value::Null) => continue,
                    Some(Value::String(s)) => s.clone(),
                    Some(Value::Object(o)) if o.get("content").is_some_and(Value::is_string) => {
                        o["content"].as_str().unwrap_or_default().to_owned()
                    }
                    Some(v) => return Err(TextError::file(&path, field, json_kind(v), "a token (text)")),
                };
                slot.get_or_insert(content);
            }
            let flag = |field: &str| match map.get(field) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::Bool(b)) => Ok(Some(*b)),
                Some(v) => Err(TextError::file(&path, field, json_kind(v), "true or false")),
            };
            config.lower_case = config.lower_case.or(flag("do_lower_case")?);
            config.strip_accents = config.strip_accents.or(flag("strip_accents")?);
            config.chinese = config.chinese.or(flag("tokenize_chinese_chars")?);
            config.prefix_space = config.prefix_space.or(flag("add_prefix_space")?);
            if let Some(class) = map.get("tokenizer_class").and_then(Value::as_str) {
                config.class.get_or_insert(class.to_owned());
            }
        }
        Ok(config)
    }

    pub(super) fn token(&self, name: &str) -> Option<&str> {
        NAMES.iter().position(|n| *n == name).and_then(|i| self.tokens[i].as_deref())
    }
}

pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| TextError::io(path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        TextError::InvalidUtf8 { path: path.to_owned(), offset: offset as u64, found: e.as_bytes()[offset] }
    })
}

pub(super) fn read_json(path: &Path) -> Result<Value> {
    let text = read_text(path)?;
    serde_json::from_str(&text)
        .map_err(|e| TextError::file(path, format!("line {}", e.line()), e.to_string(), "valid JSON"))
}

/// The ids of a `{token: id}` object, checked.
pub(super) fn check_vocab(path: &Path, field: &str, vocab: &Map<String, Value>) -> Result<()> {
    for (token, id) in vocab {
        if id.as_u64().is_none_or(|id| id > MAX_ID) {
            let expected = format!("an id from 0 to {MAX_ID}");
            return Err(TextError::file(path, format!("{field}[{token:?}]"), id.to_string(), expected));
        }
    }
    Ok(())
}

fn tokenizer_json(path: &Path) -> Result<tokenizers::Tokenizer> {
    let value = read_json(path)?;
    let Some(model) = value.get("model") else {
        let found = value.as_object().map_or(json_kind(&value), |_| "nothing");
        return Err(TextError::file(path, "model", found, "an object with a vocabulary"));
    };
    match model.get("vocab") {
        Some(Value::Object(vocab)) => check_vocab(path, "model.vocab", vocab)?,
        Some(Value::Array(_)) => {}
        other => {
            return Err(TextError::file(path, "model.vocab", other.map_or("nothing", json_kind), "tokens and ids"));
        }
    }
    if let Some(added) = value.get("added_tokens").and_then(Value::as_array) {
        for (i, token) in added.iter().enumerate() {
            if token.get("id").and_then(Value::as_u64).is_none_or(|id| id > MAX_ID) {
                let found = token.get("id").map_or("nothing".to_owned(), Value::to_string);
                let expected = format!("an id from 0 to {MAX_ID}");
                return Err(TextError::file(path, format!("added_tokens[{i}].id"), found, expected));
            }
        }
    }
    from_value(&value)
        .map_err(|e| TextError::file(path, part_at_fault(&value), e, "what the tokenizers library accepts"))
}

/// The library's message for a bad part is that nothing matched; trying each part alone tells which one it was.
fn part_at_fault(value: &Value) -> &'static str {
    use tokenizers::{DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
    fn bad<T: serde::de::DeserializeOwned>(v: &Value, name: &str) -> bool {
        v.get(name).is_some_and(|v| !v.is_null() && serde_json::from_value::<T>(v.clone()).is_err())
    }
    if bad::<ModelWrapper>(value, "model") {
        "model"
    } else if bad::<NormalizerWrapper>(value, "normalizer") {
        "normalizer"
    } else if bad::<PreTokenizerWrapper>(value, "pre_tokenizer") {
        "pre_tokenizer"
    } else if bad::<PostProcessorWrapper>(value, "post_processor") {
        "post_processor"
    } else if bad::<DecoderWrapper>(value, "decoder") {
        "decoder"
    } else {
        "tokenizer"
    }
}

fn word_piece(path: &Path, config: &Config) -> Result<tokenizers::Tokenizer> {
    let text = read_text(path)?;
    let mut vocab = Map::new();
    for (id, line) in text.strip_suffix('\n').unwrap_or(&text).split('\n').enumerate() {
        vocab.insert(line.strip_suffix('\r').unwrap_or(line).to_owned(), json!(id));
    }
    let special = |name, default: &str| config.token(name).unwrap_or(default).to_owned();
    let unk = special("unk_token", "[UNK]");
    let (cls, sep) = (special("cls_token", "[CLS]"), special("sep_token", "[SEP]"));
    for token in [&unk, &cls, &sep] {
        if !vocab.contains_key(token) {
            return Err(TextError::file(path, token.as_str(), "no such line", "one token a line, this one included"));
        }
    }
    let normalizer = json!({
        "type": "BertNormalizer", "clean_text": true,
        "handle_chinese_chars": config.chinese.unwrap_or(true),
        "strip_accents": config.strip_accents,
        "lowercase": config.lower_case.unwrap_or(true),
    });
    let names = [special("pad_token", "[PAD]"), unk.clone(), cls.clone(), sep.clone(), special("mask_token", "[MASK]")];
    word_piece_value(vocab, normalizer, &unk, &cls, &sep, &names)
        .and_then(|v| from_value(&v))
        .map_err(|e| TextError::file(path, "vocabulary", e, "a WordPiece vocabulary"))
}

/// A BERT tokenizer as `tokenizer.json` describes it. Names that are not in the vocabulary are left out.
pub(super) fn word_piece_value(
    vocab: Map<String, Value>,
    normalizer: Value,
    unk: &str,
    cls: &str,
    sep: &str,
    names: &[String],
) -> Result<Value, String> {
    let id = |t: &str| vocab.get(t).and_then(Value::as_u64).ok_or_else(|| format!("{t} is not in the vocabulary"));
    let token = |t: &str, kind: u32| json!({"SpecialToken": {"id": t, "type_id": kind}});
    let sequence = |s: &str, kind: u32| json!({"Sequence": {"id": s, "type_id": kind}});
    let mut added: Vec<(u64, &String)> = names.iter().filter_map(|n| Some((id(n).ok()?, n))).collect();
    added.sort();
    added.dedup();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.iter().map(|(i, n)| added_token(*i, n)).collect::<Vec<_>>(),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [token(cls, 0), sequence("A", 0), token(sep, 0)],
            "pair": [token(cls, 0), sequence("A", 0), token(sep, 0), sequence("B", 1), token(sep, 1)],
            "special_tokens": {
                cls: {"id": cls, "ids": [id(cls)?], "tokens": [cls]},
                sep: {"id": sep, "ids": [id(sep)?], "tokens": [sep]},
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": super::train::MAX_WORD_PIECE, "vocab": vocab,
        },
    }))
}

pub(super) fn added_token(id: u64, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

pub(super) fn from_value(value: &Value) -> Result<tokenizers::Tokenizer, String> {
    // Through text: the library's vocabulary reader wants a deserialiser that borrows from text.
    let text = value.to_string();
    text.parse().map_err(|e: Box<dyn std::error::Error + Send + Sync>| e.to_string())
}

/// Resolves the special tokens, adding those that the configuration names and the vocabulary lacks (as `transformers`).
pub(super) fn finish(mut library: tokenizers::Tokenizer, config: &Config) -> Result<Tokenizer> {
    let added: Vec<AddedToken> = config.tokens.iter().flatten().map(|t| AddedToken::from(t.as_str(), true)).collect();
    library.add_special_tokens(added).map_err(TextError::library)?;
    let around = super::bpe::around(&library);
    // Without a configuration, the customary spellings; only where they are special tokens of the vocabulary.
    const CUSTOM: [&[&str]; 7] = [
        &["<s>", "<|begin_of_text|>", "<|startoftext|>", END_OF_TEXT],
        &["</s>", "<|end_of_text|>", END_OF_TEXT, "<|im_end|>"],
        &["<unk>", "[UNK]", END_OF_TEXT],
        &["[SEP]"],
        &["<pad>", "[PAD]"],
        &["[CLS]"],
        &["<mask>", "[MASK]"],
    ];
    let named = config.tokens.iter().any(Option::is_some);
    let find = |i: usize| -> Option<u32> {
        if let Some(token) = &config.tokens[i] {
            return library.token_to_id(token);
        }
        // RoBERTa's folders name neither: what is put around a text says it.
        match (&around, NAMES[i]) {
            (Some([cls, _]), "cls_token") => return library.token_to_id(cls),
            (Some([_, sep]), "sep_token") => return library.token_to_id(sep),
            _ => {}
        }
        // With a configuration that names some, the customary spelling still holds for BERT's five.
        CUSTOM[i].iter().filter(|t| !named || t.starts_with('[')).find_map(|t| library.token_to_id(t))
    };
    let special = SpecialTokens {
        bos: find(0),
        eos: find(1),
        unk: find(2),
        sep: find(3),
        pad: find(4),
        cls: find(5),
        mask: find(6),
    };
    let missing: Vec<AddedToken> = [special.bos, special.eos, special.sep, special.pad, special.cls, special.mask]
        .into_iter()
        .flatten()
        .filter_map(|id| library.id_to_token(id))
        .map(|t| AddedToken::from(t, true))
        .collect();
    library.add_special_tokens(missing).map_err(TextError::library)?;
    Tokenizer::assemble(library, special, config.class.clone(), None)
}
