//! What `--tokenizer` accepts.

use super::TrainKind;
use crate::error::TextError;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a tokenizer comes from: `FOLDER`, `train:bpe:8000`, `train:wordpiece:8000`, `train:words:8000`,
/// `train:unigram:8000` or `bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerSpec {
    /// A folder with a tokenizer (a model folder too). `./bytes` names a folder called `bytes`.
    Folder(PathBuf),
    /// Trained on the data of the run.
    Train {
        /// The kind of vocabulary.
        kind: TrainKind,
        /// Its size, special tokens included.
        vocab_size: usize,
    },
    /// The built-in 256 bytes and end of text.
    Bytes,
}

impl FromStr for TokenizerSpec {
    type Err = TextError;

    fn from_str(spec: &str) -> Result<Self, TextError> {
        let error = |reason: String| TextError::Spec { spec: spec.to_owned(), reason };
        let Some(rest) = spec.strip_prefix("train:") else {
            return match spec {
                "" => Err(error("is empty; expected a folder, train:bpe:8000 or bytes".into())),
                "bytes" => Ok(TokenizerSpec::Bytes),
                "train" => Err(error("expected train:KIND:SIZE, for example train:bpe:8000".into())),
                folder => Ok(TokenizerSpec::Folder(folder.into())),
            };
        };
        let Some((kind, size)) = rest.split_once(':') else {
            return Err(error(format!("has no size; expected train:KIND:SIZE, for example train:{rest}:8000")));
        };
        let kind = match kind {
            "bpe" => TrainKind::Bpe,
            "wordpiece" => TrainKind::WordPiece,
            "words" => TrainKind::Words,
            "unigram" => TrainKind::Unigram,
            other => return Err(error(format!("unknown kind \"{other}\"; expected bpe, wordpiece, words or unigram"))),
        };
        let vocab_size = size.parse().map_err(|_| error(format!("size \"{size}\" is not a whole number")))?;
        if vocab_size < kind.least_size() {
            return Err(error(format!("size {vocab_size} is too small; expected at least {}", kind.least_size())));
        }
        Ok(TokenizerSpec::Train { kind, vocab_size })
    }
}

impl std::fmt::Display for TokenizerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TokenizerSpec::Folder(path) => write!(f, "{}", path.display()),
            TokenizerSpec::Train { kind, vocab_size } => write!(f, "train:{kind}:{vocab_size}"),
            TokenizerSpec::Bytes => f.write_str("bytes"),
        }
    }
}
