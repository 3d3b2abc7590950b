//! GPT-2 (Radford et al. 2019, Language Models are Unsupervised Multitask Learners).
//!
//! Ancestor: GPT. Differences: the norm moves before each sublayer and one follows the last layer; context 1024; a byte-level
//! BPE vocabulary of 50,257; projections into the residual stream begin smaller by `1 / sqrt(2 n_layers)`.
//!
//! Deviations: none known. The paper gives `1 / sqrt(N)` "where N is the number of residual layers"; each of the layers has
//! two, as in the published code of its successors. Positions begin with a standard deviation of 0.01, as in the released code.

use crate::registry::{Classified, Family, Pooling, Preset};
use crate::{Error, Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{
    Attend, Dropout, EmbeddingNorm, FeedForward, FinalNorm, HeadBias, HeadSpec, HeadTransform, InitScheme, NormKind,
    Placement, Positions, Projections, ResidualInit, Segments, StackSpec, Tying,
};
use genus_ops::{Activation, Layout};
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
        (Task::Base, "GPT2Model"),
    ],
    head: HeadSpec { transform: HeadTransform::None, bias: HeadBias::None },
    pooling: Pooling::None,
    classified: Classified::LastToken,
    read,
    write,
    names,
};

fn published(n_layers: usize, d_model: usize, n_heads: usize) -> StackSpec {
    StackSpec {
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        d_head: d_model / n_heads,
        d_ff: 4 * d_model,
        vocab_size: 50_257,
        n_ctx: 1024,
        positions: Positions::Learned,
        segments: Segments::None,
        embedding_norm: EmbeddingNorm::None,
        norm: NormKind::Layer { eps: 1e-5 },
        placement: Placement::Pre,
        final_norm: FinalNorm::Norm,
        attend: Attend::Past,
        projections: Projections::Packed,
        layout: Layout::InOut,
        feed_forward: FeedForward::Dense(Activation::GeluTanh),
        tying: Tying::Tied,
        dropout: Dropout { embedding: 0.1, attention: 0.1, residual: 0.1 },
        init: InitScheme { std: 0.02, position_std: 0.01, residual: ResidualInit::ByDepth },
    }
}

/// Hugging Face's `GPT2Config`, as far as it decides what is computed.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    #[serde(default)]
    n_inner: Option<usize>,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default = "tenth")]
    resid_pdrop: f32,
    #[serde(default = "tenth")]
    embd_pdrop: f32,
    #[serde(default = "tenth")]
    attn_pdrop: f32,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "std_dev")]
    initializer_range: f64,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default)]
    add_cross_attention: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
}

fn gelu_new() -> String {
    "gelu_new".into()
}
fn tenth() -> f32 {
    0.1
}
fn epsilon() -> f64 {
    1e-5
}
fn std_dev() -> f64 {
    0.02
}
fn yes() -> bool {
    true
}

/// Hugging Face's names of activations.
pub(crate) fn activation(file: &JsonFile, field: &str, name: &str) -> Result<Activation> {
    Ok(match name {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "gelu" => Activation::GeluErf,
        "relu" => Activation::Relu,
        "tanh" => Activation::Tanh,
        "silu" | "swish" => Activation::Silu,
        _ => return Err(file.field_error(field, "gelu_new, gelu_pytorch_tanh, gelu, relu, tanh or silu").into()),
    })
}

pub(crate) fn activation_name(a: Activation) -> &'static str {
    match a {
        Activation::GeluTanh => "gelu_new",
        Activation::GeluErf => "gelu",
        Activation::Relu => "relu",
        Activation::Tanh => "tanh",
        Activation::Silu => "silu",
        Activation::Identity => "linear",
    }
}

/// The width of a head, or an error that names the field.
pub(crate) fn d_head(file: &JsonFile, field: &str, d_model: usize, n_heads: usize, width_field: &str) -> Result<usize> {
    if n_heads == 0 || d_model == 0 || !d_model.is_multiple_of(n_heads) {
        return Err(file.field_error(field, format!("a positive divisor of {width_field} = {d_model}")).into());
    }
    Ok(d_model / n_heads)
}

