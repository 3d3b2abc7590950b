//! Training: objectives, the optimiser, schedules, the one training loop, exact resuming, metrics.
//!
//! * [`train`] runs a [`TrainConfig`] into a run folder; [`resume`] goes on with one, bit for bit as if it had never stopped.
//!   [`Hooks`] hear of every step, evaluation and checkpoint.
//! * [`Trainer`] is what the loop repeats: batches in, one update of the weights out.
//! * [`Objective`] turns a model and a batch into a loss; models know nothing of objectives.
//! * [`mod@bench`] times training steps.
//!
//! A run folder holds `config.toml` (the effective configuration), `metrics.jsonl`, a TensorBoard event file, `tokenizer/`,
//! and `checkpoint-<step>/`: each a loadable model folder that also carries the state of training.

pub mod bench;
mod carried;
mod config;
mod data;
mod error;
mod evaluate;
mod hooks;
mod memory;
mod metrics;
mod objective;
mod optimizer;
mod prefetch;
mod ramp;
mod replaced;
mod run;
mod schedule;
mod setup;
mod tensorboard;
mod text;
mod train;
mod trainer;

pub use config::{DocumentKind, Resolved, TrainConfig};
pub use data::{Data, Dev, Fingerprint, Phase};
pub use error::{Error, Result};
pub use evaluate::{Evaluation, evaluate};
pub use hooks::{CheckpointInfo, Hooks, Quiet, StartInfo, StepInfo};
pub use memory::{peak_rss, reset_peak_rss, rss};
pub use objective::{Loss, Objective, Scales, Targets};
pub use optimizer::{Optimizer, OptimizerSettings, freeze};
pub use prefetch::BatchSize;
pub use ramp::Ramp;
pub use schedule::{Schedule, ScheduleKind};
pub use tensorboard::EventWriter;
pub use train::{Outcome, RunOptions, resume, train};
pub use trainer::{Trainer, Update};
