//! `genus inspect`: looking into a model.

use genus_infer::{Representation, cosine, represent};
use genus_models::Task;
use serde_json::json;

use crate::Context;
use crate::model::{self, Purpose};
use crate::report::{Usage, json_line};

/// Look into a model.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum InspectCommand {
    Represent(Represent),
}

impl InspectCommand {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Represent(command) => command.run(context),
        }
    }
}

/// A word's vector in several texts, compared.
///
/// A model that reads from left to right knows only what stands before a word: in two texts that begin alike its vectors are the same. One that
/// reads in both directions tells them apart.
#[derive(Debug, clap::Args)]
pub(crate) struct Represent {
    /// Folder or hub id.
    #[arg(value_name = "MODEL")]
    model: String,
    /// A text that holds the word (repeat it).
    #[arg(long, value_name = "TEXT", required = true)]
    text: Vec<String>,
    /// The word whose vectors are compared, at its first place in each text.
    #[arg(long, value_name = "WORD")]
    word: String,
    /// 0: the embeddings, 1 to n-layers: after that layer; without it, after the last.
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
}

impl Represent {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let global = context.global()?;
        if self.text.len() < 2 && !context.json {
            return Err(Usage("--text is given once, expected at least two texts to compare".into()).into());
        }
        let opened = model::open(&self.model, Some(Task::Base), Purpose::Inference, &global)?;
        let tokenizer = model::tokenizer(&opened.folder, "choose a folder that holds one")?;
        let found = represent(&opened.model, &tokenizer, &self.text, &self.word, self.layer, global.precision())?;
        let pairs: Vec<(usize, usize)> =
            (0..found.len()).flat_map(|i| (i + 1..found.len()).map(move |j| (i, j))).collect();
        if context.json {
            let compared: Vec<_> = pairs
                .iter()
                .map(|&(i, j)| {
                    let (a, b) = (&found[i].vector, &found[j].vector);
                    json!({"texts": [i, j], "same": a == b, "cosine": cosine(a, b), "largest_difference": difference(a, b)})
                })
                .collect();
            let texts: Vec<_> = self.text.iter().zip(&found).map(|(text, r)| as_json(text, r)).collect();
            return json_line(&json!({"word": self.word, "texts": texts, "compared": compared}));
        }
        for (i, r) in found.iter().enumerate() {
            let tokens: Vec<String> = r
                .tokens
                .iter()
                .enumerate()
                .map(|(j, t)| if r.word.contains(&j) { format!("\x1b[1m[{t}]\x1b[0m") } else { t.clone() })
                .collect();
            let first: Vec<String> = r.vector.iter().take(5).map(|x| format!("{x:.4}")).collect();
            anstream::println!("{}  {}", i + 1, tokens.join(" "));
            anstream::println!("   {} ... ({} numbers)", first.join(" "), r.vector.len());
        }
        for (i, j) in pairs {
            let (a, b) = (&found[i].vector, &found[j].vector);
            if a == b {
                anstream::println!("{} and {}: the same vector, to the last bit", i + 1, j + 1);
            } else {
                anstream::println!(
                    "{} and {}: different vectors, cosine {:.4}, largest difference {:.3e}",
                    i + 1,
                    j + 1,
                    cosine(a, b),
                    difference(a, b)
                );
            }
        }
        Ok(())
    }
}

fn as_json(text: &str, r: &Representation) -> serde_json::Value {
    json!({"text": text, "tokens": r.tokens, "first": r.word.start, "last": r.word.end - 1, "vector": r.vector})
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |most, (x, y)| (x - y).abs().max(most))
}
