//! Beam search.

use super::{Engine, GenerateOptions, Request, all_finite};
use crate::{Error, Result};
use genus_models::SequenceCache;
use genus_ops::log_sum_exp;
use std::collections::VecDeque;
use std::sync::OnceLock;

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

/// How much a search had to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Tokens that the decoder read, over all beams and steps.
    pub rows: usize,
    /// Tokens that those saw before themselves, together.
    pub seen: usize,
}

#[derive(Debug, Default)]
struct Running {
    tokens: Vec<u32>,
    sum: f64,
    cache: SequenceCache,
}

/// Logits that are passed over together where none is large enough.
const LOOKED_AT: usize = 64;

/// Requests that are searched at a time.
pub(super) const TOGETHER: usize = 64;

/// The search for one request.
#[derive(Debug)]
struct Search<'r> {
    request: usize,
    options: &'r GenerateOptions,
    beam: BeamOptions,
    /// What an encoder is to read before the first step.
    source: Option<Vec<u32>>,
    prompt: Vec<u32>,
    running: Vec<Running>,
    finished: Vec<Beam>,
    step: usize,
    /// Tokens that there is room for.
    room: usize,
    work: Work,
}

impl Engine<'_> {
    /// The best continuations of a prompt by beam search, best first: `beams` of them at most. Sampling options are not used;
    /// the search ends when no running beam can beat the finished ones any more (`transformers`' `early_stopping=False`
    /// compares with the running beam's present length, and so does this).
    ///
    /// # Errors
    /// As [`Engine::generate`], and when the options cannot be.
    pub fn beam_search(&self, request: &Request, options: BeamOptions) -> Result<Vec<Beam>> {
        Ok(self.beam_searches(std::slice::from_ref(request), options, |_, _| {})?.pop().unwrap_or_default())
    }

    /// As [`Engine::beam_search`], for many requests: they are searched together, and none depends on the others. `on_done` sees the
    /// number of each finished request and its beams.
    ///
    /// # Errors
    /// As [`Engine::beam_search`], before anything is run where a request cannot be.
    pub fn beam_searches(
        &self,
        requests: &[Request],
        options: BeamOptions,
        on_done: impl FnMut(usize, &[Beam]),
    ) -> Result<Vec<Vec<Beam>>> {
        Ok(self.counted_searches(requests, options, on_done)?.into_iter().map(|d| d.0).collect())
    }

    /// As [`Engine::beam_searches`], with the work of each search.
    pub(crate) fn counted_searches(
        &self,
        requests: &[Request],
        options: BeamOptions,
        mut on_done: impl FnMut(usize, &[Beam]),
    ) -> Result<Vec<(Vec<Beam>, Work)>> {
        let searches = requests.iter().enumerate().map(|(i, r)| Search::new(self, i, r, options));
        let mut waiting: VecDeque<Search<'_>> = searches.collect::<Result<_>>()?;
        let mut active: Vec<Search<'_>> = Vec::new();
        let mut done: Vec<(Vec<Beam>, Work)> = requests.iter().map(|_| Default::default()).collect();
        loop {
            self.start(&mut active, &mut waiting)?;
            if active.is_empty() {
                return Ok(done);
            }
            if self.cancelled() {
                return Err(Error::Interrupted);
            }
            let best = self.extend(&mut active)?;
            for (search, best) in active.iter_mut().zip(best) {
                search.advance(best)?;
            }
            active.retain_mut(|search| {
                let ended = search.ended();
                if ended {
                    let result = (search.result(), search.work);
                    on_done(search.request, &result.0);
                    done[search.request] = result;
                }
                !ended
            });
        }
    }

    /// Takes up waiting searches, as many as a pass may have; their sources are read.
    fn start<'r>(&self, active: &mut Vec<Search<'r>>, waiting: &mut VecDeque<Search<'r>>) -> Result<()> {
        let (first, mut tokens) = (active.len(), 0);
        while active.len() < self.together
            && let Some(next) = waiting.front()
        {
            tokens += next.prompt.len() + next.source.as_ref().map_or(0, Vec::len);
            if tokens > self.step_tokens && active.len() > first {
                break;
            }
            active.extend(waiting.pop_front());
        }
        let taken = active[first..].iter_mut();
        let (sources, mut caches): (Vec<_>, Vec<_>) =
            taken.filter_map(|s| Some((s.source.take()?, &mut s.running.first_mut()?.cache))).unzip();
        self.read_sources(&sources.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut caches)
    }

    /// Reads the last token of each beam (the whole prompt at first); of each search, what its beams may go on with.
    fn extend(&self, active: &mut [Search<'_>]) -> Result<Vec<Vec<Best>>> {
        let beams = active.iter_mut().flat_map(|s| s.running.iter_mut());
        let mut caches: Vec<SequenceCache> = beams.map(|r| std::mem::take(&mut r.cache)).collect();
        let piece = |s: &'_ Search<'_>, r: &Running| match r.tokens.last() {
            None => s.prompt.clone(),
            Some(&last) => vec![last],
        };
        let pieces: Vec<Vec<u32>> = active.iter().flat_map(|s| s.running.iter().map(move |r| piece(s, r))).collect();
        let wanted = vec![true; pieces.len()];
        let logits = self.forward(&pieces.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut caches, &wanted)?;
        let beams = active.iter_mut().flat_map(|s| s.running.iter_mut());
        beams.zip(caches).for_each(|(r, cache)| r.cache = cache);
        active.iter_mut().for_each(Search::count);
        let of_row: Vec<&Search<'_>> = active.iter().flat_map(|s| s.running.iter().map(move |_| s)).collect();
        let slots: Vec<OnceLock<Best>> = of_row.iter().map(|_| OnceLock::new()).collect();
        logits.read(|rows| {
            let rows: Vec<&[f32]> = rows.collect();
            genus_ops::pool::run_chunks(rows.len(), 1, |range| {
                for i in range {
                    let _ = slots[i].set(of_row[i].best(rows[i]));
                }
            });
        })?;
        let mut best = slots.into_iter().filter_map(OnceLock::into_inner);
        Ok(active.iter().map(|s| best.by_ref().take(s.running.len()).collect()).collect())
    }
}

