//! From token ids to vectors.

use crate::adaptive::AdaptiveTables;
use crate::characters::CharacterNetwork;
use crate::layer::{Affine, NormParams};
use crate::{
    Builder, EmbeddingNorm, EmbeddingScale, Error, Init, Positions, Result, Segments, SequenceCache, StackSpec, Tying,
};
use genus_ops::{Activation, Device, Param, Precision, Spans, Tape, Tensor, Value, dropout, embedding, residual_norm};

/// A ragged batch of token ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The tokens of all sequences, one after the other.
    pub ids: Vec<u32>,
    /// Where each sequence begins and ends.
    pub spans: Spans,
    /// Each token's row in the table of positions; counted from 0 (or from the first row that belongs to one) in each sequence,
    /// or on from its cache, when not given.
    pub positions: Option<Vec<u32>>,
    /// Each token's segment; all 0 when not given.
    pub types: Option<Vec<u32>>,
    /// The characters of each token, of a model that reads those; by the model's table of spellings when not given.
    pub characters: Option<Vec<u32>>,
}

impl Input {
    /// Sequences without given positions and segments.
    pub fn from_sequences<S: AsRef<[u32]>>(sequences: &[S]) -> Self {
        Input {
            ids: sequences.iter().flat_map(|s| s.as_ref().iter().copied()).collect(),
            spans: Spans::from_lengths(sequences.iter().map(|s| s.as_ref().len())),
            positions: None,
            types: None,
            characters: None,
        }
    }

    /// The sequence that token `i` belongs to.
    fn sequence(&self, i: usize) -> usize {
        self.spans.offsets().partition_point(|&o| o <= i).saturating_sub(1)
    }
}

/// Token, position and segment tables.
#[derive(Debug)]
pub struct Embeddings {
    tokens: Param,
    adaptive: Option<AdaptiveTables>,
    characters: Option<CharacterNetwork>,
    scale: f64,
    positions: Option<Param>,
    types: Option<Param>,
    norm: Option<NormParams>,
    /// To the stream's width.
    project: Option<Affine>,
    n_ctx: usize,
    /// The row of the first position.
    first: usize,
    dropout: f32,
}

impl Embeddings {
    /// With `shared`, that is the token table.
    pub(crate) fn build(b: &mut Builder<'_>, spec: &StackSpec, shared: Option<&Param>) -> Result<Self> {
        let d = spec.d_embedding();
        let (shape, init) = ([spec.vocab_size, d], Init::Normal(spec.init.std));
        let adaptive = AdaptiveTables::build(b, spec)?;
        let characters = CharacterNetwork::build(b, spec)?;
        let first = adaptive.as_ref().map(|a| &a.tables[0]).or(characters.as_ref().map(|c| &c.table));
        let tokens = match (shared.or(first), spec.tying) {
            (Some(table), _) => table.clone(),
            // Also the weight of the output projection, where there is one.
            (None, Tying::Tied) => b.shared_table("embeddings.tokens", &shape, init)?,
            (None, Tying::Untied) => b.param("embeddings.tokens", &shape, init)?,
        };
        let positions = match spec.positions {
            Positions::Learned { offset } => {
                let init = Init::Normal(spec.init.position_std);
                Some(b.param("embeddings.positions", &[spec.n_ctx + offset, d], init)?)
            }
            Positions::Sinusoidal => {
                let table = Param::new("sinusoids", sinusoids(spec.n_ctx, d)?);
                table.set_trainable(false);
                Some(table)
            }
            Positions::None | Positions::Relative { .. } => None,
        };
        let types = match spec.segments {
            Segments::None => None,
            Segments::Learned(n) => Some(b.param("embeddings.types", &[n, d], Init::Normal(spec.init.std))?),
        };
        let norm = match spec.embedding_norm {
            EmbeddingNorm::None => None,
            EmbeddingNorm::Norm => Some(NormParams::of_width(b, "embeddings.norm", spec, d)?),
        };
        let project = match d == spec.d_model {
            true => None,
            false => Some(Affine::build(b, "project", d, spec.d_model, spec.layout, spec.init.std)?),
        };
        Ok(Embeddings {
            tokens,
            adaptive,
            characters,
            scale: match spec.embedding_scale {
                EmbeddingScale::One => 1.0,
                EmbeddingScale::Root => (d as f64).sqrt(),
            },
            positions,
            types,
            norm,
            project,
            n_ctx: spec.n_ctx,
            first: spec.positions.offset(),
            dropout: spec.dropout.embedding,
        })
    }

    /// The token table `[v, d]`, which a tied output projection shares.
    pub fn tokens(&self) -> &Param {
        &self.tokens
    }

    /// The tables of an adaptive vocabulary.
    pub(crate) fn adaptive(&self) -> Option<&AdaptiveTables> {
        self.adaptive.as_ref()
    }

    /// Packs weights for inference.
    pub(crate) fn prepare(&self, precision: Precision) -> Result<()> {
        self.project.as_ref().map_or(Ok(()), |map| map.prepare(precision))?;
        self.characters.as_ref().map_or(Ok(()), |c| c.prepare(precision))
    }

