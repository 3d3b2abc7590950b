//! The trainer and the loop on small models.

mod common;

use common::{Log, assert_same_run, bert, gpt2, metrics, options, resume, text, train, write_text};
use genus_models::nn::RandomSource;
use genus_models::{Dimensions, LoadOptions, Model, find_preset};
use genus_ops::{DType, Device, Precision, Tensor, pool, scalar, to_vec};
use genus_text::{Batch, Sample, Tokenizer, rng::Key};
use genus_train::{
    Error, Hooks, Objective, OptimizerSettings, Quiet, Schedule, ScheduleKind, StepInfo, TrainConfig, Trainer, freeze,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SETTINGS: OptimizerSettings =
    OptimizerSettings { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0 };

fn model(preset: &str, objective: Objective, dtype: DType, dropout: f32) -> Model {
    let (family, preset) = find_preset(preset).unwrap();
    let dims = Dimensions {
        n_layers: Some(2),
        d_model: Some(24),
        n_heads: Some(2),
        d_ff: None,
        vocab_size: Some(101),
        n_ctx: Some(40),
        memory: None,
    };
    let mut spec = dims.apply((preset.spec)()).unwrap();
    (spec.dropout.embedding, spec.dropout.attention, spec.dropout.residual) = (dropout, dropout, dropout);
    // Large first weights, so that rounding and masks show.
    spec.init.std = 0.2;
    Model::from_source(family, spec, objective.task(), &mut RandomSource::on(3, dtype, Device::Cpu)).unwrap()
}

fn trainer(model: Model, objective: Objective, lr: f64) -> Trainer {
    let schedule = Schedule { kind: ScheduleKind::Constant, lr, warmup_steps: 0, steps: 10, floor: 0.0, d_model: 24 };
    Trainer::new(model, objective, SETTINGS, schedule, 5).unwrap()
}

/// Sequences of unequal length, about a third of the places labelled.
fn samples(objective: Objective, lengths: &[usize]) -> Vec<Sample> {
    let mut draw = Key::new(9).stream();
    let sample = |&n: &usize| {
        let ids: Vec<u32> = (0..n).map(|_| draw.below(101) as u32).collect();
        let labels = (0..n).map(|i| if i == 0 || draw.unit() < 0.3 { draw.below(101) as i32 } else { -100 }).collect();
        let pair = objective == Objective::Pretraining;
        Sample {
            spans: vec![n],
            token_types: (0..n).map(|i| u32::from(i > n / 2)).collect(),
            labels,
            next_sentence: pair.then(|| draw.below(2) as u32),
            ids,
            ..Sample::default()
        }
    };
    lengths.iter().map(sample).collect()
}

fn weights(t: &Trainer) -> Vec<f64> {
    let numbers = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    t.model().params().iter().flat_map(|p| numbers(&p.tensor())).collect()
}

#[test]
fn accumulation_is_one_large_batch() {
    for (preset, objective) in
        [("gpt2", Objective::Causal), ("bert-tiny", Objective::Masked), ("bert-tiny", Objective::Pretraining)]
    {
        let all = samples(objective, &[7, 1, 12, 3, 9]);
        let whole: Batch = all.iter().cloned().collect();
        let parts: Vec<Batch> = [&all[..1], &all[1..4], &all[4..]].map(|s| s.iter().cloned().collect()).to_vec();
        let run = |batches: &[Batch]| {
            let mut t = trainer(model(preset, objective, DType::F64, 0.0), objective, 1e-2);
            let updates: Vec<_> = (0..3).map(|_| t.update(batches).unwrap()).collect();
            (updates, weights(&t))
        };
        let ((a, wa), (b, wb)) = (run(std::slice::from_ref(&whole)), run(&parts));
        for (a, b) in a.iter().zip(&b) {
            assert!((a.loss - b.loss).abs() < 1e-12 && (a.grad_norm - b.grad_norm).abs() < 1e-10, "{a:?} {b:?}");
            assert_eq!((a.tokens, a.applied), (32, true));
        }
        let off = wa.iter().zip(&wb).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        // In f64 only the order of sums differs; Adam divides by gradients that may be rounding alone (a key's bias), which it
        // leaves below eps-sized steps only where they are exactly zero, so weights are compared loosely.
        assert!(off < 1e-1 && wa != vec![0.0; wa.len()], "{preset}: {off}");
        assert!((a[2].loss - b[2].loss).abs() < 1e-12);
    }
}

#[test]
fn the_loss_is_the_mean_over_the_targets() {
    // One batch with one target: its loss is that row's negative log-likelihood.
    let objective = Objective::Causal;
    let m = model("gpt2", objective, DType::F64, 0.0);
    let s = Sample { ids: vec![5, 6, 7], spans: vec![3], labels: vec![-100, 9, -100], ..Sample::default() };
    let tape = genus_ops::Tape::inference();
    let input = genus_models::Input::from_sequences(&[&s.ids]);
    let hidden = m.hidden(&tape, &input, None, false).unwrap().last;
    let logits = m.lm_head().unwrap().logits(&tape, &hidden).unwrap();
    let row: Vec<f64> = logits.tensor().get(1).unwrap().to_vec1().unwrap();
    let expected = row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[9];
    let batch: Batch = [s].into_iter().collect();
    let loss = objective.loss(&m, &tape, &batch, objective.targets(&batch).scales(), 0.0, None).unwrap();
    assert!((scalar(loss.total.tensor()).unwrap() - expected).abs() < 1e-12);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (preset, objective) in [("gpt2", Objective::Causal), ("bert-tiny", Objective::Pretraining)] {
        let batch: Batch = samples(objective, &[33, 1, 40, 17, 29, 38]).into_iter().collect();
        let run = |threads, precision| {
            pool::with_threads(threads, || {
                let mut t = trainer(model(preset, objective, DType::F32, 0.1), objective, 1e-2);
                t.set_precision(precision);
                let losses: Vec<u64> =
                    (0..4).map(|_| t.update(std::slice::from_ref(&batch)).unwrap().loss.to_bits()).collect();
                (losses, weights(&t))
            })
        };
        for precision in [Precision::F32, Precision::Bf16] {
            assert!(run(1, precision) == run(2, precision), "{preset} in {precision}");
        }
        assert!(run(1, Precision::F32) != run(1, Precision::Bf16), "{preset}: the precision changes nothing");
    }
}

#[test]
fn dropout_depends_on_seed_and_step() {
    let objective = Objective::Causal;
    let batch: Batch = samples(objective, &[20]).into_iter().collect();
    let loss = |seed| {
        let schedule =
            Schedule { kind: ScheduleKind::Constant, lr: 1e-9, warmup_steps: 0, steps: 9, floor: 0.0, d_model: 24 };
        let mut t =
            Trainer::new(model("gpt2", objective, DType::F32, 0.2), objective, SETTINGS, schedule, seed).unwrap();
        [t.update(std::slice::from_ref(&batch)).unwrap().loss, t.update(std::slice::from_ref(&batch)).unwrap().loss]
    };
    let (a, b) = (loss(1), loss(2));
    assert_eq!(a, loss(1));
    assert!((a[0] - a[1]).abs() > 1e-4 && (a[0] - b[0]).abs() > 1e-4, "{a:?} {b:?}");
}

#[test]
fn frozen_parameters_stay() {
    let objective = Objective::Causal;
    let m = model("gpt2", objective, DType::F32, 0.0);
    assert_eq!(freeze(&m, &["transformer.h.0.*".into(), "embeddings.positions".into()]).unwrap(), 13);
    let before: Vec<Vec<f32>> = m.params().iter().map(|p| to_vec(&p.tensor()).unwrap()).collect();
    let batch: Batch = samples(objective, &[9, 5]).into_iter().collect();
    let mut t = trainer(m, objective, 1e-2);
    assert_eq!(t.optimizer().state().len(), 2 * (t.model().params().len() - 13));
    t.update(&[batch]).unwrap();
    for (p, before) in t.model().params().iter().zip(before) {
        let same = to_vec(&p.tensor()).unwrap() == before;
        let frozen = p.name().starts_with("layers.0.") || p.name() == "embeddings.positions";
        assert_eq!(same, frozen, "{}", p.name());
    }
    let error = freeze(t.model(), &["transformer.h.0.atn.c_attn.bias".into()]).unwrap_err().to_string();
    assert!(error.contains("transformer.h.0.attn.c_attn.bias"), "{error}");
    freeze(t.model(), &["*".into()]).unwrap();
    assert!(matches!(genus_train::Optimizer::new(t.model().params(), SETTINGS), Err(Error::AllFrozen { count: 28 })));
}

#[test]
fn a_parameter_that_nothing_reaches_is_named() {
    let m = model("bert-tiny", Objective::Pretraining, DType::F32, 0.0);
    let batch: Batch = samples(Objective::Masked, &[9, 5]).into_iter().collect();
    let mut t = trainer(m, Objective::Masked, 1e-2);
    let error = t.update(std::slice::from_ref(&batch)).unwrap_err().to_string();
    assert!(error.contains("pooler.weight") && error.contains("next_sentence.bias"), "{error}");
    let m = model("bert-tiny", Objective::Pretraining, DType::F32, 0.0);
    freeze(&m, &["pooler.*".into(), "next_sentence.*".into()]).unwrap();
    assert!(trainer(m, Objective::Masked, 1e-2).update(&[batch]).unwrap().applied);
}

#[test]
fn an_update_that_is_not_finite_is_left_out() {
    let objective = Objective::Causal;
    let batch: Batch = samples(objective, &[9, 5]).into_iter().collect();
    let mut t = trainer(model("gpt2", objective, DType::F32, 0.0), objective, 1e-2);
    assert!(t.update(std::slice::from_ref(&batch)).unwrap().applied);
    let p = t.model().params().iter().find(|p| p.name() == "final_norm.bias").unwrap().clone();
    let good = p.tensor().copy().unwrap();
    let before = weights(&t);
    p.set(good.affine(f64::NAN, 0.0).unwrap()).unwrap();
    let bad = t.update(std::slice::from_ref(&batch)).unwrap();
    assert!(!bad.applied && bad.loss.is_nan());
    assert_eq!((t.skipped(), t.skipped_in_a_row(), t.optimizer().updates()), (1, 1, 1));
    p.set(good).unwrap();
    assert!(weights(&t) == before, "the weights changed in a step that was left out");
    assert!(t.update(std::slice::from_ref(&batch)).unwrap().applied);
    assert_eq!((t.skipped(), t.skipped_in_a_row(), t.step()), (1, 0, 3));
    // A batch without anything to predict is an error, not a division by zero.
    let nothing = Sample { ids: vec![1, 2], spans: vec![2], labels: vec![-100, -100], ..Sample::default() };
    let batch: Batch = [nothing].into_iter().collect();
    assert!(matches!(t.update(&[batch]), Err(Error::NoTargets { step: 4 })));
}

/// Multiplies all weights by a factor after the evaluation of step 4.
struct Break(Log, f64);

impl Hooks for Break {
    fn on_model(&mut self, step: u64, model: &Model, _: &Tokenizer) {
        if step == 4 {
            for p in model.params() {
                p.set(p.tensor().affine(self.1, 0.0).unwrap()).unwrap();
            }
        }
    }
    fn on_step(&mut self, step: &StepInfo) {
        self.0.on_step(step);
    }
    fn on_message(&mut self, message: &str) {
        self.0.on_message(message);
    }
}

/// A memory that is not finite would spoil every step after it.
#[test]
fn what_is_not_finite_is_not_carried_on() {
    let mut t = trainer(model("transfo-xl-enwik8-base", Objective::Causal, DType::F32, 0.0), Objective::Causal, 1e-3);
    let batch = |continues: bool| -> Batch {
        let all = samples(Objective::Causal, &[7, 7]).into_iter();
        all.map(|s| Sample { continues, token_types: Vec::new(), ..s }).collect()
    };
    assert!(t.update(&[batch(false)]).unwrap().applied);
    let p = t.model().params()[0].clone();
    let good = p.tensor();
    p.set(good.affine(f64::NAN, 0.0).unwrap()).unwrap();
    assert!(!t.update(&[batch(true)]).unwrap().applied);
    p.set(good).unwrap();
    let next = t.update(&[batch(true)]).unwrap();
    assert!(next.applied && next.loss.is_finite(), "{next:?}");
}

#[test]
fn a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 60);
    let config = TrainConfig { steps: 20, save_every: Some(3), ..gpt2(&data) };
    let run = dir.path().join("run");
    let mut hooks = Break(Log::default(), f64::INFINITY);
    let error = genus_train::train(&config, &options(&run), &mut hooks).unwrap_err();
    let Error::NotFinite { step: 9, count: 5, last: Some(last) } = &error else { panic!("{error}") };
    assert_eq!(*last, run.join("checkpoint-3"));
    assert!(error.to_string().contains("checkpoint-3"));
    assert!(Model::load(last, &LoadOptions::default()).is_ok());
    assert!(!run.join("checkpoint-6").exists());
    let lines = metrics(&run);
    assert!(lines[8]["loss"].is_null() && lines[8]["skipped"] == 5 && lines[3].get("skipped").is_none());
    // It can go on from there, and no longer diverges without the hook.
    let after = resume(&run).unwrap();
    assert_eq!((after.step, after.skipped), (20, 0));
    assert_eq!(metrics(&run).len(), 20);
}

