//! The tape: which operations ran, in order, and how gradients flow back through each.
//!
//! A [`Value`] is a candle tensor and, if gradients are wanted, its place on the tape. Every operation of this crate takes and
//! returns values; while the tape records, it pushes one entry with a closure that turns the gradients of its outputs into
//! gradients of its inputs. [`Tape::backward`] pops the entries in reverse, so each entry's saved tensors are freed as soon as
//! they were used, without recursion. Gradients of parameters are accumulated in place in buffers that live as long as the
//! parameter.

mod recompute;

use crate::array::{on_kernel, tensor, uninit, with_slice, with_slice_mut};
use crate::gemm::packed::{Floats, Prepared};
use crate::linear::Layout;
use crate::rng::Key;
use crate::{Error, Precision, Result};
use candle_core::{Tensor, Var};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

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
enum Data {
    Plain(Tensor),
    Prepared(Arc<Prepared>),
}

impl Data {
    fn tensor(&self) -> Tensor {
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

fn unpacked(p: &Prepared) -> Tensor {
    tensor(p.unpack(), &p.dims()).expect("as many elements as the shape has")
}

/// The gradient's buffer stays allocated between steps; `reached` says whether it holds this step's gradient.
#[derive(Debug, Default)]
struct Gradient {
    tensor: Option<Tensor>,
    reached: bool,
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

    fn data(&self) -> Data {
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

    fn gradient(&self) -> MutexGuard<'_, Gradient> {
        self.0.gradient.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of trainable parameters without a gradient are an error: such a parameter would silently stop learning.
pub fn check_reached<'a>(params: impl IntoIterator<Item = &'a Param>) -> Result<()> {
    let names: Vec<String> =
        params.into_iter().filter(|p| p.trainable() && !p.gradient().reached).map(|p| p.name().to_owned()).collect();
    if names.is_empty() { Ok(()) } else { Err(Error::NoGradient { names }) }
}

/// Where a gradient goes: an entry's output on the tape, or a parameter.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Node(usize),
    Param(Param),
}

/// A tensor in a computation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Value {
    /// Empty until somebody asks for the tensor of a prepared weight.
    tensor: OnceLock<Tensor>,
    prepared: Option<(Arc<Prepared>, [usize; 2])>,
    target: Option<Target>,
}

impl Value {
    fn new(tensor: Tensor, target: Option<Target>) -> Self {
        Value { tensor: OnceLock::from(tensor), prepared: None, target }
    }

    /// A value that no gradient flows to.
    pub fn constant(tensor: Tensor) -> Self {
        Self::new(tensor, None)
    }

    /// The tensor; of a prepared weight a copy, unpacked when first asked for.
    pub fn tensor(&self) -> &Tensor {
        self.tensor.get_or_init(|| match &self.prepared {
            Some((p, _)) => unpacked(p),
            None => unreachable!("a value has a tensor or is prepared"),
        })
    }

    /// The weight packed for inference, if it is one.
    pub fn prepared(&self) -> Option<&Prepared> {
        self.prepared.as_ref().map(|(p, _)| &**p)
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        match &self.prepared {
            Some((_, dims)) => dims,
            None => self.tensor().dims(),
        }
    }

    /// Number of rows of a `[rows, ...]` value.
    pub fn rows(&self) -> usize {
        self.dims().first().copied().unwrap_or(1)
    }

    /// Whether a gradient is wanted.
    pub fn tracked(&self) -> bool {
        self.target.is_some()
    }

    pub(crate) fn target(&self) -> Option<Target> {
        self.target.clone()
    }

    /// Takes the gradient buffer that a parameter keeps between steps, if it holds no gradient now: for an operation that
    /// computes the gradient ahead of the backward pass and hands the buffer back through [`Grads::add`].
    pub(crate) fn spare_gradient(&self) -> Option<Tensor> {
        match &self.target {
            Some(Target::Param(p)) => {
                let mut g = p.gradient();
                if g.reached { None } else { g.tensor.take() }
            }
            _ => None,
        }
    }
}

struct Slot {
    tensor: Tensor,
    /// False when another tensor shares the storage, so that it must not be written.
    owned: bool,
}

/// The gradients on their way back.
#[derive(Default)]
pub(crate) struct Grads {
    slots: Vec<Option<Slot>>,
}

impl Grads {
    /// Takes the gradient of an entry's output; `None` when nothing used it.
    pub fn take(&mut self, node: usize) -> Option<Tensor> {
        self.take_slot(node).map(|s| s.tensor)
    }

