//! Vocabularies whose rarer tokens have narrower tables (Grave et al. 2017, arXiv 1609.04309; Baevski and Auli 2019,
//! arXiv 1809.10853), as Transformer-XL has them.

use crate::{Builder, Error, Init, Result, StackSpec, Vocabulary};
use candle_core::{D, Tensor};
use genus_ops::{
    Activation, IGNORE, Layout, Param, Projection, Tape, Value, cross_entropy, cross_entropy_rows, embedding,
    gather_rows, join_rows, linear, weighted_sum,
};
use std::ops::Range;

/// Token tables with their maps to the stream's width.
#[derive(Debug)]
pub(crate) struct AdaptiveTables {
    /// One, or one for each group.
    pub tables: Vec<Param>,
    /// `[d_model, width]`, for each table; none where the one table has the stream's width.
    pub maps: Vec<Param>,
    groups: Vec<Range<usize>>,
}

/// The tokens of each group, the frequent ones first.
fn groups(cutoffs: &[usize], vocab_size: usize) -> Vec<Range<usize>> {
    let ends = cutoffs.iter().copied().chain([vocab_size]);
    let starts = std::iter::once(0).chain(cutoffs.iter().copied());
    starts.zip(ends).map(|(a, b)| a..b).collect()
}

impl AdaptiveTables {
    pub fn build(b: &mut Builder<'_>, spec: &StackSpec) -> Result<Option<Self>> {
        let Vocabulary::Adaptive { cutoffs, divisor, d_embedding, .. } = &spec.vocabulary else { return Ok(None) };
        let (groups, init) = (groups(cutoffs, spec.vocab_size), Init::Normal(spec.init.std));
        let (mut tables, mut maps) = (Vec::new(), Vec::new());
        let sizes = match divisor {
            1 => vec![(spec.vocab_size, *d_embedding)],
            _ => groups.iter().zip(0..).map(|(g, i)| (g.len(), d_embedding / divisor.pow(i))).collect(),
        };
        for (i, (rows, width)) in sizes.into_iter().enumerate() {
            tables.push(b.param(format!("embeddings.tables.{i}"), &[rows, width], init)?);
            if *divisor != 1 || width != spec.d_model {
                maps.push(b.param(format!("embeddings.maps.{i}"), &[spec.d_model, width], init)?);
            }
        }
        Ok(Some(AdaptiveTables { tables, maps, groups }))
    }

    pub fn vocab_size(&self) -> usize {
        self.groups.last().map_or(0, |g| g.end)
    }

    /// The vectors of tokens, times `scale`, `[n, d]`.
    pub fn forward(&self, tape: &Tape, ids: &[u32], scale: f64) -> Result<Value> {
        let mapped = |i: usize, ids: &[u32]| -> Result<Value> {
            let x = embedding(tape, &[(&tape.param(&self.tables[i]), ids)], scale, 0.0)?;
            match self.maps.get(i) {
                None => Ok(x),
                Some(map) => Ok(linear(tape, &x, &tape.param(map), None, Layout::OutIn, Activation::Identity)?),
            }
        };
        if self.tables.len() == 1 {
            return mapped(0, ids);
        }
        // The rows of one group after the other, and where each token's row is among them.
        let (mut place, mut rows, mut all) = (vec![0u32; ids.len()], 0, None::<Value>);
        for (i, group) in self.groups.iter().enumerate() {
            let mut of_group = Vec::new();
            for (at, &id) in ids.iter().enumerate().filter(|(_, id)| group.contains(&(**id as usize))) {
                place[at] = rows + of_group.len() as u32;
                of_group.push(id - group.start as u32);
            }
            let n = of_group.len() as u32;
            let x = mapped(i, &of_group)?;
            all = Some(match all {
                None => x,
                Some(before) => join_rows(tape, &before, &x, &(0..rows + n).collect::<Vec<_>>())?,
            });
            rows += n;
        }
        let all = all.ok_or(Error::Length { what: "token tables", found: 0, expected: 1 })?;
        Ok(gather_rows(tape, &all, &place)?)
    }
}

