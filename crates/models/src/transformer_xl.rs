//! Transformer-XL (Dai et al. 2019, arXiv 1901.02860).
//!
//! Ancestor: GPT. Differences: a segment attends to the layers' inputs for the segments before it, which are kept and through which
//! no gradient flows; scores depend on distances (a map of each layer's own, and two vectors a head) instead of positions that are
//! added; projections of attention have no bias; rarer tokens may have narrower tables, and the output predicts a frequent token or
//! a group of rarer ones first.
//!
//! Deviations: before the first segment the memory is one of zeros, as in Hugging Face's code; the authors' begins with none. Maps of
//! token tables begin with the standard deviation of all others (0.02), not half of it.

use crate::config::{default, only};
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{
    Attend, AttentionBias, Bands, Dropout, EmbeddingScale, FeedForward, HeadBias, HeadSpec, HeadTransform, InitScheme,
    Memory, NormKind, OutputDropout, Placement, Positions, Projections, ResidualInit, StackSpec, Vocabulary,
};
use genus_ops::Activation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) static TRANSFORMER_XL: Family = Family {
    name: "transformer-xl",
    model_type: "transfo-xl",
    paper: "Dai et al. 2019, arXiv 1901.02860",
    ancestor: "gpt",
    differences: &[
        "segments attend to the layers' inputs of those before them",
        "distances in the scores instead of positions in the embeddings; no biases in attention",
        "narrower tables for rarer tokens, and an output in two steps",
    ],
    deviations: &["the memory begins as zeros, as in Hugging Face's code; the authors' begins empty"],
    presets: &[
        Preset { name: "transfo-xl-enwik8-base", spec: || published([12, 512, 8, 64, 2048], 512, 0.1, 0.0) },
        Preset { name: "transfo-xl-enwik8-large", spec: || published([24, 1024, 8, 128, 3072], 768, 0.15, 0.15) },
        Preset { name: "transfo-xl-wt103-base", spec: || wt103([16, 410, 10, 41, 2100], 150, 1, 0.1) },
        Preset { name: "transfo-xl-wt103", spec: || wt103([18, 1024, 16, 64, 4096], 384, 4, 0.2) },
    ],
    tasks: &[(Task::CausalLm, "TransfoXLLMHeadModel"), (Task::Base, "TransfoXLModel")],
    head: HeadSpec { transform: HeadTransform::None, bias: HeadBias::PerToken },
    pooling: Pooling::None,
    classified: Classified::LastToken,
    classifier_dropout: CLASSIFIER_DROPOUT,
    read,
    write,
    names,
};

/// The sizes of character models, whose vocabulary is enwik8's 204 bytes: one table, one pair of vectors a head for all layers.
fn published(
    [n_layers, d_model, n_heads, d_head, d_ff]: [usize; 5],
    memory: usize,
    dropout: f32,
    attention: f32,
) -> StackSpec {
    StackSpec {
        n_layers,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_ff,
        vocab_size: 204,
        n_ctx: u32::MAX as usize,
        vocabulary: adaptive(&[], 1, d_model),
        positions: Positions::Relative { clamp: 0, shared: true },
        embedding_scale: EmbeddingScale::Root,
        memory: Memory::Carried { length: memory },
        projections: Projections::Packed,
        attention_bias: AttentionBias::None,
        feed_forward: FeedForward::Dense(Activation::Relu),
        dropout: Dropout { embedding: dropout, attention, residual: dropout, inner: dropout },
        output_dropout: OutputDropout::Residual,
        ..crate::transformer::stack(n_layers, d_model, n_heads, Attend::Past)
    }
}

/// The sizes of word models, whose vocabulary is WikiText-103's.
fn wt103(size: [usize; 5], memory: usize, divisor: usize, dropout: f32) -> StackSpec {
    StackSpec {
        vocab_size: 267_735,
        vocabulary: adaptive(&[20_000, 40_000, 200_000], divisor, size[1]),
        positions: Positions::Relative { clamp: 0, shared: false },
        ..published(size, memory, dropout, if dropout > 0.1 { dropout } else { 0.0 })
    }
}

fn adaptive(cutoffs: &[usize], divisor: usize, d_embedding: usize) -> Vocabulary {
    Vocabulary::Adaptive { cutoffs: cutoffs.to_vec(), divisor, d_embedding, shared_maps: true }
}

