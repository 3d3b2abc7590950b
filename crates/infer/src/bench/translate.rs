//! Measurement of translation.

use super::{Measured, Runs, measure, positive};
use crate::translate::{Sources, TranslateOptions};
use crate::{Engine, GenerationConfig, Result};
use genus_models::{Flops, Model};
use genus_ops::Precision;
use genus_text::Tokenizer;
use std::time::Instant;

/// What is translated with, and how.
#[derive(Clone, Copy, Debug)]
pub struct TranslationSearch<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The folder's generation options.
    pub config: &'a GenerationConfig,
    /// How lines are translated.
    pub options: TranslateOptions,
    /// Lines that are searched at a time.
    pub together: usize,
    /// Precision of matrix products.
    pub precision: Precision,
}

/// Translation of lines, text in, text out. The time of turning text into ids and ids into text is part of the seconds, and also
/// given apart. Tokens are those of the translations.
///
/// # Errors
/// When a size cannot be, a line is too long, or the model or the tokenizer fails.
pub fn translate(search: TranslationSearch<'_>, lines: &[String], runs: Runs) -> Result<Measured> {
    positive("lines", lines.len())?;
    positive("batch", search.together)?;
    let engine = Engine::new(search.model, Some(search.tokenizer))?;
    let engine = engine.with_precision(search.precision).with_searches_together(search.together);
    let (mut tokens, mut flops, mut tokenizing) = (0, 0.0, Vec::new());
    let measured = measure(runs, || {
        let start = Instant::now();
        let sources = Sources::encode(&engine, search.config, lines, search.options)?;
        let encoded = start.elapsed();
        let found = sources.search(&engine, search.options.beam, || {})?;
        let searched = start.elapsed();
        let work = found.iter().zip(sources.lengths()).map(|((_, work), source)| (source, work.rows, work.seen));
        flops = Flops::of_search(search.model.spec(), work);
        let decoding = Instant::now();
        let translations = sources.texts(&engine, found.into_iter().map(|f| f.0).collect())?;
        let decoded = decoding.elapsed();
        tokenizing.push((encoded + decoded).as_secs_f64());
        tokens = translations.iter().map(|t| t.ids.len()).sum();
        Ok(searched + decoded)
    })?;
    let counted = tokenizing.split_off(tokenizing.len().saturating_sub(measured.seconds.len()));
    let measured = Measured { tokenizing_seconds: Some(counted), lines: Some(lines.len()), ..measured };
    Ok(measured.work(tokens, flops))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BeamOptions;
    use genus_models::{Task, find_preset};
    use genus_nn::Encoder;
    use serde_json::json;

    fn tiny() -> Model {
        let (family, preset) = find_preset("transformer-base").unwrap();
        let mut spec = (preset.spec)();
        (spec.d_model, spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.d_head) = (24, 2, 2, 2, 12);
        (spec.d_ff, spec.vocab_size, spec.n_ctx) = (20, 300, 40);
        spec.encoder = Encoder::Layers { n_layers: 1, n_heads: 2, d_ff: 20 };
        let mut model = Model::random(family, spec, Task::Seq2SeqLm, 1).unwrap();
        model.set_config_field("decoder_start_token_id", json!(257));
        model.set_config_field("eos_token_id", json!(256));
        model
    }

    #[test]
    fn every_product_is_counted() {
        let (model, tokenizer) = (tiny(), Tokenizer::bytes());
        let config = GenerationConfig { eos: vec![256], banned: vec![257], ..GenerationConfig::default() };
        let lines = ["a bc".to_owned(), String::new(), "de".to_owned()];
        for (to_the_full, beams) in [(true, 3), (true, 1), (false, 4)] {
            let beam = BeamOptions { beams, length_penalty: 0.6 };
            let options = TranslateOptions { beam, max_new_tokens: Some(5), beyond: 0, to_the_full };
            let precision = Precision::F32;
            let (tokenizer, config) = (&tokenizer, &config);
            let search = TranslationSearch { model: &model, tokenizer, config, options, together: 1, precision };
            let m = translate(search, &lines, Runs { warm_up: 1, timed: 2 }).unwrap();
            assert_eq!((m.lines, m.seconds.len()), (Some(3), 2));
            assert!(if to_the_full { m.tokens == 10 } else { m.tokens <= 10 });
            assert_eq!(m.operations.iter().map(|e| e.flops).sum::<f64>(), 2.0 * m.flops, "{to_the_full}, {beams}");
            assert_eq!(m.tokenizing_seconds.unwrap().len(), 2);
            let other = translate(TranslationSearch { together: 7, ..search }, &lines, Runs { warm_up: 0, timed: 1 });
            assert_eq!(other.unwrap().flops, m.flops);
        }
    }
}