/// Checks that a field has its only supported value.
pub(crate) fn only(file: &JsonFile, field: &str, ok: bool, expected: &str) -> Result<()> {
    if ok {
        Ok(())
    } else {
        Err(Error::Checkpoint(file.field_error(field, format!("{expected} (no other value is supported)"))))
    }
}

fn read(file: &JsonFile) -> Result<StackSpec> {
    let c: Config = file.parse()?;
    only(file, "scale_attn_weights", c.scale_attn_weights, "true")?;
    only(file, "scale_attn_by_inverse_layer_idx", !c.scale_attn_by_inverse_layer_idx, "false")?;
    only(file, "add_cross_attention", !c.add_cross_attention, "false")?;
    Ok(StackSpec {
        d_head: d_head(file, "n_head", c.n_embd, c.n_head, "n_embd")?,
        d_ff: c.n_inner.unwrap_or(4 * c.n_embd),
        vocab_size: c.vocab_size,
        n_ctx: c.n_positions,
        norm: NormKind::Layer { eps: c.layer_norm_epsilon },
        feed_forward: FeedForward::Dense(activation(file, "activation_function", &c.activation_function)?),
        tying: if c.tie_word_embeddings { Tying::Tied } else { Tying::Untied },
        dropout: Dropout { embedding: c.embd_pdrop, attention: c.attn_pdrop, residual: c.resid_pdrop },
        init: InitScheme {
            std: c.initializer_range,
            position_std: c.initializer_range / 2.0,
            residual: ResidualInit::ByDepth,
        },
        ..published(c.n_layer, c.n_embd, c.n_head)
    })
}

fn write(spec: &StackSpec) -> Map<String, Value> {
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

fn names(task: Task, spec: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    const SCORE: &str = "score.weight";
    let mut map = NameMap::new()
        .prefix("transformer.")
        .base([
            ("embeddings.tokens", "wte.weight"),
            ("embeddings.positions", "wpe.weight"),
            ("layers.{i}.attention.qkv.weight", "h.{i}.attn.c_attn.weight"),
            ("layers.{i}.attention.qkv.bias", "h.{i}.attn.c_attn.bias"),
            ("layers.{i}.attention.out.weight", "h.{i}.attn.c_proj.weight"),
            ("layers.{i}.attention.out.bias", "h.{i}.attn.c_proj.bias"),
            ("layers.{i}.attention_norm.weight", "h.{i}.ln_1.weight"),
            ("layers.{i}.attention_norm.bias", "h.{i}.ln_1.bias"),
            ("layers.{i}.feed_forward.up.weight", "h.{i}.mlp.c_fc.weight"),
            ("layers.{i}.feed_forward.up.bias", "h.{i}.mlp.c_fc.bias"),
            ("layers.{i}.feed_forward.down.weight", "h.{i}.mlp.c_proj.weight"),
            ("layers.{i}.feed_forward.down.bias", "h.{i}.mlp.c_proj.bias"),
            ("layers.{i}.feed_forward_norm.weight", "h.{i}.ln_2.weight"),
            ("layers.{i}.feed_forward_norm.bias", "h.{i}.ln_2.bias"),
            ("final_norm.weight", "ln_f.weight"),
            ("final_norm.bias", "ln_f.bias"),
        ])?
        .ignore(["h.{i}.attn.bias", "h.{i}.attn.masked_bias"])?;
    map = match (task, spec.tying) {
        (Task::Base, _) => map.write_bare().other_heads(["lm_head.weight", SCORE])?,
        (Task::SequenceClassification, _) => {
            map.head([("classifier.weight", SCORE)])?.other_heads(["lm_head.weight"])?
        }
        (_, Tying::Tied) => map.tied("embeddings.tokens", "lm_head.weight")?.other_heads([SCORE])?,
        (_, Tying::Untied) => map.head([("lm_head.weight", "lm_head.weight")])?.other_heads([SCORE])?,
    };
    map.other_heads(["multiple_choice_head.summary.weight", "multiple_choice_head.summary.bias"])
}
