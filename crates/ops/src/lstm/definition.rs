//! What [`super::lstm`] computes, step by step, in candle's primitives.

use super::Lstm;
use super::cpu::Steps;
use crate::activation::sigmoid;
use crate::{Activation, Layout, Result, Tape, Tensor, Value, gather_rows, linear};

fn clipped(x: Tensor, clip: Option<f32>) -> Result<Tensor> {
    match clip {
        None => Ok(x),
        Some(c) => Ok(x.clamp(-f64::from(c), f64::from(c))?),
    }
}

/// Gates `[b, 4 h]` and cells before `[b, h]` to cells and what they put out.
fn cell(gates: &Tensor, before: Option<&Tensor>, clip: Option<f32>) -> Result<[Tensor; 2]> {
    let h = gates.dim(1)? / 4;
    let gate = |i: usize| gates.narrow(1, i * h, h);
    let mut c = sigmoid(&gate(0)?)?.mul(&gate(2)?.tanh()?)?;
    if let Some(before) = before {
        c = c.add(&sigmoid(&gate(1)?)?.mul(before)?)?;
    }
    let c = clipped(c, clip)?;
    let out = sigmoid(&gate(3)?)?.mul(&c.tanh()?)?;
    Ok([c, out])
}

pub(super) fn lstm(tape: &Tape, gates: &Value, w: &Lstm<'_>, steps: &Steps) -> Result<Value> {
    let mut outputs = Vec::with_capacity(steps.len());
    let mut last: Option<(Value, Value)> = None;
    for t in 0..steps.len() {
        let mut gates = gather_rows(tape, gates, &steps.rows[steps.range(t)])?;
        let go_on: Vec<u32> = (0..steps.count(t) as u32).collect();
        let [c, y] = match &last {
            None => tape.composed(&[&gates], |t| cell(&t[0], None, w.cell_clip))?,
            Some((c, y)) => {
                let (c, y) = (gather_rows(tape, c, &go_on)?, gather_rows(tape, y, &go_on)?);
                let from_last = linear(tape, &y, w.recurrent, None, Layout::OutIn, Activation::Identity)?;
                [gates] = tape.composed(&[&gates, &from_last], |t| Ok([t[0].add(&t[1])?]))?;
                tape.composed(&[&gates, &c], |t| cell(&t[0], Some(&t[1]), w.cell_clip))?
            }
        };
        let y = match w.projection {
            None => y,
            Some(projection) => {
                let y = linear(tape, &y, projection, None, Layout::OutIn, Activation::Identity)?;
                let [y] = tape.composed(&[&y], |t| Ok([clipped(t[0].clone(), w.projection_clip)?]))?;
                y
            }
        };
        outputs.push(y.clone());
        last = Some((c, y));
    }
    if outputs.is_empty() {
        let [y] = tape.composed(&[gates, w.recurrent], |t| Ok([t[0].matmul(&t[1])?]))?;
        return Ok(y);
    }
    let places = Tensor::new(steps.places(), gates.tensor().device())?;
    let [y] =
        tape.composed(&outputs.iter().collect::<Vec<_>>(), |t| Ok([Tensor::cat(t, 0)?.index_select(&places, 0)?]))?;
    Ok(y)
}