/// Weights that are finite but give no finite loss are saved like any others; the checkpoint before them must survive that.
#[test]
fn a_checkpoint_of_bad_weights_does_not_displace_the_good_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 60);
    let config = TrainConfig { steps: 20, save_every: Some(1), keep_last: 1, eval_every: Some(4), ..gpt2(&data) };
    let run = dir.path().join("run");
    let error = genus_train::train(&config, &options(&run), &mut Break(Log::default(), 1e20)).unwrap_err();
    let Error::NotFinite { step: 9, last: Some(last), .. } = &error else { panic!("{error}") };
    assert_eq!(*last, run.join("checkpoint-3"));
    assert!(Model::load(last, &LoadOptions::default()).is_ok());
    assert!(
        !run.join("checkpoint-2").exists() && run.join("checkpoint-4").exists() && !run.join("checkpoint-5").exists()
    );
}

#[test]
fn a_run_has_what_the_contract_says_and_learns() {
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 80);
    for (name, mut config) in [("gpt2", gpt2(&data)), ("bert", bert(&data))] {
        config.steps = 40;
        config.eval_every = Some(20);
        config.save_every = Some(10);
        config.keep_last = 2;
        let run = dir.path().join(name);
        let mut log = Log::default();
        let outcome = genus_train::train(&config, &options(&run), &mut log).unwrap();
        assert_eq!((outcome.step, outcome.stopped, outcome.skipped), (40, false, 0));
        let lines = metrics(&run);
        let steps: Vec<u64> = lines.iter().map(|l| l["step"].as_u64().unwrap()).collect();
        assert!(steps.iter().copied().eq(1..=40));
        assert!(lines.iter().all(|l| ["loss", "lr", "grad_norm"].iter().all(|k| l[k].is_f64())));
        let evaluated: Vec<u64> =
            lines.iter().filter(|l| l["dev_loss"].is_f64()).map(|l| l["step"].as_u64().unwrap()).collect();
        assert_eq!(evaluated, [20, 40]);
        assert_eq!(lines[39]["bits_per_byte"].is_f64(), name == "gpt2");
        let (first, last) = (outcome.first_dev.unwrap().dev_loss, outcome.last_dev.unwrap().1.dev_loss);
        assert!(last < 0.8 * first, "{name}: {first} {last}");
        assert_eq!(lines[0]["initial_dev_loss"], first);
        assert_eq!(log.checkpoints, [10, 20, 30, 40]);
        assert!(!run.join("checkpoint-20").exists() && run.join("checkpoint-30").exists());
        let checkpoint = outcome.checkpoint.unwrap();
        let model = Model::load(&checkpoint, &LoadOptions::default()).unwrap().model;
        let tokenizer = Tokenizer::open(&checkpoint).unwrap();
        assert_eq!(model.spec().vocab_size, tokenizer.vocab_size());
        assert_eq!(checkpoint.join("generation_config.json").exists(), name == "gpt2");
        let effective = TrainConfig::read(&run.join("config.toml")).unwrap();
        assert_eq!(effective.vocab_size, Some(tokenizer.vocab_size()));
        assert!(effective.data[0].is_absolute() && effective.context.is_some());
        let events = std::fs::read_dir(&run)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("events.out.tfevents."));
        assert_eq!(events.count(), 1);
        assert!(log.steps.iter().all(|s| s.tokens_per_second > 0.0 && s.flops_per_second > 0.0));
        assert!(log.steps.iter().all(|s| s.peak_fraction.unwrap() > 0.0 && (0.0..=1.0).contains(&s.data_wait)));
    }
}

