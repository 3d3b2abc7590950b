//! Measurements of forward passes, prompts and decoding, beside the machine's ceilings.

mod compare;
mod report;
mod translate;

pub use compare::{Change, Comparison, compare};
pub use report::{Ceilings, ELSE, Measured, Report, Share, measure};
pub use translate::{TranslationSearch, translate};

use crate::embed::{EmbedOptions, embed_ids, encode_lines};
use crate::{Engine, Error, GenerateOptions, Request, Result};
use genus_models::{Flops, Input, Model, StackSpec};
use genus_nn::Tying;
use genus_ops::rng::mix64;
use genus_ops::{Precision, Spans, Tape};
use genus_text::Tokenizer;
use std::time::{Duration, Instant};

/// How often a workload is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Runs that are not counted.
    pub warm_up: usize,
    /// Runs that are.
    pub timed: usize,
}

impl Default for Runs {
    fn default() -> Self {
        Runs { warm_up: 1, timed: 5 }
    }
}

/// Random token ids: the same for the same arguments.
fn ids(model: &Model, n: usize, seed: u64) -> Vec<u32> {
    let vocab_size = model.spec().vocab_size as u64;
    (0..n as u64).map(|i| (mix64(seed << 32 | (i + 1)) % vocab_size) as u32).collect()
}

fn positive(name: &'static str, n: usize) -> Result<()> {
    if n == 0 { Err(Error::option(name, n, "at least 1")) } else { Ok(()) }
}

fn fits(model: &Model, name: &'static str, n: usize, limit: usize) -> Result<()> {
    positive(name, n)?;
    if n > limit {
        return Err(Error::option(name, n, format!("at most {limit} (the model's context is {})", model.spec().n_ctx)));
    }
    Ok(())
}

/// Forward passes of `batch` sequences of `context` random tokens, with the logits of every token where the model's task
/// predicts tokens.
///
/// # Errors
/// When a size cannot be or the model fails.
pub fn forward(model: &Model, batch: usize, context: usize, precision: Precision, runs: Runs) -> Result<Measured> {
    positive("batch", batch)?;
    fits(model, "context", context, model.spec().n_ctx)?;
    let sequences: Vec<Vec<u32>> = (0..batch).map(|i| ids(model, context, i as u64)).collect();
    let input = Input::from_sequences(&sequences);
    let predicted = if model.lm_head().is_ok() { input.ids.len() } else { 0 };
    measure(runs, || {
        let start = Instant::now();
        let tape = Tape::inference().with_precision(precision);
        let hidden = model.hidden(&tape, &input, None, false)?;
        if predicted > 0 {
            std::hint::black_box(model.lm_head()?.logits(&tape, &hidden.last)?);
        }
        Ok(start.elapsed())
    })
    .map(|m| m.work(input.ids.len(), model.flops(&input.spans, &Spans::single(0), predicted).forward))
}

/// Vectors of lines of natural length, text in, vectors out: tokenising, batching by length, forward pass and pooling. The time
/// of tokenising is part of the seconds, and also given apart.
///
/// # Errors
/// When the model or the tokenizer fails.
pub fn lines(
    model: &Model,
    tokenizer: &Tokenizer,
    lines: &[String],
    options: &EmbedOptions,
    runs: Runs,
) -> Result<Measured> {
    positive("lines", lines.len())?;
    let max = options.max_tokens.unwrap_or(usize::MAX).min(model.spec().n_ctx);
    let mut tokens = 0;
    let mut flops = 0.0;
    let mut tokenizing = Vec::new();
    let measured = measure(runs, || {
        let start = Instant::now();
        let (ids, _) = encode_lines(tokenizer, lines, max)?;
        let encoded = start.elapsed();
        std::hint::black_box(embed_ids(model, &ids, options, |_| {})?);
        let all = start.elapsed();
        tokenizing.push(encoded.as_secs_f64());
        tokens = ids.iter().map(Vec::len).sum();
        flops = model.flops(&Spans::from_lengths(ids.iter().map(Vec::len)), &Spans::single(0), 0).forward;
        Ok(all)
    })?;
    let counted = tokenizing.split_off(tokenizing.len().saturating_sub(measured.seconds.len()));
    Ok(Measured { tokenizing_seconds: Some(counted), ..measured.work(tokens, flops) })
}

/// Tokenising of lines, special tokens included, on all threads of rayon's pool. Bytes are those of the text.
///
/// # Errors
/// When the tokenizer fails.
pub fn tokenize(tokenizer: &Tokenizer, lines: &[String], runs: Runs) -> Result<Measured> {
    positive("lines", lines.len())?;
    let mut tokens = 0;
    let measured = measure(runs, || {
        let start = Instant::now();
        let ids = tokenizer.encode_batch(lines, true)?;
        let elapsed = start.elapsed();
        tokens = ids.iter().map(Vec::len).sum();
        Ok(elapsed)
    })?;
    let bytes = lines.iter().map(String::len).sum::<usize>() as f64;
    Ok(Measured { bytes: Some(bytes), ..measured.work(tokens, 0.0) })
}

/// The time from a prompt of random tokens to the first new one. Tokens are the prompt's.
///
/// # Errors
/// When a size cannot be, or the model does not predict the next token.
pub fn prefill(model: &Model, prompt_tokens: usize, precision: Precision, runs: Runs) -> Result<Measured> {
    fits(model, "prompt_tokens", prompt_tokens, model.spec().n_ctx)?;
    let engine = Engine::new(model, None)?.with_precision(precision);
    let options = GenerateOptions { max_new_tokens: 1, ..Default::default() };
    let request = Request { prompt: ids(model, prompt_tokens, 0), options };
    let flops = Flops::prompt(model.spec(), prompt_tokens);
    measure(runs, || {
        let start = Instant::now();
        engine.generate(std::slice::from_ref(&request), |_, _| {})?;
        Ok(start.elapsed())
    })
    .map(|m| m.work(prompt_tokens, flops))
}