/// The output: predicts a frequent token or a group, and then one of the group.
#[derive(Debug)]
pub(crate) struct AdaptiveSoftmax {
    tables: Vec<Param>,
    maps: Vec<Param>,
    groups: Vec<Range<usize>>,
    /// One for each table.
    biases: Vec<Param>,
    /// Weight `[groups - 1, width]` and bias of the groups among the frequent tokens.
    clusters: Option<(Param, Param)>,
}

impl AdaptiveSoftmax {
    pub fn build(b: &mut Builder<'_>, spec: &StackSpec, input: &AdaptiveTables) -> Result<Self> {
        let shared_maps = matches!(spec.vocabulary, Vocabulary::Adaptive { shared_maps: true, .. });
        let std = spec.init.std;
        let (mut biases, mut maps) = (Vec::new(), Vec::new());
        for (i, table) in input.tables.iter().enumerate() {
            biases.push(b.param(format!("lm_head.biases.{i}"), &table.dims()[..1], Init::Zeros)?);
        }
        let one = input.tables.len() == 1;
        for i in 0..input.groups.len() {
            let Some(map) = input.maps.get(if one { 0 } else { i }) else { break };
            // The frequent tokens' map is the output's own.
            maps.push(match shared_maps && i > 0 {
                true => map.clone(),
                false => b.param(format!("lm_head.maps.{i}"), &map.dims(), Init::Normal(std))?,
            });
        }
        let (n, width) = (input.groups.len() - 1, input.tables[0].dims()[1]);
        let clusters = if n == 0 {
            None
        } else {
            let weight = b.param("lm_head.clusters.weight", &[n, width], Init::Normal(std))?;
            Some((weight, b.param("lm_head.clusters.bias", &[n], Init::Zeros)?))
        };
        Ok(AdaptiveSoftmax { tables: input.tables.clone(), maps, groups: input.groups.clone(), biases, clusters })
    }

    /// Weight and bias of a group, the groups' own behind the frequent tokens'.
    fn group(&self, tape: &Tape, i: usize) -> Result<(Value, Value)> {
        let one = self.tables.len() == 1;
        let t = if one { 0 } else { i };
        let column = |p: &Param| -> Result<Value> {
            // A vector as rows of one number, so that rows can be taken and joined.
            Ok(genus_ops::reshape(tape, &tape.param(p), &[p.elem_count(), 1])?)
        };
        let (mut weight, mut bias) = (tape.param(&self.tables[t]), column(&self.biases[t])?);
        if one && self.groups.len() > 1 {
            let rows: Vec<u32> = self.groups[i].clone().map(|r| r as u32).collect();
            (weight, bias) = (gather_rows(tape, &weight, &rows)?, gather_rows(tape, &bias, &rows)?);
        }
        if let (0, Some((w, b))) = (i, &self.clusters) {
            let all: Vec<u32> = (0..(weight.rows() + w.dims()[0]) as u32).collect();
            weight = join_rows(tape, &weight, &tape.param(w), &all)?;
            bias = join_rows(tape, &bias, &column(b)?, &all)?;
        }
        let n = bias.rows();
        Ok((weight, genus_ops::reshape(tape, &bias, &[n])?))
    }

    /// Hidden states in the width of a group's table.
    fn narrowed(&self, tape: &Tape, x: &Value, i: usize) -> Result<Value> {
        match self.maps.get(i) {
            None => Ok(x.clone()),
            Some(map) => Ok(linear(tape, x, &tape.param(map), None, Layout::InOut, Activation::Identity)?),
        }
    }

