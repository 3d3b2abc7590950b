//! Kernels of attention: tiles of keys with a running softmax (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022,
//! arXiv 2205.14135), so that no matrix of queries times keys is ever held.
//!
//! A query's bits depend on nothing but its own row and the keys it sees: tiles of keys start at key 0 and have a fixed width,
//! every score is one chain over the head's width, every output one chain over the keys, and keys that are not seen add exact
//! zeros. So a query alone against a cache, inside a block of queries and inside any batch has the same result.

#![allow(unsafe_code)]

use super::{AttentionSpec, Mask};
use crate::array::{Rows, SendPtr};
use crate::gemm::micro::{Start, group, multiply};
use crate::linear::cpu::{lanes, load, store};
use crate::pool;
use crate::profile::{Operation, running_with};
use crate::rng::{Key, drop_row};
use crate::simd::{Simd, kernel, math};
use std::cell::RefCell;
use std::ops::Range;

/// Queries of one block, a multiple of the rows that a product takes together.
const QUERIES: usize = 96;
/// Keys of one tile.
const KEYS: usize = 64;
/// Where the running maximum starts: below every score, but finite, so that a tile without a seen key leaves no NaN.
const LOWEST: f32 = -1e30;

/// One sequence: its queries are rows `q0 .. q0 + nq` of the query view; keys and values are rows `0 .. nk` from the pointers.
#[derive(Clone, Copy)]
pub(crate) struct Sequence {
    pub q0: usize,
    pub nq: usize,
    pub nk: usize,
    pub k: Rows,
    pub v: Rows,
}

impl Sequence {
    /// The keys that query `i` sees.
    fn visible(&self, mask: Mask, i: usize) -> Range<usize> {
        let end = (self.nk + i + 1).saturating_sub(self.nq);
        match (mask, end) {
            (Mask::Full, _) => 0..self.nk,
            (_, 0) => 0..0,
            (_, end) => mask.visible(end - 1, self.nk),
        }
    }

    /// The tiles that some query of `i0 .. i1` sees a key of.
    fn tiles(&self, mask: Mask, i0: usize, i1: usize) -> Range<usize> {
        let (first, last) = (self.visible(mask, i0), self.visible(mask, i1 - 1));
        let start = if first.is_empty() { last.start } else { first.start };
        start / KEYS..last.end.div_ceil(KEYS)
    }

    /// The queries of `i0 .. i0 + m` that may see a key of tile `t`, counted from `i0`; the first is a multiple of `group`. The others
    /// see none: their scores need not be computed.
    fn rows(&self, mask: Mask, t: usize, i0: usize, m: usize, group: usize) -> Range<usize> {
        // Query `i` sees keys below `nk - nq + i + 1`, in a band of the last `window` of them.
        let first = match mask {
            Mask::Full => 0,
            Mask::Causal | Mask::Band { .. } => (t * KEYS + self.nq).saturating_sub(self.nk),
        };
        let end = match mask {
            Mask::Band { window } => ((t + 1) * KEYS + self.nq + window).saturating_sub(self.nk + 1),
            Mask::Full | Mask::Causal => usize::MAX,
        };
        let (first, end) = (first.saturating_sub(i0).min(m), end.saturating_sub(i0).min(m));
        first / group * group..end
    }

    /// The columns of tile `t` that query `i` sees.
    fn columns(&self, mask: Mask, i: usize, t: usize) -> Range<usize> {
        let r = self.visible(mask, i);
        let (a, b) = (r.start.max(t * KEYS) - t * KEYS, r.end.min((t + 1) * KEYS).saturating_sub(t * KEYS));
        a.min(b)..b
    }

    /// Keys in tile `t`.
    fn width(&self, t: usize) -> usize {
        KEYS.min(self.nk - t * KEYS)
    }
}

/// The relative term of the scores: queries for positions, and a vector for each distance, that of the longest first.
#[derive(Clone, Copy)]
pub(crate) struct Relative {
    pub q: Rows,
    pub r: Rows,
    /// Number of distances.
    pub n: usize,
}

/// Distances that a block of queries has to a tile of keys, up to whole tiles.
const DISTANCES: usize = (QUERIES + KEYS).next_multiple_of(KEYS);

