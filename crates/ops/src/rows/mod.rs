//! Dropout, the choice of rows, and rows appended to a cache.

pub(crate) mod cpu;
pub(crate) mod definition;
mod join;

pub use join::{add_row, beside, columns, join_rows, reshape};

use crate::array::{on_kernel, tensor, uninit, with_slice};
use crate::linear::matrix;
use crate::profile::{Operation, running};
use crate::{Error, Result, Tape, Tensor, Value};

/// Dropout: every element is 0 with probability `p`, else multiplied by `1 / (1 - p)` (Srivastava et al. 2014).
///
/// On a tape without dropout, or with `p = 0`, the value itself.
///
/// # Errors
/// When `x` is not a matrix.
pub fn dropout(tape: &Tape, x: &Value, p: f32) -> Result<Value> {
    matrix("dropout", "x", x)?;
    let Some(key) = tape.draw(p) else { return Ok(x.clone()) };
    if tape.kernel(x.tensor()) {
        let drop = move |x: &Tensor| {
            let mut y = with_slice(x, <[f32]>::to_vec)?;
            cpu::drop_in_place(&mut y, x.dim(1)?, (key, p));
            tensor(y, x.dims())
        };
        let to = x.target();
        return Ok(tape.push(&[x], drop(x.tensor())?, move |g, grads| grads.add(&to, drop(&g)?)));
    }
    let [y] = tape.composed(&[x], |t| Ok([definition::drop(&t[0], Some((key, p)))?]))?;
    Ok(y)
}

/// The rows `indices` of `x`, in that order; a row may be taken several times.
///
/// # Errors
/// When an index is out of range.
pub fn gather_rows(tape: &Tape, x: &Value, indices: &[u32]) -> Result<Value> {
    let (n, d) = matrix("gather rows", "x", x)?;
    if let Some(i) = indices.iter().find(|&&i| i as usize >= n) {
        return Err(Error::value("gather rows", "index", i, format!("below {n}")));
    }
    if tape.kernel(x.tensor()) {
        let mut y = uninit(indices.len() * d);
        with_slice(x.tensor(), |x| cpu::gather(x, d, indices, &mut y))?;
        let (to, indices) = (x.target(), indices.to_vec());
        return Ok(tape.push(&[x], tensor(y, &[indices.len(), d])?, move |g, grads| {
            with_slice(&g, |g| {
                grads.write(&to, &[n, d], |dx, add| {
                    if !add {
                        dx.fill(0.0);
                    }
                    cpu::scatter_add(g, d, &indices, dx);
                })
            })?
        }));
    }
    let index = Tensor::new(indices, x.tensor().device())?;
    let [y] = tape.composed(&[x], |t| Ok([t[0].contiguous()?.index_select(&index, 0)?]))?;
    Ok(y)
}

/// The sum of scalars, each times its weight.
///
/// # Errors
/// When `terms` is empty or a term is not a scalar.
pub fn weighted_sum(tape: &Tape, terms: &[(&Value, f64)]) -> Result<Value> {
    if let Some((v, _)) = terms.iter().find(|(v, _)| v.tensor().elem_count() != 1) {
        return Err(Error::shape("weighted sum", "term", v.dims(), "a scalar"));
    }
    let inputs: Vec<&Value> = terms.iter().map(|t| t.0).collect();
    if !terms.is_empty() && terms.iter().all(|t| tape.kernel(t.0.tensor())) {
        let mut sum = 0.0;
        for (x, w) in terms {
            sum += w * crate::scalar(x.tensor())?;
        }
        let targets: Vec<_> = terms.iter().map(|(x, w)| (x.target(), *w, x.dims().to_vec())).collect();
        return Ok(tape.push(&inputs, tensor(vec![sum as f32], &[])?, move |g, grads| {
            let g = crate::scalar(&g)?;
            targets.iter().try_for_each(|(to, w, dims)| grads.add(to, tensor(vec![(w * g) as f32], dims)?))
        }));
    }
    let [y] = tape.composed(&inputs, |t| {
        let mut sum: Option<Tensor> = None;
        for (x, (_, w)) in t.iter().zip(terms) {
            let x = x.affine(*w, 0.0)?;
            sum = Some(match sum {
                Some(s) => s.add(&x)?,
                None => x,
            });
        }
        Ok([sum.ok_or_else(|| Error::value("weighted sum", "terms", "none", "at least one"))?])
    })?;
    Ok(y)
}

/// Copies rows `from..from + count` of the matrix `source` (which may be a view of a wider one) to the rows of `target`
/// from `at` on, in place.
///
/// # Errors
/// When the rows do not exist or the widths differ.
pub fn copy_rows(target: &Tensor, at: usize, source: &Tensor, from: usize, count: usize) -> Result<()> {
    let _running = running(Operation::Rows, 0.0);
    const OP: &str = "copy rows";
    let ((n, d), (rows, width)) = (source.dims2()?, target.dims2()?);
    if width != d || from + count > n || at + count > rows {
        return Err(Error::shape(
            OP,
            "source",
            source.dims(),
            format!("rows {from}+{count} into {at} of [{rows}, {width}]"),
        ));
    }
    if on_kernel(source) && on_kernel(target) && source.stride()[1] == 1 {
        return crate::array::with_rows(&[source], |views| {
            let s = views[0];
            crate::array::with_slice_mut(target, |t| {
                for i in 0..count {
                    let row = &mut t[(at + i) * d..(at + i + 1) * d];
                    // SAFETY: the row lies inside the source's view (checked above), and the two tensors do not share storage.
                    #[allow(unsafe_code)]
                    unsafe {
                        std::ptr::copy_nonoverlapping(s.ptr.add((from + i) * s.stride), row.as_mut_ptr(), d)
                    };
                }
            })
        })?;
    }
    Ok(target.slice_set(&source.narrow(0, from, count)?.contiguous()?, 0, at)?)
}
