//! Ten steps of this crate's objectives, schedule and optimiser against ten of PyTorch.

use genus_models::nn::Dropout;
use genus_models::{LoadOptions, Model};
use genus_ops::{DType, Tensor};
use genus_text::{Batch, Sample};
use genus_train::{Objective, OptimizerSettings, Schedule, ScheduleKind, Trainer};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Steps {
    lr: Vec<f64>,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    max_norm: f64,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    batches: Vec<Padded>,
}

#[derive(Deserialize)]
struct Padded {
    input_ids: Vec<Vec<u32>>,
    attention_mask: Option<Vec<Vec<u8>>>,
    decoder_input_ids: Option<Vec<Vec<u32>>>,
    labels: Vec<Vec<i32>>,
    token_type_ids: Option<Vec<Vec<u32>>>,
    next_sentence_label: Option<Vec<u32>>,
}

impl Padded {
    /// The real tokens of each row; labels of causal models move one to the left, as the reference does inside.
    fn ragged(&self, objective: Objective, continues: bool) -> Batch {
        let row = |i: usize| {
            let real = |&j: &usize| self.attention_mask.as_ref().is_none_or(|mask| mask[i][j] == 1);
            let real: Vec<usize> = (0..self.input_ids[i].len()).filter(real).collect();
            let ids: Vec<u32> = real.iter().map(|&j| self.input_ids[i][j]).collect();
            if let Some(targets) = &self.decoder_input_ids {
                let (spans, labels) = (vec![targets[i].len()], self.labels[i].clone());
                return Sample { ids: targets[i].clone(), spans, labels, source: ids, ..Sample::default() };
            }
            let labels = match objective {
                Objective::Causal => {
                    real.iter().skip(1).map(|&j| self.labels[i][j]).chain(std::iter::once(-100)).collect()
                }
                _ => real.iter().map(|&j| self.labels[i][j]).collect(),
            };
            Sample {
                ids,
                continues,
                spans: vec![real.len()],
                token_types: self
                    .token_type_ids
                    .as_ref()
                    .map_or(Vec::new(), |t| real.iter().map(|&j| t[i][j]).collect()),
                labels,
                next_sentence: self.next_sentence_label.as_ref().map(|l| l[i]),
                ..Sample::default()
            }
        };
        (0..self.input_ids.len()).map(row).collect()
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity").join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, |m, d| if d.is_nan() { d } else { m.max(d) })
}

/// `slack` is how many times the float32 reference's own deviation from float64 is allowed: once for float64 (the deviation
/// is rounded to three digits), and for float32 eight times, since two float32 computations that sum in different orders are
/// each that far off, with the spread of a single sample.
fn ten_steps(case: &str, objective: Objective, schedule: Schedule, dtype: DType, slack: f64) {
    let folder = fixture(case);
    let steps: Steps = serde_json::from_value(read(&folder.join("steps.json"))).unwrap();
    let file = if case.starts_with("xl-") { "tolerances-xl.json" } else { "tolerances.json" };
    let deviations: BTreeMap<String, Value> =
        serde_json::from_value(read(&fixture(file))[format!("{case}-steps")].clone()).unwrap();
    let allowed = |name: &str, scale: f64| {
        // In float64: half a unit of float32, in which the scale of attention is held.
        let units = if dtype == DType::F32 { 2.4e-7 } else { 6e-8 };
        slack * deviations[name]["max_abs"].as_f64().unwrap() + units * scale
    };
    let options = LoadOptions { task: Some(objective.task()), dtype, ..LoadOptions::default() };
    let mut model = Model::load(&folder, &options).unwrap().model;
    // The reference runs in evaluation mode.
    let mut spec = model.spec().clone();
    spec.dropout = Dropout { embedding: 0.0, attention: 0.0, residual: 0.0, inner: 0.0 };
    model = rebuilt(&model, spec, objective);
    let settings = OptimizerSettings {
        beta1: steps.betas[0],
        beta2: steps.betas[1],
        eps: steps.eps,
        weight_decay: steps.weight_decay,
        clip: steps.max_norm,
    };
    let mut trainer = Trainer::new(model, objective, settings, schedule, 0).unwrap();
    for (i, batch) in steps.batches.iter().enumerate() {
        let update = trainer.update(&[batch.ragged(objective, i > 0)]).unwrap();
        assert!((update.lr - steps.lr[i]).abs() < 1e-15, "step {i}: lr {} {}", update.lr, steps.lr[i]);
        let (loss, norm) = (steps.losses[i], steps.grad_norms[i]);
        assert!((update.loss - loss).abs() <= allowed("loss", loss), "step {i}: loss {} {loss}", update.loss);
        assert!(
            (update.grad_norm - norm).abs() <= allowed("grad_norm", norm),
            "step {i}: norm {} {norm}",
            update.grad_norm
        );
    }
    let weights = genus_checkpoint::Weights::open(folder.join("steps.safetensors")).unwrap();
    let most = steps.lr.iter().copied().fold(0.0, f64::max);
    // Adam divides by the gradient's size: where it nearly vanishes in some step, rounding moves that step's part. A thousandth
    // of one step in float32 and a ten-thousandth in float64 (the scale of attention is a float32) are allowed.
    let slack = most * if dtype == DType::F32 { 1e-3 } else { 1e-4 };
    let mut compared = 0;
    for (name, tensor) in trainer.model().named_tensors().unwrap() {
        let (mut ours, mut theirs) = (numbers(&tensor), numbers(&weights.tensor(&name).unwrap()));
        if name.ends_with("self.key.bias") || name.ends_with("attention.k_lin.bias") {
            continue; // Its true gradient is zero: Adam makes steps of arbitrary sign out of the rounding.
        }
        if name.ends_with("attn.c_attn.bias") {
            let third = ours.len() / 3;
            ours.drain(third..2 * third);
            theirs.drain(third..2 * third);
        }
        let scale = theirs.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        // GPT-2's packed bias has its deviation dominated by the key's part, so it is judged by the weight's.
        let judged = name.replace("attn.c_attn.bias", "attn.c_attn.weight");
        let (off, allowed) = (far(&ours, &theirs), allowed(&judged, scale) + slack);
        assert!(off <= allowed, "{case} {dtype:?} {name}: off by {off}, allowed {allowed}");
        compared += 1;
    }
    assert!(compared > 20, "{compared}");
}

/// The same weights with another specification.
fn rebuilt(model: &Model, spec: genus_models::StackSpec, objective: Objective) -> Model {
    struct Copy<'a>(&'a Model);
    impl genus_models::nn::Source for Copy<'_> {
        fn get(&mut self, name: &str, _: &[usize], _: genus_models::nn::Init) -> genus_models::nn::Result<Tensor> {
            Ok(self.0.params().iter().find(|p| p.name() == name).unwrap().tensor())
        }
    }
    Model::from_source(model.family(), spec, objective.task(), &mut Copy(model)).unwrap()
}

