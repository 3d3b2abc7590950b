//! `genus plan`: what pretraining a model of some size needs.

use std::time::Duration;

use genus_models::budget::{Budget, Machine, Run, Split};
use genus_models::{Flops, Model};
use genus_ops::Spans;
use serde_json::{Value, json};

use crate::Context;
use crate::model::{self, DimensionFlags};
use crate::progress::{bytes, grouped, short_count};
use crate::report::{Usage, json_line};
use crate::source::model_folder;

/// What pretraining a model needs: parameters, operations, memory on each device, and days on a cluster.
///
/// Nothing is allocated or trained. Without a split, the usual ones for the number of devices are compared. Arithmetic is 6 operations a parameter
/// and token (8 with --recompute); memory follows ZeRO and Megatron's published formulas, for attention that holds no scores.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// Preset (`genus tree` lists them), folder or hub id.
    #[arg(value_name = "PRESET|MODEL")]
    model: String,
    #[command(flatten)]
    dimensions: DimensionFlags,
    /// Tokens to train on, in all: a number, or 300e9.
    #[arg(long, value_name = "N", default_value_t = 300e9)]
    tokens: f64,
    /// Tokens of a step.
    #[arg(long, value_name = "N", default_value_t = 3_145_728)]
    batch_tokens: usize,
    /// Tokens of a sequence; without it, the longest that the model takes.
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Sequences that each copy of the model takes at a time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    micro_batch: usize,
    /// Recompute every layer in the backward pass instead of remembering it.
    #[arg(long)]
    recompute: bool,
    /// Number of devices.
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Cluster")]
    devices: usize,
    /// Devices that share each matrix.
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    tensor_parallel: Option<usize>,
    /// Devices that share the layers.
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    pipeline_parallel: Option<usize>,
    /// What copies of the model share: 0 nothing, 1 the optimiser's state, 2 gradients too, 3 weights too.
    #[arg(long, value_name = "STAGE", help_heading = "Cluster")]
    zero: Option<u8>,
    /// Operations a second of a device at best; by default an A100's in 16 bits.
    #[arg(long, value_name = "X", default_value_t = 312e12, help_heading = "Cluster")]
    device_flops: f64,
    /// Memory of a device in bytes.
    #[arg(long, value_name = "X", default_value_t = 80e9, help_heading = "Cluster")]
    device_memory: f64,
    /// The part of a device's operations that training reaches.
    #[arg(long, value_name = "X", default_value_t = 0.4, help_heading = "Cluster")]
    utilization: f64,
    /// Everything in 32 bits, instead of products in 16 with weights and moments in 32 beside them.
    #[arg(long)]
    full_precision: bool,
}

