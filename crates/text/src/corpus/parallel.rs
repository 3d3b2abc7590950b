//! Parallel text: files of which line `i` of one is the translation of line `i` of the other.

use super::read::Lines;
use super::{Corpus, CorpusStats};
use crate::error::{Result, TextError};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Pairs of lines, read anew each time that they are walked. Cheap to clone. Empty lines count like any other.
#[derive(Debug, Clone)]
pub struct Parallel {
    files: Vec<(PathBuf, PathBuf)>,
    /// Which pairs, counted over all files.
    part: Range<u64>,
}

impl Parallel {
    /// Text files, in order: each source file goes with the target file at its place. `.gz` is unpacked.
    ///
    /// # Errors
    /// When there is no file, there are not as many of one side as of the other, or one is missing or empty. Lines are counted
    /// later, by [`Parallel::pairs`].
    pub fn open<P: AsRef<Path>>(sources: &[P], targets: &[P]) -> Result<Self> {
        if sources.is_empty() || sources.len() != targets.len() {
            let found = format!("{} source file(s) and {} target file(s)", sources.len(), targets.len());
            let expected = "at least one of each, as many of one as of the other".into();
            return Err(TextError::Argument { name: "source and target", found, expected });
        }
        let mut files = Vec::new();
        for (source, target) in sources.iter().zip(targets) {
            // The corpus knows what a file must be.
            for path in [source, target] {
                if path.as_ref().is_dir() {
                    let (found, expected) = (format!("the folder {}", path.as_ref().display()), "a text file".into());
                    return Err(TextError::Argument { name: "source and target", found, expected });
                }
                Corpus::open(&[path], super::CorpusOptions::default())?;
            }
            files.push((source.as_ref().to_owned(), target.as_ref().to_owned()));
        }
        Ok(Parallel { files, part: 0..u64::MAX })
    }

    /// Walks the pairs. An error ends the walk.
    pub fn pairs(&self) -> Pairs {
        Pairs { text: self.clone(), next_file: 0, seen: 0, open: None, stats: CorpusStats::default(), done: false }
    }

    /// Splits off the last part: (the rest, that part).
    ///
    /// # Errors
    /// Those of walking; [`TextError::Argument`] for a fraction outside (0, 1); [`TextError::TooShort`] when nothing would be left
    /// on one side.
    pub fn split_dev(&self, fraction: f64) -> Result<(Self, Self)> {
        if !(fraction > 0.0 && fraction < 1.0) {
            let expected = "between 0 and 1".into();
            return Err(TextError::Argument { name: "dev", found: fraction.to_string(), expected });
        }
        let mut n = 0;
        for pair in self.pairs() {
            pair?;
            n += 1;
        }
        let held_out = ((n as f64 * fraction).round() as u64).max(1);
        if held_out >= n {
            let what = format!("holding out {fraction} of the pairs");
            return Err(TextError::TooShort { what, found: n as usize, needed: 2, unit: "pairs" });
        }
        let at = self.part.start + n - held_out;
        let part = |part| Parallel { files: self.files.clone(), part };
        Ok((part(self.part.start..at), part(at..self.part.end)))
    }

    /// All lines of both sides, pair by pair: what a shared vocabulary is learned from.
    pub fn lines(&self) -> impl Iterator<Item = Result<String>> + Send + use<> {
        self.pairs().flat_map(|pair| match pair {
            Ok((source, target)) => vec![Ok(source), Ok(target)],
            Err(e) => vec![Err(e)],
        })
    }
}

/// A walk over pairs of lines.
pub struct Pairs {
    text: Parallel,
    next_file: usize,
    /// Pairs read so far, those before the part included.
    seen: u64,
    open: Option<(Lines, Lines)>,
    stats: CorpusStats,
    done: bool,
}

impl Pairs {
    /// What was put right on the way so far.
    pub fn stats(&self) -> CorpusStats {
        self.stats
    }

    fn read(&mut self) -> Result<Option<(String, String)>> {
        while self.seen < self.text.part.end {
            let Some((source, target)) = &mut self.open else {
                let Some((source, target)) = self.text.files.get(self.next_file) else { return Ok(None) };
                self.next_file += 1;
                let mut open = |path: &Path| {
                    let gzip = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
                    let mut lines = Lines::open(path, gzip)?;
                    lines.first_byte(&mut self.stats)?;
                    Ok::<_, TextError>(lines)
                };
                self.open = Some((open(source)?, open(target)?));
                self.stats.files += 2;
                continue;
            };
            let pair = (source.next_line(&mut self.stats)?, target.next_line(&mut self.stats)?);
            match pair {
                (Some(s), Some(t)) => {
                    self.seen += 1;
                    if self.seen > self.text.part.start {
                        self.stats.documents += 1;
                        return Ok(Some((s, t)));
                    }
                }
                (None, None) => self.open = None,
                (longer, _) => {
                    let (long, short) = if longer.is_some() { (source, target) } else { (target, source) };
                    return Err(TextError::UnequalLines {
                        longer: long.path().to_owned(),
                        shorter: short.path().to_owned(),
                        line: long.line(),
                    });
                }
            }
        }
        Ok(None)
    }
}

impl Iterator for Pairs {
    type Item = Result<(String, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let pair = self.read().transpose();
        self.done = !matches!(pair, Some(Ok(_)));
        pair
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    #[test]
    fn pairs_keep_their_lines_over_files_and_parts() {
        let dir = folder(&[
            ("a.en", "\u{feff}one\r\n\nthree\n"),
            ("a.de", "eins\nleer\ndrei"),
            ("b.en", "4\n5"),
            ("b.de", "vier\nfünf\n"),
        ]);
        let path = |name: &str| dir.path().join(name);
        let text = Parallel::open(&[path("a.en"), path("b.en")], &[path("a.de"), path("b.de")]).unwrap();
        let all: Vec<_> = text.pairs().collect::<Result<Vec<_>>>().unwrap();
        let pair = |s: &str, t: &str| (s.to_owned(), t.to_owned());
        let expected =
            [pair("one", "eins"), pair("", "leer"), pair("three", "drei"), pair("4", "vier"), pair("5", "fünf")];
        assert_eq!(all, expected);
        let (train, dev) = text.split_dev(0.4).unwrap();
        let of = |t: &Parallel| t.pairs().collect::<Result<Vec<_>>>().unwrap();
        assert_eq!((of(&train), of(&dev)), (expected[..3].to_vec(), expected[3..].to_vec()));
        assert_eq!(train.lines().count(), 6);
        assert!(matches!(text.split_dev(0.99), Err(TextError::TooShort { .. })));
    }

    #[test]
    fn the_line_without_a_partner_is_named() {
        let dir = folder(&[("a", "1\n2\n3\n"), ("b", "1\n2\n"), ("empty", "")]);
        let path = |name: &str| dir.path().join(name);
        for (source, target) in [("a", "b"), ("b", "a")] {
            let text = Parallel::open(&[path(source)], &[path(target)]).unwrap();
            let error = text.pairs().collect::<Result<Vec<_>>>().unwrap_err();
            assert!(
                matches!(&error, TextError::UnequalLines { longer, shorter, line: 3 }
                    if *longer == path("a") && *shorter == path("b")),
                "{error}"
            );
            assert_eq!(text.pairs().count(), 3, "the error ends the walk");
        }
        assert!(Parallel::open(&[path("a")], &[path("empty")]).is_err());
        assert!(Parallel::open(&[path("a"), path("b")], &[path("a")]).is_err());
        assert!(matches!(Parallel::open(&[path("no")], &[path("a")]), Err(TextError::MissingPath { .. })));
    }
}
