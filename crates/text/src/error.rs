//! The error of this crate: every variant names the file (or argument), what was found and what was expected.

use std::path::{Path, PathBuf};

/// What can go wrong with text, tokenizers and data sets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A data path does not exist.
    #[error("{}: no such file or folder; expected text, JSON lines or Parquet", path.display())]
    MissingPath {
        /// The path as given.
        path: PathBuf,
    },
    /// A folder holds no file that can be read as text.
    #[error("{}: the folder holds no data file (looked for text, .jsonl, .ndjson, .json, .parquet, also .gz)", path.display())]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A data file without content.
    #[error("{}: the file is empty; expected text", path.display())]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },
    /// Files were read, but no document came out of them.
    #[error("no text in {}: found only white space; expected at least one document", names.join(", "))]
    NoText {
        /// The files.
        names: Vec<String>,
    },
    /// Bytes that are not UTF-8.
    #[error("{}: byte {offset} (0x{found:02x}) is not valid UTF-8; expected UTF-8 text (convert the file first)", path.display())]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first offending byte in the (decompressed) file.
        offset: u64,
        /// That byte.
        found: u8,
    },
    /// A NUL character, which text does not contain: most likely a binary file.
    #[error("{}: NUL {place}; expected text (is this a binary file?)", path.display())]
    NulByte {
        /// The file.
        path: PathBuf,
        /// `at byte N`, or `in line N` / `in row N` of a structured file.
        place: String,
    },
    /// A line (or file) that is not valid JSON.
    #[error("{}: {place}: {message}; expected an object a line (or one array of objects) with a text field \"{field}\"", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// `line N`, from 1.
        place: String,
        /// What is wrong with it.
        message: String,
        /// The field looked for.
        field: String,
    },
    /// A JSON object without the text field, or with another type in it.
    #[error("{}: {place}: field \"{field}\": found {found}, expected a string", path.display())]
    JsonField {
        /// The file.
        path: PathBuf,
        /// `line N` or `element N`, from 1.
        place: String,
        /// The field looked for.
        field: String,
        /// What was there.
        found: String,
    },
    /// A Parquet file that cannot be read.
    #[error("{}: not readable as Parquet: {message}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The reader's message.
        message: String,
    },
    /// A Parquet file without the text column, or with another type in it.
    #[error("{}: column \"{column}\": found {found}, expected a string column", path.display())]
    ParquetColumn {
        /// The file.
        path: PathBuf,
        /// The column looked for.
        column: String,
        /// What was there.
        found: String,
    },
    /// Files that belong together line by line have different numbers of lines.
    #[error("{}: line {line} has no partner: {} ends before it; expected as many lines in both", longer.display(), shorter.display())]
    UnequalLines {
        /// The file with more lines.
        longer: PathBuf,
        /// The file with fewer.
        shorter: PathBuf,
        /// The first line without a partner, from 1.
        line: u64,
    },
    /// A line of a file with a word and its tag a line.
    #[error("{}: line {line}: found {found}, expected {expected}", path.display())]
    TaggedLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What was there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// A data set too short for what was asked of it.
    #[error("too little text: {what} needs at least {needed} {unit}, found {found}")]
    TooShort {
        /// What needs it.
        what: String,
        /// How many there are.
        found: usize,
        /// How many are needed.
        needed: usize,
        /// Of what (`tokens`, `documents`).
        unit: &'static str,
    },
    /// An option outside its range.
    #[error("{name}: found {found}, expected {expected}")]
    Argument {
        /// The option.
        name: &'static str,
        /// Its value.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// An id that the tokenizer does not have.
    #[error("id {id} at position {position} is not in the vocabulary; expected ids below {vocab_size}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Where in the input.
        position: usize,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// A character that the vocabulary cannot spell, and has no token for.
    #[error(
        "character {character:?} at byte {position} of the text is not in the vocabulary, which has no token for unknown ones; expected text of its characters, or a tokenizer that has them all"
    )]
    Character {
        /// The character.
        character: char,
        /// Where in the text, in bytes.
        position: usize,
    },
    /// A folder without a tokenizer.
    #[error("{}: no tokenizer; expected tokenizer.json, or vocab.txt, or vocab.json with merges.txt, or source.spm with target.spm and vocab.json", path.display())]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
    },
    /// A tokenizer file with a wrong or missing field.
    #[error("{}: {field}: found {found}, expected {expected}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// The field, or the line.
        field: String,
        /// What was there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// A tokenizer specification that cannot be parsed.
    #[error("tokenizer \"{spec}\": {reason}")]
    Spec {
        /// The specification.
        spec: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The tokenizer library refused.
    #[error("tokenizer: {message}")]
    Tokenizer {
        /// Its message.
        message: String,
    },
}

/// Result of this crate.
pub type Result<T, E = TextError> = std::result::Result<T, E>;

impl TextError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        TextError::Io { path: path.to_owned(), source }
    }

    pub(crate) fn library(e: impl std::fmt::Display) -> Self {
        TextError::Tokenizer { message: e.to_string() }
    }

    pub(crate) fn file(
        path: &Path,
        field: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        TextError::TokenizerFile {
            path: path.to_owned(),
            field: field.into(),
            found: found.into(),
            expected: expected.into(),
        }
    }
}

/// The JSON type of a value, for messages.
pub(crate) fn json_kind(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "a boolean",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a string",
        serde_json::Value::Array(_) => "an array",
        serde_json::Value::Object(_) => "an object",
    }
}
