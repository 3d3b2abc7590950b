//! The one error type of the crate: every variant says which file, which part of it, what was found and what was expected.

use std::io;
use std::path::{Path, PathBuf};

use crate::names::ResolveError;

/// What can go wrong when model folders and training state are read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file or folder.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "open", "read", "rename".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Writing failed (disk full, quota, broken device). Nothing that was there before has been changed.
    #[error("cannot write {}: {source} ({written} of {bytes} bytes were written; what was there before is unchanged)", path.display())]
    Write {
        /// The file that was to come into being.
        path: PathBuf,
        /// Size of the complete file in bytes.
        bytes: u64,
        /// How many bytes had been written.
        written: u64,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file does not keep to its format.
    #[error("{}: {item}: found {found}, expected {expected}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Which tensor, field or part of it.
        item: String,
        /// What the file says.
        found: String,
        /// What the format asks for.
        expected: String,
    },
    /// A pickle file refers to code that is not on the short list of harmless names; such files can run programs.
    #[error(
        "{}: the pickle refers to `{global}`, which is not among the names a tensor file needs (nothing was executed); \
         expected tensors only: save the state dict alone, or convert the file to safetensors where it can be trusted", file.display()
    )]
    ForbiddenGlobal {
        /// The file.
        file: PathBuf,
        /// `module.name` as the file spells it.
        global: String,
    },
    /// A pickle file holds an instruction that tensor files do not need.
    #[error("{}: pickle instruction {opcode:#04x} at byte {offset} is not among those a tensor file needs (nothing was executed)", file.display())]
    ForbiddenOpcode {
        /// The file.
        file: PathBuf,
        /// The instruction's byte.
        opcode: u8,
        /// Where in the pickle stream it stands.
        offset: usize,
    },
    /// A folder holds no weights.
    #[error("{}: no weights here; expected one of {expected}", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// The file names that were looked for.
        expected: String,
    },
    /// A tensor that was asked for is not in the files.
    #[error("{}: no tensor named `{name}`{}", root.display(), nearest(suggestions))]
    NoTensor {
        /// The opened file or folder.
        root: PathBuf,
        /// The name asked for.
        name: String,
        /// The nearest names that exist.
        suggestions: Vec<String>,
    },
    /// A tensor has a data type that the reader cannot give in the form asked for.
    #[error("{}: tensor `{name}`: found data type {found}, expected {expected}", file.display())]
    Dtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Its data type.
        found: &'static str,
        /// What was needed.
        expected: &'static str,
    },
    /// The tensors in a checkpoint are not those that the model needs; lists every difference.
    #[error(transparent)]
    Resolve(Box<ResolveError>),
    /// A renaming table contradicts itself.
    #[error("name table: rule `{rule}`: {problem}")]
    NameRule {
        /// The rule.
        rule: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A JSON file is not valid JSON.
    #[error("{}: line {line}, column {column}: {problem}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A field of a JSON file has a value that it cannot have.
    #[error("{}: field `{field}`: found {found}; {problem}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// Path of the field, with dots and `[i]`.
        field: String,
        /// The value found there, shortened.
        found: String,
        /// What was expected.
        problem: String,
    },
    /// A folder is in use by another run.
    #[error("{}: in use by another run (process {pid} on {host}, since {since}); wait for it or choose another folder", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Process id of the holder, "?" when unknown.
        pid: String,
        /// Host of the holder.
        host: String,
        /// When it took the folder (UTC).
        since: String,
    },
    /// A checkpoint of a run is incomplete or damaged.
    #[error("{}: broken checkpoint: {reason}", folder.display())]
    BrokenCheckpoint {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor could not be handed to or taken from the tensor library.
    #[error("tensor `{name}`: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// The library's reason.
        source: candle_core::Error,
    },
    /// A caller passed something that cannot be written or looked up.
    #[error("{what}: found {found}, expected {expected}")]
    Argument {
        /// Which argument.
        what: String,
        /// Its value.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// A model name is neither a folder nor a hub id.
    #[error(
        "model `{model}`: {problem}; expected a folder in Hugging Face's layout, or a hub id `owner/name` or `owner/name@revision`"
    )]
    ModelName {
        /// The name as given.
        model: String,
        /// Why it is neither.
        problem: String,
    },
    /// The hub could not give a model.
    #[error(
        "cannot get `{id}` from {endpoint}: {problem}. Ways out: pass a local folder that holds the model instead of `{id}`; \
         or download it once where there is a network, into the same cache ({}), and set HF_HUB_OFFLINE=1 here", cache.display()
    )]
    Hub {
        /// The hub id.
        id: String,
        /// Address of the hub.
        endpoint: String,
        /// The cache folder in use.
        cache: PathBuf,
        /// What went wrong.
        problem: String,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// ` (nearest: a, b)` or nothing.
pub(crate) fn nearest(suggestions: &[String]) -> String {
    if suggestions.is_empty() { String::new() } else { format!(" (nearest: {})", suggestions.join(", ")) }
}

impl Error {
    /// An operation on `path` that the operating system refused.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// A part of a file that breaks its format.
    pub(crate) fn malformed(
        file: &Path,
        item: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Error {
        Error::Malformed { file: file.to_path_buf(), item: item.into(), found: found.into(), expected: expected.into() }
    }
}

/// At most `limit` characters of text from a file, so that an error stays readable whatever the file holds.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    let mut out: String = text.chars().take(limit).flat_map(|c| c.escape_debug()).collect();
    if text.chars().nth(limit).is_some() {
        out.push('…');
    }
    out
}
