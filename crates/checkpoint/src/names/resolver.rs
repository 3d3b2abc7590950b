//! Which tensor of a file is which tensor of the model: one answer, or one report of everything that is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use super::{NameMap, expected_file_name, first_difference, nearest_by};
use crate::error::nearest;
use crate::{Dtype, Error, Result, Weights};

/// A tensor that the model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The model's own name.
    pub name: String,
    /// Its shape in the checkpoint.
    pub shape: Vec<usize>,
    /// Whether a checkpoint without it is an error; the others are listed in [`Resolution::absent`].
    pub required: bool,
}

impl Expected {
    /// A tensor that must be there.
    pub fn required(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Expected {
        Expected { name: name.into(), shape: shape.into(), required: true }
    }

    /// A tensor that may be missing, such as a head that fine-tuning will start afresh.
    pub fn optional(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Expected {
        Expected { name: name.into(), shape: shape.into(), required: false }
    }
}

/// Where each tensor of the model is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Own name -> names in the checkpoint, as spelt there. Several for a tied tensor; they hold the same values.
    pub names: BTreeMap<String, Vec<String>>,
    /// Own names of optional tensors that the checkpoint lacks.
    pub absent: Vec<String>,
    /// Checkpoint names of buffers without information.
    pub ignored: Vec<String>,
    /// Checkpoint names that belong to a head which the model does not have: worth a warning.
    pub other_heads: Vec<String>,
}

impl Resolution {
    /// The checkpoint's name of an own tensor, as spelt there.
    pub fn get(&self, internal: &str) -> Option<&str> {
        self.names.get(internal)?.first().map(String::as_str)
    }
}

/// One difference between a checkpoint and the model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The model needs a tensor that the file does not have.
    Missing {
        /// Name in the checkpoint as it would be written.
        name: String,
        /// Similar names in the file.
        suggestions: Vec<String>,
    },
    /// The file has a tensor that the model does not.
    Unexpected {
        /// Name in the file.
        name: String,
        /// Similar names that the model would accept and the file lacks.
        suggestions: Vec<String>,
    },
    /// A tensor has another shape.
    Shape {
        /// Name in the file.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the model's configuration asks for.
        expected: Vec<usize>,
    },
    /// A tensor does not hold floats.
    Dtype {
        /// Name in the file.
        name: String,
        /// Its type.
        found: Dtype,
    },
    /// Two names of one tensor hold different values.
    TiedDiffer {
        /// The one name.
        first: String,
        /// The other.
        second: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Missing { name, suggestions } => write!(f, "missing `{name}`{}", nearest(suggestions)),
            Problem::Unexpected { name, suggestions } => write!(f, "unexpected `{name}`{}", nearest(suggestions)),
            Problem::Shape { name, found, expected } => {
                write!(f, "`{name}` has shape {found:?}, expected {expected:?} from the configuration")
            }
            Problem::Dtype { name, found } => write!(f, "`{name}` holds {found}, expected F32, F16, BF16 or F64"),
            Problem::TiedDiffer { first, second } => {
                write!(f, "`{first}` and `{second}` are one tensor in this model but hold different values")
            }
        }
    }
}

/// Everything that keeps a checkpoint from being the model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveError {
    /// The opened folder or file.
    pub root: PathBuf,
    /// All differences, in the order missing, unexpected, others.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.problems.len();
        write!(
            f,
            "{}: the tensors are not the model's ({n} problem{}):",
            self.root.display(),
            if n == 1 { "" } else { "s" }
        )?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ResolveError {}

/// Find every expected tensor in `weights` by `map`.
///
/// # Errors
/// [`Error::Resolve`] with all problems: missing and unexpected tensors (with similar names), wrong shapes and types,
/// tied tensors that differ. Reading errors of tied tensors as they come.
pub fn resolve(map: &NameMap, expected: &[Expected], weights: &Weights) -> Result<Resolution> {
    let mut out = Resolution::default();
    let (mut groups, rest) = map.group(weights.names());
    let mut absent: Vec<&Expected> = Vec::new();
    let mut other = Vec::new();
    for want in expected {
        let Some(names) = groups.remove(&want.name) else {
            absent.push(want);
            continue;
        };
        let mut sound = true;
        for name in &names {
            let entry = weights.entry(name)?;
            if entry.shape != want.shape {
                let (found, expected) = (entry.shape.clone(), want.shape.clone());
                other.push(Problem::Shape { name: name.to_string(), found, expected });
                sound = false;
            }
            if !entry.dtype.is_float() {
                other.push(Problem::Dtype { name: name.to_string(), found: entry.dtype });
                sound = false;
            }
        }
        if sound && let Some(second) = first_difference(weights, &names)? {
            other.push(Problem::TiedDiffer { first: names[0].to_string(), second: second.to_string() });
        }
        out.names.insert(want.name.clone(), names.into_iter().map(String::from).collect());
    }

    // What a rule covers but this model does not expect (another depth, a head it lacks) is left over as well.
    let left: BTreeSet<&str> = groups.into_values().flatten().chain(rest).collect();
    let mut unexpected = Vec::new();
    for name in left {
        if map.is_ignored(name) {
            out.ignored.push(name.to_string());
        } else if map.is_other_head(name) {
            out.other_heads.push(name.to_string());
        } else {
            unexpected.push(name);
        }
    }

    let lacking: Vec<String> = absent.iter().map(|e| expected_file_name(map, &e.name)).collect();
    let mut problems = Vec::new();
    for (want, name) in absent.iter().zip(&lacking) {
        if want.required {
            let suggestions = nearest_by(map.bare(name), unexpected.iter().map(|n| (map.bare(n), *n)), 3);
            problems.push(Problem::Missing { name: name.clone(), suggestions });
        } else {
            out.absent.push(want.name.clone());
        }
    }
    for name in unexpected {
        let suggestions = nearest_by(map.bare(name), lacking.iter().map(|n| (map.bare(n), n.as_str())), 1);
        problems.push(Problem::Unexpected { name: name.to_string(), suggestions });
    }
    problems.extend(other);
    if problems.is_empty() {
        return Ok(out);
    }
    Err(Error::Resolve(Box::new(ResolveError { root: weights.root().to_path_buf(), problems })))
}
