//! Where parameters come from.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use genus_ops::{Layout, Param, Prepared, rng::Key};

/// How a parameter begins when no checkpoint gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// 1 from one element up to another, 0 elsewhere.
    OnesWithin {
        /// The first that is 1.
        from: usize,
        /// The first behind them.
        to: usize,
    },
    /// A normal distribution around 0 with this standard deviation.
    Normal(f64),
}

/// Gives a model's parameters by name.
pub trait Source {
    /// The value of parameter `name`, of shape `shape`.
    ///
    /// # Errors
    /// When the source has no such parameter, or one of another shape.
    fn get(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor>;

    /// The weight of a linear map packed for inference straight from where it lies; `None` when it is to come as a tensor.
    /// `table`: its rows are looked up as well.
    ///
    /// # Errors
    /// As [`Source::get`].
    fn prepared(&mut self, _name: &str, _shape: &[usize], _layout: Layout, _table: bool) -> Result<Option<Prepared>> {
        Ok(None)
    }
}

/// Builds blocks and remembers their parameters, in order.
pub struct Builder<'a> {
    source: &'a mut dyn Source,
    params: Vec<Param>,
    /// Those of another model, to be this one's too where names agree.
    shared: Vec<Param>,
    /// What precedes the names of parameters.
    scope: String,
}

impl<'a> Builder<'a> {
    /// A builder that reads from `source`.
    pub fn new(source: &'a mut dyn Source) -> Self {
        Builder { source, params: Vec::new(), shared: Vec::new(), scope: String::new() }
    }

    /// As [`Builder::new`], with parameters of another model that this one has too, by their names without a scope: they are not asked
    /// of the source, and the two models share them.
    pub fn sharing(source: &'a mut dyn Source, params: impl IntoIterator<Item = Param>) -> Self {
        Builder { shared: params.into_iter().collect(), ..Builder::new(source) }
    }

    /// The other model's parameter of that name.
    fn shared(&mut self, name: &str, shape: &[usize]) -> Result<Option<Param>> {
        let Some(param) = self.shared.iter().find(|p| p.name() == name).cloned() else { return Ok(None) };
        if param.dims() != shape {
            let reason = format!("the model that it is shared with has shape {:?}, expected {shape:?}", param.dims());
            return Err(Error::Parameter { name: name.to_owned(), reason });
        }
        self.params.push(param.clone());
        Ok(Some(param))
    }

