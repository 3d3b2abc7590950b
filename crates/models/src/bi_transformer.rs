//! Two one-way Transformers in opposite directions: what BERT was compared with before anything else (Devlin et al. 2018,
//! arXiv 1810.04805, section 5.1, discusses it as "train separate LTR and RTL models", as ELMo does with LSTMs).
//!
//! Ancestor: GPT. Differences: a second stack of layers reads from the end; a token's vector is both directions' side by side; each
//! direction predicts the token that it has not seen.
//!
//! Deviations: the two share tables of tokens and positions, and the output.

use crate::registry::{Family, Preset};
use crate::{Result, Task, gpt};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{Directions, StackSpec};

pub(crate) static BI_TRANSFORMER: Family = Family {
    name: "bi-transformer",
    model_type: "bi-transformer",
    paper: "two opposite one-way Transformers, as compared in Devlin et al. 2018, arXiv 1810.04805, section 5.1",
    ancestor: "gpt",
    differences: &[
        "a second stack of layers reads from the end; both directions' states side by side",
        "each direction predicts the token that it has not seen",
    ],
    deviations: &["both directions share the tables of tokens and positions"],
    presets: &[Preset { name: "bi-transformer", spec: || both(gpt::published(12, 768, 12)) }],
    tasks: &[
        (Task::BidirectionalLm, "BiTransformerForBidirectionalLM"),
        (Task::TokenClassification, "BiTransformerForTokenClassification"),
        (Task::Base, "BiTransformerModel"),
    ],
    read: |file: &JsonFile| -> Result<StackSpec> { Ok(both(gpt::read(file)?)) },
    names,
    ..gpt::GPT
};

fn both(spec: StackSpec) -> StackSpec {
    StackSpec { directions: Directions::Both, ..spec }
}

fn names(task: Task, spec: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    let map = gpt::layers_of(NameMap::new().prefix("transformer."), "")?;
    let map = gpt::layers_of(map, "backward.")?;
    let map =
        map.base([("embeddings.tokens", "tokens_embed.weight"), ("embeddings.positions", "positions_embed.weight")])?;
    gpt::heads(map, task, spec)
}
