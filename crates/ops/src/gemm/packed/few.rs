//! Products of a few rows, as in decoding: each thread streams a contiguous share of the weights once.

use super::Prepared;
use super::product::{Way, finish, most_rows, tile_rows};
use crate::array::SendPtr;
use crate::gemm::micro::Start;
#[cfg(target_arch = "x86_64")]
use crate::gemm::step::NativePairs;
use crate::gemm::step::{Step, Whole};
use crate::gemm::{Epilogue, Init};
use crate::pool;
#[cfg(target_arch = "x86_64")]
use crate::simd::Avx512;
use crate::simd::{Simd, kernel};
use std::cell::RefCell;
use std::ops::Range;

/// Bytes of weights that a thread takes at a time from its share.
const PIECE: usize = 128 << 10;
/// Bytes by which the stream is prefetched into the L2 cache; the processor's own prefetcher brings it on from there.
const AHEAD: usize = 4096;

/// Rows of A as steps, packed in groups: `rows` of each, step by step.
#[derive(Clone, Copy)]
struct Groups {
    a: *const f32,
    m: usize,
    rows: usize,
    steps: usize,
}

// SAFETY: a read-only view that outlives the product it is made for.
unsafe impl Send for Groups {}
// SAFETY: as above.
unsafe impl Sync for Groups {}

