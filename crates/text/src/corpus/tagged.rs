//! Sentences whose words have tags: CoNLL-U, and files with a word and its tag a line.

use super::read::Lines;
use super::{Corpus, CorpusStats};
use crate::error::{Result, TextError};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// Words with a tag each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaggedSentence {
    /// The words.
    pub words: Vec<String>,
    /// Their tags, as many.
    pub tags: Vec<String>,
}

/// Tagged sentences, in memory. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    sentences: Arc<Vec<TaggedSentence>>,
}

/// How a line is divided.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// Ten columns behind tabs; the second is the word, the fourth its universal part of speech.
    ConllU,
    /// Columns behind tabs or white space; the first is the word, the last its tag.
    Columns,
}

impl Form {
    /// By the first line with columns, in a file of any name.
    fn of(line: &str) -> Self {
        let mut fields = line.split('\t');
        let numbered = fields.next().is_some_and(|id| id.starts_with(|c: char| c.is_ascii_digit()));
        if numbered && fields.count() == 9 { Form::ConllU } else { Form::Columns }
    }
}

impl Tagged {
    /// Reads files: blank lines separate sentences. In CoNLL-U (known by its ten columns, or by the ending `.conllu`) a word is `FORM`
    /// and its tag `UPOS`; comments, ranges of tokens and empty nodes are passed over. Elsewhere a word is the first column and its
    /// tag the last; columns are separated by tabs, where a line has some, or else by spaces. `.gz` is unpacked.
    ///
    /// # Errors
    /// When a file cannot be read or holds no sentence; a line without word and tag is named.
    pub fn open<P: AsRef<Path>>(files: &[P]) -> Result<Self> {
        let mut sentences = Vec::new();
        if files.is_empty() {
            let expected = "at least one file with words and tags".into();
            return Err(TextError::Argument { name: "data", found: "no file".into(), expected });
        }
        for path in files {
            let path = path.as_ref();
            if path.is_dir() {
                let (found, expected) = (format!("the folder {}", path.display()), "a file with words and tags".into());
                return Err(TextError::Argument { name: "data", found, expected });
            }
            // The corpus knows what a file must be.
            Corpus::open(&[path], super::CorpusOptions::default())?;
            let before = sentences.len();
            read(path, &mut sentences)?;
            if sentences.len() == before {
                return Err(TextError::NoText { names: vec![path.display().to_string()] });
            }
        }
        Ok(Tagged { sentences: Arc::new(sentences) })
    }

    /// The sentences.
    pub fn sentences(&self) -> &[TaggedSentence] {
        &self.sentences
    }

    /// All tags that occur, sorted.
    pub fn labels(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.sentences.iter().flat_map(|s| &s.tags).collect();
        all.into_iter().cloned().collect()
    }

    /// The sentences as lines of words.
    pub fn lines(&self) -> impl Iterator<Item = Result<String>> + Send + use<> {
        let sentences = Arc::clone(&self.sentences);
        (0..sentences.len()).map(move |i| Ok(sentences[i].words.join(" ")))
    }

    /// Splits off the last part: (the rest, that part).
    ///
    /// # Errors
    /// [`TextError::Argument`] for a fraction outside (0, 1); [`TextError::TooShort`] when nothing would be left on one side.
    pub fn split_dev(&self, fraction: f64) -> Result<(Self, Self)> {
        if !(fraction > 0.0 && fraction < 1.0) {
            let expected = "between 0 and 1".into();
            return Err(TextError::Argument { name: "dev", found: fraction.to_string(), expected });
        }
        let n = self.sentences.len();
        let held_out = ((n as f64 * fraction).round() as usize).max(1);
        if held_out >= n {
            let what = format!("holding out {fraction} of the sentences");
            return Err(TextError::TooShort { what, found: n, needed: 2, unit: "sentences" });
        }
        let (train, dev) = self.sentences.split_at(n - held_out);
        let of = |part: &[TaggedSentence]| Tagged { sentences: Arc::new(part.to_vec()) };
        Ok((of(train), of(dev)))
    }
}

