//! A member of the family with weights.

mod classify;
mod generator;
mod load;

pub use load::{LoadOptions, Loaded};

use crate::registry::{Classified, Pooling};
use crate::{Error, Family, Flops, Labels, Result, Task};
use candle_core::{Device, Tensor};
use genus_checkpoint::{TensorSpec, WriteOptions, write_tensors};
use genus_nn::{
    Builder, Classifier, Detector, Encoded, HeadBias, HeadTransform, Hidden, Input, LmHead, Memory, Planned, Pooler,
    RandomSource, Readout, SequenceCache, Source, Stack, StackSpec, StreamMemory, plan,
};
use genus_ops::{Activation, Param, Precision, Spans, Tape};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The parts of a model that its task needs.
#[derive(Debug)]
struct Parts {
    stack: Stack,
    /// What `stack` attends to, of a model that reads one sequence and writes another.
    encoder: Option<Stack>,
    lm_head: Option<LmHead>,
    pooler: Option<Pooler>,
    next_sentence: Option<Classifier>,
    detector: Option<Detector>,
    classifier: Option<Classifier>,
}

impl Parts {
    fn build(
        b: &mut Builder<'_>,
        family: &Family,
        spec: &StackSpec,
        task: Task,
        pooled: Option<Activation>,
        labels: &Labels,
    ) -> genus_nn::Result<Self> {
        let readout = if task.has_labels() { spec.readout } else { Readout::Last };
        let stack = Stack::build(b, &StackSpec { readout, ..spec.clone() }, None)?;
        let tokens = stack.embeddings().tokens();
        let encoder = match spec.encoder() {
            Some(encoder) => Some(b.within("encoder", |b| Stack::build(b, &encoder, Some(tokens)))?),
            None => None,
        };
        let pooler = pooled.map(|activation| Pooler::build(b, spec, activation)).transpose()?;
        let lm_head = if task.predicts_tokens() { Some(LmHead::build(b, spec, &stack, &family.head)?) } else { None };
        let next_sentence = match task.predicts_next_sentence() {
            true => Some(Classifier::build(b, "next_sentence", spec, 2, true)?),
            false => None,
        };
        let detector = if task == Task::ReplacedToken { Some(Detector::build(b, spec)?) } else { None };
        let biased = task == Task::TokenClassification || family.classified != Classified::LastToken;
        let classifier = match task {
            task if task.has_labels() => Some(Classifier::build(b, "classifier", spec, labels.names.len(), biased)?),
            _ => None,
        };
        Ok(Parts { stack, encoder, lm_head, pooler, next_sentence, detector, classifier })
    }
}

/// A member of the family with weights, made for one task.
#[derive(Debug)]
pub struct Model {
    family: &'static Family,
    spec: StackSpec,
    task: Task,
    parts: Parts,
    params: Vec<Param>,
    /// Of a model that classifies sequences or tokens.
    labels: Labels,
    /// What puts in tokens for this one to tell, while it trains; see [`Model::with_generator`].
    generator: Option<Box<Model>>,
    /// Fields of the configuration that were read and decide nothing here; they are written again.
    extra: Map<String, Value>,
    /// Own names to the names in the checkpoint that the weights came from.
    origin: BTreeMap<String, Vec<String>>,
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Family {
    /// The class name in Hugging Face's library for a task.
    pub fn class(&self, task: Task) -> Option<&'static str> {
        self.tasks.iter().find(|t| t.0 == task).map(|t| t.1)
    }

    /// The pretraining task.
    pub fn default_task(&self) -> Task {
        self.tasks[0].0
    }

    /// The task that this member means by `task`: what is called pretraining is telling replaced tokens where that is how a member is
    /// pretrained.
    ///
    /// # Errors
    /// When it has none such.
    pub fn resolve(&self, task: Task) -> Result<Task> {
        if self.class(task).is_some() {
            return Ok(task);
        }
        if task == Task::Pretraining && self.class(Task::ReplacedToken).is_some() {
            return Ok(Task::ReplacedToken);
        }
        let has = self.tasks.iter().map(|t| t.0.to_string()).collect();
        Err(Error::Task { family: self.name.into(), task, has })
    }

