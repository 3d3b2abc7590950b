//! `genus eval perplexity`: how well a model predicts a text.

use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, bail};
use genus_infer::{StreamOptions, StreamScore, score_stream};
use genus_models::Model;
use genus_nn::Memory;
use genus_text::{Corpus, TokenStream, Tokenizer};
use serde_json::json;

use crate::Context;
use crate::data::{Data, DataFlags};
use crate::global::Global;
use crate::model::{self, Purpose};
use crate::options::{Args, Layers, Options};
use crate::progress::grouped;
use crate::report::{Usage, json_line};
use crate::source::model_folder;

/// Perplexity and bits per byte of a text under a model that predicts the next token.
///
/// A model with memory (Transformer-XL) reads segments one after the other, with a memory as long as its configuration or --memory says. One
/// without reads windows, each for itself. --context and --stride recompute windows that overlap, with any model: with --stride 1 every token
/// but those of the first window is predicted from all of its window, at the price of reading the window anew for each.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalPerplexity {
    /// Folder or hub id.
    #[arg(value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    data: Args<Data>,
    #[command(flatten)]
    reading: Reading,
}

/// How a text is read.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Reading {
    /// Tokens of memory, instead of the configuration's.
    #[arg(long, value_name = "N")]
    memory: Option<usize>,
    /// Tokens of a segment, which are read together; without it, as many as the configuration's memory has.
    #[arg(long, value_name = "N")]
    segment_length: Option<usize>,
    /// Tokens of a window that is read for itself; without it, the model's context.
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Tokens from one window to the next; without it, windows do not overlap.
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Tokens at the beginning that are read, but not predicted.
    #[arg(long, value_name = "N")]
    skip: Option<usize>,
    /// Tokens that are predicted; without it, all of the text.
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
}

/// A text, and its ids under a tokenizer.
pub(super) struct Text {
    pub(super) stream: TokenStream,
    characters: usize,
}

impl Text {
    pub(super) fn corpus(flags: &DataFlags) -> anyhow::Result<Corpus> {
        let mut layers = Layers::new();
        layers.add::<Data>("defaults", &Data::defaults())?.add::<Data>("command line", flags)?;
        layers.resolve::<Data>()?.open()
    }

    pub(super) fn encode(corpus: &Corpus, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let stream = TokenStream::build(corpus, tokenizer, |_| {})?;
        let mut characters = 0;
        for document in corpus.documents() {
            characters += document?.chars().count();
        }
        if stream.len() < 2 {
            bail!("{}: found no text, expected at least one token to predict", corpus.names().join(", "));
        }
        Ok(Text { stream, characters })
    }
}

/// How a text is read, settled for a model.
#[derive(Debug, Clone, Copy)]
struct Settled {
    /// What the model's memory is to be; `None`: it has none.
    memory: Option<usize>,
    window: usize,
    overlap: usize,
}

impl Reading {
    /// Settles what was left open, and finds what contradicts the model's configuration.
    fn settle(&self, folder: &Path) -> anyhow::Result<Settled> {
        let (family, spec, _) = Model::read_config(folder)?;
        let at = folder.display();
        let recomputed = self.context.is_some() || self.stride.is_some();
        let carried = [("--memory", self.memory), ("--segment-length", self.segment_length)];
        let given = carried.iter().find_map(|&(flag, n)| Some((flag, n?)));
        if let (true, Some((flag, n))) = (recomputed, given) {
            let text = format!(
                "{flag} {n} carries a memory from segment to segment, --context and --stride recompute windows; expected one of the two"
            );
            return Err(Usage(text).into());
        }
        if let (Memory::None, Some((flag, n))) = (spec.memory, given) {
            let own = family.model_type;
            bail!("{flag} is {n}, expected none: {own} carries no memory ({at}); --context sets its windows");
        }
        let own = spec.segment();
        let (flag, window) = match (self.segment_length, self.context) {
            (Some(n), _) => ("--segment-length", n),
            (None, Some(n)) => ("--context", n),
            (None, None) => ("--context", own),
        };
        if window == 0 || window > spec.n_ctx {
            bail!("{flag} is {window}, expected from 1 to the model's n_ctx = {} ({at})", spec.n_ctx);
        }
        let stride = self.stride.unwrap_or(window);
        if stride == 0 || stride > window {
            bail!("--stride is {stride}, expected from 1 to the window's {window} tokens");
        }
        let memory = match spec.memory {
            Memory::None => None,
            Memory::Carried { .. } if recomputed => Some(0),
            Memory::Carried { length } => Some(self.memory.unwrap_or(length)),
        };
        Ok(Settled { memory, window, overlap: window - stride })
    }
}

