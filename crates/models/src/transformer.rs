//! The Transformer (Vaswani et al. 2017, arXiv 1706.03762), and what the stacks of its descendants begin as.
//!
//! Ancestor: recurrent encoder-decoders with attention (Bahdanau et al. 2014, arXiv 1409.0473). Differences: attention alone, in
//! several heads, instead of recurrence; positions as sines and cosines; one table for the tokens of both languages and for the
//! output, its rows times the root of the width where they are read. Pretraining is translation: the next token of the target,
//! given the source. Its form in Hugging Face's layout is Marian's (Junczys-Dowmunt et al. 2018, arXiv 1804.00344).
//!
//! Deviations: the projections of attention have biases, and logits a fixed one (0 at first), as Marian's; sines and cosines lie side
//! by side instead of alternating, as in the authors' code; matrices begin from a normal distribution of standard deviation 0.02.

use crate::config::{activation, activation_name, d_head, default, only};
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{
    Attend, AttentionBias, Bands, Directions, Dropout, EmbeddingNorm, EmbeddingScale, Encoder, FeedForward, FinalNorm,
    HeadBias, HeadSpec, HeadTransform, InitScheme, Memory, Mixing, NormKind, OutputDropout, Placement, Positions,
    Projections, Readout, ResidualInit, ScoreScale, Segments, SoftmaxSample, StackSpec, TokenWidth, Tying, Vocabulary,
};
use genus_ops::{Activation, Layout};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) static TRANSFORMER: Family = Family {
    name: "transformer",
    model_type: "marian",
    paper: "Vaswani et al. 2017, arXiv 1706.03762",
    ancestor: "attentive rnn",
    differences: &[
        "attention in several heads instead of recurrence, in encoder and decoder",
        "sines and cosines for positions; norms after each residual connection",
        "one table for source, target and output; trained on translation with smoothed labels",
    ],
    deviations: &["attention's projections have biases, and logits a fixed one, as in Marian (its form on disk)"],
    presets: &[
        Preset { name: "transformer-base", spec: || published(6, 512, 8, 0.1) },
        Preset { name: "transformer-big", spec: || published(6, 1024, 16, 0.3) },
        Preset { name: "opus-mt-en-de", spec: opus_mt },
    ],
    tasks: &[(Task::Seq2SeqLm, "MarianMTModel"), (Task::Base, "MarianModel")],
    head: HeadSpec { transform: HeadTransform::None, bias: HeadBias::Fixed },
    pooling: Pooling::None,
    classified: Classified::LastToken,
    classifier_dropout: CLASSIFIER_DROPOUT,
    read,
    write,
    names,
};

/// One half: heads of `d_model / n_heads`, a network four times as wide as the stream, norms after each residual connection,
/// dropout 0.1, the output tied to the token table. Positions are the descendants' learned ones.
pub(crate) fn stack(n_layers: usize, d_model: usize, n_heads: usize, attend: Attend) -> StackSpec {
    StackSpec {
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        d_head: d_model / n_heads,
        d_ff: 4 * d_model,
        vocab_size: 37_000,
        n_ctx: 512,
        vocabulary: Vocabulary::Whole,
        mixing: Mixing::Attention,
        directions: Directions::One,
        token_width: TokenWidth::Stream,
        positions: Positions::LEARNED,
        embedding_scale: EmbeddingScale::One,
        segments: Segments::None,
        embedding_norm: EmbeddingNorm::None,
        norm: NormKind::Layer { eps: 1e-5 },
        placement: Placement::Post,
        final_norm: FinalNorm::None,
        attend,
        encoder: Encoder::None,
        memory: Memory::None,
        bands: Bands::None,
        scores: ScoreScale::Root,
        projections: Projections::Separate,
        attention_bias: AttentionBias::All,
        layout: Layout::OutIn,
        feed_forward: FeedForward::Dense(Activation::Relu),
        tying: Tying::Tied,
        dropout: Dropout { embedding: 0.1, attention: 0.1, residual: 0.1, inner: 0.0 },
        softmax_sample: SoftmaxSample::Whole,
        readout: Readout::Last,
        output_dropout: OutputDropout::None,
        init: InitScheme { std: 0.02, position_std: 0.02, residual: ResidualInit::Plain },
    }
}