fn read(path: &Path, sentences: &mut Vec<TaggedSentence>) -> Result<()> {
    let ends = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
    let mut stats = CorpusStats::default();
    let mut lines = Lines::open(path, ends("gz"))?;
    lines.first_byte(&mut stats)?;
    let mut form = ends("conllu").then_some(Form::ConllU);
    let mut sentence = TaggedSentence::default();
    let mut finish = |sentence: &mut TaggedSentence| {
        if !sentence.words.is_empty() {
            sentences.push(std::mem::take(sentence));
        }
    };
    while let Some(line) = lines.next_line(&mut stats)? {
        if line.trim().is_empty() {
            finish(&mut sentence);
            continue;
        }
        // A heading of CoNLL-U; elsewhere a line that begins so may be a word.
        if line.starts_with('#') && (form == Some(Form::ConllU) || (form.is_none() && line.starts_with("# "))) {
            continue;
        }
        let wrong = |found: String, expected: &str| TextError::TaggedLine {
            path: path.to_owned(),
            line: lines.line(),
            found,
            expected: expected.to_owned(),
        };
        let (word, tag) = match *form.get_or_insert_with(|| Form::of(&line)) {
            Form::ConllU => {
                let fields: Vec<&str> = line.split('\t').collect();
                if fields.len() != 10 {
                    return Err(wrong(format!("{} columns", fields.len()), "10 columns behind tabs (CoNLL-U)"));
                }
                if fields[0].contains(['-', '.']) {
                    continue;
                }
                if fields[0].parse::<u32>().is_err() {
                    return Err(wrong(format!("{:?} in the first column", fields[0]), "a word's number"));
                }
                if fields[3] == "_" {
                    return Err(wrong("\"_\" in the fourth column".into(), "a part of speech"));
                }
                (fields[1], fields[3])
            }
            Form::Columns => {
                let fields: Vec<&str> = match line.contains('\t') {
                    true => line.split('\t').map(str::trim).collect(),
                    false => line.split_whitespace().collect(),
                };
                if fields[0] == "-DOCSTART-" {
                    finish(&mut sentence);
                    continue;
                }
                if fields.len() < 2 {
                    return Err(wrong(format!("one column ({:?})", fields[0]), "a word and its tag"));
                }
                (fields[0], fields[fields.len() - 1])
            }
        };
        if word.trim().is_empty() || tag.is_empty() {
            let found = if tag.is_empty() { "no tag" } else { "no word" };
            return Err(wrong(found.into(), "a word and its tag"));
        }
        sentence.words.push(word.to_owned());
        sentence.tags.push(tag.to_owned());
    }
    finish(&mut sentence);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(name: &str, text: &str) -> Result<Tagged> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Tagged::open(&[path])
    }

    fn pairs(t: &Tagged) -> Vec<Vec<(String, String)>> {
        let of = |s: &'_ TaggedSentence| -> Vec<(String, String)> {
            s.words.iter().cloned().zip(s.tags.iter().cloned()).collect()
        };
        t.sentences().iter().map(of).collect()
    }

    fn sentence(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(w, t)| (w.to_string(), t.to_string())).collect()
    }

    #[test]
    fn both_forms_are_read() {
        let row = |id: &str, word: &str, tag: &str| format!("{id}\t{word}\tx\t{tag}\tX\t_\t0\troot\t_\t_\n");
        let text = [
            "# sent_id = 1\n".to_owned(),
            row("1-2", "don't", "_"),
            row("1", "do", "AUX"),
            row("2", "n't", "PART"),
            row("2.1", "go", "VERB"),
            "\n\n# text = New York\n".into(),
            row("1", "New York", "PROPN"),
        ]
        .concat();
        for name in ["a.conllu", "a.txt"] {
            let t = open(name, &text).unwrap();
            assert_eq!(pairs(&t), [sentence(&[("do", "AUX"), ("n't", "PART")]), sentence(&[("New York", "PROPN")])]);
            assert_eq!(t.labels(), ["AUX", "PART", "PROPN"]);
        }
        let t =
            open("b", "\u{feff}-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\r\n#tag O\n\n\nin\tO\nNew York\tB-LOC").unwrap();
        assert_eq!(
            pairs(&t),
            [sentence(&[("EU", "B-ORG"), ("#tag", "O")]), sentence(&[("in", "O"), ("New York", "B-LOC")])]
        );
        assert_eq!(t.lines().map(Result::unwrap).collect::<Vec<_>>(), ["EU #tag", "in New York"]);
        let (a, b) = t.split_dev(0.5).unwrap();
        assert_eq!((a.sentences().len(), b.sentences()[0].words.len()), (1, 2));
        assert!(a.split_dev(0.5).is_err());
    }

    #[test]
    fn a_bad_line_is_named() {
        for (name, text, expected) in [
            ("x", "a O\n\nlonely\n", "line 3: found one column (\"lonely\"), expected a word and its tag"),
            ("x", "a\tO\nb\t\n", "line 2: found no tag"),
            ("x", "\tO\n", "line 1: found no word"),
            ("x.conllu", "1\ta\tb\n", "line 1: found 3 columns, expected 10"),
            ("x.conllu", "a\ta\tx\tX\tX\t_\t0\troot\t_\t_\n", "line 1: found \"a\" in the first column"),
            ("x.conllu", "1\ta\tx\t_\tX\t_\t0\troot\t_\t_\n", "line 1: found \"_\" in the fourth"),
            ("x", "\n \n", "no text in"),
        ] {
            let message = open(name, text).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("/x"), "{message}");
        }
    }
}
