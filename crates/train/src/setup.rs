//! Which model and which tokenizer a run starts from.

use crate::text::Text;
use crate::{Error, Objective, Phase, Result, TrainConfig};
use genus_checkpoint::FILE_NAMES;
use genus_models::nn::{Init, Memory, RandomSource, Source, Vocabulary};
use genus_models::{Family, Labels, LoadOptions, Model, StackSpec, find_preset};
use genus_ops::Tensor;
use genus_text::{Tokenizer, TokenizerSpec, TrainKind, TrainOptions};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Tokens of a vocabulary that is learned because none was given.
const DEFAULT_VOCAB: usize = 8_000;

/// A model before its weights exist.
pub(crate) struct Plan {
    pub family: &'static Family,
    pub spec: StackSpec,
    pub objective: Objective,
    /// Where weights come from; random otherwise.
    weights: Option<PathBuf>,
    /// Of a model that tags.
    labels: Option<Labels>,
    /// Where a tokenizer may be found if none is given.
    folder: Option<PathBuf>,
}

/// Makes paths of the configuration independent of the working folder.
pub(crate) fn absolute(config: &TrainConfig) -> TrainConfig {
    let whole = |p: &Path| std::path::absolute(p).unwrap_or_else(|_| p.to_owned());
    let mut c = config.clone();
    if Path::new(&c.model).is_dir() {
        c.model = whole(Path::new(&c.model)).display().to_string();
    }
    c.init = c.init.as_deref().map(whole);
    if let Ok(Some(TokenizerSpec::Folder(p))) = c.tokenizer_spec() {
        c.tokenizer = Some(whole(&p).display().to_string());
    }
    c
}

impl Plan {
    /// Reads the model's configuration.
    pub fn new(config: &TrainConfig, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let path = Path::new(&config.model);
        let (mut family, mut spec, mut folder, mut weights) = if path.is_dir() {
            let (family, spec, _) = Model::read_config(path)?;
            let has = FILE_NAMES.iter().any(|f| path.join(f).exists());
            (family, spec, Some(path.to_owned()), has.then(|| path.to_owned()))
        } else {
            let (family, preset) = find_preset(&config.model)?;
            (family, (preset.spec)(), None, None)
        };
        if let Some(init) = &config.init {
            let (other, its, _) = Model::read_config(init)?;
            if other.model_type != family.model_type {
                let expected = format!("a model of type {} as {} is", family.model_type, config.model);
                return Err(Error::config(
                    "init",
                    format!("of type {} ({})", other.model_type, init.display()),
                    expected,
                ));
            }
            if its != spec && !path.is_dir() {
                say(&format!("dimensions are those of {}", init.display()));
            }
            (family, spec) = (other, its);
            (folder, weights) = (Some(init.clone()), Some(init.clone()));
        }
        if let Some(dir) = &weights {
            same_dimensions(config, &spec, dir)?;
        } else {
            spec = config.dimensions().apply(spec)?;
        }
        if let Some(p) = config.dropout {
            (spec.dropout.embedding, spec.dropout.attention, spec.dropout.residual) = (p, p, p);
            // Not every member drops inside its networks.
            if spec.dropout.inner > 0.0 {
                spec.dropout.inner = p;
            }
        }
        let objective = match config.objective.or(Objective::of(family.task_of(&config.model))) {
            Some(o) => o,
            None => {
                return Err(Error::config(
                    "objective",
                    "not given",
                    "causal, bidirectional, masked, pretraining or translation",
                ));
            }
        };
        // An objective that the member cannot have is told now, not after the data was read.
        family.plan(&spec, objective.task())?;
        Ok(Plan { family, spec, objective, weights, labels: None, folder })
    }

    /// Settles the classes of a model that tags: those of the folder that it comes from, where it tags already, or those of the data.
    pub fn set_labels(&mut self, found: Vec<String>) -> Result<()> {
        let task = self.objective.task();
        let of_folder = self.weights.as_deref().map(|f| Model::read_labels(f, task)).transpose()?.flatten();
        let Some(labels) = of_folder else {
            self.labels = Some(Labels { names: found, ..Labels::default() });
            return Ok(());
        };
        if let Some(other) = found.iter().find(|l| !labels.names.contains(l)) {
            let expected = format!("one of the model's tags: {}", labels.names.join(", "));
            return Err(Error::config("data", format!("with the tag {other}"), expected));
        }
        self.labels = Some(labels);
        Ok(())
    }

    /// A model that carries a memory reads texts side by side, in windows that need not be as long as it could take.
    pub fn check_memory(&self, config: &mut TrainConfig) -> Result<()> {
        if self.spec.memory == Memory::None {
            return Ok(());
        }
        if config.separate_documents {
            let expected = "false: a model with memory reads documents one after the other";
            return Err(Error::config("separate_documents", true, expected));
        }
        if config.batch_ramp_steps > 0 {
            let expected = "0: a model with memory reads as many texts side by side as a batch has rows";
            return Err(Error::config("batch_ramp_steps", config.batch_ramp_steps, expected));
        }
        config.context.get_or_insert(self.spec.segment());
        Ok(())
    }

    /// Which tokenizer: the one given, that of the model's folder, or one to be learned from the text.
    pub fn tokenizer_spec(&self, config: &TrainConfig, say: &mut dyn FnMut(&str)) -> Result<TokenizerSpec> {
        Ok(match (config.tokenizer_spec()?, &self.folder) {
            (Some(spec), _) => spec,
            (None, Some(folder)) => TokenizerSpec::Folder(folder.clone()),
            (None, None) => {
                let kind = match self.objective {
                    Objective::Causal | Objective::Translation => TrainKind::Bpe,
                    _ => TrainKind::WordPiece,
                };
                let spec = TokenizerSpec::Train { kind, vocab_size: DEFAULT_VOCAB };
                say(&format!("no tokenizer given: learning one from the data ({spec})"));
                spec
            }
        })
    }

