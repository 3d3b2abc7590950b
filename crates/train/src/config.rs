//! What a run is made of.

use crate::{BatchSize, Error, Objective, OptimizerSettings, Ramp, Result, ScheduleKind};
use genus_models::Dimensions;
use genus_ops::Precision;
use genus_text::{CorpusOptions, DevSplit, DocumentSplit, MaskingConfig, TokenizerSpec};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a document is in a text file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DocumentKind {
    /// A file.
    #[default]
    File,
    /// What blank lines separate.
    BlankLines,
    /// A line.
    Lines,
}

impl std::str::FromStr for DocumentKind {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "file" => Ok(DocumentKind::File),
            "blank-lines" => Ok(DocumentKind::BlankLines),
            "lines" => Ok(DocumentKind::Lines),
            _ => Err(Error::config("documents", format!("{s:?}"), "file, blank-lines or lines")),
        }
    }
}

impl std::fmt::Display for DocumentKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DocumentKind::File => "file",
            DocumentKind::BlankLines => "blank-lines",
            DocumentKind::Lines => "lines",
        })
    }
}

/// A value as its name.
mod by_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Display;
    use std::str::FromStr;

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err = String>, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// A run, flat, as `config.toml` has it. What is `None` has a default that depends on the rest; the `config.toml` of a run
/// says what it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// A preset (random weights) or a model folder (its weights, if it has some).
    pub model: String,
    /// A model folder whose weights (and tokenizer, unless one is given) the run starts from, with a fresh optimiser.
    pub init: Option<PathBuf>,
    /// What is learned; by default what the member is pretrained with.
    pub objective: Option<Objective>,
    /// Number of layers, instead of the preset's.
    pub n_layers: Option<usize>,
    /// Width, instead of the preset's.
    pub d_model: Option<usize>,
    /// Number of heads, instead of the preset's.
    pub n_heads: Option<usize>,
    /// Width inside the feed-forward network; four times the width when only that is given.
    pub d_ff: Option<usize>,
    /// Number of tokens of the model; by default the tokenizer's with a preset.
    pub vocab_size: Option<usize>,
    /// Longest sequence that the model takes.
    pub n_ctx: Option<usize>,
    /// Tokens of memory, instead of the preset's (Transformer-XL).
    pub memory: Option<usize>,
    /// Size of a new generator, of replaced tokens: its share of the model's heads and width.
    pub generator_share: f64,
    /// Dropout everywhere; by default as published, or as the folder's configuration says.
    pub dropout: Option<f32>,

    /// Files and folders of text, JSON lines or Parquet.
    pub data: Vec<PathBuf>,
    /// Text files to translate from, line by line.
    pub source: Vec<PathBuf>,
    /// Text files with the translations, as many as sources.
    pub target: Vec<PathBuf>,
    /// Held-out text files to translate from.
    pub dev_source: Vec<PathBuf>,
    /// Held-out text files with the translations.
    pub dev_target: Vec<PathBuf>,
    /// Held-out text: a file or folder, a fraction of the data, or "none"; by default 0.05.
    pub dev: Option<String>,
    /// Field of JSON objects or column of Parquet files that holds the text.
    pub text_field: String,
    /// What a document is in text files.
    pub documents: DocumentKind,
    /// No attention and no prediction across documents.
    pub separate_documents: bool,
    /// A folder, `train:bpe:8000`, `train:wordpiece:8000`, `train:unigram:8000` or `bytes`; by default that of the model
    /// folder, or a trained one of 8,000 tokens.
    pub tokenizer: Option<String>,

    /// Tokens of a training sequence; by default the model's n_ctx.
    pub context: Option<usize>,
    /// Sequences in a batch; by default 8.
    pub batch: Option<usize>,
    /// Tokens in a batch, instead of `batch`; of translations, on either side.
    pub batch_tokens: Option<usize>,
    /// Steps in which the batch grows from `batch_start` to its size, evenly (GPT-3); 0: it is whole from the first step.
    pub batch_ramp_steps: u64,
    /// The first batch where it grows, in the unit of the whole one: sequences, or tokens.
    pub batch_start: Option<usize>,
    /// Batches whose gradients are added up for one step.
    pub accumulate: usize,
    /// Recompute every layer in the backward pass instead of remembering it: less memory, more time, the same results.
    pub recompute: bool,
    /// The uniform distribution's weight in the targets of tokens; by default 0.1 for translation, else 0.
    pub label_smoothing: Option<f64>,
    /// Share of tokens that are to be predicted, of masked objectives.
    pub mask_probability: f64,
    /// Share of those that become the mask token.
    pub mask_share: f64,
    /// Share of those that become a random token; the rest stay.
    pub mask_random: f64,
    /// Mask whole words.
    pub whole_words: bool,
    /// Share of documents cut into shorter sequences, of masked objectives.
    pub short_probability: f64,

    /// Number of steps.
    pub steps: u64,
    /// The highest learning rate (`noam`: a factor).
    pub lr: f64,
    /// The course of the learning rate.
    pub schedule: ScheduleKind,
    /// Steps in which it rises; by default a tenth of the steps, at most 2,000.
    pub warmup_steps: Option<u64>,
    /// The learning rate at the end of `linear` and `cosine`, as a share of the highest.
    pub lr_floor: f64,
    /// Decoupled weight decay; biases and norms have none.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Global norm that gradients are clipped to; 0: not.
    pub clip: f64,
    /// Names of parameters that do not learn; `*` stands for any text.
    pub freeze: Vec<String>,
    /// Seed of weights, order of the data, masks and dropout.
    pub seed: u64,
    /// Precision of matrix products, `f32` or `bf16`; weights and moments are f32 in either.
    #[serde(with = "by_name")]
    pub precision: Precision,

    /// Log every that many steps.
    pub log_every: u64,
    /// Evaluate every that many steps, and before the first and after the last; by default a tenth of the steps.
    pub eval_every: Option<u64>,
    /// Held-out tokens that are evaluated at most (0: all); by default all of a given `dev`, else 32,768.
    pub eval_tokens: Option<usize>,
    /// Write a checkpoint every that many steps, and at the end; by default a tenth of the steps, 0: only at the end.
    pub save_every: Option<u64>,
    /// Keep that many of the last checkpoints; 0: all.
    pub keep_last: usize,
    /// Stop after that many steps in a row whose loss or gradient was not finite.
    pub max_skipped: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            model: String::new(),
            init: None,
            objective: None,
            n_layers: None,
            d_model: None,
            n_heads: None,
            d_ff: None,
            vocab_size: None,
            n_ctx: None,
            memory: None,
            generator_share: 0.25,
            dropout: None,
            data: Vec::new(),
            source: Vec::new(),
            target: Vec::new(),
            dev_source: Vec::new(),
            dev_target: Vec::new(),
            dev: None,
            text_field: "text".into(),
            documents: DocumentKind::File,
            separate_documents: false,
            tokenizer: None,
            context: None,
            batch: None,
            batch_tokens: None,
            batch_ramp_steps: 0,
            batch_start: None,
            accumulate: 1,
            recompute: false,
            label_smoothing: None,
            mask_probability: 0.15,
            mask_share: 0.8,
            mask_random: 0.1,
            whole_words: false,
            short_probability: 0.1,
            steps: 1000,
            lr: 5e-4,
            schedule: ScheduleKind::Cosine,
            warmup_steps: None,
            lr_floor: 0.1,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            clip: 1.0,
            freeze: Vec::new(),
            seed: 0,
            precision: Precision::F32,
            log_every: 1,
            eval_every: None,
            eval_tokens: None,
            save_every: None,
            keep_last: 3,
            max_skipped: 5,
        }
    }
}

