//! Documents from files.

mod parallel;
mod read;
mod sentences;
mod table;
mod tagged;

pub use parallel::{Pairs, Parallel};
pub use sentences::split_sentences;
pub use tagged::{Tagged, TaggedSentence};

use crate::error::{Result, TextError};
use read::{Lines, clean};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use table::{JsonArray, Rows};

/// Folders nested deeper than this are taken for a loop of links.
const MAX_DEPTH: usize = 32;

/// What a document is in a text file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DocumentSplit {
    /// A file is a document.
    #[default]
    File,
    /// Blank lines separate documents.
    BlankLines,
    /// Every line that is not blank is a document.
    Lines,
}

/// How files are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusOptions {
    /// The field of JSON objects, or the column of Parquet files, that holds the text.
    pub text_field: String,
    /// What a document is in a text file.
    pub split: DocumentSplit,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        CorpusOptions { text_field: "text".into(), split: DocumentSplit::File }
    }
}

/// What was read so far, and what was silently put right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CorpusStats {
    /// Files read.
    pub files: u64,
    /// Documents handed out.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// `CR LF` line ends turned into `LF`.
    pub crlf: u64,
    /// Byte order marks removed.
    pub boms: u64,
    /// Empty files of folders, skipped.
    pub empty_files: u64,
    /// Documents of white space only, skipped.
    pub empty_documents: u64,
}

/// What to hold out for evaluation (`--dev FILE|FRACTION`).
#[derive(Debug, Clone, PartialEq)]
pub enum DevSplit {
    /// This file or folder.
    File(PathBuf),
    /// The last part of the text, between 0 and 1: whole documents where they make up about as much, else a document is cut.
    Fraction(f64),
}

impl FromStr for DevSplit {
    type Err = TextError;

