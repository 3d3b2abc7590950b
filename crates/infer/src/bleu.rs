//! BLEU (Papineni et al. 2002), as sacreBLEU computes it (Post 2018, arXiv 1804.08771): over a corpus, on detokenised text that is
//! cut by the rules of mteval-v13a, with exponential smoothing.

use regex::Regex;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Longest n-gram.
const ORDER: usize = 4;

/// How translations are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BleuOptions {
    /// Lower case on both sides first.
    pub lowercase: bool,
}

/// A corpus's BLEU and what it is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bleu {
    /// From 0 to 100.
    pub score: f64,
    /// Share of the n-grams of the translations that the references have, in percent, for n from 1 to 4.
    pub precisions: [f64; ORDER],
    /// Below 1 where the translations are shorter than the references.
    pub brevity_penalty: f64,
    /// Words of the translations.
    pub length: u64,
    /// Words of the references.
    pub reference_length: u64,
    /// What decides the figure, in sacreBLEU's notation.
    pub signature: String,
}

/// The BLEU of translations against one reference each.
///
/// # Panics
/// When there are not as many references as translations.
pub fn bleu<T: AsRef<str>, R: AsRef<str>>(translations: &[T], references: &[R], options: BleuOptions) -> Bleu {
    assert_eq!(translations.len(), references.len(), "one reference each");
    let (mut correct, mut total) = ([0u64; ORDER], [0u64; ORDER]);
    let (mut length, mut reference_length) = (0u64, 0u64);
    for (t, r) in translations.iter().zip(references) {
        let (t, r) = (prepared(t.as_ref(), options), prepared(r.as_ref(), options));
        let (t, r): (Vec<&str>, Vec<&str>) = (words(&t).collect(), words(&r).collect());
        length += t.len() as u64;
        reference_length += r.len() as u64;
        for n in 1..=ORDER {
            let (ours, theirs) = (counts(&t, n), counts(&r, n));
            total[n - 1] += t.len().saturating_sub(n - 1) as u64;
            let clipped = |(gram, &c): (&&[&str], &u64)| c.min(theirs.get(*gram).copied().unwrap_or(0));
            correct[n - 1] += ours.iter().map(clipped).sum::<u64>();
        }
    }
    let brevity_penalty = match (length, reference_length) {
        (0, r) if r > 0 => 0.0,
        (l, r) if l < r => (1.0 - r as f64 / l as f64).exp(),
        _ => 1.0,
    };
    let mut precisions = [0.0; ORDER];
    let mut score = 0.0;
    if correct.iter().any(|&c| c > 0) {
        let mut smooth = 1.0;
        for n in 0..ORDER {
            if total[n] == 0 {
                break;
            }
            precisions[n] = if correct[n] == 0 {
                smooth *= 2.0;
                100.0 / (smooth * total[n] as f64)
            } else {
                100.0 * correct[n] as f64 / total[n] as f64
            };
        }
        // An order without any n-gram makes the whole 0.
        let logs: f64 = precisions.iter().map(|p: &f64| p.ln()).sum();
        score = brevity_penalty * (logs / ORDER as f64).exp();
    }
    let case = if options.lowercase { "lc" } else { "mixed" };
    let version = env!("CARGO_PKG_VERSION");
    let signature = format!("nrefs:1|case:{case}|eff:no|tok:13a|smooth:exp|version:genus-{version}");
    Bleu { score, precisions, brevity_penalty, length, reference_length, signature }
}

fn counts<'a, 'w>(words: &'a [&'w str], n: usize) -> HashMap<&'a [&'w str], u64> {
    let mut counts = HashMap::new();
    words.windows(n).for_each(|gram| *counts.entry(gram).or_insert(0) += 1);
    counts
}

/// White space as Python's `split` has it.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)).filter(|w| !w.is_empty())
}

fn prepared(text: &str, options: BleuOptions) -> String {
    let text = text.trim_end();
    if options.lowercase { tokenize_13a(&text.to_lowercase()) } else { tokenize_13a(text) }
}

