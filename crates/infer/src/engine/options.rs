//! What a request asks for: the folder's `generation_config.json`, and what the caller overrides.

use crate::{Error, Result};
use genus_checkpoint::config::JsonFile;
use serde_json::Value;
use std::path::Path;

/// How the next token is chosen from the model's prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The likeliest (the lowest id among equals).
    Greedy,
    /// Drawn at random, after these steps in this order.
    Random {
        /// Logits are divided by it.
        temperature: f64,
        /// Only that many of the likeliest stay (0: all; equals of the last one stay too).
        top_k: usize,
        /// Only the fewest stay whose probability reaches this (Holtzman et al. 2019, arXiv 1904.09751); 1: all.
        top_p: f64,
        /// Only those stay whose probability is at least this part of the likeliest's (Nguyen et al. 2024, arXiv 2407.01082);
        /// 0: all.
        min_p: f64,
    },
}

/// All options of one request. The defaults of a folder come from [`GenerationConfig`].
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Logits of tokens seen before (prompt included) are divided by it if positive, else multiplied (Keskar et al. 2019, arXiv
    /// 1909.05858); 1: not at all.
    pub repetition_penalty: f64,
    /// At most that many tokens are generated.
    pub max_new_tokens: usize,
    /// No end token before that many tokens.
    pub min_new_tokens: usize,
    /// Tokens that are never chosen.
    pub banned: Vec<u32>,
    /// Tokens that end a sequence. They are part of the generated ids and not of the text.
    pub eos: Vec<u32>,
    /// Go on after an end token.
    pub ignore_eos: bool,
    /// Texts that end a sequence; the text ends before them.
    pub stop: Vec<String>,
    /// Decides all draws. The same request with the same seed gives the same ids, whatever shares the batch.
    pub seed: u64,
}

/// Tokens generated when nothing says how many.
pub const MAX_NEW_TOKENS: usize = 128;

impl Default for GenerateOptions {
    /// Greedy, [`MAX_NEW_TOKENS`] tokens, without end token.
    fn default() -> Self {
        GenerateOptions {
            sampling: Sampling::Greedy,
            repetition_penalty: 1.0,
            max_new_tokens: MAX_NEW_TOKENS,
            min_new_tokens: 0,
            banned: Vec::new(),
            eos: Vec::new(),
            ignore_eos: false,
            stop: Vec::new(),
            seed: 0,
        }
    }
}

impl GenerateOptions {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the first option that cannot be.
    pub fn check(&self) -> Result<()> {
        let between = |name, x: f64, ok: bool, expected: &str| {
            if ok { Ok(()) } else { Err(Error::option(name, x, expected)) }
        };
        if let Sampling::Random { temperature: t, top_p, min_p, .. } = self.sampling {
            between("temperature", t, t.is_finite() && t > 0.0, "a finite number above 0 (0 chooses greedily)")?;
            between("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
            between("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")?;
        }
        let p = self.repetition_penalty;
        between("repetition_penalty", p, p.is_finite() && p > 0.0, "a finite number above 0")?;
        if self.max_new_tokens == 0 {
            return Err(Error::option("max_new_tokens", 0, "at least 1"));
        }
        if self.min_new_tokens > self.max_new_tokens {
            let expected = format!("at most max_new_tokens = {}", self.max_new_tokens);
            return Err(Error::option("min_new_tokens", self.min_new_tokens, expected));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::option("stop", "an empty text", "texts of at least one character"));
        }
        Ok(())
    }
}

/// What the caller says beside the folder; `None` leaves the folder's value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Choose greedily (`true`) or at random (`false`). Without it, any of the four sampling values below means at random.
    pub greedy: Option<bool>,
    /// See [`Sampling::Random`]; 0 chooses greedily.
    pub temperature: Option<f64>,
    /// See [`Sampling::Random`].
    pub top_k: Option<usize>,
    /// See [`Sampling::Random`].
    pub top_p: Option<f64>,
    /// See [`Sampling::Random`].
    pub min_p: Option<f64>,
    /// See [`GenerateOptions::repetition_penalty`].
    pub repetition_penalty: Option<f64>,
    /// See [`GenerateOptions::max_new_tokens`].
    pub max_new_tokens: Option<usize>,
    /// See [`GenerateOptions::min_new_tokens`].
    pub min_new_tokens: Option<usize>,
    /// See [`GenerateOptions::ignore_eos`].
    pub ignore_eos: bool,
    /// See [`GenerateOptions::stop`].
    pub stop: Vec<String>,
    /// See [`GenerateOptions::seed`].
    pub seed: Option<u64>,
}

