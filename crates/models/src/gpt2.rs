//! GPT-2 (Radford et al. 2019, Language Models are Unsupervised Multitask Learners).
//!
//! Ancestor: GPT. Differences: the norm moves before each sublayer and one follows the last layer; context 1024; a byte-level
//! BPE vocabulary of 50,257; projections into the residual stream begin smaller by `1 / sqrt(2 n_layers)`.
//!
//! Deviations: none known. The paper gives `1 / sqrt(N)` "where N is the number of residual layers"; each of the layers has
//! two, as in the published code of its successors. Positions begin with a standard deviation of 0.01, as in the released code.

use crate::config::{activation, activation_name, d_head, default, only};
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{
    Dropout, FeedForward, FinalNorm, HeadBias, HeadSpec, HeadTransform, InitScheme, NormKind, Placement, ResidualInit,
    StackSpec, Tying,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) static GPT2: Family = Family {
    name: "gpt2",
    model_type: "gpt2",
    paper: "Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
    ancestor: "gpt",
    differences: &[
        "norms before each sublayer (pre-norm) and one after the last layer",
        "context 1024, byte-level BPE vocabulary of 50,257",
        "residual projections begin scaled by 1/sqrt(2 n_layers)",
    ],
    deviations: &[],
    presets: &[
        Preset { name: "gpt2", spec: || published(12, 768, 12) },
        Preset { name: "gpt2-medium", spec: || published(24, 1024, 16) },
        Preset { name: "gpt2-large", spec: || published(36, 1280, 20) },
        Preset { name: "gpt2-xl", spec: || published(48, 1600, 25) },
    ],
    tasks: &[
        (Task::CausalLm, "GPT2LMHeadModel"),
        (Task::SequenceClassification, "GPT2ForSequenceClassification"),
        (Task::TokenClassification, "GPT2ForTokenClassification"),
        (Task::Base, "GPT2Model"),
    ],
    head: HeadSpec { transform: HeadTransform::None, bias: HeadBias::None },
    pooling: Pooling::None,
    classified: Classified::LastToken,
    classifier_dropout: CLASSIFIER_DROPOUT,
    read,
    write,
    names,
};

pub(crate) fn published(n_layers: usize, d_model: usize, n_heads: usize) -> StackSpec {
    StackSpec {
        vocab_size: 50_257,
        n_ctx: 1024,
        placement: Placement::Pre,
        final_norm: FinalNorm::Norm,
        init: InitScheme { std: 0.02, position_std: 0.01, residual: ResidualInit::ByDepth },
        ..crate::gpt::published(n_layers, d_model, n_heads)
    }
}

/// Hugging Face's `GPT2Config`, as far as it decides what is computed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    #[serde(default)]
    n_inner: Option<usize>,
    #[serde(default = "default::gelu_new")]
    activation_function: String,
    #[serde(default = "default::tenth")]
    resid_pdrop: f32,
    #[serde(default = "default::tenth")]
    embd_pdrop: f32,
    #[serde(default = "default::tenth")]
    attn_pdrop: f32,
    #[serde(default = "default::epsilon_5")]
    layer_norm_epsilon: f64,
    #[serde(default = "default::std_dev")]
    initializer_range: f64,
    #[serde(default = "default::yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default)]
    add_cross_attention: bool,
    #[serde(default = "default::yes")]
    tie_word_embeddings: bool,
}

fn read(file: &JsonFile) -> Result<StackSpec> {
    parse(file, |c| d_head(file, "n_head", c.n_embd, c.n_head, "n_embd"))
}

/// Reads the configuration, with heads as wide as `width` says.
pub(crate) fn parse(file: &JsonFile, width: impl FnOnce(&Config) -> Result<usize>) -> Result<StackSpec> {
    let c: Config = file.parse()?;
    only(file, "scale_attn_weights", c.scale_attn_weights, "true")?;
    only(file, "scale_attn_by_inverse_layer_idx", !c.scale_attn_by_inverse_layer_idx, "false")?;
    only(file, "add_cross_attention", !c.add_cross_attention, "false")?;
    Ok(StackSpec {
        d_head: width(&c)?,
        d_ff: c.n_inner.unwrap_or(4 * c.n_embd),
        vocab_size: c.vocab_size,
        n_ctx: c.n_positions,
        norm: NormKind::Layer { eps: c.layer_norm_epsilon },
        feed_forward: FeedForward::Dense(activation(file, "activation_function", &c.activation_function)?),
        tying: if c.tie_word_embeddings { Tying::Tied } else { Tying::Untied },
        dropout: Dropout { embedding: c.embd_pdrop, attention: c.attn_pdrop, residual: c.resid_pdrop, inner: 0.0 },
        init: InitScheme {
            std: c.initializer_range,
            position_std: c.initializer_range / 2.0,
            residual: ResidualInit::ByDepth,
        },
        ..published(c.n_layer, c.n_embd, c.n_head)
    })
}

pub(crate) fn write(spec: &StackSpec) -> Map<String, Value> {
    let NormKind::Layer { eps } = spec.norm;
    let config = Config {
        vocab_size: spec.vocab_size,
        n_positions: spec.n_ctx,
        n_embd: spec.d_model,
        n_layer: spec.n_layers,
        n_head: spec.n_heads,
        n_inner: (spec.d_ff != 4 * spec.d_model).then_some(spec.d_ff),
        activation_function: activation_name(spec.feed_forward.activation()).into(),
        resid_pdrop: spec.dropout.residual,
        embd_pdrop: spec.dropout.embedding,
        attn_pdrop: spec.dropout.attention,
        layer_norm_epsilon: eps,
        initializer_range: spec.init.std,
        scale_attn_weights: true,
        scale_attn_by_inverse_layer_idx: false,
        add_cross_attention: false,
        tie_word_embeddings: spec.tying == Tying::Tied,
    };
    crate::model::object(&config)
}

pub(crate) fn names(task: Task, spec: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    let map = crate::gpt::layers(NameMap::new().prefix("transformer."))?.base([
        ("embeddings.tokens", "wte.weight"),
        ("embeddings.positions", "wpe.weight"),
        ("final_norm.weight", "ln_f.weight"),
        ("final_norm.bias", "ln_f.bias"),
    ])?;
    crate::gpt::heads(map, task, spec)
}
