//! Learning the labels of sequences.

use genus_models::nn::RandomSource;
use genus_models::{Dimensions, Labels, LoadOptions, Model, Problem, Task, find_preset};
use genus_ops::{DType, Device, Precision, Tape, scalar, to_vec};
use genus_text::{Batch, Sample, SequenceLabel};
use genus_train::{Objective, OptimizerSettings, Schedule, ScheduleKind, Trainer, evaluate};

fn model(preset: &str, labels: Labels) -> Model {
    let (family, preset) = find_preset(preset).unwrap();
    let dims = Dimensions {
        n_layers: Some(2),
        d_model: Some(24),
        n_heads: Some(2),
        d_ff: None,
        vocab_size: Some(31),
        n_ctx: Some(20),
        memory: None,
    };
    let spec = dims.apply((preset.spec)()).unwrap();
    let source = &mut RandomSource::on(3, DType::F32, Device::Cpu);
    Model::labelled(family, spec, Task::SequenceClassification, labels, source).unwrap()
}

fn labels(n: usize, problem: Option<Problem>) -> Labels {
    Labels { problem, ..Labels::numbered(n) }
}

/// Sequences whose label can be read off their tokens: which of three ids occurs.
fn samples(of: impl Fn(usize) -> SequenceLabel) -> Vec<Sample> {
    let mut draw = genus_text::rng::Key::new(4).stream();
    (0..48)
        .map(|i| {
            let n = 3 + draw.below(12);
            let mut ids: Vec<u32> = (0..n).map(|_| 10 + draw.below(20) as u32).collect();
            let class = i % 3;
            ids[draw.below(n)] = class as u32 + 1;
            let (spans, labels) = (vec![n], vec![-100; n]);
            Sample { ids, spans, labels, label: Some(of(class)), ..Sample::default() }
        })
        .collect()
}

fn train(model: Model, samples: &[Sample], steps: u64) -> Trainer {
    let settings = OptimizerSettings { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01, clip: 1.0 };
    let schedule = Schedule { kind: ScheduleKind::Constant, lr: 5e-3, warmup_steps: 5, steps, floor: 0.0, d_model: 24 };
    let mut trainer = Trainer::new(model, Objective::Classification, settings, schedule, 1).unwrap();
    for i in 0..steps as usize {
        let batch: Batch = samples.iter().cycle().skip(i * 12).take(12).cloned().collect();
        let update = trainer.update(&[batch]).unwrap();
        assert!(update.applied && update.pair_loss.is_none() && update.flops > 0.0);
    }
    trainer
}

#[test]
fn labels_of_every_kind_are_learned() {
    type Of = fn(usize) -> SequenceLabel;
    let kinds: [(Labels, Of); 3] = [
        (labels(3, None), |c| SequenceLabel::Class(c as u32)),
        (labels(2, Some(Problem::MultiLabel)), |c| {
            SequenceLabel::Classes(vec![(c > 0) as u8 as f32, (c == 1) as u8 as f32])
        }),
        (labels(1, None), |c| SequenceLabel::Numbers(vec![c as f32 - 1.0])),
    ];
    for preset in ["bert-tiny", "gpt2"] {
        for (labels, of) in kinds.clone() {
            let (samples, name) = (samples(of), format!("{preset} {:?}", labels.problem()));
            let m = model(preset, labels);
            let before = evaluate(&m, Objective::Classification, &samples, 7, None, Precision::F32).unwrap();
            let trainer = train(m, &samples, 120);
            let after =
                evaluate(trainer.model(), Objective::Classification, &samples, 48, None, Precision::F32).unwrap();
            assert_eq!((after.targets, after.pair_loss), (48, None));
            assert!(after.dev_loss < 0.2 * before.dev_loss, "{name}: {before:?} {after:?}");
        }
    }
}

/// The mean over a step does not depend on how it is cut, and saving and loading keeps labels, weights and predictions.
#[test]
fn means_and_folders() {
    let all = samples(|c| SequenceLabel::Class(c as u32));
    let mut l = labels(3, Some(Problem::SingleLabel));
    (l.names[1], l.dropout) = ("second".into(), Some(0.25));
    let m = model("bert-tiny", l.clone());
    let loss = |m: &Model, samples: &[Sample]| {
        let batch: Batch = samples.iter().cloned().collect();
        let targets = Objective::Classification.targets(&batch);
        let loss = Objective::Classification.loss(m, &Tape::inference(), &batch, targets.scales(), 0.0, None).unwrap();
        scalar(loss.total.tensor()).unwrap()
    };
    let (whole, parts) = (loss(&m, &all), [&all[..10], &all[10..]].map(|s| loss(&m, s) * s.len() as f64));
    assert!((whole - parts.iter().sum::<f64>() / 48.0).abs() < 1e-6);
    let dir = tempfile::tempdir().unwrap();
    m.save(dir.path(), &genus_checkpoint::WriteOptions::default()).unwrap();
    let again = Model::load(dir.path(), &LoadOptions::default()).unwrap().model;
    assert_eq!((again.task(), again.labels()), (Task::SequenceClassification, &l));
    assert_eq!(loss(&again, &all).to_bits(), whole.to_bits());
    let tensors = |m: &Model| m.params().iter().map(|p| to_vec(&p.tensor()).unwrap()).collect::<Vec<_>>();
    assert!(tensors(&m) == tensors(&again));
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    let m = model("gpt2", labels(3, None));
    let error = |labels: &[SequenceLabel]| {
        let sample = |l: &SequenceLabel| {
            let label = Some(l.clone());
            Sample { ids: vec![1, 2], spans: vec![2], labels: vec![-100; 2], label, ..Sample::default() }
        };
        let batch: Batch = labels.iter().map(sample).collect();
        let scales = Objective::Classification.targets(&batch).scales();
        Objective::Classification.loss(&m, &Tape::inference(), &batch, scales, 0.0, None).err().unwrap().to_string()
    };
    let (class, numbers) = (SequenceLabel::Class, |n| SequenceLabel::Numbers(vec![0.5; n]));
    assert!(error(&[class(0), class(3)]).contains("target is 3"));
    assert!(error(&[class(u32::MAX)]).contains("target"));
    assert!(error(&[class(0), numbers(3)]).contains("sequence 1 of the batch: found a label of another kind"));
    assert!(error(&[numbers(3), numbers(2)]).contains("sequence 1 of the batch: found 2 numbers, expected 3"));
    assert!(error(&[]).contains("no label"));
    let mut unlabelled: Batch = samples(|_| class(0)).into_iter().take(2).collect();
    unlabelled.sequence_labels.pop();
    let scales = Objective::Classification.targets(&unlabelled).scales();
    assert!(Objective::Classification.loss(&m, &Tape::inference(), &unlabelled, scales, 0.0, None).is_err());
}
