//! Vocabularies of byte pairs in their older form, `vocab.json` with `merges.txt`: GPT-2's, RoBERTa's and GPT's.

use super::open::{Config, added_token, check_vocab, from_value, read_json, read_text};
use crate::error::{Result, TextError, json_kind};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Reads `vocab.json` with `merges.txt`.
pub(super) fn pairs(vocab_path: &Path, merges_path: &Path, config: &Config) -> Result<tokenizers::Tokenizer> {
    let value = read_json(vocab_path)?;
    let Value::Object(vocab) = value else {
        return Err(TextError::file(vocab_path, "top level", json_kind(&value), "an object of tokens and ids"));
    };
    check_vocab(vocab_path, "vocabulary", &vocab)?;
    let text = read_text(merges_path)?;
    let mut merges = Vec::new();
    for (n, line) in text.lines().enumerate() {
        if line.is_empty() || (n == 0 && line.starts_with("#version")) {
            continue;
        }
        let Some((a, b)) = line.split_once(' ').filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(' '))
        else {
            let field = format!("line {}", n + 1);
            return Err(TextError::file(merges_path, field, format!("{line:?}"), "two tokens with a space between"));
        };
        for token in [a.to_owned(), b.to_owned(), format!("{a}{b}")] {
            if !vocab.contains_key(&token) {
                let expected = format!("tokens of {}", vocab_path.display());
                return Err(TextError::file(merges_path, format!("line {}", n + 1), format!("{token:?}"), expected));
            }
        }
        merges.push(json!([a, b]));
    }
    let class = config.class.as_deref().unwrap_or("");
    let value = if class.starts_with("OpenAIGPT") || vocab.keys().any(|t| t.ends_with("</w>")) {
        words_json(vocab, merges, config.token("unk_token").unwrap_or("<unk>"))
    } else {
        let all = |names: &[&str]| names.iter().all(|n| vocab.contains_key(*n));
        let roberta = class.starts_with("Roberta") || (class.is_empty() && all(&["<s>", "</s>", "<mask>"]));
        let around = if roberta { Some(roberta_json(vocab_path, &vocab, config)?) } else { None };
        let mut value = byte_level_json(vocab, merges);
        value["pre_tokenizer"]["add_prefix_space"] = json!(config.prefix_space.unwrap_or(false));
        if let Some((post_processor, added)) = around {
            value["post_processor"] = post_processor;
            value["added_tokens"] = added;
        }
        value
    };
    from_value(&value).map_err(|e| TextError::file(vocab_path, "vocabulary", e, "a vocabulary of byte pairs"))
}

/// What RoBERTa puts around texts, and its special tokens.
fn roberta_json(path: &Path, vocab: &Map<String, Value>, config: &Config) -> Result<(Value, Value)> {
    let name = |field, default: &str| config.token(field).unwrap_or(default).to_owned();
    let id = |token: &str| match vocab.get(token) {
        Some(id) => Ok(id.clone()),
        None => Err(TextError::file(path, token, "no such token", "a vocabulary with RoBERTa's special tokens")),
    };
    let (cls, sep) = (name("cls_token", "<s>"), name("sep_token", "</s>"));
    let mut added = Vec::new();
    for (token, left) in [
        (cls.clone(), false),
        (name("pad_token", "<pad>"), false),
        (sep.clone(), false),
        (name("unk_token", "<unk>"), false),
        (name("mask_token", "<mask>"), true),
    ] {
        let mut one = added_token(id(&token)?.as_u64().unwrap_or_default(), &token);
        // The mask takes the space before it with it.
        one["lstrip"] = json!(left);
        added.push(one);
    }
    added.sort_by_key(|t| t["id"].as_u64());
    let processor = json!({
        "type": "RobertaProcessing", "sep": [sep, id(&sep)?], "cls": [cls, id(&cls)?],
        "trim_offsets": true, "add_prefix_space": config.prefix_space.unwrap_or(false),
    });
    Ok((processor, added.into()))
}

/// What a post-processor like RoBERTa's puts before a text and behind it.
pub(super) fn around(library: &tokenizers::Tokenizer) -> Option<[String; 2]> {
    match library.get_post_processor()? {
        tokenizers::PostProcessorWrapper::Roberta(p) => Some([p.get_cls_copy().0, p.get_sep_copy().0]),
        _ => None,
    }
}

/// A GPT-2 tokenizer as `tokenizer.json` describes it.
pub(super) fn byte_level_json(vocab: Map<String, Value>, merges: Vec<Value>) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
}

/// A GPT tokenizer as `tokenizer.json` describes it: words as BERT cuts them, in lower case, the last pair of each ending in
/// `</w>`.
fn words_json(vocab: Map<String, Value>, merges: Vec<Value>, unk: &str) -> Value {
    let unk = vocab.contains_key(unk).then_some(unk);
    let added: Vec<Value> = unk.iter().filter_map(|u| Some(added_token(vocab.get(*u)?.as_u64()?, u))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing", "special_tokens": {},
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        },
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
}