impl EvalPerplexity {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let global = context.global()?;
        let folder = model_folder(&self.model)?;
        let settled = self.reading.settle(&folder)?;
        let corpus = Text::corpus(&self.data.0)?;
        let tokenizer = model::tokenizer(&folder, "choose a folder that holds one")?;
        let text = Text::encode(&corpus, &tokenizer)?;
        let model = open(&self.model, settled.memory, &global)?;
        let from = self.reading.skip.unwrap_or(0).max(1);
        let all = text.stream.len();
        if from >= all {
            bail!("--skip is {from}, expected less than the {all} tokens of {}", corpus.names().join(", "));
        }
        let end = self.reading.tokens.map_or(all, |n| all.min(from.saturating_add(n)));
        if end == from {
            bail!("--tokens is 0, expected at least 1");
        }
        let options = StreamOptions {
            window: Some(settled.window),
            overlap: settled.overlap,
            from,
            precision: global.precision(),
            ..StreamOptions::default()
        };
        let score = score_stream(&model, &text.stream.tokens().get(0..end), &options)
            .with_context(|| format!("{} cannot be scored", self.model))?;
        self.report(context, &score, settled, &text)
    }

    fn report(&self, context: &Context, s: &StreamScore, settled: Settled, text: &Text) -> anyhow::Result<()> {
        // As in training: with the bytes that a token of this text stands for on average.
        let bits_per_byte = s.loss() / std::f64::consts::LN_2 / text.stream.bytes_per_token();
        let bits_per_character = bits_per_byte * text.stream.stats().bytes as f64 / text.characters.max(1) as f64;
        let carries = settled.memory.is_some_and(|n| n > 0) || self.reading.segment_length.is_some();
        if context.json {
            let mut report = json!({
                "model": self.model,
                "tokens": s.tokens,
                "loss": s.loss(),
                "perplexity": s.perplexity(),
                "bits_per_byte": bits_per_byte,
                "bits_per_character": bits_per_character,
                "seconds": s.seconds,
                "tokens_per_second": s.tokens_per_second(),
            });
            if carries {
                report["memory"] = json!(settled.memory);
                report["segment_length"] = json!(settled.window);
            } else {
                report["context"] = json!(settled.window);
                report["stride"] = json!(settled.window - settled.overlap);
            }
            return json_line(&report);
        }
        let mut out = anstream::stdout().lock();
        writeln!(
            out,
            "perplexity {:.3} a token, {bits_per_byte:.4} bits/byte, {bits_per_character:.4} bits/character",
            s.perplexity()
        )?;
        let how = match settled.memory {
            Some(memory) if carries => format!("segments of {}, memory of {memory}", settled.window),
            _ => format!("windows of {}, every {}", settled.window, settled.window - settled.overlap),
        };
        writeln!(out, "{} tokens, {how}; {:.1} tokens/s", grouped(s.tokens as u64), s.tokens_per_second())?;
        Ok(())
    }
}

/// A model that predicts tokens, with a memory of that many tokens where it has one.
pub(super) fn open(name: &str, memory: Option<usize>, global: &Global) -> anyhow::Result<Model> {
    Ok(model::open_with_memory(name, None, memory, Purpose::Inference, global)?.model)
}