#[test]
fn resuming_after_each_checkpoint_is_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 60);
    for (name, config) in [("gpt2", gpt2(&data)), ("bert", bert(&data))] {
        let whole = dir.path().join(name);
        train(&config, &whole).unwrap();
        for from in [2, 4, 6] {
            let run = dir.path().join(format!("{name}-{from}"));
            copy(&whole, &run, &|n| !(n.starts_with("checkpoint-") && n[11..].parse::<u64>().unwrap() > from));
            resume(&run).unwrap();
            assert_same_run(&whole, &run, 8);
        }
        // A damaged newest checkpoint is passed over.
        let run = dir.path().join(format!("{name}-damaged"));
        copy(&whole, &run, &|_| true);
        let file = run.join("checkpoint-8/model.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let mut log = Log::default();
        let outcome = genus_train::resume(None, &options(&run), &mut log).unwrap();
        assert_eq!((log.steps[0].step, outcome.step), (7, 8));
        assert!(log.messages[0].contains("checkpoint of step 8 is passed over"), "{:?}", log.messages);
        assert_same_run(&whole, &run, 8);
        // Without any checkpoint it starts again, also when nothing but the configuration was written.
        for keep in ["", "config.toml"] {
            let run = dir.path().join(format!("{name}-none-{keep}"));
            copy(&whole, &run, &|n| !n.starts_with("checkpoint-") && (keep.is_empty() || n == keep));
            resume(&run).unwrap();
            assert_same_run(&whole, &run, 8);
        }
    }
}

