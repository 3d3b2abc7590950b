//! A member of the family with weights.

mod classify;

use crate::registry::{Classified, Pooling};
use crate::{Error, Family, Flops, Labels, Result, Task, families, family};
use candle_core::{DType, Device, Tensor};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::{Expected, Resolution, resolve};
use genus_checkpoint::{TensorSpec, Weights, WriteOptions, write_tensors};
use genus_nn::{
    Builder, Classifier, HeadTransform, Hidden, Init, Input, LmHead, Planned, Pooler, RandomSource, SequenceCache,
    Source, Stack, StackSpec, plan,
};
use genus_ops::{Floats, Layout, Param, Precision, Prepared, Spans, Tape};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The parts of a model that its task needs.
#[derive(Debug)]
struct Parts {
    stack: Stack,
    lm_head: Option<LmHead>,
    pooler: Option<Pooler>,
    next_sentence: Option<Classifier>,
    classifier: Option<Classifier>,
}

impl Parts {
    fn build(
        b: &mut Builder<'_>,
        family: &Family,
        spec: &StackSpec,
        task: Task,
        pooled: bool,
        labels: &Labels,
    ) -> genus_nn::Result<Self> {
        let stack = Stack::build(b, spec)?;
        let pooler = if pooled { Some(Pooler::build(b, spec)?) } else { None };
        let lm_head = if task.predicts_tokens() { Some(LmHead::build(b, spec, &stack, &family.head)?) } else { None };
        let next_sentence = match task.predicts_next_sentence() {
            true => Some(Classifier::build(b, "next_sentence", spec, 2, true)?),
            false => None,
        };
        let biased = family.classified == Classified::Pooled;
        let classifier = match task {
            Task::SequenceClassification => Some(Classifier::build(b, "classifier", spec, labels.names.len(), biased)?),
            _ => None,
        };
        Ok(Parts { stack, lm_head, pooler, next_sentence, classifier })
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
    /// Of a model that classifies sequences.
    labels: Labels,
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

/// How a model folder is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// What for; by default what `architectures` in config.json says.
    pub task: Option<Task>,
    /// Where to.
    pub device: Device,
    /// Element type in memory: f32, or f64 for checks.
    pub dtype: DType,
    /// Packs weights for inference in this precision while they are read, as [`Model::prepare`] does afterwards.
    pub prepare: Option<Precision>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { task: None, device: Device::Cpu, dtype: DType::F32, prepare: None }
    }
}

/// A loaded model and what there is to say about its folder.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Tensors of the checkpoint that this task does not use, as sentences.
    pub warnings: Vec<String>,
}

/// Reads parameters from opened weights.
struct Checkpoint<'a> {
    weights: &'a Weights,
    resolution: &'a Resolution,
    options: &'a LoadOptions,
    /// Whether the token table is also the weight of the output projection.
    projects: bool,
    /// The first tensor in the file with an element that is not finite.
    not_finite: Option<String>,
}

impl Checkpoint<'_> {
    /// The checkpoint's name of a parameter.
    fn file(&self, name: &str) -> genus_nn::Result<&str> {
        let reason = "the checkpoint has no such tensor";
        let failed = || genus_nn::Error::Parameter { name: name.to_owned(), reason: reason.into() };
        self.resolution.get(name).ok_or_else(failed)
    }

    fn values(&self, name: &str) -> genus_nn::Result<Cow<'_, [f32]>> {
        let failed =
            |e: genus_checkpoint::Error| genus_nn::Error::Parameter { name: name.to_owned(), reason: e.to_string() };
        self.weights.f32(self.file(name)?).map_err(failed)
    }
}

/// Whether all values are finite; on all threads, since it reads whole models.
fn all_finite(values: &[f32]) -> bool {
    let finite = AtomicBool::new(true);
    genus_ops::pool::run_chunks(values.len(), 1 << 16, |r| {
        // Without a branch inside.
        if !values[r].iter().fold(true, |ok, v| ok & v.is_finite()) {
            finite.store(false, Ordering::Relaxed);
        }
    });
    finite.into_inner()
}