    /// Sets the characters of every token, of a model that reads those.
    ///
    /// # Errors
    /// When the model reads none, their number is not `length` a token, or one is beyond the alphabet.
    pub fn set_spellings(&self, characters: &[u32]) -> Result<()> {
        match &self.characters {
            Some(network) => network.set_spellings(characters),
            None => {
                Err(Error::Length { what: "characters that the model reads", found: characters.len(), expected: 0 })
            }
        }
    }

    fn check_ids(&self, input: &Input, vocab_size: usize) -> Result<()> {
        match input.ids.iter().position(|&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(i) => Err(Error::Id { id: input.ids[i], sequence: input.sequence(i), vocab_size }),
        }
    }

    /// `[n, d]`.
    pub(crate) fn forward(&self, tape: &Tape, input: &Input, caches: Option<&[SequenceCache]>) -> Result<Value> {
        let n = input.ids.len();
        check_length("number of ids", n, input.spans.total())?;
        if let Some(adaptive) = &self.adaptive {
            self.check_ids(input, adaptive.vocab_size())?;
            return Ok(dropout(tape, &adaptive.forward(tape, &input.ids, self.scale)?, self.dropout)?);
        }
        if let Some(network) = &self.characters {
            self.check_ids(input, network.vocab_size())?;
            let words = network.forward(tape, &input.ids, input.characters.as_deref())?;
            return Ok(dropout(tape, &words, self.dropout)?);
        }
        let tokens = tape.param(&self.tokens);
        self.check_ids(input, tokens.rows())?;
        let mut values = vec![tokens];
        let mut ids: Vec<std::borrow::Cow<'_, [u32]>> = vec![input.ids.as_slice().into()];
        if let Some(table) = &self.positions {
            let positions: std::borrow::Cow<'_, [u32]> = match &input.positions {
                Some(p) => p.as_slice().into(),
                None => {
                    let cached = |i: usize| caches.and_then(|c| c.get(i)).map_or(0, SequenceCache::len);
                    let start = |i: usize| (self.first + cached(i)) as u32;
                    input
                        .spans
                        .iter()
                        .enumerate()
                        .flat_map(|(i, r)| (0..r.len() as u32).map(move |j| start(i) + j))
                        .collect::<Vec<_>>()
                        .into()
                }
            };
            check_length("number of positions", positions.len(), n)?;
            if let Some(i) = positions.iter().position(|&p| p as usize >= self.first + self.n_ctx) {
                let position = positions[i] as usize - self.first;
                return Err(Error::Context { sequence: input.sequence(i), position, n_ctx: self.n_ctx });
            }
            // What is not among the model's parameters follows them here.
            if !self.tokens.is_prepared() {
                let (t, like) = (table.tensor(), values[0].tensor());
                if t.dtype() != like.dtype() || !t.device().same_device(like.device()) {
                    table.set(t.to_device(like.device())?.to_dtype(like.dtype())?)?;
                }
            }
            values.push(tape.param(table));
            ids.push(positions);
        }
        match (&self.types, &input.types) {
            (Some(table), given) => {
                let table = tape.param(table);
                let types: std::borrow::Cow<'_, [u32]> = match given {
                    Some(t) => t.as_slice().into(),
                    None => vec![0; n].into(),
                };
                check_length("number of token types", types.len(), n)?;
                let n_types = table.rows();
                if let Some(i) = types.iter().position(|&t| t as usize >= n_types) {
                    return Err(Error::TokenType { id: types[i], sequence: input.sequence(i), n_types });
                }
                values.push(table);
                ids.push(types);
            }
            (None, Some(types)) => {
                if let Some(i) = types.iter().position(|&t| t != 0) {
                    return Err(Error::TokenType { id: types[i], sequence: input.sequence(i), n_types: 0 });
                }
            }
            (None, None) => {}
        }
        let parts: Vec<(&Value, &[u32])> = values.iter().zip(&ids).map(|(v, i)| (v, i.as_ref())).collect();
        let x = match &self.norm {
            None => embedding(tape, &parts, self.scale, self.dropout)?,
            Some(norm) => {
                let sum = embedding(tape, &parts, self.scale, 0.0)?;
                let [_, y] = norm.with(tape, |norm| residual_norm(tape, &sum, None, norm))?;
                dropout(tape, &y, self.dropout)?
            }
        };
        match &self.project {
            None => Ok(x),
            Some(map) => map.forward(tape, &x, Activation::Identity),
        }
    }
}

/// Rows of `sin(p / 10000^(2 i / d))` for `i` up to half the width, then as many cosines (Vaswani et al. 2017, section 3.5).
fn sinusoids(n_ctx: usize, d: usize) -> Result<Tensor> {
    let half = d.div_ceil(2);
    let angle = |p: usize, i: usize| p as f64 / 10_000f64.powf(2.0 * i as f64 / d as f64);
    let row = |p: usize| (0..d).map(move |j| if j < half { angle(p, j).sin() } else { angle(p, j - half).cos() });
    Ok(Tensor::from_vec((0..n_ctx).flat_map(row).map(|x: f64| x as f32).collect::<Vec<_>>(), (n_ctx, d), &Device::Cpu)?)
}

fn check_length(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
}
