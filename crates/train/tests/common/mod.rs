//! Small runs on made-up text.
#![allow(dead_code)]

use genus_text::rng::Key;
use genus_train::{Hooks, Outcome, Quiet, Result, RunOptions, StepInfo, TrainConfig};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Documents of a few sentences each, between blank lines.
pub fn text(documents: usize) -> String {
    const WORDS: [&str; 24] = [
        "the", "a", "river", "stone", "king", "queen", "walks", "sleeps", "over", "under", "green", "old", "bright",
        "and", "sees", "song", "night", "day", "slowly", "sings", "house", "of", "three", "birds",
    ];
    let mut out = String::new();
    for d in 0..documents {
        let mut draw = Key::new(11).child(d as u64).stream();
        for _ in 0..3 + draw.below(5) {
            let n = 4 + draw.below(8);
            let words: Vec<&str> = (0..n).map(|_| WORDS[draw.below(WORDS.len())]).collect();
            out += &words.join(" ");
            out += ". ";
        }
        out += "\n\n";
    }
    out
}

pub fn write_text(folder: &Path, documents: usize) -> PathBuf {
    let path = folder.join("text.txt");
    std::fs::write(&path, text(documents)).unwrap();
    path
}

/// A tiny GPT-2 on bytes, dropout on.
pub fn gpt2(data: &Path) -> TrainConfig {
    TrainConfig {
        model: "gpt2".into(),
        n_layers: Some(2),
        d_model: Some(24),
        n_heads: Some(2),
        n_ctx: Some(32),
        data: vec![data.to_owned()],
        documents: genus_train::DocumentKind::BlankLines,
        tokenizer: Some("bytes".into()),
        batch: Some(3),
        accumulate: 2,
        steps: 8,
        lr: 1e-2,
        dev: Some("0.1".into()),
        eval_every: Some(4),
        eval_tokens: Some(200),
        save_every: Some(2),
        keep_last: 0,
        ..TrainConfig::default()
    }
}

/// A tiny BERT on word pieces, dropout on.
pub fn bert(data: &Path) -> TrainConfig {
    TrainConfig {
        model: "bert-tiny".into(),
        d_model: Some(24),
        n_heads: Some(2),
        n_ctx: Some(48),
        tokenizer: Some("train:wordpiece:120".into()),
        whole_words: true,
        n_layers: Some(2),
        batch: None,
        batch_tokens: Some(150),
        accumulate: 1,
        ..gpt2(data)
    }
}

pub fn options(output: impl Into<PathBuf>) -> RunOptions {
    RunOptions { output: output.into(), ..RunOptions::default() }
}

pub fn train(config: &TrainConfig, output: &Path) -> Result<Outcome> {
    genus_train::train(config, &options(output), &mut Quiet)
}

pub fn resume(output: &Path) -> Result<Outcome> {
    genus_train::resume(None, &options(output), &mut Quiet)
}

/// What a run logged, without the speed.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |l: &str| {
        let mut v: Value = serde_json::from_str(l).unwrap();
        let line = v.as_object_mut().unwrap();
        for key in ["tokens_per_second", "flops_per_second", "peak_fraction", "data_wait"] {
            assert!(line.remove(key).unwrap().as_f64().unwrap() >= 0.0, "{key}");
        }
        // Where the system does not tell, it is left out.
        line.remove("peak_rss_bytes");
        v
    };
    text.lines().map(line).collect()
}

/// Weights and optimiser state of a checkpoint, as bytes.
pub fn bytes_of(checkpoint: &Path) -> Vec<Vec<u8>> {
    ["model.safetensors", "optimizer.safetensors", "config.json"]
        .map(|f| std::fs::read(checkpoint.join(f)).unwrap())
        .to_vec()
}

/// The same steps with the same figures, and the same final state bit for bit.
pub fn assert_same_run(a: &Path, b: &Path, last: u64) {
    assert_eq!(metrics(a), metrics(b));
    let name = format!("checkpoint-{last}");
    assert!(bytes_of(&a.join(&name)) == bytes_of(&b.join(&name)), "the final states differ");
}

/// Collects what a run says.
#[derive(Default)]
pub struct Log {
    pub messages: Vec<String>,
    pub steps: Vec<StepInfo>,
    pub checkpoints: Vec<u64>,
}

impl Hooks for Log {
    fn on_step(&mut self, step: &StepInfo) {
        self.steps.push(step.clone());
    }
    fn on_checkpoint(&mut self, c: &genus_train::CheckpointInfo) {
        self.checkpoints.push(c.step);
    }
    fn on_message(&mut self, message: &str) {
        self.messages.push(message.to_owned());
    }
}
