//! Embeddings and layers, from token ids to hidden states.

use crate::attention::Around;
use crate::column::{Column, Pass, reversed, side_by_side};
use crate::layer::{Ends, check_cache};
use crate::memory::{Carried, StreamMemory};
use crate::relative::Relative;
use crate::{
    Builder, Directions, Embeddings, Encoded, Encoder, Error, Init, Input, Memory, OutputDropout, Positions, Readout,
    Result, SequenceCache, StackSpec,
};
use genus_ops::{Param, Precision, Tape, Value, dropout, gather_rows, scalar_mix};
use std::sync::Arc;

/// The hidden states of a batch.
pub struct Hidden {
    /// Of the last layer (after the final norm where there is one), `[n, d]`; of two directions `[n, 2 d]`, the first one's half
    /// first.
    pub last: Value,
    /// When asked for: the embeddings and the output of every layer, `n_layers + 1` matrices, the last of them `last`.
    pub all: Vec<Value>,
}

/// Embeddings, layers and perhaps a final norm.
#[derive(Debug)]
pub struct Stack {
    spec: StackSpec,
    embeddings: Embeddings,
    forward: Column,
    /// What reads from the other end.
    backward: Option<Column>,
    /// The layers' weights and their common factor, where the output is a mean of all.
    mix: Option<(Param, Param)>,
}

impl Stack {
    /// Builds the stack's parameters; with `tokens`, that is its token table.
    ///
    /// # Errors
    /// When the specification cannot be or a parameter cannot be had.
    pub fn build(b: &mut Builder<'_>, spec: &StackSpec, tokens: Option<&Param>) -> Result<Self> {
        spec.check()?;
        let embeddings = Embeddings::build(b, spec, tokens)?;
        let forward = Column::build(b, spec)?;
        let backward = match spec.directions {
            Directions::One => None,
            Directions::Both => Some(b.within("backward", |b| Column::build(b, spec))?),
        };
        let mix = match spec.readout {
            Readout::Last => None,
            Readout::Mixed => {
                let weights = b.param("mix.weights", &[spec.n_layers + 1], Init::Zeros)?;
                Some((weights, b.param("mix.gamma", &[1], Init::Ones)?))
            }
        };
        Ok(Stack { spec: spec.clone(), embeddings, forward, backward, mix })
    }

    /// The specification.
    pub fn spec(&self) -> &StackSpec {
        &self.spec
    }

    /// The embeddings.
    pub fn embeddings(&self) -> &Embeddings {
        &self.embeddings
    }

    /// Packs the layers' weights for inference (see [`genus_ops::Param::prepare`]).
    ///
    /// # Errors
    /// None for a stack that was built.
    pub fn prepare(&self, precision: Precision) -> Result<()> {
        self.embeddings.prepare(precision)?;
        self.forward.prepare(precision)?;
        self.backward.as_ref().map_or(Ok(()), |b| b.prepare(precision))
    }

    /// Keeps in `caches` (one a sequence, new) what the layers read of an encoded batch, so that it is computed once.
    ///
    /// # Errors
    /// When the stack attends to no encoder, or there are not as many sequences as caches.
    pub fn keep_encoded(&self, tape: &Tape, encoded: &Encoded, caches: &mut [SequenceCache]) -> Result<()> {
        self.check_encoded(Some(encoded), caches.len())?;
        self.forward.attention().iter().try_for_each(|l| l.keep_encoded(tape, encoded, caches))
    }

    fn check_encoded(&self, encoded: Option<&Encoded>, sequences: usize) -> Result<()> {
        match (self.spec.encoder, encoded) {
            (Encoder::None, Some(_)) => Err(Error::Encoded),
            (Encoder::Layers { .. }, None) => Err(Error::NotEncoded),
            (_, Some(e)) if e.spans.len() != sequences => {
                Err(Error::Length { what: "number of encoded sequences", found: e.spans.len(), expected: sequences })
            }
            _ => Ok(()),
        }
    }

    /// Runs the stack over a batch, appending to `caches` (one a sequence) if given. A stack that attends to an encoder reads
    /// `encoded` (one sequence for each of the batch's), or what [`Stack::keep_encoded`] left in the caches. On a tape that recomputes, each layer is run
    /// again in the backward pass, and between the two passes only what flows from layer to layer is held.
    ///
    /// # Errors
    /// When ids, positions or segments are out of range, or lists do not fit each other.
    pub fn forward(
        &self,
        tape: &Tape,
        input: &Input,
        encoded: Option<&Encoded>,
        caches: Option<&mut [SequenceCache]>,
        keep_all: bool,
    ) -> Result<Hidden> {
        self.run(tape, input, encoded, None, caches, keep_all, None)
    }

    /// As [`Stack::forward`], for the next segment of each of several texts: the layers attend to what `memories` (one a sequence)
    /// carry, which then carry this segment on.
    ///
    /// # Errors
    /// As [`Stack::forward`], and when the stack carries no memory.
    pub fn forward_carrying(
        &self,
        tape: &Tape,
        input: &Input,
        memories: &mut [StreamMemory],
        keep_all: bool,
    ) -> Result<Hidden> {
        if self.spec.memory == Memory::None {
            return Err(Error::NoMemory);
        }
        self.run(tape, input, None, Some(memories), None, keep_all, None)
    }

