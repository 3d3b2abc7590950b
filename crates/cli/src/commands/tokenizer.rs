//! `genus tokenizer train|encode|decode`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use genus_text::{Tokenizer, TrainKind, TrainOptions, TrainProgress};
use serde_json::json;

use crate::Context;
use crate::data::{self, Data};
use crate::options::{Args, Layers, Options};
use crate::progress::{Progress, bytes, grouped};
use crate::report::json_line;
use crate::source::{Texts, model_folder, parse_ids, read_text};

/// Train a tokenizer, or turn text into ids and back.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TokenizerCommand {
    Train(Train),
    Encode(Encode),
    Decode(Decode),
}

/// The kind of vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Byte-level byte-pair encoding (GPT-2's).
    Bpe,
    /// WordPiece (BERT's).
    Wordpiece,
    /// Unigram language model (SentencePiece's).
    Unigram,
    /// The 256 bytes and an end-of-text token: nothing is learned, no data is needed.
    Bytes,
}

/// Learn a vocabulary from text, and write a folder that `transformers` loads too.
#[derive(Debug, clap::Args)]
pub(crate) struct Train {
    #[command(flatten)]
    data: Args<Data>,
    /// Kind of vocabulary.
    #[arg(long, value_enum, default_value_t = Kind::Bpe)]
    kind: Kind,
    /// Size of the vocabulary, special tokens included.
    #[arg(long, value_name = "N", default_value_t = 8000)]
    vocab_size: usize,
    /// Pairs seen less often are not merged.
    #[arg(long, value_name = "N", default_value_t = 2)]
    min_frequency: u64,
    /// WordPiece: keep upper case and accents.
    #[arg(long)]
    cased: bool,
    /// Folder to write; it must not hold a tokenizer yet.
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
}

/// Text to ids: a line of ids for each text.
#[derive(Debug, clap::Args)]
pub(crate) struct Encode {
    /// Folder with a tokenizer (a model folder too), hub id, or `bytes`.
    #[arg(value_name = "MODEL")]
    model: String,
    /// Text to encode; may be repeated.
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
    /// File with one text a line.
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// File that is one text.
    #[arg(long, value_name = "FILE")]
    text_file: Option<PathBuf>,
    /// Leave out what the tokenizer puts around a text (BERT: [CLS] and [SEP]).
    #[arg(long)]
    no_special_tokens: bool,
    /// The texts are in the language that is translated into, where the tokenizer has a model for each (Marian).
    #[arg(long)]
    target: bool,
    /// Show each token's spelling beside its id.
    #[arg(long)]
    tokens: bool,
}

/// Ids to text: the text of each line of ids.
#[derive(Debug, clap::Args)]
pub(crate) struct Decode {
    /// Folder with a tokenizer (a model folder too), hub id, or `bytes`.
    #[arg(value_name = "MODEL")]
    model: String,
    /// Ids, as in "3 14 15"; may be repeated.
    #[arg(long, value_name = "IDS")]
    ids: Vec<String>,
    /// File with one sequence of ids a line.
    #[arg(long, value_name = "FILE")]
    ids_file: Option<PathBuf>,
    /// Leave out special tokens.
    #[arg(long)]
    skip_special_tokens: bool,
}

impl TokenizerCommand {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        context.global()?;
        match self {
            Self::Train(command) => command.run(context),
            Self::Encode(command) => command.run(context),
            Self::Decode(command) => command.run(context),
        }
    }
}

/// The tokenizer of a folder or hub id, or the built-in one.
pub(crate) fn open(model: &str) -> anyhow::Result<Tokenizer> {
    if model == "bytes" {
        return Ok(Tokenizer::bytes());
    }
    Ok(Tokenizer::open(model_folder(model)?)?)
}

