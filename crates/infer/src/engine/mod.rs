//! The one generation engine: prompts are read and continued together, with caches.
//!
//! A [`Batch`] holds the running sequences. Every [`Batch::step`] is one forward pass over a ragged batch: the next token of
//! each running sequence, and pieces of prompts that are still to be read. Sequences may join between steps and leave when they
//! are finished, and no sequence's result depends on the others. [`Engine::generate`] runs a whole list to its end.

mod beam;
mod options;
mod sampling;
mod text;

pub(crate) use beam::Work;
pub use beam::{Beam, BeamOptions};
pub use options::{GenerateOptions, GenerationConfig, MAX_NEW_TOKENS, Overrides, Sampling};

pub(crate) use sampling::{all_finite, argmax};

use crate::{Error, Result};
use genus_models::{Encoded, Input, Model, SequenceCache, Task};
use genus_nn::Attend;
use genus_ops::{DType, Device, Path, Precision, Tape, Tensor, with_slice};
use genus_text::Tokenizer;
use sampling::Sampler;
use std::slice::ChunksExact;
use std::sync::atomic::{AtomicBool, Ordering};
use text::TextStream;

/// One prompt to continue.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its tokens; where there are none, the model's first token (`bos_token_id`) stands for them. To a model that reads one sequence
    /// and writes another, they are what it reads, and what it writes begins with its `decoder_start_token_id`.
    pub prompt: Vec<u32>,
    /// How to continue it.
    pub options: GenerateOptions,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// It reached an end token.
    EndToken,
    /// It reached a stop text.
    Stop,
    /// It reached `max_new_tokens`.
    Length,
    /// It filled the model's context.
    Context,
    /// The caller cancelled it.
    Cancelled,
}

impl FinishReason {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::EndToken => "end",
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Context => "context",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// A continued prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// The generated tokens, an end token included.
    pub ids: Vec<u32>,
    /// Their text, without end token and stop text; only with a tokenizer.
    pub text: Option<String>,
    /// Why it ended.
    pub finish: FinishReason,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The token.
    pub id: u32,
    /// The text that became certain with it: complete characters, held back while they may begin a stop text.
    pub text: String,
    /// The whole, when this was its last token.
    pub done: Option<Completion>,
}

/// Generates with a model.
#[derive(Clone, Debug)]
pub struct Engine<'a> {
    model: &'a Model,
    tokenizer: Option<&'a Tokenizer>,
    bos: Option<u32>,
    cancel: Option<&'a AtomicBool>,
    path: Path,
    precision: Precision,
    step_tokens: usize,
    together: usize,
}

impl<'a> Engine<'a> {
    /// An engine for a model that predicts the next token; without a tokenizer it works on ids alone.
    ///
    /// # Errors
    /// [`Error::NotCausal`] when the model does not predict the next token; when one that writes has no token to begin with.
    pub fn new(model: &'a Model, tokenizer: Option<&'a Tokenizer>) -> Result<Self> {
        let named = |field| model.config_field(field).and_then(|v| v.as_u64()).and_then(|n| u32::try_from(n).ok());
        let bos = if model.task() == Task::Seq2SeqLm {
            named("decoder_start_token_id")
        } else {
            require_causal(model, "generate")?;
            named("bos_token_id").or_else(|| tokenizer.and_then(|t| t.special().bos))
        };
        let bos = bos.filter(|&id| (id as usize) < model.spec().vocab_size);
        if bos.is_none() && model.has_encoder() {
            return Err(Error::NoStart { vocab_size: model.spec().vocab_size });
        }
        Ok(Engine {
            model,
            tokenizer,
            bos,
            cancel: None,
            path: Path::default(),
            precision: Precision::default(),
            step_tokens: 2048,
            together: beam::TOGETHER,
        })
    }

    /// Looks at `flag` before every forward pass; once it is set, the running sequences end as [`FinishReason::Cancelled`].
    pub fn with_cancel(mut self, flag: &'a AtomicBool) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// Operations run another way: for checks.
    pub fn with_path(mut self, path: Path) -> Self {
        self.path = path;
        self
    }

    /// Another precision of matrix products than f32.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Reads at most that many tokens of prompts in one forward pass (2048 by default); longer prompts are read in pieces. The
    /// results do not depend on it.
    pub fn with_step_tokens(mut self, n: usize) -> Self {
        self.step_tokens = n.max(1);
        self
    }

    /// Searches at most that many requests at a time with beams (64 by default). The results do not depend on it.
    pub fn with_searches_together(mut self, n: usize) -> Self {
        self.together = n.max(1);
        self
    }

    /// The model.
    pub fn model(&self) -> &'a Model {
        self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Option<&'a Tokenizer> {
        self.tokenizer
    }

