//! RoBERTa (Liu et al. 2019, arXiv 1907.11692).
//!
//! Ancestor: BERT. Differences: pretrained on masked words alone, masked anew each time, with more text and larger batches; no
//! second segment; a byte-level BPE vocabulary of 50,265. A class is read off the first token by a network of its own.
//!
//! Deviations: none known. Positions are rows of a table whose first two rows belong to none, as in the released code: there a
//! position is counted from the id of the padding token, 1.

use crate::bert;
use crate::config::only;
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{HeadBias, HeadSpec, HeadTransform, NormKind, Positions, Segments, StackSpec};
use serde_json::{Map, Value};

pub(crate) static ROBERTA: Family = Family {
    name: "roberta",
    model_type: "roberta",
    paper: "Liu et al. 2019, arXiv 1907.11692",
    ancestor: "bert",
    differences: &[
        "masked words alone, masked anew each time; no next sentences, no second segment",
        "byte-level BPE vocabulary of 50,265; positions counted from 2",
    ],
    deviations: &[],
    presets: &[
        Preset { name: "roberta-base", spec: || published(12, 768, 12) },
        Preset { name: "roberta-large", spec: || published(24, 1024, 16) },
        Preset { name: "distilroberta-base", spec: || published(6, 768, 12) },
    ],
    tasks: &[
        (Task::MaskedLm, "RobertaForMaskedLM"),
        (Task::SequenceClassification, "RobertaForSequenceClassification"),
        (Task::TokenClassification, "RobertaForTokenClassification"),
        (Task::Base, "RobertaModel"),
    ],
    head: HeadSpec { transform: HeadTransform::Dense, bias: HeadBias::PerToken },
    pooling: Pooling::First,
    classified: Classified::PooledAfterDropout,
    classifier_dropout: CLASSIFIER_DROPOUT,
    read,
    write,
    names,
};

fn published(n_layers: usize, d_model: usize, n_heads: usize) -> StackSpec {
    StackSpec {
        positions: Positions::Learned { offset: 2 },
        segments: Segments::Learned(1),
        norm: NormKind::Layer { eps: 1e-5 },
        ..bert::published(n_layers, d_model, n_heads, 50_265)
    }
}

/// `RobertaConfig` is `BertConfig` with other defaults.
fn read(file: &JsonFile) -> Result<StackSpec> {
    let spec = bert::read(file)?;
    let pad = match file.get("pad_token_id") {
        None => 1,
        Some(v) => {
            v.as_u64().filter(|&p| p < 1 << 20).ok_or_else(|| file.field_error("pad_token_id", "a token's id"))?
        }
    };
    let offset = pad as usize + 1;
    let expected = format!("more than pad_token_id + 1 = {offset}");
    only(file, "max_position_embeddings", spec.n_ctx > offset, &expected)?;
    Ok(StackSpec { n_ctx: spec.n_ctx - offset, positions: Positions::Learned { offset }, ..spec })
}

fn write(spec: &StackSpec) -> Map<String, Value> {
    let offset = spec.positions.offset();
    let mut config = bert::write(&StackSpec { n_ctx: spec.n_ctx + offset, ..spec.clone() });
    config.insert("pad_token_id".into(), offset.saturating_sub(1).into());
    config
}

fn names(task: Task, _: &StackSpec) -> genus_checkpoint::Result<NameMap> {
    const PREDICTIONS: [(&str, &str); 5] = [
        ("lm_head.bias", "lm_head.bias"),
        ("lm_head.transform.weight", "lm_head.dense.weight"),
        ("lm_head.transform.bias", "lm_head.dense.bias"),
        ("lm_head.norm.weight", "lm_head.layer_norm.weight"),
        ("lm_head.norm.bias", "lm_head.layer_norm.bias"),
    ];
    const DECODER: [&str; 2] = ["lm_head.decoder.weight", "lm_head.decoder.bias"];
    const POOLER: [(&str, &str); 2] = [("pooler.weight", "pooler.dense.weight"), ("pooler.bias", "pooler.dense.bias")];
    const CLASSIFIER: [(&str, &str); 4] = [
        ("pooler.weight", "classifier.dense.weight"),
        ("pooler.bias", "classifier.dense.bias"),
        ("classifier.weight", "classifier.out_proj.weight"),
        ("classifier.bias", "classifier.out_proj.bias"),
    ];
    let mut map = bert::encoder(NameMap::new().prefix("roberta."))?;
    map = match task {
        Task::MaskedLm => {
            let [weight, bias] = DECODER;
            map.head(PREDICTIONS)?.tied("embeddings.tokens", weight)?.tied("lm_head.bias", bias)?
        }
        _ => map.other_heads(PREDICTIONS.map(|p| p.1))?.other_heads(DECODER)?,
    };
    map = match task {
        Task::SequenceClassification => map.head(CLASSIFIER)?,
        Task::TokenClassification => map.head(bert::TAGGER)?,
        _ => map.other_heads(CLASSIFIER.map(|p| p.1))?.other_heads(bert::TAGGER.map(|p| p.1))?,
    };
    map = if task == Task::Base { map.base(POOLER)?.write_bare() } else { map.other_heads(POOLER.map(|p| p.1))? };
    map.other_heads(["qa_outputs.weight", "qa_outputs.bias"])
}
