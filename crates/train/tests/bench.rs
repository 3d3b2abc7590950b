//! The timed training step.

use genus_models::{Dimensions, Model, find_preset};
use genus_ops::Precision;
use genus_text::{Parallel, Tokenizer};
use genus_train::bench::{Timing, natural_batch, pair_batches, random_batch, train_step};
use genus_train::{BatchSize, Objective};

fn model(preset: &str, objective: Objective) -> Model {
    let (family, preset) = find_preset(preset).unwrap();
    let dims = Dimensions {
        n_layers: Some(2),
        d_model: Some(32),
        n_heads: Some(2),
        vocab_size: Some(211),
        n_ctx: Some(64),
        ..Dimensions::default()
    };
    Model::random(family, dims.apply((preset.spec)()).unwrap(), objective.task(), 1).unwrap()
}

#[test]
fn steps_train_and_are_counted() {
    for (preset, objective) in [
        ("gpt2", Objective::Causal),
        ("bert-tiny", Objective::Masked),
        ("bert-tiny", Objective::Pretraining),
        ("bert-tiny", Objective::Classification),
    ] {
        let m = model(preset, objective);
        let batch = random_batch(m.spec(), objective, 3, 48, 7).unwrap();
        assert_eq!(batch, random_batch(m.spec(), objective, 3, 48, 7).unwrap());
        assert_eq!((batch.ids.len(), batch.spans.len(), batch.examples), (144, 3, 3));
        let report = train_step(
            &m,
            objective,
            &[batch],
            Timing { warmup: 2, runs: 5, recompute: false, precision: Precision::F32, smoothing: 0.0 },
        )
        .unwrap();
        assert_eq!((report.seconds.len(), report.losses.len(), report.tokens), (5, 7, 144));
        assert!(report.losses.windows(2).all(|w| w[1] < w[0]), "{preset}: {:?}", report.losses);
        assert!(
            report.seconds.iter().all(|&s| s > 0.0)
                && report.median() <= report.seconds.iter().fold(0.0, |a: f64, &b| a.max(b))
        );
        if cfg!(target_os = "linux") {
            assert!(report.peak_rss_bytes.unwrap() > 1 << 20);
        }
    }
}

#[test]
fn arithmetic_is_that_of_the_definition() {
    let m = model("gpt2", Objective::Causal);
    let lines = [vec![1, 2, 3], vec![4; 10]];
    let batch = natural_batch(Objective::Causal, &lines, 0).unwrap();
    assert_eq!(batch.spans, [3, 10]);
    let report = train_step(
        &m,
        Objective::Causal,
        &[batch.clone(), batch],
        Timing { warmup: 0, runs: 1, recompute: false, precision: Precision::F32, smoothing: 0.0 },
    )
    .unwrap();
    // Of a token: 12 d^2 weights a layer and the vocabulary, once forward and twice backward; attention as a triangle.
    let (d, layers, tokens) = (32.0, 2.0, 13.0);
    let seen = (3 * 4 / 2 + 10 * 11 / 2) as f64;
    let forward = tokens * (layers * 2.0 * 12.0 * d * d + 2.0 * d * 211.0) + layers * 4.0 * d * seen;
    assert_eq!(report.flops, 2.0 * 3.0 * forward);
    assert_eq!(report.tokens, 26);
    // And so is what the operations counted themselves.
    assert_eq!(report.operations.iter().map(|e| e.flops).sum::<f64>(), report.flops);
    let spent: f64 = report.operations.iter().map(|e| e.seconds).sum();
    assert!(spent > 0.0 && spent <= report.seconds[0]);
    // Of a classified sequence: full attention, the pooler and two classes of the first token.
    let m = model("bert-tiny", Objective::Classification);
    let batch = natural_batch(Objective::Classification, &lines, 0).unwrap();
    let report = train_step(
        &m,
        Objective::Classification,
        &[batch],
        Timing { warmup: 0, runs: 1, recompute: false, precision: Precision::Bf16, smoothing: 0.0 },
    )
    .unwrap();
    let seen = (3 * 3 + 10 * 10) as f64;
    let forward = tokens * layers * 2.0 * 12.0 * d * d + layers * 4.0 * d * seen + 2.0 * 2.0 * d * (d + 2.0);
    assert_eq!(report.flops, 3.0 * forward);
}

