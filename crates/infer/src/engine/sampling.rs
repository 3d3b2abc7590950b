//! The choice of the next token from one row of logits.

use super::options::{GenerateOptions, Sampling};
use genus_ops::rng::Key;
use std::borrow::Cow;

/// What was wrong with a row of logits: where, and the value.
pub(crate) type Unusable = (usize, f32);

/// The state of one sequence's choices: which tokens it has seen.
#[derive(Debug)]
pub(crate) struct Sampler {
    key: Key,
    seen: Vec<u32>,
}

/// Separates the draws of sampling from other uses of a seed.
const DOMAIN: u64 = 0x67_656e_7573;

impl Sampler {
    /// For a sequence that begins with `prompt`.
    pub fn new(options: &GenerateOptions, prompt: &[u32]) -> Self {
        let mut s = Sampler { key: Key::new(options.seed, DOMAIN), seen: Vec::new() };
        if options.repetition_penalty != 1.0 {
            s.seen = prompt.to_vec();
            s.seen.sort_unstable();
            s.seen.dedup();
        }
        s
    }

    /// Chooses token number `step` (from 0).
    pub fn next(&mut self, o: &GenerateOptions, step: usize, logits: &[f32]) -> Result<u32, Unusable> {
        if !all_finite(logits)
            && let Some(i) = logits.iter().position(|x| !x.is_finite())
        {
            return Err((i, logits[i]));
        }
        let mut logits = Cow::Borrowed(logits);
        let penalty = o.repetition_penalty as f32;
        if penalty != 1.0 {
            for &id in &self.seen {
                if let Some(x) = logits.to_mut().get_mut(id as usize) {
                    *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
                }
            }
        }
        if step < o.min_new_tokens && o.eos.iter().filter(|&&id| (id as usize) < logits.len()).count() < logits.len() {
            for &id in &o.eos {
                if let Some(x) = logits.to_mut().get_mut(id as usize) {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
        // Where nothing else is left, bans have no effect.
        if o.banned.iter().filter(|&&id| (id as usize) < logits.len()).count() < logits.len() {
            for &id in &o.banned {
                if let Some(x) = logits.to_mut().get_mut(id as usize) {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
        let logits = logits.as_ref();
        let id = match o.sampling {
            Sampling::Greedy => argmax(logits),
            Sampling::Random { temperature, top_k, top_p, min_p } => {
                // 53 bits, as many as a double holds below one.
                let u = (self.key.child(step as u64).bits() >> 11) as f64 / (1u64 << 53) as f64;
                draw(&candidates(logits, temperature, top_k, top_p, min_p), u)
            }
        };
        if penalty != 1.0
            && let Err(at) = self.seen.binary_search(&id)
        {
            self.seen.insert(at, id);
        }
        Ok(id)
    }
}

/// Whether all values are finite; in lanes, as a vocabulary's row is long.
pub(crate) fn all_finite(x: &[f32]) -> bool {
    let (chunks, rest) = x.as_chunks::<16>();
    // Times 0, anything that is not finite is NaN.
    let mut sums = [0f32; 16];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(s, v)| *s += v * 0.0);
    }
    sums.iter().chain(rest).all(|v| (v * 0.0) == 0.0)
}

/// The index of the largest value, the lowest among equals; 0 if there is none.
pub(crate) fn argmax(x: &[f32]) -> u32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let larger = |m: f32, v: f32| if v > m { v } else { m };
    let mut most = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        most.iter_mut().zip(chunk).for_each(|(m, v)| *m = larger(*m, *v));
    }
    let most = most.iter().chain(rest).fold(f32::NEG_INFINITY, |m, v| larger(m, *v));
    x.iter().position(|v| *v == most).unwrap_or(0) as u32
}

/// The tokens that stay and their weights, likeliest first (lowest id first among equals), in `transformers`' order of steps.
fn candidates(logits: &[f32], temperature: f64, top_k: usize, top_p: f64, min_p: f64) -> Vec<(u32, f64)> {
    let mut kept: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, &x)| (i as u32, x)).collect();
    let likelier = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if top_k > 0 && top_k < kept.len() {
        let (_, &mut (_, least), _) = kept.select_nth_unstable_by(top_k - 1, likelier);
        kept.retain(|c| c.1 >= least);
    }
    kept.sort_unstable_by(likelier);
    let top = f64::from(kept.first().map_or(0.0, |c| c.1));
    let mut kept: Vec<(u32, f64)> =
        kept.into_iter().map(|(i, x)| (i, ((f64::from(x) - top) / temperature).exp())).collect();
    if top_p < 1.0 {
        let total: f64 = kept.iter().map(|c| c.1).sum();
        let mut above = 0.0;
        // A token stays if those before it do not reach the share yet, so one always stays.
        let n = kept.iter().position(|c| {
            let enough = above >= top_p * total;
            above += c.1;
            enough
        });
        kept.truncate(n.unwrap_or(kept.len()).max(1));
    }
    if min_p > 0.0 {
        // The likeliest has weight 1.
        kept.retain(|c| c.1 >= min_p);
    }
    kept
}