    /// A prompt's tokens, with what the tokenizer puts around a text; of a text to be read by an encoder, with the end token.
    ///
    /// # Errors
    /// Without a tokenizer, and when it cannot spell the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer.ok_or(Error::NoTokenizer { what: "a prompt given as text" })?;
        let mut ids = tokenizer.encode(text, true)?;
        if self.model.has_encoder() {
            let named = self.model.config_field("eos_token_id").and_then(|v| v.as_u64()).map(|n| n as u32);
            let end = named.or_else(|| tokenizer.end_of_text());
            ids.extend(end.filter(|end| ids.last() != Some(end)));
        }
        Ok(ids)
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch<'a> {
        Batch { engine: self.clone(), running: Vec::new(), added: 0 }
    }

    /// Continues all prompts together; `on_token` sees every token as it comes, with the number of its request.
    ///
    /// # Errors
    /// When a request cannot be (before anything is run), the model fails or its predictions are not numbers.
    pub fn generate(&self, requests: &[Request], mut on_token: impl FnMut(usize, &Event)) -> Result<Vec<Completion>> {
        let mut batch = self.batch();
        for request in requests {
            batch.add(request)?;
        }
        let mut done: Vec<Option<Completion>> = requests.iter().map(|_| None).collect();
        while !batch.is_empty() {
            if self.cancelled() {
                for (i, completion) in batch.cancel_all()? {
                    done[i] = Some(completion);
                }
                break;
            }
            for (i, event) in batch.step()? {
                let mut event = event?;
                on_token(i, &event);
                if let Some(completion) = event.done.take() {
                    done[i] = Some(completion);
                }
            }
        }
        Ok(done.into_iter().flatten().collect())
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_some_and(|c| c.load(Ordering::Relaxed))
    }

    fn tape(&self) -> Tape {
        Tape::inference().with_path(self.path).with_precision(self.precision)
    }

    /// What an encoder is to read, if there is one, and the tokens that are continued; checked.
    fn prompt(&self, request: usize, prompt: &[u32]) -> Result<(Option<Vec<u32>>, Vec<u32>)> {
        let tokens = self.tokens(request, prompt)?;
        Ok(match self.bos {
            Some(start) if self.model.has_encoder() => (Some(tokens), vec![start]),
            _ => (None, tokens),
        })
    }

    /// The tokens that a prompt stands for, checked.
    fn tokens(&self, request: usize, prompt: &[u32]) -> Result<Vec<u32>> {
        let tokens = match (prompt.is_empty(), self.bos) {
            (true, None) => return Err(Error::EmptyPrompt { request }),
            (true, _) if self.model.has_encoder() => return Err(Error::EmptyPrompt { request }),
            (true, Some(bos)) => vec![bos],
            (false, _) => prompt.to_vec(),
        };
        let (n_ctx, vocab_size) = (self.model.spec().n_ctx, self.model.spec().vocab_size);
        if tokens.len() > n_ctx {
            return Err(Error::PromptTooLong { request, found: tokens.len(), n_ctx });
        }
        if let Some(place) = tokens.iter().position(|&id| id as usize >= vocab_size) {
            return Err(Error::Id { request, id: tokens[place], place, vocab_size });
        }
        Ok(tokens)
    }

    /// Reads sources together, each into its cache.
    fn read_sources(&self, sources: &[&[u32]], caches: &mut [&mut SequenceCache]) -> Result<()> {
        if sources.is_empty() {
            return Ok(());
        }
        let tape = self.tape();
        let input = Input::from_sequences(sources);
        let states = self.model.encode(&tape, &input, false)?.last;
        let encoded = Encoded { states, spans: input.spans };
        let mut kept: Vec<SequenceCache> = caches.iter_mut().map(|c| std::mem::take(*c)).collect();
        self.model.keep_encoded(&tape, &encoded, &mut kept)?;
        caches.iter_mut().zip(kept).for_each(|(c, k)| **c = k);
        Ok(())
    }

    /// Runs `pieces` (new tokens, one list a cache) and returns the logits after the last token of those that are `wanted`.
    fn forward(&self, pieces: &[&[u32]], caches: &mut [SequenceCache], wanted: &[bool]) -> Result<Logits> {
        let tape = self.tape();
        let input = Input::from_sequences(pieces);
        let rows = self.model.hidden_ends(&tape, &input, caches, wanted)?;
        if rows.rows() == 0 {
            return Ok(Logits { rows: None, width: 1 });
        }
        let logits = self.model.lm_head()?.logits(&tape, &rows)?;
        let width = logits.dims().get(1).copied().unwrap_or(1).max(1);
        let rows = logits.tensor().to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(Logits { rows: Some(rows), width })
    }
}

