//! The timed training step.

use genus_models::{Dimensions, Model, find_preset};
use genus_ops::Precision;
use genus_train::Objective;
use genus_train::bench::{Timing, natural_batch, random_batch, train_step};

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
            Timing { warmup: 2, runs: 5, recompute: false, precision: Precision::F32 },
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
        Timing { warmup: 0, runs: 1, recompute: false, precision: Precision::F32 },
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
        Timing { warmup: 0, runs: 1, recompute: false, precision: Precision::Bf16 },
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
            Timing { warmup: 0, runs: 1, recompute: false, precision: Precision::F32 }
        )
        .is_err()
    );
}