    /// The activation of the pooler of a model made for `task`, if it has one; `Base` may go without.
    fn pools(&self, task: Task) -> Option<Activation> {
        match self.pooling {
            Pooling::First if !matches!(task, Task::MaskedLm | Task::TokenClassification) => Some(Activation::Tanh),
            Pooling::ForClasses(activation) if task == Task::SequenceClassification => Some(activation),
            _ => None,
        }
    }

    /// Names and shapes of all parameters of a size, without memory for them.
    ///
    /// # Errors
    /// When the member lacks the task or the dimensions cannot be.
    pub fn plan(&self, spec: &StackSpec, task: Task) -> Result<Vec<Planned>> {
        self.plan_labelled(spec, task, &Labels::default())
    }

    fn plan_labelled(&self, spec: &StackSpec, task: Task, labels: &Labels) -> Result<Vec<Planned>> {
        let task = self.resolve(task)?;
        Ok(plan(|b| Parts::build(b, self, spec, task, self.pools(task), labels).map(|_| ()))?)
    }

    /// Number of parameters of a size.
    ///
    /// # Errors
    /// As [`Family::plan`].
    pub fn count(&self, spec: &StackSpec, task: Task) -> Result<u64> {
        let plan = self.plan(spec, task)?;
        Ok(plan.iter().filter(|p| p.learns).map(|p| p.shape.iter().map(|&n| n as u64).product::<u64>()).sum())
    }

    /// Checkpoint names and shapes of all parameters of a size.
    ///
    /// # Errors
    /// As [`Family::plan`].
    pub fn file_plan(&self, spec: &StackSpec, task: Task) -> Result<Vec<(String, Vec<usize>)>> {
        let task = self.resolve(task)?;
        let names = (self.names)(task, spec)?;
        let plan = self.plan(spec, task)?;
        Ok(plan.into_iter().filter_map(|p| Some((names.to_file(&p.name)?, p.shape))).collect())
    }
}

