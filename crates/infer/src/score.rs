//! Log-likelihoods: of continuations, and of a stream of tokens.

use crate::engine::{argmax, log_sum_exp, require_causal};
use crate::{Error, Result};
use genus_models::{Input, Model, SequenceCache};
use genus_nn::Hidden;
use genus_ops::{IGNORE, Precision, Tape, gather_rows, scalar, to_vec};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Length of a window; the model's context when not given.
    pub window: Option<usize>,
    /// How many tokens of a window were already scored in the one before and only serve as context.
    pub overlap: usize,
    /// Windows are run together up to that many tokens.
    pub batch_tokens: usize,
    /// Precision of matrix products.
    pub precision: Precision,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions { window: None, overlap: 0, batch_tokens: 4096, precision: Precision::default() }
    }
}

/// The likelihood of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StreamScore {
    /// Sum of `-ln p` over the tokens.
    pub nats: f64,
    /// Number of tokens that were predicted (the first one is not).
    pub tokens: usize,
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
}

/// Scores every token of a stream but the first, each given those before it in its window. Windows are `window` long and begin
/// `window - overlap` apart.
///
/// # Errors
/// When the model does not predict the next token, the window cannot be, or the stream has fewer than two tokens.
pub fn score_stream(model: &Model, ids: &[u32], options: &StreamOptions) -> Result<StreamScore> {
    require_causal(model, "score")?;
    let n_ctx = model.spec().n_ctx;
    let window = options.window.unwrap_or(n_ctx);
    if window == 0 || window > n_ctx {
        return Err(Error::option("window", window, format!("from 1 to {n_ctx} (n_ctx)")));
    }
    if options.overlap >= window {
        return Err(Error::option("overlap", options.overlap, format!("below the window of {window}")));
    }
    if ids.len() < 2 {
        return Err(Error::option("tokens of the stream", ids.len(), "at least 2"));
    }
    let mut score = StreamScore::default();
    // Inputs and targets of each window; the first window scores all of its targets, others those beyond the overlap.
    let (mut inputs, mut targets): (Vec<&[u32]>, Vec<i32>) = (Vec::new(), Vec::new());
    let mut run = |inputs: &mut Vec<&[u32]>, targets: &mut Vec<i32>| -> Result<()> {
        let tape = Tape::inference().with_precision(options.precision);
        let input = Input::from_sequences(inputs);
        let hidden = model.hidden(&tape, &input, None, false)?;
        let loss = model.lm_head()?.loss(&tape, &hidden.last, targets, 1.0, 0.0)?;
        score.nats += scalar(loss.tensor())?;
        score.tokens += targets.iter().filter(|&&t| t != IGNORE).count();
        inputs.clear();
        targets.clear();
        Ok(())
    };
    let mut start = 0;
    loop {
        let end = (start + window).min(ids.len() - 1);
        inputs.push(&ids[start..end]);
        let known = if start == 0 { 0 } else { options.overlap };
        targets.extend(
            ids[start + 1..end + 1].iter().enumerate().map(|(i, &t)| if i < known { IGNORE } else { t as i32 }),
        );
        let last = end == ids.len() - 1;
        if last || targets.len() + window > options.batch_tokens {
            run(&mut inputs, &mut targets)?;
        }
        if last {
            return Ok(score);
        }
        start += window - options.overlap;
    }
}