/// Both halves, as many layers in each.
fn published(n_layers: usize, d_model: usize, n_heads: usize, dropout: f32) -> StackSpec {
    StackSpec {
        positions: Positions::Sinusoidal,
        embedding_scale: EmbeddingScale::Root,
        encoder: Encoder::Layers { n_layers, n_heads, d_ff: 4 * d_model },
        // The paper drops sublayers' outputs and sums of embeddings (section 5.4), not attention's weights.
        dropout: Dropout { embedding: dropout, attention: 0.0, residual: dropout, inner: 0.0 },
        ..stack(n_layers, d_model, n_heads, Attend::Past)
    }
}

/// The translation models of Tiedemann and Thottingal 2020 (OPUS-MT), of which most have this size; this one's vocabulary.
fn opus_mt() -> StackSpec {
    StackSpec { vocab_size: 58_101, feed_forward: FeedForward::Dense(Activation::Silu), ..published(6, 512, 8, 0.1) }
}

/// Hugging Face's `MarianConfig`, as far as it decides what is computed.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    vocab_size: usize,
    #[serde(default)]
    decoder_vocab_size: Option<usize>,
    max_position_embeddings: usize,
    d_model: usize,
    encoder_layers: usize,
    encoder_ffn_dim: usize,
    encoder_attention_heads: usize,
    decoder_layers: usize,
    decoder_ffn_dim: usize,
    decoder_attention_heads: usize,
    #[serde(default = "default::gelu")]
    activation_function: String,
    #[serde(default = "default::tenth")]
    dropout: f32,
    #[serde(default)]
    attention_dropout: f32,
    #[serde(default)]
    activation_dropout: f32,
    #[serde(default)]
    encoder_layerdrop: f32,
    #[serde(default)]
    decoder_layerdrop: f32,
    #[serde(default = "default::std_dev")]
    init_std: f64,
    #[serde(default)]
    scale_embedding: bool,
    #[serde(default = "default::yes")]
    share_encoder_decoder_embeddings: bool,
    #[serde(default = "default::yes")]
    tie_word_embeddings: bool,
    #[serde(default = "default::yes")]
    is_encoder_decoder: bool,
}

fn read(file: &JsonFile) -> Result<StackSpec> {
    let c: Config = file.parse()?;
    only(file, "tie_word_embeddings", c.tie_word_embeddings, "true")?;
    only(file, "share_encoder_decoder_embeddings", c.share_encoder_decoder_embeddings, "true")?;
    only(file, "is_encoder_decoder", c.is_encoder_decoder, "true")?;
    let decoder_vocab_size = c.decoder_vocab_size.unwrap_or(c.vocab_size);
    let expected = format!("vocab_size = {}", c.vocab_size);
    only(file, "decoder_vocab_size", decoder_vocab_size == c.vocab_size, &expected)?;
    for (field, p) in [
        ("activation_dropout", c.activation_dropout),
        ("encoder_layerdrop", c.encoder_layerdrop),
        ("decoder_layerdrop", c.decoder_layerdrop),
    ] {
        only(file, field, p == 0.0, "0")?;
    }
    d_head(file, "encoder_attention_heads", c.d_model, c.encoder_attention_heads, "d_model")?;
    let scale = if c.scale_embedding { EmbeddingScale::Root } else { EmbeddingScale::One };
    Ok(StackSpec {
        d_head: d_head(file, "decoder_attention_heads", c.d_model, c.decoder_attention_heads, "d_model")?,
        d_ff: c.decoder_ffn_dim,
        vocab_size: c.vocab_size,
        n_ctx: c.max_position_embeddings,
        embedding_scale: scale,
        encoder: Encoder::Layers {
            n_layers: c.encoder_layers,
            n_heads: c.encoder_attention_heads,
            d_ff: c.encoder_ffn_dim,
        },
        feed_forward: FeedForward::Dense(activation(file, "activation_function", &c.activation_function)?),
        dropout: Dropout { embedding: c.dropout, attention: c.attention_dropout, residual: c.dropout, inner: 0.0 },
        init: InitScheme { std: c.init_std, position_std: c.init_std, residual: ResidualInit::Plain },
        ..published(c.decoder_layers, c.d_model, c.decoder_attention_heads, c.dropout)
    })
}

