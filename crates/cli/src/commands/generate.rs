//! `genus generate`: continues prompts.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::bail;
use genus_infer::{BeamOptions, Completion, Engine, FinishReason, GenerationConfig, Overrides, Request};
use genus_models::Task;
use genus_text::Tokenizer;
use serde_json::json;

use crate::Context;
use crate::interrupt;
use crate::model::{self, Purpose};
use crate::progress::{Progress, grouped};
use crate::report::{Interrupted, json_line};
use crate::source::{Texts, parse_ids};

/// Continue prompts with a causal model: all prompts of a call are decoded together.
///
/// The folder's generation_config.json gives the defaults; flags override it.
#[derive(Debug, clap::Args)]
pub(crate) struct Generate {
    /// Folder or hub id.
    #[arg(value_name = "MODEL")]
    model: String,
    /// Prompt; may be repeated.
    #[arg(long, value_name = "TEXT", help_heading = "Prompts (standard input, if none is given)")]
    prompt: Vec<String>,
    /// Prompt as token ids, as in "3 14 15"; may be repeated.
    #[arg(long, value_name = "IDS", help_heading = "Prompts (standard input, if none is given)")]
    ids: Vec<String>,
    /// File with one prompt a line.
    #[arg(long, value_name = "FILE", help_heading = "Prompts (standard input, if none is given)")]
    prompts: Option<PathBuf>,
    /// File that is one prompt (a line end at its very end is not part of it).
    #[arg(long, value_name = "FILE", help_heading = "Prompts (standard input, if none is given)")]
    prompt_file: Option<PathBuf>,

    /// Take the likeliest token each time.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", help_heading = "Choice")]
    greedy: Option<bool>,
    /// Divide logits by it: below 1 bolder, above 1 wilder; 0 is greedy.
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Choice")]
    temperature: Option<f64>,
    /// Choose among that many of the likeliest tokens (0: all).
    #[arg(long, value_name = "N", help_heading = "Choice")]
    top_k: Option<usize>,
    /// Choose among the fewest tokens that reach this probability together.
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Choice")]
    top_p: Option<f64>,
    /// Choose among tokens with at least this part of the likeliest one's probability.
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Choice")]
    min_p: Option<f64>,
    /// Make tokens that occurred less likely (1: no).
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Choice")]
    repetition_penalty: Option<f64>,
    /// Search with that many beams instead of choosing token by token.
    #[arg(long, value_name = "N", conflicts_with_all = ["greedy", "temperature", "top_k", "top_p", "min_p"], help_heading = "Choice")]
    beams: Option<usize>,
    /// Beams: divide log-probabilities by length to this power.
    #[arg(
        long,
        value_name = "A",
        requires = "beams",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Choice"
    )]
    length_penalty: f64,

    /// Generate at most that many tokens.
    #[arg(long, value_name = "N", help_heading = "Length")]
    max_new_tokens: Option<usize>,
    /// No end token before that many tokens.
    #[arg(long, value_name = "N", help_heading = "Length")]
    min_new_tokens: Option<usize>,
    /// Go on after an end token.
    #[arg(long, help_heading = "Length")]
    ignore_eos: bool,
    /// Stop before this text; may be repeated.
    #[arg(long, value_name = "TEXT", help_heading = "Length")]
    stop: Vec<String>,

    /// Print the generated ids only, one line a prompt, the end token included when generated.
    #[arg(long)]
    output_ids: bool,
}

/// A prompt as given, and its tokens.
struct Prompt {
    text: Option<String>,
    ids: Vec<u32>,
}

