//! Blocks that are run again in the backward pass instead of being remembered.

use super::{Grads, Tape, Target, Value};
use crate::{Error, Result};
use std::cell::{Cell, RefCell};

impl Tape {
    /// The same tape with blocks recomputed in the backward pass, where who builds a model of blocks heeds
    /// [`Tape::recomputes`]: less memory, more time, the same results bit for bit.
    pub fn with_recompute(mut self, recompute: bool) -> Self {
        self.recompute = recompute;
        self
    }

    /// Whether blocks are to be run through [`Tape::recompute`].
    pub fn recomputes(&self) -> bool {
        self.recompute && self.recording
    }

    /// A tape for a part of this one's work, drawing the same dropout as this one would next.
    fn part(&self, recording: bool) -> Tape {
        Tape {
            entries: RefCell::default(),
            nodes: Cell::new(0),
            recording,
            path: self.path,
            precision: self.precision,
            dropout: self.dropout,
            draws: Cell::new(self.draws.get()),
            recompute: false,
            learns: Cell::new(false),
        }
    }

    /// Runs the block `f` without keeping what its backward needs; the backward pass runs it again (activation checkpointing,
    /// Chen et al. 2016, arXiv 1604.06174). Dropout inside sees the same masks both times. Whatever `f` uses beside `inputs` and
    /// parameters must be without gradient.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn recompute<E>(
        &self,
        inputs: &[&Value],
        f: impl Fn(&Tape, &[Value]) -> Result<Vec<Value>, E> + 'static,
    ) -> Result<Vec<Value>, E>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        if !self.recording {
            let inputs: Vec<Value> = inputs.iter().map(|v| (*v).clone()).collect();
            return f(self, &inputs);
        }
        let (first, again) = (self.part(false), self.part(true));
        let constants: Vec<Value> = inputs.iter().map(|v| Value::constant(v.tensor().clone())).collect();
        let outputs = f(&first, &constants)?;
        drop(constants);
        self.draws.set(first.draws.get());
        self.learns.set(self.learns.get() || first.learns.get());
        if !first.learns.get() && inputs.iter().all(|v| !v.tracked()) {
            return Ok(outputs);
        }
        let nodes: Vec<usize> = outputs.iter().map(|_| self.node()).collect();
        let kept: Vec<Value> = inputs.iter().map(|v| (*v).clone()).collect();
        let of_outputs = nodes.clone();
        self.entries.borrow_mut().push(Box::new(move |grads| {
            let upstream: Vec<_> = of_outputs.iter().map(|&n| grads.take_slot(n)).collect();
            if upstream.iter().all(Option::is_none) {
                return Ok(());
            }
            // The block's own tape: its gradients end at leaves that stand for the inputs.
            let (targets, leaves): (Vec<_>, Vec<_>) = kept
                .into_iter()
                .map(|v| match v.target() {
                    Some(target) => (Some(target), again.leaf(v.tensor().clone())),
                    None => (None, Value::constant(v.tensor().clone())),
                })
                .unzip();
            let outputs = f(&again, &leaves).map_err(|e| Error::Recompute(Box::new(e)))?;
            let mut inner = Grads::default();
            for (output, g) in outputs.iter().zip(upstream) {
                if let Some(g) = g {
                    inner.add_slot(&output.target, g.tensor, g.owned)?;
                }
            }
            drop(outputs);
            let leaves: Vec<_> = leaves.into_iter().map(|v| v.target).collect();
            again.run_backward(&mut inner)?;
            for (target, leaf) in targets.iter().zip(leaves) {
                if let Some(Target::Node(i)) = leaf
                    && let Some(g) = inner.take_slot(i)
                {
                    grads.add_slot(target, g.tensor, g.owned)?;
                }
            }
            Ok(())
        }));
        let output = |(v, node): (Value, usize)| Value::new(v.tensor().clone(), Some(Target::Node(node)));
        Ok(outputs.into_iter().zip(nodes).map(output).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;
    use crate::{Branch, Norm, Param, Tensor, residual_norm, to_vec};
    use candle_core::Device;

    fn tensor(seed: u64, dims: &[usize]) -> Tensor {
        let n: usize = dims.iter().product();
        let data: Vec<f32> = (0..n as u64).map(|i| (crate::rng::mix64(seed << 20 | i) >> 40) as f32 / 1e7).collect();
        Tensor::from_vec(data, dims, &Device::Cpu).unwrap()
    }

    /// Two blocks whose two outputs feed the next, so that gradients arrive in shared storage.
    fn run(recompute: bool, trainable: [bool; 2], leaves: bool) -> Option<Vec<Option<Vec<f32>>>> {
        let params: Vec<Param> = (0..4).map(|i| Param::new(format!("{i}"), tensor(i, &[6]))).collect();
        params[..2].iter().for_each(|p| p.set_trainable(trainable[0]));
        params[2..].iter().for_each(|p| p.set_trainable(trainable[1]));
        let tape = Tape::training(Key::new(1, 2));
        let input = |t| if leaves { tape.leaf(t) } else { Value::constant(t) };
        let (x, b) = (input(tensor(7, &[5, 6])), input(tensor(8, &[5, 6])));
        let mut values = vec![x.clone(), b.clone()];
        for block in params.chunks(2) {
            let (weight, bias) = (block[0].clone(), block[1].clone());
            let f = move |tape: &Tape, v: &[Value]| -> Result<Vec<Value>> {
                let (weight, bias) = (tape.param(&weight), tape.param(&bias));
                let branch = Branch { value: &v[1], dropout: 0.3 };
                let norm = Norm::Layer { weight: &weight, bias: &bias, eps: 1e-5 };
                Ok(residual_norm(tape, &v[0], Some(branch), norm)?.to_vec())
            };
            values = match recompute {
                true => tape.recompute(&[&values[0], &values[1]], f).unwrap(),
                false => f(&tape, &values).unwrap(),
            };
        }
        let (weight, table) = (Value::constant(tensor(9, &[6])), Value::constant(tensor(10, &[3, 6])));
        let branch = Branch { value: &values[1], dropout: 0.0 };
        let [_, y] = residual_norm(&tape, &values[0], Some(branch), Norm::Rms { weight: &weight, eps: 1e-5 }).unwrap();
        let layout = crate::Layout::OutIn;
        let head = crate::Projection { weight: &table, bias: None, layout, smoothing: 0.5, scale: 1.0 };
        let loss = crate::cross_entropy(&tape, &y, &head, &[0, 1, 2, 1, 0]).unwrap();
        if !loss.tracked() {
            return None;
        }
        let grads = tape.backward(&loss).unwrap();
        let numbers = |t: Option<Tensor>| t.map(|t| to_vec(&t).unwrap());
        Some([&x, &b].map(|v| grads.of(v)).into_iter().chain(params.iter().map(Param::grad)).map(numbers).collect())
    }

    #[test]
    fn gradients_are_those_of_the_whole_tape() {
        for trainable in [[true, true], [true, false], [false, true]] {
            for leaves in [true, false] {
                let plain = run(false, trainable, leaves).unwrap();
                assert_eq!(plain, run(true, trainable, leaves).unwrap(), "{trainable:?} {leaves}");
                assert_eq!(plain[0].is_some(), leaves);
                assert!(plain.iter().flatten().flatten().any(|g| *g != 0.0));
            }
        }
        // Nothing that learns: nothing is recorded.
        assert_eq!(run(true, [false, false], false), None);
    }

    #[test]
    fn a_block_that_fails_the_second_time_is_an_error() {
        let tape = Tape::recording();
        let x = tape.leaf(tensor(1, &[1, 1]));
        let calls = Cell::new(0);
        let y = tape
            .recompute(&[&x], move |tape, v| {
                calls.set(calls.get() + 1);
                match calls.get() {
                    1 => Ok(vec![crate::weighted_sum(tape, &[(&v[0], 2.0)])?]),
                    _ => Err(Error::value("block", "call", calls.get(), "1")),
                }
            })
            .unwrap();
        let message = tape.backward(&y[0]).err().unwrap().to_string();
        assert_eq!(message, "running a block again in the backward pass: block: call is 2, expected 1");
    }
}