/// Rows of logits, read where the head left them.
struct Logits {
    rows: Option<Tensor>,
    width: usize,
}

impl Logits {
    fn read<R>(&self, f: impl FnOnce(ChunksExact<'_, f32>) -> R) -> Result<R> {
        Ok(match &self.rows {
            Some(t) => with_slice(t, |all| f(all.chunks_exact(self.width)))?,
            None => f([].chunks_exact(1)),
        })
    }
}

/// Whether a model predicts the next token, else the error that says so.
pub(crate) fn require_causal(model: &Model, what: &'static str) -> Result<()> {
    if model.task() == Task::CausalLm && model.spec().attend == Attend::Past {
        return Ok(());
    }
    Err(Error::NotCausal { family: model.family().name, task: model.task(), what })
}

/// One running sequence.
#[derive(Debug)]
struct Sequence {
    request: usize,
    /// What an encoder is to read before the first step.
    source: Option<Vec<u32>>,
    tokens: Vec<u32>,
    prompt: usize,
    /// Number of tokens of the request's prompt, for the report.
    prompt_tokens: usize,
    cache: SequenceCache,
    options: GenerateOptions,
    sampler: Sampler,
    text: Option<TextStream>,
}

impl Sequence {
    fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Tokens that the model has not read yet.
    fn unread(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// Chooses the next token.
    fn choose(&mut self, logits: &[f32], n_ctx: usize) -> Result<Event> {
        let step = self.generated();
        let id = self.sampler.next(&self.options, step, logits).map_err(|(id, found)| Error::Logits {
            request: self.request,
            step,
            id,
            found,
        })?;
        self.tokens.push(id);
        let ended = !self.options.ignore_eos && self.options.eos.contains(&id);
        let mut finish = if ended {
            Some(FinishReason::EndToken)
        } else if self.generated() >= self.options.max_new_tokens {
            Some(FinishReason::Length)
        } else if self.tokens.len() > n_ctx {
            Some(FinishReason::Context)
        } else {
            None
        };
        let mut out = String::new();
        if let Some(text) = &mut self.text
            && !ended
        {
            let (piece, stopped) = text.push(id)?;
            out = piece;
            if stopped {
                finish = Some(FinishReason::Stop);
            }
        }
        let done = match finish {
            Some(reason) => {
                let (rest, completion) = self.complete(reason)?;
                out.push_str(&rest);
                Some(completion)
            }
            None => None,
        };
        Ok(Event { id, text: out, done })
    }

    /// What became of it, and the text that was held back.
    fn complete(&mut self, finish: FinishReason) -> Result<(String, Completion)> {
        let mut rest = String::new();
        if let Some(text) = &mut self.text
            && finish != FinishReason::Stop
        {
            rest = text.finish()?;
        }
        let completion = Completion {
            prompt_tokens: self.prompt_tokens,
            ids: self.tokens[self.prompt..].to_vec(),
            text: self.text.as_ref().map(|t| t.text().to_owned()),
            finish,
        };
        Ok((rest, completion))
    }
}

/// The sequences that run together.
#[derive(Debug)]
pub struct Batch<'a> {
    engine: Engine<'a>,
    running: Vec<Sequence>,
    added: usize,
}

impl Batch<'_> {
    /// Adds a request; it is read from the next step on. Returns its number, counted from 0 in the order of adding.
    ///
    /// # Errors
    /// When an option or the prompt cannot be; the batch is then as before.
    pub fn add(&mut self, request: &Request) -> Result<usize> {
        let number = self.added;
        let options = request.options.clone();
        options.check()?;
        let (source, tokens) = self.engine.prompt(number, &request.prompt)?;
        let text = self.engine.tokenizer.map(|t| TextStream::new(t.stream_decoder(true), &options.stop));
        if text.is_none() && !options.stop.is_empty() {
            return Err(Error::NoTokenizer { what: "a stop text" });
        }
        self.added += 1;
        self.running.push(Sequence {
            request: number,
            prompt: tokens.len(),
            prompt_tokens: source.as_ref().map_or(tokens.len(), Vec::len),
            source,
            sampler: Sampler::new(&options, &tokens),
            tokens,
            cache: SequenceCache::new(),
            options,
            text,
        });
        Ok(number)
    }