/// Hugging Face's `TransfoXLConfig`, as far as it decides what is computed.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    vocab_size: usize,
    #[serde(default)]
    cutoffs: Vec<usize>,
    d_model: usize,
    d_embed: usize,
    n_head: usize,
    d_head: usize,
    d_inner: usize,
    #[serde(default = "default::one")]
    div_val: usize,
    #[serde(default)]
    pre_lnorm: bool,
    n_layer: usize,
    mem_len: usize,
    /// Below 1: no limit.
    #[serde(default)]
    clamp_len: i64,
    #[serde(default)]
    same_length: bool,
    #[serde(default = "default::yes")]
    proj_share_all_but_first: bool,
    /// Older files say it for each group.
    #[serde(default, skip_serializing)]
    tie_projs: Option<Vec<bool>>,
    #[serde(default)]
    attn_type: i64,
    #[serde(default = "none")]
    sample_softmax: i64,
    #[serde(default = "default::tenth")]
    dropout: f32,
    #[serde(default)]
    dropatt: f32,
    #[serde(default = "default::yes")]
    untie_r: bool,
    #[serde(default = "default::std_dev")]
    init_std: f64,
    #[serde(default = "default::epsilon_5")]
    layer_norm_epsilon: f64,
    #[serde(default = "default::yes")]
    tie_word_embeddings: bool,
}

fn none() -> i64 {
    -1
}

fn read(file: &JsonFile) -> Result<StackSpec> {
    let c: Config = file.parse()?;
    only(file, "tie_word_embeddings", c.tie_word_embeddings, "true")?;
    only(file, "attn_type", c.attn_type == 0, "0")?;
    only(file, "sample_softmax", c.sample_softmax <= 0, "-1")?;
    only(file, "mem_len", !c.same_length || c.mem_len > 0, "a positive number of tokens, since same_length is true")?;
    let shared_maps = match &c.tie_projs {
        None => c.proj_share_all_but_first,
        Some(each) => {
            let rest = each.get(1..).unwrap_or_default();
            let alike = each.first().is_none_or(|first| !first) && rest.windows(2).all(|w| w[0] == w[1]);
            only(file, "tie_projs", alike, "false, then the same for all groups")?;
            rest.first().copied().unwrap_or(c.proj_share_all_but_first)
        }
    };
    Ok(StackSpec {
        vocab_size: c.vocab_size,
        vocabulary: Vocabulary::Adaptive {
            cutoffs: c.cutoffs,
            divisor: c.div_val,
            d_embedding: c.d_embed,
            shared_maps,
        },
        positions: Positions::Relative { clamp: usize::try_from(c.clamp_len).unwrap_or(0), shared: !c.untie_r },
        norm: NormKind::Layer { eps: c.layer_norm_epsilon },
        placement: if c.pre_lnorm { Placement::Pre } else { Placement::Post },
        bands: match c.same_length {
            true => Bands::Local { window: c.mem_len, pattern: vec![true] },
            false => Bands::None,
        },
        init: InitScheme { std: c.init_std, position_std: c.init_std, residual: ResidualInit::Plain },
        ..published([c.n_layer, c.d_model, c.n_head, c.d_head, c.d_inner], c.mem_len, c.dropout, c.dropatt)
    })
}

fn write(spec: &StackSpec) -> Map<String, Value> {
    let NormKind::Layer { eps } = spec.norm;
    let (cutoffs, div_val, d_embed, proj_share_all_but_first) = match &spec.vocabulary {
        Vocabulary::Adaptive { cutoffs, divisor, d_embedding, shared_maps } => {
            (cutoffs.clone(), *divisor, *d_embedding, *shared_maps)
        }
        Vocabulary::Whole | Vocabulary::Characters(_) => (Vec::new(), 1, spec.d_model, true),
    };
    let (clamp, shared) = match spec.positions {
        Positions::Relative { clamp, shared } => (clamp, shared),
        _ => (0, false),
    };
    let config = Config {
        vocab_size: spec.vocab_size,
        cutoffs,
        d_model: spec.d_model,
        d_embed,
        n_head: spec.n_heads,
        d_head: spec.d_head,
        d_inner: spec.d_ff,
        div_val,
        pre_lnorm: spec.placement == Placement::Pre,
        n_layer: spec.n_layers,
        mem_len: spec.memory_length(),
        clamp_len: if clamp == 0 { -1 } else { clamp as i64 },
        same_length: spec.bands != Bands::None,
        proj_share_all_but_first,
        tie_projs: None,
        attn_type: 0,
        sample_softmax: -1,
        dropout: spec.dropout.residual,
        dropatt: spec.dropout.attention,
        untie_r: !shared,
        init_std: spec.init.std,
        layer_norm_epsilon: eps,
        tie_word_embeddings: true,
    };
    let mut config = crate::model::object(&config);
    // Of a file that said it for each group.
    let groups = config["cutoffs"].as_array().map_or(0, Vec::len);
    let each: Vec<bool> = std::iter::once(false).chain(vec![proj_share_all_but_first; groups]).collect();
    config.insert("tie_projs".into(), each.into());
    config.insert("adaptive".into(), true.into());
    config
}