impl Relative {
    /// The row of `r` for the last of `rows` queries from `i0` on and the first key of tile `t`.
    fn first(&self, s: &Sequence, i0: usize, rows: usize, t: usize) -> usize {
        self.n + t * KEYS + s.nq - (s.nk + i0 + rows)
    }

    /// Rows of `r` that such queries and the keys of the tile need.
    fn count(&self, first: usize, rows: usize) -> usize {
        (rows + KEYS - 1).min(self.n - first)
    }

    /// The scores of `rows` queries (copied to `qp`) at the distances from row `first` on, `[rows, DISTANCES]`: query `i`'s and the
    /// tile's key `j` is in column `rows - 1 - i + j`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn scores<S: Simd>(
        &self,
        first: usize,
        rows: usize,
        col: usize,
        d: usize,
        qp: &[f32],
        rt: &mut [f32],
        b: &mut [f32],
    ) {
        for c in (0..rows + KEYS - 1).step_by(KEYS) {
            let have = self.n.saturating_sub(first + c).min(KEYS);
            // SAFETY: the rows exist; what is beyond them is 0 and belongs to keys that are not seen.
            unsafe {
                transpose_tile::<S>(part(self.r, first + c, col), have, d, rt);
                packed_times::<S>(rows, d, qp, rt, &mut b[c..], DISTANCES);
            }
        }
    }
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch(Vec<f32>);

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Scratch {
    /// Parts of the given sizes, not initialised to anything in particular.
    fn parts<const N: usize>(&mut self, sizes: [usize; N]) -> [&mut [f32]; N] {
        let total = sizes.iter().sum();
        if self.0.len() < total {
            self.0.resize(total, 0.0);
        }
        let mut rest = &mut self.0[..];
        sizes.map(|n| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(n);
            rest = tail;
            part
        })
    }
}

/// Distance of copied rows of queries, for heads of at most [`NARROW`]; not a multiple of the L1 cache's 4 KiB.
const STRIDE: usize = 144;
/// Heads up to this width are copied row by row; wider ones are packed in groups of rows.
const NARROW: usize = 128;

/// Where row `i`, a multiple of the group, begins in the copy that [`pack_rows`] makes.
fn packed_at(i: usize, d: usize) -> usize {
    i * if d <= NARROW { STRIDE } else { d }
}

/// Copies `rows` rows of width `d`, times `scale`, for [`packed_times`].
#[inline(always)]
unsafe fn pack_rows<S: Simd>(src: Rows, rows: usize, d: usize, scale: f32, dst: &mut [f32]) {
    assert!(dst.len() >= packed_at(rows.next_multiple_of(group::<S>()), d));
    if d <= NARROW {
        for i in 0..rows {
            // SAFETY: the rows exist, and the copy has room for them.
            unsafe {
                let factor = S::splat(scale);
                let (from, to) = (src.ptr.add(i * src.stride), dst.as_mut_ptr().add(i * STRIDE));
                lanes!(S, d, |at, len| { store::<S>(to.add(at), S::mul(factor, load::<S>(from.add(at), len)), len) });
            }
        }
        return;
    }
    let g = group::<S>();
    for i in 0..rows {
        let to = i / g * g * d + i % g;
        for p in 0..d {
            // SAFETY: the rows exist.
            dst[to + p * g] = scale * unsafe { *src.ptr.add(i * src.stride + p) };
        }
    }
}

/// Writes the transpose of `rows <= KEYS` rows of width `d` as `[d, KEYS]`, the columns beyond them 0.
#[inline(always)]
unsafe fn transpose_tile<S: Simd>(src: Rows, rows: usize, d: usize, dst: &mut [f32]) {
    let l = S::LANES;
    let (whole_rows, whole) = (rows / l * l, d / l * l);
    // SAFETY: the rows exist, and `dst` has d * KEYS elements.
    unsafe {
        for i in (0..whole_rows).step_by(l) {
            for p in (0..whole).step_by(l) {
                let from = src.ptr.add(i * src.stride + p);
                S::transpose(from, src.stride, dst.as_mut_ptr().add(p * KEYS + i), KEYS);
            }
        }
        let mut beyond = whole_rows;
        if whole_rows < rows {
            // The last rows with zeros below them: a few keys are the common case when tokens are generated.
            let mut last = [0f32; 16 * 16];
            for p in (0..whole).step_by(l) {
                for i in whole_rows..rows {
                    let to = last.as_mut_ptr().add((i - whole_rows) * l);
                    S::store(to, S::load(src.ptr.add(i * src.stride + p)));
                }
                S::transpose(last.as_ptr(), l, dst.as_mut_ptr().add(p * KEYS + whole_rows), KEYS);
            }
            beyond += l;
        }
        for p in 0..whole {
            dst[p * KEYS + beyond..(p + 1) * KEYS].fill(0.0);
        }
        for p in whole..d {
            let row = &mut dst[p * KEYS..(p + 1) * KEYS];
            for (i, x) in row.iter_mut().enumerate() {
                *x = if i < rows { *src.ptr.add(i * src.stride + p) } else { 0.0 };
            }
        }
    }
}