fn write(spec: &StackSpec) -> Map<String, Value> {
    let (encoder_layers, encoder_attention_heads, encoder_ffn_dim) = match spec.encoder {
        Encoder::Layers { n_layers, n_heads, d_ff } => (n_layers, n_heads, d_ff),
        Encoder::None => (0, 0, 0),
    };
    let config = Config {
        vocab_size: spec.vocab_size,
        decoder_vocab_size: Some(spec.vocab_size),
        max_position_embeddings: spec.n_ctx,
        d_model: spec.d_model,
        encoder_layers,
        encoder_ffn_dim,
        encoder_attention_heads,
        decoder_layers: spec.n_layers,
        decoder_ffn_dim: spec.d_ff,
        decoder_attention_heads: spec.n_heads,
        activation_function: activation_name(spec.feed_forward.activation()).into(),
        dropout: spec.dropout.residual,
        attention_dropout: spec.dropout.attention,
        activation_dropout: 0.0,
        encoder_layerdrop: 0.0,
        decoder_layerdrop: 0.0,
        init_std: spec.init.std,
        scale_embedding: spec.embedding_scale == EmbeddingScale::Root,
        share_encoder_decoder_embeddings: true,
        tie_word_embeddings: spec.tying == Tying::Tied,
        is_encoder_decoder: true,
    };
    crate::model::object(&config)
}

fn names(task: Task, _: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    let mut map = NameMap::new()
        .prefix("model.")
        .base([("embeddings.tokens", "shared.weight")])?
        .tied("embeddings.tokens", "encoder.embed_tokens.weight")?
        .tied("embeddings.tokens", "decoder.embed_tokens.weight")?
        .ignore(["encoder.embed_positions.weight", "decoder.embed_positions.weight"])?;
    let parts = [
        ("attention.query", "self_attn.q_proj"),
        ("attention.key", "self_attn.k_proj"),
        ("attention.value", "self_attn.v_proj"),
        ("attention.out", "self_attn.out_proj"),
        ("attention_norm", "self_attn_layer_norm"),
        ("feed_forward.up", "fc1"),
        ("feed_forward.down", "fc2"),
        ("feed_forward_norm", "final_layer_norm"),
    ];
    let cross = [
        ("cross_attention.query", "encoder_attn.q_proj"),
        ("cross_attention.key", "encoder_attn.k_proj"),
        ("cross_attention.value", "encoder_attn.v_proj"),
        ("cross_attention.out", "encoder_attn.out_proj"),
        ("cross_attention_norm", "encoder_attn_layer_norm"),
    ];
    for (own, side, parts) in [("", "decoder", &parts[..]), ("", "decoder", &cross), ("encoder.", "encoder", &parts)] {
        for (name, file) in parts {
            for kind in ["weight", "bias"] {
                let name = format!("{own}layers.{{i}}.{name}.{kind}");
                let file = format!("{side}.layers.{{i}}.{file}.{kind}");
                map = map.base([(name.as_str(), file.as_str())])?;
            }
        }
    }
    match task {
        Task::Base => map.write_bare().other_heads(["lm_head.weight", "final_logits_bias"]),
        _ => map.tied("embeddings.tokens", "lm_head.weight")?.head([("lm_head.bias", "final_logits_bias")]),
    }
}
