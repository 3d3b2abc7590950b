//! Weights packed once, for inference: panels as wide as the microkernel's two vectors, each contiguous over the whole depth.
//!
//! Products of few rows (decoding) then read the weights as one long stream a thread with all sums in registers, and products of
//! many rows need no packing of B at all. Every element of the result is still the one chain over the depth that all products of
//! [`super`] are, so a prepared weight changes no bit. In bf16 a panel holds pairs of the depth, at half the bytes.

mod few;
mod many;
mod pack;
mod product;
mod slab;
#[cfg(test)]
mod tests;

pub(crate) use product::multiply;

use crate::array::SendPtr;
use crate::linear::Layout;
use crate::simd::{Simd, kernel};
use crate::{Precision, pool};
use pack::Source;
use slab::Block;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Numbers as they lie in memory.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// f32.
    F32(&'a [f32]),
    /// The bits of bf16.
    Bf16(&'a [u16]),
}

impl Floats<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(x) => x.len(),
            Floats::Bf16(x) => x.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn to_vec(self) -> Vec<f32> {
        match self {
            Floats::F32(x) => x.to_vec(),
            Floats::Bf16(x) => x.iter().map(|&b| f32::from_bits(u32::from(b) << 16)).collect(),
        }
    }
}

/// A weight matrix packed for inference at the level in force when it was made; it can be used at every level.
pub struct Prepared {
    d_in: usize,
    d_out: usize,
    layout: Layout,
    precision: Precision,
    /// Columns of a panel.
    width: usize,
    finite: bool,
    exact: bool,
    /// The rows of a table that packing rounded.
    rows: Option<Vec<f32>>,
    block: Block,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared([{}, {}], {:?}, {})", self.d_in, self.d_out, self.layout, self.precision)
    }
}

impl Prepared {
    /// Packs a weight from `d_in` to `d_out` that lies in memory as `layout` says, on all threads.
    ///
    /// # Panics
    /// When there are not `d_in * d_out` values.
    pub fn pack(values: Floats<'_>, layout: Layout, d_in: usize, d_out: usize, precision: Precision) -> Self {
        assert_eq!(values.len(), d_in * d_out, "a weight of {d_in} x {d_out}");
        // SAFETY: asks for a constant of the level in force.
        let width = unsafe { width() };
        let panels = d_out.div_ceil(width);
        let steps = d_in.div_ceil(elements(precision));
        let block = Block::new(panels * width * steps * size_of::<f32>());
        let src = Source::new(values, layout, d_in, d_out);
        let to = SendPtr(block.ptr().cast());
        let (finite, exact) = (AtomicBool::new(true), AtomicBool::new(true));
        pool::run_chunks(panels, 16, |r| {
            let pairs = precision == Precision::Bf16;
            // SAFETY: the source has [d_in, d_out] elements (checked above); chunks of panels are disjoint parts of the block.
            let ok = unsafe { pack::panels(src, d_in, d_out, r.start, r.end, pairs, to.ptr()) };
            finite.fetch_and(ok[0], Relaxed);
            exact.fetch_and(ok[1], Relaxed);
        });
        let (finite, exact) = (finite.into_inner(), exact.into_inner());
        Prepared { d_in, d_out, layout, precision, width, finite, exact, rows: None, block }
    }

    /// As [`Prepared::pack`], of a weight whose rows are also looked up as a table's: where packing rounds, the rows are kept
    /// beside the panels.
    ///
    /// # Panics
    /// As [`Prepared::pack`].
    pub fn pack_table(values: Floats<'_>, layout: Layout, d_in: usize, d_out: usize, precision: Precision) -> Self {
        let packed = Self::pack(values, layout, d_in, d_out, precision);
        let rows = (!packed.exact).then(|| values.to_vec());
        Prepared { rows, ..packed }
    }

    /// The shape that the weight had in memory.
    pub fn dims(&self) -> [usize; 2] {
        self.layout.shape(self.d_in, self.d_out)
    }

    /// How it lay in memory.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The precision of its products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.block.bytes()
    }

    /// Whether every element is a finite number.
    pub fn is_finite(&self) -> bool {
        self.finite
    }

    /// The elements as they lay in memory; rounded to bf16 if that is the precision and it is no table.
    pub fn unpack(&self) -> Vec<f32> {
        let [rows, cols] = self.dims();
        let mut out = vec![0f32; rows * cols];
        let to = SendPtr(out.as_mut_ptr());
        pool::run_chunks(rows, 64, |r| {
            for i in r {
                // SAFETY: one row of the output each.
                self.row(i, unsafe { to.slice(i * cols, cols) });
            }
        });
        out
    }

    /// Row `i` of the matrix as it lay in memory.
    ///
    /// # Panics
    /// When there is no such row, or `out` has another length than a row.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        self.row_map(i, out, |o, x| *o = x);
    }

    /// As [`Prepared::row`], added to what is there.
    pub(crate) fn add_row(&self, i: usize, out: &mut [f32]) {
        self.row_map(i, out, |o, x| *o += x);
    }

    #[inline(always)]
    fn row_map(&self, i: usize, out: &mut [f32], f: impl Fn(&mut f32, f32)) {
        let [rows, cols] = self.dims();
        assert!(i < rows && out.len() == cols, "row {i} of {rows} x {cols}");
        if out.is_empty() {
            return;
        }
        if let Some(rows) = &self.rows {
            out.iter_mut().zip(&rows[i * cols..]).for_each(|(o, &x)| f(o, x));
            return;
        }
        let (data, w, steps) = (self.data(), self.width, self.steps());
        match (self.layout, self.precision) {
            (Layout::OutIn, Precision::F32) => {
                let column = &data[i / w * w * steps + i % w..];
                out.iter_mut().enumerate().for_each(|(p, o)| f(o, column[p * w]));
            }
            (Layout::OutIn, Precision::Bf16) => {
                let column = &data[i / w * w * steps + i % w..];
                for (s, out) in out.chunks_mut(2).enumerate() {
                    let pair = halves(column[s * w]);
                    out.iter_mut().zip(pair).for_each(|(o, x)| f(o, x));
                }
            }
            (Layout::InOut, Precision::F32) => {
                for (j, out) in out.chunks_mut(w).enumerate() {
                    let part = &data[(j * steps + i) * w..];
                    out.iter_mut().zip(part).for_each(|(o, &x)| f(o, x));
                }
            }
            (Layout::InOut, Precision::Bf16) => {
                for (j, out) in out.chunks_mut(w).enumerate() {
                    let part = &data[(j * steps + i / 2) * w..];
                    out.iter_mut().zip(part).for_each(|(o, &x)| f(o, halves(x)[i % 2]));
                }
            }
        }
    }

    /// The depth in steps of 32 bits.
    fn steps(&self) -> usize {
        self.d_in.div_ceil(elements(self.precision))
    }

    /// All panels: step `s` of panel `j` begins at `(j * steps + s) * width`.
    fn data(&self) -> &[f32] {
        // SAFETY: `pack` wrote every float of the block, which is aligned for them.
        unsafe { std::slice::from_raw_parts(self.block.ptr().cast(), self.block.bytes() / size_of::<f32>()) }
    }
}

/// Elements of the depth in a step.
fn elements(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 1,
        Precision::Bf16 => 2,
    }
}

/// The two bf16 of a step.
fn halves(pair: f32) -> [f32; 2] {
    let bits = pair.to_bits();
    [f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)]
}

#[inline(always)]
unsafe fn width_of<S: Simd>() -> usize {
    2 * S::LANES
}
kernel!(unsafe fn width() -> usize = width_of);