/// `c (+)= P B` for a tile `P` `[m, KEYS]` by rows.
#[inline(always)]
unsafe fn rows_times<S: Simd>(m: usize, n: usize, k: usize, p: &[f32], b: Rows, c: *mut f32, ldc: usize) {
    // SAFETY: the caller's shapes.
    unsafe {
        let next = group::<S>() * KEYS;
        multiply::<S, KEYS, 1>(m, n, k, p.as_ptr(), next, b.ptr, b.stride, false, c, ldc, Start::Old);
    }
}

/// `c += P^T B` for a tile `P` `[k, KEYS]`, of which the first `m` columns count.
#[inline(always)]
unsafe fn columns_times<S: Simd>(m: usize, n: usize, k: usize, p: &[f32], b: Rows, c: *mut f32, ldc: usize) {
    // SAFETY: the caller's shapes.
    unsafe {
        let next = group::<S>();
        multiply::<S, 1, KEYS>(m, n, k, p.as_ptr(), next, b.ptr, b.stride, false, c, ldc, Start::Old);
    }
}

/// `c [m, KEYS] = A B` for rows `A` of depth `k` as [`pack_rows`] copied them, and a transposed tile `B`; rows of `c` are `ldc` apart.
#[inline(always)]
unsafe fn packed_times<S: Simd>(m: usize, k: usize, a: &[f32], b: &[f32], c: &mut [f32], ldc: usize) {
    // SAFETY: the caller's shapes.
    unsafe {
        let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
        let next = packed_at(group::<S>(), k);
        if k <= NARROW {
            multiply::<S, STRIDE, 1>(m, KEYS, k, a, next, b, KEYS, true, c, ldc, Start::Zero);
        } else if S::LANES == 16 {
            multiply::<S, 1, 12>(m, KEYS, k, a, next, b, KEYS, true, c, ldc, Start::Zero);
        } else {
            multiply::<S, 1, 4>(m, KEYS, k, a, next, b, KEYS, true, c, ldc, Start::Zero);
        }
    }
}

/// The view from row `i`, column `j` on.
fn part(r: Rows, i: usize, j: usize) -> Rows {
    Rows { ptr: r.ptr.wrapping_add(i * r.stride + j), stride: r.stride }
}

/// Adds each query's scores at its distances to those at its keys.
#[inline(always)]
unsafe fn add_distances<S: Simd>(b: &[f32], rows: usize, p: &mut [f32]) {
    for i in 0..rows {
        let (from, to) = (&b[i * DISTANCES + rows - 1 - i..][..KEYS], &mut p[i * KEYS..][..KEYS]);
        for at in (0..KEYS).step_by(S::LANES) {
            // SAFETY: both have KEYS elements.
            unsafe {
                let to = to.as_mut_ptr().add(at);
                S::store(to, S::add(S::load(to), S::load(from.as_ptr().add(at))));
            }
        }
    }
}

