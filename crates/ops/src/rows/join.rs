//! Matrices joined by rows or columns, and a row added to all.

use super::{cpu, matrix};
use crate::array::{tensor, uninit, with_slice, with_slices};
use crate::linear::cpu::column_sums;
use crate::{Error, Result, Tape, Tensor, Value};

/// A matrix of rows of `a` and `b`: entry `i` of `order` names a row of `a`, or, from `a`'s number of rows on, one of `b`.
///
/// # Shapes
/// `a` `[n, d]`, `b` `[m, d]`; the result `[order.len(), d]`.
///
/// # Errors
/// When widths differ or an entry is beyond both.
pub fn join_rows(tape: &Tape, a: &Value, b: &Value, order: &[u32]) -> Result<Value> {
    const OP: &str = "join rows";
    let ((n, d), (m, width)) = (matrix(OP, "a", a)?, matrix(OP, "b", b)?);
    if width != d {
        return Err(Error::shape(OP, "b", b.dims(), format!("[m, {d}]")));
    }
    if let Some(i) = order.iter().find(|&&i| i as usize >= n + m) {
        return Err(Error::value(OP, "entry", i, format!("below {}", n + m)));
    }
    if tape.kernel(a.tensor()) && tape.kernel(b.tensor()) {
        let mut y = uninit(order.len() * d);
        with_slices([a.tensor(), b.tensor()], |[a, b]| cpu::gather_two(a, b, d, order, &mut y))?;
        let (targets, order) = ([a.target(), b.target()], order.to_vec());
        return Ok(tape.push(&[a, b], tensor(y, &[order.len(), d])?, move |g, grads| {
            for ((target, rows), first) in targets.iter().zip([n, m]).zip([0, n]) {
                let of = |i: &u32| (first..first + rows).contains(&(*i as usize)).then(|| *i - first as u32);
                with_slice(&g, |g| {
                    grads.write(target, &[rows, d], |dx, add| {
                        if !add {
                            dx.fill(0.0);
                        }
                        for (i, row) in order.iter().map(of).enumerate() {
                            if let Some(row) = row {
                                let to = &mut dx[row as usize * d..][..d];
                                to.iter_mut().zip(&g[i * d..]).for_each(|(x, g)| *x += g);
                            }
                        }
                    })
                })??;
            }
            Ok(())
        }));
    }
    let index = Tensor::new(order, a.tensor().device())?;
    let [y] = tape.composed(&[a, b], |t| Ok([Tensor::cat(&[&t[0], &t[1]], 0)?.index_select(&index, 0)?]))?;
    Ok(y)
}

/// `x` plus `b` in every row.
///
/// # Shapes
/// `x` `[n, d]`, `b` of `d` elements in any shape.
///
/// # Errors
/// When `b` has another number of elements.
pub fn add_row(tape: &Tape, x: &Value, b: &Value) -> Result<Value> {
    const OP: &str = "add row";
    let (n, d) = matrix(OP, "x", x)?;
    let shape = b.dims().to_vec();
    if shape.iter().product::<usize>() != d {
        return Err(Error::shape(OP, "b", &shape, format!("{d} elements")));
    }
    if tape.kernel(x.tensor()) && tape.kernel(b.tensor()) {
        let mut y = uninit(n * d);
        with_slices([x.tensor(), b.tensor()], |[x, b]| cpu::plus_row(x, b, &mut y))?;
        let (to_x, to_b) = (x.target(), b.target());
        return Ok(tape.push(&[x, b], tensor(y, &[n, d])?, move |g, grads| {
            with_slice(&g, |g| grads.write(&to_b, &shape, |db, add| column_sums(g, n, db, add)))??;
            grads.add_shared(&to_x, &g)
        }));
    }
    let [y] = tape.composed(&[x, b], |t| Ok([t[0].broadcast_add(&t[1].reshape((1, d))?)?]))?;
    Ok(y)
}

