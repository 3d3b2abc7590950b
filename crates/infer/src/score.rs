//! Log-likelihoods: of continuations, and of a stream of tokens.

use crate::engine::{argmax, require_causal};
use crate::{Error, Result};
use genus_models::{Input, Model, SequenceCache};
use genus_nn::Hidden;
use genus_ops::{Precision, Tape, gather_rows, log_sum_exp, to_vec};
use std::ops::Range;
use std::time::Instant;

/// How likely a continuation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Sum of the natural logarithms of its tokens' probabilities.
    pub log_likelihood: f64,
    /// Number of its tokens.
    pub tokens: usize,
    /// Whether each of its tokens was the likeliest.
    pub greedy: bool,
}

/// Scores `continuations` of one `context`. The context is read once, all continuations together after it.
///
/// # Errors
/// When the model does not predict the next token, a list is empty, too long together or has tokens beyond the vocabulary.
pub fn score_continuations<S: AsRef<[u32]>>(
    model: &Model,
    context: &[u32],
    continuations: &[S],
    precision: Precision,
) -> Result<Vec<Score>> {
    require_causal(model, "score")?;
    let n_ctx = model.spec().n_ctx;
    let vocab_size = model.spec().vocab_size;
    for (request, c) in continuations.iter().enumerate() {
        let c = c.as_ref();
        let found = context.len() + c.len();
        if context.is_empty() || c.is_empty() {
            return Err(Error::EmptyPrompt { request });
        }
        // The last token is predicted and not read.
        if found > n_ctx + 1 {
            return Err(Error::PromptTooLong { request, found, n_ctx });
        }
        if let Some(place) = c.iter().position(|&id| id as usize >= vocab_size) {
            return Err(Error::Id { request, id: c[place], place: context.len() + place, vocab_size });
        }
    }
    if continuations.is_empty() {
        return Ok(Vec::new());
    }
    let tape = Tape::inference().with_precision(precision);
    let mut cache = vec![SequenceCache::new()];
    let input = Input::from_sequences(&[context]);
    let hidden = model.hidden(&tape, &input, Some(&mut cache), false)?;
    let first = logits(model, &tape, &hidden, &[context.len() as u32 - 1])?.remove(0);

    let mut scores = vec![Score { log_likelihood: 0.0, tokens: 0, greedy: true }; continuations.len()];
    for (s, c) in scores.iter_mut().zip(continuations) {
        s.add(&first, c.as_ref()[0]);
    }
    let longer: Vec<usize> = (0..continuations.len()).filter(|&i| continuations[i].as_ref().len() > 1).collect();
    // A bounded number of them at a time: their logits are held together.
    for part in longer.chunks(64) {
        let rest: Vec<&[u32]> = part.iter().map(|&i| continuations[i].as_ref()).collect();
        let read: Vec<&[u32]> = rest.iter().map(|c| &c[..c.len() - 1]).collect();
        let mut caches = part.iter().map(|_| cache[0].fork()).collect::<Result<Vec<_>, _>>()?;
        let input = Input::from_sequences(&read);
        let hidden = model.hidden(&tape, &input, Some(&mut caches), false)?;
        for ((&i, c), span) in part.iter().zip(&rest).zip(input.spans.iter()) {
            let rows: Vec<u32> = span.map(|r| r as u32).collect();
            for (row, &id) in logits(model, &tape, &hidden, &rows)?.iter().zip(&c[1..]) {
                scores[i].add(row, id);
            }
        }
    }
    Ok(scores)
}

impl Score {
    fn add(&mut self, logits: &[f32], id: u32) {
        self.log_likelihood += f64::from(logits[id as usize]) - log_sum_exp(logits);
        self.tokens += 1;
        self.greedy &= argmax(logits) == id;
    }
}

fn logits(model: &Model, tape: &Tape, hidden: &Hidden, rows: &[u32]) -> Result<Vec<Vec<f32>>> {
    let x = gather_rows(tape, &hidden.last, rows)?;
    let y = model.lm_head()?.logits(tape, &x)?;
    let width = model.spec().vocab_size;
    Ok(to_vec(y.tensor())?.chunks(width).map(<[f32]>::to_vec).collect())
}

/// How a stream is read.
///
/// A model without memory reads windows, each for itself. One with memory reads segments one after the other and keeps as many
/// keys and values of those before as its memory is long ([`genus_models::LoadOptions::memory`] makes it another); without memory (of
/// length 0) it reads windows as well, as long as any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Length of a window or segment; when not given the model's context, or as much as its memory.
    pub window: Option<usize>,
    /// How many tokens of a window were already scored in the one before and only serve as context; 0 where memory is carried.
    pub overlap: usize,
    /// Tokens before this place are read, but not scored.
    pub from: usize,
    /// Windows are run together up to that many tokens.
    pub batch_tokens: usize,
    /// Precision of matrix products.
    pub precision: Precision,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions { window: None, overlap: 0, from: 1, batch_tokens: 4096, precision: Precision::default() }
    }
}

