//! The generator beside a model that learns to tell replaced tokens (ELECTRA, Clark et al. 2020, section 2).

use super::{Model, Parts};
use crate::{Error, LoadOptions, Result, Task};
use genus_checkpoint::WriteOptions;
use genus_nn::{Builder, Init, RandomSource, Source, StackSpec, TokenWidth};
use genus_ops::{Device, Param, Tensor};
use serde_json::Map;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The folder of the generator within the model's, and the scope of its parameters' names.
const NAME: &str = "generator";

/// Gives what a loaded generator has.
struct Tensors(HashMap<String, Tensor>);

impl Source for Tensors {
    fn get(&mut self, name: &str, _: &[usize], _: Init) -> genus_nn::Result<Tensor> {
        let own = name.split_once('.').map_or(name, |(_, own)| own);
        self.0.remove(own).ok_or_else(|| genus_nn::Error::Parameter {
            name: name.to_owned(),
            reason: "the generator that was loaded has no such parameter".into(),
        })
    }
}

impl Model {
    /// The generator, where there is one.
    pub fn generator(&self) -> Option<&Model> {
        self.generator.as_deref()
    }

    /// The size of a generator that has this share of the model's heads (the paper: 1/4 for small and large, 1/3 for base), and of its
    /// width with them; as many layers.
    ///
    /// # Errors
    /// When the share is not above 0 and at most 1.
    pub fn generator_spec(&self, share: f64) -> Result<StackSpec> {
        if !(share > 0.0 && share <= 1.0) {
            let expected = "above 0 and at most 1".into();
            return Err(Error::Dimension { field: "generator_share", found: share.to_string(), expected });
        }
        let spec = &self.spec;
        let n_heads = ((spec.n_heads as f64 * share).round() as usize).max(1);
        let d_model = n_heads * spec.d_head;
        Ok(StackSpec {
            d_model,
            n_heads,
            n_kv_heads: n_heads,
            d_ff: (spec.d_ff * d_model / spec.d_model).max(1),
            token_width: TokenWidth::Own(spec.d_embedding()),
            ..spec.clone()
        })
    }

    /// The model with a generator beside it, whose embeddings are the model's. The source is asked for its other parameters, by names
    /// that begin with `generator.`
    ///
    /// # Errors
    /// When the model does not tell replaced tokens, the embeddings have other sizes, or a parameter cannot be had.
    pub fn with_generator(mut self, spec: StackSpec, source: &mut dyn Source) -> Result<Self> {
        self.detector()?;
        let task = self.family.resolve(Task::MaskedLm)?;
        let embeddings: Vec<Param> =
            self.params.iter().filter(|p| p.name().starts_with("embeddings.")).cloned().collect();
        let mut b = Builder::sharing(source, embeddings);
        let labels = crate::Labels::default();
        let parts = b.within(NAME, |b| Parts::build(b, self.family, &spec, task, self.family.pools(task), &labels))?;
        let params = b.finish();
        let theirs = |p: &&Param| !self.params.iter().any(|own| own.same(p));
        let more: Vec<Param> = params.iter().filter(theirs).cloned().collect();
        self.params.extend(more);
        let (extra, origin) = (Map::new(), BTreeMap::new());
        let family = self.family;
        let generator = Model { family, spec, task, parts, params, labels, generator: None, extra, origin };
        self.generator = Some(Box::new(generator));
        Ok(self)
    }

    /// The model with a new generator of that share of its size ([`Model::generator_spec`]).
    ///
    /// # Errors
    /// As [`Model::with_generator`].
    pub fn with_random_generator(self, share: f64, seed: u64) -> Result<Self> {
        let spec = self.generator_spec(share)?;
        let dtype = self.params[0].tensor().dtype();
        self.with_generator(spec, &mut RandomSource::on(seed, dtype, Device::Cpu))
    }

    /// The model with the generator that [`Model::save`] wrote into the folder with it; as it is where there is none.
    ///
    /// # Errors
    /// As [`Model::load`] and [`Model::with_generator`].
    pub fn load_generator(self, folder: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let folder = folder.as_ref().join(NAME);
        if !folder.is_dir() {
            return Ok(self);
        }
        let options = LoadOptions { task: Some(Task::MaskedLm), ..options.clone() };
        let loaded = Model::load(&folder, &options)?.model;
        if loaded.family.name != self.family.name {
            let (found, expected) = (loaded.family.name.to_owned(), self.family.name.to_owned());
            return Err(Error::Dimension { field: "model_type of the generator", found, expected });
        }
        let tensors = loaded.params.iter().map(|p| (p.name().to_owned(), p.tensor())).collect();
        let spec = StackSpec { dropout: self.spec.dropout, ..loaded.spec };
        self.with_generator(spec, &mut Tensors(tensors))
    }

    /// Writes a generator into its folder within the model's.
    pub(super) fn save_beside(&self, folder: &Path, options: &WriteOptions) -> Result<()> {
        self.save(folder.join(NAME), options)
    }

    /// The parameters of this model alone, with their names in it.
    pub(super) fn own(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.params.iter().filter_map(|p| match p.name().strip_prefix("generator.") {
            None => Some((p.name(), p)),
            // The generator itself.
            Some(name) if self.generator.is_none() => Some((name, p)),
            Some(_) => None,
        })
    }
}