/// Greedy decoding of `batch` sequences together: `new_tokens` steps, timed from the first token of each (which reading the
/// prompt gives) on. Tokens are the generated ones; bytes are those of the weights, read once a step.
///
/// # Errors
/// When a size cannot be, or the model does not predict the next token.
pub fn decode(
    model: &Model,
    batch: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    precision: Precision,
    runs: Runs,
) -> Result<Measured> {
    positive("batch", batch)?;
    positive("prompt_tokens", prompt_tokens)?;
    fits(model, "new_tokens", new_tokens, model.spec().n_ctx.saturating_sub(prompt_tokens))?;
    let engine = Engine::new(model, None)?.with_step_tokens(usize::MAX).with_precision(precision);
    let options = GenerateOptions { max_new_tokens: new_tokens + 1, ..Default::default() };
    let flops: f64 = (0..new_tokens).map(|i| Flops::decode(model.spec(), prompt_tokens + i)).sum();
    let bytes = weights_read(model) as f64 * new_tokens as f64;
    let measured = measure(runs, || {
        let mut running = engine.batch();
        genus_ops::profile::paused(|| {
            for i in 0..batch {
                running.add(&Request { prompt: ids(model, prompt_tokens, i as u64), options: options.clone() })?;
            }
            running.step()
        })?;
        let start = Instant::now();
        while !running.is_empty() {
            for (_, event) in running.step()? {
                event?;
            }
        }
        Ok(start.elapsed())
    })?;
    Ok(Measured { bytes: Some(bytes), ..measured.work(batch * new_tokens, flops * batch as f64) })
}

/// Bytes of the weights that one decoding step reads whole: all but tables of which it takes single rows.
fn weights_read(model: &Model) -> usize {
    let spec: &StackSpec = model.spec();
    let by_row = |name: &str| match name {
        "embeddings.positions" | "embeddings.types" => true,
        "embeddings.tokens" => spec.tying == Tying::Untied,
        _ => false,
    };
    let read = model.params().iter().filter(|p| !by_row(p.name()));
    read.map(|p| p.bytes()).sum()
}

/// A run's time.
pub(crate) type Timed = Result<Duration>;

#[cfg(test)]
mod tests {
    use super::*;
    use genus_models::{Task, find_preset};

    fn tiny(preset: &str, task: Task) -> Model {
        let (family, preset) = find_preset(preset).unwrap();
        let mut spec = (preset.spec)();
        (spec.d_model, spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.d_head) = (24, 2, 2, 2, 12);
        (spec.d_ff, spec.vocab_size, spec.n_ctx) = (20, 300, 16);
        Model::random(family, spec, task, 1).unwrap()
    }

    #[test]
    fn workloads_count_their_work() {
        let runs = Runs { warm_up: 1, timed: 3 };
        let gpt2 = tiny("gpt2", Task::CausalLm);
        let m = forward(&gpt2, 2, 5, Precision::F32, runs).unwrap();
        assert_eq!((m.tokens, m.seconds.len(), m.bytes), (10, 3, None));
        assert_eq!(m.flops, gpt2.flops(&Spans::from_lengths([5, 5]), &Spans::single(0), 10).forward);
        assert_eq!(m.operations.iter().map(|e| e.flops).sum::<f64>(), 3.0 * m.flops);
        let m = prefill(&gpt2, 16, Precision::Bf16, runs).unwrap();
        assert_eq!((m.tokens, m.flops), (16, Flops::prompt(gpt2.spec(), 16)));
        let m = decode(&gpt2, 3, 4, 6, Precision::F32, runs).unwrap();
        assert_eq!(m.tokens, 18);
        // Every product of the six steps, none of the prompts'.
        assert_eq!(m.operations.iter().map(|e| e.flops).sum::<f64>(), 3.0 * m.flops);
        // All weights but the position table, six times.
        assert_eq!(m.bytes, Some((6 * 4 * (gpt2.count() - 16 * 24)) as f64));
        let bert = tiny("bert-tiny", Task::Base);
        let tokenizer = Tokenizer::bytes();
        let text = ["a b".to_owned(), "abcdefghijklmnopqrstuvwxyz".to_owned()];
        let m = lines(&bert, &tokenizer, &text, &EmbedOptions::default(), runs).unwrap();
        assert_eq!((m.tokens, m.tokenizing_seconds.unwrap().len()), (3 + 16, 3));
        let m = tokenize(&tokenizer, &text, runs).unwrap();
        assert_eq!((m.tokens, m.bytes, m.flops, m.seconds.len()), (3 + 26, Some(29.0), 0.0, 3));
    }

    #[test]
    fn sizes_that_cannot_be_are_named() {
        let gpt2 = tiny("gpt2", Task::CausalLm);
        let runs = Runs::default();
        for (result, name) in [
            (forward(&gpt2, 1, 17, Precision::F32, runs), "context: found 17, expected at most 16"),
            (forward(&gpt2, 0, 1, Precision::F32, runs), "batch: found 0"),
            (prefill(&gpt2, 0, Precision::F32, runs), "prompt_tokens: found 0"),
            (decode(&gpt2, 1, 10, 7, Precision::F32, runs), "new_tokens: found 7, expected at most 6"),
            (forward(&gpt2, 1, 1, Precision::F32, Runs { warm_up: 0, timed: 0 }), "runs: found 0"),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
