//! What a pretraining run needs: arithmetic, memory on each device, and time on a cluster.
//!
//! Arithmetic is 6 operations a parameter and token (Kaplan et al. 2020, arXiv 2001.08361; GPT-3's table D.1), 8 where layers are
//! recomputed in the backward pass. Memory of weights, gradients and optimiser is that of ZeRO (Rajbhandari et al. 2020,
//! arXiv 1910.02054), memory of activations that of Korthikanti et al. 2022 (arXiv 2205.05198) for attention that holds no scores.
//! Time follows Narayanan et al. 2021 (arXiv 2104.04473), the pipeline's bubble included.

use crate::{Error, Result};
use genus_nn::StackSpec;

/// How a run is laid out over devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Copies of the model that share each batch.
    pub data: usize,
    /// Devices that share each matrix (Shoeybi et al. 2019, arXiv 1909.08053).
    pub tensor: usize,
    /// Devices that share the layers, one after the other.
    pub pipeline: usize,
    /// What the copies share instead of holding it whole: 0 nothing, 1 the optimiser's state, 2 gradients too, 3 weights too.
    pub zero: u8,
}

impl Split {
    /// Number of devices.
    pub fn devices(self) -> usize {
        self.data.saturating_mul(self.tensor).saturating_mul(self.pipeline)
    }
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Its memory in bytes.
    pub memory: f64,
    /// Operations a second that it has at best.
    pub flops: f64,
    /// The part of them that training reaches.
    pub utilization: f64,
}

/// A pretraining run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Tokens in all.
    pub tokens: f64,
    /// Tokens of a step.
    pub batch_tokens: usize,
    /// Tokens of a sequence.
    pub context: usize,
    /// Sequences that a copy of the model takes at a time.
    pub micro_batch: usize,
    /// Whether products are taken in 16 bits, with weights and moments in f32 beside them.
    pub mixed: bool,
    /// Whether layers are recomputed in the backward pass.
    pub recompute: bool,
}

/// What the run needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Operations of training on one token, by parameters: 6, or 8 with recomputation.
    pub flops_per_token: f64,
    /// Operations in all that the model needs, without recomputation.
    pub flops: f64,
    /// On the fullest device: weights, in bytes.
    pub weights: f64,
    /// Gradients.
    pub gradients: f64,
    /// The optimiser's state, a copy of the weights in f32 included where products are taken in 16 bits.
    pub optimizer: f64,
    /// What the backward pass needs of the forward pass.
    pub activations: f64,
    /// The part of the time in which a device of a pipeline waits for others.
    pub bubble: f64,
    /// Seconds in all.
    pub seconds: f64,
}

impl Budget {
    /// Memory of the fullest device, in bytes.
    pub fn memory(&self) -> f64 {
        self.weights + self.gradients + self.optimizer + self.activations
    }

    /// Of training a model of so many parameters.
    ///
    /// # Errors
    /// When the split cannot be: names the number that does not fit.
    pub fn of(parameters: u64, spec: &StackSpec, run: &Run, split: Split, machine: Machine) -> Result<Self> {
        check(spec, run, split, machine)?;
        let n = parameters as f64;
        let per_token = if run.recompute { 8.0 } else { 6.0 } * n;
        let (weight, gradient, moments) = if run.mixed { (2.0, 2.0, 12.0) } else { (4.0, 4.0, 8.0) };
        let own = n / (split.tensor * split.pipeline) as f64;
        let shared = |from: u8| if split.zero >= from { split.data as f64 } else { 1.0 };
        let micro_batches = run.batch_tokens as f64 / (run.context * run.micro_batch * split.data) as f64;
        let waiting = split.pipeline as f64 - 1.0;
        let rate = machine.flops * machine.utilization * split.devices() as f64;
        let stretch = 1.0 + waiting / micro_batches;
        Ok(Budget {
            flops_per_token: per_token,
            flops: 6.0 * n * run.tokens,
            weights: weight * own / shared(3),
            gradients: gradient * own / shared(2),
            optimizer: moments * own / shared(1),
            activations: activations(spec, run, split),
            bubble: 1.0 - 1.0 / stretch,
            seconds: per_token * run.tokens / rate * stretch,
        })
    }
}

