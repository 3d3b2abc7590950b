//! `batch.json`: padded nested lists with `transformers`' names, read strictly and made ragged.

mod classes;

pub(crate) use classes::ClassLabels;

use crate::{Error, Result};
use genus_checkpoint::config::JsonFile;
use genus_models::{Input, Model, Task};
use genus_nn::Segments;
use genus_ops::{IGNORE, Spans};
use serde_json::Value;
use std::ops::Range;
use std::path::Path;

/// Every key that `batch.json` may have.
const KEYS: [&str; 9] = [
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "decoder_input_ids",
    "labels",
    "next_sentence_label",
    "start_positions",
    "end_positions",
];

/// A padded batch, as the reference's library takes it.
#[derive(Clone, Debug)]
pub struct PaddedBatch {
    file: JsonFile,
    width: usize,
    rows: usize,
    ids: Vec<Vec<i64>>,
    /// The real tokens of each row.
    real: Vec<Range<usize>>,
}

/// A batch without padding, ready to run.
pub(crate) struct Ragged {
    pub input: Input,
    /// What is written, of a model that reads one sequence and writes another; then `input` is what is read.
    pub target: Option<Input>,
    /// One a real token, for the heads that predict tokens.
    pub token_labels: Option<Vec<i32>>,
    /// What the direction that reads from the end predicts.
    pub before_labels: Option<Vec<i32>>,
    /// One a sequence.
    pub pair_labels: Option<Vec<i32>>,
    /// Of sequence classification.
    pub class_labels: Option<ClassLabels>,
}

