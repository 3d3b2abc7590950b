//! What can go wrong in a run.

use std::path::PathBuf;
use thiserror::Error;

/// A run could not be started, continued or finished.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the configuration has a value that cannot be.
    #[error("{field} is {found}, expected {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would have fitted.
        expected: String,
    },
    /// A configuration file could not be understood.
    #[error("{}: {message}", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// The reason, with the line.
        message: String,
    },
    /// The tokenizer has more tokens than the model.
    #[error(
        "the tokenizer has {tokenizer} tokens, but vocab_size of the model is {model}, expected at least {tokenizer}; {advice}"
    )]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokenizer: usize,
        /// Tokens of the model.
        model: usize,
        /// What to do.
        advice: &'static str,
    },
    /// The output folder is not empty.
    #[error("{}: the folder is not empty (found {found}); expected a new folder, or continue that run with --resume", folder.display())]
    RunExists {
        /// The folder.
        folder: PathBuf,
        /// Something in it.
        found: String,
    },
    /// There is no run to continue.
    #[error("{}: found no config.toml, expected the folder of a run", folder.display())]
    NotARun {
        /// The folder.
        folder: PathBuf,
    },
    /// The data of a run has changed since its checkpoint.
    #[error(
        "{}: the data has changed since this checkpoint: {what} is {found}, expected {expected}; continue with the same files, or start a new \
         run from the checkpoint with --init",
        checkpoint.display()
    )]
    DataChanged {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// What differs.
        what: &'static str,
        /// What was found.
        found: String,
        /// What the checkpoint says.
        expected: String,
    },
    /// The state in a checkpoint lacks something or contradicts the model.
    #[error("{}: training state: {what}: found {found}, expected {expected}", checkpoint.display())]
    State {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The entry.
        what: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A pattern of parameters to freeze fits none.
    #[error("freeze: no parameter fits {pattern:?}; the parameters most like it: {}", nearest.join(", "))]
    Freeze {
        /// The pattern.
        pattern: String,
        /// Names like it.
        nearest: Vec<String>,
    },
    /// Nothing is left to learn.
    #[error("freeze: all {count} parameters are frozen, expected at least one that learns")]
    AllFrozen {
        /// Number of parameters.
        count: usize,
    },
    /// The batches of a step ask for no prediction.
    #[error("step {step}: the batch holds nothing to predict, expected at least one token (or labelled sequence)")]
    NoTargets {
        /// The step.
        step: u64,
    },
    /// A model that tells replaced tokens has nothing that replaces them.
    #[error("the model has no generator beside it, expected one: replaced tokens are its work")]
    NoGenerator,
    /// The label of a sequence is not one that the model can learn.
    #[error("label of sequence {sequence} of the batch: found {found}, expected {expected}")]
    Label {
        /// The sequence in the batch, from 0.
        sequence: usize,
        /// What was found.
        found: String,
        /// What would have fitted.
        expected: String,
    },
    /// Loss or gradient was not a number too often in a row.
    #[error(
        "step {step}: loss or gradient was not finite in {count} steps in a row (those updates were left out), so the run stops; {}; try a \
         smaller learning rate or a longer warm-up",
        match last { Some(p) => format!("the last good checkpoint is {}", p.display()), None => "no checkpoint is known to be good".into() }
    )]
    NotFinite {
        /// The last of the steps.
        step: u64,
        /// How many.
        count: u64,
        /// The last good checkpoint.
        last: Option<PathBuf>,
    },
    /// A checkpoint could not be written.
    #[error(
        "step {step}: the checkpoint could not be written: {source}; {}",
        match last { Some(p) => format!("the last good checkpoint is {}", p.display()), None => "there is no earlier checkpoint".into() }
    )]
    Save {
        /// The step.
        step: u64,
        /// The last good checkpoint.
        last: Option<PathBuf>,
        /// Why.
        source: Box<Error>,
    },
    /// The thread that prepares batches ended.
    #[error("the thread that prepares batches ended before the run did")]
    DataThread,
    /// A file of the run could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is less text than a batch needs.
    #[error("{}: {source}", files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "))]
    TooShort {
        /// Where the text is from.
        files: Vec<PathBuf>,
        /// What was found and expected.
        source: Box<genus_text::TextError>,
    },
    /// The text or the tokenizer.
    #[error(transparent)]
    Text(Box<genus_text::TextError>),
    /// The model.
    #[error(transparent)]
    Model(Box<genus_models::Error>),
    /// A block of the model.
    #[error(transparent)]
    Block(Box<genus_models::nn::Error>),
    /// A file of a checkpoint.
    #[error(transparent)]
    Checkpoint(Box<genus_checkpoint::Error>),
    /// An operation.
    #[error(transparent)]
    Op(#[from] genus_ops::Error),
}

/// Result of training.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! boxed {
    ($($variant:ident: $source:ty),*) => {
        $(impl From<$source> for Error {
            fn from(e: $source) -> Self {
                Error::$variant(Box::new(e))
            }
        })*
    };
}
boxed!(
    Text: genus_text::TextError,
    Model: genus_models::Error,
    Block: genus_models::nn::Error,
    Checkpoint: genus_checkpoint::Error
);

impl Error {
    /// Names the files of a text that is too short; text from memory has none.
    pub(crate) fn of_files(self, files: &[PathBuf]) -> Self {
        match self {
            Error::Text(source) if matches!(*source, genus_text::TextError::TooShort { .. }) && !files.is_empty() => {
                Error::TooShort { files: files.to_vec(), source }
            }
            other => other,
        }
    }

    /// A field of the configuration with an impossible value.
    pub(crate) fn config(field: &'static str, found: impl ToString, expected: impl Into<String>) -> Self {
        Error::Config { field, found: found.to_string(), expected: expected.into() }
    }

    /// For `map_err` on what the system did with `path`.
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }
}