    fn from_str(s: &str) -> Result<Self> {
        match s.parse::<f64>() {
            Ok(f) if f > 0.0 && f < 1.0 => Ok(DevSplit::Fraction(f)),
            Ok(_) if !Path::new(s).exists() => Err(TextError::Argument {
                name: "dev",
                found: s.into(),
                expected: "a file, or a fraction between 0 and 1".into(),
            }),
            _ => Ok(DevSplit::File(s.into())),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    JsonLines,
    Json,
    Parquet,
}

#[derive(Debug)]
enum Source {
    File { path: PathBuf, format: Format, gzip: bool, in_folder: bool },
    Memory { name: String, documents: Vec<String> },
}

/// A place in a corpus: a document, and a byte of its text.
#[derive(Debug, Clone, Copy)]
struct Place {
    document: u64,
    byte: usize,
}

/// The text from one place up to another.
#[derive(Debug, Clone, Copy)]
struct Part {
    from: Place,
    to: Place,
}

const ALL: Part = Part { from: Place { document: 0, byte: 0 }, to: Place { document: u64::MAX, byte: 0 } };

/// A set of documents, read anew each time that it is walked. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Corpus {
    sources: Arc<Vec<Source>>,
    options: CorpusOptions,
    part: Part,
}

impl Corpus {
    /// Files and folders (with their subfolders, in sorted order; hidden files are left out). `.jsonl`, `.ndjson`,
    /// `.json` and `.parquet` are read as such, everything else as text; `.gz` on top of any but Parquet is unpacked.
    ///
    /// # Errors
    /// [`TextError::MissingPath`], [`TextError::EmptyFolder`], [`TextError::EmptyFile`]; contents are looked at later,
    /// by [`documents`](Self::documents).
    pub fn open<P: AsRef<Path>>(paths: &[P], options: CorpusOptions) -> Result<Self> {
        let mut sources = Vec::new();
        for path in paths {
            let path = path.as_ref();
            let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => TextError::MissingPath { path: path.to_owned() },
                _ => TextError::io(path, e),
            })?;
            if meta.is_dir() {
                let before = sources.len();
                walk(path, 0, &mut sources)?;
                if sources.len() == before {
                    return Err(TextError::EmptyFolder { path: path.to_owned() });
                }
            } else if meta.is_file() && meta.len() == 0 {
                return Err(TextError::EmptyFile { path: path.to_owned() });
            } else {
                sources.push(source(path, false));
            }
        }
        if sources.is_empty() {
            return Err(TextError::Argument {
                name: "data",
                found: "no path".into(),
                expected: "files or folders".into(),
            });
        }
        Ok(Corpus { sources: Arc::new(sources), options, part: ALL })
    }

    /// Documents that are in memory already.
    pub fn from_documents(name: impl Into<String>, documents: Vec<String>) -> Self {
        let sources = Arc::new(vec![Source::Memory { name: name.into(), documents }]);
        Corpus { sources, options: CorpusOptions::default(), part: ALL }
    }

    /// The files (or names of what is in memory), in the order of reading.
    pub fn names(&self) -> Vec<String> {
        let name = |s: &Source| match s {
            Source::File { path, .. } => path.display().to_string(),
            Source::Memory { name, .. } => name.clone(),
        };
        self.sources.iter().map(name).collect()
    }

    /// Walks the documents. An error ends the walk.
    pub fn documents(&self) -> Documents {
        Documents {
            corpus: self.clone(),
            next_source: 0,
            seen: 0,
            reader: Reader::None,
            stats: CorpusStats::default(),
            done: false,
        }
    }

    /// Splits off what is held out: (training, held out). The split depends on nothing but the documents.
    ///
    /// # Errors
    /// Those of opening and of walking; [`TextError::Argument`] for a fraction outside (0, 1); [`TextError::TooShort`]
    /// when nothing would be left on one side.
    pub fn split_dev(&self, dev: &DevSplit) -> Result<(Corpus, Corpus)> {
        let fraction = match dev {
            DevSplit::File(path) => return Ok((self.clone(), Corpus::open(&[path], self.options.clone())?)),
            DevSplit::Fraction(f) if *f > 0.0 && *f < 1.0 => *f,
            DevSplit::Fraction(f) => {
                let expected = "a fraction between 0 and 1".into();
                return Err(TextError::Argument { name: "dev", found: f.to_string(), expected });
            }
        };
        let lengths: Vec<usize> = self.documents().map(|d| Ok(d?.len())).collect::<Result<_>>()?;
        let total: usize = lengths.iter().sum();
        let wanted = total as f64 * fraction;
        // The document in which the wanted part begins, and where that document starts.
        let (mut index, mut start) = (0, 0);
        while index + 1 < lengths.len() && (start + lengths[index]) as f64 <= total as f64 - wanted {
            start += lengths[index];
            index += 1;
        }
        let length = lengths.get(index).copied().unwrap_or_default();
        // Whole documents, where that gives about as much as wanted: between half and twice of it.
        let held = |boundary: usize| total - if boundary == index { start } else { start + length };
        let distance = |boundary: &usize| (held(*boundary) as f64 - wanted).abs();
        let whole = [index, index + 1]
            .into_iter()
            .filter(|&b| b > 0 && b < lengths.len())
            .filter(|&b| (0.5..=2.0).contains(&(held(b) as f64 / wanted)))
            .min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let from = self.part.from;
        let cut = match whole {
            Some(boundary) => Place { document: from.document + boundary as u64, byte: 0 },
            None => {
                let text = self.documents().nth(index).transpose()?.unwrap_or_default();
                let before = (total as f64 - wanted - start as f64) / length.max(1) as f64;
                let at = cut_after(&text, before).ok_or_else(|| TextError::TooShort {
                    what: "holding out a part".into(),
                    found: text.chars().count(),
                    needed: 2,
                    unit: "characters",
                })?;
                let skipped = if index == 0 { from.byte } else { 0 };
                Place { document: from.document + index as u64, byte: at + skipped }
            }
        };
        let part = |from, to| Corpus { part: Part { from, to }, ..self.clone() };
        Ok((part(from, cut), part(cut, self.part.to)))
    }
}