/// A serialisable structure as a JSON object.
pub(crate) fn object(config: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// A map of every token, from `d` numbers to `out`.
fn forward_tokens(flops: &mut Flops, spans: &Spans, d: usize, out: usize) {
    flops.forward += 2.0 * (spans.total() * d * out) as f64;
}

impl Model {
    /// A model with random weights.
    ///
    /// # Errors
    /// When the member lacks the task or the dimensions cannot be.
    pub fn random(family: &'static Family, spec: StackSpec, task: Task, seed: u64) -> Result<Self> {
        Self::from_source(family, spec, task, &mut RandomSource::new(seed))
    }

    /// A model whose parameters come from `source`.
    ///
    /// # Errors
    /// As [`Model::random`], and those of the source.
    pub fn from_source(family: &'static Family, spec: StackSpec, task: Task, source: &mut dyn Source) -> Result<Self> {
        Self::labelled(family, spec, task, Labels::default(), source)
    }

    /// As [`Model::from_source`], with the classes of a model that classifies sequences (two by default).
    ///
    /// # Errors
    /// As [`Model::from_source`], and when there is no class.
    pub fn labelled(
        family: &'static Family,
        spec: StackSpec,
        task: Task,
        labels: Labels,
        source: &mut dyn Source,
    ) -> Result<Self> {
        let task = family.resolve(task)?;
        if labels.names.is_empty() {
            return Err(Error::Dimension { field: "labels", found: "none".into(), expected: "at least one".into() });
        }
        let mut b = Builder::new(source);
        let parts = Parts::build(&mut b, family, &spec, task, family.pools(task), &labels)?;
        let params = b.finish();
        let (extra, origin, generator) = (Map::new(), BTreeMap::new(), None);
        Ok(Model { family, spec, task, parts, params, labels, generator, extra, origin })
    }

    /// Packs all weights of linear maps for inference in `precision`: products with them are faster, above all those of a few rows, and have the
    /// same bits. It pays for many forward passes; where gradients are taken, each use of such a weight unpacks it. Only f32 on the
    /// CPU is packed.
    ///
    /// # Errors
    /// None for a model that was built.
    pub fn prepare(&self, precision: Precision) -> Result<()> {
        let Parts { stack, encoder, lm_head, pooler, next_sentence, detector, classifier } = &self.parts;
        stack.prepare(precision)?;
        encoder.as_ref().map_or(Ok(()), |encoder| encoder.prepare(precision))?;
        lm_head.as_ref().map_or(Ok(()), |head| head.prepare(precision))?;
        pooler.as_ref().map_or(Ok(()), |pooler| pooler.prepare(precision))?;
        detector.as_ref().map_or(Ok(()), |detector| detector.prepare(precision))?;
        Ok(next_sentence.iter().chain(classifier).try_for_each(|head| head.prepare(precision))?)
    }

    /// Writes `config.json` and the weights into a folder, in Hugging Face's layout; those of a generator into the folder `generator`
    /// within it.
    ///
    /// # Errors
    /// When a file cannot be written; files that were there before stay as they were.
    pub fn save(&self, folder: impl AsRef<Path>, options: &WriteOptions) -> Result<()> {
        let folder = folder.as_ref();
        let mut tensors = self.named_tensors()?;
        for (_, t) in &mut tensors {
            *t = t.to_device(&Device::Cpu)?;
        }
        let specs: Vec<TensorSpec> = tensors
            .iter()
            .map(|(name, t)| TensorSpec { name: name.clone(), shape: t.dims().to_vec(), dtype: t.dtype() })
            .collect();
        write_tensors(folder, &specs, |i| Ok(tensors[i].1.clone()), options)?;
        self.save_config(folder, options)?;
        match &self.generator {
            Some(generator) => generator.save_beside(folder, options),
            None => Ok(()),
        }
    }

    /// Writes `config.json` alone.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_config(&self, folder: impl AsRef<Path>, options: &WriteOptions) -> Result<()> {
        let mut config = self.config();
        for field in ["dtype", "torch_dtype"] {
            if field == "dtype" || config.contains_key(field) {
                let name = match options.dtype {
                    genus_checkpoint::Dtype::F16 => "float16",
                    genus_checkpoint::Dtype::BF16 => "bfloat16",
                    _ => "float32",
                };
                config.insert(field.into(), name.into());
            }
        }
        let path: PathBuf = folder.as_ref().join("config.json");
        let text = serde_json::to_string_pretty(&Value::Object(config)).unwrap_or_default() + "\n";
        Ok(genus_checkpoint::atomic::atomic_write(&path, text.as_bytes())?)
    }

    /// The configuration as Hugging Face's library writes it.
    pub fn config(&self) -> Map<String, Value> {
        let mut config = self.extra.clone();
        config.append(&mut (self.family.write)(&self.spec));
        if self.task.has_labels() {
            self.labels.write(&mut config, self.family.classifier_dropout.0);
        }
        config.insert("model_type".into(), self.family.model_type.into());
        if let Some(class) = self.family.class(self.task) {
            config.insert("architectures".into(), vec![class].into());
        }
        config
    }

    /// Sets a field of the configuration that does not decide what is computed (`eos_token_id`).
    pub fn set_config_field(&mut self, field: &str, value: Value) {
        if let Some(generator) = &mut self.generator {
            generator.set_config_field(field, value.clone());
        }
        self.extra.insert(field.to_owned(), value);
    }

    /// A field of the configuration that was loaded.
    pub fn config_field(&self, field: &str) -> Option<&Value> {
        self.extra.get(field)
    }

    /// All parameters under the names that a checkpoint has for them.
    ///
    /// # Errors
    /// When the member's table of names lacks one.
    pub fn named_tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let names = (self.family.names)(self.task, &self.spec)?;
        self.own()
            .map(|(own, p)| match names.to_file(own) {
                Some(name) => Ok((name, p.tensor())),
                None => Err(genus_nn::Error::Parameter {
                    name: p.name().to_owned(),
                    reason: format!("the table of names of {} has no rule for it", self.family.name),
                }
                .into()),
            })
            .collect()
    }

    /// The names of a parameter in the checkpoint that it came from (several where it is tied), or that it would be saved under.
    ///
    /// # Errors
    /// When the member's table of names cannot be built.
    pub fn file_names(&self, param: &Param) -> Result<Vec<String>> {
        if let Some(names) = self.origin.get(param.name()) {
            return Ok(names.clone());
        }
        Ok((self.family.names)(self.task, &self.spec)?.to_file(param.name()).into_iter().collect())
    }

    /// The member of the family.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// The specification.
    pub fn spec(&self) -> &StackSpec {
        &self.spec
    }

    /// What it was made for.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Moves all parameters to a device; batches follow them there.
    ///
    /// # Errors
    /// When the device's memory is short.
    pub fn move_to(&self, device: &Device) -> Result<()> {
        for p in &self.params {
            p.set(p.tensor().to_device(device)?)?;
        }
        Ok(())
    }

    /// All parameters, each once, in order; those of a generator beside it are among them.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Number of parameters; buffers do not count.
    pub fn count(&self) -> u64 {
        self.params.iter().filter(|p| !self.is_buffer(p)).map(|p| p.elem_count() as u64).sum()
    }

    /// Whether a parameter is a buffer: it is saved and never learns.
    pub fn is_buffer(&self, param: &Param) -> bool {
        (self.family.head.bias == HeadBias::Fixed && param.name() == "lm_head.bias")
            || param.name() == "embeddings.spellings"
    }

    /// Arithmetic of a batch of which `predicted` rows are projected to the vocabulary; of a model with an encoder, `sources` are
    /// the spans that it reads.
    pub fn flops(&self, spans: &Spans, sources: &Spans, predicted: usize) -> Flops {
        let own = if self.parts.lm_head.is_some() { predicted } else { 0 };
        let mut flops = Flops::of(&self.spec, spans, own, self.family.head.transform == HeadTransform::Dense);
        if self.has_encoder() {
            flops.forward += Flops::of_encoder(&self.spec, spans, sources).forward;
        }
        let d = self.spec.d_hidden();
        if self.parts.detector.is_some() {
            forward_tokens(&mut flops, spans, d, d + 1);
        }
        if let Some(generator) = &self.generator {
            flops.forward += generator.flops(spans, sources, predicted).forward;
        }
        if self.task == Task::TokenClassification {
            forward_tokens(&mut flops, spans, d, self.labels.names.len());
        } else if let Some(classifier) = &self.parts.classifier {
            let pooler = if self.family.classified == Classified::LastToken { 0 } else { d };
            flops.forward += 2.0 * (spans.len() * d * (pooler + classifier.classes())) as f64;
        }
        flops
    }

    /// Sets the characters of every token, of a model that reads characters (see [`genus_nn::Characters`]).
    ///
    /// # Errors
    /// When the model reads none, or there are not as many as its tokens have.
    pub fn set_spellings(&self, characters: &[u32]) -> Result<()> {
        Ok(self.parts.stack.embeddings().set_spellings(characters)?)
    }

    /// Hidden states of a batch; appends to `caches` (one a sequence) if given.
    ///
    /// # Errors
    /// When ids, positions or segments are out of range.
    pub fn hidden(
        &self,
        tape: &Tape,
        input: &Input,
        caches: Option<&mut [SequenceCache]>,
        keep_all: bool,
    ) -> Result<Hidden> {
        Ok(self.parts.stack.forward(tape, input, None, caches, keep_all)?)
    }

    /// Hidden states of a batch of source sequences.
    ///
    /// # Errors
    /// When the model has no encoder, or ids or positions are out of range.
    pub fn encode(&self, tape: &Tape, source: &Input, keep_all: bool) -> Result<Hidden> {
        let encoder = self.part(self.parts.encoder.as_ref(), "encoder")?;
        Ok(encoder.forward(tape, source, None, None, keep_all)?)
    }

    /// A memory for the beginning of a text, of a model that carries one; `None` for others.
    ///
    /// # Errors
    /// When memory on the device is short.
    pub fn new_memory(&self) -> Result<Option<StreamMemory>> {
        if self.spec.memory == Memory::None {
            return Ok(None);
        }
        let like = self.parts.stack.embeddings().tokens().tensor();
        Ok(Some(StreamMemory::new(&self.spec, like.dtype(), like.device())?))
    }

    /// Hidden states of the next segments of texts; `memories`, one a text, then carry them on.
    ///
    /// # Errors
    /// As [`Model::hidden`], and when the model carries no memory.
    pub fn hidden_carrying(
        &self,
        tape: &Tape,
        input: &Input,
        memories: &mut [StreamMemory],
        keep_all: bool,
    ) -> Result<Hidden> {
        Ok(self.parts.stack.forward_carrying(tape, input, memories, keep_all)?)
    }

    /// Hidden states of texts: those of the encoder, where there is one.
    ///
    /// # Errors
    /// When ids, positions or segments are out of range.
    pub fn states(&self, tape: &Tape, input: &Input, keep_all: bool) -> Result<Hidden> {
        if self.has_encoder() { self.encode(tape, input, keep_all) } else { self.hidden(tape, input, None, keep_all) }
    }

    /// Hidden states of a batch whose sequences attend to what [`Model::encode`] made, one for one.
    ///
    /// # Errors
    /// As [`Model::hidden`], and when the model has no encoder or there are not as many encoded sequences.
    pub fn decode(&self, tape: &Tape, input: &Input, encoded: &Encoded, keep_all: bool) -> Result<Hidden> {
        Ok(self.parts.stack.forward(tape, input, Some(encoded), None, keep_all)?)
    }

    /// Keeps in new `caches`, one a sequence, what the layers read of an encoded batch.
    ///
    /// # Errors
    /// When the model has no encoder, or there are not as many caches as sequences.
    pub fn keep_encoded(&self, tape: &Tape, encoded: &Encoded, caches: &mut [SequenceCache]) -> Result<()> {
        Ok(self.parts.stack.keep_encoded(tape, encoded, caches)?)
    }

    /// Whether the model reads one sequence and writes another.
    pub fn has_encoder(&self) -> bool {
        self.parts.encoder.is_some()
    }

    /// The hidden states after the last token of those sequences that are `wanted`, one row each; appends to `caches` (one a
    /// sequence). The rows have the bits of [`Model::hidden`]'s, for less work.
    ///
    /// # Errors
    /// As [`Model::hidden`].
    pub fn hidden_ends(
        &self,
        tape: &Tape,
        input: &Input,
        caches: &mut [SequenceCache],
        wanted: &[bool],
    ) -> Result<genus_ops::Value> {
        Ok(self.parts.stack.forward_ends(tape, input, caches, wanted)?)
    }

    /// The head that predicts tokens.
    ///
    /// # Errors
    /// When the task has none.
    pub fn lm_head(&self) -> Result<&LmHead> {
        self.part(self.parts.lm_head.as_ref(), "head that predicts tokens")
    }

    /// The pooler.
    ///
    /// # Errors
    /// When the model has none.
    pub fn pooler(&self) -> Result<&Pooler> {
        self.part(self.parts.pooler.as_ref(), "pooler")
    }

    /// The head that tells whether one segment follows another.
    ///
    /// # Errors
    /// When the task has none.
    pub fn next_sentence(&self) -> Result<&Classifier> {
        self.part(self.parts.next_sentence.as_ref(), "next-sentence head")
    }

    /// The head that tells replaced tokens.
    ///
    /// # Errors
    /// When the task has none.
    pub fn detector(&self) -> Result<&Detector> {
        self.part(self.parts.detector.as_ref(), "head that tells replaced tokens")
    }

    fn part<'a, T>(&self, part: Option<&'a T>, what: &'static str) -> Result<&'a T> {
        part.ok_or(Error::NoPart { task: self.task, part: what })
    }
}