/// The rules of mteval-v13a: words and marks set apart by spaces.
fn tokenize_13a(text: &str) -> String {
    static RULES: LazyLock<[(Regex, &'static str); 4]> = LazyLock::new(|| {
        let rule = |pattern: &str| Regex::new(pattern).expect("a constant pattern");
        [
            // Marks, except full stops and commas, apostrophes and hyphens.
            (rule(r"([\{-~\[-` -&\(-\+:-@/])"), " $1 "),
            // Full stops and commas, unless a digit stands before, or behind.
            (rule(r"([^0-9])([\.,])"), "$1 $2 "),
            (rule(r"([\.,])([^0-9])"), " $1 $2"),
            // A hyphen behind a digit.
            (rule(r"([0-9])(-)"), "$1 $2 "),
        ]
    });
    let mut text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if text.contains('&') {
        for (name, mark) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            text = text.replace(name, mark);
        }
    }
    text = format!(" {text} ");
    for (rule, to) in RULES.iter() {
        if let std::borrow::Cow::Owned(replaced) = rule.replace_all(&text, *to) {
            text = replaced;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_set_apart_and_numbers_stay_whole() {
        let cut = |text: &str| words(&tokenize_13a(text)).collect::<Vec<_>>().join(" ");
        assert_eq!(cut("Hello, world!"), "Hello , world !");
        assert_eq!(cut("It's 3.14, or 1,000.5."), "It's 3.14 , or 1,000.5 .");
        assert_eq!(cut("a well-known 1990-2000"), "a well-known 1990 - 2000");
        assert_eq!(cut("&quot;x&quot; &amp;lt; (y)..."), "\" x \" < ( y ) . . .");
    }

    /// What sacreBLEU 2.6.0 gives for the same lines.
    #[test]
    fn figures_are_those_of_sacrebleu() {
        let pairs = [
            ("The cat sat on the mat.", "A cat sat on the mat."),
            ("It's 3.14, or 1,000.5!", "It is 3.14 or 1,000.5!"),
            ("", "something"),
            ("&quot;Well-known&quot; 1990-2000 (maybe)...", "\"Well-known\" 1990-2000 (perhaps)..."),
            ("Ein Mann, der lacht", "ein Mann, der laut lacht."),
            ("no match here at all", "etwas ganz anderes"),
        ];
        let (t, r): (Vec<&str>, Vec<&str>) = pairs.into_iter().unzip();
        let mixed = bleu(&t, &r, BleuOptions::default());
        assert!((mixed.score - 53.10228676100716).abs() < 1e-9, "{mixed:?}");
        assert_eq!((mixed.length, mixed.reference_length), (35, 36));
        assert!((mixed.brevity_penalty - 0.9718328750329812).abs() < 1e-12);
        assert!((mixed.precisions[0] - 71.42857142857143).abs() < 1e-9 && (mixed.precisions[3] - 40.0).abs() < 1e-9);
        let lower = bleu(&t, &r, BleuOptions { lowercase: true });
        assert!((lower.score - 57.0264233553549).abs() < 1e-9, "{lower:?}");
        // Smoothed: no word pair in common.
        let smooth = bleu(&["a b c d e"], &["a x b y c"], BleuOptions::default());
        assert!((smooth.score - 14.058533129758727).abs() < 1e-9, "{smooth:?}");
        assert!((smooth.precisions[2] - 8.333333333333334).abs() < 1e-9);
    }

    #[test]
    fn a_perfect_translation_has_100_and_a_foreign_one_0() {
        let text = ["The cat sat on the mat .", "A dog barks at the cat ."];
        let same = bleu(&text, &text, BleuOptions::default());
        assert!((same.score - 100.0).abs() < 1e-9 && same.brevity_penalty == 1.0, "{same:?}");
        assert_eq!(bleu(&["x y z"], &["a b c"], BleuOptions::default()).score, 0.0);
        assert_eq!(bleu(&["", ""], &text, BleuOptions::default()).score, 0.0);
        let upper = text.map(str::to_uppercase);
        assert!(bleu(&upper, &text, BleuOptions::default()).score < 50.0);
        assert!((bleu(&upper, &text, BleuOptions { lowercase: true }).score - 100.0).abs() < 1e-9);
    }
}