thread_local! {
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Products of a few rows: each thread reads a contiguous share of the weights, panel after panel.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn few<E: Epilogue>(
    m: usize,
    a: *const f32,
    lda: usize,
    w: &Prepared,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
    epilogue: E,
) {
    let (k, way) = (w.d_in, Way::of(w));
    // Groups of about equal size: a group's cost has a part that does not depend on its rows.
    let groups = m.div_ceil(most_rows());
    let rows = m.div_ceil(groups);
    let steps = if way == Way::Native { w.steps() } else { k };
    ROWS.with(|packed| {
        let packed = &mut *packed.borrow_mut();
        let a = if m == 1 && way == Way::Whole {
            Groups { a, m, rows, steps }
        } else {
            packed.resize(groups * rows * steps + 16, 0.0);
            // SAFETY: the rows exist.
            unsafe {
                match way {
                    #[cfg(target_arch = "x86_64")]
                    Way::Native => native_groups(m, rows, k, a, lda, packed),
                    _ => whole_groups(m, rows, k, a, lda, way == Way::Widened, packed),
                }
            };
            Groups { a: packed.as_ptr(), m, rows, steps }
        };
        let c = SendPtr(c);
        let panel = w.steps() * w.width * size_of::<f32>();
        let share = move |r: Range<usize>| {
            let (a, c) = (a, c);
            let (from, to) = (r.start * w.width, (r.end * w.width).min(w.d_out));
            // SAFETY: ranges of panels are disjoint columns of C; the caller's promise for the rest.
            unsafe {
                match way {
                    Way::Whole => few_whole(a, w, r.start, r.end, c.0, ldc, init),
                    #[cfg(target_arch = "x86_64")]
                    Way::Native => few_native(a, w, r.start, r.end, c.0, ldc, init),
                    _ => few_widened(a, w, r.start, r.end, c.0, ldc, init),
                }
                finish(0, m, from, to - from, c.0, ldc, epilogue);
            }
        };
        let panels = w.d_out.div_ceil(w.width);
        if panels * panel < 64 << 10 {
            share(0..panels);
        } else {
            pool::run_shares(panels, PIECE.div_ceil(panel.max(1)), share);
        }
    });
}

/// Packs rows of A into [`Groups`].
#[inline(always)]
unsafe fn pack_groups<S: Simd, T: Step<S>>(
    kind: T,
    m: usize,
    rows: usize,
    k: usize,
    a: *const f32,
    lda: usize,
    to: &mut [f32],
) {
    let (l, steps) = (S::LANES, k.div_ceil(T::DEPTH));
    for i in 0..m {
        // SAFETY: the caller's promise: m rows of k elements, and room for all groups and a vector more.
        unsafe {
            let from = a.add(i * lda);
            let to = to.as_mut_ptr().add(i / rows * rows * steps + i % rows);
            for s in (0..steps).step_by(l) {
                let p = s * T::DEPTH;
                let left = k - p;
                let first = S::load_n(from.add(p), left.min(l));
                let second = match T::DEPTH {
                    2 if left > l => S::load_n(from.add(p + l), (left - l).min(l)),
                    _ => S::splat(0.0),
                };
                let words = kind.along(first, second);
                if rows == 1 {
                    // What is too much lies in the room at the end.
                    S::store(to.add(s), words);
                    continue;
                }
                let mut lanes = [0f32; 16];
                S::store(lanes.as_mut_ptr(), words);
                for (i, x) in lanes[..l.min(steps - s)].iter().enumerate() {
                    *to.add((s + i) * rows) = *x;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn pack_whole<S: Simd>(
    m: usize,
    rows: usize,
    k: usize,
    a: *const f32,
    lda: usize,
    rounded: bool,
    to: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe { pack_groups::<S, Whole>(Whole { rounded }, m, rows, k, a, lda, to) }
}
kernel!(unsafe fn whole_groups(m: usize, rows: usize, k: usize, a: *const f32, lda: usize, rounded: bool,
    to: &mut [f32]) = pack_whole);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn native_groups(m: usize, rows: usize, k: usize, a: *const f32, lda: usize, to: &mut [f32]) {
    // SAFETY: AVX-512 with BF16 is enabled here; the rest is the caller's promise.
    unsafe { pack_groups::<Avx512, NativePairs>(NativePairs, m, rows, k, a, lda, to) }
}

/// All rows times the panels `from..to`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn few_panels<S: Simd, T: Step<S>, const WIDENED: bool>(
    a: Groups,
    w: &Prepared,
    from: usize,
    to: usize,
    c: *mut f32,
    ldc: usize,
    init: Init<'_>,
) {
    let (steps, n) = (w.steps(), w.d_out);
    // A panel made at a lower level may be narrower than two vectors here; one made at a higher level is taken in parts.
    let step = (2 * S::LANES).min(w.width);
    // SAFETY: the caller's promise; parts of panels stay inside the panels, and columns inside C.
    unsafe {
        for j in from..to {
            for part in (0..w.width).step_by(step) {
                let column = j * w.width + part;
                if column >= n {
                    break;
                }
                let b = w.data().as_ptr().add(j * steps * w.width + part);
                let nr = step.min(n - column);
                let mut first = 0;
                while first < a.m {
                    let rows = a.rows.min(a.m - first);
                    let ap = a.a.add(first * a.steps);
                    let cp = c.add(first * ldc + column);
                    let start = match init {
                        Init::Zero => Start::Zero,
                        Init::Accumulate => Start::Old,
                        Init::Bias(bias) => Start::Bias(bias.as_ptr().add(column)),
                    };
                    macro_rules! rows {
                        ($($r:literal)*) => {
                            match rows {
                                $($r if $r <= tile_rows(S::LANES) => {
                                    stream::<S, T, WIDENED, $r>(
                                        nr, step, a.steps, ap, a.rows, b, w.width, cp, ldc, start)
                                })*
                                _ => {}
                            }
                        };
                    }
                    rows!(1 2 3 4 5 6 7 8 9 10 11 12);
                    first += rows;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn whole<S: Simd>(a: Groups, w: &Prepared, from: usize, to: usize, c: *mut f32, ldc: usize, init: Init<'_>) {
    // SAFETY: the caller's promise.
    unsafe { few_panels::<S, Whole, false>(a, w, from, to, c, ldc, init) }
}
kernel!(unsafe fn few_whole(a: Groups, w: &Prepared, from: usize, to: usize, c: *mut f32, ldc: usize,
    init: Init<'_>) = whole);

#[inline(always)]
unsafe fn widened<S: Simd>(a: Groups, w: &Prepared, from: usize, to: usize, c: *mut f32, ldc: usize, init: Init<'_>) {
    // SAFETY: the caller's promise.
    unsafe { few_panels::<S, Whole, true>(a, w, from, to, c, ldc, init) }
}
kernel!(unsafe fn few_widened(a: Groups, w: &Prepared, from: usize, to: usize, c: *mut f32, ldc: usize,
    init: Init<'_>) = widened);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn few_native(a: Groups, w: &Prepared, from: usize, to: usize, c: *mut f32, ldc: usize, init: Init<'_>) {
    // SAFETY: AVX-512 with BF16 is enabled here; the rest is the caller's promise.
    unsafe { few_panels::<Avx512, NativePairs, false>(a, w, from, to, c, ldc, init) }
}

/// `R` rows times (a part of) a panel over `steps` steps of A: step `s` of A at `a + s * next`, of B at `b + s * ldb` (half as many
/// where B's are pairs and A's are not), of which `readable` floats may be read; `nr` columns of C are written.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn stream<S: Simd, T: Step<S>, const WIDENED: bool, const R: usize>(
    nr: usize,
    readable: usize,
    steps: usize,
    a: *const f32,
    next: usize,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    start: Start,
) {
    let l = S::LANES;
    let (n0, n1) = (nr.min(l), nr.saturating_sub(l));
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::splat(0.0); 2]; R];
        match start {
            Start::Zero => {}
            Start::Old => {
                for (i, row) in acc.iter_mut().enumerate() {
                    let p = c.add(i * ldc);
                    *row = [S::load_n(p, n0), S::load_n(p.wrapping_add(l), n1)];
                }
            }
            Start::Bias(bias) => acc = [[S::load_n(bias, n0), S::load_n(bias.wrapping_add(l), n1)]; R],
        }
        let (mut ap, mut bp) = (a, b);
        // Pairs of the depth and what is left, or steps.
        let (whole, rest) = if WIDENED { (steps / 2, steps % 2) } else { (steps, 0) };
        macro_rules! run {
            ($load:expr) => {
                for _ in 0..whole {
                    let w: [S::V; 2] = $load;
                    if WIDENED {
                        let low = [S::low_bf16(w[0]), S::low_bf16(w[1])];
                        let high = [S::high_bf16(w[0]), S::high_bf16(w[1])];
                        for (i, row) in acc.iter_mut().enumerate() {
                            let (x, y) = (S::splat(*ap.add(i)), S::splat(*ap.add(next + i)));
                            row[0] = S::fma(y, high[0], S::fma(x, low[0], row[0]));
                            row[1] = S::fma(y, high[1], S::fma(x, low[1], row[1]));
                        }
                        ap = ap.add(2 * next);
                    } else {
                        for (i, row) in acc.iter_mut().enumerate() {
                            let x = S::splat(*ap.add(i));
                            row[0] = T::dot(x, w[0], row[0]);
                            row[1] = T::dot(x, w[1], row[1]);
                        }
                        ap = ap.add(next);
                    }
                    bp = bp.add(ldb);
                }
                if rest == 1 {
                    let w: [S::V; 2] = $load;
                    let low = [S::low_bf16(w[0]), S::low_bf16(w[1])];
                    for (i, row) in acc.iter_mut().enumerate() {
                        let x = S::splat(*ap.add(i));
                        row[0] = S::fma(x, low[0], row[0]);
                        row[1] = S::fma(x, low[1], row[1]);
                    }
                }
            };
        }
        if readable == 2 * l {
            run!({
                for line in (0..2 * l).step_by(16) {
                    S::prefetch_l2(bp.wrapping_add(AHEAD / size_of::<f32>() + line));
                }
                [S::load(bp), S::load(bp.add(l))]
            });
        } else {
            let readable = [readable.min(l), readable.saturating_sub(l)];
            run!([S::load_n(bp, readable[0]), S::load_n(bp.wrapping_add(l), readable[1])]);
        }
        for (i, row) in acc.iter().enumerate() {
            let p = c.add(i * ldc);
            if nr == 2 * l {
                S::store(p, row[0]);
                S::store(p.add(l), row[1]);
            } else {
                S::store_n(p, row[0], n0);
                S::store_n(p.wrapping_add(l), row[1], n1);
            }
        }
    }
}
