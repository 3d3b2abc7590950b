//! Translation of lines: text in, text out.

use crate::{
    Beam, BeamOptions, Engine, Error, GenerateOptions, GenerationConfig, Overrides, Request, Result, engine::Work,
};

/// Tokens that a translation may have beyond those of its source (Vaswani et al. 2017, section 6.1).
pub const BEYOND: usize = 50;

/// How lines are translated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TranslateOptions {
    /// How beams are searched.
    pub beam: BeamOptions,
    /// Longest translation in tokens; without it, `beyond` more than the source has.
    pub max_new_tokens: Option<usize>,
    /// Tokens that a translation may have beyond those of its source; usually [`BEYOND`].
    pub beyond: usize,
    /// Every translation has as many tokens as it may: an end token does not end it. For measurements with random weights.
    pub to_the_full: bool,
}

/// A translated line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translation {
    /// Its text, without white space around it; a line stays a line.
    pub text: String,
    /// The generated tokens, an end token included.
    pub ids: Vec<u32>,
    /// Log-probability over length to the penalty's power; `None` for an empty line.
    pub score: Option<f64>,
}

/// Lines as a model reads them.
#[derive(Clone, Debug)]
pub struct Sources {
    lines: usize,
    /// Numbers of the lines that are not empty.
    places: Vec<usize>,
    requests: Vec<Request>,
}

impl Sources {
    /// Encodes lines. Empty ones stay empty.
    ///
    /// # Errors
    /// [`Error::LineTooLong`] for a line that is longer than the model's context; those of the tokenizer; when an option cannot be.
    pub fn encode(
        engine: &Engine<'_>,
        config: &GenerationConfig,
        lines: &[String],
        options: TranslateOptions,
    ) -> Result<Self> {
        let n_ctx = engine.model().spec().n_ctx;
        let mut sources = Sources { lines: lines.len(), places: Vec::new(), requests: Vec::new() };
        for (i, line) in lines.iter().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let prompt = engine.encode(line)?;
            if prompt.len() > n_ctx {
                return Err(Error::LineTooLong { line: i + 1, found: prompt.len(), n_ctx });
            }
            let most = options.max_new_tokens.unwrap_or(prompt.len() + options.beyond);
            let overrides = Overrides {
                greedy: Some(true),
                max_new_tokens: Some(most),
                min_new_tokens: options.to_the_full.then_some(most),
                ..Overrides::default()
            };
            let options = GenerateOptions { repetition_penalty: 1.0, ..config.options(&overrides, prompt.len())? };
            sources.places.push(i);
            sources.requests.push(Request { prompt, options });
        }
        Ok(sources)
    }

    /// Number of lines that are not empty.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether every line is empty.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Tokens of each.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.requests.iter().map(|r| r.prompt.len())
    }

    /// Searches all of them; `on_done` is called when one is done. Of each line its translation, in order.
    ///
    /// # Errors
    /// As [`Engine::beam_searches`].
    pub fn translate(
        &self,
        engine: &Engine<'_>,
        options: BeamOptions,
        on_done: impl FnMut(),
    ) -> Result<Vec<Translation>> {
        let found = self.search(engine, options, on_done)?;
        self.texts(engine, found.into_iter().map(|f| f.0).collect())
    }

    pub(crate) fn search(
        &self,
        engine: &Engine<'_>,
        options: BeamOptions,
        mut on_done: impl FnMut(),
    ) -> Result<Vec<(Vec<Beam>, Work)>> {
        engine.counted_searches(&self.requests, options, |_, _| on_done())
    }

    pub(crate) fn texts(&self, engine: &Engine<'_>, found: Vec<Vec<Beam>>) -> Result<Vec<Translation>> {
        let tokenizer = engine.tokenizer().ok_or(Error::NoTokenizer { what: "a translation" })?;
        let mut out = vec![Translation::default(); self.lines];
        for (&i, beams) in self.places.iter().zip(found) {
            let Some(best) = beams.into_iter().next() else { continue };
            let text = tokenizer.decode(&best.ids, true)?.replace(['\n', '\r'], " ");
            out[i] = Translation { text: text.trim().to_owned(), ids: best.ids, score: Some(best.score) };
        }
        Ok(out)
    }
}

/// Translates lines, all of them together.
///
/// # Errors
/// As [`Sources::encode`] and [`Sources::translate`].
pub fn translate(
    engine: &Engine<'_>,
    config: &GenerationConfig,
    lines: &[String],
    options: TranslateOptions,
) -> Result<Vec<Translation>> {
    Sources::encode(engine, config, lines, options)?.translate(engine, options.beam, || {})
}
