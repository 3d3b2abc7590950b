//! Tags of words: what is learned, what is saved, and what is told.

mod common;

use common::{Log, bert, gpt2, options, train, write_text};
use genus_models::{LoadOptions, Model, Task};
use genus_text::rng::Key;
use genus_train::{Error, Objective, TrainConfig};
use std::path::{Path, PathBuf};

/// Sentences in which a word's tag follows from the word.
fn tagged(folder: &Path, name: &str, sentences: usize) -> PathBuf {
    const WORDS: [(&str, &str); 6] =
        [("the", "DET"), ("river", "NOUN"), ("sees", "VERB"), ("green", "ADJ"), ("stone", "NOUN"), ("sings", "VERB")];
    let mut text = String::new();
    for s in 0..sentences {
        let mut draw = Key::new(3).child(s as u64).stream();
        for _ in 0..3 + draw.below(6) {
            let (word, tag) = WORDS[draw.below(WORDS.len())];
            text += &format!("{word}\t{tag}\n");
        }
        text += "\n";
    }
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn config(base: TrainConfig) -> TrainConfig {
    TrainConfig { objective: Some(Objective::Tagging), steps: 40, eval_every: Some(40), save_every: Some(0), ..base }
}

#[test]
fn a_model_from_another_task_learns_tags_and_knows_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let text = write_text(dir.path(), 40);
    let (data, dev) = (tagged(dir.path(), "train", 60), tagged(dir.path(), "dev", 12));
    let words = TrainConfig { tokenizer: Some("train:bpe:330".into()), ..gpt2(&text) };
    for (name, base) in [("bert", bert(&text)), ("gpt2", words)] {
        let before = dir.path().join(name);
        train(&TrainConfig { steps: 2, save_every: Some(0), ..base }, &before).unwrap();
        let init = before.join("checkpoint-2");
        let c = config(TrainConfig {
            model: init.display().to_string(),
            data: vec![data.clone()],
            dev: Some(dev.display().to_string()),
            batch: Some(8),
            lr: 1e-2,
            ..TrainConfig::default()
        });
        let (run, mut log) = (dir.path().join(format!("{name}-tags")), Log::default());
        let outcome = genus_train::train(&c, &options(&run), &mut log).unwrap();
        let begins =
            "2 parameter(s) of the head for token-classification begin at random: classifier.weight, classifier.bias";
        assert!(log.messages.iter().any(|m| m.contains(begins)), "{:?}", log.messages);
        let (first, last) = (outcome.first_dev.unwrap().dev_loss, outcome.last_dev.unwrap().1.dev_loss);
        assert!(last < 0.5 * first, "{name}: {first} to {last}");
        let model = Model::load(run.join("checkpoint-40"), &LoadOptions::default()).unwrap().model;
        assert_eq!(
            (model.task(), model.labels().names.join(" ")),
            (Task::TokenClassification, "ADJ DET NOUN VERB".into())
        );

        // Learning goes on with the same tags, and not with others.
        let model = run.join("checkpoint-40").display().to_string();
        let fewer = dir.path().join("fewer");
        std::fs::write(&fewer, "sees VERB\n\nstone NOUN\n\nriver NOUN\n").unwrap();
        let c = TrainConfig { model, data: vec![fewer], steps: 1, batch: Some(1), dev: Some("0.4".into()), ..c };
        let next = dir.path().join(format!("{name}-next"));
        train(&c, &next).unwrap();
        let labels = Model::load(next.join("checkpoint-1"), &LoadOptions::default()).unwrap().model.labels().clone();
        assert_eq!(labels.names.len(), 4);
        let other = dir.path().join("other");
        std::fs::write(&other, "sees VERB\n\nyes INTJ\n\nno X\n").unwrap();
        let error = train(&TrainConfig { data: vec![other], ..c }, &dir.path().join("x")).unwrap_err();
        assert!(matches!(error, Error::Config { field: "data", .. }), "{error}");
        assert!(error.to_string().contains("INTJ") && error.to_string().contains("ADJ, DET, NOUN, VERB"), "{error}");
        std::fs::remove_dir_all(dir.path().join("x")).unwrap();
    }
}

#[test]
fn a_bad_line_stops_before_training() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.conll");
    std::fs::write(&path, "a O\nb O\n\nlonely\n").unwrap();
    let c = config(TrainConfig { data: vec![path], ..bert(dir.path()) });
    let message = train(&c, &dir.path().join("run")).unwrap_err().to_string();
    assert!(message.contains("bad.conll: line 4"), "{message}");
}
