//! How well models predict a text, and how much context they make use of.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{arg, fails, json_lines, ok};

/// A text that repeats itself after 30 letters.
fn text(path: &Path, lines: usize) {
    let line = |i: usize| format!("{} sells sea shells at the shore\n", ["she", "he", "one"][i % 3]);
    fs::write(path, (0..lines).map(line).collect::<String>()).unwrap();
}

/// A model after a few steps.
fn trained(preset: &str, data: &Path, run: &Path, more: &[&str]) -> String {
    let sizes = ["--n-layers", "1", "--d-model", "16", "--n-heads", "2", "--tokenizer", "bytes", "--vocab-size", "257"];
    let how = ["--steps", "3", "--batch", "2", "--eval-every", "0", "--context", "24"];
    ok(&[&["train", preset, "--data", arg(data), "--output", arg(run)], &sizes[..], &how, more].concat());
    arg(&run.join("checkpoint-3")).to_owned()
}

fn measured(args: &[&str]) -> Value {
    json_lines(&ok(&[&["eval", "perplexity", "--json"], args].concat()).stdout).remove(0)
}

fn number(report: &Value, field: &str) -> f64 {
    report[field].as_f64().unwrap_or_else(|| panic!("no number {field} in {report}"))
}

#[test]
fn memory_and_windows_are_what_the_command_says() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("text.txt");
    text(&data, 60);
    let xl = trained("transformer-xl", &data, &dir.path().join("xl"), &["--memory", "24"]);
    let gpt2 = trained("gpt2", &data, &dir.path().join("gpt2"), &["--n-ctx", "24"]);
    let on = ["--data", arg(&data)];
    let with = |model: &str, more: &[&str]| measured(&[&[model], &on[..], more].concat());

    // The configuration's memory and segments are the default.
    let own = with(&xl, &[]);
    assert_eq!((&own["memory"], &own["segment_length"]), (&24.into(), &24.into()));
    let told = with(&xl, &["--memory", "24", "--segment-length", "24"]);
    assert_eq!(own["loss"], told["loss"]);
    let length = fs::metadata(&data).unwrap().len() as f64;
    assert_eq!(number(&own, "tokens"), length, "each byte and the end but the first byte");
    let bits = number(&own, "loss") / std::f64::consts::LN_2;
    assert!((number(&own, "bits_per_byte") / bits - (length + 1.0) / length).abs() < 1e-9);
    assert_eq!(own["bits_per_byte"], own["bits_per_character"]);
    assert!((number(&own, "perplexity").ln() - number(&own, "loss")).abs() < 1e-9);
    // Another memory is another prediction.
    let longer = with(&xl, &["--memory", "100", "--segment-length", "7"]);
    assert_eq!(longer["memory"], 100);
    assert_ne!(own["loss"], longer["loss"]);

    // Windows: without overlap, and each token from a whole one.
    let windows = with(&gpt2, &[]);
    assert_eq!((&windows["context"], &windows["stride"], &windows["memory"]), (&24.into(), &24.into(), &Value::Null));
    let last = with(&gpt2, &["--stride", "1", "--skip", "100", "--tokens", "5"]);
    assert_eq!((&last["tokens"], &last["stride"]), (&5.into(), &1.into()));
    // A token's window is the text before it, so that a text of the window alone gives the same.
    let ending = dir.path().join("window.txt");
    let whole = fs::read_to_string(&data).unwrap();
    fs::write(&ending, &whole[100 - 24..101]).unwrap();
    let alone = measured(&[&gpt2, "--data", arg(&ending), "--skip", "24", "--tokens", "1"]);
    let there = with(&gpt2, &["--stride", "1", "--skip", "100", "--tokens", "1"]);
    assert!((number(&alone, "loss") - number(&there, "loss")).abs() < 1e-6, "{alone} {there}");
    // A model with memory recomputes windows, too, as long as any.
    let recomputed = with(&xl, &["--context", "100", "--stride", "1", "--skip", "100", "--tokens", "3"]);
    assert_eq!((&recomputed["context"], &recomputed["memory"]), (&100.into(), &Value::Null));
}