/// Where to cut a text so that about `fraction` of it is before: after the next line end, else after the next space,
/// else between characters. `None` when a side would be empty.
fn cut_after(text: &str, fraction: f64) -> Option<usize> {
    let mut target = (text.len() as f64 * fraction) as usize;
    while !text.is_char_boundary(target) {
        target += 1;
    }
    let after = |c: char| text[target..].find(c).map(|i| target + i + c.len_utf8());
    let leaves_text = |at: &usize| !text[..*at].trim().is_empty() && !text[*at..].trim().is_empty();
    let limit = text.len() - (text.len() - target) / 2;
    [after('\n').filter(|at| *at <= limit), after(' ').filter(|at| *at <= limit), Some(target)]
        .into_iter()
        .flatten()
        .find(leaves_text)
}

fn walk(folder: &Path, depth: usize, sources: &mut Vec<Source>) -> Result<()> {
    if depth > MAX_DEPTH {
        let message = format!("folders nested more than {MAX_DEPTH} deep (a loop of links?)");
        return Err(TextError::io(folder, std::io::Error::other(message)));
    }
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(folder).and_then(Iterator::collect);
    let mut entries = entries.map_err(|e| TextError::io(folder, e))?;
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let meta = std::fs::metadata(&path).map_err(|e| TextError::io(&path, e))?;
        if meta.is_dir() {
            walk(&path, depth + 1, sources)?;
        } else if meta.is_file() {
            sources.push(source(&path, true));
        }
    }
    Ok(())
}

fn source(path: &Path, in_folder: bool) -> Source {
    let extension = |p: &Path| p.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let gzip = extension(path) == "gz";
    let inner = if gzip { path.with_extension("") } else { path.to_owned() };
    let format = match extension(&inner).as_str() {
        "jsonl" | "ndjson" => Format::JsonLines,
        "json" => Format::Json,
        "parquet" => Format::Parquet,
        _ => Format::Text,
    };
    Source::File { path: path.to_owned(), format, gzip, in_folder }
}

/// The documents of a [`Corpus`], one after another.
pub struct Documents {
    corpus: Corpus,
    next_source: usize,
    /// Documents of the whole corpus so far, those outside the part included.
    seen: u64,
    reader: Reader,
    stats: CorpusStats,
    done: bool,
}

enum Reader {
    None,
    Whole(String),
    Lines(Lines, DocumentSplit),
    Json(Lines),
    Array(JsonArray),
    Rows(Box<Rows>),
    Memory(usize),
}

impl std::fmt::Debug for Documents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Documents").field("corpus", &self.corpus).field("stats", &self.stats).finish()
    }
}

impl Documents {
    /// What was read so far.
    pub fn stats(&self) -> CorpusStats {
        self.stats
    }

    /// Opens the next source; false when there is none.
    fn open_next(&mut self) -> Result<bool> {
        let sources = self.corpus.sources.clone();
        let index = self.next_source;
        let Some(source) = sources.get(index) else {
            return Ok(false);
        };
        self.next_source += 1;
        self.stats.files += 1;
        let (path, format, gzip, in_folder) = match source {
            Source::Memory { .. } => {
                self.reader = Reader::Memory(0);
                return Ok(true);
            }
            Source::File { path, format, gzip, in_folder } => (path, *format, *gzip, *in_folder),
        };
        if format == Format::Parquet {
            if gzip {
                let message = "gzip around Parquet is not read; unpack it".to_owned();
                return Err(TextError::Parquet { path: path.clone(), message });
            }
            self.reader = Reader::Rows(Box::new(Rows::open(path, &self.corpus.options.text_field)?));
            return Ok(true);
        }
        let mut lines = Lines::open(path, gzip)?;
        let Some(first) = lines.first_byte(&mut self.stats)? else {
            if in_folder {
                self.stats.empty_files += 1;
                self.reader = Reader::None;
                return Ok(true);
            }
            return Err(TextError::EmptyFile { path: path.clone() });
        };
        self.reader = match format {
            Format::Text if self.corpus.options.split == DocumentSplit::File => {
                Reader::Whole(lines.rest(&mut self.stats)?)
            }
            Format::Text => Reader::Lines(lines, self.corpus.options.split),
            Format::Json if first == b'[' => {
                Reader::Array(JsonArray::parse(path, &lines.rest(&mut self.stats)?, &self.corpus.options.text_field)?)
            }
            _ => Reader::Json(lines),
        };
        Ok(true)
    }

