//! Sentence vectors: one a line, pooled from hidden states.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use genus_checkpoint::config::JsonFile;
use genus_models::{Input, Model};
use genus_ops::{Path as Way, Precision, Tape, Value, to_vec};
use genus_text::Tokenizer;
use serde_json::Value as Json;
use std::path::Path;
use std::time::{Duration, Instant};

/// How the hidden states of a line become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The model's own pooler on the first token's (BERT).
    Pooler,
    /// The last token's.
    Last,
}

impl Pooling {
    /// All of them.
    pub const ALL: [Pooling; 4] = [Pooling::Mean, Pooling::Cls, Pooling::Pooler, Pooling::Last];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::Pooler => "pooler",
            Pooling::Last => "last",
        }
    }
}

impl std::str::FromStr for Pooling {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|p| p.name() == s).ok_or_else(|| format!("found {s:?}, expected one of {names}"))
    }
}

/// How lines are embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// The pooling.
    pub pooling: Pooling,
    /// Whether vectors are divided by their length.
    pub normalize: bool,
    /// Longer lines are cut to that many tokens, special tokens included; the model's context bounds it.
    pub max_tokens: Option<usize>,
    /// Whether lines are made lower case first.
    pub lower_case: bool,
    /// Lines of about equal length are run together, up to that many tokens. Results do not depend on it.
    pub batch_tokens: usize,
    /// How operations run.
    pub path: Way,
    /// Precision of matrix products.
    pub precision: Precision,
}

impl Default for EmbedOptions {
    /// Mean, not normalised, as long as the model's context.
    fn default() -> Self {
        EmbedOptions {
            pooling: Pooling::Mean,
            normalize: false,
            max_tokens: None,
            lower_case: false,
            batch_tokens: 2048,
            path: Way::default(),
            precision: Precision::default(),
        }
    }
}

impl EmbedOptions {
    /// What a folder of `sentence-transformers` says: `modules.json` with the pooling's and the normalisation's modules, and
    /// `sentence_bert_config.json`. A folder without them has the defaults.
    ///
    /// # Errors
    /// When a file is damaged, or asks for a module or a pooling that does not exist here.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let mut options = EmbedOptions::default();
        if let Some(file) = JsonFile::open_optional(folder.join("sentence_bert_config.json"))? {
            options.max_tokens = match file.get("max_seq_length") {
                None | Some(Json::Null) => None,
                Some(v) => match v.as_u64() {
                    Some(n) if n > 0 => Some(n as usize),
                    _ => return Err(file.field_error("max_seq_length", "a whole number of at least 1").into()),
                },
            };
            options.lower_case = file.get("do_lower_case").and_then(Json::as_bool).unwrap_or(false);
        }
        let path = folder.join("modules.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(options),
            Err(source) => return Err(Error::Io { file: path, source }),
        };
        let bad = |field: String, found: String, expected: &str| Error::Input {
            file: path.clone(),
            field,
            found,
            expected: expected.into(),
        };
        let list: Json = serde_json::from_str(&text).map_err(|e| bad("content".into(), e.to_string(), "JSON"))?;
        let list = list.as_array().ok_or_else(|| bad("content".into(), "no list".into(), "a list of modules"))?;
        for (i, module) in list.iter().enumerate() {
            let kind = module.get("type").and_then(Json::as_str).unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Normalize" => options.normalize = true,
                "Pooling" => {
                    let part = module.get("path").and_then(Json::as_str).unwrap_or("1_Pooling");
                    options.pooling = pooling(&JsonFile::open(folder.join(part).join("config.json"))?)?;
                }
                _ => {
                    let found = format!("{kind:?}");
                    return Err(bad(format!("[{i}].type"), found, "Transformer, Pooling or Normalize"));
                }
            }
        }
        Ok(options)
    }
}

/// The one pooling that a `1_Pooling/config.json` switches on.
fn pooling(file: &JsonFile) -> Result<Pooling> {
    const EXPECTED: &str = "one of the poolings mean, cls and last";
    if let Some(mode) = file.get("pooling_mode").and_then(Json::as_str) {
        return match mode {
            "mean" => Ok(Pooling::Mean),
            "cls" => Ok(Pooling::Cls),
            "lasttoken" => Ok(Pooling::Last),
            _ => Err(file.field_error("pooling_mode", EXPECTED).into()),
        };
    }
    let fields = file.value().as_object().into_iter().flatten();
    let on: Vec<&str> = fields
        .filter(|(k, v)| k.starts_with("pooling_mode_") && **v == Json::Bool(true))
        .map(|(k, _)| k.as_str())
        .collect();
    match on.as_slice() {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        ["pooling_mode_lasttoken"] => Ok(Pooling::Last),
        [one] => Err(file.field_error(one, EXPECTED).into()),
        [] => Err(file.field_error("pooling_mode_mean_tokens", EXPECTED).into()),
        [_, second, ..] => Err(file.field_error(second, "false: only one pooling at a time").into()),
    }
}

/// The vectors of some lines.
#[derive(Debug)]
pub struct Embeddings {
    /// `[n, d]`, f32 on the CPU.
    pub vectors: Tensor,
    /// Number of tokens that were run.
    pub tokens: usize,
    /// Number of lines that were cut.
    pub truncated: usize,
    /// The time that tokenising took.
    pub tokenizing: Duration,
}

