//! The bidirectional LSTM (Hochreiter and Schmidhuber 1997; both directions: Graves and Schmidhuber 2005), as a language model and as an
//! encoder.
//!
//! Ancestor: the LSTM. Differences: a second stack of layers reads from the end; a token's vector is both directions' side by side.
//! As a language model each direction predicts the token that it has not seen yet, the first the next one and the second the one
//! before, with one output layer, tied to the token table.
//!
//! Deviations: directions stay apart through all layers, as in ELMo (a layer that read both would have seen what is to be
//! predicted); one bias for the four gates, where PyTorch adds two.

use crate::bert::TAGGER;
use crate::config::{default, only};
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{
    Attend, CellOutput, Directions, Dropout, HeadBias, HeadSpec, HeadTransform, InitScheme, Mixing, Positions,
    ResidualInit, Skip, StackSpec, Tying,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) static BILSTM: Family = Family {
    name: "bilstm",
    model_type: "bilstm",
    paper: "Graves and Schmidhuber 2005, Framewise phoneme classification with bidirectional LSTM",
    ancestor: "lstm",
    differences: &[
        "a second stack of layers reads from the end; both directions' states side by side",
        "each direction predicts the token that it has not seen",
    ],
    deviations: &["one bias for the gates, where PyTorch adds two"],
    presets: &[Preset { name: "bilstm", spec: || published(2, 512) }],
    tasks: &[
        (Task::BidirectionalLm, "BiLstmForBidirectionalLM"),
        (Task::TokenClassification, "BiLstmForTokenClassification"),
        (Task::Base, "BiLstmModel"),
    ],
    head: HeadSpec { transform: HeadTransform::None, bias: HeadBias::PerToken },
    pooling: Pooling::None,
    classified: Classified::LastToken,
    classifier_dropout: CLASSIFIER_DROPOUT,
    read,
    write,
    names,
};

/// Cells as wide as the stream, without projection, bounds and connections past layers.
pub(crate) fn published(n_layers: usize, d_model: usize) -> StackSpec {
    StackSpec {
        d_ff: d_model,
        vocab_size: 30_522,
        n_ctx: u32::MAX as usize,
        mixing: Mixing::Recurrent { output: CellOutput::Cells, cell_clip: None, output_clip: None, skip: Skip::None },
        directions: Directions::Both,
        positions: Positions::None,
        ..crate::transformer::stack(n_layers, d_model, 1, Attend::Past)
    }
}

/// A configuration of our own: no library that keeps model folders has this model.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    #[serde(default = "default::tenth")]
    embedding_dropout: f32,
    #[serde(default = "default::tenth")]
    dropout: f32,
    #[serde(default = "default::std_dev")]
    initializer_range: f64,
    #[serde(default = "default::yes")]
    tie_word_embeddings: bool,
}

fn read(file: &JsonFile) -> Result<StackSpec> {
    let c: Config = file.parse()?;
    only(file, "tie_word_embeddings", c.tie_word_embeddings, "true")?;
    Ok(StackSpec {
        vocab_size: c.vocab_size,
        dropout: Dropout { embedding: c.embedding_dropout, attention: 0.0, residual: c.dropout, inner: 0.0 },
        init: InitScheme { std: c.initializer_range, position_std: c.initializer_range, residual: ResidualInit::Plain },
        ..published(c.num_hidden_layers, c.hidden_size)
    })
}

fn write(spec: &StackSpec) -> Map<String, Value> {
    crate::model::object(&Config {
        vocab_size: spec.vocab_size,
        hidden_size: spec.d_model,
        num_hidden_layers: spec.n_layers,
        embedding_dropout: spec.dropout.embedding,
        dropout: spec.dropout.residual,
        initializer_range: spec.init.std,
        tie_word_embeddings: spec.tying == Tying::Tied,
    })
}

fn names(task: Task, _: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    let map = NameMap::new().base([
        ("embeddings.tokens", "embeddings.weight"),
        ("layers.{i}.input.weight", "lstm.weight_ih_l{i}"),
        ("layers.{i}.input.bias", "lstm.bias_l{i}"),
        ("layers.{i}.recurrent.weight", "lstm.weight_hh_l{i}"),
        ("backward.layers.{i}.input.weight", "lstm.weight_ih_l{i}_reverse"),
        ("backward.layers.{i}.input.bias", "lstm.bias_l{i}_reverse"),
        ("backward.layers.{i}.recurrent.weight", "lstm.weight_hh_l{i}_reverse"),
    ])?;
    match task {
        Task::Base => map.other_heads(["lm_head.bias"])?.other_heads(TAGGER.map(|t| t.1)),
        Task::TokenClassification => map.head(TAGGER)?.other_heads(["lm_head.bias"]),
        _ => map.head([("lm_head.bias", "lm_head.bias")])?.other_heads(TAGGER.map(|t| t.1)),
    }
}
