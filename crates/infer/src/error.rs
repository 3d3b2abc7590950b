//! What can go wrong when a model is run.

use std::path::PathBuf;
use thiserror::Error;

/// A model could not be run on what it was given.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A prompt without tokens, for a model that has no token to begin with.
    #[error(
        "prompt {request} is empty: found 0 tokens, expected at least one (the model names no bos_token_id to begin with)"
    )]
    EmptyPrompt {
        /// The request, from 0.
        request: usize,
    },
    /// A model that reads one sequence and writes another does not say what the second begins with.
    #[error(
        "config.json: field \"decoder_start_token_id\" is missing or beyond the vocabulary, expected a token id from 0 to {}",
        vocab_size.saturating_sub(1)
    )]
    NoStart {
        /// Number of tokens of the model.
        vocab_size: usize,
    },
    /// A prompt that leaves no room.
    #[error(
        "prompt {request} is too long: found {found} tokens, expected at most {n_ctx} (the model's context, n_ctx)"
    )]
    PromptTooLong {
        /// The request, from 0.
        request: usize,
        /// Its length.
        found: usize,
        /// The model's context.
        n_ctx: usize,
    },
    /// A token that the model does not know.
    #[error("prompt {request}: found token id {id} at place {place}, expected ids below {vocab_size} (vocab_size)")]
    Id {
        /// The request, from 0.
        request: usize,
        /// The id.
        id: u32,
        /// Where in the prompt, from 0.
        place: usize,
        /// Number of tokens of the model.
        vocab_size: usize,
    },
    /// An option whose value cannot be.
    #[error("{name}: found {found}, expected {expected}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        found: String,
        /// What fits.
        expected: String,
    },
    /// The model's prediction is not a number, so no token can be chosen.
    #[error(
        "prompt {request}, token {step}: the model predicts {found} for token id {id}, expected finite numbers (its weights are damaged or overflow)"
    )]
    Logits {
        /// The request, from 0.
        request: usize,
        /// How many tokens had been generated.
        step: usize,
        /// The token predicted.
        id: usize,
        /// The value.
        found: f32,
    },
    /// Text is needed where there is no tokenizer.
    #[error("{what} needs a tokenizer, and the model has none; give token ids instead")]
    NoTokenizer {
        /// What needs it.
        what: &'static str,
    },
    /// A line of a text is longer than the model's context.
    #[error("line {line}: found {found} tokens, expected at most {n_ctx} (the model's context)")]
    LineTooLong {
        /// Its number, from 1.
        line: usize,
        /// Its tokens.
        found: usize,
        /// The most that the model reads.
        n_ctx: usize,
    },
    /// A model that does not predict the next token was asked to generate.
    #[error(
        "{family} loaded for the task {task} does not predict the next token, so it cannot {what}; expected a model with the task causal-lm"
    )]
    NotCausal {
        /// The member of the family.
        family: &'static str,
        /// The task.
        task: genus_models::Task,
        /// What it should have done.
        what: &'static str,
    },
    /// A file of input, or a field in it, is not what it should be.
    #[error("{}: {field}: found {found}, expected {expected}", file.display())]
    Input {
        /// The file.
        file: PathBuf,
        /// The field, with row and column where it has them, or the line.
        field: String,
        /// What was there.
        found: String,
        /// What fits.
        expected: String,
    },
    /// A file could not be read.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The model failed.
    #[error(transparent)]
    Model(#[from] genus_models::Error),
    /// A block failed.
    #[error(transparent)]
    Block(#[from] genus_nn::Error),
    /// An operation failed.
    #[error(transparent)]
    Op(#[from] genus_ops::Error),
    /// A file of a model folder could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] genus_checkpoint::Error),
    /// The tokenizer failed.
    #[error(transparent)]
    Text(#[from] genus_text::TextError),
    /// The tensor library reported an error.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn option(name: &'static str, found: impl ToString, expected: impl Into<String>) -> Self {
        Error::Option { name, found: found.to_string(), expected: expected.into() }
    }
}
