//! Attention's kernels against f64, finite differences, and their own bits in other company.

use super::cpu::{Backward, RowsMut, Sequence, backward, forward};
use super::{AttentionSpec, Mask};
use crate::array::{Rows, SendPtr};
use crate::rng::{Key, drop_row};
use crate::testing::{close, data, every_level, thread_invariant};
use proptest::prelude::*;

/// A batch: query, key and value rows, and the lengths of the sequences.
struct Batch {
    spec: AttentionSpec,
    lengths: Vec<(usize, usize)>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dropout: Option<(Key, f32)>,
}

impl Batch {
    fn new(spec: AttentionSpec, lengths: &[(usize, usize)], seed: u64) -> Self {
        let (nq, nk): (usize, usize) = lengths.iter().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let (wq, wk) = (spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
        Batch {
            spec,
            lengths: lengths.to_vec(),
            q: data(nq * wq, seed),
            k: data(nk * wk, seed + 1),
            v: data(nk * wk, seed + 2),
            dropout: None,
        }
    }

    fn sequences(&self) -> (Vec<Sequence>, Vec<usize>) {
        let w = self.spec.n_kv_heads * self.spec.d_head;
        let (mut q0, mut k0, mut starts) = (0, 0, Vec::new());
        let seqs = self
            .lengths
            .iter()
            .map(|&(nq, nk)| {
                let at = |x: &[f32]| Rows { ptr: x[k0 * w..].as_ptr(), stride: w };
                let s = Sequence { q0, nq, nk, k: at(&self.k), v: at(&self.v) };
                starts.push(k0);
                q0 += nq;
                k0 += nk;
                s
            })
            .collect();
        (seqs, starts)
    }

    fn run(&self) -> (Vec<f32>, Vec<f32>) {
        let w = self.spec.n_heads * self.spec.d_head;
        let n = self.q.len() / w;
        let (mut out, mut lse) = (vec![7.0; n * w], vec![7.0; n * self.spec.n_heads]);
        let q = Rows { ptr: self.q.as_ptr(), stride: w };
        // SAFETY: the views have the rows that `sequences` says.
        #[allow(unsafe_code)]
        unsafe {
            forward(&self.spec, &self.sequences().0, q, None, self.dropout, &mut out, Some(&mut lse))
        };
        (out, lse)
    }

    fn gradients(&self, dout: &[f32]) -> [Vec<f32>; 3] {
        let (out, lse) = self.run();
        let (wq, wk) = (self.spec.n_heads * self.spec.d_head, self.spec.n_kv_heads * self.spec.d_head);
        let mut grads = [vec![7.0; self.q.len()], vec![7.0; self.k.len()], vec![7.0; self.v.len()]];
        let [dq, dk, dv] = &mut grads;
        let (seqs, starts) = self.sequences();
        let to = |x: &mut Vec<f32>, stride| RowsMut { ptr: SendPtr(x.as_mut_ptr()), stride };
        let b = Backward {
            q: Rows { ptr: self.q.as_ptr(), stride: wq },
            out: &out,
            dout,
            lse: &lse,
            dq: to(dq, wq),
            dk: to(dk, wk),
            dv: to(dv, wk),
            relative: None,
        };
        // SAFETY: as in `run`, and the gradients have the shapes of the inputs.
        #[allow(unsafe_code)]
        unsafe {
            backward(&self.spec, &seqs, &starts, self.dropout, &b)
        };
        grads
    }

    /// The output in f64, from f64 inputs.
    fn exact(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let AttentionSpec { n_heads, n_kv_heads, d_head: d, mask, scale, .. } = self.spec;
        let (wq, wk) = (n_heads * d, n_kv_heads * d);
        let mut out = vec![0.0; q.len()];
        let (mut q0, mut k0) = (0, 0);
        for &(nq, nk) in &self.lengths {
            for (i, h) in (0..nq).flat_map(|i| (0..n_heads).map(move |h| (i, h))) {
                let g = h / (n_heads / n_kv_heads) * d;
                let last = nk as isize - nq as isize + i as isize;
                let seen: Vec<usize> = (0..nk)
                    .filter(|&j| match mask {
                        Mask::Full => true,
                        Mask::Causal => j as isize <= last,
                        Mask::Band { window } => j as isize <= last && j as isize > last - window as isize,
                    })
                    .collect();
                let mut factors = vec![1f32; nk];
                if let Some((key, p)) = self.dropout {
                    drop_row(key, ((q0 + i) * n_heads + h) as u64, 0, p, &mut factors);
                }
                let score = |j: usize| {
                    let dot: f64 = (0..d).map(|p| q[(q0 + i) * wq + h * d + p] * k[(k0 + j) * wk + g + p]).sum();
                    (dot * scale as f64).exp()
                };
                let sum: f64 = seen.iter().map(|&j| score(j)).sum();
                for &j in &seen {
                    let p = score(j) / sum * factors[j] as f64;
                    for c in 0..d {
                        out[(q0 + i) * wq + h * d + c] += p * v[(k0 + j) * wk + g + c];
                    }
                }
            }
            q0 += nq;
            k0 += nk;
        }
        out
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

fn spec(n_heads: usize, n_kv_heads: usize, d_head: usize, mask: Mask) -> AttentionSpec {
    AttentionSpec { n_heads, n_kv_heads, d_head, mask, scale: 1.0 / (d_head as f32).sqrt(), dropout: 0.0 }
}

const SHAPES: &[&[(usize, usize)]] =
    &[&[(5, 5), (0, 0), (70, 70), (1, 1)], &[(3, 130), (7, 2), (2, 0)], &[(130, 200)], &[(200, 200)]];

#[test]
fn forward_and_backward_against_f64() {
    for lengths in SHAPES {
        for (heads, kv, d) in [(2, 2, 12), (4, 2, 8), (1, 1, 64), (2, 1, 33), (1, 1, 130)] {
            for mask in [Mask::Full, Mask::Causal, Mask::Band { window: 5 }] {
                for dropout in [None, Some((Key::new(1, 2), 0.25))] {
                    let mut b = Batch::new(spec(heads, kv, d, mask), lengths, 9);
                    b.dropout = dropout;
                    let dout = data(b.q.len(), 77);
                    let (mut q, mut k, mut v) = (wide(&b.q), wide(&b.k), wide(&b.v));
                    let expected = b.exact(&q, &k, &v);
                    let picks = |n: usize| [0, n / 3, n - 1].map(|i| i.min(n - 1));
                    let loss = |o: Vec<f64>| o.iter().zip(&dout).map(|(o, g)| o * *g as f64).sum::<f64>();
                    let slopes: Vec<(usize, usize, f64)> = (0..3)
                        .flat_map(|which| picks([b.q.len(), b.k.len(), b.v.len()][which]).map(|e| (which, e)))
                        .map(|(which, e)| {
                            let mut side = |h: f64| {
                                [&mut q, &mut k, &mut v][which][e] += h;
                                let l = loss(b.exact(&q, &k, &v));
                                [&mut q, &mut k, &mut v][which][e] -= h;
                                l
                            };
                            (which, e, (side(1e-4) - side(-1e-4)) / 2e-4)
                        })
                        .collect();
                    every_level(|| {
                        let [out, dq, dk, dv] = thread_invariant(|| {
                            let [dq, dk, dv] = b.gradients(&dout);
                            [b.run().0, dq, dk, dv]
                        });
                        out.iter().zip(&expected).for_each(|(o, e)| close(*o, *e, 2e-6));
                        slopes.iter().for_each(|&(which, e, s)| close([&dq, &dk, &dv][which][e], s, 5e-6));
                    });
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The last queries of a sequence alone against all its keys, and each sequence alone, have the bits of the whole batch.
    #[test]
    fn a_query_has_the_same_bits_in_any_company(
        lengths in prop::collection::vec(0usize..230, 1..4), d in 1usize..40, heads in 1usize..3,
        band in prop::option::of(1usize..100), seed in 0u64..1000,
    ) {
        let mask = band.map_or(Mask::Causal, |window| Mask::Band { window });
        let spec = spec(heads * 2, heads, d, mask);
        let pairs: Vec<_> = lengths.iter().map(|&n| (n, n)).collect();
        let (w, wk) = (heads * 2 * d, heads * d);
        every_level(|| {
            let all = Batch::new(spec, &pairs, seed);
            let (out, _) = all.run();
            let mut start = 0;
            for &n in &lengths {
                for last in [1, 2, 13, n] {
                    if last > n {
                        continue;
                    }
                    let part = |x: &[f32], w: usize, from: usize| x[from * w..(start + n) * w].to_vec();
                    let alone = Batch {
                        spec,
                        lengths: vec![(last, n)],
                        q: part(&all.q, w, start + n - last),
                        k: part(&all.k, wk, start),
                        v: part(&all.v, wk, start),
                        dropout: None,
                    };
                    assert_eq!(alone.run().0, part(&out, w, start + n - last), "{last} of {n}");
                }
                start += n;
            }
        });
    }
}

/// Keys that no query may see do not matter, whatever they hold.
#[test]
fn later_tokens_change_no_bit() {
    let n = 150;
    let mut b = Batch::new(spec(2, 2, 16, Mask::Causal), &[(n, n)], 4);
    let before = b.run().0;
    for x in [&mut b.k, &mut b.v] {
        x[100 * 32..].iter_mut().for_each(|x| *x = 1e6 - *x);
    }
    let after = b.run().0;
    assert_eq!(before[..100 * 32], after[..100 * 32]);
    assert_ne!(before[100 * 32..], after[100 * 32..]);
}
