//! ELECTRA's objective: a generator and a discriminator that learn together, and are saved and go on together.

mod common;

use common::{assert_same_run, bert, metrics, resume, train, write_text};
use genus_checkpoint::Weights;
use genus_models::{LoadOptions, Model, Task, find_preset};
use genus_ops::{Tape, check_reached, scalar, to_vec};
use genus_train::bench::natural_batch;
use genus_train::{Objective, TrainConfig};
use std::path::Path;

fn electra(data: &Path) -> TrainConfig {
    TrainConfig { model: "electra-small-discriminator".into(), generator_share: 0.5, ..bert(data) }
}

fn small() -> Model {
    let (family, preset) = find_preset("electra-small-discriminator").unwrap();
    let [n_layers, d_model, n_heads, vocab_size, n_ctx] = [2, 24, 4, 50, 30].map(Some);
    let sizes = genus_models::Dimensions { n_layers, d_model, n_heads, vocab_size, n_ctx, ..Default::default() };
    Model::random(family, sizes.apply((preset.spec)()).unwrap(), Task::ReplacedToken, 5).unwrap()
}

#[test]
fn embeddings_are_shared_and_all_parameters_learn() {
    let rows: Vec<Vec<u32>> = vec![(0..20).collect(), (7..18).rev().collect()];
    let batch = natural_batch(Objective::ReplacedTokens, &rows, 1).unwrap();
    let loss = |model: &Model, tape: &Tape| {
        let targets = Objective::ReplacedTokens.targets(&batch);
        Objective::ReplacedTokens.loss(model, tape, &batch, targets.scales(), 0.0, None)
    };
    let alone = small();
    let message = loss(&alone, &Tape::recording()).unwrap_err().to_string();
    assert!(message.contains("no generator"), "{message}");
    let count = alone.count();
    let model = alone.with_random_generator(0.25, 5).unwrap();
    let generator = model.generator().unwrap();
    let spec = generator.spec();
    assert_eq!((spec.d_model, spec.n_heads, spec.d_head, spec.d_ff, spec.d_embedding()), (6, 1, 6, 24, 12));
    let shared = |p: &&genus_ops::Param| model.params().iter().any(|own| own.same(p));
    assert_eq!(generator.params().iter().filter(shared).count(), generator.params().len());
    let embeddings: u64 =
        generator.params().iter().filter(|p| p.name().starts_with("embeddings.")).map(|p| p.elem_count() as u64).sum();
    assert_eq!(model.count(), count + generator.count() - embeddings);

    let tape = Tape::recording();
    let found = loss(&model, &tape).unwrap();
    let value = |v: &genus_ops::Value| scalar(v.tensor()).unwrap();
    let parts = (value(&found.tokens.unwrap()), value(&found.sequences.unwrap()));
    assert!((value(&found.total) - parts.0 - 50.0 * parts.1).abs() < 1e-4, "{parts:?}");
    // An untrained judge of 31 tokens, of which some are replaced.
    assert!((parts.0 - 50f64.ln()).abs() < 0.5 && (parts.1 - 2f64.ln()).abs() < 0.2, "{parts:?}");
    tape.backward(&found.total).unwrap();
    check_reached(model.params()).unwrap();
    // The gradient of the shared tables is that of both losses; of the generator's own parameters that of the first alone.
    let alone = |p: &genus_ops::Param| to_vec(&p.grad().unwrap()).unwrap();
    let both: Vec<Vec<f32>> = generator.params().iter().map(alone).collect();
    model.params().iter().for_each(|p| p.clear_grad());
    let tape = Tape::recording();
    tape.backward(&loss(&model, &tape).unwrap().tokens.unwrap()).unwrap();
    for (p, both) in generator.params().iter().zip(both) {
        let same = alone(p) == both;
        assert_eq!(same, !p.name().starts_with("embeddings."), "{}", p.name());
    }
}

#[test]
fn both_are_saved_and_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 60);
    let config = TrainConfig { steps: 8, ..electra(&data) };
    let whole = dir.path().join("whole");
    let outcome = train(&config, &whole).unwrap();
    assert!(outcome.last_dev.unwrap().1.dev_loss < outcome.first_dev.unwrap().dev_loss);
    let line = &metrics(&whole)[7];
    assert!(line["replaced_token_loss"].as_f64().unwrap() < 1.0 && line["dev_replaced_token_loss"].is_number());
    let checkpoint = whole.join("checkpoint-8");
    let load = |folder: &Path, task| Model::load(folder, &LoadOptions { task, ..Default::default() }).unwrap().model;
    let discriminator = load(&checkpoint, None);
    let generator = load(&checkpoint.join("generator"), None);
    assert_eq!((discriminator.task(), generator.task()), (Task::ReplacedToken, Task::MaskedLm));
    assert_eq!((discriminator.spec().d_model, generator.spec().d_model), (24, 12));
    for name in ["word_embeddings.weight", "position_embeddings.weight", "LayerNorm.bias"] {
        let name = format!("electra.embeddings.{name}");
        let of = |folder: &Path| Weights::open(folder).unwrap().f32(&name).unwrap().into_owned();
        assert!(of(&checkpoint) == of(&checkpoint.join("generator")), "{name}");
    }
    // What is called pretraining, and what else is trained from it.
    assert_eq!(load(&checkpoint, Some(Task::Pretraining)).task(), Task::ReplacedToken);

    // Stopped at a checkpoint: the same run.
    let run = dir.path().join("run");
    train(&config, &run).unwrap();
    for step in [8, 6] {
        std::fs::remove_dir_all(run.join(format!("checkpoint-{step}"))).unwrap();
    }
    resume(&run).unwrap();
    assert_same_run(&whole, &run, 8);
    let generator = |run: &Path| std::fs::read(run.join("checkpoint-8/generator/model.safetensors")).unwrap();
    assert!(generator(&whole) == generator(&run), "the generators differ");

    // Another run begins with the generator of the one before.
    let next = TrainConfig { init: Some(checkpoint.clone()), steps: 1, save_every: Some(1), ..config.clone() };
    let again =
        TrainConfig { lr: 1e-12, model: checkpoint.display().to_string(), n_layers: None, d_model: None, ..next };
    let again = TrainConfig { n_heads: None, n_ctx: None, weight_decay: 0.0, ..again };
    let third = dir.path().join("third");
    train(&again, &third).unwrap();
    let of = |folder: &Path| Weights::open(folder).unwrap().f32("generator_lm_head.bias").unwrap().into_owned();
    let far = of(&third.join("checkpoint-1/generator"))
        .iter()
        .zip(of(&checkpoint.join("generator")))
        .fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(far < 1e-6, "{far}");
}