/// One block of queries of one head: writes `out` rows (stride `ldo`) and, if `lse` is not null, the logarithms of the sums.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn forward_block<S: Simd>(
    spec: &AttentionSpec,
    s: &Sequence,
    q: Rows,
    head: usize,
    i0: usize,
    m: usize,
    relative: Option<Relative>,
    dropout: Option<(Key, f32)>,
    out: *mut f32,
    ldo: usize,
    lse: *mut f32,
    scratch: &mut Scratch,
) {
    let d = spec.d_head;
    let kv = head / (spec.n_heads / spec.n_kv_heads) * d;
    let g = group::<S>();
    let mp = m.next_multiple_of(g);
    let (rq, rt) = if relative.is_some() { (packed_at(mp, d), mp * DISTANCES) } else { (0, 0) };
    let [qp, kt, p, o, rp, rb] = scratch.parts([packed_at(mp, d), KEYS * d, mp * KEYS, m * d, rq, rt]);
    let (mut most, mut sums) = ([LOWEST; QUERIES], [0f32; QUERIES]);
    o.fill(0.0);
    // SAFETY: rows and columns inside the sequence's and the head's.
    unsafe {
        pack_rows::<S>(part(q, s.q0 + i0, head * d), m, d, spec.scale, qp);
        if let Some(r) = &relative {
            pack_rows::<S>(part(r.q, s.q0 + i0, head * d), m, d, spec.scale, rp);
        }
        for t in s.tiles(spec.mask, i0, i0 + m) {
            let width = s.width(t);
            let rows = s.rows(spec.mask, t, i0, m, g);
            let (r0, some) = (rows.start, rows.len());
            transpose_tile::<S>(part(s.k, t * KEYS, kv), width, d, kt);
            packed_times::<S>(some, d, &qp[packed_at(r0, d)..], kt, &mut p[r0 * KEYS..], KEYS);
            if let Some(r) = relative.as_ref().filter(|_| some > 0) {
                let first = r.first(s, i0 + r0, some, t);
                r.scores::<S>(first, some, head * d, d, &rp[packed_at(r0, d)..], kt, rb);
                add_distances::<S>(rb, some, &mut p[r0 * KEYS..]);
            }
            for i in rows {
                let seen = s.columns(spec.mask, i0 + i, t);
                let row = &mut p[i * KEYS..(i + 1) * KEYS];
                row[..seen.start].fill(f32::NEG_INFINITY);
                row[seen.end..].fill(f32::NEG_INFINITY);
                let rp = row.as_mut_ptr();
                let mut high = S::load(rp);
                for at in (S::LANES..KEYS).step_by(S::LANES) {
                    high = S::max(high, S::load(rp.add(at)));
                }
                let high = S::reduce_max(high);
                let old = most[i];
                let new = if high > old { high } else { old };
                let v = S::splat(new);
                let mut sum = S::splat(0.0);
                for at in (0..KEYS).step_by(S::LANES) {
                    let e = math::exp::<S>(S::sub(S::load(rp.add(at)), v));
                    S::store(rp.add(at), e);
                    sum = S::add(sum, e);
                }
                if new != old {
                    most[i] = new;
                    let mut shrink = [0f32; 16];
                    S::store(shrink.as_mut_ptr(), math::exp::<S>(S::splat(old - new)));
                    sums[i] *= shrink[0];
                    let (f, op) = (S::splat(shrink[0]), o.as_mut_ptr().add(i * d));
                    lanes!(S, d, |at, len| {
                        store::<S>(op.add(at), S::mul(f, load::<S>(op.add(at), len)), len);
                    });
                }
                sums[i] += S::reduce_add(sum);
                if let Some((key, rate)) = dropout {
                    let stream = ((s.q0 + i0 + i) * spec.n_heads + head) as u64;
                    drop_row(key, stream, (t * KEYS) as u32, rate, row);
                }
            }
            let op = o.as_mut_ptr().add(r0 * d);
            rows_times::<S>(some, d, width, &p[r0 * KEYS..], part(s.v, t * KEYS, kv), op, d);
        }
        for i in 0..m {
            let (sum, op) = (sums[i], o.as_ptr().add(i * d));
            // A query that sees no key has the output 0; a sum that is not a number stays one.
            let f = S::splat(if sum == 0.0 { 0.0 } else { 1.0 / sum });
            let to = out.add(i * ldo);
            lanes!(S, d, |at, len| { store::<S>(to.add(at), S::mul(f, load::<S>(op.add(at), len)), len) });
            if !lse.is_null() {
                *lse.add(i * spec.n_heads) = if sum == 0.0 { 0.0 } else { most[i] + sum.ln() };
            }
        }
    }
}
kernel!(unsafe fn forward_kernel(spec: &AttentionSpec, s: &Sequence, q: Rows, head: usize, i0: usize, m: usize,
    relative: Option<Relative>, dropout: Option<(Key, f32)>, out: *mut f32, ldo: usize, lse: *mut f32, scratch: &mut Scratch) = forward_block);

