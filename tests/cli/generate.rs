//! `genus generate`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{arg, fails, fixture, json_lines, ok, run_with};

/// A tiny model with random weights and the tokenizer of bytes.
fn with_tokenizer(dir: &Path) -> PathBuf {
    use genus::models::{Dimensions, Model, find_preset};
    let folder = dir.join("bytes-model");
    let (family, preset) = find_preset("gpt2").unwrap();
    let dimensions = Dimensions {
        n_layers: Some(2),
        d_model: Some(24),
        n_heads: Some(2),
        vocab_size: Some(257),
        n_ctx: Some(48),
        ..Dimensions::default()
    };
    let spec = dimensions.apply((preset.spec)()).unwrap();
    let model = Model::random(family, spec, family.default_task(), 7).unwrap();
    model.save(&folder, &genus::checkpoint::WriteOptions::default()).unwrap();
    genus::text::Tokenizer::bytes().save(&folder, Some(48)).unwrap();
    folder
}

#[test]
fn greedy_ids_are_the_references() {
    let source = fixture("gpt2-causal-lm");
    let expected: Value = serde_json::from_slice(&fs::read(source.join("generation.json")).unwrap()).unwrap();
    let words = |v: &Value| v.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(" ");
    for (list, extra) in [("ignoring_eos", &["--ignore-eos"][..]), ("until_eos", &[])] {
        for case in expected[list].as_array().unwrap() {
            let (prompt, n) = (words(&case["prompt"]), case["max_new_tokens"].to_string());
            let mut args =
                vec!["generate", arg(&source), "--ids", &prompt, "--greedy", "--max-new-tokens", &n, "--output-ids"];
            args.extend(extra);
            assert_eq!(ok(&args).stdout, words(&case["ids"]) + "\n", "{prompt}");
        }
    }
    // Together, in the order given.
    let all = expected["ignoring_eos"].as_array().unwrap();
    let prompts: Vec<String> = all.iter().map(|c| words(&c["prompt"])).collect();
    let mut args = vec!["generate", arg(&source), "--greedy", "--max-new-tokens", "12", "--output-ids", "--ignore-eos"];
    prompts.iter().for_each(|p| args.extend(["--ids", p]));
    let lines: Vec<String> = ok(&args).stdout.lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), all.len());
    for (line, case) in lines.iter().zip(all) {
        assert_eq!(*line, words(&case["ids"].as_array().unwrap()[..12].to_vec().into()));
    }
}

#[test]
fn prompts_come_from_everywhere_and_give_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_tokenizer(dir.path());
    let file = dir.path().join("prompts.txt");
    fs::write(&file, "ab c\n").unwrap();
    let base =
        ["generate", arg(&model), "--max-new-tokens", "9", "--temperature", "0.9", "--seed", "5", "--output-ids"];
    let with = |extra: &[&str]| ok(&[&base[..], extra].concat()).stdout;
    let ids = with(&["--prompt", "ab c"]);
    assert_eq!(ids.split_whitespace().count(), 9, "{ids}");
    assert_eq!(with(&["--ids", "97 98 32 99"]), ids);
    assert_eq!(with(&["--prompts", arg(&file)]), ids);
    assert_eq!(
        with(&["--prompt-file", arg(&file)]),
        ids,
        "the line end at the end of the file is no part of the prompt"
    );
    assert_eq!(run_with(&base, b"ab c\n").stdout, ids);
    assert_eq!(with(&["--prompt", "ab c", "--threads", "1"]), ids);
    assert_ne!(
        ok(&[
            "generate",
            arg(&model),
            "--max-new-tokens",
            "9",
            "--temperature",
            "0.9",
            "--seed",
            "6",
            "--output-ids",
            "--prompt",
            "ab c"
        ])
        .stdout,
        ids
    );
    // In company of another prompt it stays the same.
    let two = with(&["--prompt", "something else", "--prompt", "ab c"]);
    assert_eq!(two.lines().nth(1).unwrap(), ids.trim_end());
}

#[test]
fn text_goes_to_standard_output_alone_and_json_is_pure() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_tokenizer(dir.path());
    let base = ["generate", arg(&model), "--max-new-tokens", "5", "--greedy", "--prompt", "hello "];
    let plain = ok(&base);
    assert!(plain.stdout.starts_with("hello ") && plain.stdout.ends_with('\n'), "{plain:?}");
    assert!(!plain.stdout.contains('\u{1b}') && !plain.stderr.contains('\r'), "{plain:?}");
    let json = json_lines(&ok(&[&base[..], &["--json", "--prompt", "b"]].concat()).stdout);
    assert_eq!(json.len(), 2);
    assert_eq!(json[0]["prompt"], "hello ");
    assert_eq!(json[0]["ids"].as_array().unwrap().len(), 5);
    assert_eq!(json[0]["finish"], "length");
    assert_eq!(format!("hello {}\n", json[0]["text"].as_str().unwrap()), plain.stdout);
    let beams = ok(&[
        "generate",
        arg(&model),
        "--max-new-tokens",
        "5",
        "--beams",
        "3",
        "--length-penalty",
        "0.6",
        "--prompt",
        "a",
        "--output-ids",
    ]);
    assert_eq!(beams.stdout.split_whitespace().count(), 5);
}

#[test]
fn requests_that_cannot_be_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_tokenizer(dir.path());
    let bare = fixture("gpt2-causal-lm");
    let long = "a".repeat(49);
    let generate = |model: &Path, extra: &[&str], words: &[&str]| {
        fails(1, &[&["generate", arg(model)], extra].concat(), words);
    };
    generate(&model, &["--prompt", &long], &["49", "48"]);
    generate(&model, &["--ids", "3 257"], &["257"]);
    generate(&model, &["--ids", "3 -7"], &["-7"]);
    generate(&model, &["--prompt", "a", "--top-p", "1.5"], &["top_p", "1.5"]);
    generate(&model, &["--prompt", "a", "--temperature", "NaN"], &["temperature", "NaN"]);
    generate(&model, &["--prompt", "a", "--max-new-tokens", "0"], &["max_new_tokens", "at least 1"]);
    generate(&model, &["--prompt", "a", "--beams", "0"], &["beams"]);
    generate(&model, &["--prompts", "no-such-file"], &["no-such-file"]);
    generate(&bare, &["--prompt", "a"], &["tokenizer", "--ids"]);
    generate(&fixture("bert-masked-lm"), &["--ids", "1", "--output-ids"], &["causal-lm"]);
    let bad = dir.path().join("bad.txt");
    fs::write(&bad, b"ok\n\xff\n").unwrap();
    generate(&model, &["--prompt-file", arg(&bad)], &["bad.txt", "UTF-8"]);
    fails(2, &["generate", "gpt2", "--prompt", "a"], &["preset", "genus train gpt2"]);
    fails(2, &["generate", arg(&model), "--prompt", "a", "--max-tokens", "3"], &["--max-tokens"]);
    fails(1, &["generate", "some-owner/some-model", "--prompt", "a"], &["some-owner/some-model", "HF_HUB_OFFLINE"]);
}