#[test]
fn what_contradicts_the_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("text.txt");
    text(&data, 40);
    let xl = trained("transformer-xl", &data, &dir.path().join("xl"), &["--memory", "8"]);
    let gpt2 = trained("gpt2", &data, &dir.path().join("gpt2"), &["--n-ctx", "24"]);
    let with = |code: i32, model: &str, more: &[&str], words: &[&str]| {
        fails(code, &[&["eval", "perplexity", model, "--data", arg(&data)], more].concat(), words);
    };
    with(1, &gpt2, &["--memory", "64"], &["--memory is 64", "gpt2 carries no memory", &gpt2]);
    with(1, &gpt2, &["--segment-length", "9"], &["--segment-length is 9", "gpt2 carries no memory", "--context"]);
    with(1, &gpt2, &["--context", "25"], &["--context is 25", "n_ctx = 24"]);
    with(1, &gpt2, &["--context", "0"], &["--context is 0", "n_ctx = 24"]);
    with(1, &gpt2, &["--stride", "25"], &["--stride is 25", "24 tokens"]);
    with(1, &gpt2, &["--stride", "0"], &["--stride is 0", "24 tokens"]);
    with(1, &gpt2, &["--skip", "99999"], &["--skip is 99999", "tokens of"]);
    with(1, &xl, &["--segment-length", "0"], &["--segment-length is 0"]);
    with(2, &xl, &["--memory", "9", "--context", "9"], &["--memory 9", "--context", "one of the two"]);
    with(2, "gpt2", &[], &["preset", "trained model"]);

    // A configuration of one and the weights of another.
    let mixed = dir.path().join("mixed");
    fs::create_dir(&mixed).unwrap();
    fs::copy(Path::new(&xl).join("config.json"), mixed.join("config.json")).unwrap();
    for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(&gpt2).join(file), mixed.join(file)).unwrap();
    }
    with(1, arg(&mixed), &[], &["tensors are those of \"gpt2\"", "those of \"transfo-xl\"", "mixed"]);
    // Of a type that is not known, and of one that has no memory to carry.
    let config = fs::read_to_string(mixed.join("config.json")).unwrap();
    fs::write(mixed.join("config.json"), config.replace("\"transfo-xl\"", "\"transfoxl\"")).unwrap();
    with(1, arg(&mixed), &[], &["\"transfoxl\"", "did you mean \"transfo-xl\"?"]);
    let batch = dir.path().join("batch.json");
    fs::write(&batch, r#"{"input_ids": [[1, 2, 3]]}"#).unwrap();
    let forward = |model: &str, n: &str, words: &[&str]| {
        let to = dir.path().join("out.safetensors");
        fails(1, &["forward", model, "--input", arg(&batch), "--output", arg(&to), "--segment-length", n], words);
    };
    forward(&gpt2, "2", &["segment_length: found 2", "gpt2 is not recurrent"]);
    forward(&xl, "0", &["segment_length: found 0", "at least 1"]);
    let train = |more: &[&str], words: &[&str]| {
        let run = dir.path().join("no-run");
        let how = ["--data", arg(&data), "--output", arg(&run), "--steps", "1"];
        fails(1, &[&["train"], more, &how[..]].concat(), words);
    };
    train(&["transformer-xl", "--init", &gpt2], &["init is of type gpt2", "transfo-xl"]);
    train(&[&xl, "--memory", "4"], &["memory is 4", "expected 8", &xl]);
    train(&["gpt2", "--memory", "4"], &["memory is 4", "carries no memory"]);

    // With same_length every token sees as many as the memory has: none is not possible.
    let path = Path::new(&xl).join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains("\"same_length\": false"));
    fs::write(&path, config.replace("\"same_length\": false", "\"same_length\": true")).unwrap();
    with(1, &xl, &["--memory", "0"], &["memory is 0", "same_length is true", "mem_len = 8", "config.json"]);
    measured(&[&xl, "--data", arg(&data), "--memory", "5"]);
}

#[test]
fn the_context_that_models_make_use_of() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("text.txt");
    text(&data, 60);
    let xl = trained("transformer-xl", &data, &dir.path().join("xl"), &["--memory", "24"]);
    let gpt2 = trained("gpt2", &data, &dir.path().join("gpt2"), &["--n-ctx", "24"]);
    let how = ["--data", arg(&data), "--step", "8", "--longest", "40", "--tokens", "20"];
    let all = [&["eval", "context-length", &xl, &gpt2][..], &how].concat();
    let report = json_lines(&ok(&[&all[..], &["--hardest", "1", "0.5", "--json"]].concat()).stdout).remove(0);
    assert_eq!(report["contexts"], serde_json::json!([8, 16, 24, 32, 40]));
    let [one, other] = [0, 1].map(|i| &report["models"][i]);
    // Beyond its own context a model sees no more: nothing is gained over itself.
    let loss = |m: &Value, i: usize| m["loss"][i].as_f64().unwrap();
    assert_eq!(loss(other, 2), loss(other, 4));
    assert_ne!(loss(one, 2), loss(one, 4));
    assert_eq!(other["results"][0]["gains"].as_array().unwrap().len(), 4);
    // The losses are those of windows that are read for each token alone.
    let from = ["--stride", "1", "--skip", "40", "--tokens", "20"];
    let alone = measured(&[&[&xl, "--data", arg(&data), "--context", "32"], &from[..]].concat());
    assert!((loss(one, 3) - number(&alone, "loss")).abs() < 1e-6, "{report} {alone}");
    let shown = ok(&all).stdout;
    assert!(shown.contains("relative effective context length") && shown.contains("hardest  10 %"), "{shown}");

    fails(1, &[&all[..], &["--hardest", "0"]].concat(), &["--hardest is 0", "above 0"]);
    fails(1, &[&all[..], &["--shortest", "39"]].concat(), &["--shortest is 39", "40 - 8"]);
    fails(1, &["eval", "context-length", &xl, "--data", arg(&data), "--longest", "5000"], &["--longest 5000"]);
}
