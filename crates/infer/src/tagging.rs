//! Tags of words, and how good they are.

use crate::{Error, Result};
use genus_models::{Input, Model, Task};
use genus_ops::{Precision, Tape, gather_rows, to_vec};
use genus_text::{TaggedPiece, Tokenizer, tagged_pieces};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The model's tag of each word of each sentence: what its first token is classified as. Sentences longer than the model takes are cut
/// between words; as many as fit into `batch_tokens` tokens are run together.
///
/// # Errors
/// When the model does not tag, or a word has no token.
pub fn tag<S: AsRef<[String]>>(
    model: &Model,
    tokenizer: &Tokenizer,
    sentences: &[S],
    batch_tokens: usize,
    precision: Precision,
) -> Result<Vec<Vec<String>>> {
    if model.task() != Task::TokenClassification {
        return Err(Error::option("task", model.task(), Task::TokenClassification.to_string()));
    }
    let mut pieces: Vec<(usize, TaggedPiece)> = Vec::new();
    for (i, words) in sentences.iter().enumerate() {
        let cut = tagged_pieces(words.as_ref(), tokenizer, model.spec().n_ctx)?;
        pieces.extend(cut.into_iter().map(|piece| (i, piece)));
    }
    let mut out = vec![Vec::new(); sentences.len()];
    let (head, names) = (model.classifier()?, &model.labels().names);
    let mut at = 0;
    while at < pieces.len() {
        let mut tokens = 0;
        let fits = |(_, piece): &&(usize, TaggedPiece)| {
            tokens += piece.ids.len();
            tokens <= batch_tokens
        };
        let n = pieces[at..].iter().take_while(fits).count().max(1);
        let batch = &pieces[at..at + n];
        let ids: Vec<&[u32]> = batch.iter().map(|(_, piece)| piece.ids.as_slice()).collect();
        let (input, tape) = (Input::from_sequences(&ids), Tape::inference().with_precision(precision));
        let rows: Vec<u32> = (batch.iter().zip(input.spans.iter()))
            .flat_map(|((_, piece), span)| piece.places.iter().map(move |p| (span.start + p) as u32))
            .collect();
        let hidden = model.states(&tape, &input, false)?.last; // [tokens, d]
        let first = model.tokens(&tape, &gather_rows(&tape, &hidden, &rows)?)?; // [words, d]
        let logits = to_vec(head.logits(&tape, &first)?.tensor())?;
        let mut best = logits.chunks(names.len()).map(|row| &names[crate::engine::argmax(row) as usize]);
        for (sentence, piece) in batch {
            out[*sentence].extend(best.by_ref().take(piece.places.len()).cloned());
        }
        at += n;
    }
    Ok(out)
}

/// Precision, recall and their harmonic mean, of entities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct EntityScore {
    /// Share of the entities found that are right.
    pub precision: f64,
    /// Share of the true entities that are found.
    pub recall: f64,
    /// `2 p r / (p + r)`.
    pub f1: f64,
    /// True entities.
    pub entities: usize,
    /// Entities found.
    pub found: usize,
}

/// How good tags are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TagScores {
    /// Share of the words whose tag is right.
    pub accuracy: f64,
    /// Words.
    pub words: usize,
    /// Of tags that mark entities (`B-PER`, `I-PER`, `O`): over all entities together.
    pub entities: Option<EntityScore>,
    /// And those of each type.
    pub types: BTreeMap<String, EntityScore>,
}

