//! What [`super::embedding`] computes, in candle's primitives.

use crate::rng::Key;
use crate::rows::definition::drop;
use crate::{Error, Result};
use candle_core::Tensor;

pub(crate) fn embedding(
    tables: &[Tensor],
    indices: &[Tensor],
    scale: f64,
    dropout: Option<(Key, f32)>,
) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (table, index) in tables.iter().zip(indices) {
        let rows = table.index_select(index, 0)?;
        sum = Some(match sum {
            Some(s) => s.add(&rows)?,
            None if scale == 1.0 => rows,
            None => rows.affine(scale, 0.0)?,
        });
    }
    drop(&sum.ok_or_else(|| Error::value("embedding", "tables", "none", "at least one"))?, dropout)
}
