//! BERT's masking (Devlin et al. 2018, section 3.1; `create_pretraining_data.py` of the published code).

use crate::rng::Key;
use crate::tokenizer::Tokenizer;

/// Which tokens are hidden, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskingConfig {
    /// Share of the sequence (special tokens counted, as published) that is to be predicted.
    pub probability: f64,
    /// Share of those that become `[MASK]`.
    pub mask: f64,
    /// Share of those that become a random token; the rest stay as they are.
    pub random: f64,
    /// Choose whole words: tokens that continue a chosen word are chosen too.
    pub whole_word: bool,
    /// At most this many predictions a sequence.
    pub max_predictions: usize,
}

impl Default for MaskingConfig {
    fn default() -> Self {
        MaskingConfig { probability: 0.15, mask: 0.8, random: 0.1, whole_word: false, max_predictions: usize::MAX }
    }
}

/// Masks `ids` in place and returns the labels: the original id at chosen places, -100 elsewhere. A pure function of
/// its arguments.
///
/// Chosen are `max(1, round(probability * len))` places, no more than `max_predictions` and than there are tokens that
/// are not special. With whole words, words are taken in random order while they fit into that number; if not even one
/// does, the first word of the shuffled order is cut to fit.
///
/// Nothing is masked by a tokenizer without a mask token.
pub fn mask_tokens(ids: &mut [u32], tokenizer: &Tokenizer, key: Key, config: &MaskingConfig) -> Vec<i32> {
    let mut labels = vec![-100; ids.len()];
    let Some(mask) = tokenizer.special().mask else {
        return labels;
    };
    let mut words: Vec<Vec<usize>> = Vec::new();
    let mut adjacent = false;
    for (i, &id) in ids.iter().enumerate() {
        if tokenizer.is_special(id) {
            adjacent = false;
            continue;
        }
        match words.last_mut() {
            Some(word) if config.whole_word && adjacent && tokenizer.continues_word(id) => word.push(i),
            _ => words.push(vec![i]),
        }
        adjacent = true;
    }
    let wanted = ((ids.len() as f64 * config.probability).round() as usize).max(1).min(config.max_predictions);
    let mut rng = key.stream();
    rng.shuffle(&mut words);
    let mut chosen: Vec<usize> = Vec::with_capacity(wanted);
    for word in &words {
        if chosen.len() >= wanted {
            break;
        }
        if chosen.len() + word.len() <= wanted {
            chosen.extend(word);
        }
    }
    if let (true, Some(word)) = (chosen.is_empty(), words.first()) {
        chosen.extend(word.iter().take(wanted));
    }
    // In the order of the text, so that the draws below do not depend on how the words were found.
    chosen.sort_unstable();
    for i in chosen {
        labels[i] = ids[i] as i32;
        let draw = rng.unit();
        if draw < config.mask {
            ids[i] = mask;
        } else if draw < config.mask + config.random {
            ids[i] = rng.below(tokenizer.vocab_size()) as u32;
        }
    }
    labels
}