/// A folder's `generation_config.json`, as far as it is used; what it does not say has `transformers`' default.
///
/// One deviation: without `max_new_tokens` (or `max_length`) [`MAX_NEW_TOKENS`] tokens are generated, not 20 in all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Whether tokens are drawn at random.
    pub do_sample: bool,
    /// `temperature`.
    pub temperature: Option<f64>,
    /// `top_k`; `transformers` takes 50 where it is absent.
    pub top_k: Option<usize>,
    /// `top_p`.
    pub top_p: Option<f64>,
    /// `min_p`.
    pub min_p: Option<f64>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f64>,
    /// `max_new_tokens`.
    pub max_new_tokens: Option<usize>,
    /// `max_length`, the prompt included.
    pub max_length: Option<usize>,
    /// `min_new_tokens`.
    pub min_new_tokens: Option<usize>,
    /// `bad_words_ids`, as far as they are single tokens (a Marian model's padding).
    pub banned: Vec<u32>,
    /// `eos_token_id`, one or several.
    pub eos: Vec<u32>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`, and from `config.json` the tokens that it does not name. Both files may be missing.
    ///
    /// # Errors
    /// When a field has a value that cannot be; file, field, found and expected are named.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let mut config = match JsonFile::open_optional(folder.join("generation_config.json"))? {
            Some(file) => Self::read(&file)?,
            None => Self::default(),
        };
        if let Some(file) = JsonFile::open_optional(folder.join("config.json"))? {
            if config.eos.is_empty() {
                config.eos = ids(&file, "eos_token_id")?;
            }
            if config.banned.is_empty() {
                config.banned = single_words(&file)?;
            }
            if config.bos.is_none() {
                config.bos = ids(&file, "bos_token_id")?.first().copied();
            }
        }
        Ok(config)
    }

    fn read(file: &JsonFile) -> Result<Self> {
        let do_sample = match file.get("do_sample") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(b)) => *b,
            Some(_) => return Err(file.field_error("do_sample", "true or false").into()),
        };
        Ok(GenerationConfig {
            do_sample,
            temperature: number(file, "temperature", |t| t.is_finite() && t >= 0.0, "a number of at least 0")?,
            top_k: count(file, "top_k")?,
            top_p: number(file, "top_p", |p| p > 0.0 && p <= 1.0, "a number above 0 and at most 1")?,
            min_p: number(file, "min_p", |p| (0.0..=1.0).contains(&p), "a number from 0 to 1")?,
            repetition_penalty: number(file, "repetition_penalty", |p| p.is_finite() && p > 0.0, "a number above 0")?,
            max_new_tokens: count(file, "max_new_tokens")?,
            max_length: count(file, "max_length")?,
            min_new_tokens: count(file, "min_new_tokens")?,
            banned: single_words(file)?,
            eos: ids(file, "eos_token_id")?,
            bos: ids(file, "bos_token_id")?.first().copied(),
        })
    }

    /// The options of a request with a prompt of `prompt` tokens, checked.
    ///
    /// # Errors
    /// When a value cannot be.
    pub fn options(&self, o: &Overrides, prompt: usize) -> Result<GenerateOptions> {
        let temperature = o.temperature.or(self.temperature).unwrap_or(1.0);
        let asked = o.temperature.is_some() || o.top_k.is_some() || o.top_p.is_some() || o.min_p.is_some();
        let greedy = o.greedy.unwrap_or(!self.do_sample && !asked);
        let random = Sampling::Random {
            temperature: if temperature == 0.0 { 1.0 } else { temperature },
            top_k: o.top_k.or(self.top_k).unwrap_or(50),
            top_p: o.top_p.or(self.top_p).unwrap_or(1.0),
            min_p: o.min_p.or(self.min_p).unwrap_or(0.0),
        };
        let max_new_tokens = o.max_new_tokens.or(self.max_new_tokens);
        let rest = self.max_length.map(|n| n.saturating_sub(prompt).max(1));
        let max_new_tokens = max_new_tokens.or(rest).unwrap_or(MAX_NEW_TOKENS);
        let min_new_tokens = match (o.min_new_tokens, self.min_new_tokens) {
            (Some(n), _) => n,
            (None, n) => n.unwrap_or(0).min(max_new_tokens),
        };
        let mut options = GenerateOptions {
            sampling: random,
            repetition_penalty: o.repetition_penalty.or(self.repetition_penalty).unwrap_or(1.0),
            max_new_tokens,
            min_new_tokens,
            banned: self.banned.clone(),
            eos: self.eos.clone(),
            ignore_eos: o.ignore_eos,
            stop: o.stop.clone(),
            seed: o.seed.unwrap_or(0),
        };
        // A value that cannot be is an error also where it would not be used.
        options.check()?;
        if greedy || temperature == 0.0 {
            options.sampling = Sampling::Greedy;
        }
        Ok(options)
    }
}

fn present<'a>(file: &'a JsonFile, field: &str) -> Option<&'a Value> {
    file.get(field).filter(|v| !v.is_null())
}

fn number(file: &JsonFile, field: &str, ok: fn(f64) -> bool, expected: &str) -> Result<Option<f64>> {
    match present(file, field).map(|v| v.as_f64().filter(|x| ok(*x))) {
        None => Ok(None),
        Some(Some(x)) => Ok(Some(x)),
        Some(None) => Err(file.field_error(field, expected).into()),
    }
}

fn count(file: &JsonFile, field: &str) -> Result<Option<usize>> {
    match present(file, field).map(|v| v.as_u64().and_then(|n| usize::try_from(n).ok())) {
        None => Ok(None),
        Some(Some(n)) => Ok(Some(n)),
        Some(None) => Err(file.field_error(field, "a whole number of at least 0").into()),
    }
}

/// The tokens of `bad_words_ids`, each a list of one.
fn single_words(file: &JsonFile) -> Result<Vec<u32>> {
    const FIELD: &str = "bad_words_ids";
    let wrong =
        || file.field_error(FIELD, "a list of lists of one token id each (words of several are not supported)").into();
    let one = |v: &Value| match v.as_array()?.as_slice() {
        [id] => u32::try_from(id.as_u64()?).ok(),
        _ => None,
    };
    match present(file, FIELD) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|v| one(v).ok_or_else(wrong)).collect(),
        Some(_) => Err(wrong()),
    }
}

fn ids(file: &JsonFile, field: &str) -> Result<Vec<u32>> {
    let wrong = || file.field_error(field, "a token id or a list of them").into();
    let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match present(file, field) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|v| one(v).ok_or_else(wrong)).collect(),
        // Some configurations say -1 for "none".
        Some(v) if v.as_i64() == Some(-1) => Ok(Vec::new()),
        Some(v) => Ok(vec![one(v).ok_or_else(wrong)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<GenerationConfig> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
        GenerationConfig::open(dir.path())
    }

    #[test]
    fn absent_fields_have_the_defaults() {
        let c = config(r#"{"bad_words_ids": [[7], [2]], "forced_eos_token_id": 0}"#).unwrap();
        assert_eq!(c.options(&Overrides::default(), 10).unwrap().banned, [7, 2]);
        let c = config(r#"{"eos_token_id": [3, 5], "_from_model_config": true}"#).unwrap();
        let o = c.options(&Overrides::default(), 10).unwrap();
        assert_eq!(o, GenerateOptions { eos: vec![3, 5], ..Default::default() });
        let o = c.options(&Overrides { temperature: Some(0.7), seed: Some(9), ..Default::default() }, 10).unwrap();
        assert_eq!(o.sampling, Sampling::Random { temperature: 0.7, top_k: 50, top_p: 1.0, min_p: 0.0 });
        assert_eq!(o.seed, 9);
        let c = config(r#"{"do_sample": true, "top_p": 0.9, "top_k": 0, "max_length": 30}"#).unwrap();
        let o = c.options(&Overrides::default(), 10).unwrap();
        assert_eq!(o.sampling, Sampling::Random { temperature: 1.0, top_k: 0, top_p: 0.9, min_p: 0.0 });
        assert_eq!(o.max_new_tokens, 20);
        for greedy in [
            Overrides { greedy: Some(true), ..Default::default() },
            Overrides { temperature: Some(0.0), ..Default::default() },
        ] {
            assert_eq!(c.options(&greedy, 10).unwrap().sampling, Sampling::Greedy);
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, field) in [
            (r#"{"top_p": 1.5}"#, "top_p"),
            (r#"{"eos_token_id": ["x"]}"#, "eos_token_id"),
            (r#"{"top_k": -3}"#, "top_k"),
            (r#"{"do_sample": 1}"#, "do_sample"),
            (r#"{"bad_words_ids": [[1, 2]]}"#, "bad_words_ids"),
            (r#"{"bad_words_ids": [3]}"#, "bad_words_ids"),
        ] {
            let message = config(text).unwrap_err().to_string();
            assert!(message.contains("generation_config.json") && message.contains(field), "{message}");
        }
        let c = GenerationConfig::default();
        let bad = |o: Overrides, name: &str| {
            let message = c.options(&o, 1).unwrap_err().to_string();
            assert!(message.starts_with(name) && message.contains("expected"), "{message}");
        };
        bad(Overrides { temperature: Some(f64::NAN), ..Default::default() }, "temperature: found NaN");
        bad(Overrides { temperature: Some(-1.0), ..Default::default() }, "temperature: found -1");
        bad(Overrides { top_p: Some(1.01), greedy: Some(true), ..Default::default() }, "top_p: found 1.01");
        bad(Overrides { top_p: Some(0.0), ..Default::default() }, "top_p: found 0");
        bad(Overrides { min_p: Some(f64::NAN), ..Default::default() }, "min_p");
        bad(Overrides { repetition_penalty: Some(0.0), ..Default::default() }, "repetition_penalty");
        bad(Overrides { max_new_tokens: Some(0), ..Default::default() }, "max_new_tokens");
        bad(Overrides { min_new_tokens: Some(7), max_new_tokens: Some(6), ..Default::default() }, "min_new_tokens");
        bad(Overrides { stop: vec![String::new()], ..Default::default() }, "stop");
    }
}