    /// Fits the vocabulary of a model with random weights to the tokenizer's.
    pub fn fit_vocabulary(
        &mut self,
        config: &TrainConfig,
        tokenizer: &Tokenizer,
        say: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let (tokens, model) = (tokenizer.vocab_size(), self.spec.vocab_size);
        if tokens > model {
            let advice = match (&self.weights, config.vocab_size) {
                (Some(_), _) => "use the tokenizer that belongs to the weights",
                (None, Some(_)) => "leave out vocab_size to have the tokenizer's",
                (None, None) => "choose a smaller tokenizer, or give vocab_size",
            };
            return Err(Error::Vocabulary { tokenizer: tokens, model, advice });
        }
        if tokens < model && self.weights.is_none() && config.vocab_size.is_none() {
            say(&format!("vocab_size is {tokens}, the tokenizer's (the preset's is {model})"));
            self.spec.set_vocab_size(tokens);
        }
        Ok(())
    }

    /// The model with its first weights, and the spellings of its tokens where it reads characters.
    pub fn model(&self, config: &TrainConfig, tokenizer: &Tokenizer, say: &mut dyn FnMut(&str)) -> Result<Model> {
        let model = self.one(config.seed, tokenizer, say)?;
        if self.objective != Objective::ReplacedTokens {
            return Ok(model);
        }
        let (share, seed) = (config.generator_share, config.seed);
        let Some(folder) = &self.weights else { return Ok(model.with_random_generator(share, seed)?) };
        let model = model.load_generator(folder, &LoadOptions::default())?;
        if model.generator().is_some() {
            return Ok(model);
        }
        say(&format!("{} holds no generator: a new one begins at random", folder.display()));
        Ok(model.with_random_generator(share, seed)?)
    }

    fn one(&self, seed: u64, tokenizer: &Tokenizer, say: &mut dyn FnMut(&str)) -> Result<Model> {
        let task = self.objective.task();
        let labels = self.labels.clone().unwrap_or_default();
        let Some(folder) = &self.weights else {
            let source = &mut RandomSource::new(seed);
            let model = Model::labelled(self.family, self.spec.clone(), task, labels, source)?;
            if let Vocabulary::Characters(c) = &self.spec.vocabulary {
                model.set_spellings(&genus_text::spellings(tokenizer, self.spec.vocab_size, c.length))?;
            }
            return Ok(model);
        };
        // A new task's head is not in the folder.
        let begin = (self.objective == Objective::Tagging).then_some(seed);
        let options = LoadOptions { task: Some(task), begin, labels: self.labels.clone(), ..LoadOptions::default() };
        let loaded = Model::load(folder, &options)?;
        loaded.warnings.iter().for_each(|w| say(w));
        if *loaded.model.spec() == self.spec {
            return Ok(loaded.model);
        }
        // Other dropout than the folder's.
        let named = |p: &genus_ops::Param| (p.name().to_owned(), p.tensor());
        let mut source = Tensors(loaded.model.params().iter().map(named).collect());
        Ok(Model::labelled(self.family, self.spec.clone(), task, labels, &mut source)?)
    }
}

/// Opens a tokenizer, or learns it from `text`.
///
/// Learning happens on another thread, so that `progress` is called on the caller's.
pub(crate) fn tokenizer(spec: &TokenizerSpec, text: &Text, progress: &mut dyn FnMut(Phase)) -> Result<Tokenizer> {
    let (kind, vocab_size) = match spec {
        TokenizerSpec::Folder(folder) => return Ok(Tokenizer::open(folder)?),
        TokenizerSpec::Bytes => return Ok(Tokenizer::bytes()),
        TokenizerSpec::Train { kind, vocab_size } => (*kind, *vocab_size),
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let learning = scope.spawn(move || {
            let options = TrainOptions::new(kind, vocab_size);
            // A closed channel means that nobody listens, which is no reason to stop.
            Tokenizer::train(&options, text.lines(), |p| {
                let _ = sender.send(p);
            })
        });
        // Ends when the sender is dropped with the other thread's work.
        receiver.iter().for_each(|p| progress(Phase::Tokenizer(p)));
        Ok(learning.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?)
    })
}

struct Tensors(HashMap<String, Tensor>);

impl Source for Tensors {
    fn get(&mut self, name: &str, _: &[usize], _: Init) -> genus_models::nn::Result<Tensor> {
        self.0.remove(name).ok_or_else(|| genus_models::nn::Error::Parameter {
            name: name.to_owned(),
            reason: "the loaded model has no such parameter".into(),
        })
    }
}

/// Dimensions given by hand must be those of the weights.
fn same_dimensions(config: &TrainConfig, spec: &StackSpec, folder: &Path) -> Result<()> {
    let given = config.dimensions();
    let pairs = [
        ("n_layers", given.n_layers, spec.n_layers),
        ("d_model", given.d_model, spec.d_model),
        ("n_heads", given.n_heads, spec.n_heads),
        ("d_ff", given.d_ff, spec.d_ff),
        ("vocab_size", given.vocab_size, spec.vocab_size),
        ("n_ctx", given.n_ctx, spec.n_ctx),
        ("memory", given.memory, spec.memory_length()),
    ];
    for (field, wanted, is) in pairs {
        if let Some(found) = wanted.filter(|&w| w != is) {
            return Err(Error::config(field, found, format!("{is} as in the weights of {}", folder.display())));
        }
    }
    Ok(())
}