    /// Whether nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Number of running sequences.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// One forward pass; returns, for each sequence that got a token, the number of its request and the token, or why that
    /// sequence failed. Finished and failed sequences have left the batch.
    ///
    /// # Errors
    /// When the pass itself fails.
    pub fn step(&mut self) -> Result<Vec<(usize, Result<Event>)>> {
        let mut budget = self.engine.step_tokens;
        let whole = self.engine.model.spec().memory_length() > 0;
        // Running sequences go on first; what is left of the budget reads prompts.
        let mut take: Vec<usize> = self.running.iter().map(|s| usize::from(s.unread() == 1)).collect();
        for (n, s) in take.iter_mut().zip(&self.running).filter(|(n, _)| **n == 0) {
            // A model with memory reads a prompt as one segment: what it remembers depends on where segments end.
            *n = if whole && budget > 0 { s.unread() } else { s.unread().min(budget) };
            budget = budget.saturating_sub(*n);
        }
        let reading = self.running.iter_mut().zip(&take).filter(|(_, n)| **n > 0).map(|(s, _)| s);
        let (sources, mut read): (Vec<_>, Vec<_>) =
            reading.filter_map(|s| Some((s.source.take()?, &mut s.cache))).unzip();
        self.engine.read_sources(&sources.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut read)?;
        let mut caches = Vec::new();
        let mut wanted = Vec::new();
        for (s, &n) in self.running.iter_mut().zip(&take).filter(|(_, n)| **n > 0) {
            wanted.push(n == s.unread());
            caches.push(std::mem::take(&mut s.cache));
        }
        let pieces: Vec<&[u32]> = self
            .running
            .iter()
            .zip(&take)
            .filter(|(_, n)| **n > 0)
            .zip(&caches)
            .map(|((s, n), c)| &s.tokens[c.len()..c.len() + n])
            .collect();
        let rows = self.engine.forward(&pieces, &mut caches, &wanted);
        let moved = self.running.iter_mut().zip(&take).filter(|(_, n)| **n > 0);
        for ((s, _), cache) in moved.zip(caches) {
            s.cache = cache;
        }
        let logits = rows?;
        let mut wanted = wanted.into_iter();
        let n_ctx = self.engine.model.spec().n_ctx;
        let mut events = Vec::new();
        let mut take = take.into_iter();
        let running = &mut self.running;
        logits.read(|mut rows| {
            running.retain_mut(|s| {
                if take.next().unwrap_or(0) == 0 || !wanted.next().unwrap_or(false) {
                    return true;
                }
                let Some(row) = rows.next() else { return true };
                let event = s.choose(row, n_ctx);
                let stays = matches!(&event, Ok(e) if e.done.is_none());
                events.push((s.request, event));
                stays
            });
        })?;
        Ok(events)
    }

    /// Ends a sequence; `None` if it does not run.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn cancel(&mut self, request: usize) -> Result<Option<Completion>> {
        let Some(i) = self.running.iter().position(|s| s.request == request) else { return Ok(None) };
        Ok(Some(self.running.remove(i).complete(FinishReason::Cancelled)?.1))
    }

    /// Ends all sequences.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn cancel_all(&mut self) -> Result<Vec<(usize, Completion)>> {
        let mut all = std::mem::take(&mut self.running);
        all.iter_mut().map(|s| Ok((s.request, s.complete(FinishReason::Cancelled)?.1))).collect()
    }
}
