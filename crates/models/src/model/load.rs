//! Models from folders in Hugging Face's layout.

use super::{Model, Parts};
use crate::{Dimensions, Error, Family, Labels, Result, Task, families, family};
use candle_core::{DType, Device, Tensor};
use genus_checkpoint::Weights;
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::names::{Expected, NameMap, Resolution, resolve};
use genus_nn::{Bands, Builder, Init, Memory, RandomSource, Source, StackSpec};
use genus_ops::{Floats, Layout, Precision, Prepared};
use serde_json::Value;
use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// With a seed, parameters of heads that the checkpoint lacks begin at random (which is told); without, that is an error.
    pub begin: Option<u64>,
    /// The classes of a model that classifies, instead of those of its configuration.
    pub labels: Option<Labels>,
    /// Tokens of memory, instead of those that the configuration says.
    pub memory: Option<usize>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            task: None,
            device: Device::Cpu,
            dtype: DType::F32,
            prepare: None,
            begin: None,
            labels: None,
            memory: None,
        }
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

    fn lacks(&self, name: &str) -> bool {
        self.resolution.absent.iter().any(|n| n == name)
    }

    fn values(&self, name: &str) -> genus_nn::Result<Cow<'_, [f32]>> {
        let failed =
            |e: genus_checkpoint::Error| genus_nn::Error::Parameter { name: name.to_owned(), reason: e.to_string() };
        self.weights.f32(self.file(name)?).map_err(failed)
    }
}

/// Whether a parameter belongs to a head.
fn is_head(name: &str) -> bool {
    ["lm_head.", "pooler.", "next_sentence.", "detector.", "classifier.", "mix."]
        .iter()
        .any(|head| name.starts_with(head))
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
    fn get(&mut self, name: &str, shape: &[usize], init: Init) -> genus_nn::Result<Tensor> {
        if let Some(seed) = self.options.begin.filter(|_| is_head(name) && self.lacks(name)) {
            let t = RandomSource::new(seed).get(name, shape, init)?;
            return Ok(t.to_dtype(self.options.dtype)?.to_device(&self.options.device)?);
        }
        // A buffer that checkpoints may lack.
        if init == Init::Zeros && self.lacks(name) {
            return Ok(Tensor::zeros(shape, self.options.dtype, &self.options.device)?);
        }
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
        if (table && !self.projects) || self.lacks(name) {
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

impl Model {
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

    /// The classes in a folder's configuration, if its model is made for `task`.
    ///
    /// # Errors
    /// As [`Model::read_config`], and when the classes cannot be.
    pub fn read_labels(folder: &Path, task: Task) -> Result<Option<Labels>> {
        let (family, _, file) = Self::read_config(folder)?;
        match named_task(family, &file) {
            Ok(found) if found == task => Ok(Some(Labels::read(&file, family.classifier_dropout)?)),
            _ => Ok(None),
        }
    }

    /// Loads a model folder in Hugging Face's layout.
    ///
    /// # Errors
    /// When a file is missing or damaged, or weights and configuration contradict each other; all tensors that do not fit are
    /// listed.
    pub fn load(folder: impl AsRef<Path>, options: &LoadOptions) -> Result<Loaded> {
        let folder = folder.as_ref();
        let (family, spec, file) = Self::read_config(folder)?;
        let spec = match options.memory {
            Some(length) => with_memory(family, spec, length, &file)?,
            None => spec,
        };
        let task = match options.task {
            Some(task) => family.resolve(task)?,
            None => named_task(family, &file)?,
        };
        let weights = Weights::open(folder)?;
        let names = (family.names)(task, &spec)?;
        let labels = match &options.labels {
            Some(labels) => labels.clone(),
            None if task.has_labels() => Labels::read(&file, family.classifier_dropout)?,
            None => Labels::default(),
        };
        let expected: Vec<Expected> = family
            .plan_labelled(&spec, task, &labels)?
            .into_iter()
            .map(|p| {
                match !p.learns
                    || (task == Task::Base && p.name.starts_with("pooler."))
                    || (options.begin.is_some() && is_head(&p.name))
                {
                    true => Expected::optional(p.name, p.shape),
                    false => Expected::required(p.name, p.shape),
                }
            })
            .collect();
        let resolution = match resolve(&names, &expected, &weights) {
            Ok(resolution) => resolution,
            Err(error) => return Err(other_member(family, &names, &weights, folder).unwrap_or(error.into())),
        };
        let absent = resolution.absent.iter().any(|n| n.starts_with("pooler."));
        let pooled = family.pools(task).filter(|_| task != Task::Base || !absent);
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
        let new: Vec<&str> = resolution.absent.iter().map(String::as_str).filter(|n| is_head(n)).collect();
        if options.begin.is_some() && !new.is_empty() {
            let (n, names) = (new.len(), new.join(", "));
            warnings.push(format!(
                "{}: {n} parameter(s) of the head for {task} begin at random: {names}",
                folder.display()
            ));
        }
        let (origin, generator) = (resolution.names, None);
        let model = Model { family, spec, task, parts, params, labels, generator, extra, origin };
        Ok(Loaded { model, warnings })
    }
}

/// Whether tensors that are not the model's are another member's: one whose names nearly all of them have, and few are the model's.
fn other_member(family: &Family, names: &NameMap, weights: &Weights, folder: &Path) -> Option<Error> {
    let of = |map: &NameMap| weights.names().filter(|n| map.to_internal(n).is_some()).count();
    let all = weights.names().count();
    if 2 * of(names) > all {
        return None;
    }
    let known = |f: &&&Family| {
        let map = (f.names)(f.default_task(), &(f.presets[0].spec)());
        f.model_type != family.model_type && map.is_ok_and(|map| 10 * of(&map) >= 9 * all)
    };
    let found = families().iter().find(known)?.model_type.to_owned();
    Some(Error::Architecture { folder: folder.to_owned(), found, expected: family.model_type.to_owned() })
}

/// The specification with another memory than the configuration's.
fn with_memory(family: &Family, spec: StackSpec, length: usize, file: &JsonFile) -> Result<StackSpec> {
    let wrong = |expected: String| {
        let expected = format!("{expected} ({})", file.path().display());
        Err(Error::Dimension { field: "memory", found: length.to_string(), expected })
    };
    if spec.memory == Memory::None {
        return wrong(format!("none: {} carries no memory", family.model_type));
    }
    if length == 0 && spec.bands != Bands::None {
        let own = spec.memory_length();
        return wrong(format!("at least 1: same_length is true, and every token sees mem_len = {own} tokens"));
    }
    Dimensions { memory: Some(length), ..Dimensions::default() }.apply(spec)
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
