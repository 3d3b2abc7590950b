//! Vocabularies of whole words.

use super::open::{added_token, from_value};
use super::{SpecialTokens, Tokenizer};
use crate::error::{Result, TextError};
use serde_json::{Map, Value, json};

/// The first entries of a vocabulary: end and beginning of a sentence, and what stands for a word that it lacks (as ELMo's).
pub(super) const SPECIAL: [&str; 3] = ["</S>", "<S>", "<UNK>"];

fn value(vocab: Map<String, Value>) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": SPECIAL.iter().filter_map(|t| Some(added_token(vocab.get(*t)?.as_u64()?, t))).collect::<Vec<_>>(),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": SPECIAL[2]},
    })
}

/// A tokenizer without words, for its way of cutting text.
pub(super) fn frame() -> Result<tokenizers::Tokenizer> {
    let vocab = SPECIAL.iter().zip(0..).map(|(t, i)| ((*t).to_owned(), json!(i))).collect();
    from_value(&value(vocab)).map_err(TextError::library)
}

/// The tokenizer of these words, which are numbered in their order behind the special ones; those may be among them.
///
/// # Errors
/// When there is no word.
pub(super) fn tokenizer(words: impl Iterator<Item = String>) -> Result<Tokenizer> {
    let mut vocab = Map::new();
    for word in SPECIAL.iter().map(|t| (*t).to_owned()).chain(words) {
        let next = vocab.len();
        vocab.entry(word).or_insert(json!(next));
    }
    if vocab.len() == SPECIAL.len() {
        return Err(TextError::NoText { names: vec!["the vocabulary".into()] });
    }
    let library = from_value(&value(vocab)).map_err(TextError::library)?;
    let special = SpecialTokens { eos: Some(0), bos: Some(1), unk: Some(2), ..SpecialTokens::default() };
    Tokenizer::assemble(library, special, None, None)
}

impl Tokenizer {
    /// A vocabulary of whole words, from a file with one a line, as ELMo's. `</S>`, `<S>` and `<UNK>` are put in front where it does
    /// not begin with them.
    ///
    /// # Errors
    /// When the file cannot be read, is not UTF-8 or holds no word.
    pub fn from_words(file: impl AsRef<std::path::Path>) -> Result<Self> {
        let file = file.as_ref();
        let text = std::fs::read_to_string(file).map_err(|e| TextError::io(file, e))?;
        let words = text.lines().map(|w| w.trim().to_owned()).filter(|w| !w.is_empty());
        tokenizer(words).map_err(|e| match e {
            TextError::NoText { .. } => TextError::NoText { names: vec![file.display().to_string()] },
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_what_is_none() {
        let words = ["the", "</S>", "bank", ".", "the"].map(str::to_owned);
        let t = tokenizer(words.into_iter()).unwrap();
        assert_eq!(t.vocab_size(), 6);
        assert_eq!(t.encode("the  bank, the bench.", true).unwrap(), [3, 4, 2, 3, 2, 5]);
        assert_eq!((t.token(0).as_deref(), t.end_of_text()), (Some("</S>"), Some(0)));
        assert_eq!(t.decode(&[3, 4, 0], true).unwrap(), "the bank");
        let folder = tempfile::tempdir().unwrap();
        t.save(folder.path(), None).unwrap();
        let again = Tokenizer::open(folder.path()).unwrap();
        assert_eq!(again.encode("the bench </S>", true).unwrap(), [3, 2, 0]);
        assert_eq!((again.special().unk, again.end_of_text()), (Some(2), Some(0)));
        assert!(tokenizer(std::iter::empty()).is_err());
    }
}
