//! BERT (Devlin et al. 2018, arXiv 1810.04805).
//!
//! Ancestor: the Transformer's encoder half. Differences: learned positions and segment vectors, summed with the tokens' and
//! normalised; GELU; a pooled first token; pretraining by masked words (over the tied token table, after a small network) and
//! next sentences.
//!
//! Deviations: the GELU is the exact one (erf), as in the released code of Hugging Face; Google's first release used it too.

use crate::config::{activation, activation_name, d_head, default, only};
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{
    Attend, Dropout, EmbeddingNorm, FeedForward, HeadBias, HeadSpec, HeadTransform, InitScheme, NormKind, ResidualInit,
    Segments, StackSpec, Tying,
};
use genus_ops::Activation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) static BERT: Family = Family {
    name: "bert",
    model_type: "bert",
    paper: "Devlin et al. 2018, arXiv 1810.04805",
    ancestor: "transformer",
    differences: &[
        "the encoder alone: every token sees the whole sequence",
        "learned positions and segments, summed and normalised; GELU",
        "pretrained on masked words and next sentences; a pooled first token",
    ],
    deviations: &[],
    presets: &[
        Preset { name: "bert-base-uncased", spec: || published(12, 768, 12, 30_522) },
        Preset { name: "bert-large-uncased", spec: || published(24, 1024, 16, 30_522) },
        Preset { name: "bert-base-cased", spec: || published(12, 768, 12, 28_996) },
        Preset { name: "bert-large-cased", spec: || published(24, 1024, 16, 28_996) },
        Preset { name: "bert-base-chinese", spec: || published(12, 768, 12, 21_128) },
        Preset { name: "bert-base-multilingual-cased", spec: || published(12, 768, 12, 119_547) },
        Preset { name: "bert-base-multilingual-uncased", spec: || published(12, 768, 12, 105_879) },
        Preset { name: "bert-tiny", spec: || published(2, 128, 2, 30_522) },
        Preset { name: "bert-mini", spec: || published(4, 256, 4, 30_522) },
        Preset { name: "bert-small", spec: || published(4, 512, 8, 30_522) },
        Preset { name: "bert-medium", spec: || published(8, 512, 8, 30_522) },
    ],
    tasks: &[
        (Task::Pretraining, "BertForPreTraining"),
        (Task::MaskedLm, "BertForMaskedLM"),
        (Task::NextSentence, "BertForNextSentencePrediction"),
        (Task::SequenceClassification, "BertForSequenceClassification"),
        (Task::TokenClassification, "BertForTokenClassification"),
        (Task::Base, "BertModel"),
    ],
    head: HeadSpec { transform: HeadTransform::Dense, bias: HeadBias::PerToken },
    pooling: Pooling::First,
    classified: Classified::Pooled,
    classifier_dropout: CLASSIFIER_DROPOUT,
    read,
    write,
    names,
};

pub(crate) fn published(n_layers: usize, d_model: usize, n_heads: usize, vocab_size: usize) -> StackSpec {
    StackSpec {
        vocab_size,
        segments: Segments::Learned(2),
        embedding_norm: EmbeddingNorm::Norm,
        norm: NormKind::Layer { eps: 1e-12 },
        feed_forward: FeedForward::Dense(Activation::GeluErf),
        ..crate::transformer::stack(n_layers, d_model, n_heads, Attend::All)
    }
}

/// Hugging Face's `BertConfig`, as far as it decides what is computed.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "default::gelu")]
    hidden_act: String,
    #[serde(default = "default::tenth")]
    hidden_dropout_prob: f32,
    #[serde(default = "default::tenth")]
    attention_probs_dropout_prob: f32,
    max_position_embeddings: usize,
    #[serde(default = "default::two")]
    type_vocab_size: usize,
    #[serde(default = "default::std_dev")]
    initializer_range: f64,
    #[serde(default = "default::epsilon_12")]
    layer_norm_eps: f64,
    #[serde(default = "default::absolute", skip_serializing)]
    position_embedding_type: String,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default = "default::yes")]
    tie_word_embeddings: bool,
}

pub(crate) fn read(file: &JsonFile) -> Result<StackSpec> {
    let c: Config = file.parse()?;
    only(file, "position_embedding_type", c.position_embedding_type == "absolute", "\"absolute\"")?;
    only(file, "is_decoder", !c.is_decoder, "false")?;
    only(file, "tie_word_embeddings", c.tie_word_embeddings, "true")?;
    Ok(StackSpec {
        d_head: d_head(file, "num_attention_heads", c.hidden_size, c.num_attention_heads, "hidden_size")?,
        d_ff: c.intermediate_size,
        n_ctx: c.max_position_embeddings,
        segments: if c.type_vocab_size == 0 { Segments::None } else { Segments::Learned(c.type_vocab_size) },
        norm: NormKind::Layer { eps: c.layer_norm_eps },
        feed_forward: FeedForward::Dense(activation(file, "hidden_act", &c.hidden_act)?),
        dropout: Dropout {
            embedding: c.hidden_dropout_prob,
            attention: c.attention_probs_dropout_prob,
            residual: c.hidden_dropout_prob,
            inner: 0.0,
        },
        init: InitScheme { std: c.initializer_range, position_std: c.initializer_range, residual: ResidualInit::Plain },
        ..published(c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.vocab_size)
    })
}

