//! Embeddings: sums of rows of tables.

pub(crate) mod cpu;
pub(crate) mod definition;

use crate::array::{tensor, uninit, with_slice};
use crate::linear::matrix;
use crate::profile::{Operation, running};
use crate::rng::Key;
use crate::rows::cpu::{drop_in_place, scatter_add};
use crate::{Error, Path, Result, Tape, Tensor, Value};

/// `dropout(sum over tables of table[ids])`: token, position and segment embeddings in one pass. Rows of the first table are
/// multiplied by `scale` (Vaswani et al. 2017, section 3.4: the root of the width for tokens).
///
/// # Shapes
/// Every table `[rows, d]` with one `d`; every list of ids has `n` entries; the result `[n, d]`.
///
/// # Errors
/// When there is no table, widths or numbers of ids differ, or an id is beyond its table.
pub fn embedding(tape: &Tape, parts: &[(&Value, &[u32])], scale: f64, dropout: f32) -> Result<Value> {
    const OP: &str = "embedding";
    let Some((first, ids)) = parts.first() else {
        return Err(Error::value(OP, "tables", "none", "at least one"));
    };
    let (_, d) = matrix(OP, "table", first)?;
    for (table, list) in parts {
        let (rows, width) = matrix(OP, "table", table)?;
        if width != d {
            return Err(Error::shape(OP, "table", table.dims(), format!("[rows, {d}]")));
        }
        if list.len() != ids.len() {
            return Err(Error::value(OP, "number of ids", list.len(), ids.len().to_string()));
        }
        if let Some(id) = list.iter().find(|&&id| id as usize >= rows) {
            return Err(Error::value(OP, "id", id, format!("below {rows}")));
        }
    }
    let drop = tape.draw(dropout).map(|k| (k, dropout));
    let inputs: Vec<&Value> = parts.iter().map(|p| p.0).collect();
    // A prepared table is one of f32 on the CPU.
    if tape.path() == Path::Kernels && (first.prepared().is_some() || tape.kernel(first.tensor())) {
        return kernel(tape, parts, d, scale, drop);
    }
    let device = first.tensor().device();
    let indices: Vec<Tensor> = parts.iter().map(|p| Ok(Tensor::new(p.1, device)?)).collect::<Result<_>>()?;
    let [y] = tape.composed(&inputs, |t| Ok([definition::embedding(t, &indices, scale, drop)?]))?;
    Ok(y)
}

fn kernel(tape: &Tape, parts: &[(&Value, &[u32])], d: usize, scale: f64, drop: Option<(Key, f32)>) -> Result<Value> {
    let _running = running(Operation::Embedding, 0.0);
    let n = parts[0].1.len();
    let mut y = uninit(n * d);
    for (i, (table, ids)) in parts.iter().enumerate() {
        match table.prepared() {
            Some(t) => cpu::add_prepared_rows(t, ids, d, i > 0, &mut y),
            None => with_slice(table.tensor(), |t| cpu::add_rows(t, ids, d, i > 0, &mut y))?,
        }
        if i == 0 && scale != 1.0 {
            cpu::multiply(&mut y, scale as f32);
        }
    }
    if let Some(drop) = drop {
        drop_in_place(&mut y, d, drop);
    }
    let inputs: Vec<&Value> = parts.iter().map(|p| p.0).collect();
    let factors = std::iter::once(scale).chain(std::iter::repeat(1.0));
    let tables: Vec<_> = parts
        .iter()
        .zip(factors)
        .map(|((t, ids), factor)| (t.target(), t.dims().to_vec(), ids.to_vec(), factor))
        .filter(|t| t.0.is_some())
        .collect();
    Ok(tape.push(&inputs, tensor(y, &[n, d])?, move |g, grads| {
        let _running = running(Operation::Embedding, 0.0);
        let g = match drop {
            Some(drop) => {
                let mut g = with_slice(&g, <[f32]>::to_vec)?;
                drop_in_place(&mut g, d, drop);
                tensor(g, &[n, d])?
            }
            None => g,
        };
        with_slice(&g, |g| {
            for (target, shape, ids, factor) in &tables {
                let mut own = Vec::new();
                let g = if *factor == 1.0 {
                    g
                } else {
                    own.extend_from_slice(g);
                    cpu::multiply(&mut own, *factor as f32);
                    &own
                };
                grads.write(target, shape, |table, add| {
                    if !add {
                        table.fill(0.0);
                    }
                    scatter_add(g, d, ids, table);
                })?;
            }
            Ok(())
        })?
    }))
}
