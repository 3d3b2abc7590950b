//! Recomputing layers in the backward pass: not a bit changes, and memory is saved.
#![allow(unsafe_code)]

mod common;

use common::{assert_same_run, bert, gpt2, train, write_text};
use genus_models::nn::{CellOutput, Mixing, RandomSource, Vocabulary};
use genus_models::{Dimensions, Model, families};
use genus_ops::{DType, Device, Path, Tape, rng::Key, scalar, to_vec};
use genus_text::Batch;
use genus_train::bench::{Timing, natural_batch, random_batch, train_step};
use genus_train::{Objective, OptimizerSettings, Schedule, ScheduleKind, TrainConfig, Trainer, freeze};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what this thread holds: tensors are made and freed by the thread that runs the model.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends frees its last blocks when its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Random characters for the tokens of a model that reads those.
fn spell(model: &Model) {
    if let Vocabulary::Characters(c) = &model.spec().vocabulary {
        let of = |i: usize| (genus_ops::rng::mix64(i as u64) % 261) as u32;
        model.set_spellings(&(0..101 * c.length).map(of).collect::<Vec<_>>()).unwrap();
    }
}

/// Every objective of every member, with dropout.
fn models(dtype: DType) -> Vec<(String, Objective, Model)> {
    let mut all = Vec::new();
    for family in families() {
        for (task, _) in family.tasks {
            let Some(objective) = Objective::of(*task) else { continue };
            let spec = (family.presets[0].spec)();
            let [n_layers, d_model, n_heads, d_ff, vocab_size, n_ctx] = [3, 36, 3, 50, 101, 40].map(Some);
            let memory = (spec.memory_length() > 0).then_some(9);
            let d_ff = match spec.mixing {
                Mixing::Recurrent { output: CellOutput::Cells, .. } => d_model,
                _ => d_ff,
            };
            let sizes = Dimensions { n_layers, d_model, n_heads, d_ff, vocab_size, n_ctx, memory };
            let mut spec = sizes.apply(spec).unwrap();
            spec.init.std = 0.2;
            if let Vocabulary::Characters(c) = &mut spec.vocabulary {
                (c.filters, c.length) = (vec![(1, 5), (3, 20)], 12);
            }
            (spec.dropout.embedding, spec.dropout.attention, spec.dropout.residual) = (0.1, 0.2, 0.15);
            let source = &mut RandomSource::on(3, dtype, Device::Cpu);
            let mut model = Model::from_source(family, spec, *task, source).unwrap();
            spell(&model);
            if objective == Objective::ReplacedTokens {
                model = model.with_random_generator(0.3, 4).unwrap();
            }
            all.push((format!("{} {objective}", family.name), objective, model));
        }
    }
    assert!(all.len() >= 3);
    all
}

fn batch(objective: Objective, seed: u64) -> Batch {
    let rows: Vec<Vec<u32>> = [7, 1, 33, 12]
        .iter()
        .map(|&n| (0..n).map(|i| (genus_ops::rng::mix64(seed * 1000 + i) % 101) as u32).collect())
        .collect();
    natural_batch(objective, &rows, seed).unwrap()
}

fn bits(model: &Model, of: impl Fn(&genus_ops::Param) -> Option<genus_ops::Tensor>) -> Vec<(String, Vec<u32>)> {
    let bits = |t| to_vec(&t).unwrap().iter().map(|x| x.to_bits()).collect();
    model.params().iter().filter_map(|p| Some((p.name().to_owned(), bits(of(p)?)))).collect()
}

#[test]
fn gradients_have_the_same_bits() {
    for (name, objective, model) in models(DType::F32) {
        let batch = batch(objective, 1);
        for path in [Path::Kernels, Path::Definitions] {
            let run = |recompute| {
                model.params().iter().for_each(|p| p.clear_grad());
                let tape = Tape::training(Key::new(5, 1)).with_path(path).with_recompute(recompute);
                let loss =
                    objective.loss(&model, &tape, &batch, objective.targets(&batch).scales(), 0.0, None).unwrap();
                tape.backward(&loss.total).unwrap();
                (scalar(loss.total.tensor()).unwrap().to_bits(), bits(&model, |p| p.grad()))
            };
            let (plain, again) = (run(false), run(true));
            assert_eq!(plain.1.len(), model.params().iter().filter(|p| p.trainable()).count(), "{name}");
            assert!(plain == again, "{name} {path:?}");
        }
    }
}