fn copy(from: &Path, to: &Path, keep: &dyn Fn(&str) -> bool) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !keep(&name) {
            continue;
        }
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(name), &|_| true),
            false => drop(std::fs::copy(entry.path(), to.join(name)).unwrap()),
        }
    }
}

#[test]
fn a_stopped_run_goes_on_where_it_was() {
    struct StopAt(Arc<AtomicBool>, u64);
    impl Hooks for StopAt {
        fn on_step(&mut self, s: &StepInfo) {
            self.0.store(s.step == self.1, Ordering::Relaxed);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 60);
    let config = TrainConfig { separate_documents: true, ..gpt2(&data) };
    let (whole, run) = (dir.path().join("whole"), dir.path().join("run"));
    train(&config, &whole).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut o = options(&run);
    o.stop = Some(Arc::clone(&stop));
    let outcome = genus_train::train(&config, &o, &mut StopAt(stop, 5)).unwrap();
    assert_eq!((outcome.step, outcome.stopped), (5, true));
    assert!(outcome.checkpoint.unwrap().ends_with("checkpoint-5"));
    resume(&run).unwrap();
    assert_same_run(&whole, &run, 8);
    // A finished run has nothing left to do, and can be lengthened.
    assert_eq!(resume(&run).unwrap().loss, None);
    let longer = genus_train::resume(Some(11), &options(&run), &mut Quiet).unwrap();
    assert_eq!((longer.step, metrics(&run).len()), (11, 11));
    assert_eq!(TrainConfig::read(&run.join("config.toml")).unwrap().steps, 11);
    assert!(genus_train::resume(Some(3), &options(&run), &mut Quiet).unwrap_err().to_string().contains("at least 11"));
}

#[test]
fn text_in_memory_and_weights_of_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 60);
    let corpus = genus_text::Corpus::from_documents("memory", text(60).split("\n\n").map(String::from).collect());
    let first = dir.path().join("first");
    let mut o = options(&first);
    o.corpus = Some(corpus);
    let a = genus_train::train(&TrainConfig { data: vec![], ..gpt2(&data) }, &o, &mut Quiet).unwrap();
    let checkpoint = a.checkpoint.unwrap();
    let init = TrainConfig {
        init: Some(checkpoint.clone()),
        tokenizer: None,
        dropout: Some(0.0),
        steps: 2,
        n_layers: None,
        d_model: None,
        n_heads: None,
        n_ctx: None,
        ..gpt2(&data)
    };
    let second = dir.path().join("second");
    let b = train(&init, &second).unwrap();
    let (was, starts) = (a.last_dev.unwrap().1, b.first_dev.unwrap());
    assert!((was.dev_loss - starts.dev_loss).abs() < 0.2, "{was:?} {starts:?}");
    assert_eq!(Model::read_config(&b.checkpoint.unwrap()).unwrap().1.dropout.attention, 0.0);
    let wrong = TrainConfig { n_layers: Some(3), ..init.clone() };
    let error = train(&wrong, &dir.path().join("third")).unwrap_err().to_string();
    assert!(error.contains("n_layers is 3, expected 2 as in the weights of"), "{error}");
    let wrong = TrainConfig { model: "bert-tiny".into(), ..init };
    let error = train(&wrong, &dir.path().join("fourth")).unwrap_err().to_string();
    assert!(error.contains("init is of type gpt2"), "{error}");
}

