//! Writing tokenizers so that `transformers` loads them unchanged.

use super::open::NAMES;
use super::{Tokenizer, TokenizerKind};
use crate::error::{Result, TextError};
use serde_json::{Map, Value, json};
use std::path::Path;

impl Tokenizer {
    /// Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, and the vocabulary in its older
    /// form (`vocab.txt`, or `vocab.json` with `merges.txt`) where it has one; of Marian's, the files as they were read. `model_max_length` is the longest
    /// sequence that the model takes (`n_ctx`). The folder is made if need be.
    ///
    /// # Errors
    /// [`TextError::Io`] naming the file.
    pub fn save(&self, folder: impl AsRef<Path>, model_max_length: Option<usize>) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|e| TextError::io(folder, e))?;
        if let Some(marian) = self.marian() {
            return marian.save(folder);
        }
        let text = self.library().to_string(true).map_err(TextError::library)?;
        write(&folder.join("tokenizer.json"), &text)?;

        let s = self.special();
        let ids = [s.bos, s.eos, s.unk, s.sep, s.pad, s.cls, s.mask];
        let tokens: Map<String, Value> = NAMES
            .iter()
            .zip(ids)
            .filter_map(|(name, id)| Some(((*name).to_owned(), json!(self.token(id?)?))))
            .collect();
        write_json(&folder.join("special_tokens_map.json"), &Value::Object(tokens.clone()))?;

        let mut config = tokens;
        if let Some(n) = model_max_length {
            config.insert("model_max_length".into(), json!(n));
        }
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        let value = serde_json::to_value(self.library().get_model()).map_err(TextError::library)?;
        let merges = value["merges"].as_array().is_some_and(|m| !m.is_empty());
        let default_class = match self.kind() {
            TokenizerKind::WordPiece if s.cls.is_some() && s.sep.is_some() => "BertTokenizerFast",
            TokenizerKind::ByteLevelBpe if super::bpe::around(self.library()).is_some() => "RobertaTokenizer",
            TokenizerKind::ByteLevelBpe if merges => "GPT2TokenizerFast",
            _ => "PreTrainedTokenizerFast",
        };
        let class = self.class().unwrap_or(default_class);
        config.insert("tokenizer_class".into(), json!(class));
        if let Some(tokenizers::NormalizerWrapper::BertNormalizer(n)) = self.library().get_normalizer() {
            config.insert("do_lower_case".into(), json!(n.lowercase));
            config.insert("strip_accents".into(), json!(n.strip_accents));
            config.insert("tokenize_chinese_chars".into(), json!(n.handle_chinese_chars));
        }
        if let Some(tokenizers::PreTokenizerWrapper::ByteLevel(p)) = self.library().get_pre_tokenizer() {
            config.insert("add_prefix_space".into(), json!(p.add_prefix_space));
        }
        let decoder: Map<String, Value> = {
            let mut added: Vec<_> = self.library().get_added_tokens_decoder().into_iter().collect();
            added.sort_by_key(|(id, _)| *id);
            added.into_iter().map(|(id, t)| (id.to_string(), json!(t))).collect()
        };
        config.insert("added_tokens_decoder".into(), Value::Object(decoder));
        write_json(&folder.join("tokenizer_config.json"), &Value::Object(config))?;
        self.save_older_form(folder, &value)
    }

    fn save_older_form(&self, folder: &Path, value: &Value) -> Result<()> {
        match self.kind() {
            TokenizerKind::WordPiece => {
                let mut lines = vec![String::new(); self.vocab_size()];
                for (token, id) in self.library().get_vocab(true) {
                    lines[id as usize] = token;
                }
                write(&folder.join("vocab.txt"), &(lines.join("\n") + "\n"))
            }
            TokenizerKind::ByteLevelBpe => {
                // The older form has no place for added tokens outside the vocabulary; GPT-2's own is part of it.
                let mut vocab = value["vocab"].as_object().cloned().unwrap_or_default();
                let mut added: Vec<_> = self.library().get_added_tokens_decoder().into_iter().collect();
                added.sort_by_key(|(id, _)| *id);
                for (id, token) in added {
                    vocab.entry(token.content).or_insert(json!(id));
                }
                write_json(&folder.join("vocab.json"), &Value::Object(vocab))?;
                let mut text = String::from("#version: 0.2\n");
                for merge in value["merges"].as_array().into_iter().flatten() {
                    if let (Some(a), Some(b)) = (merge[0].as_str(), merge[1].as_str()) {
                        text += &format!("{a} {b}\n");
                    }
                }
                write(&folder.join("merges.txt"), &text)
            }
            _ => Ok(()),
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| TextError::io(path, e))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(TextError::library)?;
    write(path, &(text + "\n"))
}