impl PaddedBatch {
    /// Reads a file; the model's own limits are checked when it is run.
    ///
    /// # Errors
    /// When it is not an object of rectangular lists of whole numbers under known names; file, field (with row and column), found
    /// and expected are named.
    pub fn open(file: impl AsRef<Path>) -> Result<Self> {
        let file = JsonFile::open(file)?;
        let keys = file.value().as_object().map(|o| o.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        if let Some(key) = keys.iter().find(|k| !KEYS.contains(&k.as_str())) {
            let nearest = genus_checkpoint::names::nearest_names(key, KEYS.iter().copied(), 1).pop();
            let hint = nearest.map(|n| format!(" (did you mean {n:?}?)")).unwrap_or_default();
            return Err(bad(&file, key.as_str(), "an unknown field", format!("only {}{hint}", KEYS.join(", "))));
        }
        let mut batch = PaddedBatch { file, width: 0, rows: 0, ids: Vec::new(), real: Vec::new() };
        batch.ids = batch
            .matrix("input_ids", |_| true, "whole numbers")?
            .ok_or_else(|| batch.bad("input_ids", "nothing", "a list of rows of token ids"))?;
        batch.rows = batch.ids.len();
        batch.width = batch.ids.first().map_or(0, Vec::len);
        if batch.rows == 0 || batch.width == 0 {
            return Err(batch.bad(
                "input_ids",
                format!("the shape [{}, {}]", batch.rows, batch.width),
                "at least one token",
            ));
        }
        let mask = batch.matrix("attention_mask", |m| m == 0 || m == 1, "0 or 1")?;
        batch.real = match mask {
            None => vec![0..batch.width; batch.rows],
            Some(mask) => mask.iter().enumerate().map(|(r, row)| batch.real_part(r, row)).collect::<Result<_>>()?,
        };
        Ok(batch)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of the rows, padding included.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The real tokens of each row.
    pub fn real(&self) -> &[Range<usize>] {
        &self.real
    }

    /// An error about a field of the file.
    pub(crate) fn bad(&self, field: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Error {
        bad(&self.file, field, found, expected)
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.file.get(field).is_some()
    }

    fn real_part(&self, r: usize, mask: &[i64]) -> Result<Range<usize>> {
        let one = |m: &i64| *m == 1;
        match (mask.iter().position(one), mask.iter().rposition(one)) {
            (Some(a), Some(b)) if mask[a..=b].iter().all(one) => Ok(a..b + 1),
            (None, _) => Err(self.bad(format!("attention_mask[{r}]"), "only zeros", "at least one 1")),
            _ => {
                Err(self.bad(format!("attention_mask[{r}]"), "zeros between ones", "padding at the ends of a row only"))
            }
        }
    }

    /// A `[rows, width]` field, with `input_ids`' shape.
    fn matrix(&self, field: &'static str, ok: impl Fn(i64) -> bool, what: &str) -> Result<Option<Vec<Vec<i64>>>> {
        self.matrix_of(field, self.width, ok, what)
    }

    /// A `[rows, width]` field; any width, the same for all rows, where `width` is 0.
    fn matrix_of(
        &self,
        field: &'static str,
        width: usize,
        ok: impl Fn(i64) -> bool,
        what: &str,
    ) -> Result<Option<Vec<Vec<i64>>>> {
        let Some(value) = self.file.get(field) else { return Ok(None) };
        let rows = value.as_array().ok_or_else(|| self.bad(field, kind(value), "a list of rows"))?;
        if self.rows > 0 && rows.len() != self.rows {
            return Err(self.bad(field, format!("{} rows", rows.len()), format!("{} as in input_ids", self.rows)));
        }
        let mut out: Vec<Vec<i64>> = Vec::with_capacity(rows.len());
        for (r, row) in rows.iter().enumerate() {
            let row = row
                .as_array()
                .ok_or_else(|| self.bad(format!("{field}[{r}]"), kind(row), "a list of whole numbers"))?;
            let wanted = match width {
                0 => out.first().map_or(row.len(), Vec::len),
                n => n,
            };
            if row.len() != wanted {
                let expected = format!("{wanted}, as in {}", if width > 0 { "input_ids" } else { "the first row" });
                return Err(self.bad(format!("{field}[{r}]"), format!("{} numbers", row.len()), expected));
            }
            out.push(
                row.iter()
                    .enumerate()
                    .map(|(c, v)| self.number(&format!("{field}[{r}][{c}]"), v, &ok, what))
                    .collect::<Result<_>>()?,
            );
        }
        Ok(Some(out))
    }

    /// A field with one number a row.
    fn vector(&self, field: &'static str, ok: impl Fn(i64) -> bool, what: &str) -> Result<Option<Vec<i64>>> {
        let Some(value) = self.file.get(field) else { return Ok(None) };
        let list =
            value.as_array().ok_or_else(|| self.bad(field, kind(value), "a list of whole numbers, one a row"))?;
        if list.len() != self.rows {
            return Err(self.bad(
                field,
                format!("{} numbers", list.len()),
                format!("{}, one a row of input_ids", self.rows),
            ));
        }
        list.iter()
            .enumerate()
            .map(|(r, v)| self.number(&format!("{field}[{r}]"), v, &ok, what))
            .collect::<Result<_>>()
            .map(Some)
    }

    fn number(&self, place: &str, v: &Value, ok: &impl Fn(i64) -> bool, what: &str) -> Result<i64> {
        match v.as_i64() {
            Some(n) if ok(n) => Ok(n),
            Some(n) => Err(self.bad(place, n.to_string(), what)),
            None => Err(self.bad(place, kind(v), what)),
        }
    }

    /// A field's real entries, one after the other.
    fn flat(&self, rows: &[Vec<i64>]) -> Vec<u32> {
        rows.iter().zip(&self.real).flat_map(|(row, r)| row[r.clone()].iter().map(|&n| n as u32)).collect()
    }

    /// A field's real entries, each checked to be below `limit` (which `what` describes).
    fn below(&self, field: &'static str, rows: &[Vec<i64>], limit: usize, what: &str) -> Result<Vec<u32>> {
        for (r, row) in rows.iter().enumerate() {
            for c in self.real[r].clone() {
                if row[c] < 0 || row[c] as u64 >= limit as u64 {
                    return Err(self.bad(
                        format!("{field}[{r}][{c}]"),
                        row[c].to_string(),
                        format!("from 0 to {} ({what})", limit.saturating_sub(1)),
                    ));
                }
            }
        }
        Ok(self.flat(rows))
    }

    /// The batch as `model` takes it for its task.
    pub(crate) fn ragged(&self, model: &Model) -> Result<Ragged> {
        let (spec, task) = (model.spec(), model.task());
        self.check_fields(task, model.has_encoder())?;
        let ids = self.below("input_ids", &self.ids, spec.vocab_size, "vocab_size")?;
        let positions = self.matrix("position_ids", |_| true, "whole numbers")?;
        let rows = spec.n_ctx + spec.positions.offset();
        let positions = positions.map(|p| self.below("position_ids", &p, rows, "n_ctx")).transpose()?;
        if positions.is_none()
            && let Some((r, real)) = self.real.iter().enumerate().find(|(_, r)| r.len() > spec.n_ctx)
        {
            let expected = format!("at most {} (n_ctx)", spec.n_ctx);
            return Err(self.bad(format!("input_ids[{r}]"), format!("{} tokens", real.len()), expected));
        }
        let types = self.matrix("token_type_ids", |_| true, "whole numbers")?;
        let types = match (types, spec.segments) {
            (None, _) => None,
            (Some(t), Segments::Learned(n)) => Some(self.below("token_type_ids", &t, n, "the model's segments")?),
            (Some(_), Segments::None) => {
                return Err(self.bad(
                    "token_type_ids",
                    "a field",
                    format!("none: {} has no segments", model.family().name),
                ));
            }
        };
        let target = if model.has_encoder() { Some(self.target(model)?) } else { None };
        let before_labels = match task {
            Task::BidirectionalLm => self.token_labels(Side::Before, spec.vocab_size, "vocab_size")?,
            _ => None,
        };
        let side = match task {
            Task::CausalLm | Task::BidirectionalLm => Side::Next,
            _ => Side::Here,
        };
        let token_labels = match &target {
            Some(target) => self.target_labels(target, spec.vocab_size)?,
            None if task.predicts_tokens() => self.token_labels(side, spec.vocab_size, "vocab_size")?,
            None if task == Task::ReplacedToken => self.token_labels(side, 2, "1: the token was replaced")?,
            None if task == Task::TokenClassification => {
                self.token_labels(side, model.labels().names.len(), "the model's classes")?
            }
            None => None,
        };
        let pair_labels = self.pair_labels(task)?;
        let spans = Spans::from_lengths(self.real.iter().map(Range::len));
        let class_labels = match task {
            Task::SequenceClassification => self.class_labels(model.labels())?,
            _ => None,
        };
        let input = Input { ids, spans, positions, types, characters: None };
        Ok(Ragged { input, target, token_labels, before_labels, pair_labels, class_labels })
    }

    /// Fields that the task does not take are errors: silently ignoring one would hide a mistake.
    fn check_fields(&self, task: Task, has_encoder: bool) -> Result<()> {
        let mut takes = vec!["input_ids", "attention_mask"];
        takes.extend(if has_encoder { &["decoder_input_ids"][..] } else { &["token_type_ids", "position_ids"] });
        match task {
            Task::Seq2SeqLm
            | Task::CausalLm
            | Task::BidirectionalLm
            | Task::MaskedLm
            | Task::ReplacedToken
            | Task::SequenceClassification
            | Task::TokenClassification => takes.push("labels"),
            Task::NextSentence | Task::Pretraining => takes.extend(["labels", "next_sentence_label"]),
            _ => {}
        }
        match KEYS.iter().find(|k| self.has(k) && !takes.contains(k)) {
            None => Ok(()),
            Some(key) => Err(self.bad(*key, "a field", format!("none: the task {task} takes {}", takes.join(", ")))),
        }
    }

    /// What a model with an encoder writes: `decoder_input_ids`, or the labels one place further on. There is no mask for it: all of
    /// its places are real, and as each sees only those before it, padding behind a row changes nothing in front of it.
    fn target(&self, model: &Model) -> Result<Input> {
        let vocab_size = model.spec().vocab_size;
        let id = |field: &'static str| model.config_field(field).and_then(Value::as_i64);
        let rows = match self.matrix_of("decoder_input_ids", 0, |_| true, "whole numbers")? {
            Some(rows) => rows,
            None => {
                let labels = self.matrix_of("labels", 0, |_| true, "whole numbers")?.ok_or_else(|| {
                    self.bad("decoder_input_ids", "nothing", "rows of token ids (or labels, which give them)")
                })?;
                let start = id("decoder_start_token_id").ok_or_else(|| {
                    self.bad("decoder_input_ids", "nothing", "a field: config.json has no decoder_start_token_id")
                })?;
                let ids = |row: Vec<i64>| {
                    let before = row.len().saturating_sub(1);
                    std::iter::once(start).chain(row.into_iter().take(before)).collect::<Vec<i64>>()
                };
                let mut rows: Vec<Vec<i64>> = labels.into_iter().map(ids).collect();
                for n in rows.iter_mut().flatten().filter(|n| **n == i64::from(IGNORE)) {
                    *n = id("pad_token_id").ok_or_else(|| {
                        self.bad("labels", "-100", "a token id: config.json has no pad_token_id to stand for it")
                    })?;
                }
                rows
            }
        };
        let n_ctx = model.spec().n_ctx;
        for (r, row) in rows.iter().enumerate() {
            if row.is_empty() || row.len() > n_ctx {
                let expected = format!("from 1 to {n_ctx} (n_ctx)");
                return Err(self.bad(format!("decoder_input_ids[{r}]"), format!("{} tokens", row.len()), expected));
            }
            if let Some(c) = row.iter().position(|&n| n < 0 || n as u64 >= vocab_size as u64) {
                let expected = format!("from 0 to {} (vocab_size)", vocab_size.saturating_sub(1));
                return Err(self.bad(format!("decoder_input_ids[{r}][{c}]"), row[c].to_string(), expected));
            }
        }
        let ids: Vec<Vec<u32>> = rows.iter().map(|r| r.iter().map(|&n| n as u32).collect()).collect();
        Ok(Input::from_sequences(&ids))
    }

    /// One label for each place that is written.
    fn target_labels(&self, target: &Input, vocab_size: usize) -> Result<Option<Vec<i32>>> {
        let fits = |n: i64| n == i64::from(IGNORE) || (0..vocab_size as i64).contains(&n);
        let what = format!("-100 or from 0 to {} (vocab_size)", vocab_size.saturating_sub(1));
        let Some(rows) = self.matrix_of("labels", 0, fits, &what)? else { return Ok(None) };
        let width = target.spans.iter().next().map_or(0, |r| r.len());
        if let Some(row) = rows.iter().find(|row| row.len() != width) {
            let expected = format!("{width}, as in decoder_input_ids");
            return Err(self.bad("labels", format!("{} numbers a row", row.len()), expected));
        }
        let labels: Vec<i32> = rows.into_iter().flatten().map(|n| n as i32).collect();
        if labels.iter().all(|&t| t == IGNORE) {
            return Err(self.bad("labels", "no token to predict", "at least one label other than -100"));
        }
        Ok(Some(labels))
    }

    /// One target a real token, shifted where a neighbour predicts it.
    fn token_labels(&self, side: Side, limit: usize, what: &str) -> Result<Option<Vec<i32>>> {
        let fits = |n: i64| n == i64::from(IGNORE) || (0..limit as i64).contains(&n);
        let what = format!("-100 or from 0 to {} ({what})", limit.saturating_sub(1));
        let Some(rows) = self.matrix("labels", fits, &what)? else { return Ok(None) };
        let mut out = Vec::new();
        for (r, (row, real)) in rows.iter().zip(&self.real).enumerate() {
            if let Some(c) = (0..row.len()).find(|c| !real.contains(c) && row[*c] != i64::from(IGNORE)) {
                let expected = "-100 (attention_mask is 0 there)";
                return Err(self.bad(format!("labels[{r}][{c}]"), row[c].to_string(), expected));
            }
            let labels = row[real.clone()].iter().map(|&n| n as i32);
            match side {
                Side::Next => out.extend(labels.skip(1).chain([IGNORE])),
                Side::Before => {
                    let count = labels.len().saturating_sub(1);
                    out.extend(std::iter::once(IGNORE).take(labels.len()).chain(labels.take(count)));
                }
                Side::Here => out.extend(labels),
            }
        }
        if out.iter().all(|&t| t == IGNORE) {
            return Err(self.bad("labels", "no token to predict", "at least one label other than -100"));
        }
        Ok(Some(out))
    }

    fn pair_labels(&self, task: Task) -> Result<Option<Vec<i32>>> {
        if !task.predicts_next_sentence() {
            return Ok(None);
        }
        let fits = |n: i64| (0..2).contains(&n) || n == i64::from(IGNORE);
        let mut labels = self.vector("next_sentence_label", fits, "0, 1 or -100")?;
        if task == Task::NextSentence && self.has("labels") {
            if labels.is_some() {
                return Err(self.bad("labels", "a field beside next_sentence_label", "one of the two"));
            }
            labels = self.vector("labels", fits, "0, 1 or -100")?;
        }
        if labels.as_ref().is_some_and(|l| l.iter().all(|&t| t == i64::from(IGNORE))) {
            return Err(self.bad("next_sentence_label", "only -100", "at least one 0 or 1"));
        }
        Ok(labels.map(|l| l.iter().map(|&n| n as i32).collect()))
    }
}

/// Which label a token predicts.
#[derive(Clone, Copy)]
enum Side {
    /// Its own.
    Here,
    /// That of the token behind it.
    Next,
    /// That of the token before it.
    Before,
}

fn bad(file: &JsonFile, field: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Error {
    Error::Input { file: file.path().to_owned(), field: field.into(), found: found.into(), expected: expected.into() }
}

/// A JSON value in a few words.
fn kind(v: &Value) -> String {
    match v {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(_) => "a text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}