    /// The hidden states after the last token of those sequences that are `wanted` (one row each, in order), as
    /// [`Stack::forward`] gives them. The last layer appends to the caches for all tokens, but computes nothing else for the others.
    ///
    /// # Errors
    /// As [`Stack::forward`].
    pub fn forward_ends(
        &self,
        tape: &Tape,
        input: &Input,
        caches: &mut [SequenceCache],
        wanted: &[bool],
    ) -> Result<Value> {
        let ends = Ends::new(&input.spans, wanted);
        // In decoding every token is an end.
        if self.forward.is_empty() || input.spans.iter().zip(wanted).all(|(r, w)| r.len() == usize::from(*w)) {
            let all = self.run(tape, input, None, None, Some(caches), false, None)?.last;
            return if self.forward.is_empty() { ends.of(tape, &all) } else { Ok(all) };
        }
        Ok(self.run(tape, input, None, None, Some(caches), false, Some(&ends))?.last)
    }

    /// What layers read of distances and, where there are no caches, of memories; a text without one begins with one of zeros.
    fn carried(
        &self,
        tape: &Tape,
        x: &Value,
        input: &Input,
        memories: Option<&[StreamMemory]>,
        caches: Option<&[SequenceCache]>,
    ) -> Result<(Option<Arc<Carried>>, Option<Value>)> {
        let Positions::Relative { clamp, .. } = self.spec.positions else { return Ok((None, None)) };
        let length = self.spec.memory_length();
        let distances = |n: usize| Relative::distances(tape, &self.spec, clamp, n, x.tensor());
        if let Some(caches) = caches {
            let held = |c: &SequenceCache| if c.is_new(0) { length } else { c.held(0) };
            let needed = caches.iter().zip(input.spans.iter()).map(|(c, r)| held(c) + r.len()).max().unwrap_or(0);
            if caches.iter().any(|c| c.distances(0, needed).is_some()) {
                return Ok((None, None));
            }
            // Some more, so that the next tokens need none.
            return Ok((None, Some(distances(needed.next_multiple_of(64) + 64)?)));
        }
        let carried = match memories {
            Some(m) if m.len() != input.spans.len() => {
                return Err(Error::Length { what: "memories", found: m.len(), expected: input.spans.len() });
            }
            Some(m) => Carried::new(m, &input.spans, length)?,
            None => {
                let t = x.tensor();
                let new = StreamMemory::new(&self.spec, t.dtype(), t.device())?;
                Carried::new(&vec![new; input.spans.len()], &input.spans, length)?
            }
        };
        let longest = carried.spans.iter().map(|r| r.len()).max().unwrap_or(0);
        Ok((Some(Arc::new(carried)), Some(distances(longest)?)))
    }

    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        tape: &Tape,
        input: &Input,
        encoded: Option<&Encoded>,
        memories: Option<&mut [StreamMemory]>,
        mut caches: Option<&mut [SequenceCache]>,
        keep_all: bool,
        ends: Option<&Ends>,
    ) -> Result<Hidden> {
        check_cache(&self.spec, &input.spans, caches.as_deref())?;
        if caches.is_none() || encoded.is_some() {
            self.check_encoded(encoded, input.spans.len())?;
        }
        let mut all = Vec::new();
        // A mean of all layers needs them, whether or not the caller wants them.
        let (asked, keep_all) = (keep_all, keep_all || self.mix.is_some());
        let keeps = keep_all || memories.is_some();
        let mut keep = |v: &Value| {
            if keeps {
                all.push(v.clone());
            }
        };
        let x = self.embeddings.forward(tape, input, caches.as_deref())?;
        let recompute = tape.recomputes() && !asked && caches.is_none();
        let (carried, distances) = self.carried(tape, &x, input, memories.as_deref(), caches.as_deref())?;
        let pass = Pass {
            spans: &input.spans,
            around: Around { encoded, carried: carried.as_deref(), distances: distances.as_ref() },
            carried: carried.clone().zip(distances.clone()),
            caches: caches.as_deref_mut(),
            ends,
            recompute,
        };
        let mut last = match &self.backward {
            None => self.forward.forward(tape, x, pass, &mut keep)?,
            Some(backward) => {
                let order = reversed(&input.spans);
                let (mut ahead, mut back) = (Vec::new(), Vec::new());
                let turned = gather_rows(tape, &x, &order)?;
                let again = Pass { recompute, ..Pass::over(&input.spans) };
                let y = self.forward.forward(tape, x, pass, &mut |v| keeps_of(keep_all, &mut ahead, v))?;
                let z = backward.forward(tape, turned, again, &mut |v| keeps_of(keep_all, &mut back, v))?;
                for (ahead, back) in ahead.iter().zip(&back) {
                    keep(&side_by_side(tape, ahead, back, &order)?);
                }
                side_by_side(tape, &y, &z, &order)?
            }
        };
        let rate = self.spec.dropout.residual;
        if self.spec.output_dropout == OutputDropout::Residual {
            last = dropout(tape, &last, rate)?;
        }
        keep(&last);
        if let Some((weights, gamma)) = &self.mix {
            last = scalar_mix(tape, &all.iter().collect::<Vec<_>>(), &tape.param(weights), &tape.param(gamma))?;
        }
        if let Some(caches) = caches {
            for (cache, span) in caches.iter_mut().zip(input.spans.iter()) {
                cache.advance(span.len());
                if self.spec.memory != Memory::None {
                    cache.keep_last(self.spec.memory_length());
                }
            }
        }
        for (memory, span) in memories.into_iter().flatten().zip(input.spans.iter()) {
            memory.take_up(&all, span)?;
        }
        if !asked {
            all.clear();
        }
        Ok(Hidden { last, all })
    }
}

fn keeps_of(keep: bool, all: &mut Vec<Value>, v: &Value) {
    if keep {
        all.push(v.clone());
    }
}