/// The likelihood of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StreamScore {
    /// Sum of `-ln p` over the tokens.
    pub nats: f64,
    /// Number of tokens that were predicted (the first one is not).
    pub tokens: usize,
    /// Time of the passes that predicted them.
    pub seconds: f64,
}

impl StreamScore {
    /// Mean `-ln p` a token.
    pub fn loss(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    /// `exp` of the mean.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Bits for each of the `bytes` of the text that the tokens stand for.
    pub fn bits_per_byte(&self, bytes: usize) -> f64 {
        self.nats / std::f64::consts::LN_2 / bytes.max(1) as f64
    }

    /// Tokens that a second predicts.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-12)
    }
}

/// Scores every token of a stream but the first, each given those before it in its window, or in its segment and the memory.
/// Windows are `window` long and begin `window - overlap` apart. [`StreamOptions`] says which model reads how.
///
/// # Errors
/// When the model does not predict the next token, the window or overlap cannot be, or the stream has fewer than two tokens.
pub fn score_stream(model: &Model, ids: &[u32], options: &StreamOptions) -> Result<StreamScore> {
    score_tokens(model, ids, options, |_, _| {})
}

/// As [`score_stream`]; `each` is told the place of every token that is scored, in order, and its `-ln p`.
///
/// # Errors
/// As [`score_stream`].
pub fn score_tokens(
    model: &Model,
    ids: &[u32],
    options: &StreamOptions,
    mut each: impl FnMut(usize, f64),
) -> Result<StreamScore> {
    require_causal(model, "score")?;
    let spec = model.spec();
    let carries = spec.memory_length() > 0;
    let window = options.window.unwrap_or(spec.segment());
    if window == 0 || window > spec.n_ctx {
        let name = if carries { "segment_length" } else { "context" };
        return Err(Error::option(name, window, format!("from 1 to {} (n_ctx)", spec.n_ctx)));
    }
    if carries && options.overlap > 0 {
        let expected = format!("0: segments follow each other, since a memory of {} is carried", spec.memory_length());
        return Err(Error::option("overlap", options.overlap, expected));
    }
    if options.overlap >= window {
        return Err(Error::option("overlap", options.overlap, format!("below the window of {window}")));
    }
    if ids.len() < 2 {
        return Err(Error::option("tokens of the stream", ids.len(), "at least 2"));
    }
    if options.from >= ids.len() {
        let expected = format!("below the number of tokens, {}", ids.len());
        return Err(Error::option("from", options.from, expected));
    }
    let mut reader =
        Reader { model, options, caches: vec![], inputs: vec![], places: vec![], score: Default::default() };
    if carries {
        reader.caches.push(SequenceCache::new());
    }
    let mut start = 0;
    loop {
        let end = (start + window).min(ids.len() - 1);
        let known = if start == 0 { 0 } else { options.overlap };
        let scored = (start + known + 1).max(options.from)..end + 1;
        let last = end == ids.len() - 1;
        if carries || !scored.is_empty() {
            reader.inputs.push(start..end);
            reader.places.push(scored);
        }
        let full = reader.inputs.iter().map(|r| r.len()).sum::<usize>() + window > options.batch_tokens;
        if !reader.inputs.is_empty() && (last || carries || full) {
            reader.run(ids, &mut each)?;
        }
        if last {
            return Ok(reader.score);
        }
        start += window - options.overlap;
    }
}

/// Windows that are run together, or the one segment that is next.
struct Reader<'a> {
    model: &'a Model,
    options: &'a StreamOptions,
    /// That of the stream, where memory is carried.
    caches: Vec<SequenceCache>,
    /// Tokens that are read.
    inputs: Vec<Range<usize>>,
    /// Tokens that are scored, for each of them.
    places: Vec<Range<usize>>,
    score: StreamScore,
}

impl Reader<'_> {
    fn run(&mut self, ids: &[u32], each: &mut impl FnMut(usize, f64)) -> Result<()> {
        let begin = Instant::now();
        let tape = Tape::inference().with_precision(self.options.precision);
        let inputs: Vec<&[u32]> = self.inputs.iter().map(|r| &ids[r.clone()]).collect();
        let input = Input::from_sequences(&inputs);
        let caches = (!self.caches.is_empty()).then_some(&mut self.caches[..]);
        let hidden = self.model.hidden(&tape, &input, caches, false)?;
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for ((scored, read), span) in self.places.iter().zip(&self.inputs).zip(input.spans.iter()) {
            rows.extend(scored.clone().map(|t| (span.start + t - 1 - read.start) as u32));
            targets.extend(scored.clone().map(|t| ids[t] as i32));
        }
        if !rows.is_empty() {
            let x =
                if rows.len() == input.spans.total() { hidden.last } else { gather_rows(&tape, &hidden.last, &rows)? };
            let losses = self.model.lm_head()?.losses(&tape, &x, &targets)?;
            self.score.seconds += begin.elapsed().as_secs_f64();
            self.score.tokens += losses.len();
            self.score.nats += losses.iter().sum::<f64>();
            self.places.iter().cloned().flatten().zip(losses).for_each(|(t, loss)| each(t, loss));
        }
        self.inputs.clear();
        self.places.clear();
        Ok(())
    }
}
