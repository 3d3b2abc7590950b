//! ELMo (Peters et al. 2018, arXiv 1802.05365): deep contextualised word representations.
//!
//! Ancestor: the bidirectional LSTM. Differences: words enter as characters, through patterns over them, highway layers and a map;
//! cells are many and projected to a narrow output, which all layers but the first add to what they read; cells and outputs are
//! bounded; the output over words is sampled in training. Tasks read a weighted mean of all layers.
//!
//! Deviations: training windows begin with empty cells (the authors carry their state on); weights begin from normal distributions
//! of Glorot's width.

use crate::bert::TAGGER;
use crate::config::{default, only};
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{
    CellOutput, Characters, Dropout, HeadBias, HeadSpec, HeadTransform, InitScheme, Mixing, OutputDropout, Readout,
    ResidualInit, Skip, SoftmaxSample, StackSpec, Tying, Vocabulary,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) static ELMO: Family = Family {
    name: "elmo",
    model_type: "elmo",
    paper: "Peters et al. 2018, arXiv 1802.05365",
    ancestor: "bilstm",
    differences: &[
        "words enter as characters: patterns and their maxima, highway layers, a map",
        "many cells with a narrow, projected output; bounds; connections past layers",
        "tasks read a weighted mean of all layers",
    ],
    deviations: &["training windows begin with empty cells"],
    presets: &[
        Preset { name: "elmo-original", spec: || published(512, 4096, 2) },
        Preset { name: "elmo-medium", spec: || published(256, 2048, 1) },
        Preset { name: "elmo-small", spec: || published(128, 1024, 1) },
    ],
    tasks: &[
        (Task::BidirectionalLm, "ElmoForBidirectionalLM"),
        (Task::TokenClassification, "ElmoForTokenClassification"),
        (Task::Base, "ElmoModel"),
    ],
    head: HeadSpec { transform: HeadTransform::None, bias: HeadBias::PerToken },
    pooling: Pooling::None,
    classified: Classified::LastToken,
    classifier_dropout: CLASSIFIER_DROPOUT,
    read,
    write,
    names,
};

/// The bytes of a word, and beginning and end of words and sentences, and what fills a word.
const ALPHABET: usize = 261;

fn published(d_model: usize, cells: usize, highways: usize) -> StackSpec {
    let filters = vec![(1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024)];
    StackSpec {
        d_ff: cells,
        vocab_size: 793_471,
        vocabulary: Vocabulary::Characters(Characters {
            alphabet: ALPHABET,
            d_character: 16,
            length: 50,
            filters,
            highways,
        }),
        mixing: Mixing::Recurrent {
            output: CellOutput::Projected,
            cell_clip: Some(3.0),
            output_clip: Some(3.0),
            skip: Skip::AfterFirst,
        },
        tying: Tying::Untied,
        softmax_sample: SoftmaxSample::Drawn(8192),
        readout: Readout::Mixed,
        output_dropout: OutputDropout::Residual,
        ..crate::bilstm::published(2, d_model)
    }
}