/// The candidate at the share `u` (from 0 to below 1) of all weights.
fn draw(candidates: &[(u32, f64)], u: f64) -> u32 {
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    let mut rest = u * total;
    for &(id, weight) in candidates {
        if rest < weight {
            return id;
        }
        rest -= weight;
    }
    // Rounding may leave a trace beyond the last.
    candidates.iter().rev().find(|c| c.1 > 0.0).map_or(0, |c| c.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, 3.0, -1.0, 0.5];

    fn ids(top_k: usize, top_p: f64, min_p: f64, t: f64) -> Vec<u32> {
        candidates(&LOGITS, t, top_k, top_p, min_p).iter().map(|c| c.0).collect()
    }

    #[test]
    fn steps_keep_the_right_tokens() {
        assert_eq!(ids(0, 1.0, 0.0, 1.0), [1, 3, 2, 0, 5, 4]);
        assert_eq!(ids(3, 1.0, 0.0, 1.0), [1, 3, 2]);
        // Equals of the last one stay, as in `transformers`.
        assert_eq!(ids(1, 1.0, 0.0, 1.0), [1, 3]);
        assert_eq!(ids(99, 1.0, 0.0, 1.0).len(), 6);
        // Probabilities: 0.385, 0.385, 0.142, 0.052, 0.032, 0.007 (softmax by hand).
        assert_eq!(ids(0, 0.2, 0.0, 1.0), [1]);
        assert_eq!(ids(0, 0.75, 0.0, 1.0), [1, 3]);
        assert_eq!(ids(0, 0.8, 0.0, 1.0), [1, 3, 2]);
        // Relative to the likeliest: 1, 1, 0.368, 0.135, 0.082, 0.018.
        assert_eq!(ids(0, 1.0, 0.1, 1.0), [1, 3, 2, 0]);
        assert_eq!(ids(0, 1.0, 0.1, 10.0).len(), 6);
        assert_eq!(argmax(&LOGITS), 1);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let o = GenerateOptions {
            sampling: Sampling::Random { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 },
            seed: 4,
            ..Default::default()
        };
        let n = 20_000;
        let mut counts = [0usize; 6];
        let mut s = Sampler::new(&o, &[]);
        for step in 0..n {
            counts[s.next(&o, step, &LOGITS).unwrap() as usize] += 1;
        }
        let total: f64 = LOGITS.iter().map(|x| f64::from(*x).exp()).sum();
        for (i, &c) in counts.iter().enumerate() {
            let p = f64::from(LOGITS[i]).exp() / total;
            let sigma = (p * (1.0 - p) / n as f64).sqrt();
            assert!((c as f64 / n as f64 - p).abs() < 4.5 * sigma, "{i}: {c}");
        }
    }

    #[test]
    fn a_draw_at_the_very_end_is_in_range() {
        assert_eq!(draw(&[(7, 1.0), (8, 1e-300), (9, 0.0)], 1.0 - f64::EPSILON / 2.0), 7);
        assert_eq!(draw(&[(7, 0.1), (8, 0.2)], 1.0), 8);
    }

    #[test]
    fn penalty_and_minimum_length() {
        let mut o = GenerateOptions { repetition_penalty: 2.0, ..Default::default() };
        let mut s = Sampler::new(&o, &[1, 3, 4]);
        // The row becomes [1.0, 1.5, 2.0, 1.5, -2.0, 0.5].
        assert_eq!(s.next(&o, 0, &LOGITS), Ok(2));
        // Now 2 was seen as well: 1 and 3 lead, and the lower id wins.
        assert_eq!(s.next(&o, 1, &LOGITS), Ok(1));
        o = GenerateOptions { eos: vec![1, 3, 77], min_new_tokens: 2, ..Default::default() };
        let mut s = Sampler::new(&o, &[]);
        assert_eq!(s.next(&o, 1, &LOGITS), Ok(2));
        assert_eq!(s.next(&o, 2, &LOGITS), Ok(1));
    }

    #[test]
    fn the_largest_of_long_rows() {
        for n in [1, 15, 16, 17, 40, 101] {
            for at in 0..n {
                let mut row = vec![-3.0f32; n];
                (row[at], row[n - 1]) = (-1.0, -1.0);
                assert_eq!(argmax(&row), at as u32);
                assert!(all_finite(&row));
                row[at] = f32::INFINITY;
                assert!(!all_finite(&row) && argmax(&row) == at as u32);
            }
        }
        assert_eq!(argmax(&[]), 0);
    }

    #[test]
    fn what_is_no_number_is_found() {
        let o = GenerateOptions::default();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = LOGITS;
            row[4] = bad;
            assert_eq!(Sampler::new(&o, &[]).next(&o, 0, &row).unwrap_err().0, 4);
        }
    }
}
