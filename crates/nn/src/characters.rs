//! Words as characters (Kim et al. 2016, arXiv 1508.06615; Jozefowicz et al. 2016, arXiv 1602.02410; ELMo).

use crate::layer::Affine;
use crate::{Builder, Characters, Error, Init, Result, StackSpec, Vocabulary};
use genus_ops::{
    Activation, Layout, Param, Precision, Tape, Tensor, Value, activate, beside, convolve_max, embedding, gather_rows,
    highway, to_vec,
};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::RwLock;

/// What is taken off a character where a table of spellings is stored, so that every element type that files have holds it exactly.
const SHIFT: i32 = 128;

/// From the characters of words to vectors.
#[derive(Debug)]
pub(crate) struct CharacterNetwork {
    spec: Characters,
    /// `[alphabet, d_character]`.
    pub table: Param,
    /// Weight `[f, width * d_character]` and bias of each kind of pattern.
    filters: Vec<(Param, Param)>,
    highways: Vec<Affine>,
    projection: Affine,
    /// The characters of every token, `[v, length]`, less [`SHIFT`]; a buffer.
    spellings: Param,
    /// The same as numbers, read when it is first needed.
    known: RwLock<Option<Vec<u32>>>,
}

impl CharacterNetwork {
    pub fn build(b: &mut Builder<'_>, spec: &StackSpec) -> Result<Option<Self>> {
        let Vocabulary::Characters(c) = &spec.vocabulary else { return Ok(None) };
        let wide = c.patterns();
        let table = b.param("embeddings.characters", &[c.alphabet, c.d_character], Init::Normal(1.0))?;
        let mut filters = Vec::new();
        for (i, &(width, n)) in c.filters.iter().enumerate() {
            let fan_in = width * c.d_character;
            let weight = b.param(
                format!("embeddings.filters.{i}.weight"),
                &[n, fan_in],
                Init::Normal((1.0 / fan_in as f64).sqrt()),
            )?;
            filters.push((weight, b.param(format!("embeddings.filters.{i}.bias"), &[n], Init::Zeros)?));
        }
        let root = (1.0 / wide as f64).sqrt();
        let highways = (0..c.highways)
            .map(|i| Affine::build(b, &format!("embeddings.highways.{i}"), wide, 2 * wide, Layout::OutIn, root))
            .collect::<Result<_>>()?;
        let projection = Affine::build(b, "embeddings.projection", wide, spec.d_model, Layout::OutIn, root)?;
        let spellings = b.buffer("embeddings.spellings", &[spec.vocab_size, c.length])?;
        Ok(Some(CharacterNetwork {
            spec: c.clone(),
            table,
            filters,
            highways,
            projection,
            spellings,
            known: RwLock::default(),
        }))
    }

    pub fn prepare(&self, precision: Precision) -> Result<()> {
        self.highways.iter().chain([&self.projection]).try_for_each(|map| map.prepare(precision))
    }

    pub fn vocab_size(&self) -> usize {
        self.spellings.dims()[0]
    }

    /// Sets the characters of every token, `length` of each.
    pub fn set_spellings(&self, characters: &[u32]) -> Result<()> {
        let expected = self.spellings.elem_count();
        if characters.len() != expected {
            return Err(Error::Length { what: "characters of all tokens", found: characters.len(), expected });
        }
        self.check(characters)?;
        let like = self.spellings.tensor();
        let stored: Vec<f32> = characters.iter().map(|&c| (c as i32 - SHIFT) as f32).collect();
        let t = Tensor::from_vec(stored, like.dims(), &genus_ops::Device::Cpu)?;
        self.spellings.set(t.to_device(like.device())?.to_dtype(like.dtype())?)?;
        *self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(characters.to_vec());
        Ok(())
    }

    fn check(&self, characters: &[u32]) -> Result<()> {
        let alphabet = self.spec.alphabet;
        match characters.iter().position(|&c| c as usize >= alphabet) {
            None => Ok(()),
            Some(i) => Err(Error::Character { character: characters[i], token: i / self.spec.length, alphabet }),
        }
    }

    /// The characters of tokens, by the table.
    fn spelled(&self, ids: &[u32]) -> Result<Vec<u32>> {
        let mut known = self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.is_none() {
            let read = to_vec(&self.spellings.tensor())?;
            // A table of nothing but zeros was never set.
            if read.iter().all(|&c| c == 0.0) {
                return Err(Error::NotSpelled);
            }
            let characters: Vec<u32> = read.iter().map(|&c| (c as i32 + SHIFT) as u32).collect();
            self.check(&characters)?;
            *known = Some(characters);
        }
        let (known, length) = (known.as_deref().unwrap_or_default(), self.spec.length);
        Ok(ids.iter().flat_map(|&id| &known[id as usize * length..][..length]).copied().collect())
    }

    /// The vectors of words, `[n, d]`: of each different word once.
    pub fn forward(&self, tape: &Tape, ids: &[u32], characters: Option<&[u32]>) -> Result<Value> {
        let length = self.spec.length;
        let spelled;
        let characters = match characters {
            Some(given) => {
                if given.len() != ids.len() * length {
                    let expected = ids.len() * length;
                    return Err(Error::Length { what: "number of characters", found: given.len(), expected });
                }
                self.check(given)?;
                given
            }
            None => {
                spelled = self.spelled(ids)?;
                &spelled
            }
        };
        let (mut words, mut places, mut seen) = (Vec::new(), Vec::with_capacity(ids.len()), HashMap::new());
        for word in characters.chunks(length) {
            let next = seen.len() as u32;
            places.push(match seen.entry(word) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    words.extend_from_slice(word);
                    *new.insert(next)
                }
            });
        }
        let x = embedding(tape, &[(&tape.param(&self.table), &words)], 1.0, 0.0)?;
        let answer =
            |(weight, bias): &(Param, Param)| convolve_max(tape, &x, &tape.param(weight), &tape.param(bias), length);
        let answers: Vec<Value> = self.filters.iter().map(answer).collect::<genus_ops::Result<_>>()?;
        let answers = beside(tape, &answers.iter().collect::<Vec<_>>())?;
        let mut y = activate(tape, &answers, Activation::Relu)?;
        for map in &self.highways {
            y = highway(tape, &y, &map.forward(tape, &y, Activation::Identity)?)?;
        }
        let y = self.projection.forward(tape, &y, Activation::Identity)?;
        Ok(gather_rows(tape, &y, &places)?)
    }
}