    fn take_slot(&mut self, node: usize) -> Option<Slot> {
        self.slots.get_mut(node)?.take()
    }

    fn slot(&mut self, node: usize) -> &mut Option<Slot> {
        if self.slots.len() <= node {
            self.slots.resize_with(node + 1, || None);
        }
        &mut self.slots[node]
    }

    /// Adds a gradient that nobody else holds.
    pub fn add(&mut self, target: &Option<Target>, g: Tensor) -> Result<()> {
        self.add_slot(target, g, true)
    }

    /// Adds a gradient whose storage others may still read.
    pub fn add_shared(&mut self, target: &Option<Target>, g: &Tensor) -> Result<()> {
        self.add_slot(target, g.clone(), false)
    }

    fn add_slot(&mut self, target: &Option<Target>, g: Tensor, owned: bool) -> Result<()> {
        match target {
            None => Ok(()),
            Some(Target::Param(p)) => {
                let mut grad = p.gradient();
                match (&grad.tensor, grad.reached) {
                    (Some(t), true) if on_kernel(t) => crate::array::add_into(t, &g)?,
                    (Some(t), true) => grad.tensor = Some(t.add(&g)?),
                    _ => grad.tensor = Some(if owned { g } else { g.copy()? }),
                }
                grad.reached = true;
                Ok(())
            }
            Some(Target::Node(i)) => {
                let slot = self.slot(*i);
                match slot {
                    None => *slot = Some(Slot { tensor: g, owned }),
                    Some(s) if s.owned && on_kernel(&s.tensor) => crate::array::add_into(&s.tensor, &g)?,
                    Some(s) => *slot = Some(Slot { tensor: s.tensor.add(&g)?, owned: true }),
                }
                Ok(())
            }
        }
    }

    /// Lets a CPU kernel write a gradient where it accumulates: `f(buffer, accumulate)` adds to what is there, or writes all of
    /// it when `accumulate` is false.
    pub fn write(&mut self, target: &Option<Target>, shape: &[usize], f: impl FnOnce(&mut [f32], bool)) -> Result<()> {
        let n = shape.iter().product();
        match target {
            None => Ok(()),
            Some(Target::Param(p)) => {
                let mut grad = p.gradient();
                let accumulate = grad.reached && grad.tensor.is_some();
                let t = match &grad.tensor {
                    Some(t) => t.clone(),
                    None => {
                        let t = tensor(uninit(n), shape)?;
                        grad.tensor = Some(t.clone());
                        t
                    }
                };
                with_slice_mut(&t, |g| f(g, accumulate))?;
                grad.reached = true;
                Ok(())
            }
            Some(Target::Node(i)) => {
                let slot = self.slot(*i);
                match slot {
                    Some(s) => {
                        if !s.owned {
                            *s = Slot { tensor: tensor(with_slice(&s.tensor, <[f32]>::to_vec)?, shape)?, owned: true };
                        }
                        with_slice_mut(&s.tensor, |g| f(g, true))
                    }
                    None => {
                        let mut buffer = uninit(n);
                        f(&mut buffer, false);
                        *slot = Some(Slot { tensor: tensor(buffer, shape)?, owned: true });
                        Ok(())
                    }
                }
            }
        }
    }
}

type Backward = Box<dyn FnOnce(&mut Grads) -> Result<()>>;

/// Which way operations run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Path {
    /// The kernel where there is one, else the definition.
    #[default]
    Kernels,
    /// The definition everywhere: what the kernels are checked against.
    Definitions,
}

/// Records the operations of one forward pass.
pub struct Tape {
    entries: RefCell<Vec<Backward>>,
    nodes: Cell<usize>,
    recording: bool,
    path: Path,
    precision: Precision,
    dropout: Option<Key>,
    draws: Cell<u64>,
    recompute: bool,
    /// Whether a parameter that learns was used.
    learns: Cell<bool>,
}

