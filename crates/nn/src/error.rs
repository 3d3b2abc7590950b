//! What can go wrong in a block.

use thiserror::Error;

/// A block could not be built or run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A token id is not in the vocabulary.
    #[error("token id {id} of sequence {sequence} is beyond the vocabulary of {vocab_size}")]
    Id {
        /// The id.
        id: u32,
        /// The sequence in the batch, from 0.
        sequence: usize,
        /// Number of tokens in the vocabulary.
        vocab_size: usize,
    },
    /// A token type is not in its table.
    #[error("token type {id} of sequence {sequence} is beyond the {n_types} that the model has")]
    TokenType {
        /// The type.
        id: u32,
        /// The sequence in the batch, from 0.
        sequence: usize,
        /// Number of token types.
        n_types: usize,
    },
    /// A sequence is longer than the model's context, or a given position is.
    #[error("sequence {sequence} needs position {position}, but the model's context (n_ctx) has {n_ctx} positions")]
    Context {
        /// The sequence in the batch, from 0.
        sequence: usize,
        /// The first position that is too large.
        position: usize,
        /// Number of positions.
        n_ctx: usize,
    },
    /// Lists that belong together differ in length.
    #[error("{what}: found {found}, expected {expected}")]
    Length {
        /// Which list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that fits.
        expected: usize,
    },
    /// A character is not in the alphabet.
    #[error("character {character} of token {token} is beyond the alphabet of {alphabet}")]
    Character {
        /// The character.
        character: u32,
        /// The token in the batch, from 0.
        token: usize,
        /// Number of characters.
        alphabet: usize,
    },
    /// A model that reads characters was given token ids, and does not know how they are spelled.
    #[error("the model reads characters, and does not know those of its tokens: give characters, or set the spellings")]
    NotSpelled,
    /// A stack that attends to an encoder was run without what the encoder made.
    #[error("the model attends to an encoded sequence, and none was given")]
    NotEncoded,
    /// A stack with memory was run without it.
    #[error("the model carries a memory, and none was given")]
    NoMemory,
    /// A stack that attends to no encoder was given an encoded sequence.
    #[error("an encoded sequence was given to a model that attends to none")]
    Encoded,
    /// A dimension of the specification cannot be.
    #[error("{field} is {found}, expected {expected}")]
    Spec {
        /// The dimension.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would have fitted.
        expected: String,
    },
    /// A parameter could not be had; the source says why.
    #[error("parameter {name}: {reason}")]
    Parameter {
        /// The parameter.
        name: String,
        /// Why not.
        reason: String,
    },
    /// An operation failed.
    #[error(transparent)]
    Op(#[from] genus_ops::Error),
    /// The tensor library reported an error.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Result of a block.
pub type Result<T, E = Error> = std::result::Result<T, E>;
