//! GPT-3 (Brown et al. 2020, arXiv 2005.14165).
//!
//! Ancestor: GPT-2. Differences: attention alternates between all earlier tokens and a band of the last ones (Child et al. 2019,
//! arXiv 1904.10509); context 2048; eight sizes up to 175 billion parameters, in which the heads' width is a number of its own.
//!
//! Deviations: the paper does not give the width of the band; it is 256 here, as in GPT-Neo. Two sizes are printed with heads
//! that do not make up the width (1.3B: 24 x 128 for 2048; 13B: 40 x 128 for 5140); they are taken as printed.
//!
//! Hugging Face's library has no such model: a folder has GPT-2's names and configuration, with `head_dim`, `window_size` and
//! `attention_layers` beside them. Where alternation can be checked from outside is GPT-Neo.

use crate::config::{default, only};
use crate::gpt2;
use crate::registry::{CLASSIFIER_DROPOUT, Classified, Family, Pooling, Preset};
use crate::{Result, Task};
use genus_checkpoint::config::JsonFile;
use genus_nn::{Bands, HeadBias, HeadSpec, HeadTransform, StackSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) static GPT3: Family = Family {
    name: "gpt3",
    model_type: "gpt3",
    paper: "Brown et al. 2020, arXiv 2005.14165",
    ancestor: "gpt2",
    differences: &[
        "attention alternates: all earlier tokens, then a band of the last 256",
        "context 2048; sizes to 175B, with the heads' width a number of its own",
    ],
    deviations: &["the paper does not print the band's width; 256 is GPT-Neo's"],
    presets: &[
        Preset { name: "gpt3-125m", spec: || published(12, 768, 12, 64) },
        Preset { name: "gpt3-350m", spec: || published(24, 1024, 16, 64) },
        Preset { name: "gpt3-760m", spec: || published(24, 1536, 16, 96) },
        Preset { name: "gpt3-1.3b", spec: || published(24, 2048, 24, 128) },
        Preset { name: "gpt3-2.7b", spec: || published(32, 2560, 32, 80) },
        Preset { name: "gpt3-6.7b", spec: || published(32, 4096, 32, 128) },
        Preset { name: "gpt3-13b", spec: || published(40, 5140, 40, 128) },
        Preset { name: "gpt3-175b", spec: || published(96, 12_288, 96, 128) },
    ],
    tasks: &[(Task::CausalLm, "GPT3LMHeadModel"), (Task::Base, "GPT3Model")],
    head: HeadSpec { transform: HeadTransform::None, bias: HeadBias::None },
    pooling: Pooling::None,
    classified: Classified::LastToken,
    classifier_dropout: CLASSIFIER_DROPOUT,
    read,
    write,
    names: gpt2::names,
};

pub(crate) fn published(n_layers: usize, d_model: usize, n_heads: usize, d_head: usize) -> StackSpec {
    StackSpec {
        d_head,
        n_ctx: 2048,
        bands: Bands::Local { window: default::window(), pattern: vec![false, true] },
        ..gpt2::published(n_layers, d_model, n_heads)
    }
}

/// What is beside GPT-2's fields.
#[derive(Debug, Serialize, Deserialize)]
struct Extra {
    head_dim: usize,
    #[serde(default = "default::window")]
    window_size: usize,
    attention_layers: Vec<String>,
}

fn read(file: &JsonFile) -> Result<StackSpec> {
    let extra: Extra = file.parse()?;
    only(file, "head_dim", extra.head_dim > 0, "a positive number")?;
    Ok(StackSpec {
        d_head: extra.head_dim,
        bands: bands(file, &extra.attention_layers, extra.window_size)?,
        ..gpt2::parse(file, |_| Ok(extra.head_dim))?
    })
}

fn write(spec: &StackSpec) -> Map<String, Value> {
    let (window_size, attention_layers) = band_fields(spec);
    let mut config = gpt2::write(spec);
    config.append(&mut crate::model::object(&Extra { head_dim: spec.d_head, window_size, attention_layers }));
    config
}

/// The bands of a list of "global" and "local", one a layer.
pub(crate) fn bands(file: &JsonFile, layers: &[String], window: usize) -> Result<Bands> {
    let known = layers.iter().all(|l| l == "global" || l == "local");
    if !known || layers.is_empty() {
        return Err(file.field_error("attention_layers", "\"global\" or \"local\" for each layer").into());
    }
    if window == 0 {
        return Err(file.field_error("window_size", "a positive number of tokens").into());
    }
    let pattern: Vec<bool> = layers.iter().map(|l| l == "local").collect();
    Ok(if pattern.contains(&true) { Bands::Local { window, pattern } } else { Bands::None })
}

/// The fields that [`bands`] reads.
pub(crate) fn band_fields(spec: &StackSpec) -> (usize, Vec<String>) {
    let (window, pattern) = match &spec.bands {
        Bands::None => (default::window(), &[false][..]),
        Bands::Local { window, pattern } => (*window, &pattern[..]),
    };
    let layer = |i: usize| if pattern[i % pattern.len()] { "local" } else { "global" };
    (window, (0..spec.n_layers).map(|i| layer(i).to_owned()).collect())
}