    /// The next document of the open source.
    fn read_document(&mut self) -> Result<Option<String>> {
        let field = &self.corpus.options.text_field;
        match &mut self.reader {
            Reader::None => Ok(None),
            Reader::Whole(_) => match std::mem::replace(&mut self.reader, Reader::None) {
                Reader::Whole(text) => Ok(Some(text)),
                _ => Ok(None),
            },
            Reader::Lines(lines, DocumentSplit::BlankLines) => {
                let mut document = String::new();
                while let Some(line) = lines.next_line(&mut self.stats)? {
                    if !line.trim().is_empty() {
                        if !document.is_empty() {
                            document.push('\n');
                        }
                        document.push_str(&line);
                    } else if !document.is_empty() {
                        break;
                    }
                }
                Ok(Some(document).filter(|d| !d.is_empty()))
            }
            Reader::Lines(lines, _) => {
                while let Some(line) = lines.next_line(&mut self.stats)? {
                    if !line.trim().is_empty() {
                        return Ok(Some(line));
                    }
                }
                Ok(None)
            }
            Reader::Json(lines) => {
                while let Some(line) = lines.next_line(&mut self.stats)? {
                    if !line.trim().is_empty() {
                        return table::json_line(lines.path(), lines.number(), &line, field).map(Some);
                    }
                }
                Ok(None)
            }
            Reader::Array(array) => array.next(field),
            Reader::Rows(rows) => rows.next(),
            Reader::Memory(i) => match self.corpus.sources.get(self.next_source.wrapping_sub(1)) {
                Some(Source::Memory { documents, .. }) => {
                    *i += 1;
                    Ok(documents.get(*i - 1).cloned())
                }
                _ => Ok(None),
            },
        }
    }

    fn advance(&mut self) -> Result<Option<String>> {
        let Part { from, to } = self.corpus.part;
        loop {
            if self.seen > to.document || (self.seen == to.document && to.byte == 0) {
                return Ok(None);
            }
            let Some(document) = self.read_document()? else {
                if self.open_next()? {
                    continue;
                }
                if self.seen == 0 {
                    return Err(TextError::NoText { names: shortened(self.corpus.names()) });
                }
                return Ok(None);
            };
            // Text files are clean already; fields of JSON and Parquet are looked at here.
            let mut document = match &self.reader {
                Reader::Json(lines) => clean::field(document, lines.path(), lines.number(), &mut self.stats)?,
                Reader::Array(array) => clean::field(document, array.path(), array.number(), &mut self.stats)?,
                Reader::Rows(rows) => clean::field(document, rows.path(), rows.number(), &mut self.stats)?,
                _ => document,
            };
            if document.trim().is_empty() {
                self.stats.empty_documents += 1;
                continue;
            }
            let index = self.seen;
            self.seen += 1;
            if index < from.document {
                continue;
            }
            // The file may have changed since the split; a cut elsewhere is then moved to a character's start.
            if index == to.document {
                document.truncate(floor(&document, to.byte));
            }
            if index == from.document {
                document.drain(..floor(&document, from.byte));
            }
            self.stats.documents += 1;
            self.stats.bytes += document.len() as u64;
            return Ok(Some(document));
        }
    }
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

fn shortened(mut names: Vec<String>) -> Vec<String> {
    if names.len() > 4 {
        let more = names.len() - 3;
        names.truncate(3);
        names.push(format!("{more} more"));
    }
    names
}

impl Iterator for Documents {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        if self.done {
            return None;
        }
        let next = self.advance().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}
