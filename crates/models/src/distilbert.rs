//! DistilBERT (Sanh et al. 2019, arXiv 1910.01108).
//!
//! Ancestor: BERT, from which it is distilled. Differences: every second layer; no segments, no pooled first token, no next
//! sentences. A class is read off the first token by a network with ReLU.
//!
//! Deviations: distillation itself (the teacher's probabilities as targets) is not a training objective here; a published student
//! is loaded, fine-tuned and trained further on masked words.

use crate::bert;
use crate::config::{activation, activation_name, d_head, default, only};
use crate::registry::{Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{
    Dropout, FeedForward, HeadBias, HeadSpec, HeadTransform, InitScheme, ResidualInit, Segments, StackSpec,
};
use genus_ops::Activation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) static DISTILBERT: Family = Family {
    name: "distilbert",
    model_type: "distilbert",
    paper: "Sanh et al. 2019, arXiv 1910.01108",
    ancestor: "bert",
    differences: &["half the layers, distilled from BERT", "no segments, no pooled first token, no next sentences"],
    deviations: &["distillation is not an objective here; the student trains on masked words"],
    presets: &[
        Preset { name: "distilbert-base-uncased", spec: || published(6, 768, 12, 30_522) },
        Preset { name: "distilbert-base-cased", spec: || published(6, 768, 12, 28_996) },
        Preset { name: "distilbert-base-multilingual-cased", spec: || published(6, 768, 12, 119_547) },
    ],
    tasks: &[
        (Task::MaskedLm, "DistilBertForMaskedLM"),
        (Task::SequenceClassification, "DistilBertForSequenceClassification"),
        (Task::TokenClassification, "DistilBertForTokenClassification"),
        (Task::Base, "DistilBertModel"),
    ],
    head: HeadSpec { transform: HeadTransform::Dense, bias: HeadBias::PerToken },
    pooling: Pooling::ForClasses(Activation::Relu),
    classified: Classified::Pooled,
    classifier_dropout: ("seq_classif_dropout", Some(0.2)),
    read,
    write,
    names,
};

fn published(n_layers: usize, d_model: usize, n_heads: usize, vocab_size: usize) -> StackSpec {
    StackSpec { segments: Segments::None, ..bert::published(n_layers, d_model, n_heads, vocab_size) }
}

/// Hugging Face's `DistilBertConfig`, as far as it decides what is computed.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    vocab_size: usize,
    max_position_embeddings: usize,
    n_layers: usize,
    n_heads: usize,
    dim: usize,
    hidden_dim: usize,
    #[serde(default = "default::tenth")]
    dropout: f32,
    #[serde(default = "default::tenth")]
    attention_dropout: f32,
    #[serde(default = "default::gelu")]
    activation: String,
    #[serde(default = "default::std_dev")]
    initializer_range: f64,
    #[serde(default = "default::yes")]
    tie_word_embeddings: bool,
}

fn read(file: &JsonFile) -> Result<StackSpec> {
    let c: Config = file.parse()?;
    only(file, "tie_word_embeddings", c.tie_word_embeddings, "true")?;
    Ok(StackSpec {
        d_head: d_head(file, "n_heads", c.dim, c.n_heads, "dim")?,
        d_ff: c.hidden_dim,
        n_ctx: c.max_position_embeddings,
        feed_forward: FeedForward::Dense(activation(file, "activation", &c.activation)?),
        dropout: Dropout { embedding: c.dropout, attention: c.attention_dropout, residual: c.dropout, inner: 0.0 },
        init: InitScheme { std: c.initializer_range, position_std: c.initializer_range, residual: ResidualInit::Plain },
        ..published(c.n_layers, c.dim, c.n_heads, c.vocab_size)
    })
}

fn write(spec: &StackSpec) -> Map<String, Value> {
    let config = Config {
        vocab_size: spec.vocab_size,
        max_position_embeddings: spec.n_ctx,
        n_layers: spec.n_layers,
        n_heads: spec.n_heads,
        dim: spec.d_model,
        hidden_dim: spec.d_ff,
        dropout: spec.dropout.residual,
        attention_dropout: spec.dropout.attention,
        activation: activation_name(spec.feed_forward.activation()).into(),
        initializer_range: spec.init.std,
        tie_word_embeddings: true,
    };
    crate::model::object(&config)
}