    /// Lets `build` make parameters whose names begin with `scope` and a dot.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn within<R>(&mut self, scope: &str, build: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let outer = self.scope.clone();
        self.scope.push_str(scope);
        self.scope.push('.');
        let result = build(self);
        self.scope = outer;
        result
    }

    fn scoped(&self, name: impl Into<String>) -> String {
        let name: String = name.into();
        if self.scope.is_empty() { name } else { format!("{}{name}", self.scope) }
    }

    /// A tensor that checkpoints hold and that does not learn.
    ///
    /// # Errors
    /// As [`Builder::param`].
    pub fn buffer(&mut self, name: impl Into<String>, shape: &[usize]) -> Result<Param> {
        let param = self.param(name, shape, Init::Zeros)?;
        param.set_trainable(false);
        Ok(param)
    }

    /// A new parameter.
    ///
    /// # Errors
    /// When the source cannot give it.
    pub fn param(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Result<Param> {
        let name: String = name.into();
        if let Some(param) = self.shared(&name, shape)? {
            return Ok(param);
        }
        let name = self.scoped(name);
        self.named(name, shape, init)
    }

    fn named(&mut self, name: String, shape: &[usize], init: Init) -> Result<Param> {
        let tensor = self.source.get(&name, shape, init)?;
        if tensor.dims() != shape {
            let reason = format!("found shape {:?}, expected {shape:?}", tensor.dims());
            return Err(Error::Parameter { name, reason });
        }
        let param = Param::new(name, tensor);
        self.params.push(param.clone());
        Ok(param)
    }

    /// A new parameter that is the weight of a linear map, stored as `layout` says.
    ///
    /// # Errors
    /// As [`Builder::param`].
    pub fn weight(&mut self, name: impl Into<String>, shape: &[usize], layout: Layout, init: Init) -> Result<Param> {
        self.product(name.into(), shape, layout, init, false)
    }

    /// As [`Builder::weight`], for a table `[rows, width]` that a tied output projection may share.
    ///
    /// # Errors
    /// As [`Builder::param`].
    pub fn shared_table(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Result<Param> {
        self.product(name.into(), shape, Layout::OutIn, init, true)
    }

    fn product(&mut self, name: String, shape: &[usize], layout: Layout, init: Init, table: bool) -> Result<Param> {
        if let Some(param) = self.shared(&name, shape)? {
            return Ok(param);
        }
        let name = self.scoped(name);
        let prepared = self.source.prepared(&name, shape, layout, table)?;
        let Some(weight) = prepared else { return self.named(name, shape, init) };
        if weight.dims() != shape {
            let reason = format!("found shape {:?}, expected {shape:?}", weight.dims());
            return Err(Error::Parameter { name, reason });
        }
        let param = Param::from_prepared(name, weight);
        self.params.push(param.clone());
        Ok(param)
    }

    /// All parameters made so far, in order.
    pub fn finish(self) -> Vec<Param> {
        self.params
    }
}

/// Draws initial values. A parameter's values depend on the seed, its name and nothing else.
pub struct RandomSource {
    seed: u64,
    dtype: DType,
    device: Device,
}

impl RandomSource {
    /// f32 on the CPU.
    pub fn new(seed: u64) -> Self {
        Self::on(seed, DType::F32, Device::Cpu)
    }

    /// Any element type and device.
    pub fn on(seed: u64, dtype: DType, device: Device) -> Self {
        RandomSource { seed, dtype, device }
    }
}

impl Source for RandomSource {
    fn get(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        Ok(match init {
            Init::Zeros => Tensor::zeros(shape, self.dtype, &self.device)?,
            Init::Ones => Tensor::ones(shape, self.dtype, &self.device)?,
            Init::OnesWithin { from, to } => {
                let one = |i: usize| f32::from(u8::from((from..to).contains(&i)));
                let values = (0..shape.iter().product()).map(one).collect::<Vec<f32>>();
                Tensor::from_vec(values, shape, &self.device)?.to_dtype(self.dtype)?
            }
            Init::Normal(std) => {
                // FNV-1a of the name picks the stream.
                let stream =
                    name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
                let values = normal(Key::new(self.seed, stream), shape.iter().product(), std);
                Tensor::from_vec(values, shape, &self.device)?.to_dtype(self.dtype)?
            }
        })
    }
}

/// Normal numbers by the method of Box and Muller.
fn normal(key: Key, n: usize, std: f64) -> Vec<f32> {
    let mut values = vec![0f32; n];
    let base = key.bits();
    for (pair, out) in values.chunks_mut(2).enumerate() {
        let bits = genus_ops::rng::mix64(base.wrapping_add((pair as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let u = ((bits >> 32) as f32 + 0.5) * (1.0 / 4_294_967_296.0);
        let angle = (bits as u32) as f32 * (std::f32::consts::TAU / 4_294_967_296.0);
        let r = (-2.0 * u.max(f32::MIN_POSITIVE).ln()).max(0.0).sqrt() * std as f32;
        out[0] = r * angle.cos();
        if let Some(second) = out.get_mut(1) {
            *second = r * angle.sin();
        }
    }
    values
}

/// A parameter that a model would have.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The name inside the model.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether it learns; buffers do not.
    pub learns: bool,
}

/// The parameters that `build` would make, without memory for them: a model of any size can be planned.
///
/// # Errors
/// Those of `build`.
pub fn plan(build: impl FnOnce(&mut Builder<'_>) -> Result<()>) -> Result<Vec<Planned>> {
    struct Plan;
    impl Source for Plan {
        fn get(&mut self, _: &str, shape: &[usize], _: Init) -> Result<Tensor> {
            // One element seen through the shape.
            Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
        }
    }
    let mut source = Plan;
    let mut b = Builder::new(&mut source);
    build(&mut b)?;
    let planned = |p: Param| Planned { name: p.name().to_owned(), shape: p.dims(), learns: p.trainable() };
    Ok(b.finish().into_iter().map(planned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_their_moments() {
        let n = 100_001;
        let x = normal(Key::new(3, 5), n, 0.02);
        let mean = x.iter().map(|&v| v as f64).sum::<f64>() / n as f64;
        let std = (x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        let fourth = x.iter().map(|&v| (v as f64 / 0.02).powi(4)).sum::<f64>() / n as f64;
        // Standard errors: mean 6.3e-5, std 4.5e-5, fourth moment 0.031.
        assert!(mean.abs() < 3e-4 && (std - 0.02).abs() < 2e-4 && (fourth - 3.0).abs() < 0.15, "{mean} {std} {fourth}");
        let again = normal(Key::new(3, 5), 10, 0.02);
        assert_eq!(again, x[..10]);
    }

    #[test]
    fn a_parameter_depends_on_seed_and_name_only() {
        let mut a = RandomSource::new(1);
        let first = a.get("x", &[4, 4], Init::Normal(1.0)).unwrap();
        a.get("y", &[9], Init::Normal(1.0)).unwrap();
        let again = a.get("x", &[4, 4], Init::Normal(1.0)).unwrap();
        let vec = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(vec(&first), vec(&again));
        let other = RandomSource::new(2).get("x", &[4, 4], Init::Normal(1.0)).unwrap();
        assert_ne!(vec(&first), vec(&other));
    }
}