    /// What each part of the output predicts: its number, the rows that it is asked for, and their targets.
    fn parts(&self, targets: &[i32]) -> Vec<(usize, Option<Vec<u32>>, Vec<i32>)> {
        let frequent = self.groups[0].len();
        let group_of = |t: i32| self.groups.iter().position(|g| t >= 0 && g.contains(&(t as usize)));
        let first = targets.iter().map(|&t| match group_of(t) {
            None | Some(0) => t,
            Some(i) => (frequent + i - 1) as i32,
        });
        let mut parts = vec![(0, None, first.collect())];
        for (i, group) in self.groups.iter().enumerate().skip(1) {
            let of = |(_, t): &(u32, &i32)| **t != IGNORE && group.contains(&(**t as usize));
            let (rows, wanted): (Vec<u32>, Vec<i32>) =
                (0u32..).zip(targets).filter(of).map(|(r, t)| (r, t - group.start as i32)).unzip();
            parts.push((i, Some(rows), wanted));
        }
        parts
    }

    fn part<R>(
        &self,
        tape: &Tape,
        x: &Value,
        (i, rows): (usize, Option<&[u32]>),
        run: impl FnOnce(&Value, Projection<'_>) -> genus_ops::Result<R>,
    ) -> Result<R> {
        let x = match rows {
            None => x.clone(),
            Some(rows) => gather_rows(tape, x, rows)?,
        };
        let (weight, bias) = self.group(tape, i)?;
        let x = self.narrowed(tape, &x, i)?;
        let p = Projection { weight: &weight, bias: Some(&bias), layout: Layout::OutIn, smoothing: 0.0, scale: 1.0 };
        Ok(run(&x, p)?)
    }

    /// `scale` times the summed cross-entropy of the targets.
    pub fn loss(&self, tape: &Tape, x: &Value, targets: &[i32], scale: f64, smoothing: f64) -> Result<Value> {
        let mut terms = Vec::new();
        // A part without a row, too: its parameters are then reached by a gradient of zero.
        for (i, rows, targets) in self.parts(targets) {
            terms.push(self.part(tape, x, (i, rows.as_deref()), |x, p| {
                cross_entropy(tape, x, &Projection { smoothing, scale, ..p }, &targets)
            })?);
        }
        Ok(weighted_sum(tape, &terms.iter().map(|t| (t, 1.0)).collect::<Vec<_>>())?)
    }

    /// The cross-entropy of each target, 0 where there is none. No gradient flows.
    pub fn losses(&self, tape: &Tape, x: &Value, targets: &[i32]) -> Result<Vec<f64>> {
        let mut total = vec![0.0; targets.len()];
        for (i, rows, wanted) in self.parts(targets) {
            let losses = self.part(tape, x, (i, rows.as_deref()), |x, p| cross_entropy_rows(tape, x, &p, &wanted))?;
            match rows {
                None => total = losses,
                Some(rows) => rows.iter().zip(losses).for_each(|(&r, loss)| total[r as usize] += loss),
            }
        }
        Ok(total)
    }

    /// Log-probabilities `[n, v]` of hidden states `[n, d]`. No gradient flows.
    pub fn log_probabilities(&self, x: &Value, tape: &Tape) -> Result<Value> {
        let of = |i: usize| -> Result<Tensor> {
            let (weight, bias) = self.group(tape, i)?;
            let x = self.narrowed(tape, x, i)?;
            let y = linear(tape, &x, &weight, Some(&bias), Layout::OutIn, Activation::Identity)?;
            let y = y.tensor();
            let y = y.broadcast_sub(&y.max_keepdim(D::Minus1)?)?;
            Ok(y.broadcast_sub(&y.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
        };
        let head = of(0)?;
        let frequent = self.groups[0].len();
        let mut parts = vec![head.narrow(1, 0, frequent)?.contiguous()?];
        for i in 1..self.groups.len() {
            parts.push(of(i)?.broadcast_add(&head.narrow(1, frequent + i - 1, 1)?)?);
        }
        Ok(Value::constant(Tensor::cat(&parts, 1)?))
    }
}
