//! Measurements of models that translate: training on parallel text, and translating.

use std::path::{Path, PathBuf};

use anyhow::bail;
use genus_infer::bench::{self, TranslationSearch};
use genus_infer::{BEYOND, BeamOptions, GenerationConfig, TranslateOptions};
use genus_models::{Model, Task};
use genus_text::{Batch, Parallel, Tokenizer, TokenizerSpec, TrainOptions};
use genus_train::bench::pair_batches;
use genus_train::{BatchSize, Objective};
use serde_json::json;

use super::{Measurement, Rows, Subject};
use crate::commands::tokenizer;
use crate::commands::translate::lines_of;
use crate::global::Global;
use crate::model::{self, Purpose};
use crate::report::Usage;

/// Label smoothing of training on parallel text (Vaswani et al. 2017, section 5.4).
pub(super) const SMOOTHING: f64 = 0.1;

/// Batches of a run, where nothing says how many.
const BATCHES: usize = 4;

/// Parallel text that is trained on.
#[derive(Debug, clap::Args)]
pub(super) struct PairFlags {
    /// Parallel text, the side that is read: trains on its pairs at their natural lengths, with labels smoothed by 0.1; --tokenizer may
    /// be train:bpe:8000 then. May be repeated.
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with_all = ["lines", "context"])]
    source: Vec<PathBuf>,
    /// Its translations, line by line.
    #[arg(long, value_name = "FILE", requires = "source")]
    target: Vec<PathBuf>,
    /// Batches of at most that many tokens on either side, instead of --batch pairs.
    #[arg(long, value_name = "N", requires = "source", conflicts_with = "batch")]
    batch_tokens: Option<usize>,
    /// Batches of a run: the first ones of the shuffled text [default: 4].
    #[arg(long, value_name = "N", requires = "source")]
    batches: Option<usize>,
}

impl PairFlags {
    pub(super) fn given(&self) -> bool {
        !self.source.is_empty()
    }

    /// The batches of a run, and the seconds that tokenising their text took.
    pub(super) fn batches(
        &self,
        model: &Model,
        folder: Option<&Path>,
        rows: &Rows,
        objective: Objective,
        seed: u64,
    ) -> anyhow::Result<(Vec<Batch>, f64)> {
        if objective != Objective::Translation {
            bail!("--source and --target are for translation, and this trains with the objective {objective}");
        }
        let text = Parallel::open(&self.source, &self.target)?;
        let learned = rows.tokenizer.as_deref().filter(|t| t.starts_with("train:")).map(str::parse::<TokenizerSpec>);
        let tokenizer = match learned.transpose()? {
            Some(TokenizerSpec::Train { kind, vocab_size }) => {
                Tokenizer::train(&TrainOptions::new(kind, vocab_size), text.lines(), |_| {})?
            }
            _ => rows.tokenizer(folder)?,
        };
        let size = self.batch_tokens.map_or(BatchSize::Sequences(rows.batch), BatchSize::Tokens);
        Ok(pair_batches(model, &tokenizer, &text, size, self.batches.unwrap_or(BATCHES), seed)?)
    }

    pub(super) fn workload(&self, batches: &[Batch]) -> String {
        let pairs: usize = batches.iter().map(|b| b.examples).sum();
        let (sources, targets): (usize, usize) =
            batches.iter().map(|b| (b.sources.len(), b.ids.len())).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        format!("train translation {pairs} pairs, {sources} to {targets} tokens, in {} batches", batches.len())
    }
}

/// Translating a text by beams: text in, text out, tokenising included.
#[derive(Debug, clap::Args)]
pub(crate) struct TranslateBench {
    #[command(flatten)]
    subject: Subject,
    /// Text file, a line a sentence; .gz is unpacked.
    #[arg(long, value_name = "FILE")]
    source: PathBuf,
    /// Only the first lines of it.
    #[arg(long, value_name = "N")]
    first: Option<usize>,
    /// Tokenizer: a folder, or bytes; without it, the model's own.
    #[arg(long, value_name = "TOKENIZER")]
    tokenizer: Option<String>,
    /// Number of beams; 1 takes the likeliest token each time.
    #[arg(long, value_name = "N", default_value_t = 4)]
    beams: usize,
    /// Divide log-probabilities by length to this power.
    #[arg(long, value_name = "A", default_value_t = 0.6, allow_negative_numbers = true)]
    length_penalty: f64,
    /// Lines that are searched together.
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,
    /// Longest translation in tokens, whatever the source has.
    #[arg(long, value_name = "N", conflicts_with = "beyond")]
    max_new_tokens: Option<usize>,
    /// Longest translation in tokens beyond those of its source.
    #[arg(long, value_name = "N", default_value_t = BEYOND)]
    beyond: usize,
    /// Give every translation as many tokens as it may have: for random weights.
    #[arg(long)]
    to_the_full: bool,
}

impl TranslateBench {
    pub(super) fn measure(self, global: &Global) -> anyhow::Result<Measurement> {
        let (mut model, folder) = self.subject.open(Some(Task::Seq2SeqLm), Purpose::Inference, global)?;
        let tokenizer = match (&self.tokenizer, &folder) {
            (Some(name), _) => tokenizer::open(name)?,
            (None, Some(folder)) => model::tokenizer(folder, "or choose one with --tokenizer")?,
            (None, None) => bail!("a preset has no tokenizer: choose one with --tokenizer FOLDER"),
        };
        let mut config = folder.as_deref().map(GenerationConfig::open).transpose()?.unwrap_or_default();
        if folder.is_none() {
            // What a folder's configuration would say.
            let special = tokenizer.special();
            config.eos.extend(tokenizer.end_of_text());
            if let Some(start) = special.pad.or(tokenizer.end_of_text()) {
                model.set_config_field("decoder_start_token_id", json!(start));
            }
        }
        let mut lines = lines_of(&self.source)?;
        lines.truncate(self.first.unwrap_or(usize::MAX));
        if lines.is_empty() {
            return Err(Usage("no lines to translate".into()).into());
        }
        let options = TranslateOptions {
            beam: BeamOptions { beams: self.beams, length_penalty: self.length_penalty },
            max_new_tokens: self.max_new_tokens,
            beyond: self.beyond,
            to_the_full: self.to_the_full,
        };
        let (together, precision) = (self.batch, global.precision());
        let search =
            TranslationSearch { model: &model, tokenizer: &tokenizer, config: &config, options, together, precision };
        let measured = bench::translate(search, &lines, self.subject.runs())?;
        let workload = format!("translate {} lines by {} beams, {together} together", lines.len(), self.beams);
        Ok((self.subject, model, workload, measured))
    }
}