/// The lines of a text file: UTF-8, a byte-order mark and carriage returns dropped; empty lines count.
///
/// # Errors
/// When the file cannot be read, is empty or is not UTF-8 (the line is named).
pub fn read_lines(file: impl AsRef<Path>) -> Result<Vec<String>> {
    let file = file.as_ref();
    let bytes = std::fs::read(file).map_err(|source| Error::Io { file: file.to_owned(), source })?;
    let bad = |field: String, found: &str, expected: &str| Error::Input {
        file: file.to_owned(),
        field,
        found: found.into(),
        expected: expected.into(),
    };
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    if bytes.is_empty() {
        return Err(bad("content".into(), "an empty file", "at least one line"));
    }
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    body.split(|&b| b == b'\n')
        .enumerate()
        .map(|(i, line)| match std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(bad(format!("line {}", i + 1), "bytes that are not UTF-8", "UTF-8 text")),
        })
        .collect()
}

/// The token ids of lines, with special tokens, each at most `max` long; and how many were cut. A cut line keeps its special
/// tokens.
///
/// # Errors
/// When the tokenizer fails or `max` leaves no room.
pub fn encode_lines<T: AsRef<str> + Sync>(
    tokenizer: &Tokenizer,
    lines: &[T],
    max: usize,
) -> Result<(Vec<Vec<u32>>, usize)> {
    let mut all = tokenizer.encode_batch(lines, true)?;
    let special = tokenizer.encode("", true)?.len();
    let mut cut = 0;
    for (ids, line) in all.iter_mut().zip(lines) {
        if ids.len() <= max {
            continue;
        }
        if special >= max {
            return Err(Error::option("max_tokens", max, format!("more than the {special} special tokens of a line")));
        }
        cut += 1;
        let bare = tokenizer.encode(line.as_ref(), false)?;
        let before = (0..=ids.len().saturating_sub(bare.len())).find(|&i| ids[i..].starts_with(&bare)).unwrap_or(0);
        let after = ids.split_off((before + bare.len()).min(ids.len()));
        ids.truncate(max.saturating_sub(after.len()));
        ids.extend(after);
    }
    Ok((all, cut))
}

/// One vector a line, in their order.
///
/// # Errors
/// When a line has no token, a token is beyond the model's vocabulary, or the model has no pooler and one is asked for.
pub fn embed<T: AsRef<str> + Sync>(
    model: &Model,
    tokenizer: &Tokenizer,
    lines: &[T],
    options: &EmbedOptions,
    progress: impl FnMut(usize),
) -> Result<Embeddings> {
    let start = Instant::now();
    let n_ctx = model.spec().n_ctx;
    let max = options.max_tokens.unwrap_or(n_ctx).min(n_ctx);
    let lowered: Vec<String>;
    let (ids, truncated) = if options.lower_case {
        lowered = lines.iter().map(|l| l.as_ref().to_lowercase()).collect();
        encode_lines(tokenizer, &lowered, max)?
    } else {
        encode_lines(tokenizer, lines, max)?
    };
    let tokenizing = start.elapsed();
    let vectors = embed_ids(model, &ids, options, progress)?;
    Ok(Embeddings { vectors, tokens: ids.iter().map(Vec::len).sum(), truncated, tokenizing })
}

/// As [`embed`], from token ids. `progress` hears how many are done.
///
/// # Errors
/// As [`embed`].
pub fn embed_ids(
    model: &Model,
    ids: &[Vec<u32>],
    options: &EmbedOptions,
    mut progress: impl FnMut(usize),
) -> Result<Tensor> {
    if let Some(line) = ids.iter().position(Vec::is_empty) {
        return Err(Error::option("lines", format!("no token in line {}", line + 1), "at least one token a line"));
    }
    let d = model.spec().d_hidden();
    let mut out = vec![0f32; ids.len() * d];
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(ids[i].len()));
    let mut done = 0;
    while done < order.len() {
        // The first is the longest of those left.
        let n = (options.batch_tokens / ids[order[done]].len()).clamp(1, order.len() - done);
        let lines = &order[done..done + n];
        let rows = pooled(model, lines.iter().map(|&i| ids[i].as_slice()).collect::<Vec<_>>().as_slice(), options)?;
        for (&line, row) in lines.iter().zip(rows.chunks(d)) {
            out[line * d..(line + 1) * d].copy_from_slice(row);
        }
        done += n;
        progress(done);
    }
    if options.normalize {
        out.chunks_mut(d.max(1)).for_each(normalize);
    }
    Ok(Tensor::from_vec(out, (ids.len(), d), &Device::Cpu)?)
}

/// The vectors of one batch, one after the other.
fn pooled(model: &Model, ids: &[&[u32]], options: &EmbedOptions) -> Result<Vec<f32>> {
    let tape = Tape::inference().with_path(options.path).with_precision(options.precision);
    let input = Input::from_sequences(ids);
    let hidden = model.states(&tape, &input, false)?.last;
    let spans = &input.spans;
    if options.pooling == Pooling::Pooler {
        let rows = model.pooler()?.forward(&tape, &Value::constant(hidden.tensor().clone()), spans, 0.0)?;
        return Ok(to_vec(rows.tensor())?);
    }
    let d = model.spec().d_hidden();
    let x = to_vec(hidden.tensor())?;
    let mut out = Vec::with_capacity(ids.len() * d);
    for r in spans.iter() {
        let row = |i: usize| &x[i * d..(i + 1) * d];
        match options.pooling {
            Pooling::Cls | Pooling::Pooler => out.extend_from_slice(row(r.start)),
            Pooling::Last => out.extend_from_slice(row(r.end - 1)),
            Pooling::Mean => {
                let n = r.len() as f64;
                let mut sum = vec![0f64; d];
                for i in r {
                    sum.iter_mut().zip(row(i)).for_each(|(s, &v)| *s += f64::from(v));
                }
                out.extend(sum.iter().map(|s| (s / n) as f32));
            }
        }
    }
    Ok(out)
}

/// Divides a vector by its length (by 1e-12 at least, as the reference).
fn normalize(v: &mut [f32]) {
    let norm = v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(1e-12);
    v.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
}