impl Train {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        refuse_to_replace(&self.output)?;
        let kind = match self.kind {
            Kind::Bpe => TrainKind::Bpe,
            Kind::Wordpiece => TrainKind::WordPiece,
            Kind::Unigram => TrainKind::Unigram,
            Kind::Bytes => return self.write_bytes(context),
        };
        let mut layers = Layers::new();
        layers.add::<Data>("defaults", &Data::defaults())?.add::<Data>("command line", &self.data.0)?;
        let corpus = layers.resolve::<Data>()?.open()?;
        let options = TrainOptions {
            lowercase: !self.cased,
            min_frequency: self.min_frequency,
            ..TrainOptions::new(kind, self.vocab_size)
        };
        let mut documents = corpus.documents();
        let mut progress = Progress::new("tokenizer", None);
        let tokenizer = Tokenizer::train(&options, documents.by_ref(), |p| match p {
            TrainProgress::Reading { documents, bytes: n } => {
                progress.update(documents, &format!("documents read, {}", bytes(n)))
            }
            _ => progress.update(0, "learning the vocabulary"),
        })?;
        progress.finish();
        let stats = documents.stats();
        tokenizer.save(&self.output, None)?;
        if context.json {
            return json_line(&json!({
                "output": self.output,
                "kind": kind.to_string(),
                "vocab_size": tokenizer.vocab_size(),
                "documents": stats.documents,
                "bytes": stats.bytes,
            }));
        }
        let mut out = anstream::stdout().lock();
        writeln!(out, "read      {}", data::describe(&stats))?;
        writeln!(out, "learned   {} tokens ({kind})", grouped(tokenizer.vocab_size() as u64))?;
        if tokenizer.vocab_size() < self.vocab_size {
            writeln!(
                out,
                "          fewer than the {} asked for: the text has no more to learn from",
                grouped(self.vocab_size as u64)
            )?;
        }
        writeln!(out, "written   {}", self.output.display())?;
        Ok(())
    }

    /// Bytes are tokens as they are.
    fn write_bytes(self, context: &Context) -> anyhow::Result<()> {
        let tokenizer = Tokenizer::bytes();
        tokenizer.save(&self.output, None)?;
        let size = tokenizer.vocab_size();
        if context.json {
            return json_line(&json!({ "output": self.output, "kind": "bytes", "vocab_size": size }));
        }
        let mut out = anstream::stdout().lock();
        writeln!(out, "tokens    {size}: the bytes and the end of text; nothing was learned")?;
        writeln!(out, "written   {}", self.output.display())?;
        Ok(())
    }
}

fn refuse_to_replace(folder: &Path) -> anyhow::Result<()> {
    for name in ["tokenizer.json", "vocab.txt", "vocab.json", "source.spm"] {
        if folder.join(name).exists() {
            bail!(
                "{}: the folder holds a tokenizer already ({name}); choose another folder, or remove that one",
                folder.display()
            );
        }
    }
    Ok(())
}

impl Encode {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let tokenizer = open(&self.model)?;
        let texts = Texts {
            given: &self.text,
            lines: self.texts.as_deref(),
            whole: self.text_file.as_deref(),
            flags: "--text TEXT, --texts FILE or --text-file FILE",
        };
        let texts = texts.read()?;
        let special = !self.no_special_tokens;
        let encoded = match self.target {
            true => texts.iter().map(|t| tokenizer.encode_target(t, special)).collect::<Result<_, _>>()?,
            false => tokenizer.encode_batch(&texts, special)?,
        };
        let mut out = std::io::stdout().lock();
        for ids in &encoded {
            let tokens = || ids.iter().map(|&id| tokenizer.token(id).unwrap_or_default());
            if context.json {
                json_line(&json!({"ids": ids, "tokens": tokens().collect::<Vec<_>>()}))?;
            } else if self.tokens {
                let words: Vec<String> = ids.iter().zip(tokens()).map(|(id, token)| format!("{id}:{token}")).collect();
                writeln!(out, "{}", words.join(" "))?;
            } else {
                let words: Vec<String> = ids.iter().map(u32::to_string).collect();
                writeln!(out, "{}", words.join(" "))?;
            }
        }
        Ok(())
    }
}

impl Decode {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let tokenizer = open(&self.model)?;
        let mut lines: Vec<String> = self.ids.clone();
        if let Some(path) = &self.ids_file {
            lines.extend(read_text(path)?.lines().map(str::to_owned));
        }
        if self.ids.is_empty() && self.ids_file.is_none() {
            let texts = Texts { flags: "--ids \"3 14 15\" or --ids-file FILE", ..Texts::default() };
            lines.extend(texts.read()?.iter().flat_map(|t| t.lines()).map(str::to_owned));
        }
        let mut out = std::io::stdout().lock();
        for (i, line) in lines.iter().enumerate() {
            let ids = parse_ids(line).with_context(|| format!("sequence {}", i + 1))?;
            let text =
                tokenizer.decode(&ids, self.skip_special_tokens).with_context(|| format!("sequence {}", i + 1))?;
            if context.json {
                json_line(&json!({"text": text}))?;
            } else {
                writeln!(out, "{text}")?;
            }
        }
        Ok(())
    }
}