impl Tape {
    fn with(recording: bool, dropout: Option<Key>) -> Self {
        Tape {
            entries: RefCell::default(),
            nodes: Cell::new(0),
            recording,
            path: Path::default(),
            precision: Precision::default(),
            dropout,
            draws: Cell::new(0),
            recompute: false,
            learns: Cell::new(false),
        }
    }

    /// For inference: nothing is recorded, no dropout.
    pub fn inference() -> Self {
        Self::with(false, None)
    }

    /// Records for gradients, without dropout.
    pub fn recording() -> Self {
        Self::with(true, None)
    }

    /// Records for gradients, with dropout drawn from `key` (a run's seed and step).
    pub fn training(key: Key) -> Self {
        Self::with(true, Some(key))
    }

    /// The same tape with another way of running operations.
    pub fn with_path(mut self, path: Path) -> Self {
        self.path = path;
        self
    }

    /// The same tape with another precision of matrix products.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// The precision of matrix products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Which way operations run.
    pub fn path(&self) -> Path {
        self.path
    }

    /// The weight packed for this tape's precision, if it is one.
    pub(crate) fn prepared<'a>(&self, v: &'a Value) -> Option<&'a Prepared> {
        v.prepared().filter(|p| p.precision() == self.precision)
    }

    /// Whether it records.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Whether an operation on this tensor has a kernel to run.
    pub(crate) fn kernel(&self, t: &Tensor) -> bool {
        self.path == Path::Kernels && on_kernel(t)
    }

    /// Whether an operation on these inputs is recorded, so that what its backward needs must be kept.
    pub(crate) fn tracks(&self, inputs: &[&Value]) -> bool {
        self.recording && inputs.iter().any(|v| v.tracked())
    }

    /// The key of the next dropout of rate `p`, or `None` when nothing is dropped.
    pub(crate) fn draw(&self, p: f32) -> Option<Key> {
        let key = self.dropout.filter(|_| p > 0.0)?;
        let i = self.draws.get();
        self.draws.set(i + 1);
        Some(key.child(i))
    }

    /// A parameter as a value.
    pub fn param(&self, p: &Param) -> Value {
        self.learns.set(self.learns.get() || p.trainable());
        let target = (self.recording && p.trainable()).then(|| Target::Param(p.clone()));
        match p.data() {
            Data::Prepared(w) if target.is_none() => {
                let dims = w.dims();
                Value { tensor: OnceLock::new(), prepared: Some((w, dims)), target }
            }
            data => Value::new(data.tensor(), target),
        }
    }

    /// An input whose gradient is wanted (read it from [`Gradients::of`]).
    pub fn leaf(&self, tensor: Tensor) -> Value {
        let target = self.recording.then(|| Target::Node(self.node()));
        Value::new(tensor, target)
    }

    fn node(&self) -> usize {
        let i = self.nodes.get();
        self.nodes.set(i + 1);
        i
    }

    /// The value of an operation with one output. `backward` receives the output's gradient; it is not recorded unless one of
    /// `inputs` is tracked.
    pub(crate) fn push(
        &self,
        inputs: &[&Value],
        output: Tensor,
        backward: impl FnOnce(Tensor, &mut Grads) -> Result<()> + 'static,
    ) -> Value {
        if !self.tracks(inputs) {
            return Value::constant(output);
        }
        let node = self.node();
        self.entries.borrow_mut().push(Box::new(move |grads| match grads.take(node) {
            Some(g) => backward(g, grads),
            None => Ok(()),
        }));
        Value::new(output, Some(Target::Node(node)))
    }

    /// As [`Tape::push`], for an operation with two outputs, of which either may stay unused.
    pub(crate) fn push2(
        &self,
        inputs: &[&Value],
        outputs: [Tensor; 2],
        backward: impl FnOnce([Option<Tensor>; 2], &mut Grads) -> Result<()> + 'static,
    ) -> [Value; 2] {
        if !self.tracks(inputs) {
            return outputs.map(Value::constant);
        }
        let nodes = [self.node(), self.node()];
        self.entries.borrow_mut().push(Box::new(move |grads| {
            let g = nodes.map(|n| grads.take(n));
            if g.iter().all(Option::is_none) { Ok(()) } else { backward(g, grads) }
        }));
        let mut nodes = nodes.into_iter();
        outputs.map(|tensor| Value::new(tensor, nodes.next().map(Target::Node)))
    }

    /// Runs an operation by its definition: `f` is composed of candle's differentiable primitives, and candle's own backward
    /// gives the gradients of this one operation.
    pub(crate) fn composed<const N: usize>(
        &self,
        inputs: &[&Value],
        f: impl FnOnce(&[Tensor]) -> Result<[Tensor; N]>,
    ) -> Result<[Value; N]> {
        if !self.tracks(inputs) {
            let tensors: Vec<Tensor> = inputs.iter().map(|v| v.tensor().clone()).collect();
            return Ok(f(&tensors)?.map(Value::constant));
        }
        let mut leaves = Vec::new();
        let mut tensors = Vec::new();
        for v in inputs {
            if v.tracked() {
                let leaf = Var::from_tensor(v.tensor())?;
                tensors.push(leaf.as_tensor().clone());
                leaves.push((leaf, v.target()));
            } else {
                tensors.push(v.tensor().clone());
            }
        }
        let outputs = f(&tensors)?;
        let detached: Vec<Tensor> = outputs.iter().map(Tensor::detach).collect();
        let nodes: [usize; N] = std::array::from_fn(|_| self.node());
        self.entries.borrow_mut().push(Box::new(move |grads| {
            let mut total: Option<Tensor> = None;
            for (output, node) in outputs.iter().zip(nodes) {
                if let Some(g) = grads.take(node) {
                    let term = output.mul(&g)?.sum_all()?;
                    total = Some(match total {
                        Some(t) => t.add(&term)?,
                        None => term,
                    });
                }
            }
            let Some(total) = total else { return Ok(()) };
            let mut store = total.backward()?;
            for (leaf, target) in &leaves {
                let g = match store.remove(leaf.as_tensor()) {
                    Some(g) => g,
                    None => leaf.as_tensor().zeros_like()?,
                };
                grads.add(target, g.detach())?;
            }
            Ok(())
        }));
        let mut i = 0;
        Ok(std::array::from_fn(|_| {
            let v = Value::new(detached[i].clone(), Some(Target::Node(nodes[i])));
            i += 1;
            v
        }))
    }

    /// Sends gradients back from a scalar `loss`, whose own gradient is 1. Gradients of parameters arrive in
    /// [`Param::grad`], those of [`Tape::leaf`] values in the result. The tape is empty afterwards.
    ///
    /// # Errors
    /// When `loss` is not a scalar or not on the tape.
    pub fn backward(&self, loss: &Value) -> Result<Gradients> {
        if loss.tensor().elem_count() != 1 {
            return Err(Error::shape("backward", "loss", loss.dims(), "a scalar"));
        }
        let one = loss.tensor().ones_like()?;
        self.backward_from(loss, one)
    }

    /// As [`Tape::backward`], from an `output` of any shape whose `gradient` is known from what came of it elsewhere: another
    /// tape, another process.
    ///
    /// # Errors
    /// When the two differ in shape, or `output` is not on the tape.
    pub fn backward_from(&self, output: &Value, gradient: Tensor) -> Result<Gradients> {
        if gradient.dims() != output.dims() {
            return Err(Error::shape("backward", "gradient", gradient.dims(), format!("{:?}", output.dims())));
        }
        if !output.tracked() {
            return Err(Error::NotRecorded);
        }
        let mut grads = Grads::default();
        grads.add(&output.target, gradient)?;
        self.run_backward(&mut grads)?;
        Ok(Gradients(grads))
    }

    /// Runs all entries, the last first, on the gradients of what they left.
    fn run_backward(&self, grads: &mut Grads) -> Result<()> {
        loop {
            let entry = self.entries.borrow_mut().pop();
            match entry {
                Some(entry) => entry(grads)?,
                None => return Ok(()),
            }
        }
    }
}

/// The gradients of a tape's leaves after [`Tape::backward`].
pub struct Gradients(Grads);

impl Gradients {
    /// The gradient of a [`Tape::leaf`]; `None` when the loss does not depend on it.
    pub fn of(&self, leaf: &Value) -> Option<Tensor> {
        match leaf.target {
            Some(Target::Node(i)) => self.0.slots.get(i)?.as_ref().map(|s| s.tensor.clone()),
            _ => None,
        }
    }
}