#[test]
fn what_is_wrong_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 60);
    let base = gpt2(&data);
    let out = |n: &str| dir.path().join(n);
    let error = |c: &TrainConfig, n: &str| train(c, &out(n)).unwrap_err().to_string();
    let small = out("small.txt");
    std::fs::write(&small, "a few words only, just enough for one window and a bit more").unwrap();

    let e = error(&TrainConfig { data: vec![small], dev: Some("none".into()), ..base.clone() }, "a");
    assert!(e.contains("small.txt: too little text") && e.contains("batch of 3 windows of 32"), "{e}");
    let e = error(&TrainConfig { vocab_size: Some(100), ..base.clone() }, "b");
    assert!(e.contains("tokenizer has 257 tokens, but vocab_size of the model is 100"), "{e}");
    let e = error(&TrainConfig { context: Some(64), ..base.clone() }, "c");
    assert!(e.contains("context is 64, expected at most the model's n_ctx = 32"), "{e}");
    let e = error(&TrainConfig { objective: Some(Objective::Masked), ..base.clone() }, "d");
    assert!(e.contains("gpt2 has no task masked-lm"), "{e}");
    let e = error(&TrainConfig { model: "gpt3x".into(), ..base.clone() }, "e");
    assert!(e.contains("no preset is called \"gpt3x\""), "{e}");
    let e = error(&TrainConfig { data: vec![out("missing")], ..base.clone() }, "f");
    assert!(e.contains("missing: no such file"), "{e}");
    let e = error(&TrainConfig { freeze: vec!["h.9.*".into()], ..base.clone() }, "g");
    assert!(e.contains("no parameter fits \"h.9.*\""), "{e}");
    let e = error(&TrainConfig { tokenizer: Some("bytes".into()), ..bert(&data) }, "h");
    assert!(e.contains("cls, sep and mask"), "{e}");
    let e = resume(&out("i")).unwrap_err().to_string();
    assert!(e.contains("found no config.toml") && !out("i").exists(), "{e}");

    // A failed start leaves nothing that would be in the way of the next one.
    let run = out("b");
    train(&TrainConfig { steps: 2, ..base.clone() }, &run).unwrap();
    let e = error(&base, "b");
    assert!(e.contains("not empty") && e.contains("--resume"), "{e}");
    let lock = genus_checkpoint::RunLock::acquire(&run).unwrap();
    assert!(resume(&run).unwrap_err().to_string().contains("in use by another run"));
    drop(lock);
    let change = |text: String, what: &str| {
        std::fs::write(&data, text).unwrap();
        let e = genus_train::resume(Some(4), &options(&run), &mut Quiet).unwrap_err().to_string();
        assert!(e.contains(what) && e.contains("checkpoint-2"), "{e}");
    };
    // The last document, made a little longer, stays in the held-out part.
    change(text(60).trim_end().to_owned() + " end.", "number of held-out bytes");
    change(text(80), "number of documents");
    change(text(60).replacen("river", "rider", 1), "checksum");
}
