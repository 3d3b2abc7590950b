//! The members of the family, their tree and their published sizes.

use crate::{Error, Result, Task, bert, bi_transformer, bilstm, distilbert, electra, elmo, gpt, gpt_neo, gpt2, gpt3};
use crate::{roberta, transformer, transformer_xl};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::NameMap;
use genus_nn::{Bands, Encoder, HeadSpec, Memory, StackSpec, TokenWidth, Vocabulary};
use genus_ops::Activation;
use serde_json::{Map, Value};

/// A published size of a member.
#[derive(Clone, Copy)]
pub struct Preset {
    /// The name, as its authors published it.
    pub name: &'static str,
    /// Its dimensions.
    pub spec: fn() -> StackSpec,
}

/// Whether hidden states are summarised by the first token's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// No.
    None,
    /// By an affine map and tanh (BERT).
    First,
    /// Only where sequences are classified, by an affine map and this activation (DistilBERT).
    ForClasses(Activation),
}

/// What a class of a whole sequence is read off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classified {
    /// The pooler's vector, after dropout, by an affine map (BERT).
    Pooled,
    /// The same, with dropout before the pooler as well (RoBERTa).
    PooledAfterDropout,
    /// The last token's hidden state, by a linear map without bias; padding at the end, by its id, is passed over (GPT-2).
    LastToken,
}

/// Dropout before a pooled classifier, as most configurations have it.
pub(crate) const CLASSIFIER_DROPOUT: (&str, Option<f32>) = ("classifier_dropout", None);

/// One member of the family, as data.
pub struct Family {
    /// The name.
    pub name: &'static str,
    /// `model_type` in Hugging Face's configuration.
    pub model_type: &'static str,
    /// Authors, year, title or identifier of the paper.
    pub paper: &'static str,
    /// The member or forebear it comes from.
    pub ancestor: &'static str,
    /// What it changes.
    pub differences: &'static [&'static str],
    /// Where this implementation deviates from the paper.
    pub deviations: &'static [&'static str],
    /// Published sizes, the one that bears the member's name first.
    pub presets: &'static [Preset],
    /// Its tasks with the class names of Hugging Face, the pretraining task first.
    pub tasks: &'static [(Task, &'static str)],
    /// The head that predicts tokens.
    pub head: HeadSpec,
    /// The summary of a sequence.
    pub pooling: Pooling,
    /// How sequences are classified.
    pub classified: Classified,
    /// The configuration's field for dropout before a pooled classifier, and what holds without it: a number, or the residual
    /// stream's dropout.
    pub classifier_dropout: (&'static str, Option<f32>),
    /// Reads a configuration.
    pub(crate) read: fn(&JsonFile) -> Result<StackSpec>,
    /// Writes a configuration.
    pub(crate) write: fn(&StackSpec) -> Map<String, Value>,
    /// The table of tensor names.
    pub(crate) names: fn(Task, &StackSpec) -> genus_checkpoint::Result<NameMap>,
}

impl Family {
    /// What a preset of this member is pretrained for: of a generator masked words, else what the member is.
    pub fn task_of(&self, preset: &str) -> Task {
        match self.class(Task::ReplacedToken) {
            Some(_) if preset.ends_with("-generator") => Task::MaskedLm,
            _ => self.default_task(),
        }
    }
}

/// A forebear in the tree that has no file of its own.
#[derive(Clone, Copy, Debug)]
pub struct Lineage {
    /// The name.
    pub name: &'static str,
    /// Where it comes from.
    pub ancestor: Option<&'static str>,
    /// Its paper.
    pub paper: &'static str,
}

/// Forebears that members name as ancestors.
pub fn lineage() -> &'static [Lineage] {
    &[
        Lineage { name: "lstm", ancestor: None, paper: "Hochreiter and Schmidhuber 1997, Long short-term memory" },
        Lineage { name: "attentive rnn", ancestor: Some("lstm"), paper: "Bahdanau et al. 2014, arXiv 1409.0473" },
    ]
}

/// All members.
pub fn families() -> &'static [&'static Family] {
    static ALL: [&Family; 13] = [
        &bilstm::BILSTM,
        &elmo::ELMO,
        &transformer::TRANSFORMER,
        &gpt::GPT,
        &bi_transformer::BI_TRANSFORMER,
        &bert::BERT,
        &gpt2::GPT2,
        &transformer_xl::TRANSFORMER_XL,
        &roberta::ROBERTA,
        &distilbert::DISTILBERT,
        &electra::ELECTRA,
        &gpt3::GPT3,
        &gpt_neo::GPT_NEO,
    ];
    &ALL
}

