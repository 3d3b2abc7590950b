//! `genus eval`: how good a model is on a task.

mod context_length;
mod perplexity;

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use genus_checkpoint::atomic::atomic_write;
use genus_infer::{Bleu, BleuOptions, bleu};
use serde_json::json;

use crate::Context;
use crate::commands::eval_words::{EvalFill, EvalTagging};
use crate::commands::translate::{SearchFlags, Translator, lines_of};
use crate::report::json_line;

/// Measure a model on a task.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum EvalCommand {
    Perplexity(perplexity::EvalPerplexity),
    ContextLength(context_length::EvalContextLength),
    Translation(EvalTranslation),
    Bleu(EvalBleu),
    Tagging(EvalTagging),
    Fill(EvalFill),
}

impl EvalCommand {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Perplexity(command) => command.run(context),
            Self::ContextLength(command) => command.run(context),
            Self::Translation(command) => command.run(context),
            Self::Bleu(command) => command.run(context),
            Self::Tagging(command) => command.run(context),
            Self::Fill(command) => command.run(context),
        }
    }
}

/// Translate a test set and compare with its translations: corpus BLEU, as sacreBLEU computes it.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalTranslation {
    /// Folder or hub id.
    #[arg(value_name = "MODEL")]
    model: String,
    /// File to translate; .gz is unpacked.
    #[arg(long, value_name = "FILE")]
    source: PathBuf,
    /// Its translations, line by line; .gz is unpacked.
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// Compare in lower case.
    #[arg(long)]
    lowercase: bool,
    /// File to write the model's translations to.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    search: SearchFlags,
}

/// Compare translations with references: corpus BLEU, as sacreBLEU computes it.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalBleu {
    /// Translations, one a line; .gz is unpacked.
    #[arg(value_name = "TRANSLATIONS")]
    translations: PathBuf,
    /// Their references, line by line; .gz is unpacked.
    #[arg(value_name = "REFERENCES")]
    references: PathBuf,
    /// Compare in lower case.
    #[arg(long)]
    lowercase: bool,
}

impl EvalTranslation {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let (source, reference) = (lines_of(&self.source)?, lines_of(&self.reference)?);
        same_lines([&self.source, &self.reference], [source.len(), reference.len()])?;
        let found = Translator::open(&self.model, context)?.translate(&source, self.search)?;
        let texts: Vec<String> = found.into_iter().map(|t| t.text).collect();
        if let Some(path) = &self.output {
            atomic_write(path, (texts.join("\n") + "\n").as_bytes())?;
        }
        report(context, &bleu(&texts, &reference, BleuOptions { lowercase: self.lowercase }))
    }
}

impl EvalBleu {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let (translations, references) = (lines_of(&self.translations)?, lines_of(&self.references)?);
        same_lines([&self.translations, &self.references], [translations.len(), references.len()])?;
        report(context, &bleu(&translations, &references, BleuOptions { lowercase: self.lowercase }))
    }
}

fn same_lines(files: [&PathBuf; 2], lines: [usize; 2]) -> anyhow::Result<()> {
    let [a, b] = files.map(|f| f.display());
    if lines[0] == 0 {
        bail!("{a}: found no line, expected at least one");
    }
    if lines[0] != lines[1] {
        bail!("{a} has {} lines and {b} has {}; expected as many in both", lines[0], lines[1]);
    }
    Ok(())
}

fn report(context: &Context, b: &Bleu) -> anyhow::Result<()> {
    if context.json {
        return json_line(&json!(b));
    }
    let precisions: Vec<String> = b.precisions.iter().map(|p| format!("{p:.1}")).collect();
    let mut out = anstream::stdout().lock();
    writeln!(
        out,
        "BLEU {:.2}  (precisions {}; brevity penalty {:.3}; {} words for {})",
        b.score,
        precisions.join("/"),
        b.brevity_penalty,
        b.length,
        b.reference_length
    )?;
    writeln!(out, "{}", b.signature)?;
    Ok(())
}
