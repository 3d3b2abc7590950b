//! What can go wrong in an operation.

use thiserror::Error;

/// An operation could not be carried out. Shapes and names are part of the message.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has another shape than the operation needs.
    #[error("{op}: {what} has shape {found:?}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What would have fitted.
        expected: String,
    },
    /// An argument's value is out of its range.
    #[error("{op}: {what} is {found}, expected {expected}")]
    Value {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would have fitted.
        expected: String,
    },
    /// Parameters that should learn were not reached by the backward pass.
    #[error(
        "no gradient reached {} trainable parameter(s): {}; freeze them by name or use them in the loss",
        names.len(),
        names.join(", ")
    )]
    NoGradient {
        /// The parameters' names.
        names: Vec<String>,
    },
    /// The backward pass was started from a value that no gradient can flow to.
    #[error("backward: the value is not on this tape, so no gradient can flow from it")]
    NotRecorded,
    /// An element type that the operation does not take.
    #[error("{op}: element type {found} is not supported, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The type found.
        found: String,
        /// The types that fit.
        expected: &'static str,
    },
    /// A block that had run in the forward pass failed when the backward pass ran it again.
    #[error("running a block again in the backward pass: {0}")]
    Recompute(Box<dyn std::error::Error + Send + Sync>),
    /// The tensor library reported an error.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A shape error.
    pub fn shape(op: &'static str, what: &'static str, found: &[usize], expected: impl Into<String>) -> Self {
        Error::Shape { op, what, found: found.to_vec(), expected: expected.into() }
    }

    /// A value error.
    pub fn value(op: &'static str, what: &'static str, found: impl ToString, expected: impl Into<String>) -> Self {
        Error::Value { op, what, found: found.to_string(), expected: expected.into() }
    }
}