fn names(task: Task, spec: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    let (groups, divisor, shared_maps, mapped) = match &spec.vocabulary {
        Vocabulary::Adaptive { cutoffs, divisor, shared_maps, d_embedding } => {
            (cutoffs.len() + 1, *divisor, *shared_maps, *divisor != 1 || *d_embedding != spec.d_model)
        }
        Vocabulary::Whole | Vocabulary::Characters(_) => (1, 1, true, false),
    };
    let mut map = NameMap::new()
        .prefix("transformer.")
        .base([
            ("embeddings.tables.{i}", "word_emb.emb_layers.{i}.weight"),
            ("embeddings.maps.{i}", "word_emb.emb_projs.{i}"),
            ("layers.{i}.attention.qkv.weight", "layers.{i}.dec_attn.qkv_net.weight"),
            ("layers.{i}.attention.out.weight", "layers.{i}.dec_attn.o_net.weight"),
            ("layers.{i}.attention.distance.weight", "layers.{i}.dec_attn.r_net.weight"),
            ("layers.{i}.attention_norm.weight", "layers.{i}.dec_attn.layer_norm.weight"),
            ("layers.{i}.attention_norm.bias", "layers.{i}.dec_attn.layer_norm.bias"),
            ("layers.{i}.feed_forward.up.weight", "layers.{i}.pos_ff.CoreNet.0.weight"),
            ("layers.{i}.feed_forward.up.bias", "layers.{i}.pos_ff.CoreNet.0.bias"),
            ("layers.{i}.feed_forward.down.weight", "layers.{i}.pos_ff.CoreNet.3.weight"),
            ("layers.{i}.feed_forward.down.bias", "layers.{i}.pos_ff.CoreNet.3.bias"),
            ("layers.{i}.feed_forward_norm.weight", "layers.{i}.pos_ff.layer_norm.weight"),
            ("layers.{i}.feed_forward_norm.bias", "layers.{i}.pos_ff.layer_norm.bias"),
        ])?
        .ignore(["pos_emb.inv_freq"])?;
    map = match spec.positions {
        Positions::Relative { shared: true, .. } => {
            map = map.base([("attention.content_bias", "r_w_bias"), ("attention.distance_bias", "r_r_bias")])?;
            // The layers' own names are further ones of the same vectors.
            for i in 0..spec.n_layers {
                map = map
                    .tied("attention.content_bias", &format!("layers.{i}.dec_attn.r_w_bias"))?
                    .tied("attention.distance_bias", &format!("layers.{i}.dec_attn.r_r_bias"))?;
            }
            map
        }
        _ => map.base([
            ("layers.{i}.attention.content_bias", "layers.{i}.dec_attn.r_w_bias"),
            ("layers.{i}.attention.distance_bias", "layers.{i}.dec_attn.r_r_bias"),
        ])?,
    };
    if task == Task::Base {
        return map.write_bare().other_heads([
            "crit.out_layers.{i}.weight",
            "crit.out_layers.{i}.bias",
            "crit.out_projs.{i}",
            "crit.cluster_weight",
            "crit.cluster_bias",
        ]);
    }
    map = map.tied("embeddings.tables.{i}", "crit.out_layers.{i}.weight")?.head([
        ("lm_head.biases.{i}", "crit.out_layers.{i}.bias"),
        ("lm_head.clusters.weight", "crit.cluster_weight"),
        ("lm_head.clusters.bias", "crit.cluster_bias"),
    ])?;
    for i in 0..if mapped { groups } else { 0 } {
        let file = format!("crit.out_projs.{i}");
        map = if i > 0 && shared_maps {
            // With one table there is one map, too.
            let own = if divisor == 1 { 0 } else { i };
            map.tied_one("embeddings.maps.{i}", &format!("embeddings.maps.{own}"), &file)?
        } else {
            let own = format!("lm_head.maps.{i}");
            map.head([(own.as_str(), file.as_str())])?
        };
    }
    Ok(map)
}
