//! Gradients on their way back.

use super::value::Target;
use crate::Result;
use crate::array::{on_kernel, tensor, uninit, with_slice, with_slice_mut};
use candle_core::Tensor;

pub(super) struct Slot {
    pub tensor: Tensor,
    /// False when another tensor shares the storage, so that it must not be written.
    pub owned: bool,
}

/// The gradients on their way back.
#[derive(Default)]
pub(crate) struct Grads {
    pub(super) slots: Vec<Option<Slot>>,
}

impl Grads {
    /// Takes the gradient of an entry's output; `None` when nothing used it.
    pub fn take(&mut self, node: usize) -> Option<Tensor> {
        self.take_slot(node).map(|s| s.tensor)
    }

    pub(super) fn take_slot(&mut self, node: usize) -> Option<Slot> {
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

    pub(super) fn add_slot(&mut self, target: &Option<Target>, g: Tensor, owned: bool) -> Result<()> {
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
