//! Learning a Unigram vocabulary (Kudo 2018, "Subword regularization", section 3.2; details as in SentencePiece):
//! start from frequent substrings, fit their probabilities by expectation-maximisation over all ways of cutting the
//! words, drop the pieces whose loss costs least, and repeat until the vocabulary is small enough.
//!
//! The `tokenizers` library has a trainer too, but it sums in an order that depends on threads and hash tables, and it
//! panics on some texts.

use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Longest piece, in characters.
const MAX_PIECE: usize = 16;
/// Longer words are cut.
const MAX_WORD: usize = 256;
/// Seeds per piece of the final vocabulary.
const SEEDS: usize = 12;
/// Share of the pieces that survives a round of pruning.
const SHRINK: f64 = 0.75;
/// Pieces expected less often than this are dropped.
const LEAST_EXPECTED: f64 = 0.5;
/// Sums run over this many parts of the words, whatever the number of threads.
const PARTS: usize = 16;

type Word = (Vec<char>, f64);
type Piece = (Vec<char>, f64);

/// Learns at most `size` pieces with their log probabilities, best first, from words with counts. At most half of the
/// pieces are single characters; rarer characters are left out.
pub(super) fn learn(words: BTreeMap<String, u64>, size: usize) -> Vec<(String, f64)> {
    let (words, characters) = known_characters(words, size / 2);
    if words.is_empty() {
        return Vec::new();
    }
    let mut pieces = seeds(&words, &characters, size);
    let aim = (size * 11 / 10).max(characters.len());
    loop {
        for _ in 0..2 {
            pieces = maximise(pieces.iter().map(|p| &p.0).cloned().collect(), &expected(&words, &pieces));
        }
        let Some(kept) = (pieces.len() > aim).then(|| prune(&words, &pieces, aim)).filter(|k| k.len() < pieces.len())
        else {
            break;
        };
        pieces = kept;
    }
    // Characters stay, whatever their score, so that what was spelled can be spelled.
    let (mut chosen, mut rest): (Vec<Piece>, Vec<Piece>) = pieces.into_iter().partition(|p| p.0.len() == 1);
    let best = |a: &Piece, b: &Piece| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0));
    rest.sort_by(best);
    rest.truncate(size.saturating_sub(chosen.len()));
    chosen.append(&mut rest);
    chosen.sort_by(best);
    chosen.into_iter().map(|(piece, score)| (piece.into_iter().collect(), score)).collect()
}

/// Keeps the `most` commonest characters; words are cut at others, and where they are too long.
fn known_characters(words: BTreeMap<String, u64>, most: usize) -> (Vec<Word>, Vec<(char, u64)>) {
    let mut counts: BTreeMap<char, u64> = BTreeMap::new();
    for (word, &n) in &words {
        word.chars().for_each(|c| *counts.entry(c).or_default() += n);
    }
    let mut characters: Vec<(char, u64)> = counts.into_iter().collect();
    characters.sort_by_key(|&(c, n)| (std::cmp::Reverse(n), c));
    characters.truncate(most);
    let known: HashSet<char> = characters.iter().map(|c| c.0).collect();
    let mut kept: BTreeMap<Vec<char>, f64> = BTreeMap::new();
    for (word, n) in words {
        for part in word.split(|c| !known.contains(&c)) {
            let part: Vec<char> = part.chars().collect();
            part.chunks(MAX_WORD).for_each(|chunk| *kept.entry(chunk.to_vec()).or_default() += n as f64);
        }
    }
    (kept.into_iter().collect(), characters)
}

/// All characters, and the substrings that cover most text. A substring is counted only if both of its halves short of
/// one character are frequent, so long words do not fill the memory.
fn seeds(words: &[Word], characters: &[(char, u64)], size: usize) -> Vec<Piece> {
    let mut found: Vec<(Vec<char>, f64)> = Vec::new();
    let mut before: HashSet<&[char]> = HashSet::new();
    for length in 2..=MAX_PIECE {
        let mut counts: HashMap<&[char], f64> = HashMap::new();
        for (word, n) in words {
            for part in word.windows(length) {
                if length == 2 || (before.contains(&part[1..]) && before.contains(&part[..length - 1])) {
                    *counts.entry(part).or_default() += n;
                }
            }
        }
        counts.retain(|_, n| *n >= 2.0);
        if counts.is_empty() {
            break;
        }
        found.extend(counts.iter().map(|(part, n)| (part.to_vec(), n * length as f64)));
        before = counts.into_keys().collect();
    }
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    found.truncate((size * SEEDS).min(1_000_000));
    let mut pieces: Vec<Piece> = characters.iter().map(|&(c, n)| (vec![c], n as f64)).collect();
    pieces.append(&mut found);
    let total: f64 = pieces.iter().map(|p| p.1).sum();
    pieces.iter_mut().for_each(|p| p.1 = (p.1 / total).ln());
    pieces
}