impl Source for Checkpoint<'_> {
    fn get(&mut self, name: &str, shape: &[usize], _: Init) -> genus_nn::Result<Tensor> {
        let (file, values) = (self.file(name)?.to_owned(), self.values(name)?);
        let finite = all_finite(&values);
        // The resolution checked the shape.
        let tensor = Tensor::from_vec(values.into_owned(), shape, &Device::Cpu)?;
        if !finite {
            self.not_finite.get_or_insert(file);
        }
        Ok(tensor.to_dtype(self.options.dtype)?.to_device(&self.options.device)?)
    }

    fn prepared(
        &mut self,
        name: &str,
        shape: &[usize],
        layout: Layout,
        table: bool,
    ) -> genus_nn::Result<Option<Prepared>> {
        let o = self.options;
        let Some(precision) = o.prepare.filter(|_| o.dtype == DType::F32 && matches!(o.device, Device::Cpu)) else {
            return Ok(None);
        };
        if table && !self.projects {
            return Ok(None);
        }
        let (d_in, d_out) = match layout {
            Layout::InOut => (shape[0], shape[1]),
            Layout::OutIn => (shape[1], shape[0]),
        };
        let pack = if table { Prepared::pack_table } else { Prepared::pack };
        let file = self.file(name)?;
        let weight = match self.weights.bf16(file) {
            Some(bits) => pack(Floats::Bf16(bits), layout, d_in, d_out, precision),
            None => pack(Floats::F32(&self.values(name)?), layout, d_in, d_out, precision),
        };
        self.weights.forget(file);
        let file = file.to_owned();
        if !weight.is_finite() {
            self.not_finite.get_or_insert(file);
        }
        Ok(Some(weight))
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

    fn check_task(&self, task: Task) -> Result<()> {
        if self.class(task).is_some() {
            return Ok(());
        }
        let has = self.tasks.iter().map(|t| t.0.to_string()).collect();
        Err(Error::Task { family: self.name.into(), task, has })
    }

    /// Whether a model made for `task` has a pooler; `Base` may go without.
    fn pools(&self, task: Task) -> bool {
        self.pooling == Pooling::First && task != Task::MaskedLm
    }

    /// Names and shapes of all parameters of a size, without memory for them.
    ///
    /// # Errors
    /// When the member lacks the task or the dimensions cannot be.
    pub fn plan(&self, spec: &StackSpec, task: Task) -> Result<Vec<Planned>> {
        self.plan_labelled(spec, task, &Labels::default())
    }

    fn plan_labelled(&self, spec: &StackSpec, task: Task, labels: &Labels) -> Result<Vec<Planned>> {
        self.check_task(task)?;
        Ok(plan(|b| Parts::build(b, self, spec, task, self.pools(task), labels).map(|_| ()))?)
    }

    /// Number of parameters of a size.
    ///
    /// # Errors
    /// As [`Family::plan`].
    pub fn count(&self, spec: &StackSpec, task: Task) -> Result<u64> {
        Ok(self.plan(spec, task)?.iter().map(|p| p.shape.iter().map(|&n| n as u64).product::<u64>()).sum())
    }

    /// Checkpoint names and shapes of all parameters of a size.
    ///
    /// # Errors
    /// As [`Family::plan`].
    pub fn file_plan(&self, spec: &StackSpec, task: Task) -> Result<Vec<(String, Vec<usize>)>> {
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
        family.check_task(task)?;
        if labels.names.is_empty() {
            return Err(Error::Dimension { field: "labels", found: "none".into(), expected: "at least one".into() });
        }
        let mut b = Builder::new(source);
        let parts = Parts::build(&mut b, family, &spec, task, family.pools(task), &labels)?;
        let params = b.finish();
        Ok(Model { family, spec, task, parts, params, labels, extra: Map::new(), origin: BTreeMap::new() })
    }

    /// Reads the member and the specification from a folder's `config.json`.
    ///
    /// # Errors
    /// When the file is missing or not a configuration of a known member.
    pub fn read_config(folder: &Path) -> Result<(&'static Family, StackSpec, JsonFile)> {
        let file = JsonFile::open(folder.join("config.json"))?;
        let found = match file.get("model_type").and_then(Value::as_str) {
            Some(t) => t.to_owned(),
            None => return Err(file.field_error("model_type", "a string").into()),
        };
        let Some(family) = family(&found) else {
            let supported: Vec<String> = families().iter().map(|f| f.model_type.to_owned()).collect();
            let nearest =
                genus_checkpoint::names::nearest_names(&found, families().iter().map(|f| f.model_type), 1).pop();
            return Err(Error::ModelType { file: file.path().to_owned(), found, supported, nearest });
        };
        let spec = (family.read)(&file)?;
        if let Err(genus_nn::Error::Spec { field, found, expected }) = spec.check() {
            // The file has another name for it: the field that holds this value.
            let fields = file.value().as_object();
            let named = fields.and_then(|m| m.iter().find(|(_, v)| v.to_string() == found)).map(|(k, _)| k.as_str());
            return Err(file.field_error(named.unwrap_or(field), expected).into());
        }
        Ok((family, spec, file))
    }

    /// Loads a model folder in Hugging Face's layout.
    ///
    /// # Errors
    /// When a file is missing or damaged, or weights and configuration contradict each other; all tensors that do not fit are
    /// listed.
    pub fn load(folder: impl AsRef<Path>, options: &LoadOptions) -> Result<Loaded> {
        let folder = folder.as_ref();
        let (family, spec, file) = Self::read_config(folder)?;
        let task = match options.task {
            Some(task) => task,
            None => named_task(family, &file)?,
        };
        family.check_task(task)?;
        let weights = Weights::open(folder)?;
        let names = (family.names)(task, &spec)?;
        let labels = if task == Task::SequenceClassification { Labels::read(&file)? } else { Labels::default() };
        let expected: Vec<Expected> = family
            .plan_labelled(&spec, task, &labels)?
            .into_iter()
            .map(|p| match task == Task::Base && p.name.starts_with("pooler.") {
                true => Expected::optional(p.name, p.shape),
                false => Expected::required(p.name, p.shape),
            })
            .collect();
        let resolution = resolve(&names, &expected, &weights)?;
        let pooled = family.pools(task) && !resolution.absent.iter().any(|n| n.starts_with("pooler."));
        let (weights, resolution_ref, projects) = (&weights, &resolution, task.predicts_tokens());
        let mut source = Checkpoint { weights, resolution: resolution_ref, options, projects, not_finite: None };
        let mut b = Builder::new(&mut source);
        let parts = Parts::build(&mut b, family, &spec, task, pooled, &labels)?;
        let params = b.finish();
        if let Some(tensor) = source.not_finite
            && let Some((index, value)) = weights.first_non_finite(&tensor)?
        {
            return Err(Error::NotFinite { file: folder.to_owned(), tensor, index, value });
        }
        let extra = file.value().as_object().cloned().unwrap_or_default();
        let mut warnings = Vec::new();
        if !resolution.other_heads.is_empty() {
            warnings.push(format!(
                "{}: {} tensor(s) of other heads are not used for the task {task}: {}",
                folder.display(),
                resolution.other_heads.len(),
                resolution.other_heads.join(", ")
            ));
        }
        let origin = resolution.names;
        Ok(Loaded { model: Model { family, spec, task, parts, params, labels, extra, origin }, warnings })
    }

    /// Packs all weights of linear maps for inference in `precision`: products with them are faster, above all those of a few rows, and have the
    /// same bits. It pays for many forward passes; where gradients are taken, each use of such a weight unpacks it. Only f32 on the
    /// CPU is packed.
    ///
    /// # Errors
    /// None for a model that was built.
    pub fn prepare(&self, precision: Precision) -> Result<()> {
        let Parts { stack, lm_head, pooler, next_sentence, classifier } = &self.parts;
        stack.prepare(precision)?;
        lm_head.as_ref().map_or(Ok(()), |head| head.prepare(precision))?;
        pooler.as_ref().map_or(Ok(()), |pooler| pooler.prepare(precision))?;
        Ok(next_sentence.iter().chain(classifier).try_for_each(|head| head.prepare(precision))?)
    }

    /// Writes `config.json` and the weights into a folder, in Hugging Face's layout.
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
        self.save_config(folder, options)
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
        if self.task == Task::SequenceClassification {
            self.labels.write(&mut config);
        }
        config.insert("model_type".into(), self.family.model_type.into());
        if let Some(class) = self.family.class(self.task) {
            config.insert("architectures".into(), vec![class].into());
        }
        config
    }

    /// Sets a field of the configuration that does not decide what is computed (`eos_token_id`).
    pub fn set_config_field(&mut self, field: &str, value: Value) {
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
        self.params
            .iter()
            .map(|p| match names.to_file(p.name()) {
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

    /// All parameters, each once, in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Number of parameters.
    pub fn count(&self) -> u64 {
        self.params.iter().map(|p| p.elem_count() as u64).sum()
    }

    /// Arithmetic of a batch of which `predicted` rows are projected to the vocabulary.
    pub fn flops(&self, spans: &Spans, predicted: usize) -> Flops {
        let mut flops = Flops::of(&self.spec, spans, predicted, self.family.head.transform == HeadTransform::Dense);
        if let Some(classifier) = &self.parts.classifier {
            let d = self.spec.d_model;
            let pooler = if self.family.classified == Classified::Pooled { d } else { 0 };
            flops.forward += 2.0 * (spans.len() * d * (pooler + classifier.classes())) as f64;
        }
        flops
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
        Ok(self.parts.stack.forward(tape, input, caches, keep_all)?)
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

    fn part<'a, T>(&self, part: Option<&'a T>, what: &'static str) -> Result<&'a T> {
        part.ok_or(Error::NoPart { task: self.task, part: what })
    }
}

/// The task that `architectures` names; without that field, the pretraining task if it is the only one with weights.
fn named_task(family: &'static Family, file: &JsonFile) -> Result<Task> {
    let found = file.get("architectures");
    let classes: Vec<&str> =
        found.and_then(Value::as_array).map(|a| a.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
    if let Some((task, _)) = family.tasks.iter().find(|(_, class)| classes.contains(class)) {
        return Ok(*task);
    }
    // Folders with a head that has no task here (a classifier, say) still give hidden states.
    Err(Error::Architectures {
        file: file.path().to_owned(),
        found: found.map_or("missing".into(), Value::to_string),
        expected: family.tasks.iter().map(|t| t.1.to_owned()).collect(),
    })
}