/// The member with that `model_type`.
pub fn family(model_type: &str) -> Option<&'static Family> {
    families().iter().find(|f| f.model_type == model_type).copied()
}

/// All presets with their members.
pub fn presets() -> impl Iterator<Item = (&'static Family, &'static Preset)> {
    families().iter().flat_map(|f| f.presets.iter().map(move |p| (*f, p)))
}

/// The preset of that name; a member's name stands for its first.
///
/// # Errors
/// When there is none; the error names the one most like it.
pub fn find_preset(name: &str) -> Result<(&'static Family, &'static Preset)> {
    let first = || families().iter().find(|f| f.name == name).map(|f| (*f, &f.presets[0]));
    presets().find(|(_, p)| p.name == name).or_else(first).ok_or_else(|| Error::Preset {
        name: name.to_owned(),
        nearest: genus_checkpoint::names::nearest_names(name, presets().map(|(_, p)| p.name), 1).pop(),
    })
}

/// Dimensions that replace a preset's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dimensions {
    /// Number of layers.
    pub n_layers: Option<usize>,
    /// Width. Heads keep their number; their width becomes `d_model / n_heads`.
    pub d_model: Option<usize>,
    /// Number of heads.
    pub n_heads: Option<usize>,
    /// Width inside the feed-forward network; four times `d_model` when only that is given.
    pub d_ff: Option<usize>,
    /// Number of tokens.
    pub vocab_size: Option<usize>,
    /// Longest sequence.
    pub n_ctx: Option<usize>,
    /// Tokens of memory, of a member that carries one.
    pub memory: Option<usize>,
}

impl Dimensions {
    /// `spec` with these dimensions.
    ///
    /// # Errors
    /// When heads do not divide the width.
    pub fn apply(&self, mut spec: StackSpec) -> Result<StackSpec> {
        let (ratio, old) = (spec.d_ff / spec.d_model.max(1), spec.d_model);
        let set = |field: &mut usize, value: Option<usize>| {
            if let Some(v) = value {
                *field = v;
            }
        };
        set(&mut spec.n_layers, self.n_layers);
        if let Some(n) = self.vocab_size {
            spec.set_vocab_size(n);
        }
        set(&mut spec.n_ctx, self.n_ctx);
        set(&mut spec.d_model, self.d_model);
        set(&mut spec.n_heads, self.n_heads);
        if self.n_heads.is_some() || self.d_model.is_some() {
            if spec.n_heads == 0 || !spec.d_model.is_multiple_of(spec.n_heads) {
                return Err(Error::Dimension {
                    field: "n_heads",
                    found: spec.n_heads.to_string(),
                    expected: format!("a divisor of d_model = {}", spec.d_model),
                });
            }
            spec.n_kv_heads = spec.n_heads;
            spec.d_head = spec.d_model / spec.n_heads;
        }
        if self.d_model.is_some() {
            spec.d_ff = ratio.saturating_mul(spec.d_model);
        }
        set(&mut spec.d_ff, self.d_ff);
        if let (Vocabulary::Adaptive { d_embedding, .. }, true) = (&mut spec.vocabulary, self.d_model.is_some())
            && *d_embedding == old
        {
            *d_embedding = spec.d_model;
        }
        // Tables of their own width keep its ratio to the stream's.
        if let (TokenWidth::Own(width), true) = (&mut spec.token_width, self.d_model.is_some()) {
            *width = (*width * spec.d_model / old.max(1)).max(1);
        }
        match (&mut spec.memory, self.memory) {
            (_, None) => {}
            (Memory::Carried { length }, Some(n)) => {
                // A band is as long as the memory (same_length).
                if let Bands::Local { window, .. } = &mut spec.bands {
                    *window = n;
                }
                *length = n;
            }
            (Memory::None, Some(n)) => {
                let expected = "none: this member carries no memory".into();
                return Err(Error::Dimension { field: "memory", found: n.to_string(), expected });
            }
        }
        if let Encoder::Layers { n_layers, n_heads, d_ff } = &mut spec.encoder {
            set(n_layers, self.n_layers);
            set(n_heads, self.n_heads);
            if self.d_model.is_some() || self.d_ff.is_some() {
                *d_ff = spec.d_ff;
            }
        }
        spec.check()?;
        Ok(spec)
    }
}
