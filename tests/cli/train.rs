//! `genus train`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{arg, fails, json_lines, ok};

/// Options of a model that trains in a moment.
pub const TINY: [&str; 18] = [
    "--n-layers",
    "1",
    "--d-model",
    "24",
    "--n-heads",
    "2",
    "--n-ctx",
    "32",
    "--context",
    "16",
    "--batch",
    "2",
    "--tokenizer",
    "bytes",
    "--lr",
    "1e-3",
    "--dropout",
    "0.1",
];

/// A text file with something to learn.
pub fn text(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("text.txt");
    let line = "she sells sea shells on the sea shore; the shells that she sells are sea shells, I'm sure.\n";
    fs::write(&path, line.repeat(40)).unwrap();
    path
}

/// The metrics of a run, without what depends on the clock.
fn metrics(run: &Path) -> Vec<Value> {
    let mut lines = json_lines(&fs::read_to_string(run.join("metrics.jsonl")).unwrap());
    for line in &mut lines {
        let object = line.as_object_mut().unwrap();
        object.retain(|k, _| ["step", "loss", "lr", "grad_norm", "dev_loss", "bits_per_byte"].contains(&k.as_str()));
    }
    lines
}

#[test]
fn a_run_trains_resumes_and_generates() {
    trains_resumes_and_generates("f32");
}

#[test]
fn so_does_a_run_in_bf16() {
    trains_resumes_and_generates("bf16");
}

fn trains_resumes_and_generates(precision: &str) {
    let dir = tempfile::tempdir().unwrap();
    let data = text(dir.path());
    let (whole, halves) = (dir.path().join("whole"), dir.path().join("halves"));
    let train = |run: &Path, steps: &str| {
        let args = [
            &["train", "gpt2", "--data", arg(&data), "--output", arg(run), "--steps", steps, "--save-every", "10"],
            &TINY[..],
        ];
        ok(&[
            &[&args.concat()[..], &["--schedule", "constant", "--warmup-steps", "2", "--eval-every", "10", "--json"]]
                .concat()[..],
            &["--precision", precision],
        ]
        .concat())
    };
    let report = json_lines(&train(&whole, "20").stdout);
    assert_eq!(report.len(), 1, "one object");
    assert_eq!(report[0]["step"], 20);
    let before = report[0]["first_dev"]["dev_loss"].as_f64().unwrap();
    let after = report[0]["last_dev"]["dev_loss"].as_f64().unwrap();
    assert!(after < before, "{before} {after}");

    train(&halves, "10");
    ok(&["train", "--resume", arg(&halves), "--steps", "20"]);
    let steps = |m: Vec<Value>| m.into_iter().filter(|l| l["step"] != 10).collect::<Vec<_>>();
    assert_eq!(steps(metrics(&whole)), steps(metrics(&halves)), "resumed as if it had not stopped");
    let weights = |run: &Path| fs::read(run.join("checkpoint-20/model.safetensors")).unwrap();
    assert_eq!(weights(&whole), weights(&halves));

    let config = fs::read_to_string(whole.join("config.toml")).unwrap();
    let written = format!("precision = \"{precision}\"");
    for line in ["steps = 20", "batch = 2", "tokenizer = \"bytes\"", &written] {
        assert!(config.contains(line), "{line} is not in {config}");
    }
    let keys =
        ["step", "loss", "lr", "grad_norm", "tokens_per_second", "flops_per_second", "peak_fraction", "data_wait"];
    for key in keys {
        let last = json_lines(&fs::read_to_string(whole.join("metrics.jsonl")).unwrap()).pop().unwrap();
        assert!(!last[key].is_null(), "{key}: {last}");
    }
    assert!(fs::read_dir(&whole).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().contains("tfevents")));
    let generated = ok(&[
        "generate",
        arg(&whole.join("checkpoint-20")),
        "--prompt",
        "she ",
        "--max-new-tokens",
        "4",
        "--greedy",
        "--precision",
        precision,
    ]);
    assert!(generated.stdout.starts_with("she "));
    // Another run begins from its weights.
    let more = dir.path().join("more");
    let init = whole.join("checkpoint-20");
    ok(&[
        "train",
        "--init",
        arg(&init),
        "--data",
        arg(&data),
        "--output",
        arg(&more),
        "--steps",
        "2",
        "--context",
        "16",
        "--batch",
        "2",
    ]);
    assert!(more.join("checkpoint-2/model.safetensors").is_file());
}