fn schedule(kind: ScheduleKind, lr: f64, warmup_steps: u64, steps: u64) -> Schedule {
    Schedule { kind, lr, warmup_steps, steps, floor: 0.0, d_model: 1 }
}

#[test]
fn gpt2_takes_the_steps_of_pytorch() {
    let s = schedule(ScheduleKind::Constant, 2e-2, 4, 10);
    ten_steps("gpt2-causal-lm", Objective::Causal, s, DType::F64, 1.01);
    ten_steps("gpt2-causal-lm", Objective::Causal, s, DType::F32, 8.0);
}

#[test]
fn bert_takes_the_steps_of_pytorch() {
    let s = schedule(ScheduleKind::Linear, BERT.0, BERT.1, BERT.2);
    ten_steps("bert-pretraining", Objective::Pretraining, s, DType::F64, 1.01);
    ten_steps("bert-pretraining", Objective::Pretraining, s, DType::F32, 8.0);
}

/// Peak, warm-up and end of the fixture's schedule.
const BERT: (f64, u64, u64) = (1e-2, 4, 12);

#[test]
fn their_relatives_take_the_steps_of_pytorch() {
    let s = schedule(ScheduleKind::Constant, 1e-2, 4, 10);
    for (case, objective) in [
        ("gpt-causal-lm", Objective::Causal),
        ("gpt-neo-causal-lm", Objective::Causal),
        ("roberta-masked-lm", Objective::Masked),
        ("distilbert-masked-lm", Objective::Masked),
        ("electra-generator", Objective::Masked),
        ("marian-seq2seq", Objective::Translation),
        // Each step goes on from the memory that the one before left.
        ("xl-causal-lm", Objective::Causal),
    ] {
        ten_steps(case, objective, s, DType::F64, 1.01);
        ten_steps(case, objective, s, DType::F32, 8.0);
    }
}