/// What a beam may go on with.
#[derive(Debug)]
struct Best {
    /// The likeliest tokens with their logits, best first, equal ones in the order of ids.
    tokens: Vec<(f32, u32)>,
    /// What is subtracted from a logit for its log-probability.
    norm: f64,
    /// The first logit that is no number.
    bad: Option<(usize, f32)>,
}

impl<'r> Search<'r> {
    fn new(engine: &Engine<'_>, number: usize, request: &'r Request, beam: BeamOptions) -> Result<Self> {
        if beam.beams == 0 {
            return Err(Error::option("beams", beam.beams, "at least 1"));
        }
        if !beam.length_penalty.is_finite() {
            return Err(Error::option("length_penalty", beam.length_penalty, "a finite number"));
        }
        request.options.check()?;
        let (source, prompt) = engine.prompt(number, &request.prompt)?;
        let room = request.options.max_new_tokens.min(engine.model.spec().n_ctx + 1 - prompt.len());
        let running = if room == 0 { Vec::new() } else { vec![Running::default()] };
        let options = &request.options;
        Ok(Search {
            request: number,
            options,
            beam,
            source,
            prompt,
            running,
            finished: Vec::new(),
            step: 0,
            room,
            work: Work::default(),
        })
    }

    /// Counts the step that was computed.
    fn count(&mut self) {
        let (beams, prompt) = (self.running.len(), self.prompt.len());
        let (new, before) = if self.step == 0 { (prompt, 0) } else { (1, prompt + self.step - 1) };
        self.work.rows += beams * new;
        self.work.seen += beams * (0..new).map(|i| before + i).sum::<usize>();
    }

    /// Whether it is too early for an end.
    fn few(&self) -> bool {
        self.options.min_new_tokens > self.step
    }

    /// What a beam with these logits may go on with: as many as could be among the best of all.
    fn best(&self, row: &[f32]) -> Best {
        let most = self.beam.beams * (1 + self.options.eos.len().max(1));
        let mut tokens: Vec<(f32, u32)> = Vec::with_capacity(most + 1);
        if !all_finite(row)
            && let Some(bad) = row.iter().position(|x| !x.is_finite())
        {
            return Best { tokens, norm: 0.0, bad: Some((bad, row[bad])) };
        }
        let few = self.few();
        for (chunk, first) in row.chunks(LOOKED_AT).zip((0..).step_by(LOOKED_AT)) {
            // Most hold nothing that is large enough.
            let least = tokens.last().filter(|_| tokens.len() == most).map_or(f32::NEG_INFINITY, |l| l.0);
            if largest(chunk) <= least {
                continue;
            }
            for (&x, id) in chunk.iter().zip(first..) {
                if tokens.last().filter(|_| tokens.len() == most).is_some_and(|l| x <= l.0) {
                    continue;
                }
                if (few && self.options.eos.contains(&id)) || self.options.banned.contains(&id) {
                    continue;
                }
                let at = tokens.partition_point(|t| t.0 >= x);
                tokens.insert(at, (x, id));
                tokens.truncate(most);
            }
        }
        Best { tokens, norm: log_sum_exp(row), bad: None }
    }