#[test]
fn bert_trains_with_next_sentences() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("documents.txt");
    let document = "The sea is wide. The shore is long. Shells lie on the shore. She sells them there.\n";
    fs::write(&data, format!("{document}\n{}\n", document.replace("shore", "beach")).repeat(30)).unwrap();
    let run = dir.path().join("run");
    let args = [
        "train",
        "bert-base-uncased",
        "--data",
        arg(&data),
        "--documents",
        "blank-lines",
        "--output",
        arg(&run),
        "--steps",
        "6",
        "--n-layers",
        "1",
        "--d-model",
        "24",
        "--n-heads",
        "2",
        "--n-ctx",
        "48",
        "--batch",
        "2",
        "--tokenizer",
        "train:wordpiece:80",
    ];
    ok(&args);
    let config: Value = serde_json::from_slice(&fs::read(run.join("checkpoint-6/config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "BertForPreTraining");
    assert!(run.join("checkpoint-6/vocab.txt").is_file());
}

#[test]
fn files_give_options_and_flags_win() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(dir.path());
    let file = dir.path().join("run.toml");
    let run = dir.path().join("run");
    fs::write(
        &file,
        format!(
            "model = \"gpt2\"\ndata = \"{}\"\nsteps = 50\nn-layers = 1\nd_model = 24\nn-heads = 2\nn-ctx = 32\nbatch = 2\n\
             context = 16\ntokenizer = \"bytes\"\nseed = 3\n",
            data.display()
        ),
    )
    .unwrap();
    ok(&["train", "--config", arg(&file), "--steps", "3", "--output", arg(&run)]);
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    for line in ["steps = 3", "d_model = 24", "seed = 3"] {
        assert!(config.contains(line) || config.contains(&line.replace('_', "-")), "{line} is not in {config}");
    }
    let wrong = |text: &str, words: &[&str]| {
        fs::write(&file, text).unwrap();
        let words: Vec<&str> = words.iter().copied().chain(["run.toml"]).collect();
        fails(1, &["train", "--config", arg(&file), "--output", arg(&dir.path().join("never"))], &words);
    };
    wrong("steps = 5\nbacth = 3\n", &[":2:", "`bacth`", "`batch`"]);
    wrong("steps = \"many\"\n", &["`steps`", "\"many\"", "a whole number"]);
    wrong("steps = \n", &["TOML"]);
    fails(1, &["train", "--config", "no-such.toml", "--output", "never"], &["no-such.toml"]);
}

#[test]
fn runs_that_cannot_be_are_named_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(dir.path());
    let run = dir.path().join("run");
    let train = |extra: &[&str], words: &[&str]| {
        fails(1, &[&["train", "gpt2", "--output", arg(&run), "--steps", "2"], &TINY[..], extra].concat(), words);
        assert!(!run.join("config.toml").exists(), "{extra:?}");
    };
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    train(&["--data", "no-such-file"], &["no-such-file"]);
    train(&["--data", arg(&file("empty.txt", b""))], &["empty.txt", "empty"]);
    train(
        &["--data", arg(&file("bad.txt", &[b"good ".repeat(200), b"\xff\xfe".to_vec()].concat()))],
        &["bad.txt", "UTF-8"],
    );
    train(&["--data", arg(&file("nul.txt", &[b"good ".repeat(200), b"\0".to_vec()].concat()))], &["nul.txt", "NUL"]);
    train(&["--data", arg(&file("short.txt", b"too short"))], &["token"]);
    train(&["--data", arg(&data), "--d-ff", "0"], &["d_ff"]);
    train(&["--data", arg(&data), "--dev", "1.5"], &["dev"]);
    fails(
        1,
        &["train", "gpt2", "--data", arg(&data), "--output", arg(&run), "--tokenizer", "train:bpe"],
        &["train:bpe"],
    );
    train(&["--data", arg(&data), "--clip=-1"], &["clip"]);
    fails(1, &["train", "gtp2", "--data", arg(&data), "--output", arg(&run)], &["gtp2", "gpt2"]);
    fails(2, &["train", "--data", arg(&data), "--output", arg(&run)], &["preset"]);
    fails(2, &["train", "gpt2", "--output", arg(&run)], &["--data"]);
    fails(2, &["train", "gpt2", "--data", arg(&data)], &["--output"]);
    fails(2, &["train", "gpt2", "--data", arg(&data), "--output", arg(&run), "--step", "3"], &["--step"]);
    fails(1, &["train", "--resume", arg(dir.path())], &["config.toml"]);
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious.txt"), "x").unwrap();
    fails(
        1,
        &[&["train", "gpt2", "--data", arg(&data), "--output", arg(&full)], &TINY[..]].concat(),
        &["precious.txt"],
    );
}

#[test]
fn a_run_goes_on_with_its_own_options_only() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(dir.path());
    let run = dir.path().join("run");
    ok(&[&["train", "gpt2", "--data", arg(&data), "--output", arg(&run), "--steps", "2"], &TINY[..]].concat());
    fails(2, &["train", "--resume", arg(&run), "--lr", "1"], &["lr", "--steps", "--init"]);
    fails(2, &["train", "--resume", arg(&run), "--precision", "bf16"], &["bf16", "f32", "config.toml"]);
    ok(&["train", "--resume", arg(&run), "--precision", "f32", "--steps", "3"]);
    fs::write(&data, "changed text\n".repeat(300)).unwrap();
    fails(1, &["train", "--resume", arg(&run), "--steps", "4"], &["data has changed"]);
}
