//! The tape: which operations ran, in order, and how gradients flow back through each.
//!
//! A [`Value`] is a candle tensor and, if gradients are wanted, its place on the tape. Every operation of this crate takes and
//! returns values; while the tape records, it pushes one entry with a closure that turns the gradients of its outputs into
//! gradients of its inputs. [`Tape::backward`] pops the entries in reverse, so each entry's saved tensors are freed as soon as
//! they were used, without recursion. Gradients of parameters are accumulated in place in buffers that live as long as the
//! parameter.

mod grads;
mod param;
mod recompute;
mod value;

pub(crate) use grads::Grads;
pub use param::{Param, check_reached};
pub(crate) use value::Target;
pub use value::Value;

use crate::array::on_kernel;
use crate::gemm::packed::Prepared;
use crate::rng::Key;
use crate::{Error, Precision, Result};
use candle_core::{Tensor, Var};
use param::Data;
use std::cell::{Cell, RefCell};
use std::sync::OnceLock;

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

    /// Whether anything is dropped on this tape.
    pub fn drops(&self) -> bool {
        self.dropout.is_some()
    }

    /// What dropout is drawn from; `None` when nothing is dropped. For other draws that must be the same when a step is repeated.
    pub fn key(&self) -> Option<Key> {
        self.dropout
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