/// Compares the tags that were found with the true ones. Entities are right when type, beginning and end are; what an entity is in tags
/// that break the scheme is decided as seqeval does by default (and the script of CoNLL-2000): an `I` without a `B` of its type before it
/// begins one.
///
/// # Panics
/// When there are not as many tags as true ones.
pub fn tag_scores<T: AsRef<[String]>, F: AsRef<[String]>>(truth: &[T], found: &[F]) -> TagScores {
    assert_eq!(truth.len(), found.len(), "sentences");
    let (mut words, mut right) = (0, 0);
    let (mut gold, mut got) = (BTreeSet::new(), BTreeSet::new());
    for (i, (t, f)) in truth.iter().zip(found).enumerate() {
        let (t, f) = (t.as_ref(), f.as_ref());
        assert_eq!(t.len(), f.len(), "words of sentence {i}");
        words += t.len();
        right += t.iter().zip(f).filter(|(a, b)| a == b).count();
        gold.extend(entities(t).into_iter().map(|(kind, from, to)| (kind, i, from, to)));
        got.extend(entities(f).into_iter().map(|(kind, from, to)| (kind, i, from, to)));
    }
    let marks = |t: &T| t.as_ref().iter().any(|tag| tag.starts_with("B-"));
    let score = |kind: Option<&str>| {
        let of = |set: &BTreeSet<(String, usize, usize, usize)>| {
            set.iter().filter(|e| kind.is_none_or(|k| e.0 == k)).count()
        };
        let both: BTreeSet<_> = gold.intersection(&got).cloned().collect();
        let (right, entities, found) = (of(&both), of(&gold), of(&got));
        let share = |n: usize| if n == 0 { 0.0 } else { right as f64 / n as f64 };
        let (precision, recall) = (share(found), share(entities));
        let f1 = if right == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
        EntityScore { precision, recall, f1, entities, found }
    };
    let marked = truth.iter().any(marks);
    let kinds: BTreeSet<String> = gold.iter().chain(&got).map(|e| e.0.clone()).filter(|_| marked).collect();
    TagScores {
        accuracy: right as f64 / words.max(1) as f64,
        words,
        entities: marked.then(|| score(None)),
        types: kinds.into_iter().map(|k| (k.clone(), score(Some(&k)))).collect(),
    }
}

/// The entities of a sentence: type, first word, last word.
fn entities(tags: &[String]) -> Vec<(String, usize, usize)> {
    let parts = |tag: &str| -> (char, String) {
        let mut chars = tag.chars();
        let mark = chars.next().unwrap_or('O');
        let rest = chars.as_str();
        let kind = rest.strip_prefix('-').unwrap_or(rest);
        (mark, if kind.is_empty() { "_" } else { kind }.to_owned())
    };
    let mut out = Vec::new();
    let (mut before, mut kind_before, mut begin) = ('O', String::new(), 0);
    for (i, (mark, kind)) in tags.iter().map(|t| parts(t)).chain([('O', "_".to_owned())]).enumerate() {
        let outside = |mark| matches!(mark, 'O' | '.');
        let other = kind_before != kind;
        let ends = match (before, mark) {
            ('E' | 'S', _) | ('B' | 'I', 'B' | 'S' | 'O') => true,
            _ => !outside(before) && other,
        };
        let starts = match (before, mark) {
            (_, 'B' | 'S') | ('E' | 'S' | 'O', 'E' | 'I') => true,
            _ => !outside(mark) && other,
        };
        if ends {
            out.push((kind_before.clone(), begin, i - 1));
        }
        if starts {
            begin = i;
        }
        (before, kind_before) = (mark, kind);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(text: &str) -> Vec<String> {
        text.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn entities_of_sound_and_broken_tags() {
        let found = |text: &str| {
            entities(&tags(text)).into_iter().map(|(k, a, b)| format!("{k}{a}{b}")).collect::<Vec<_>>().join(" ")
        };
        for (text, expected) in [
            ("B-x I-x O B-y", "x01 y33"),
            ("B-x B-x I-x I-y", "x00 x12 y33"),
            ("O I-x I-x O I-y", "x12 y44"),
            ("S-x B-y E-y O", "x00 y12"),
            ("E-x E-x I-x", "x00 x11 x22"),
            ("O O", ""),
            ("B I O", "_01"),
            ("B-x-y I-x-y", "x-y01"),
        ] {
            assert_eq!(found(text), expected, "{text}");
        }
    }

    /// Figures of seqeval 1.2.2 (`precision_score` and so on, by default).
    #[test]
    fn scores_are_seqevals() {
        let truth = [tags("O O O B-MISC I-MISC I-MISC O"), tags("B-PER I-PER O"), tags("B-LOC O B-LOC")];
        let found = [tags("O O B-MISC I-MISC I-MISC I-MISC O"), tags("B-PER I-PER O"), tags("B-LOC I-LOC B-LOC")];
        let s = tag_scores(&truth, &found);
        let e = s.entities.unwrap();
        assert_eq!((e.precision, e.recall, e.f1, e.entities, e.found), (0.5, 0.5, 0.5, 4, 4));
        assert!((s.accuracy - 10.0 / 13.0).abs() < 1e-12);
        assert_eq!((s.types["PER"].f1, s.types["LOC"].f1, s.types["MISC"].f1), (1.0, 0.5, 0.0));
        let plain = tag_scores(&[tags("NOUN VERB")], &[tags("NOUN NOUN")]);
        assert_eq!((plain.accuracy, plain.entities, plain.types.len()), (0.5, None, 0));
    }
}
