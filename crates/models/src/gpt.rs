//! GPT (Radford et al. 2018, Improving Language Understanding by Generative Pre-Training).
//!
//! Ancestor: the Transformer's decoder half, without attention to an encoder. Differences: learned positions; GELU (tanh form);
//! 12 layers, width 768, context 512; a byte-pair vocabulary of 40,478 whose words end in `</w>`; one projection for queries,
//! keys and values. Norms stay behind each residual connection, and none follows the last layer.
//!
//! Deviations: none known.

use crate::config::{activation, activation_name, d_head, default, only};
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{
    Attend, Dropout, FeedForward, HeadBias, HeadSpec, HeadTransform, InitScheme, NormKind, Projections, ResidualInit,
    StackSpec, Tying,
};
use genus_ops::{Activation, Layout};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) static GPT: Family = Family {
    name: "gpt",
    model_type: "openai-gpt",
    paper: "Radford et al. 2018, Improving Language Understanding by Generative Pre-Training",
    ancestor: "transformer",
    differences: &[
        "the decoder alone: every token sees itself and those before it",
        "learned positions, context 512; GELU",
        "byte-pair vocabulary of 40,478; pretrained on the next token, then fine-tuned as a whole",
    ],
    deviations: &[],
    presets: &[Preset { name: "openai-gpt", spec: || published(12, 768, 12) }],
    tasks: &[
        (Task::CausalLm, "OpenAIGPTLMHeadModel"),
        (Task::SequenceClassification, "OpenAIGPTForSequenceClassification"),
        // Not the library's, which has GPT-2's alone.
        (Task::TokenClassification, "OpenAIGPTForTokenClassification"),
        (Task::Base, "OpenAIGPTModel"),
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
        vocab_size: 40_478,
        projections: Projections::Packed,
        layout: Layout::InOut,
        feed_forward: FeedForward::Dense(Activation::GeluTanh),
        ..crate::transformer::stack(n_layers, d_model, n_heads, Attend::Past)
    }
}

/// Hugging Face's `OpenAIGPTConfig`, as far as it decides what is computed. Its `"gelu"` is the tanh form.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    /// Not the library's: there the network is always four times as wide as the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n_inner: Option<usize>,
    #[serde(default = "default::gelu")]
    afn: String,
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
    tie_word_embeddings: bool,
}

pub(crate) fn read(file: &JsonFile) -> Result<StackSpec> {
    let c: Config = file.parse()?;
    only(file, "tie_word_embeddings", c.tie_word_embeddings, "true")?;
    let inner = match c.afn.as_str() {
        "gelu" => Activation::GeluTanh,
        "relu" | "silu" | "swish" => activation(file, "afn", &c.afn)?,
        _ => return Err(file.field_error("afn", "gelu, relu, silu or swish").into()),
    };
    Ok(StackSpec {
        d_head: d_head(file, "n_head", c.n_embd, c.n_head, "n_embd")?,
        d_ff: c.n_inner.unwrap_or(4 * c.n_embd),
        vocab_size: c.vocab_size,
        n_ctx: c.n_positions,
        norm: NormKind::Layer { eps: c.layer_norm_epsilon },
        feed_forward: FeedForward::Dense(inner),
        dropout: Dropout { embedding: c.embd_pdrop, attention: c.attn_pdrop, residual: c.resid_pdrop, inner: 0.0 },
        init: InitScheme { std: c.initializer_range, position_std: c.initializer_range, residual: ResidualInit::Plain },
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
        afn: match spec.feed_forward.activation() {
            Activation::GeluTanh => "gelu".into(),
            other => activation_name(other).into(),
        },
        resid_pdrop: spec.dropout.residual,
        embd_pdrop: spec.dropout.embedding,
        attn_pdrop: spec.dropout.attention,
        layer_norm_epsilon: eps,
        initializer_range: spec.init.std,
        tie_word_embeddings: spec.tying == Tying::Tied,
    };
    crate::model::object(&config)
}

fn names(task: Task, spec: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    let map = layers(NameMap::new().prefix("transformer."))?
        .base([("embeddings.tokens", "tokens_embed.weight"), ("embeddings.positions", "positions_embed.weight")])?
        .ignore(["position_ids"])?;
    heads(map, task, spec)
}

/// The names of a layer's tensors, which GPT's successors kept.
pub(crate) fn layers(map: NameMap) -> genus_checkpoint::Result<NameMap> {
    layers_of(map, "")?.ignore(["h.{i}.attn.bias", "h.{i}.attn.masked_bias"])
}

/// The same within `scope`, on either side.
pub(crate) fn layers_of(mut map: NameMap, scope: &str) -> genus_checkpoint::Result<NameMap> {
    for (own, file) in [
        ("attention.qkv.weight", "attn.c_attn.weight"),
        ("attention.qkv.bias", "attn.c_attn.bias"),
        ("attention.out.weight", "attn.c_proj.weight"),
        ("attention.out.bias", "attn.c_proj.bias"),
        ("attention_norm.weight", "ln_1.weight"),
        ("attention_norm.bias", "ln_1.bias"),
        ("feed_forward.up.weight", "mlp.c_fc.weight"),
        ("feed_forward.up.bias", "mlp.c_fc.bias"),
        ("feed_forward.down.weight", "mlp.c_proj.weight"),
        ("feed_forward.down.bias", "mlp.c_proj.bias"),
        ("feed_forward_norm.weight", "ln_2.weight"),
        ("feed_forward_norm.bias", "ln_2.bias"),
    ] {
        let (own, file) = (format!("{scope}layers.{{i}}.{own}"), format!("{scope}h.{{i}}.{file}"));
        map = map.base([(own.as_str(), file.as_str())])?;
    }
    Ok(map)
}

/// The names of the heads of GPT and its successors.
pub(crate) fn heads(map: NameMap, task: Task, spec: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    const SCORE: &str = "score.weight";
    // The classes of tokens have names of their own.
    let map = match task {
        Task::TokenClassification => map.head(crate::bert::TAGGER)?,
        _ => map.other_heads(crate::bert::TAGGER.map(|p| p.1))?,
    };
    let map = match (task, spec.tying) {
        (Task::Base, _) => map.write_bare().other_heads(["lm_head.weight", SCORE])?,
        (Task::SequenceClassification, _) => {
            map.head([("classifier.weight", SCORE)])?.other_heads(["lm_head.weight"])?
        }
        (Task::TokenClassification, _) => map.other_heads(["lm_head.weight", SCORE])?,
        (_, Tying::Tied) => map.tied("embeddings.tokens", "lm_head.weight")?.other_heads([SCORE])?,
        (_, Tying::Untied) => map.head([("lm_head.weight", "lm_head.weight")])?.other_heads([SCORE])?,
    };
    map.other_heads(["multiple_choice_head.summary.weight", "multiple_choice_head.summary.bias"])
}
