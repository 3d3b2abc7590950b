//! `genus forward`.

use std::fs;

use genus::checkpoint::Weights;

use crate::program::{arg, fails, fixture, json_lines, ok};

#[test]
fn outputs_and_gradients_are_the_references() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gpt2-causal-lm", "bert-pretraining", "bert-old-names", "bert-several-classes", "gpt2-classes"] {
        let source = fixture(name);
        let out = dir.path().join(format!("{name}.safetensors"));
        let batch = source.join("batch.json");
        let args = ["forward", arg(&source), "--input", arg(&batch), "--output", arg(&out), "--grad", "--json"];
        let report = json_lines(&ok(&args).stdout);
        assert_eq!(report.len(), 1);
        let (found, expected) =
            (Weights::open(&out).unwrap(), Weights::open(source.join("expected.safetensors")).unwrap());
        let mut compared = 0;
        for tensor in expected.names().filter(|n| *n == "loss" || n.ends_with("logits") || n.starts_with("grad.")) {
            let (a, b) = (found.f32(tensor).unwrap(), expected.f32(tensor).unwrap());
            assert_eq!(found.info(tensor).unwrap().shape, expected.info(tensor).unwrap().shape, "{name} {tensor}");
            // Twenty times what two orders of summation in f32 were measured to differ by on these fixtures.
            let worst = a.iter().zip(b.iter()).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{name} {tensor}: {worst}");
            compared += 1;
        }
        assert!(compared > 10, "{name}: {compared}");
    }
}

#[test]
fn hidden_states_and_tasks_are_given_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("gpt2-causal-lm");
    let (batch, out) = (source.join("batch.json"), dir.path().join("out.safetensors"));
    let text = ok(&["forward", arg(&source), "--input", arg(&batch), "--output", arg(&out), "--hidden-states"]).stdout;
    assert!(text.contains("loss") && text.contains("hidden_states.3"), "{text}");
    fails(
        1,
        &["forward", arg(&source), "--input", arg(&batch), "--output", arg(&out), "--task", "next-sentence"],
        &["next-sentence", "causal-lm"],
    );
    fails(
        2,
        &["forward", arg(&source), "--input", arg(&batch), "--output", arg(&out), "--task", "causal"],
        &["causal-lm"],
    );
}

#[test]
fn bad_batches_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("gpt2-causal-lm");
    let out = dir.path().join("out.safetensors");
    let input = dir.path().join("batch.json");
    let forward = |json: &str, words: &[&str]| {
        fs::write(&input, json).unwrap();
        let words: Vec<&str> = words.iter().copied().chain(["batch.json"]).collect();
        fails(1, &["forward", arg(&source), "--input", arg(&input), "--output", arg(&out)], &words);
        assert!(!out.exists());
    };
    forward("{", &["line 1"]);
    forward("{\"input_idz\": [[1]]}", &["input_idz", "input_ids"]);
    forward("{\"attention_mask\": [[1]]}", &["input_ids"]);
    forward("{\"input_ids\": [[1, 2], [3]]}", &["input_ids"]);
    forward("{\"input_ids\": [[1, 101]]}", &["101"]);
    forward("{\"input_ids\": [[1, -1]]}", &["-1"]);
    forward("{\"input_ids\": [[1, 2]], \"labels\": [[1]]}", &["labels"]);
    forward("{\"input_ids\": [[1, 2]], \"attention_mask\": [[1, 0]], \"labels\": [[1, 2]]}", &["labels"]);
    fs::write(&input, "{\"input_ids\": [[1, 2]]}").unwrap();
    fails(1, &["forward", arg(&source), "--input", arg(&input), "--output", arg(&out), "--grad"], &["labels"]);
    fails(1, &["forward", arg(&source), "--input", arg(&input), "--output", arg(&input)], &["that is the input"]);
    let nowhere = dir.path().join("no/such/out.safetensors");
    fails(1, &["forward", arg(&source), "--input", arg(&input), "--output", arg(&nowhere)], &["is missing"]);
    fails(1, &["forward", arg(&source), "--input", arg(&nowhere), "--output", arg(&out)], &[arg(&nowhere)]);
    fails(2, &["forward", "gpt2", "--input", arg(&input), "--output", arg(&out)], &["preset"]);
}

#[test]
fn checkpoints_that_contradict_themselves_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("gpt2-causal-lm");
    let (input, out) = (source.join("batch.json"), dir.path().join("out.safetensors"));
    let folder = dir.path().join("model");
    fs::create_dir(&folder).unwrap();
    fs::copy(source.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let config = fs::read_to_string(source.join("config.json")).unwrap();
    let forward = |from: &str, to: &str, words: &[&str]| {
        assert!(config.contains(from), "{from}");
        fs::write(folder.join("config.json"), config.replacen(from, to, 1)).unwrap();
        fails(1, &["forward", arg(&folder), "--input", arg(&input), "--output", arg(&out)], words);
    };
    forward("\"n_layer\": 3", "\"n_layer\": 4", &["h.3"]);
    forward("\"vocab_size\": 101", "\"vocab_size\": 102", &["wte.weight", "101", "102"]);
    forward("\"n_head\": 3", "\"n_head\": 5", &["config.json", "n_head"]);
    forward("\"n_head\": 3", "\"n_head\": 0", &["config.json", "n_head"]);
    forward("\"n_embd\": 36", "\"n_embd\": -36", &["config.json", "n_embd"]);
    forward("\"model_type\": \"gpt2\"", "\"model_type\": \"gtp2\"", &["config.json", "model_type", "gpt2"]);
    forward("{", "[", &["config.json"]);
}
