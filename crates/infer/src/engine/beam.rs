//! Beam search.

use super::{Engine, Request};
use crate::{Error, Result};
use genus_models::SequenceCache;

/// How beams are searched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeamOptions {
    /// Number of beams.
    pub beams: usize,
    /// A finished beam's score is its log-probability divided by its length to this power (`transformers`' `length_penalty`):
    /// above 0 favours longer ones.
    pub length_penalty: f64,
}

/// The best continuation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Beam {
    /// The generated tokens, an end token included.
    pub ids: Vec<u32>,
    /// Log-probability over length to the penalty's power.
    pub score: f64,
    /// Whether it ended with an end token.
    pub ended: bool,
}

#[derive(Debug)]
struct Running {
    tokens: Vec<u32>,
    sum: f64,
    cache: SequenceCache,
}

impl Engine<'_> {
    /// The best continuations of a prompt by beam search, best first: `beams` of them at most. Sampling options are not used;
    /// the search ends when no running beam can beat the finished ones any more (`transformers`' `early_stopping=False`
    /// compares with the running beam's present length, and so does this).
    ///
    /// # Errors
    /// As [`Engine::generate`], and when the options cannot be.
    pub fn beam_search(&self, request: &Request, options: BeamOptions) -> Result<Vec<Beam>> {
        let BeamOptions { beams, length_penalty } = options;
        if beams == 0 {
            return Err(Error::option("beams", beams, "at least 1"));
        }
        if !length_penalty.is_finite() {
            return Err(Error::option("length_penalty", length_penalty, "a finite number"));
        }
        request.options.check()?;
        let o = &request.options;
        let prompt = self.prompt(0, &request.prompt)?;
        let score = |sum: f64, n: usize| sum / (n.max(1) as f64).powf(length_penalty);
        let room = o.max_new_tokens.min(self.model.spec().n_ctx + 1 - prompt.len());
        let mut running = vec![Running { tokens: Vec::new(), sum: 0.0, cache: SequenceCache::new() }];
        let mut finished: Vec<Beam> = Vec::new();
        for step in 0..room {
            if self.cancelled() {
                return Err(Error::Interrupted);
            }
            let rows = self.extend(&prompt, &mut running)?;
            // (log-probability, beam, token), best first; equal ones in the order of beams and ids.
            let mut next: Vec<(f64, usize, u32)> = Vec::new();
            for (b, row) in rows.iter().enumerate() {
                if let Some(id) = row.iter().position(|x| !x.is_finite()) {
                    return Err(Error::Logits { request: 0, step, id, found: row[id] });
                }
                let norm = log_sum_exp(row);
                let few = o.min_new_tokens > step;
                let all = row.iter().enumerate().filter(|(i, _)| !(few && o.eos.contains(&(*i as u32))));
                next.extend(all.map(|(i, x)| (running[b].sum + f64::from(*x) - norm, b, i as u32)));
                next.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
                next.truncate(beams * (1 + o.eos.len().max(1)));
            }
            let mut kept = Vec::new();
            for (rank, &(sum, b, id)) in next.iter().enumerate() {
                if kept.len() == beams {
                    break;
                }
                let mut tokens = running[b].tokens.clone();
                tokens.push(id);
                if !o.ignore_eos && o.eos.contains(&id) {
                    // An end that is not among the best is no result.
                    if rank < beams {
                        finished.push(Beam { score: score(sum, tokens.len()), ids: tokens, ended: true });
                    }
                } else {
                    kept.push((tokens, sum, b));
                }
            }
            finished.sort_by(|a, b| b.score.total_cmp(&a.score));
            finished.truncate(beams);
            let best = kept.first().map(|k| score(k.1, step + 1));
            let last = step + 1 == room;
            if last || kept.is_empty() {
                finished.extend(kept.into_iter().map(|(ids, sum, _)| Beam {
                    score: score(sum, ids.len()),
                    ids,
                    ended: false,
                }));
                break;
            }
            if finished.len() == beams && best.is_some_and(|b| b <= finished[beams - 1].score) {
                break;
            }
            running = fork(running, kept)?;
        }
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(beams);
        Ok(finished)
    }

    /// Reads each beam's last token (the whole prompt at first).
    fn extend(&self, prompt: &[u32], running: &mut [Running]) -> Result<Vec<Vec<f32>>> {
        let mut caches: Vec<SequenceCache> = running.iter_mut().map(|r| std::mem::take(&mut r.cache)).collect();
        let pieces: Vec<&[u32]> = running
            .iter()
            .map(|r| match r.tokens.len() {
                0 => prompt,
                n => &r.tokens[n - 1..],
            })
            .collect();
        let wanted = vec![true; pieces.len()];
        let rows = self.forward(&pieces, &mut caches, &wanted)?.read(|rows| rows.map(<[f32]>::to_vec).collect())?;
        for (r, cache) in running.iter_mut().zip(caches) {
            r.cache = cache;
        }
        Ok(rows)
    }
}

/// The beams that go on, each with the cache of the one that it continues: moved for the last user, copied for the others.
fn fork(running: Vec<Running>, kept: Vec<(Vec<u32>, f64, usize)>) -> Result<Vec<Running>> {
    let mut uses = vec![0usize; running.len()];
    kept.iter().for_each(|k| uses[k.2] += 1);
    let mut caches: Vec<SequenceCache> = running.into_iter().map(|r| r.cache).collect();
    kept.into_iter()
        .map(|(tokens, sum, b)| {
            uses[b] -= 1;
            let cache = if uses[b] == 0 { std::mem::take(&mut caches[b]) } else { caches[b].fork()? };
            Ok(Running { tokens, sum, cache })
        })
        .collect()
}

/// `ln(sum(exp(x)))`.
pub(crate) fn log_sum_exp(x: &[f32]) -> f64 {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(top) + x.iter().map(|&v| f64::from(v - top).exp()).sum::<f64>().ln()
}
