//! What can go wrong with a model folder or a preset.

use crate::Task;
use std::path::PathBuf;
use thiserror::Error;

/// A model could not be built, loaded, saved or run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// `model_type` names no member of the family.
    #[error(
        "{}: field \"model_type\" is {found:?}, expected one of {}{}",
        file.display(),
        supported.join(", "),
        nearest.as_ref().map(|n| format!(" (did you mean {n:?}?)")).unwrap_or_default()
    )]
    ModelType {
        /// The configuration.
        file: PathBuf,
        /// What it says.
        found: String,
        /// What is known.
        supported: Vec<String>,
        /// The known name most like it.
        nearest: Option<String>,
    },
    /// The tensors of a folder are another member's than its configuration says.
    #[error(
        "{}: the tensors are those of {found:?}, expected those of {expected:?} as model_type in config.json says",
        folder.display()
    )]
    Architecture {
        /// The folder.
        folder: PathBuf,
        /// The `model_type` that the tensors' names are of.
        found: String,
        /// What the configuration says.
        expected: String,
    },
    /// No preset of that name.
    #[error(
        "no preset is called {name:?}{}; `genus tree` lists them",
        nearest.as_ref().map(|n| format!(" (did you mean {n:?}?)")).unwrap_or_default()
    )]
    Preset {
        /// The name.
        name: String,
        /// The preset most like it.
        nearest: Option<String>,
    },
    /// A task that the member does not have.
    #[error("{family} has no task {task}; it has {}", has.join(", "))]
    Task {
        /// The member.
        family: String,
        /// The task asked for.
        task: Task,
        /// Its tasks.
        has: Vec<String>,
    },
    /// Which task a folder is for cannot be told.
    #[error("{}: field \"architectures\" is {found}, expected one of {}; or say which task", file.display(), expected.join(", "))]
    Architectures {
        /// The configuration.
        file: PathBuf,
        /// What it says.
        found: String,
        /// The classes known for this member.
        expected: Vec<String>,
    },
    /// A model loaded for one task is used for another.
    #[error("this model was loaded for the task {task} and has no {part}")]
    NoPart {
        /// Its task.
        task: Task,
        /// What is missing.
        part: &'static str,
    },
    /// A dimension given by hand cannot be.
    #[error("{field} is {found}, expected {expected}")]
    Dimension {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would have fitted.
        expected: String,
    },
    /// A tensor of the checkpoint holds a value that is not a number.
    #[error("{}: tensor {tensor} holds {value} at element {index}, expected finite numbers", file.display())]
    NotFinite {
        /// The folder.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where.
        index: usize,
        /// What.
        value: f32,
    },
    /// A file could not be read or written, or the weights do not fit the configuration.
    #[error(transparent)]
    Checkpoint(#[from] genus_checkpoint::Error),
    /// A block failed.
    #[error(transparent)]
    Block(#[from] genus_nn::Error),
    /// An operation failed.
    #[error(transparent)]
    Op(#[from] genus_ops::Error),
    /// The tensor library reported an error.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Result of a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;
