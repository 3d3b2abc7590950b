//! `genus translate`: translates line by line.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use genus_checkpoint::atomic::atomic_write;
use genus_infer::{BEYOND, BeamOptions, Engine, GenerationConfig, Sources, TranslateOptions, Translation};
use genus_models::{Model, Task};
use genus_ops::Precision;
use genus_text::Tokenizer;
use serde_json::json;

use crate::Context;
use crate::interrupt;
use crate::model::{self, Purpose};
use crate::progress::{Progress, grouped};
use crate::report::json_line;
use crate::source::read_text;

/// How translations are searched.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct SearchFlags {
    /// Number of beams; 1 takes the likeliest token each time.
    #[arg(long, value_name = "N", default_value_t = 4)]
    beams: usize,
    /// Divide log-probabilities by length to this power.
    #[arg(long, value_name = "A", default_value_t = 0.6, allow_negative_numbers = true)]
    length_penalty: f64,
    /// Longest translation in tokens; by default 50 more than the source has.
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
}

/// Translate with a model that reads one sequence and writes another: a line for a line, all lines together.
#[derive(Debug, clap::Args)]
pub(crate) struct Translate {
    /// Folder or hub id.
    #[arg(value_name = "MODEL")]
    model: String,
    /// File to translate; standard input without it. Empty lines stay empty.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// File to write; standard output without it.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    search: SearchFlags,
}

impl SearchFlags {
    pub(crate) fn options(self) -> TranslateOptions {
        let beam = BeamOptions { beams: self.beams, length_penalty: self.length_penalty };
        TranslateOptions { beam, max_new_tokens: self.max_new_tokens, beyond: BEYOND, to_the_full: false }
    }
}

impl Translate {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let lines = match &self.input {
            Some(path) => lines_of(path)?,
            None => stdin_lines()?,
        };
        let translator = Translator::open(&self.model, context)?;
        let start = Instant::now();
        let translations = translator.translate(&lines, self.search)?;
        let seconds = start.elapsed().as_secs_f64();
        if context.json {
            for (source, t) in lines.iter().zip(&translations) {
                json_line(&json!({"source": source, "text": t.text, "ids": t.ids, "score": t.score}))?;
            }
        }
        if let Some(path) = &self.output {
            let text: String = translations.iter().map(|t| format!("{}\n", t.text)).collect();
            atomic_write(path, text.as_bytes())?;
        } else if !context.json {
            let mut out = anstream::stdout().lock();
            for t in &translations {
                writeln!(out, "{}", t.text)?;
            }
            out.flush()?;
        }
        let n: usize = translations.iter().map(|t| t.ids.len()).sum();
        anstream::eprintln!(
            "\x1b[2m{} lines, {} tokens in {seconds:.2} s ({:.1} tokens/s)\x1b[0m",
            grouped(lines.len() as u64),
            grouped(n as u64),
            n as f64 / seconds.max(1e-9)
        );
        Ok(())
    }
}

/// A model that translates, with what belongs to it.
pub(crate) struct Translator {
    model: Model,
    tokenizer: Tokenizer,
    config: GenerationConfig,
    precision: Precision,
}

impl Translator {
    /// Opens a folder or hub id, and listens for Ctrl-C.
    pub(crate) fn open(model: &str, context: &Context) -> anyhow::Result<Self> {
        let global = context.global()?;
        let opened = model::open(model, Some(Task::Seq2SeqLm), Purpose::Inference, &global)?;
        let tokenizer = model::tokenizer(&opened.folder, "translation works on text")?;
        let config = GenerationConfig::open(&opened.folder)?;
        interrupt::listen()?;
        Ok(Translator { model: opened.model, tokenizer, config, precision: global.precision() })
    }

    /// Translates lines; empty ones stay empty.
    pub(crate) fn translate(&self, lines: &[String], search: SearchFlags) -> anyhow::Result<Vec<Translation>> {
        let engine = Engine::new(&self.model, Some(&self.tokenizer))?;
        let engine = engine.with_cancel(interrupt::flag()).with_precision(self.precision);
        let options = search.options();
        let sources = Sources::encode(&engine, &self.config, lines, options)?;
        let mut progress = Progress::new("translating", Some(sources.len() as u64));
        let mut done = 0;
        let translations = sources.translate(&engine, options.beam, || {
            done += 1;
            progress.update(done, "lines");
        })?;
        progress.finish();
        Ok(translations)
    }
}

/// The lines of a file; `.gz` is unpacked.
pub(crate) fn lines_of(path: &Path) -> anyhow::Result<Vec<String>> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz")) {
        let pairs = genus_text::Parallel::open(&[path], &[path])?;
        return Ok(pairs.pairs().map(|pair| Ok(pair?.0)).collect::<genus_text::Result<_>>()?);
    }
    Ok(read_text(path)?.lines().map(str::to_owned).collect())
}

fn stdin_lines() -> anyhow::Result<Vec<String>> {
    let lines = BufReader::new(std::io::stdin().lock()).lines();
    lines.collect::<Result<_, _>>().context("cannot read standard input as UTF-8 text")
}
