//! `genus eval context-length`: how much context models make use of.

use std::io::Write;

use anyhow::bail;
use genus_infer::{ContextLosses, EffectiveContext, StreamOptions, score_tokens};
use genus_models::Model;
use genus_nn::Memory;
use serde_json::json;

use crate::Context;
use crate::commands::eval::perplexity::{Text, open};
use crate::data::Data;
use crate::global::Global;
use crate::model;
use crate::options::Args;
use crate::progress::grouped;
use crate::report::json_line;
use crate::source::model_folder;

/// Relative effective context length of models (Dai et al. 2019, arXiv 1901.02860, appendix C).
///
/// With l_i(c, t) the loss of model i at token t given the c tokens before it, b(c, t) the least of all models' and T the tokens with the largest
/// b: f_i(c, c') = mean over T of min(b(c, t), l_i(c', t)), and the gain of c' over c is 1 - exp(f_i(c, c') - f_i(c, c)). A model's length is the
/// first context from which the next one gains no more than the threshold. Every token is predicted from exactly c tokens, read for it alone; a
/// model whose own context is shorter sees that much.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalContextLength {
    /// Folders or hub ids, compared with each other; all need one tokenizer.
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,
    #[command(flatten)]
    data: Args<Data>,
    /// Tokens from one context to the next.
    #[arg(long, value_name = "N", default_value_t = 64)]
    step: usize,
    /// The first context; without it, one step.
    #[arg(long, value_name = "N")]
    shortest: Option<usize>,
    /// The last context.
    #[arg(long, value_name = "N", default_value_t = 512)]
    longest: usize,
    /// Share of the tokens that count, those that are hardest with the shorter context; several are each told.
    #[arg(long, value_name = "SHARE", num_args = 1.., default_values_t = [0.1, 0.5, 1.0])]
    hardest: Vec<f64>,
    /// The gain that a longer context must be above.
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    threshold: f64,
    /// Tokens that are predicted.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    tokens: usize,
}

impl EvalContextLength {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let global = context.global()?;
        let contexts = self.contexts()?;
        let ids = self.ids()?;
        let losses = self.models.iter().map(|m| self.losses(m, &contexts, &ids, &global)).collect::<Result<_, _>>()?;
        let group = ContextLosses::new(contexts, losses)?;
        let found = (0..self.models.len())
            .map(|i| self.hardest.iter().map(|&r| Ok(group.effective(i, r, self.threshold)?)).collect())
            .collect::<anyhow::Result<Vec<Vec<EffectiveContext>>>>()?;
        if context.json { self.json(&group, &found) } else { self.print(&group, &found) }
    }

    fn contexts(&self) -> anyhow::Result<Vec<usize>> {
        if self.step == 0 || self.tokens == 0 {
            let flag = if self.step == 0 { "--step" } else { "--tokens" };
            bail!("{flag} is 0, expected at least 1");
        }
        let shortest = self.shortest.unwrap_or(self.step);
        if shortest == 0 || shortest.saturating_add(self.step) > self.longest {
            let (step, longest) = (self.step, self.longest);
            bail!("--shortest is {shortest}, expected from 1 to --longest less --step: {longest} - {step}");
        }
        if let Some(bad) = self.hardest.iter().find(|r| !(**r > 0.0 && **r <= 1.0)) {
            bail!("--hardest is {bad}, expected shares above 0, at most 1");
        }
        Ok((shortest..=self.longest).step_by(self.step).collect())
    }

    /// The text's ids, which must be the same for all models.
    fn ids(&self) -> anyhow::Result<Vec<u32>> {
        let corpus = Text::corpus(&self.data.0)?;
        let mut first: Option<Vec<u32>> = None;
        for name in &self.models {
            let tokenizer = model::tokenizer(&model_folder(name)?, "choose a folder that holds one")?;
            let stream = Text::encode(&corpus, &tokenizer)?.stream;
            let ids = stream.tokens().get(0..stream.len());
            match &first {
                None => first = Some(ids),
                Some(other) if *other == ids => {}
                Some(other) => {
                    let [a, b] = [other.len(), ids.len()].map(|n| grouped(n as u64));
                    let one = &self.models[0];
                    bail!(
                        "{name} makes {b} tokens of the text and {one} {a}, or others; expected models with one tokenizer"
                    );
                }
            }
        }
        let mut ids = first.unwrap_or_default();
        if ids.len() <= self.longest {
            bail!(
                "{}: found {} tokens, expected more than --longest {}",
                corpus.names().join(", "),
                ids.len(),
                self.longest
            );
        }
        ids.truncate(self.longest + self.tokens);
        Ok(ids)
    }

    /// The loss of each token behind the longest context, for each context.
    fn losses(&self, name: &str, contexts: &[usize], ids: &[u32], global: &Global) -> anyhow::Result<Vec<Vec<f64>>> {
        let (_, spec, _) = Model::read_config(&model_folder(name)?)?;
        let memory = (spec.memory != Memory::None).then_some(0);
        let model = open(name, memory, global)?;
        let mut all: Vec<Vec<f64>> = Vec::new();
        for (i, &c) in contexts.iter().enumerate() {
            let seen = c.min(spec.n_ctx);
            if i > 0 && seen == contexts[i - 1].min(spec.n_ctx) {
                all.push(all[i - 1].clone());
                continue;
            }
            let options = StreamOptions {
                window: Some(seen),
                overlap: seen - 1,
                from: self.longest,
                precision: global.precision(),
                ..StreamOptions::default()
            };
            let mut losses = Vec::new();
            score_tokens(&model, ids, &options, |_, loss| losses.push(loss))?;
            all.push(losses);
        }
        Ok(all)
    }

    fn json(&self, group: &ContextLosses, found: &[Vec<EffectiveContext>]) -> anyhow::Result<()> {
        let of = |i: usize| {
            let each = self.hardest.iter().zip(&found[i]).map(
                |(r, e)| json!({"hardest": r, "context_length": e.length, "settled": e.settled, "gains": e.gains}),
            );
            json!({"model": self.models[i], "loss": group.means(i), "results": each.collect::<Vec<_>>()})
        };
        let models: Vec<_> = (0..self.models.len()).map(of).collect();
        json_line(&json!({"contexts": group.contexts(), "threshold": self.threshold, "models": models}))
    }

    fn print(&self, group: &ContextLosses, found: &[Vec<EffectiveContext>]) -> anyhow::Result<()> {
        let mut out = anstream::stdout().lock();
        let row = |values: Vec<String>| values.iter().map(|v| format!("{v:>8}")).collect::<String>();
        for (i, name) in self.models.iter().enumerate() {
            writeln!(out, "\x1b[1m{name}\x1b[0m")?;
            writeln!(out, "  context            {}", row(group.contexts().iter().map(usize::to_string).collect()))?;
            let bits = group.means(i).into_iter().map(|l| format!("{:.4}", l / std::f64::consts::LN_2));
            writeln!(out, "  bits a token       {}", row(bits.collect()))?;
            for (r, e) in self.hardest.iter().zip(&found[i]) {
                let gains = std::iter::once(String::new()).chain(e.gains.iter().map(|g| format!("{:.2} %", g * 100.0)));
                writeln!(out, "  gain, hardest {:>3.0} %{}", r * 100.0, row(gains.collect()))?;
                let at_least = if e.settled { "" } else { "at least " };
                writeln!(out, "    relative effective context length {at_least}{}", e.length)?;
            }
        }
        Ok(())
    }
}
