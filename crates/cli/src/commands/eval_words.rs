//! `genus eval tagging` and `genus eval fill`: words and their tags, and words that are hidden.

use std::io::Write;
use std::path::PathBuf;

use genus_checkpoint::atomic::atomic_write;
use genus_infer::{EntityScore, FillOptions, Filling, fill, tag, tag_scores};
use genus_models::Task;
use genus_text::{Corpus, CorpusOptions, Tagged};
use serde_json::json;

use crate::Context;
use crate::model::{self, Purpose};
use crate::report::json_line;

/// Tag words and compare with their tags: accuracy, and precision, recall and F1 of entities where tags mark some (as seqeval computes them).
#[derive(Debug, clap::Args)]
pub(crate) struct EvalTagging {
    /// Folder or hub id of a model that tags.
    #[arg(value_name = "MODEL")]
    model: String,
    /// CoNLL-U, or a word and its tag a line; may be repeated; .gz is unpacked.
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    /// File to write words, tags and the model's tags to.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Fill words that are hidden: a sample of places, the same for all models with one tokenizer. Masked models see both sides, models that read
/// from left to right the left side alone; of models of both directions the two predictions are multiplied.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalFill {
    /// Folder or hub id.
    #[arg(value_name = "MODEL")]
    model: String,
    /// Text, JSON lines (.jsonl) or Parquet files, or folders of them; .gz is unpacked.
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    /// How many places, at most.
    #[arg(long, value_name = "N", default_value_t = FillOptions::default().places)]
    places: usize,
    /// Tokens of the window around a place.
    #[arg(long, value_name = "N", default_value_t = FillOptions::default().context)]
    context: usize,
}

const BATCH_TOKENS: usize = 4096;
const WAY_OUT: &str = "a tokenizer.json or vocab.txt in the model's folder";

impl EvalTagging {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let global = context.global()?;
        let data = Tagged::open(&self.data)?;
        let opened = model::open(&self.model, Some(Task::TokenClassification), Purpose::Inference, &global)?;
        let tokenizer = model::tokenizer(&opened.folder, WAY_OUT)?;
        let words: Vec<&[String]> = data.sentences().iter().map(|s| s.words.as_slice()).collect();
        let truth: Vec<&[String]> = data.sentences().iter().map(|s| s.tags.as_slice()).collect();
        let found = tag(&opened.model, &tokenizer, &words, BATCH_TOKENS, global.precision())?;
        if let Some(path) = &self.output {
            let mut text = String::new();
            for ((words, truth), found) in words.iter().zip(&truth).zip(&found) {
                for ((word, truth), found) in words.iter().zip(*truth).zip(found) {
                    text += &format!("{word}\t{truth}\t{found}\n");
                }
                text.push('\n');
            }
            atomic_write(path, text.as_bytes())?;
        }
        let scores = tag_scores(&truth, &found);
        if context.json {
            return json_line(&json!(scores));
        }
        let mut out = anstream::stdout().lock();
        writeln!(out, "accuracy   {:.4}  ({} words)", scores.accuracy, scores.words)?;
        if let Some(all) = &scores.entities {
            let line = |e: &EntityScore| {
                let EntityScore { precision, recall, f1, entities, found } = e;
                format!(
                    "precision {precision:.4}  recall {recall:.4}  F1 {f1:.4}  ({entities} entities, {found} found)"
                )
            };
            writeln!(out, "entities   {}", line(all))?;
            for (kind, score) in &scores.types {
                writeln!(out, "  {kind:<14} {}", line(score))?;
            }
        }
        Ok(())
    }
}

impl EvalFill {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let global = context.global()?;
        let corpus = Corpus::open(&self.data, CorpusOptions::default())?;
        let opened = model::open(&self.model, None, Purpose::Inference, &global)?;
        let tokenizer = model::tokenizer(&opened.folder, WAY_OUT)?;
        let texts = corpus.documents().collect::<Result<Vec<String>, _>>()?;
        let documents = tokenizer.encode_batch(&texts, false)?;
        let options = FillOptions {
            places: self.places,
            context: self.context,
            seed: global.seed,
            batch_tokens: BATCH_TOKENS,
            precision: global.precision(),
        };
        let score = fill(&opened.model, &tokenizer, &documents, &options)?;
        if context.json {
            let mut value = json!(score);
            value["context"] = json!(self.context);
            value["seed"] = json!(global.seed);
            return json_line(&value);
        }
        let how = match score.filling {
            Filling::Masked => "both sides, masked",
            Filling::Left => "the left side",
            Filling::Both => "both sides, one after the other",
        };
        let mut out = anstream::stdout().lock();
        writeln!(out, "filled {} words from {how}, windows of {} tokens", score.places, self.context)?;
        writeln!(out, "right      {:.4}", score.top1)?;
        writeln!(out, "of five    {:.4}", score.top5)?;
        writeln!(out, "ln p       {:.4}", score.log_probability)?;
        Ok(())
    }
}
