//! Parameters: trainable tensors and their gradients.

use crate::array::{on_kernel, tensor, with_slice};
use crate::gemm::packed::{Floats, Prepared};
use crate::linear::Layout;
use crate::{Error, Precision, Result};
use candle_core::Tensor;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// A trainable tensor of a model, with its gradient. Clones share both.
#[derive(Clone, Debug)]
pub struct Param(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    data: RwLock<Data>,
    trainable: AtomicBool,
    gradient: Mutex<Gradient>,
}

/// A tensor, or a weight packed for inference with the tensor that it stands for, which is made if somebody asks for it.
#[derive(Clone, Debug)]
pub(super) enum Data {
    Plain(Tensor),
    Prepared(Arc<Prepared>),
}

impl Data {
    pub fn tensor(&self) -> Tensor {
        match self {
            Data::Plain(t) => t.clone(),
            Data::Prepared(p) => unpacked(p),
        }
    }

    fn dims(&self) -> Vec<usize> {
        match self {
            Data::Plain(t) => t.dims().to_vec(),
            Data::Prepared(p) => p.dims().to_vec(),
        }
    }
}

pub(super) fn unpacked(p: &Prepared) -> Tensor {
    tensor(p.unpack(), &p.dims()).expect("as many elements as the shape has")
}

/// The gradient's buffer stays allocated between steps; `reached` says whether it holds this step's gradient.
#[derive(Debug, Default)]
pub(super) struct Gradient {
    pub tensor: Option<Tensor>,
    pub reached: bool,
}

impl Param {
    /// A trainable parameter.
    pub fn new(name: impl Into<String>, tensor: Tensor) -> Self {
        Param(Arc::new(Inner {
            name: name.into(),
            data: RwLock::new(Data::Plain(tensor)),
            trainable: AtomicBool::new(true),
            gradient: Mutex::default(),
        }))
    }

    /// A parameter that is a weight packed for inference.
    pub fn from_prepared(name: impl Into<String>, weight: Prepared) -> Self {
        Param(Arc::new(Inner {
            name: name.into(),
            data: RwLock::new(Data::Prepared(Arc::new(weight))),
            trainable: AtomicBool::new(true),
            gradient: Mutex::default(),
        }))
    }

    /// The name inside the model.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(super) fn data(&self) -> Data {
        self.0.data.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The current value; of a prepared parameter a copy, unpacked.
    pub fn tensor(&self) -> Tensor {
        self.data().tensor()
    }

    /// The shape.
    pub fn dims(&self) -> Vec<usize> {
        self.data().dims()
    }

    /// Number of elements.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }

    /// Bytes of the value; of a prepared parameter those that a product reads.
    pub fn bytes(&self) -> usize {
        match self.data() {
            Data::Plain(t) => t.elem_count() * t.dtype().size_in_bytes(),
            Data::Prepared(p) => p.bytes(),
        }
    }

    /// Packs the weight of a linear map, stored as `layout` says, for inference in `precision`: products with it are faster and have
    /// the same bits. The tensor it was is given up. Nothing happens where kernels do not apply (another device or element
    /// type), or when it is packed already.
    ///
    /// # Errors
    /// When it is not a matrix.
    pub fn prepare(&self, layout: Layout, precision: Precision) -> Result<()> {
        self.pack(layout, precision, Prepared::pack)
    }

    /// As [`Param::prepare`], for a weight that is also a table whose rows are looked up (a tied embedding): they stay as exact as
    /// they are.
    ///
    /// # Errors
    /// As [`Param::prepare`].
    pub fn prepare_table(&self, layout: Layout, precision: Precision) -> Result<()> {
        self.pack(layout, precision, Prepared::pack_table)
    }

    fn pack(
        &self,
        layout: Layout,
        precision: Precision,
        pack: fn(Floats<'_>, Layout, usize, usize, Precision) -> Prepared,
    ) -> Result<()> {
        let mut data = self.0.data.write().unwrap_or_else(PoisonError::into_inner);
        let t = match &*data {
            Data::Plain(t) => t.clone(),
            Data::Prepared(p) if p.precision() == precision => return Ok(()),
            Data::Prepared(p) => unpacked(p),
        };
        if !on_kernel(&t) {
            return Ok(());
        }
        let (d_in, d_out) = match (layout, t.dims()) {
            (Layout::InOut, &[i, o]) | (Layout::OutIn, &[o, i]) => (i, o),
            (_, dims) => return Err(Error::shape("prepare", "weight", dims, "a matrix")),
        };
        let packed = with_slice(&t, |values| pack(Floats::F32(values), layout, d_in, d_out, precision))?;
        *data = Data::Prepared(Arc::new(packed));
        Ok(())
    }

    /// Whether it is packed for inference.
    pub fn is_prepared(&self) -> bool {
        matches!(self.data(), Data::Prepared(_))
    }

    /// Replaces the value by another tensor of the same shape.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn set(&self, tensor: Tensor) -> Result<()> {
        let mut data = self.0.data.write().unwrap_or_else(PoisonError::into_inner);
        if data.dims() != tensor.dims() {
            return Err(Error::shape("set parameter", "value", tensor.dims(), format!("{:?}", data.dims())));
        }
        *data = Data::Plain(tensor);
        Ok(())
    }

    /// Whether it learns.
    pub fn trainable(&self) -> bool {
        self.0.trainable.load(Ordering::Relaxed)
    }

    /// Freezes the parameter or lets it learn.
    pub fn set_trainable(&self, trainable: bool) {
        self.0.trainable.store(trainable, Ordering::Relaxed);
    }

    /// The gradient accumulated since it was last cleared, if the backward pass reached this parameter.
    pub fn grad(&self) -> Option<Tensor> {
        let g = self.gradient();
        if g.reached { g.tensor.clone() } else { None }
    }

    /// Forgets the gradient; its buffer is kept for the next one.
    pub fn clear_grad(&self) {
        self.gradient().reached = false;
    }

    /// Whether two handles are the same parameter.
    pub fn same(&self, other: &Param) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn gradient(&self) -> MutexGuard<'_, Gradient> {
        self.0.gradient.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of trainable parameters without a gradient are an error: such a parameter would silently stop learning.
pub fn check_reached<'a>(params: impl IntoIterator<Item = &'a Param>) -> Result<()> {
    let names: Vec<String> =
        params.into_iter().filter(|p| p.trainable() && !p.gradient().reached).map(|p| p.name().to_owned()).collect();
    if names.is_empty() { Ok(()) } else { Err(Error::NoGradient { names }) }
}