#[test]
fn impossible_workloads_are_refused() {
    let m = model("gpt2", Objective::Causal);
    let error = |batch, context| random_batch(m.spec(), Objective::Causal, batch, context, 0).unwrap_err().to_string();
    assert!(error(0, 8).contains("batch is 0"));
    assert!(error(1, 65).contains("context is 65, expected from 1 to the model's n_ctx = 64"));
    assert!(natural_batch(Objective::Causal, &[vec![1], vec![]], 0).unwrap_err().to_string().contains("number 1"));
    let beyond = natural_batch(Objective::Causal, &[vec![1, 211]], 0).unwrap();
    assert!(
        train_step(
            &m,
            Objective::Causal,
            &[beyond],
            Timing { warmup: 0, runs: 1, recompute: false, precision: Precision::F32, smoothing: 0.0 }
        )
        .is_err()
    );
}

#[test]
fn pairs_fill_batches_by_tokens() {
    let (family, preset) = find_preset("transformer-base").unwrap();
    let dims = Dimensions {
        n_layers: Some(2),
        d_model: Some(32),
        n_heads: Some(2),
        d_ff: Some(48),
        vocab_size: Some(260),
        n_ctx: Some(40),
        ..Dimensions::default()
    };
    let m = Model::random(family, dims.apply((preset.spec)()).unwrap(), Objective::Translation.task(), 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    let lines = |n: usize| (0..40).map(|i| format!("{}\n", "ab".repeat(1 + i * n % 7))).collect::<String>();
    std::fs::write(&source, lines(3)).unwrap();
    std::fs::write(&target, lines(5)).unwrap();
    let text = Parallel::open(&[&source], &[&target]).unwrap();
    let tokenizer = Tokenizer::bytes();
    let of = |size, most| pair_batches(&m, &tokenizer, &text, size, most, 3);
    let (batches, seconds) = of(BatchSize::Tokens(60), 3).unwrap();
    assert!(batches.len() == 3 && seconds > 0.0);
    assert!(
        batches.iter().all(|b| b.ids.len() <= 60 && b.sources.len() <= 60 && b.ids.len().max(b.sources.len()) > 40)
    );
    assert!(batches.iter().all(|b| b.ids[0] == 256 && b.labels.len() == b.ids.len()));
    // What there is, where more is asked for.
    assert_eq!(of(BatchSize::Sequences(15), 9).unwrap().0.len(), 2);
    assert!(of(BatchSize::Sequences(41), 1).unwrap_err().to_string().contains("batch is 41"));
    assert!(of(BatchSize::Tokens(0), 1).is_err() && of(BatchSize::Tokens(9), 0).is_err());
    let timing = Timing { warmup: 0, runs: 3, recompute: false, precision: Precision::F32, smoothing: 0.1 };
    let report = train_step(&m, Objective::Translation, &batches, timing).unwrap();
    assert_eq!(report.tokens as usize, batches.iter().map(|b| b.ids.len() + b.sources.len()).sum::<usize>());
    assert_eq!(report.operations.iter().map(|e| e.flops).sum::<f64>(), 3.0 * report.flops);
    assert!(report.losses[2] < report.losses[0], "{:?}", report.losses);
    let small = Model::random(
        family,
        Dimensions { vocab_size: Some(100), ..dims }.apply((preset.spec)()).unwrap(),
        Objective::Translation.task(),
        1,
    )
    .unwrap();
    let error = pair_batches(&small, &tokenizer, &text, BatchSize::Sequences(2), 1, 0).unwrap_err();
    assert!(error.to_string().contains("vocab_size"), "{error}");
}
