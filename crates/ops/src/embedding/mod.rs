//! Embeddings: sums of rows of tables.

pub(crate) mod definition;

use crate::linear::matrix;
use crate::{Error, Result, Tape, Tensor, Value};

/// `dropout(sum over tables of table[ids])`: token, position and segment embeddings in one pass.
///
/// # Shapes
/// Every table `[rows, d]` with one `d`; every list of ids has `n` entries; the result `[n, d]`.
///
/// # Errors
/// When there is no table, widths or numbers of ids differ, or an id is beyond its table.
pub fn embedding(tape: &Tape, parts: &[(&Value, &[u32])], dropout: f32) -> Result<Value> {
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
    let device = first.tensor().device();
    let indices: Vec<Tensor> = parts.iter().map(|p| Ok(Tensor::new(p.1, device)?)).collect::<Result<_>>()?;
    let [y] = tape.composed(&inputs, |t| Ok([definition::embedding(t, &indices, drop)?]))?;
    Ok(y)
}