/// Floating-point operations of the forward pass's products (two, or three with distances), on the keys that are seen.
fn flops(spec: &AttentionSpec, seqs: &[Sequence], relative: bool) -> f64 {
    let seen = |s: &Sequence| (0..s.nq).map(|i| s.visible(spec.mask, i).len()).sum::<usize>();
    let products = if relative { 6.0 } else { 4.0 };
    products * (spec.n_heads * spec.d_head) as f64 * seqs.iter().map(seen).sum::<usize>() as f64
}

/// Attention of all sequences: `out` `[n, n_heads * d_head]`, and for the backward pass the logarithm of every query's sum of
/// exponentials in `lse` `[n, n_heads]`.
///
/// # Safety
/// The views cover the sequences' rows, and the sequences' queries do not overlap and lie inside `out`.
pub(crate) unsafe fn forward(
    spec: &AttentionSpec,
    seqs: &[Sequence],
    q: Rows,
    relative: Option<Relative>,
    dropout: Option<(Key, f32)>,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) {
    // SAFETY: views are only read.
    struct Shared(Option<Relative>);
    // SAFETY: as above.
    unsafe impl Sync for Shared {}
    let relative = Shared(relative);
    let (h, d) = (spec.n_heads, spec.d_head);
    let n = out.len() / (h * d);
    assert!(seqs.iter().all(|s| s.q0 + s.nq <= n) && lse.as_ref().is_none_or(|l| l.len() == n * h));
    let _running = running_with(Operation::AttentionForward, || flops(spec, seqs, relative.0.is_some()));
    let mut blocks: Vec<(usize, usize)> = Vec::new();
    for (i, s) in seqs.iter().enumerate() {
        // Late queries of a causal sequence see the most keys: they come first, so that the threads end together.
        blocks.extend((0..s.nq).step_by(QUERIES).rev().map(|i0| (i, i0)));
    }
    let lse = lse.map(|l| SendPtr(l.as_mut_ptr()));
    let to = SendPtr(out.as_mut_ptr());
    let task = |i: usize| {
        let (to, lse, relative) = (to, lse, &relative);
        let ((seq, i0), head) = (blocks[i / h], i % h);
        let s = &seqs[seq];
        let m = QUERIES.min(s.nq - i0);
        SCRATCH.with(|scratch| {
            let scratch = &mut *scratch.borrow_mut();
            // SAFETY: a task writes the rows of its block and the columns of its head; the caller's promise for the rest.
            unsafe {
                let row = s.q0 + i0;
                let out = to.0.add(row * h * d + head * d);
                let lse = lse.map_or(std::ptr::null_mut(), |l| l.0.add(row * h + head));
                forward_kernel(spec, s, q, head, i0, m, relative.0, dropout, out, h * d, lse, scratch);
            }
        });
    };
    pool::run(blocks.len() * h, task);
}

/// Where gradients go: rows like those of the inputs.
#[derive(Clone, Copy)]
pub(crate) struct RowsMut {
    pub ptr: SendPtr,
    pub stride: usize,
}

impl RowsMut {
    fn at(self, i: usize, j: usize) -> *mut f32 {
        self.ptr.0.wrapping_add(i * self.stride + j)
    }
}

/// What the backward pass reads and writes. `dk` and `dv` have the rows of all keys in order; sequence `s` starts at `k0[s]`.
#[derive(Clone, Copy)]
pub(crate) struct Backward<'a> {
    pub q: Rows,
    pub out: &'a [f32],
    pub dout: &'a [f32],
    pub lse: &'a [f32],
    pub dq: RowsMut,
    pub dk: RowsMut,
    pub dv: RowsMut,
    /// The relative term, and the gradients of its queries and of its vectors: a copy of the latter for each sequence.
    pub relative: Option<(Relative, RowsMut, &'a [RowsMut])>,
}

