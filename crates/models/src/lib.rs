//! One file per model of the family, the registry, and model folders in Hugging Face's layout.
//!
//! A [`Family`] says, as data, what one member of the family is: paper, ancestor, differences, published sizes, configuration
//! and tensor names. A [`Model`] is a member with weights: [`Model::random`], [`Model::load`], [`Model::save`].

mod bert;
mod bi_transformer;
mod bilstm;
pub mod budget;
mod config;
mod distilbert;
mod electra;
mod elmo;
mod elmo_weights;
mod error;
mod flops;
mod gpt;
mod gpt2;
mod gpt3;
mod gpt_neo;
mod labels;
mod model;
mod registry;
mod roberta;
mod task;
mod transformer;
mod transformer_xl;

pub use error::{Error, Result};
pub use flops::Flops;
pub use genus_checkpoint as checkpoint;
pub use genus_nn as nn;
pub use genus_nn::{Encoded, Input, SequenceCache, StackSpec, StreamMemory};
pub use labels::{Labels, Problem};
pub use model::{LoadOptions, Loaded, Model};
pub use registry::{Dimensions, Family, Lineage, Preset, families, family, find_preset, lineage, presets};
pub use task::Task;