/// A configuration in which everything is said.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// With no default left open; what `config.toml` holds.
    pub config: TrainConfig,
    /// What is learned.
    pub objective: Objective,
    /// Tokens of a training sequence.
    pub context: usize,
    /// How large a batch is.
    pub batch: BatchSize,
    /// How it grows.
    pub ramp: Ramp,
    /// Steps in which the learning rate rises.
    pub warmup_steps: u64,
    /// Evaluate every that many steps; 0: never.
    pub eval_every: u64,
    /// Write a checkpoint every that many steps; 0: only at the end.
    pub save_every: u64,
}

fn within(field: &'static str, x: f64, ok: bool, expected: &str) -> Result<()> {
    if ok && x.is_finite() { Ok(()) } else { Err(Error::config(field, x, expected)) }
}

impl TrainConfig {
    /// Checks what can be checked without model and data.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.model.is_empty() {
            return Err(Error::config("model", "empty", "a preset or a model folder"));
        }
        if self.objective == Some(Objective::Classification) {
            let expected =
                "causal, masked, pretraining, replaced-tokens, tagging or translation: text alone has no labels";
            return Err(Error::config("objective", "classification", expected));
        }
        let counts = [
            ("steps", Some(self.steps)),
            ("accumulate", Some(self.accumulate as u64)),
            ("log_every", Some(self.log_every)),
            ("max_skipped", Some(self.max_skipped)),
            ("batch", self.batch.map(|n| n as u64)),
            ("batch_tokens", self.batch_tokens.map(|n| n as u64)),
            ("batch_start", self.batch_start.map(|n| n as u64)),
            ("context", self.context.map(|n| n as u64)),
        ];
        if let Some((field, _)) = counts.iter().find(|(_, n)| *n == Some(0)) {
            return Err(Error::config(field, 0, "at least 1"));
        }
        if let (Some(b), Some(t)) = (self.batch, self.batch_tokens) {
            let found = format!("{t} beside batch = {b}");
            return Err(Error::config("batch_tokens", found, "one of the two"));
        }
        if let (Some(n), 0) = (self.batch_start, self.batch_ramp_steps) {
            return Err(Error::config(
                "batch_start",
                n,
                "batch_ramp_steps beside it: the steps in which the batch grows",
            ));
        }
        if let Some(w) = self.warmup_steps.filter(|&w| w > self.steps) {
            return Err(Error::config("warmup_steps", w, format!("at most steps = {}", self.steps)));
        }
        within("lr", self.lr, self.lr > 0.0, "a number above 0")?;
        within("lr_floor", self.lr_floor, (0.0..=1.0).contains(&self.lr_floor), "between 0 and 1")?;
        within("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "0 or more")?;
        within("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "at least 0 and below 1")?;
        within("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "at least 0 and below 1")?;
        within("eps", self.eps, self.eps > 0.0, "a number above 0")?;
        within("clip", self.clip, self.clip >= 0.0, "0 or more")?;
        let p = self.mask_probability;
        within("mask_probability", p, p > 0.0 && p < 1.0, "above 0 and below 1")?;
        within("mask_share", self.mask_share, (0.0..=1.0).contains(&self.mask_share), "between 0 and 1")?;
        let r = self.mask_random;
        within("mask_random", r, r >= 0.0 && r + self.mask_share <= 1.0 + 1e-9, "0 or more, at most 1 - mask_share")?;
        let s = self.short_probability;
        within("short_probability", s, (0.0..=1.0).contains(&s), "between 0 and 1")?;
        if let Some(s) = self.label_smoothing {
            within("label_smoothing", s, (0.0..1.0).contains(&s), "at least 0 and below 1")?;
        }
        let share = self.generator_share;
        within("generator_share", share, share > 0.0 && share <= 1.0, "above 0, at most 1")?;
        self.check_parallel()?;
        if let Some(d) = self.dropout {
            within("dropout", f64::from(d), (0.0..1.0).contains(&d), "at least 0 and below 1")?;
        }
        self.dev_split()?;
        self.tokenizer_spec()?;
        Ok(())
    }

    /// What is held out; `None`: nothing.
    ///
    /// # Errors
    /// When `dev` is neither a file nor a fraction.
    pub fn dev_split(&self) -> Result<Option<DevSplit>> {
        match self.dev.as_deref() {
            Some("none") => Ok(None),
            Some(dev) => Ok(Some(dev.parse()?)),
            None => Ok(Some(DevSplit::Fraction(0.05))),
        }
    }

    /// The tokenizer, where one is given.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub fn tokenizer_spec(&self) -> Result<Option<TokenizerSpec>> {
        Ok(self.tokenizer.as_deref().map(str::parse).transpose()?)
    }

    /// The dimensions that replace a preset's.
    pub fn dimensions(&self) -> Dimensions {
        Dimensions {
            n_layers: self.n_layers,
            d_model: self.d_model,
            n_heads: self.n_heads,
            d_ff: self.d_ff,
            vocab_size: self.vocab_size,
            n_ctx: self.n_ctx,
            memory: self.memory,
        }
    }

    /// How files are read.
    pub fn corpus_options(&self) -> CorpusOptions {
        let split = match self.documents {
            DocumentKind::File => DocumentSplit::File,
            DocumentKind::BlankLines => DocumentSplit::BlankLines,
            DocumentKind::Lines => DocumentSplit::Lines,
        };
        CorpusOptions { text_field: self.text_field.clone(), split }
    }

    /// How tokens are masked.
    pub fn masking(&self) -> MaskingConfig {
        MaskingConfig {
            probability: self.mask_probability,
            mask: self.mask_share,
            random: self.mask_random,
            whole_word: self.whole_words,
            ..MaskingConfig::default()
        }
    }

    /// The optimiser's numbers.
    pub fn optimizer(&self) -> OptimizerSettings {
        let TrainConfig { beta1, beta2, eps, weight_decay, clip, .. } = *self;
        OptimizerSettings { beta1, beta2, eps, weight_decay, clip }
    }

    /// Settles what was left open, for a model that takes `n_ctx` tokens and an objective.
    ///
    /// # Errors
    /// When the context is longer than the model's.
    pub(crate) fn resolve(&self, objective: Objective, n_ctx: usize) -> Result<Resolved> {
        let mut c = self.clone();
        let context = c.context.unwrap_or(n_ctx);
        if context > n_ctx {
            return Err(Error::config("context", context, format!("at most the model's n_ctx = {n_ctx}")));
        }
        let batch = match (c.batch, c.batch_tokens) {
            (_, Some(n)) if objective.reads_windows() => match n / context {
                0 => return Err(Error::config("batch_tokens", n, format!("at least context = {context}"))),
                n => BatchSize::Sequences(n),
            },
            (_, Some(n)) => BatchSize::Tokens(n),
            (n, None) => BatchSize::Sequences(*c.batch.insert(n.unwrap_or(8))),
        };
        let ramp = c.ramp(batch, context)?;
        let tenth = (c.steps / 10).max(1);
        let none = self.dev.as_deref() == Some("none");
        c.objective = Some(objective);
        c.context = Some(context);
        c.check_text(objective)?;
        let smoothing = if objective == Objective::Translation { 0.1 } else { 0.0 };
        c.label_smoothing.get_or_insert(smoothing);
        let all = c.dev.is_some() || !c.dev_source.is_empty();
        c.eval_tokens.get_or_insert(if all { 0 } else { 32_768 });
        if c.dev_source.is_empty() {
            c.dev.get_or_insert_with(|| "0.05".into());
        }
        let warmup_steps = *c.warmup_steps.get_or_insert((c.steps / 10).min(2000));
        let eval_every = if none { 0 } else { c.eval_every.unwrap_or(tenth) };
        c.eval_every = Some(eval_every);
        let save_every = *c.save_every.get_or_insert(tenth);
        for paths in [&mut c.data, &mut c.source, &mut c.target, &mut c.dev_source, &mut c.dev_target] {
            paths.iter_mut().for_each(|p| *p = std::path::absolute(&*p).unwrap_or_else(|_| p.clone()));
        }
        if let Ok(Some(DevSplit::File(p))) = c.dev_split() {
            c.dev = Some(std::path::absolute(&p).unwrap_or(p).display().to_string());
        }
        Ok(Resolved { config: c, objective, context, batch, ramp, warmup_steps, eval_every, save_every })
    }

    /// As TOML.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::config("config", e, "paths in UTF-8"))
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// When it cannot be read or a key or value is wrong; the message has line and key.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let parsed = toml::from_str(&text);
        parsed.map_err(|e| Error::ConfigFile { path: path.to_owned(), message: e.to_string().trim().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> TrainConfig {
        TrainConfig { model: "gpt2".into(), data: vec!["x".into()], ..TrainConfig::default() }
    }

    #[test]
    fn every_bad_field_is_named() {
        base().validate().unwrap();
        type Change = fn(&mut TrainConfig);
        let bad: [(&str, Change); 19] = [
            ("objective is classification, expected causal", |c| c.objective = Some(Objective::Classification)),
            ("model is empty", |c| c.model.clear()),
            ("steps is 0, expected at least 1", |c| c.steps = 0),
            ("accumulate is 0", |c| c.accumulate = 0),
            ("batch is 0", |c| c.batch = Some(0)),
            ("batch_tokens is 9 beside batch = 3", |c| (c.batch, c.batch_tokens) = (Some(3), Some(9))),
            ("batch_start is 0, expected at least 1", |c| c.batch_start = Some(0)),
            ("batch_start is 4, expected batch_ramp_steps", |c| c.batch_start = Some(4)),
            ("warmup_steps is 1001, expected at most steps = 1000", |c| c.warmup_steps = Some(1001)),
            ("lr is -1", |c| c.lr = -1.0),
            ("lr is NaN", |c| c.lr = f64::NAN),
            ("lr_floor is 1.5", |c| c.lr_floor = 1.5),
            ("beta2 is 1", |c| c.beta2 = 1.0),
            ("eps is 0", |c| c.eps = 0.0),
            ("clip is -2", |c| c.clip = -2.0),
            ("mask_probability is 0", |c| c.mask_probability = 0.0),
            ("mask_random is 0.3", |c| c.mask_random = 0.3),
            ("dropout is 1", |c| c.dropout = Some(1.0)),
            ("dev: found 2.5", |c| c.dev = Some("2.5".into())),
        ];
        for (message, change) in bad {
            let mut c = base();
            change(&mut c);
            let found = c.validate().unwrap_err().to_string();
            assert!(found.contains(message), "{found} / {message}");
        }
    }

    #[test]
    fn toml_there_and_back() {
        let c = TrainConfig { lr: 1.0 / 3.0, freeze: vec!["wte*".into()], ..base() };
        let r = c.resolve(Objective::Causal, 64).unwrap().config;
        assert_eq!(toml::from_str::<TrainConfig>(&r.to_toml().unwrap()).unwrap(), r);
        // What is settled stays settled.
        assert_eq!(r.resolve(Objective::Causal, 64).unwrap().config, r);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "model = \"gpt2\"\nsteppes = 3\n").unwrap();
        let message = TrainConfig::read(&path).unwrap_err().to_string();
        assert!(message.contains("c.toml") && message.contains("line 2") && message.contains("steppes"), "{message}");
    }

    #[test]
    fn batches_in_tokens() {
        let c = TrainConfig { batch_tokens: Some(130), context: Some(32), ..base() };
        assert_eq!(c.resolve(Objective::Causal, 64).unwrap().batch, BatchSize::Sequences(4));
        assert_eq!(c.resolve(Objective::Masked, 64).unwrap().batch, BatchSize::Tokens(130));
        let grows = TrainConfig { batch_ramp_steps: 9, batch_start: Some(64), ..c.clone() };
        assert_eq!(grows.resolve(Objective::Causal, 64).unwrap().ramp, Ramp { start: 2, steps: 9 });
        assert_eq!(grows.resolve(Objective::Masked, 64).unwrap().ramp, Ramp { start: 64, steps: 9 });
        for (start, message) in [(None, "is not given"), (Some(31), "is 31"), (Some(200), "is 200")] {
            let c = TrainConfig { batch_start: start, ..grows.clone() };
            assert!(c.resolve(Objective::Causal, 64).unwrap_err().to_string().contains(message));
        }
        let c = TrainConfig { batch_tokens: Some(31), ..c };
        assert!(c.resolve(Objective::Causal, 64).unwrap_err().to_string().contains("batch_tokens is 31"));
        let c = TrainConfig { context: Some(65), ..base() };
        assert!(c.resolve(Objective::Causal, 64).unwrap_err().to_string().contains("n_ctx = 64"));
    }
}