/// One sequence and one head of keys, with all heads of queries that share it.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn backward_head<S: Simd>(
    spec: &AttentionSpec,
    s: &Sequence,
    seq: usize,
    k0: usize,
    kv_head: usize,
    dropout: Option<(Key, f32)>,
    b: &Backward<'_>,
    scratch: &mut Scratch,
) {
    let (d, h) = (spec.d_head, spec.n_heads);
    let per = h / spec.n_kv_heads;
    let kv = kv_head * d;
    let g = group::<S>();
    let padded = s.nq.next_multiple_of(QUERIES);
    let relative = b.relative.map(|(r, dq, dr)| (r, dq, dr[seq]));
    let (rq, rt) = if relative.is_some() { (packed_at(padded, d), QUERIES * DISTANCES) } else { (0, 0) };
    let [qp, gp, delta, kt, vt, p, ds, rp, rb, tile] = scratch.parts([
        packed_at(padded, d),
        packed_at(padded, d),
        s.nq,
        KEYS * d,
        KEYS * d,
        QUERIES * KEYS,
        QUERIES * KEYS,
        rq,
        rt,
        if relative.is_some() { KEYS * d } else { 0 },
    ]);
    // SAFETY: rows and columns inside the sequence's and the heads'.
    unsafe {
        let clear = |to: RowsMut, rows: Range<usize>, col: usize, width: usize| {
            for i in rows {
                std::slice::from_raw_parts_mut(to.at(i, col), width).fill(0.0);
            }
        };
        clear(b.dk, k0..k0 + s.nk, kv, d);
        clear(b.dv, k0..k0 + s.nk, kv, d);
        for head in kv_head * per..(kv_head + 1) * per {
            let col = head * d;
            let dout = Rows { ptr: b.dout.as_ptr().add(s.q0 * h * d + col), stride: h * d };
            let out = Rows { ptr: b.out.as_ptr().add(s.q0 * h * d + col), stride: h * d };
            let q = part(b.q, s.q0, col);
            clear(b.dq, s.q0..s.q0 + s.nq, col, d);
            pack_rows::<S>(q, s.nq, d, spec.scale, qp);
            pack_rows::<S>(dout, s.nq, d, 1.0, gp);
            if let Some((r, dq, dr)) = &relative {
                clear(*dq, s.q0..s.q0 + s.nq, col, d);
                clear(*dr, 0..r.n, col, d);
                pack_rows::<S>(part(r.q, s.q0, col), s.nq, d, spec.scale, rp);
            }
            for (i, delta) in delta.iter_mut().enumerate() {
                let (x, y) = (part(dout, i, 0).ptr, part(out, i, 0).ptr);
                let mut sum = S::splat(0.0);
                lanes!(S, d, |at, len| { sum = S::fma(load::<S>(x.add(at), len), load::<S>(y.add(at), len), sum) });
                *delta = S::reduce_add(sum);
            }
            for t in 0..s.nk.div_ceil(KEYS) {
                let width = s.width(t);
                let (k, v) = (part(s.k, t * KEYS, kv), part(s.v, t * KEYS, kv));
                let (dk, dv) = (b.dk.at(k0 + t * KEYS, kv), b.dv.at(k0 + t * KEYS, kv));
                transpose_tile::<S>(k, width, d, kt);
                transpose_tile::<S>(v, width, d, vt);
                for i0 in (0..s.nq).step_by(QUERIES) {
                    let m = QUERIES.min(s.nq - i0);
                    if !s.tiles(spec.mask, i0, i0 + m).contains(&t) {
                        continue;
                    }
                    // The queries of the block that see a key of the tile; QUERIES is a multiple of the group, so they are too.
                    let rows = s.rows(spec.mask, t, i0, m, g);
                    let (i0, m) = (i0 + rows.start, rows.len());
                    if m == 0 {
                        continue;
                    }
                    packed_times::<S>(m, d, &qp[packed_at(i0, d)..], kt, p, KEYS);
                    packed_times::<S>(m, d, &gp[packed_at(i0, d)..], vt, ds, KEYS);
                    if let Some((r, ..)) = &relative {
                        r.scores::<S>(r.first(s, i0, m, t), m, col, d, &rp[packed_at(i0, d)..], tile, rb);
                        add_distances::<S>(rb, m, p);
                    }
                    for i in 0..m {
                        let (row, grad) = (&mut p[i * KEYS..(i + 1) * KEYS], &mut ds[i * KEYS..(i + 1) * KEYS]);
                        let seen = s.columns(spec.mask, i0 + i, t);
                        row[..seen.start].fill(f32::NEG_INFINITY);
                        row[seen.end..].fill(f32::NEG_INFINITY);
                        let mut factors = [1f32; KEYS];
                        if let Some((key, rate)) = dropout {
                            let stream = ((s.q0 + i0 + i) * h + head) as u64;
                            drop_row(key, stream, (t * KEYS) as u32, rate, &mut factors);
                        }
                        let lse = S::splat(b.lse[(s.q0 + i0 + i) * h + head]);
                        let (delta, scale) = (S::splat(delta[i0 + i]), S::splat(spec.scale));
                        for at in (0..KEYS).step_by(S::LANES) {
                            let (rp, gp) = (row.as_mut_ptr().add(at), grad.as_mut_ptr().add(at));
                            let e = math::exp::<S>(S::sub(S::load(rp), lse));
                            let f = S::load(factors.as_ptr().add(at));
                            let x = S::sub(S::mul(S::load(gp), f), delta);
                            S::store(gp, S::mul(S::mul(e, scale), x));
                            S::store(rp, S::mul(e, f));
                        }
                    }
                    columns_times::<S>(width, d, m, p, part(dout, i0, 0), dv, b.dv.stride);
                    columns_times::<S>(width, d, m, ds, part(q, i0, 0), dk, b.dk.stride);
                    rows_times::<S>(m, d, width, ds, k, b.dq.at(s.q0 + i0, col), b.dq.stride);
                    if let Some((r, dq, dr)) = &relative {
                        // What was added of a row of distances gets its gradient back; the others have none.
                        rb[..m * DISTANCES].fill(0.0);
                        for i in 0..m {
                            let seen = s.columns(spec.mask, i0 + i, t);
                            let to = i * DISTANCES + m - 1 - i;
                            rb[to + seen.start..to + seen.end].copy_from_slice(&ds[i * KEYS..][seen]);
                        }
                        let first = r.first(s, i0, m, t);
                        let (n, g) = (r.count(first, m), group::<S>());
                        let (rows, queries) = (part(r.r, first, col), part(r.q, s.q0 + i0, col));
                        let (to, x) = (dq.at(s.q0 + i0, col), rb.as_ptr());
                        multiply::<S, DISTANCES, 1>(
                            m,
                            d,
                            n,
                            x,
                            g * DISTANCES,
                            rows.ptr,
                            rows.stride,
                            false,
                            to,
                            dq.stride,
                            Start::Old,
                        );
                        let to = dr.at(first, col);
                        multiply::<S, 1, DISTANCES>(
                            n,
                            d,
                            m,
                            x,
                            g,
                            queries.ptr,
                            queries.stride,
                            false,
                            to,
                            dr.stride,
                            Start::Old,
                        );
                    }
                }
            }
        }
    }
}
kernel!(unsafe fn backward_kernel(spec: &AttentionSpec, s: &Sequence, seq: usize, k0: usize, kv_head: usize,
    dropout: Option<(Key, f32)>, b: &Backward<'_>, scratch: &mut Scratch) = backward_head);

/// The gradients of queries, keys and values, from the output, its gradient and the forward pass's `lse`.
///
/// # Safety
/// As [`forward`]; the three gradients' rows do not overlap, and the sequences' keys are disjoint rows of `dk` and `dv`.
pub(crate) unsafe fn backward(
    spec: &AttentionSpec,
    seqs: &[Sequence],
    k0: &[usize],
    dropout: Option<(Key, f32)>,
    b: &Backward<'_>,
) {
    // SAFETY: views are only read, gradients are written by disjoint tasks.
    struct Shared<'a>(&'a Backward<'a>);
    // SAFETY: as above.
    unsafe impl Sync for Shared<'_> {}
    let shared = Shared(b);
    let _running = running_with(Operation::AttentionBackward, || 2.0 * flops(spec, seqs, b.relative.is_some()));
    let mut order: Vec<usize> = (0..seqs.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(seqs[i].nq * seqs[i].nk));
    let heads = spec.n_kv_heads;
    pool::run(order.len() * heads, |i| {
        let shared = &shared;
        let (seq, head) = (order[i / heads], i % heads);
        SCRATCH.with(|scratch| {
            // SAFETY: a task owns the rows of its sequence and the columns of its heads in all three gradients.
            unsafe {
                backward_kernel(spec, &seqs[seq], seq, k0[seq], head, dropout, shared.0, &mut scratch.borrow_mut());
            }
        });
    });
}
