//! Bytes to clean text: UTF-8 checked, byte order mark removed, line ends unified.

use super::CorpusStats;
use crate::error::{Result, TextError};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// A file read line by line, or to its end.
pub(super) struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    /// Bytes taken so far.
    offset: u64,
    line: u64,
}

impl Lines {
    pub(super) fn open(path: &Path, gzip: bool) -> Result<Self> {
        let file = File::open(path).map_err(|e| TextError::io(path, e))?;
        let file = BufReader::with_capacity(1 << 16, file);
        let reader: Box<dyn BufRead + Send> = match gzip {
            true => Box::new(BufReader::with_capacity(1 << 16, flate2::bufread::MultiGzDecoder::new(file))),
            false => Box::new(file),
        };
        Ok(Lines { path: path.to_owned(), reader, offset: 0, line: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The line that was read last, from 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The line that was read last, for messages.
    pub(super) fn number(&self) -> String {
        format!("line {}", self.line)
    }

    /// Skips the byte order mark and looks at the first byte; `None` when there is none.
    pub(super) fn first_byte(&mut self, stats: &mut CorpusStats) -> Result<Option<u8>> {
        let buffer = self.reader.fill_buf().map_err(|e| TextError::io(&self.path, e))?;
        if buffer.starts_with(BOM) {
            self.reader.consume(BOM.len());
            self.offset = BOM.len() as u64;
            stats.boms += 1;
        }
        let buffer = self.reader.fill_buf().map_err(|e| TextError::io(&self.path, e))?;
        Ok(buffer.first().copied())
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self, stats: &mut CorpusStats) -> Result<String> {
        let mut bytes = Vec::new();
        self.reader.read_to_end(&mut bytes).map_err(|e| TextError::io(&self.path, e))?;
        let text = clean::bytes(bytes, &self.path, self.offset)?;
        Ok(clean::line_ends(text, stats))
    }

    /// The next line, without its end.
    pub(super) fn next_line(&mut self, stats: &mut CorpusStats) -> Result<Option<String>> {
        let mut bytes = Vec::new();
        let n = self.reader.read_until(b'\n', &mut bytes).map_err(|e| TextError::io(&self.path, e))?;
        if n == 0 {
            return Ok(None);
        }
        self.line += 1;
        if bytes.ends_with(b"\n") {
            bytes.pop();
            if bytes.ends_with(b"\r") {
                bytes.pop();
                stats.crlf += 1;
            }
        }
        let text = clean::bytes(bytes, &self.path, self.offset)?;
        self.offset += n as u64;
        Ok(Some(text))
    }
}

pub(super) mod clean {
    use super::*;

    /// Bytes that must be text; `offset` is where they start in the file.
    pub(in crate::corpus) fn bytes(bytes: Vec<u8>, path: &Path, offset: u64) -> Result<String> {
        if let Some(at) = memchr::memchr(0, &bytes) {
            // Bytes that are not UTF-8 before the NUL say more about the file.
            let place = format!("at byte {}", offset + at as u64);
            if std::str::from_utf8(&bytes[..at]).is_ok() {
                return Err(TextError::NulByte { path: path.to_owned(), place });
            }
        }
        String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            TextError::InvalidUtf8 { path: path.to_owned(), offset: offset + at as u64, found: e.as_bytes()[at] }
        })
    }

    /// `CR LF` to `LF`, counted.
    pub(in crate::corpus) fn line_ends(text: String, stats: &mut CorpusStats) -> String {
        let count = memchr::memmem::find_iter(text.as_bytes(), b"\r\n").count();
        if count == 0 {
            return text;
        }
        stats.crlf += count as u64;
        text.replace("\r\n", "\n")
    }

    /// The text of a field of a structured file.
    pub(in crate::corpus) fn field(
        mut text: String,
        path: &Path,
        number: String,
        stats: &mut CorpusStats,
    ) -> Result<String> {
        if text.contains('\0') {
            return Err(TextError::NulByte { path: path.to_owned(), place: format!("in {number}") });
        }
        if text.starts_with('\u{feff}') {
            text.drain(..'\u{feff}'.len_utf8());
            stats.boms += 1;
        }
        Ok(line_ends(text, stats))
    }
}
