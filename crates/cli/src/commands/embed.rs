//! `genus embed`: one vector a line.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use genus_checkpoint::{WriteOptions, write_single};
use genus_infer::{EmbedOptions, Pooling, embed, read_lines};
use genus_models::Task;
use serde_json::json;

use crate::Context;
use crate::commands::forward::check_output_file;
use crate::model::{self, Purpose};
use crate::progress::{Progress, grouped, short_count};
use crate::report::json_line;

/// One vector for each line of a file.
#[derive(Debug, clap::Args)]
pub(crate) struct Embed {
    /// Folder or hub id.
    #[arg(value_name = "MODEL")]
    model: String,
    /// Text file, one text a line.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// File to write: `embeddings`, [lines, d_model], in the order of the file.
    #[arg(long, value_name = "out.safetensors")]
    output: PathBuf,
    /// mean, cls, pooler or last; without it, what the folder's modules.json says, else mean.
    #[arg(long, value_name = "POOLING")]
    pooling: Option<Pooling>,
    /// Divide each vector by its length; without it, what the folder's modules.json says.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    normalize: Option<bool>,
    /// Cut lines to that many tokens; without it, the folder's limit or the model's context.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
}

impl Embed {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let global = context.global()?;
        check_output_file(&self.output, &self.input)?;
        let lines = read_lines(&self.input)?;
        let opened = model::open(&self.model, Some(Task::Base), Purpose::Inference, &global)?;
        let tokenizer = model::tokenizer(&opened.folder, "choose a folder that holds one")?;
        let mut options = EmbedOptions::open(&opened.folder)?;
        options.pooling = self.pooling.unwrap_or(options.pooling);
        options.normalize = self.normalize.unwrap_or(options.normalize);
        options.precision = global.precision();
        options.max_tokens = self.max_tokens.or(options.max_tokens);

        let mut progress = Progress::new("embedding", Some(lines.len() as u64));
        let start = Instant::now();
        let done = embed(&opened.model, &tokenizer, &lines, &options, |n| progress.update(n as u64, "lines"))
            .with_context(|| format!("cannot embed {}", self.input.display()))?;
        let seconds = start.elapsed().as_secs_f64();
        progress.finish();
        let d_model = opened.model.spec().d_hidden();
        write_single(&self.output, &[("embeddings".to_owned(), done.vectors)], &WriteOptions::default())?;
        if done.truncated > 0 {
            anstream::eprintln!(
                "\x1b[33mnote:\x1b[0m {} of {} lines were cut: longer than the limit",
                done.truncated,
                lines.len()
            );
        }
        if context.json {
            return json_line(&json!({
                "output": self.output,
                "lines": lines.len(),
                "d_model": d_model,
                "pooling": options.pooling.name(),
                "normalize": options.normalize,
                "tokens": done.tokens,
                "truncated": done.truncated,
                "seconds": seconds,
                "tokenizing_seconds": done.tokenizing.as_secs_f64(),
            }));
        }
        let mut out = anstream::stdout().lock();
        writeln!(
            out,
            "{} lines, {} tokens in {seconds:.2} s ({} tokens/s); {} pooling{}",
            grouped(lines.len() as u64),
            grouped(done.tokens as u64),
            short_count(done.tokens as f64 / seconds),
            options.pooling.name(),
            if options.normalize { ", normalised" } else { "" }
        )?;
        writeln!(out, "embeddings [{}, {d_model}] written to {}", lines.len(), self.output.display())?;
        Ok(())
    }
}
