//! ELECTRA (Clark et al. 2020, arXiv 2003.10555).
//!
//! Ancestor: BERT. Differences: a small generator, trained on masked words, puts tokens of its own in their places, and the model
//! that is kept, the discriminator, learns to tell for every token whether it was put there: it learns from all places, not from
//! the masked ones alone. The two share their embeddings, whose width is the discriminator's own choice; an affine map takes them
//! to the stream's. No next sentences, no pooled first token; a class is read off it by a network with GELU.
//!
//! Deviations: the published code masks 85 % of the places that are to be predicted and leaves the rest as they are; here the
//! shares are those of the run (`mask_share` 0.85 and `mask_random` 0 are the published ones). The generator's heads are as wide as
//! the discriminator's.

use crate::bert;
use crate::config::{default, only};
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{HeadBias, HeadSpec, HeadTransform, StackSpec, TokenWidth};
use genus_ops::Activation;
use serde::Deserialize;
use serde_json::{Map, Value};

pub(crate) static ELECTRA: Family = Family {
    name: "electra",
    model_type: "electra",
    paper: "Clark et al. 2020, arXiv 2003.10555",
    ancestor: "bert",
    differences: &[
        "learns to tell which tokens a small generator, trained beside it on masked words, has put in",
        "generator and discriminator share embeddings, of a width of their own",
        "no next sentences, no pooled first token",
    ],
    deviations: &["which places are masked how is the run's choice; the published shares are 85 % masked, 15 % kept"],
    presets: &[
        Preset { name: "electra-small-discriminator", spec: || published(12, 256, 4, 128) },
        Preset { name: "electra-base-discriminator", spec: || published(12, 768, 12, 768) },
        Preset { name: "electra-large-discriminator", spec: || published(24, 1024, 16, 1024) },
        Preset { name: "electra-small-generator", spec: || published(12, 256, 4, 128) },
        Preset { name: "electra-base-generator", spec: || published(12, 256, 4, 768) },
        Preset { name: "electra-large-generator", spec: || published(24, 256, 4, 1024) },
    ],
    tasks: &[
        (Task::ReplacedToken, "ElectraForPreTraining"),
        (Task::MaskedLm, "ElectraForMaskedLM"),
        (Task::SequenceClassification, "ElectraForSequenceClassification"),
        (Task::TokenClassification, "ElectraForTokenClassification"),
        (Task::Base, "ElectraModel"),
    ],
    head: HeadSpec { transform: HeadTransform::Dense, bias: HeadBias::PerToken },
    pooling: Pooling::ForClasses(Activation::GeluErf),
    classified: Classified::PooledAfterDropout,
    classifier_dropout: CLASSIFIER_DROPOUT,
    read,
    write,
    names,
};

fn published(n_layers: usize, d_model: usize, n_heads: usize, d_embedding: usize) -> StackSpec {
    StackSpec { token_width: width(d_embedding, d_model), ..bert::published(n_layers, d_model, n_heads, 30_522) }
}

fn width(d_embedding: usize, d_model: usize) -> TokenWidth {
    if d_embedding == d_model { TokenWidth::Stream } else { TokenWidth::Own(d_embedding) }
}

/// What `ElectraConfig` has beside `BertConfig`'s fields.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default = "default::embedding")]
    embedding_size: usize,
}

fn read(file: &JsonFile) -> Result<StackSpec> {
    let (spec, c): (_, Config) = (bert::read(file)?, file.parse()?);
    // The generator's head has GELU whatever this says; all published models have it everywhere.
    only(file, "hidden_act", spec.feed_forward.activation() == Activation::GeluErf, "\"gelu\"")?;
    Ok(StackSpec { token_width: width(c.embedding_size, spec.d_model), ..spec })
}

fn write(spec: &StackSpec) -> Map<String, Value> {
    let mut config = bert::write(spec);
    config.insert("embedding_size".into(), spec.d_embedding().into());
    config
}

fn names(task: Task, _: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    const GENERATOR: [(&str, &str); 5] = [
        ("lm_head.bias", "generator_lm_head.bias"),
        ("lm_head.transform.weight", "generator_predictions.dense.weight"),
        ("lm_head.transform.bias", "generator_predictions.dense.bias"),
        ("lm_head.norm.weight", "generator_predictions.LayerNorm.weight"),
        ("lm_head.norm.bias", "generator_predictions.LayerNorm.bias"),
    ];
    const TABLE: &str = "generator_lm_head.weight";
    const DISCRIMINATOR: [(&str, &str); 4] = [
        ("detector.map.weight", "discriminator_predictions.dense.weight"),
        ("detector.map.bias", "discriminator_predictions.dense.bias"),
        ("detector.out.weight", "discriminator_predictions.dense_prediction.weight"),
        ("detector.out.bias", "discriminator_predictions.dense_prediction.bias"),
    ];
    const CLASSIFIER: [(&str, &str); 4] = [
        ("pooler.weight", "classifier.dense.weight"),
        ("pooler.bias", "classifier.dense.bias"),
        ("classifier.weight", "classifier.out_proj.weight"),
        ("classifier.bias", "classifier.out_proj.bias"),
    ];
    let mut map = bert::encoder(NameMap::new().prefix("electra."))?
        .base([("project.weight", "embeddings_project.weight"), ("project.bias", "embeddings_project.bias")])?;
    map = match task {
        Task::MaskedLm => map.head(GENERATOR)?.tied("embeddings.tokens", TABLE)?,
        _ => map.other_heads(GENERATOR.map(|p| p.1))?.other_heads([TABLE])?,
    };
    map = match task {
        Task::ReplacedToken => map.head(DISCRIMINATOR)?,
        _ => map.other_heads(DISCRIMINATOR.map(|p| p.1))?,
    };
    map = match task {
        Task::SequenceClassification => map.head(CLASSIFIER)?,
        Task::TokenClassification => map.head(bert::TAGGER)?,
        _ => map.other_heads(CLASSIFIER.map(|p| p.1))?.other_heads(bert::TAGGER.map(|p| p.1))?,
    };
    if task == Task::Base {
        map = map.write_bare();
    }
    map.other_heads(["qa_outputs.weight", "qa_outputs.bias"])
}
