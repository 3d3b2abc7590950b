//! Genus: reading and writing model folders and training state.
//!
//! * [`Weights`] opens the weights of a folder in Hugging Face's layout (safetensors or torch pickles, single or sharded)
//!   and hands out tensors lazily; every byte from a stranger is checked before it is used.
//! * [`write_model`] writes such a folder; [`atomic`] holds the helpers that make a file or folder appear complete or
//!   not at all.
//! * [`names`] renames tensors between a model's own names and a checkpoint's, from tables, in both directions.
//! * [`state`] holds what a run needs besides its weights to go on exactly; [`RunLock`] keeps two runs out of one folder.
//! * [`config`] reads JSON files with errors that name the field; [`hub`] fetches models by id.
//!
//! Nothing here knows the name of a model.

pub mod atomic;
pub mod config;
mod dtype;
mod error;
mod hdf5;
pub mod hub;
mod lock;
mod mapped;
pub mod names;
mod pickle;
mod safetensors;
pub mod state;
mod weights;
mod write;

pub use dtype::Dtype;
pub use error::{Error, Result};
pub use hdf5::Hdf5;
pub use lock::{LOCK_FILE, RunLock};
pub use safetensors::MAX_HEADER;
pub use weights::{FILE_NAMES, TensorInfo, Weights};
pub use write::{TensorSpec, WriteOptions, copy_weights, write_model, write_single, write_tensors};