/// Bytes that a device holds between the passes. The first stage of a pipeline has as many micro-batches under way as there are
/// stages, each with its part of the layers: together as much as one micro-batch through all layers.
fn activations(spec: &StackSpec, run: &Run, split: Split) -> f64 {
    let bytes = if run.mixed { 1.0 } else { 2.0 };
    let stream = (run.context * run.micro_batch * spec.d_model) as f64 * bytes;
    // Of a layer, in units of the stream at 2 bytes: what tensor parallelism repeats on every device, and what it divides.
    let layer = 10.0 + 24.0 / split.tensor as f64;
    let layers = spec.n_layers as f64;
    // Recomputed layers keep their input alone; one at a time is whole.
    stream * if run.recompute { 2.0 * layers + layer } else { layer * layers }
}

fn check(spec: &StackSpec, run: &Run, split: Split, machine: Machine) -> Result<()> {
    let wrong = |field, found: String, expected: String| Err(Error::Dimension { field, found, expected });
    for (field, n) in [
        ("data-parallel", split.data),
        ("tensor-parallel", split.tensor),
        ("pipeline-parallel", split.pipeline),
        ("micro-batch", run.micro_batch),
        ("context", run.context),
    ] {
        if n == 0 || n > 1 << 24 {
            return wrong(field, n.to_string(), format!("a number from 1 to {}", 1 << 24));
        }
    }
    for (field, x) in [("tokens", run.tokens), ("device-flops", machine.flops), ("device-memory", machine.memory)] {
        if !(x.is_finite() && x > 0.0) {
            return wrong(field, x.to_string(), "a positive number".into());
        }
    }
    if !(machine.utilization > 0.0 && machine.utilization <= 1.0) {
        return wrong("utilization", machine.utilization.to_string(), "above 0 and at most 1".into());
    }
    if split.zero > 3 {
        return wrong("zero", split.zero.to_string(), "0, 1, 2 or 3".into());
    }
    if run.context > spec.n_ctx {
        return wrong("context", run.context.to_string(), format!("at most n_ctx = {}", spec.n_ctx));
    }
    if !spec.n_heads.is_multiple_of(split.tensor) {
        return wrong("tensor-parallel", split.tensor.to_string(), format!("a divisor of n_heads = {}", spec.n_heads));
    }
    if !spec.n_layers.is_multiple_of(split.pipeline) {
        let expected = format!("a divisor of n_layers = {}", spec.n_layers);
        return wrong("pipeline-parallel", split.pipeline.to_string(), expected);
    }
    let least = run.context.saturating_mul(run.micro_batch).saturating_mul(split.data);
    if run.batch_tokens < least {
        let expected = format!("at least {least}: context, micro-batch and data-parallel multiplied");
        return wrong("batch-tokens", run.batch_tokens.to_string(), expected);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Task, find_preset};

    const ALONE: Split = Split { data: 1, tensor: 1, pipeline: 1, zero: 0 };
    const A100: Machine = Machine { memory: 80e9, flops: 312e12, utilization: 0.5 };

    fn run() -> Run {
        let batch_tokens = 3_145_728;
        Run { tokens: 300e9, batch_tokens, context: 2048, micro_batch: 1, mixed: true, recompute: false }
    }

    fn model(name: &str) -> (u64, StackSpec) {
        let (family, preset) = find_preset(name).unwrap();
        let spec = (preset.spec)();
        (family.count(&spec, Task::CausalLm).unwrap(), spec)
    }

    /// Table D.1 of the GPT-3 paper, which rounds parameters and operations to three digits.
    #[test]
    fn arithmetic_of_gpt3() {
        for (name, flops) in [
            ("gpt3-125m", 2.25e20),
            ("gpt3-350m", 6.41e20),
            ("gpt3-760m", 1.37e21),
            ("gpt3-2.7b", 4.77e21),
            ("gpt3-6.7b", 1.20e22),
            ("gpt3-175b", 3.14e23),
        ] {
            let (n, spec) = model(name);
            let got = Budget::of(n, &spec, &run(), ALONE, A100).unwrap().flops;
            assert!((got / flops - 1.0).abs() < 0.005, "{name}: {got:.3e}");
        }
    }

    /// Narayanan et al. 2021, section 5.1: 300 billion tokens through 175 billion parameters on 1,024 devices that reach 140
    /// TFLOP/s each, with recomputation, take 34 days.
    #[test]
    fn days_of_gpt3() {
        let (n, spec) = model("gpt3-175b");
        let split = Split { data: 128, tensor: 8, pipeline: 1, zero: 0 };
        let machine = Machine { utilization: 140.0 / 312.0, ..A100 };
        let b = Budget::of(n, &spec, &Run { recompute: true, ..run() }, split, machine).unwrap();
        assert!((b.seconds / 86_400.0 - 34.0).abs() < 0.5, "{}", b.seconds / 86_400.0);
        assert_eq!(b.bubble, 0.0);
    }

    /// Rajbhandari et al. 2020, figure 1: 7.5 billion parameters over 64 devices, in gigabytes.
    #[test]
    fn memory_of_zero() {
        let (_, spec) = model("gpt3-6.7b");
        for (zero, expected) in [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)] {
            let split = Split { data: 64, zero, ..ALONE };
            let b = Budget::of(7_500_000_000, &spec, &run(), split, A100).unwrap();
            let held = (b.weights + b.gradients + b.optimizer) / 1e9;
            assert!((held - expected).abs() < 0.06, "stage {zero}: {held}");
        }
    }

    /// Korthikanti et al. 2022, equation 2 without the scores: s b h (10 + 24 / t) a layer; recomputed, 2 s b h.
    #[test]
    fn memory_of_activations() {
        let (n, spec) = model("gpt3-175b");
        let sbh = 2048.0 * 12_288.0;
        let whole = Budget::of(n, &spec, &run(), Split { tensor: 8, ..ALONE }, A100).unwrap();
        assert_eq!(whole.activations, 96.0 * sbh * 13.0);
        let again = Budget::of(n, &spec, &Run { recompute: true, ..run() }, ALONE, A100).unwrap();
        assert_eq!(again.activations, 96.0 * sbh * 2.0 + sbh * 34.0);
    }

    #[test]
    fn a_pipeline_waits() {
        let (n, spec) = model("gpt3-175b");
        // 1,536 sequences a step over 16 copies: 96 micro-batches through 12 stages.
        let split = Split { data: 16, pipeline: 12, ..ALONE };
        let b = Budget::of(n, &spec, &run(), split, A100).unwrap();
        assert!((b.bubble - 11.0 / (96.0 + 11.0)).abs() < 1e-12, "{}", b.bubble);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let (n, spec) = model("gpt3-175b");
        let field = |run: Run, split: Split, machine: Machine| match Budget::of(n, &spec, &run, split, machine) {
            Err(Error::Dimension { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(run(), Split { tensor: 7, ..ALONE }, A100), "tensor-parallel");
        assert_eq!(field(run(), Split { pipeline: 7, ..ALONE }, A100), "pipeline-parallel");
        assert_eq!(field(run(), Split { data: 0, ..ALONE }, A100), "data-parallel");
        assert_eq!(field(run(), Split { zero: 4, ..ALONE }, A100), "zero");
        assert_eq!(field(run(), Split { data: 4096, ..ALONE }, A100), "batch-tokens");
        assert_eq!(field(Run { context: 4096, ..run() }, ALONE, A100), "context");
        assert_eq!(field(Run { tokens: f64::NAN, ..run() }, ALONE, A100), "tokens");
        assert_eq!(field(run(), ALONE, Machine { utilization: 1.5, ..A100 }), "utilization");
    }
}