/// Matrices of as many rows side by side.
///
/// # Errors
/// When there is none or numbers of rows differ.
pub fn beside(tape: &Tape, parts: &[&Value]) -> Result<Value> {
    const OP: &str = "beside";
    let Some(first) = parts.first() else { return Err(Error::value(OP, "parts", 0, "at least one")) };
    let (n, _) = matrix(OP, "part", first)?;
    let mut widths = Vec::with_capacity(parts.len());
    for part in parts {
        let (rows, width) = matrix(OP, "part", part)?;
        if rows != n {
            return Err(Error::shape(OP, "part", part.dims(), format!("[{n}, d]")));
        }
        widths.push(width);
    }
    if !parts.iter().all(|p| tape.kernel(p.tensor())) {
        let [y] = tape.composed(parts, |t| Ok([Tensor::cat(t, 1)?]))?;
        return Ok(y);
    }
    let wide: usize = widths.iter().sum();
    let mut y = uninit(n * wide);
    let mut from = 0;
    for (part, &width) in parts.iter().zip(&widths) {
        with_slice(part.tensor(), |x| {
            for (y, x) in y.chunks_mut(wide.max(1)).zip(x.chunks(width.max(1))) {
                y[from..from + width].copy_from_slice(x);
            }
        })?;
        from += width;
    }
    let targets: Vec<_> = parts.iter().map(|p| p.target()).collect();
    Ok(tape.push(parts, tensor(y, &[n, wide])?, move |g, grads| {
        let mut from = 0;
        for (target, &width) in targets.iter().zip(&widths) {
            with_slice(&g, |g| {
                grads.write(target, &[n, width], |dx, add| {
                    for (dx, g) in dx.chunks_mut(width.max(1)).zip(g.chunks(wide.max(1))) {
                        let g = &g[from..from + width];
                        match add {
                            true => dx.iter_mut().zip(g).for_each(|(x, g)| *x += g),
                            false => dx.copy_from_slice(g),
                        }
                    }
                })
            })??;
            from += width;
        }
        Ok(())
    }))
}

/// Columns `from .. from + width` of `x`.
///
/// # Errors
/// When there are no such columns.
pub fn columns(tape: &Tape, x: &Value, from: usize, width: usize) -> Result<Value> {
    const OP: &str = "columns";
    let (n, d) = matrix(OP, "x", x)?;
    if from + width > d {
        return Err(Error::shape(OP, "x", x.dims(), format!("at least {} columns", from + width)));
    }
    if tape.kernel(x.tensor()) {
        let y = x.tensor().narrow(1, from, width)?.contiguous()?;
        let to = x.target();
        return Ok(tape.push(&[x], y, move |g, grads| {
            with_slice(&g, |g| {
                grads.write(&to, &[n, d], |dx, add| {
                    if !add {
                        dx.fill(0.0);
                    }
                    for (dx, g) in dx.chunks_mut(d).zip(g.chunks(width.max(1))) {
                        dx[from..from + width].iter_mut().zip(g).for_each(|(x, g)| *x += g);
                    }
                })
            })?
        }));
    }
    let [y] = tape.composed(&[x], |t| Ok([t[0].narrow(1, from, width)?.contiguous()?]))?;
    Ok(y)
}

/// The same elements in another shape.
///
/// # Errors
/// When the number of elements differs.
pub fn reshape(tape: &Tape, x: &Value, shape: &[usize]) -> Result<Value> {
    let old = x.dims().to_vec();
    if old.iter().product::<usize>() != shape.iter().product::<usize>() {
        return Err(Error::shape("reshape", "x", &old, format!("as many elements as {shape:?}")));
    }
    let y = x.tensor().contiguous()?.reshape(shape)?;
    let to = x.target();
    Ok(tape.push(&[x], y, move |g, grads| grads.add_shared(&to, &g.contiguous()?.reshape(old)?)))
}
