//! GPT-Neo (Black et al. 2021, GPT-Neo: Large Scale Autoregressive Language Modeling with Mesh-Tensorflow).
//!
//! Ancestor: GPT-3, whose alternating attention it published in open form. Differences: scores are not divided by the square
//! root of the heads' width; queries, keys and values have matrices of their own, without biases; no layer's beginning is scaled.
//!
//! Deviations: none known.

use crate::config::{activation, activation_name, d_head, default, only};
use crate::gpt3;
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{
    AttentionBias, Dropout, FeedForward, HeadBias, HeadSpec, HeadTransform, InitScheme, NormKind, Projections,
    ResidualInit, ScoreScale, StackSpec, Tying,
};
use genus_ops::Layout;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) static GPT_NEO: Family = Family {
    name: "gpt-neo",
    model_type: "gpt_neo",
    paper: "Black et al. 2021, doi 10.5281/zenodo.5297715",
    ancestor: "gpt3",
    differences: &[
        "scores are not divided by the square root of the heads' width",
        "queries, keys and values by three matrices without biases",
    ],
    deviations: &[],
    presets: &[
        Preset { name: "gpt-neo-125m", spec: || published(12, 768, 12) },
        Preset { name: "gpt-neo-1.3B", spec: || published(24, 2048, 16) },
        Preset { name: "gpt-neo-2.7B", spec: || published(32, 2560, 20) },
    ],
    tasks: &[
        (Task::CausalLm, "GPTNeoForCausalLM"),
        (Task::SequenceClassification, "GPTNeoForSequenceClassification"),
        (Task::Base, "GPTNeoModel"),
    ],
    head: HeadSpec { transform: HeadTransform::None, bias: HeadBias::None },
    pooling: Pooling::None,
    classified: Classified::LastToken,
    classifier_dropout: CLASSIFIER_DROPOUT,
    read,
    write,
    names,
};

fn published(n_layers: usize, d_model: usize, n_heads: usize) -> StackSpec {
    StackSpec {
        scores: ScoreScale::One,
        projections: Projections::Separate,
        attention_bias: AttentionBias::Output,
        layout: Layout::OutIn,
        dropout: Dropout { embedding: 0.0, attention: 0.0, residual: 0.0, inner: 0.0 },
        init: InitScheme { std: 0.02, position_std: 0.02, residual: ResidualInit::Plain },
        ..gpt3::published(n_layers, d_model, n_heads, d_model / n_heads)
    }
}

/// Hugging Face's `GPTNeoConfig`, as far as it decides what is computed.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    #[serde(default)]
    intermediate_size: Option<usize>,
    #[serde(default = "default::window")]
    window_size: usize,
    /// Lists of kinds of layers, each with how often it repeats.
    #[serde(default)]
    attention_types: Option<Vec<(Vec<String>, usize)>>,
    #[serde(default = "default::gelu_new")]
    activation_function: String,
    #[serde(default)]
    resid_dropout: f32,
    #[serde(default)]
    embed_dropout: f32,
    #[serde(default)]
    attention_dropout: f32,
    #[serde(default = "default::epsilon_5")]
    layer_norm_epsilon: f64,
    #[serde(default = "default::std_dev")]
    initializer_range: f64,
    #[serde(default = "default::yes")]
    tie_word_embeddings: bool,
}

fn read(file: &JsonFile) -> Result<StackSpec> {
    let c: Config = file.parse()?;
    only(file, "tie_word_embeddings", c.tie_word_embeddings, "true")?;
    let given = c.attention_types.unwrap_or_else(|| vec![(vec!["global".into(), "local".into()], c.num_layers / 2)]);
    let layers: Vec<String> =
        given.iter().flat_map(|(kinds, times)| kinds.iter().cycle().take(kinds.len() * times).cloned()).collect();
    if layers.len() != c.num_layers {
        let expected = format!("a kind for each of num_layers = {} layers (found {})", c.num_layers, layers.len());
        return Err(file.field_error("attention_types", expected).into());
    }
    Ok(StackSpec {
        d_head: d_head(file, "num_heads", c.hidden_size, c.num_heads, "hidden_size")?,
        d_ff: c.intermediate_size.unwrap_or(4 * c.hidden_size),
        vocab_size: c.vocab_size,
        n_ctx: c.max_position_embeddings,
        bands: gpt3::bands(file, &layers, c.window_size)?,
        norm: NormKind::Layer { eps: c.layer_norm_epsilon },
        feed_forward: FeedForward::Dense(activation(file, "activation_function", &c.activation_function)?),
        dropout: Dropout {
            embedding: c.embed_dropout,
            attention: c.attention_dropout,
            residual: c.resid_dropout,
            inner: 0.0,
        },
        init: InitScheme { std: c.initializer_range, position_std: c.initializer_range, residual: ResidualInit::Plain },
        ..published(c.num_layers, c.hidden_size, c.num_heads)
    })
}

fn write(spec: &StackSpec) -> Map<String, Value> {
    let NormKind::Layer { eps } = spec.norm;
    let (window_size, layers) = gpt3::band_fields(spec);
    let config = Config {
        vocab_size: spec.vocab_size,
        max_position_embeddings: spec.n_ctx,
        hidden_size: spec.d_model,
        num_layers: spec.n_layers,
        num_heads: spec.n_heads,
        intermediate_size: (spec.d_ff != 4 * spec.d_model).then_some(spec.d_ff),
        window_size,
        attention_types: Some(vec![(layers.clone(), 1)]),
        activation_function: activation_name(spec.feed_forward.activation()).into(),
        resid_dropout: spec.dropout.residual,
        embed_dropout: spec.dropout.embedding,
        attention_dropout: spec.dropout.attention,
        layer_norm_epsilon: eps,
        initializer_range: spec.init.std,
        tie_word_embeddings: spec.tying == Tying::Tied,
    };
    let mut config = crate::model::object(&config);
    config.insert("attention_layers".into(), layers.into());
    config
}

fn names(task: Task, spec: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    let map = NameMap::new()
        .prefix("transformer.")
        .base([
            ("embeddings.tokens", "wte.weight"),
            ("embeddings.positions", "wpe.weight"),
            ("layers.{i}.attention.query.weight", "h.{i}.attn.attention.q_proj.weight"),
            ("layers.{i}.attention.key.weight", "h.{i}.attn.attention.k_proj.weight"),
            ("layers.{i}.attention.value.weight", "h.{i}.attn.attention.v_proj.weight"),
            ("layers.{i}.attention.out.weight", "h.{i}.attn.attention.out_proj.weight"),
            ("layers.{i}.attention.out.bias", "h.{i}.attn.attention.out_proj.bias"),
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
        .ignore(["h.{i}.attn.attention.bias", "h.{i}.attn.attention.masked_bias"])?;
    crate::gpt::heads(map, task, spec)
}