/// What stands between a prompt and what it gave: an answer has a line of its own.
fn behind(engine: &Engine<'_>) -> &'static str {
    if engine.model().has_encoder() { "\n" } else { "" }
}

impl Generate {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let global = context.global()?;
        let texts = self.texts()?;
        let given_ids = self.ids.iter().map(|ids| parse_ids(ids)).collect::<anyhow::Result<Vec<_>>>()?;
        // What reads one sequence and writes another continues nothing: it answers.
        let reads = model::has_encoder(&self.model)?;
        let task = if reads { Task::Seq2SeqLm } else { Task::CausalLm };
        let opened = model::open(&self.model, Some(task), Purpose::Inference, &global)?;
        let with_text = !texts.is_empty() || !self.output_ids || !self.stop.is_empty();
        let tokenizer = self.tokenizer(&opened.folder, with_text)?;
        let config = GenerationConfig::open(&opened.folder)?;

        interrupt::listen()?;
        let engine = Engine::new(&opened.model, tokenizer.as_ref())?
            .with_cancel(interrupt::flag())
            .with_precision(global.precision());
        let mut prompts = Vec::new();
        for text in texts {
            let ids = engine.encode(&text)?;
            prompts.push(Prompt { text: Some(text), ids });
        }
        for ids in given_ids {
            // What cannot be spelled is shown as the tokenizer shows it; the engine reports ids beyond the vocabulary.
            let text = tokenizer.as_ref().and_then(|t| t.decode(&ids, false).ok());
            prompts.push(Prompt { text, ids });
        }
        let overrides = Overrides {
            greedy: self.greedy,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
            ignore_eos: self.ignore_eos,
            stop: self.stop.clone(),
            seed: Some(global.seed),
        };
        let requests = prompts
            .iter()
            .map(|p| {
                // A limit of the whole counts the token that an answer begins with, not the sequence that is read.
                let prompt = if reads { 1 } else { p.ids.len() };
                Ok(Request { prompt: p.ids.clone(), options: config.options(&overrides, prompt)? })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;

        let start = Instant::now();
        let (completions, streamed) = match self.beams {
            Some(beams) => (self.search(&engine, &requests, beams)?, false),
            None => self.decode(context, &engine, &prompts, &requests)?,
        };
        let seconds = start.elapsed().as_secs_f64();
        if !streamed {
            self.print(context, &prompts, &completions, behind(&engine))?;
        }
        if !context.json && !self.output_ids {
            let n: usize = completions.iter().map(|c| c.ids.len()).sum();
            anstream::eprintln!(
                "\x1b[2m{} tokens in {seconds:.2} s ({:.1} tokens/s)\x1b[0m",
                grouped(n as u64),
                n as f64 / seconds.max(1e-9)
            );
        }
        if completions.iter().any(|c| c.finish == FinishReason::Cancelled) {
            return Err(Interrupted("interrupted".into()).into());
        }
        Ok(())
    }

    /// The prompts that are text. Standard input is looked at only if there is no prompt of any kind.
    fn texts(&self) -> anyhow::Result<Vec<String>> {
        let none = self.prompt.is_empty() && self.prompts.is_none() && self.prompt_file.is_none();
        if none && !self.ids.is_empty() {
            return Ok(Vec::new());
        }
        let texts = Texts {
            given: &self.prompt,
            lines: self.prompts.as_deref(),
            whole: self.prompt_file.as_deref(),
            flags: "--prompt TEXT, --ids \"3 14 15\", --prompts FILE or --prompt-file FILE",
        };
        let mut out = texts.read()?;
        // Editors and `echo` end a file with a line end that nobody means as part of the prompt.
        if (self.prompt_file.is_some() || none)
            && let Some(last) = out.last_mut()
        {
            let end = last.strip_suffix('\n').map(|l| l.strip_suffix('\r').unwrap_or(l).len());
            last.truncate(end.unwrap_or(last.len()));
        }
        Ok(out)
    }

    fn tokenizer(&self, folder: &Path, needed: bool) -> anyhow::Result<Option<Tokenizer>> {
        if needed {
            return model::tokenizer(folder, "or give prompts with --ids and take results with --output-ids").map(Some);
        }
        Ok(None)
    }

    /// Token by token, together. A single prompt's text is written as it comes.
    fn decode(
        &self,
        context: &Context,
        engine: &Engine<'_>,
        prompts: &[Prompt],
        requests: &[Request],
    ) -> anyhow::Result<(Vec<Completion>, bool)> {
        let streamed = prompts.len() == 1 && !context.json && !self.output_ids;
        let mut failed: Option<io::Error> = None;
        let mut progress = (prompts.len() > 1).then(|| Progress::new("generating", None));
        let mut count = 0;
        let completions = engine.generate(requests, |_, event| {
            count += 1;
            if let Some(progress) = &mut progress {
                progress.update(count, "tokens");
            }
            if streamed && failed.is_none() {
                // The prompt goes before the first token: a prompt that cannot be continued is an error and nothing else.
                let prompt = prompts[0].text.as_deref().filter(|_| count == 1).unwrap_or_default();
                let mut out = anstream::stdout().lock();
                let behind = behind(engine);
                let written = if prompt.is_empty() { Ok(()) } else { write!(out, "\x1b[2m{prompt}\x1b[0m{behind}") };
                failed = written.and_then(|()| out.write_all(event.text.as_bytes())).and_then(|()| out.flush()).err();
                if failed.is_some() {
                    // Nobody reads any more: end the work too.
                    interrupt::flag().store(true, std::sync::atomic::Ordering::Relaxed);
                }
            }
        })?;
        if let Some(progress) = progress {
            progress.finish();
        }
        if let Some(e) = failed {
            return Err(e.into());
        }
        if streamed {
            writeln!(io::stdout())?;
        }
        Ok((completions, streamed))
    }

    fn search(&self, engine: &Engine<'_>, requests: &[Request], beams: usize) -> anyhow::Result<Vec<Completion>> {
        let options = BeamOptions { beams, length_penalty: self.length_penalty };
        let mut progress = Progress::new("searching", Some(requests.len() as u64));
        let mut out = Vec::new();
        let mut done = 0;
        let found = engine.beam_searches(requests, options, |_, _| {
            done += 1;
            progress.update(done, "prompts");
        })?;
        for (i, (request, found)) in requests.iter().zip(found).enumerate() {
            let Some(best) = found.into_iter().next() else { bail!("prompt {i}: the search found nothing") };
            let text = match engine.tokenizer() {
                Some(t) => Some(t.decode(&best.ids, true)?),
                None => None,
            };
            let finish = if best.ended { FinishReason::EndToken } else { FinishReason::Length };
            out.push(Completion { prompt_tokens: request.prompt.len(), ids: best.ids, text, finish });
        }
        progress.finish();
        Ok(out)
    }

    fn print(
        &self,
        context: &Context,
        prompts: &[Prompt],
        completions: &[Completion],
        behind: &str,
    ) -> anyhow::Result<()> {
        let mut out = anstream::stdout().lock();
        for (i, (prompt, c)) in prompts.iter().zip(completions).enumerate() {
            if context.json {
                json_line(&json!({
                    "prompt": prompt.text,
                    "text": c.text,
                    "ids": c.ids,
                    "prompt_tokens": c.prompt_tokens,
                    "finish": c.finish.name(),
                }))?;
            } else if self.output_ids {
                let words: Vec<String> = c.ids.iter().map(u32::to_string).collect();
                writeln!(out, "{}", words.join(" "))?;
            } else {
                if prompts.len() > 1 {
                    writeln!(out, "{}\x1b[1m--- {}\x1b[0m", if i > 0 { "\n" } else { "" }, i + 1)?;
                }
                let text = prompt.text.as_deref().unwrap_or_default();
                writeln!(out, "\x1b[2m{text}\x1b[0m{behind}{}", c.text.as_deref().unwrap_or_default())?;
            }
        }
        out.flush()?;
        Ok(())
    }
}