    fn score(&self, sum: f64, n: usize) -> f64 {
        sum / (n.max(1) as f64).powf(self.beam.length_penalty)
    }

    /// Takes one step: of all that the beams may go on with, the best go on or end.
    fn advance(&mut self, best: Vec<Best>) -> Result<()> {
        let (beams, step, o) = (self.beam.beams, self.step, self.options);
        if let Some((id, found)) = best.iter().find_map(|b| b.bad) {
            return Err(Error::Logits { request: self.request, step, id, found });
        }
        // (log-probability, beam, token), best first; equal ones in the order of beams and ids.
        let mut next: Vec<(f64, usize, u32)> = Vec::new();
        for (b, (row, running)) in best.iter().zip(&self.running).enumerate() {
            next.extend(row.tokens.iter().map(|&(x, id)| (running.sum + f64::from(x) - row.norm, b, id)));
        }
        next.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let mut kept = Vec::new();
        for (rank, &(sum, b, id)) in next.iter().enumerate() {
            if kept.len() == beams {
                break;
            }
            let mut tokens = self.running[b].tokens.clone();
            tokens.push(id);
            if !o.ignore_eos && o.eos.contains(&id) {
                // An end that is not among the best is no result.
                if rank < beams {
                    let score = self.score(sum, tokens.len());
                    self.finished.push(Beam { score, ids: tokens, ended: true });
                }
            } else {
                kept.push((tokens, sum, b));
            }
        }
        self.keep_best();
        self.step += 1;
        if self.step == self.room || kept.is_empty() {
            for (ids, sum, _) in kept {
                self.finished.push(Beam { score: self.score(sum, ids.len()), ids, ended: false });
            }
            self.keep_best();
            self.running.clear();
            return Ok(());
        }
        // No running beam can beat the finished ones any more.
        if self.finished.len() == beams && self.score(kept[0].1, self.step) <= self.finished[beams - 1].score {
            self.running.clear();
            return Ok(());
        }
        self.running = fork(std::mem::take(&mut self.running), kept, self.prompt.len())?;
        Ok(())
    }

    fn keep_best(&mut self) {
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(self.beam.beams);
    }

    fn ended(&self) -> bool {
        self.running.is_empty()
    }

    fn result(&mut self) -> Vec<Beam> {
        std::mem::take(&mut self.finished)
    }
}

/// The largest of some numbers; in lanes, as a vocabulary's row is long.
fn largest(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let larger = |m: f32, v: f32| if v > m { v } else { m };
    let mut most = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        most.iter_mut().zip(chunk).for_each(|(m, v)| *m = larger(*m, *v));
    }
    most.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| larger(m, v))
}

/// The beams that go on, each with the cache of the one that it continues: moved for the last user, copied for the others, into the
/// cache of a beam that ends where there is one. What both have read alike is then there already.
fn fork(running: Vec<Running>, kept: Vec<(Vec<u32>, f64, usize)>, prompt: usize) -> Result<Vec<Running>> {
    let mut uses = vec![0usize; running.len()];
    kept.iter().for_each(|k| uses[k.2] += 1);
    let (read, mut caches): (Vec<Vec<u32>>, Vec<SequenceCache>) =
        running.into_iter().map(|r| (r.tokens, r.cache)).unzip();
    let mut unused: Vec<usize> = (0..read.len()).filter(|&b| uses[b] == 0).collect();
    kept.into_iter()
        .map(|(tokens, sum, b)| {
            uses[b] -= 1;
            if uses[b] == 0 {
                return Ok(Running { tokens, sum, cache: std::mem::take(&mut caches[b]) });
            }
            let alike = |&u: &usize| read[u].iter().zip(&read[b]).take_while(|(x, y)| x == y).count();
            let nearest = unused.iter().enumerate().max_by_key(|(_, u)| alike(u)).map(|(i, _)| i);
            let cache = match nearest {
                Some(i) => {
                    let u = unused.swap_remove(i);
                    let mut cache = std::mem::take(&mut caches[u]);
                    cache.copy_from(&caches[b], prompt + alike(&u))?;
                    cache
                }
                None => caches[b].fork()?,
            };
            Ok(Running { tokens, sum, cache })
        })
        .collect()
}