#[test]
fn the_course_of_the_loss_has_the_same_bits() {
    let settings = OptimizerSettings { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0 };
    let schedule =
        Schedule { kind: ScheduleKind::Cosine, lr: 1e-2, warmup_steps: 3, steps: 20, floor: 0.1, d_model: 36 };
    for frozen in [&[][..], &["layers.0.*".to_owned(), "embeddings.*".to_owned()]] {
        let run = |recompute| {
            let all = models(DType::F32).into_iter().map(|(name, objective, model)| {
                freeze(&model, frozen).unwrap();
                let mut trainer = Trainer::new(model, objective, settings, schedule, 7).unwrap();
                trainer.set_recompute(recompute);
                let steps: Vec<(u64, u64)> = (0..20)
                    .map(|i| trainer.update(&[batch(objective, i), batch(objective, 100 + i)]).unwrap())
                    .map(|u| (u.loss.to_bits(), u.grad_norm.to_bits()))
                    .collect();
                (name, steps, bits(trainer.model(), |p| Some(p.tensor())))
            });
            all.collect::<Vec<_>>()
        };
        for (plain, again) in run(false).into_iter().zip(run(true)) {
            assert!(plain == again, "{} frozen {frozen:?}", plain.0);
        }
    }
}

/// A run's whole record and its checkpoints.
#[test]
fn runs_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 60);
    for (name, config) in [("gpt2", gpt2(&data)), ("bert", bert(&data))] {
        let (plain, again) = (dir.path().join(format!("{name}-plain")), dir.path().join(format!("{name}-again")));
        train(&config, &plain).unwrap();
        train(&TrainConfig { recompute: true, ..config.clone() }, &again).unwrap();
        assert_same_run(&plain, &again, config.steps);
        // What the run did is written down, and a resumed run does it too.
        assert!(TrainConfig::read(&again.join("config.toml")).unwrap().recompute);
    }
}

#[test]
fn much_less_memory_is_held() {
    for (name, objective, model) in models(DType::F32) {
        let family = model.family();
        let mut spec = (family.presets[0].spec)();
        (spec.d_model, spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.d_head) = (48, 12, 4, 4, 12);
        (spec.d_ff, spec.vocab_size, spec.n_ctx) = (192, 101, 128);
        if matches!(spec.mixing, Mixing::Recurrent { output: CellOutput::Cells, .. }) {
            spec.d_ff = spec.d_model;
        }
        if let Vocabulary::Characters(c) = &mut spec.vocabulary {
            (c.filters, c.length) = (vec![(1, 5), (3, 20)], 12);
        }
        let most = |recompute| {
            let mut model = Model::random(family, spec.clone(), objective.task(), 1).unwrap();
            spell(&model);
            if objective == Objective::ReplacedTokens {
                model = model.with_random_generator(0.25, 1).unwrap();
            }
            let batch = random_batch(&spec, objective, 8, 128, 1).unwrap();
            // The first run makes the buffers that stay.
            let run = || {
                let timing =
                    Timing { warmup: 0, runs: 1, recompute, precision: genus_ops::Precision::F32, smoothing: 0.0 };
                train_step(&model, objective, std::slice::from_ref(&batch), timing).unwrap()
            };
            let first = run();
            let before = HELD.get();
            MOST.set(before);
            run();
            ((MOST.get() - before) as usize, first.losses[0].to_bits())
        };
        let ((plain, loss), (again, same)) = (most(false), most(true));
        assert!(loss == same, "{name}");
        // Twelve layers of activations against one layer's, what lies between layers, and the moments.
        assert!(again * 2 < plain, "{name}: {again} bytes with recomputing, {plain} without");
    }
}