impl Plan {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let (family, spec) = match model::preset(&self.model, &self.dimensions.into())? {
            Some(preset) => preset,
            None => {
                let (family, spec, _) = Model::read_config(&model_folder(&self.model)?)?;
                (family, spec)
            }
        };
        let parameters = family.count(&spec, family.default_task())?;
        let length = self.context.unwrap_or(spec.n_ctx);
        let run = Run {
            tokens: self.tokens,
            batch_tokens: self.batch_tokens,
            context: length,
            micro_batch: self.micro_batch,
            mixed: !self.full_precision,
            recompute: self.recompute,
        };
        let machine = Machine { memory: self.device_memory, flops: self.device_flops, utilization: self.utilization };
        let mut rows = Vec::new();
        for split in self.splits(&spec)? {
            rows.push((split, Budget::of(parameters, &spec, &run, split, machine)?));
        }
        let exact = Flops::of(&spec, &Spans::single(length), length, false).training() / length as f64;
        let Some((_, first)) = rows.first() else { return Ok(()) };
        if context.json {
            let splits: Vec<Value> = rows.iter().map(|(split, b)| as_json(*split, b, machine)).collect();
            return json_line(&json!({
                "model": self.model, "parameters": parameters, "flops_per_token": first.flops_per_token,
                "flops_per_token_by_definition": exact, "flops": first.flops, "tokens": self.tokens, "splits": splits,
            }));
        }
        anstream::println!(
            "\x1b[1m{}\x1b[0m  {} parameters: {} layers, d_model {}, {} heads of {}, context {}, vocabulary {}",
            self.model,
            grouped(parameters),
            spec.n_layers,
            spec.d_model,
            spec.n_heads,
            spec.d_head,
            spec.n_ctx,
            grouped(spec.vocab_size as u64)
        );
        anstream::println!(
            "a token      {} operations ({} a parameter); {} by the definition, attention over {length} tokens included",
            short_count(first.flops_per_token),
            if self.recompute { 8 } else { 6 },
            short_count(exact)
        );
        anstream::println!(
            "in all       {:.3e} operations over {} tokens: {:.0} petaflop/s-days",
            first.flops,
            short_count(self.tokens),
            first.flops / 8.64e19
        );
        anstream::println!(
            "devices      {} of {} and {}FLOP/s, of which {:.0} % are reached\n",
            grouped(self.devices as u64),
            bytes(self.device_memory as u64),
            short_count(self.device_flops),
            100.0 * self.utilization
        );
        anstream::println!(
            "\x1b[2mdata x tensor x pipeline, ZeRO     weights  gradients  optimiser  activations     a device     bubble      time\x1b[0m"
        );
        for (split, b) in &rows {
            let fits = if b.memory() <= machine.memory { "" } else { "  \x1b[33mtoo much\x1b[0m" };
            let layout = format!("{} x {} x {}, {}", split.data, split.tensor, split.pipeline, split.zero);
            let size = |x: f64| bytes(x as u64);
            anstream::println!(
                "{layout:<29} {:>12} {:>10} {:>10} {:>12} {:>12} {:>8.1} % {:>9}{fits}",
                size(b.weights),
                size(b.gradients),
                size(b.optimizer),
                size(b.activations),
                size(b.memory()),
                100.0 * b.bubble,
                time(b.seconds)
            );
        }
        Ok(())
    }

    /// The split that was asked for, or the usual ones.
    fn splits(&self, spec: &genus_models::StackSpec) -> anyhow::Result<Vec<Split>> {
        let split = |tensor: usize, pipeline: usize, zero: u8| {
            let both = tensor.saturating_mul(pipeline);
            if both == 0 || self.devices == 0 || !self.devices.is_multiple_of(both) {
                return Err(Usage(format!(
                    "--devices is {}, expected a multiple of tensor-parallel x pipeline-parallel = {both}",
                    self.devices
                )));
            }
            Ok(Split { data: self.devices / both, tensor, pipeline, zero })
        };
        if self.tensor_parallel.is_some() || self.pipeline_parallel.is_some() || self.zero.is_some() {
            let (tensor, pipeline) = (self.tensor_parallel.unwrap_or(1), self.pipeline_parallel.unwrap_or(1));
            return Ok(vec![split(tensor, pipeline, self.zero.unwrap_or(0))?]);
        }
        let mut all: Vec<Split> = (0..=3).map(|zero| split(1, 1, zero)).collect::<Result<_, _>>()?;
        // As many devices of one machine as share matrices well, and pipelines of them.
        let tensor = [8, 4, 2].into_iter().find(|&t| spec.n_heads.is_multiple_of(t) && self.devices.is_multiple_of(t));
        if let Some(tensor) = tensor {
            all.push(split(tensor, 1, 1)?);
            let stages = [16, 12, 8, 6, 4, 2].into_iter();
            let mut fitting =
                stages.filter(|&p| spec.n_layers.is_multiple_of(p) && self.devices.is_multiple_of(tensor * p));
            if let Some(pipeline) = fitting.next() {
                all.push(split(tensor, pipeline, 1)?);
            }
        }
        // A batch has no more sequences than copies can share.
        let sequences = self.batch_tokens / (self.context.unwrap_or(spec.n_ctx) * self.micro_batch).max(1);
        all.retain(|s| s.data <= sequences.max(1));
        if all.is_empty() {
            all.push(split(1, 1, 0)?);
        }
        Ok(all)
    }
}

fn as_json(split: Split, b: &Budget, machine: Machine) -> Value {
    json!({
        "data_parallel": split.data, "tensor_parallel": split.tensor, "pipeline_parallel": split.pipeline,
        "zero": split.zero, "weights_bytes": b.weights, "gradients_bytes": b.gradients,
        "optimizer_bytes": b.optimizer, "activations_bytes": b.activations, "device_bytes": b.memory(),
        "fits": b.memory() <= machine.memory, "bubble": b.bubble, "seconds": b.seconds,
    })
}

/// Days where there are any.
fn time(seconds: f64) -> String {
    match seconds / 86_400.0 {
        days if days >= 1000.0 => format!("{:.1} years", days / 365.25),
        days if days >= 1.0 => format!("{days:.1} days"),
        _ => crate::progress::duration(Duration::from_secs_f64(seconds)),
    }
}