pub(crate) fn write(spec: &StackSpec) -> Map<String, Value> {
    let NormKind::Layer { eps } = spec.norm;
    let config = Config {
        vocab_size: spec.vocab_size,
        hidden_size: spec.d_model,
        num_hidden_layers: spec.n_layers,
        num_attention_heads: spec.n_heads,
        intermediate_size: spec.d_ff,
        hidden_act: activation_name(spec.feed_forward.activation()).into(),
        hidden_dropout_prob: spec.dropout.residual,
        attention_probs_dropout_prob: spec.dropout.attention,
        max_position_embeddings: spec.n_ctx,
        type_vocab_size: match spec.segments {
            Segments::None => 0,
            Segments::Learned(n) => n,
        },
        initializer_range: spec.init.std,
        layer_norm_eps: eps,
        position_embedding_type: default::absolute(),
        is_decoder: false,
        tie_word_embeddings: spec.tying == Tying::Tied,
    };
    crate::model::object(&config)
}

fn names(task: Task, _: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    const PREDICTIONS: [(&str, &str); 5] = [
        ("lm_head.bias", "cls.predictions.bias"),
        ("lm_head.transform.weight", "cls.predictions.transform.dense.weight"),
        ("lm_head.transform.bias", "cls.predictions.transform.dense.bias"),
        ("lm_head.norm.weight", "cls.predictions.transform.LayerNorm.weight"),
        ("lm_head.norm.bias", "cls.predictions.transform.LayerNorm.bias"),
    ];
    const NEXT: [(&str, &str); 2] =
        [("next_sentence.weight", "cls.seq_relationship.weight"), ("next_sentence.bias", "cls.seq_relationship.bias")];
    const POOLER: [(&str, &str); 2] = [("pooler.weight", "pooler.dense.weight"), ("pooler.bias", "pooler.dense.bias")];
    let mut map = encoder(NameMap::new().prefix("bert.").older("gamma", "weight").older("beta", "bias"))?;
    let pooled = !matches!(task, Task::MaskedLm | Task::TokenClassification);
    map = if !pooled { map.other_heads(POOLER.map(|p| p.1))? } else { map.base(POOLER)? };
    map = if task.predicts_tokens() {
        map.head(PREDICTIONS)?
            .tied("embeddings.tokens", "cls.predictions.decoder.weight")?
            .tied("lm_head.bias", "cls.predictions.decoder.bias")?
    } else {
        map.other_heads(PREDICTIONS.map(|p| p.1))?
            .other_heads(["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"])?
    };
    map = if task.predicts_next_sentence() { map.head(NEXT)? } else { map.other_heads(NEXT.map(|p| p.1))? };
    map = match task {
        task if task.has_labels() => map.head(TAGGER)?,
        _ => map.other_heads(TAGGER.map(|p| p.1))?,
    };
    if task == Task::Base {
        map = map.write_bare();
    }
    map.other_heads(["qa_outputs.weight", "qa_outputs.bias"])
}

/// The classes of tokens; BERT's classes of sequences have the same names.
pub(crate) const TAGGER: [(&str, &str); 2] =
    [("classifier.weight", "classifier.weight"), ("classifier.bias", "classifier.bias")];

/// The names of the embeddings and layers, which BERT's relatives kept.
pub(crate) fn encoder(map: NameMap) -> genus_checkpoint::Result<NameMap> {
    map.base([
        ("embeddings.tokens", "embeddings.word_embeddings.weight"),
        ("embeddings.positions", "embeddings.position_embeddings.weight"),
        ("embeddings.types", "embeddings.token_type_embeddings.weight"),
        ("embeddings.norm.weight", "embeddings.LayerNorm.weight"),
        ("embeddings.norm.bias", "embeddings.LayerNorm.bias"),
        ("layers.{i}.attention.query.weight", "encoder.layer.{i}.attention.self.query.weight"),
        ("layers.{i}.attention.query.bias", "encoder.layer.{i}.attention.self.query.bias"),
        ("layers.{i}.attention.key.weight", "encoder.layer.{i}.attention.self.key.weight"),
        ("layers.{i}.attention.key.bias", "encoder.layer.{i}.attention.self.key.bias"),
        ("layers.{i}.attention.value.weight", "encoder.layer.{i}.attention.self.value.weight"),
        ("layers.{i}.attention.value.bias", "encoder.layer.{i}.attention.self.value.bias"),
        ("layers.{i}.attention.out.weight", "encoder.layer.{i}.attention.output.dense.weight"),
        ("layers.{i}.attention.out.bias", "encoder.layer.{i}.attention.output.dense.bias"),
        ("layers.{i}.attention_norm.weight", "encoder.layer.{i}.attention.output.LayerNorm.weight"),
        ("layers.{i}.attention_norm.bias", "encoder.layer.{i}.attention.output.LayerNorm.bias"),
        ("layers.{i}.feed_forward.up.weight", "encoder.layer.{i}.intermediate.dense.weight"),
        ("layers.{i}.feed_forward.up.bias", "encoder.layer.{i}.intermediate.dense.bias"),
        ("layers.{i}.feed_forward.down.weight", "encoder.layer.{i}.output.dense.weight"),
        ("layers.{i}.feed_forward.down.bias", "encoder.layer.{i}.output.dense.bias"),
        ("layers.{i}.feed_forward_norm.weight", "encoder.layer.{i}.output.LayerNorm.weight"),
        ("layers.{i}.feed_forward_norm.bias", "encoder.layer.{i}.output.LayerNorm.bias"),
    ])?
    .ignore(["embeddings.position_ids", "embeddings.token_type_ids"])
}
