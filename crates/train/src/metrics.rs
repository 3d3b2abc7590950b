//! `metrics.jsonl` and the TensorBoard file of a run.

use crate::{Error, Evaluation, EventWriter, Objective, Result, StepInfo, Update};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The name of the file with one JSON object a logged step.
pub(crate) const METRICS: &str = "metrics.jsonl";

pub(crate) struct Metrics {
    file: File,
    path: PathBuf,
    events: EventWriter,
    /// The evaluation before the first step; goes into the first line.
    initial: Option<Evaluation>,
    /// What the second part of the loss is called.
    second: &'static str,
}

impl Metrics {
    /// Opens the files of a run that goes on after step `from`; lines of later steps, and half-written ones, are removed.
    pub fn open(folder: &Path, from: u64, objective: Objective) -> Result<Self> {
        let path = folder.join(METRICS);
        if path.exists() {
            let text = std::fs::read(&path).map_err(Error::io(&path))?;
            let kept: Vec<u8> =
                text.split_inclusive(|&b| b == b'\n').filter(|l| belongs(l, from)).flatten().copied().collect();
            if kept != text {
                genus_checkpoint::atomic::atomic_write(&path, &kept)?;
            }
        }
        let file = File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        // Before step 1 the only event is the first evaluation, so what another try left of it is no loss.
        let events = EventWriter::create(folder, from + 1)?;
        let second = objective.second().unwrap_or_default();
        Ok(Metrics { file, path, events, initial: None, second })
    }

    /// The evaluation before the first step.
    pub fn initial(&mut self, evaluation: &Evaluation) -> Result<()> {
        self.initial = Some(*evaluation);
        self.scalars(0, &dev_scalars(evaluation, self.second))
    }

    fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        let all: Vec<(&str, f64)> = scalars.iter().map(|(name, x)| (name.as_str(), *x)).collect();
        self.events.scalars(step, &all)
    }

    /// A logged step.
    pub fn step(&mut self, info: &StepInfo, update: &Update, dev: Option<&Evaluation>) -> Result<()> {
        let mut line = Map::new();
        // JSON has no infinity and no NaN; they become null.
        line.insert("step".into(), json!(info.step));
        line.insert("loss".into(), json!(info.loss));
        line.insert("lr".into(), json!(info.lr));
        line.insert("grad_norm".into(), json!(info.grad_norm));
        line.insert("tokens_per_second".into(), json!(rounded(info.tokens_per_second)));
        line.insert("flops_per_second".into(), json!(info.flops_per_second.round()));
        line.insert("data_wait".into(), json!(info.data_wait));
        let mut scalars = vec![
            ("train/loss".to_owned(), info.loss),
            ("train/lr".to_owned(), info.lr),
            ("train/grad_norm".to_owned(), info.grad_norm),
            ("train/tokens_per_second".to_owned(), info.tokens_per_second),
            ("machine/flops_per_second".to_owned(), info.flops_per_second),
            ("machine/data_wait".to_owned(), info.data_wait),
        ];
        if let Some(fraction) = info.peak_fraction {
            line.insert("peak_fraction".into(), json!((fraction * 1e4).round() / 1e4));
            scalars.push(("machine/peak_fraction".to_owned(), fraction));
        }
        if let Some(bytes) = info.peak_memory {
            line.insert("peak_rss_bytes".into(), json!(bytes));
            scalars.push(("machine/peak_rss_bytes".to_owned(), bytes as f64));
        }
        if let Some(pairs) = update.pair_loss {
            line.insert(self.second.into(), json!(pairs));
            scalars.push((format!("train/{}", self.second), pairs));
        }
        if info.skipped > 0 {
            line.insert("skipped".into(), json!(info.skipped));
            scalars.push(("train/skipped".to_owned(), info.skipped as f64));
        }
        if let Some(e) = self.initial.take() {
            add_dev(&mut line, "initial_", &e, self.second);
        }
        if let Some(e) = dev {
            add_dev(&mut line, "", e, self.second);
            scalars.extend(dev_scalars(e, self.second));
        }
        let text = Value::Object(line).to_string() + "\n";
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))?;
        self.scalars(info.step, &scalars)
    }

    /// Makes sure that what was logged is on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}

fn belongs(line: &[u8], from: u64) -> bool {
    let step = |v: Value| v.get("step").and_then(Value::as_u64);
    line.ends_with(b"\n") && serde_json::from_slice(line).ok().and_then(step).is_some_and(|s| s <= from)
}

fn rounded(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

fn add_dev(line: &mut Map<String, Value>, prefix: &str, e: &Evaluation, second: &str) {
    line.insert(format!("{prefix}dev_loss"), json!(e.dev_loss));
    if let Some(bits) = e.bits_per_byte {
        line.insert(format!("{prefix}bits_per_byte"), json!(bits));
    }
    if let Some(pairs) = e.pair_loss {
        line.insert(format!("{prefix}dev_{second}"), json!(pairs));
    }
}

fn dev_scalars(e: &Evaluation, second: &str) -> Vec<(String, f64)> {
    let mut all = vec![("dev/loss".to_owned(), e.dev_loss)];
    all.extend(e.bits_per_byte.map(|b| ("dev/bits_per_byte".to_owned(), b)));
    all.extend(e.pair_loss.map(|p| (format!("dev/{second}"), p)));
    all
}