/// Looks up pieces by their characters.
struct Lookup<'a> {
    ids: HashMap<&'a [char], u32>,
    scores: Vec<f64>,
    longest: usize,
}

impl<'a> Lookup<'a> {
    fn new(pieces: &'a [Piece]) -> Self {
        Lookup {
            ids: pieces.iter().zip(0..).map(|(p, i)| (p.0.as_slice(), i)).collect(),
            scores: pieces.iter().map(|p| p.1).collect(),
            longest: pieces.iter().map(|p| p.0.len()).max().unwrap_or(1),
        }
    }

    /// The pieces that start at `from`: their ends and ids.
    fn starting(&self, word: &[char], from: usize) -> impl Iterator<Item = (usize, u32)> {
        let ends = from + 1..=word.len().min(from + self.longest);
        ends.filter_map(move |end| Some((end, *self.ids.get(&word[from..end])?)))
    }

    /// Adds how often each piece is expected in a word: forward-backward over all ways of cutting it.
    fn expect(&self, word: &[char], count: f64, expected: &mut [f64]) {
        let n = word.len();
        let edges: Vec<Vec<(usize, u32)>> = (0..n).map(|from| self.starting(word, from).collect()).collect();
        let mut forward = vec![f64::NEG_INFINITY; n + 1];
        let mut backward = forward.clone();
        (forward[0], backward[n]) = (0.0, 0.0);
        for from in 0..n {
            for &(end, id) in &edges[from] {
                forward[end] = log_sum(forward[end], forward[from] + self.scores[id as usize]);
            }
        }
        for from in (0..n).rev() {
            for &(end, id) in &edges[from] {
                backward[from] = log_sum(backward[from], self.scores[id as usize] + backward[end]);
            }
        }
        for from in 0..n {
            for &(end, id) in &edges[from] {
                let share = (forward[from] + self.scores[id as usize] + backward[end] - forward[n]).exp();
                expected[id as usize] += count * share;
            }
        }
    }

    /// The most probable way of cutting a word, without the piece `but`.
    fn best(&self, word: &[char], but: Option<u32>) -> Vec<u32> {
        let n = word.len();
        let mut best = vec![(f64::NEG_INFINITY, 0usize, 0u32); n + 1];
        best[0].0 = 0.0;
        for from in 0..n {
            for (end, id) in self.starting(word, from).filter(|e| Some(e.1) != but) {
                let score = best[from].0 + self.scores[id as usize];
                if score > best[end].0 {
                    best[end] = (score, from, id);
                }
            }
        }
        let (mut at, mut cut) = (n, Vec::new());
        while at > 0 && best[at].0 > f64::NEG_INFINITY {
            cut.push(best[at].2);
            at = best[at].1;
        }
        if at == 0 { cut } else { Vec::new() }
    }
}

fn log_sum(a: f64, b: f64) -> f64 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// Sums over the words, part by part; the parts and their order are fixed.
fn over_words(words: &[Word], pieces: usize, add: impl Fn(&Word, &mut [f64]) + Sync) -> Vec<f64> {
    let parts: Vec<Vec<f64>> = words
        .par_chunks(words.len().div_ceil(PARTS).max(1))
        .map(|part| {
            let mut sums = vec![0.0; pieces];
            part.iter().for_each(|word| add(word, &mut sums));
            sums
        })
        .collect();
    let mut total = vec![0.0; pieces];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
    }
    total
}

fn expected(words: &[Word], pieces: &[Piece]) -> Vec<f64> {
    let lookup = Lookup::new(pieces);
    over_words(words, pieces.len(), |(word, count), sums| lookup.expect(word, *count, sums))
}