fn names(task: Task, _: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    const PREDICTIONS: [(&str, &str); 5] = [
        ("lm_head.bias", "vocab_projector.bias"),
        ("lm_head.transform.weight", "vocab_transform.weight"),
        ("lm_head.transform.bias", "vocab_transform.bias"),
        ("lm_head.norm.weight", "vocab_layer_norm.weight"),
        ("lm_head.norm.bias", "vocab_layer_norm.bias"),
    ];
    const PROJECTOR: &str = "vocab_projector.weight";
    const CLASSIFIER: [(&str, &str); 4] = [
        ("pooler.weight", "pre_classifier.weight"),
        ("pooler.bias", "pre_classifier.bias"),
        ("classifier.weight", "classifier.weight"),
        ("classifier.bias", "classifier.bias"),
    ];
    let mut map = NameMap::new().prefix("distilbert.").base([
        ("embeddings.tokens", "embeddings.word_embeddings.weight"),
        ("embeddings.positions", "embeddings.position_embeddings.weight"),
        ("embeddings.norm.weight", "embeddings.LayerNorm.weight"),
        ("embeddings.norm.bias", "embeddings.LayerNorm.bias"),
        ("layers.{i}.attention.query.weight", "transformer.layer.{i}.attention.q_lin.weight"),
        ("layers.{i}.attention.query.bias", "transformer.layer.{i}.attention.q_lin.bias"),
        ("layers.{i}.attention.key.weight", "transformer.layer.{i}.attention.k_lin.weight"),
        ("layers.{i}.attention.key.bias", "transformer.layer.{i}.attention.k_lin.bias"),
        ("layers.{i}.attention.value.weight", "transformer.layer.{i}.attention.v_lin.weight"),
        ("layers.{i}.attention.value.bias", "transformer.layer.{i}.attention.v_lin.bias"),
        ("layers.{i}.attention.out.weight", "transformer.layer.{i}.attention.out_lin.weight"),
        ("layers.{i}.attention.out.bias", "transformer.layer.{i}.attention.out_lin.bias"),
        ("layers.{i}.attention_norm.weight", "transformer.layer.{i}.sa_layer_norm.weight"),
        ("layers.{i}.attention_norm.bias", "transformer.layer.{i}.sa_layer_norm.bias"),
        ("layers.{i}.feed_forward.up.weight", "transformer.layer.{i}.ffn.lin1.weight"),
        ("layers.{i}.feed_forward.up.bias", "transformer.layer.{i}.ffn.lin1.bias"),
        ("layers.{i}.feed_forward.down.weight", "transformer.layer.{i}.ffn.lin2.weight"),
        ("layers.{i}.feed_forward.down.bias", "transformer.layer.{i}.ffn.lin2.bias"),
        ("layers.{i}.feed_forward_norm.weight", "transformer.layer.{i}.output_layer_norm.weight"),
        ("layers.{i}.feed_forward_norm.bias", "transformer.layer.{i}.output_layer_norm.bias"),
    ])?;
    map = match task {
        Task::MaskedLm => map.head(PREDICTIONS)?.tied("embeddings.tokens", PROJECTOR)?,
        _ => map.other_heads(PREDICTIONS.map(|p| p.1))?.other_heads([PROJECTOR])?,
    };
    map = match task {
        Task::SequenceClassification => map.head(CLASSIFIER)?,
        Task::TokenClassification => map.head(bert::TAGGER)?.other_heads(CLASSIFIER[..2].iter().map(|p| p.1))?,
        _ => map.other_heads(CLASSIFIER.map(|p| p.1))?,
    };
    if task == Task::Base {
        map = map.write_bare();
    }
    map.other_heads(["qa_outputs.weight", "qa_outputs.bias"])
}
