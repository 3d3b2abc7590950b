//! Translation, from parallel text to BLEU.

use std::fs;
use std::path::{Path, PathBuf};

use crate::program::{arg, fails, json_lines, ok, run_with};

/// A language whose words are the other's, upper case: enough to learn something in a moment.
fn parallel(folder: &Path) -> (PathBuf, PathBuf) {
    let (source, target) = (folder.join("train.aa"), folder.join("train.bb"));
    let words = ["sea", "shell", "sand", "wave", "gull"];
    let line = |i: usize| (0..4 + i % 3).map(|j| words[(i * 7 + j * 3) % 5]).collect::<Vec<_>>().join(" ");
    let lines: String = (0..60).map(|i| line(i) + "\n").collect();
    fs::write(&source, &lines).unwrap();
    fs::write(&target, lines.to_uppercase()).unwrap();
    (source, target)
}

#[test]
fn a_translator_trains_resumes_translates_and_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = parallel(dir.path());
    let path = |name: &str| dir.path().join(name);
    let train = |run: &Path, steps: &str| {
        let sizes = ["--n-layers", "1", "--d-model", "24", "--n-heads", "2", "--n-ctx", "64", "--tokenizer", "bytes"];
        let text = ["train", "transformer", "--source", arg(&source), "--target", arg(&target), "--output", arg(run)];
        let how = ["--batch-tokens", "120", "--lr", "3e-3", "--schedule", "constant", "--warmup-steps", "2"];
        let rest = ["--steps", steps, "--save-every", "4", "--eval-every", "4", "--dropout", "0.1", "--json"];
        ok(&[&text[..], &sizes, &how, &rest].concat())
    };
    let (whole, halves) = (path("whole"), path("halves"));
    let report = json_lines(&train(&whole, "12").stdout);
    let loss = |which: &str| report[0][which]["dev_loss"].as_f64().unwrap();
    assert!(loss("last_dev") < loss("first_dev"));
    train(&halves, "8");
    ok(&["train", "--resume", arg(&halves), "--steps", "12"]);
    let weights = |run: &Path| fs::read(run.join("checkpoint-12/model.safetensors")).unwrap();
    assert_eq!(weights(&whole), weights(&halves), "resumed as if it had not stopped");

    let mean = path("mean");
    ok(&["average", "--run", arg(&whole), "--last", "2", "--output", arg(&mean)]);
    fails(
        1,
        &["average", "--run", arg(&whole), "--last", "9", "--output", arg(&path("none"))],
        &["found 3", "--last 9"],
    );
    // A line for a line; an empty one stays empty.
    let out = run_with(&["translate", arg(&mean), "--max-new-tokens", "5"], b"sea\n\nsand wave\n");
    assert_eq!(out.stdout.lines().count(), 3, "{}", out.stdout);
    assert_eq!(out.stdout.lines().nth(1), Some(""));
    let translated = path("out.bb");
    let measured = ok(&[
        "eval",
        "translation",
        arg(&mean),
        "--source",
        arg(&source),
        "--reference",
        arg(&target),
        "--output",
        arg(&translated),
        "--max-new-tokens",
        "5",
        "--json",
    ]);
    let measured = &json_lines(&measured.stdout)[0];
    assert!(measured["score"].is_number() && measured["signature"].as_str().unwrap().contains("tok:13a"));
    let again = ok(&["eval", "bleu", arg(&translated), arg(&target), "--json"]);
    assert_eq!(json_lines(&again.stdout)[0]["score"], measured["score"]);
    let same = ok(&["eval", "bleu", arg(&target), arg(&target)]);
    assert!(same.stdout.starts_with("BLEU 100.00"), "{}", same.stdout);
}

#[test]
fn what_does_not_belong_together_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = parallel(dir.path());
    let short = dir.path().join("short.bb");
    let kept: String = fs::read_to_string(&target).unwrap().lines().take(50).map(|l| format!("{l}\n")).collect();
    fs::write(&short, kept).unwrap();
    let run = dir.path().join("run");
    let train = |model: &'static str, more: &[&str], words: &[&str]| {
        let all = [&["train", model, "--output", arg(&run), "--tokenizer", "bytes", "--steps", "1"], more].concat();
        fails(1, &all, words)
    };
    train("transformer", &["--source", arg(&source), "--target", arg(&short)], &["train.aa", "line 51", "short.bb"]);
    train("transformer", &["--source", arg(&source)], &["source", "as many of one as of the other"]);
    train("transformer", &["--data", arg(&source)], &["translation learns from parallel text"]);
    train("gpt2", &["--source", arg(&source), "--target", arg(&target)], &["source", "causal"]);
}

#[test]
fn a_memory_is_carried_and_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let data = crate::train::text(dir.path());
    let path = |name: &str| dir.path().join(name);
    let train = |run: &Path, steps: &str| {
        let sizes = [
            "--n-layers",
            "2",
            "--d-model",
            "24",
            "--n-heads",
            "2",
            "--memory",
            "9",
            "--vocab-size",
            "257",
            "--tokenizer",
            "bytes",
        ];
        let text = ["train", "transformer-xl", "--data", arg(&data), "--output", arg(run), "--context", "16"];
        let how =
            ["--batch", "2", "--lr", "3e-3", "--schedule", "constant", "--warmup-steps", "2", "--accumulate", "2"];
        let rest = ["--steps", steps, "--save-every", "4", "--eval-every", "4", "--dropout", "0.1", "--json"];
        ok(&[&text[..], &sizes, &how, &rest].concat())
    };
    let (whole, halves) = (path("whole"), path("halves"));
    let report = json_lines(&train(&whole, "12").stdout);
    let loss = |which: &str| report[0][which]["dev_loss"].as_f64().unwrap();
    assert!(loss("last_dev") < loss("first_dev"));
    train(&halves, "8");
    ok(&["train", "--resume", arg(&halves), "--steps", "12"]);
    let weights = |run: &Path| fs::read(run.join("checkpoint-12/model.safetensors")).unwrap();
    assert_eq!(weights(&whole), weights(&halves), "resumed as if it had not stopped");
    let out =
        ok(&["generate", arg(&whole.join("checkpoint-12")), "--prompt", "she ", "--max-new-tokens", "20", "--greedy"]);
    assert!(out.stdout.starts_with("she "));
    let no = path("no");
    let wrong = ["train", "gpt2", "--data", arg(&data), "--output", arg(&no), "--memory", "4", "--steps", "1"];
    fails(1, &wrong, &["memory", "carries no memory"]);
}