/// New log probabilities with a sparse prior (a digamma in place of the logarithm). Rare pieces go; characters stay.
fn maximise(pieces: Vec<Vec<char>>, expected: &[f64]) -> Vec<Piece> {
    let kept: Vec<Piece> = pieces
        .into_iter()
        .zip(expected)
        .filter(|(piece, n)| piece.len() == 1 || **n >= LEAST_EXPECTED)
        .map(|(piece, n)| (piece, n.max(LEAST_EXPECTED)))
        .collect();
    let total = digamma(kept.iter().map(|p| p.1).sum());
    kept.into_iter().map(|(piece, n)| (piece, digamma(n) - total)).collect()
}

/// Drops the pieces whose absence would cost the least likelihood, no more than a quarter at a time.
fn prune(words: &[Word], pieces: &[Piece], aim: usize) -> Vec<Piece> {
    let lookup = Lookup::new(pieces);
    let used = over_words(words, pieces.len(), |(word, count), sums| {
        lookup.best(word, None).into_iter().for_each(|id| sums[id as usize] += count);
    });
    let total: f64 = used.iter().sum();
    let losses: Vec<Option<f64>> = (0..pieces.len())
        .into_par_iter()
        .map(|i| {
            let (piece, n) = (&pieces[i].0, used[i]);
            if piece.len() == 1 || n == 0.0 {
                return None;
            }
            let instead = lookup.best(piece, Some(i as u32));
            // The counts as they would be with the piece's uses given to what stands in for it.
            let total_then = (total + n * (instead.len() as f64 - 1.0)).ln();
            let then: f64 = instead.iter().map(|&id| (used[id as usize] + n).ln() - total_then).sum();
            Some(n / total * (n.ln() - total.ln() - then))
        })
        .collect();
    let mut kept: Vec<Piece> = pieces.iter().filter(|p| p.0.len() == 1).cloned().collect();
    let mut order: Vec<(usize, f64)> = losses.into_iter().enumerate().filter_map(|(i, l)| Some((i, l?))).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let next = aim.max((pieces.len() as f64 * SHRINK) as usize);
    kept.extend(order.into_iter().take(next.saturating_sub(kept.len())).map(|(i, _)| pieces[i].clone()));
    kept
}

/// The derivative of the logarithm of the gamma function, for positive numbers (Bernardo 1976).
fn digamma(mut x: f64) -> f64 {
    let mut result = 0.0;
    while x < 7.0 {
        result -= 1.0 / x;
        x += 1.0;
    }
    x -= 0.5;
    let (i2, i4) = (1.0 / (x * x), 1.0 / (x * x * x * x));
    result + x.ln() + i2 / 24.0 - 7.0 / 960.0 * i4 + 31.0 / 8064.0 * i4 * i2 - 127.0 / 30720.0 * i4 * i4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digamma_of_known_points() {
        const EULER: f64 = 0.577_215_664_901_532_9;
        for (x, expected) in [(1.0, -EULER), (2.0, 1.0 - EULER), (0.5, -EULER - 2.0 * 2f64.ln())] {
            assert!((digamma(x) - expected).abs() < 1e-9, "{x}: {}", digamma(x));
        }
    }

    #[test]
    fn expectations_count_every_character_once() {
        let pieces: Vec<Piece> =
            ["a", "b", "ab", "ba", "aba"].iter().map(|p| (p.chars().collect(), (0.2f64).ln())).collect();
        let word: Vec<char> = "abaab".chars().collect();
        let sums = expected(&[(word, 3.0)], &pieces);
        let characters: f64 = sums.iter().zip(&pieces).map(|(n, p)| n * p.0.len() as f64).sum();
        assert!((characters - 15.0).abs() < 1e-9);
        // a|b has one cut more than ab, so probability 0.2^2 against 0.2: 1/6 against 5/6.
        let sums = expected(&[("ab".chars().collect(), 1.0)], &pieces);
        assert!((sums[2] - 5.0 / 6.0).abs() < 1e-12 && (sums[0] - 1.0 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn frequent_words_become_pieces() {
        let words = [("▁the", 50u64), ("▁then", 20), ("▁other", 30), ("▁q", 1)];
        let words = words.map(|(w, n)| (w.to_owned(), n)).into();
        let pieces = learn(words, 20);
        assert!(pieces.len() <= 20);
        assert!(pieces.iter().take(4).any(|p| p.0 == "▁the"), "{pieces:?}");
        for c in "▁thenor".chars() {
            assert!(pieces.iter().any(|p| p.0 == c.to_string()), "{c}");
        }
        assert!(pieces.iter().all(|p| p.1.is_finite() && p.1 < 0.0));
    }
}
