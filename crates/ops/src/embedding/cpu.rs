//! Kernel of the sum of embeddings. The backward is [`crate::rows::cpu::scatter_add`], once a table.

#![allow(unsafe_code)]

use crate::array::SendPtr;
use crate::gemm::packed::Prepared;
use crate::pool;

/// `out[i] = table[ids[i]]`, or added to what is there; rows of `d`.
pub(crate) fn add_rows(table: &[f32], ids: &[u32], d: usize, add: bool, out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * d);
    let to = SendPtr(out.as_mut_ptr());
    pool::run_chunks(ids.len(), 64, |r| {
        for i in r {
            let row = &table[ids[i] as usize * d..][..d];
            // SAFETY: one row of the output each.
            let out = unsafe { to.slice(i * d, d) };
            if add {
                out.iter_mut().zip(row).for_each(|(o, x)| *o += x);
            } else {
                out.copy_from_slice(row);
            }
        }
    });
}

/// Multiplies all elements.
pub(crate) fn multiply(x: &mut [f32], factor: f32) {
    let (n, to) = (x.len(), SendPtr(x.as_mut_ptr()));
    pool::run_chunks(n, 1 << 14, |r| {
        // SAFETY: chunks do not overlap.
        unsafe { to.slice(r.start, r.len()) }.iter_mut().for_each(|x| *x *= factor);
    });
}

/// As [`add_rows`], from a table that is packed as the weight of a (tied) projection.
pub(crate) fn add_prepared_rows(table: &Prepared, ids: &[u32], d: usize, add: bool, out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * d);
    let to = SendPtr(out.as_mut_ptr());
    pool::run_chunks(ids.len(), 16, |r| {
        for i in r {
            // SAFETY: one row of the output each.
            let out = unsafe { to.slice(i * d, d) };
            if add {
                table.add_row(ids[i] as usize, out);
            } else {
                table.row(ids[i] as usize, out);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{data, thread_invariant};

    #[test]
    fn sums_rows_of_all_tables() {
        let (d, n) = (13, 70);
        let (a, b) = (data(9 * d, 1), data(4 * d, 2));
        let ids: Vec<u32> = (0..n).map(|i| i * 7 % 9).collect();
        let segments: Vec<u32> = (0..n).map(|i| i % 4).collect();
        let [y] = thread_invariant(|| {
            let mut y = vec![0.0; n as usize * d];
            add_rows(&a, &ids, d, false, &mut y);
            add_rows(&b, &segments, d, true, &mut y);
            [y]
        });
        for (i, y) in y.chunks(d).enumerate() {
            for (j, y) in y.iter().enumerate() {
                assert_eq!(*y, a[ids[i] as usize * d + j] + b[segments[i] as usize * d + j]);
            }
        }
    }
}