/// The published `options.json`, with what a model folder says besides.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    lstm: Lstm,
    char_cnn: CharCnn,
    n_tokens_vocab: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n_negative_samples_batch: Option<usize>,
    #[serde(default = "default::tenth")]
    dropout: f32,
    #[serde(default = "default::yes")]
    bidirectional: bool,
    #[serde(default = "default::std_dev")]
    initializer_range: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Lstm {
    dim: usize,
    projection_dim: usize,
    n_layers: usize,
    #[serde(default = "default::yes")]
    use_skip_connections: bool,
    #[serde(default)]
    cell_clip: Option<f32>,
    #[serde(default)]
    proj_clip: Option<f32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CharCnn {
    #[serde(default = "relu")]
    activation: String,
    embedding: Width,
    filters: Vec<(usize, usize)>,
    n_highway: usize,
    n_characters: usize,
    max_characters_per_token: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Width {
    dim: usize,
}

fn relu() -> String {
    "relu".into()
}

fn read(file: &JsonFile) -> Result<StackSpec> {
    let c: Config = file.parse()?;
    only(file, "bidirectional", c.bidirectional, "true")?;
    only(file, "char_cnn.activation", c.char_cnn.activation == "relu", "\"relu\"")?;
    let base = published(c.lstm.projection_dim, c.lstm.dim, c.char_cnn.n_highway);
    Ok(StackSpec {
        n_layers: c.lstm.n_layers,
        vocab_size: c.n_tokens_vocab,
        softmax_sample: c.n_negative_samples_batch.map_or(SoftmaxSample::Whole, SoftmaxSample::Drawn),
        vocabulary: Vocabulary::Characters(Characters {
            // The released options count a place for padding that the weights do not have.
            alphabet: if c.char_cnn.n_characters == ALPHABET + 1 { ALPHABET } else { c.char_cnn.n_characters },
            d_character: c.char_cnn.embedding.dim,
            length: c.char_cnn.max_characters_per_token,
            filters: c.char_cnn.filters,
            highways: c.char_cnn.n_highway,
        }),
        mixing: Mixing::Recurrent {
            output: CellOutput::Projected,
            cell_clip: c.lstm.cell_clip,
            output_clip: c.lstm.proj_clip,
            skip: if c.lstm.use_skip_connections { Skip::AfterFirst } else { Skip::None },
        },
        dropout: Dropout { embedding: c.dropout, attention: 0.0, residual: c.dropout, inner: 0.0 },
        init: InitScheme { std: c.initializer_range, position_std: c.initializer_range, residual: ResidualInit::Plain },
        ..base
    })
}

fn write(spec: &StackSpec) -> Map<String, Value> {
    let (Vocabulary::Characters(characters), Mixing::Recurrent { cell_clip, output_clip, skip, .. }) =
        (&spec.vocabulary, spec.mixing)
    else {
        return Map::new();
    };
    crate::model::object(&Config {
        lstm: Lstm {
            dim: spec.d_ff,
            projection_dim: spec.d_model,
            n_layers: spec.n_layers,
            use_skip_connections: skip == Skip::AfterFirst,
            cell_clip,
            proj_clip: output_clip,
        },
        char_cnn: CharCnn {
            activation: relu(),
            embedding: Width { dim: characters.d_character },
            filters: characters.filters.clone(),
            n_highway: characters.highways,
            n_characters: characters.alphabet,
            max_characters_per_token: characters.length,
        },
        n_tokens_vocab: spec.vocab_size,
        n_negative_samples_batch: match spec.softmax_sample {
            SoftmaxSample::Whole => None,
            SoftmaxSample::Drawn(n) => Some(n),
        },
        dropout: spec.dropout.residual,
        bidirectional: true,
        initializer_range: spec.init.std,
    })
}

fn names(task: Task, _: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    const SOFTMAX: [(&str, &str); 2] = [("lm_head.weight", "softmax.weight"), ("lm_head.bias", "softmax.bias")];
    let mut map = NameMap::new().base([
        ("embeddings.characters", "token_embedder.char_embedding.weight"),
        ("embeddings.filters.{i}.weight", "token_embedder.char_conv_{i}.weight"),
        ("embeddings.filters.{i}.bias", "token_embedder.char_conv_{i}.bias"),
        ("embeddings.highways.{i}.weight", "token_embedder.highways.{i}.weight"),
        ("embeddings.highways.{i}.bias", "token_embedder.highways.{i}.bias"),
        ("embeddings.projection.weight", "token_embedder.projection.weight"),
        ("embeddings.projection.bias", "token_embedder.projection.bias"),
        ("embeddings.spellings", "token_embedder.spellings"),
    ])?;
    for (scope, direction) in [("", "forward"), ("backward.", "backward")] {
        let own = |part: &str| format!("{scope}layers.{{i}}.{part}");
        let file = |part: &str| format!("elmo_lstm.{direction}_layer_{{i}}.{part}");
        for (a, b) in [
            ("input.weight", "input_linearity.weight"),
            ("input.bias", "state_linearity.bias"),
            ("recurrent.weight", "state_linearity.weight"),
            ("projection.weight", "state_projection.weight"),
        ] {
            map = map.base([(own(a).as_str(), file(b).as_str())])?;
        }
    }
    const MIX: [(&str, &str); 2] = [("mix.weights", "scalar_mix.weights"), ("mix.gamma", "scalar_mix.gamma")];
    map = if task == Task::BidirectionalLm { map.head(SOFTMAX)? } else { map.other_heads(SOFTMAX.map(|s| s.1))? };
    if task == Task::TokenClassification {
        return map.head(MIX)?.head(TAGGER);
    }
    map.other_heads(MIX.map(|m| m.1))?.other_heads(TAGGER.map(|t| t.1))
}
