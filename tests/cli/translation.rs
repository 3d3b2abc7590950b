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
fn marians_own_tokenizer_trains_and_translates() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/text/tests/fixtures/tiny_marian");
    let (source, target) = (path("train.en"), path("train.de"));
    let lines = |line: &str| (0..30).map(|i| format!("{line} {i}\n")).collect::<String>();
    fs::write(&source, lines("The old baker opens his shop")).unwrap();
    fs::write(&target, lines("Der alte Bäcker öffnet seinen Laden")).unwrap();
    let text = ["--source", arg(&source), "--target", arg(&target)];
    let sizes = ["--n-layers", "1", "--d-model", "24", "--n-heads", "2", "--d-ff", "32", "--n-ctx", "64"];
    let run = path("run");
    let how = ["--tokenizer", arg(&tokenizer), "--batch-tokens", "200", "--steps", "4", "--output", arg(&run)];
    ok(&[&["train", "transformer"], &text[..], &sizes, &how].concat());
    let model = run.join("checkpoint-4");
    for name in ["source.spm", "target.spm", "vocab.json", "tokenizer_config.json"] {
        assert_eq!(fs::read(model.join(name)).unwrap(), fs::read(tokenizer.join(name)).unwrap(), "{name}");
    }
    let out = run_with(&["translate", arg(&model), "--max-new-tokens", "4"], b"The old baker\n");
    assert_eq!((out.code, out.stdout.lines().count()), (Some(0), 1), "{}", out.stderr);
    let out = ok(&["generate", arg(&model), "--prompt", "The shop", "--greedy", "--max-new-tokens", "3"]);
    assert_eq!(out.stdout.lines().next(), Some("The shop"));
    let more = path("more");
    let how = ["--batch-tokens", "200", "--steps", "1", "--output", arg(&more)];
    ok(&[&["train", "transformer", "--init", arg(&model)], &text[..], &how].concat());
    assert!(more.join("checkpoint-1/target.spm").is_file());

    let source_ids = ok(&["tokenizer", "encode", arg(&model), "--text", "Bäcker"]);
    let target_ids = ok(&["tokenizer", "encode", arg(&model), "--text", "Bäcker", "--target"]);
    assert_ne!(source_ids.stdout, target_ids.stdout);

    let first = ["--first", "3", "--max-new-tokens", "4", "--to-the-full", "--runs", "1", "--json"];
    let measured = ok(&[&["bench", "translate", arg(&model), "--source", arg(&source)], &first[..]].concat());
    let measured = &json_lines(&measured.stdout)[0];
    assert!(measured["lines_per_second"].as_f64().unwrap() > 0.0 && measured["tokenizing_seconds"].is_array());
    assert_eq!(measured["workload"], "translate 3 lines by 4 beams, 64 together");
    let how = ["--batch-tokens", "100", "--batches", "2", "--runs", "1", "--warm-up", "0", "--json"];
    let measured = ok(&[&["bench", "train", arg(&model)], &text[..], &how].concat());
    assert!(json_lines(&measured.stdout)[0]["workload"].as_str().unwrap().contains("in 2 batches"));
    let how = ["--tokenizer", "train:bpe:300", "--vocab-size", "400", "--runs", "1", "--json"];
    ok(&[&["bench", "train", "transformer-base"], &text[..], &sizes, &how].concat());
    let mixed = ["bench", "train", "gpt2", "--n-layers", "1", "--tokenizer", "bytes"];
    fails(1, &[&mixed, &text[..]].concat(), &["--source", "translation", "causal"]);
    fs::remove_file(model.join("target.spm")).unwrap();
    fails(1, &["translate", arg(&model), "--input", arg(&source)], &["target.spm"]);
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
