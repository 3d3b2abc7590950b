//! Reading JSON files (config.json, generation_config.json, indexes) with errors that name file, field, value and place.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

use crate::error::shorten;
use crate::{Error, Result};

/// Longest JSON file that is read: 16 MiB (configurations are a few KB).
pub const MAX_JSON: u64 = 16 << 20;

/// A JSON file that has been read and is an object, kept with its path so that later errors can name it.
#[derive(Debug, Clone)]
pub struct JsonFile {
    path: PathBuf,
    value: Value,
}

impl JsonFile {
    /// Read a file.
    ///
    /// # Errors
    /// [`Error::Io`] (missing, unreadable), [`Error::Json`] (not JSON; line and column), [`Error::Malformed`] (longer than
    /// [`MAX_JSON`], or not an object).
    pub fn open(path: impl AsRef<Path>) -> Result<JsonFile> {
        Self::open_bounded(path.as_ref(), MAX_JSON)
    }

    /// Like [`JsonFile::open`], but a file that does not exist is `None`.
    ///
    /// # Errors
    /// As [`JsonFile::open`].
    pub fn open_optional(path: impl AsRef<Path>) -> Result<Option<JsonFile>> {
        match Self::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn open_bounded(path: &Path, limit: u64) -> Result<JsonFile> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut text = Vec::new();
        file.take(limit + 1).read_to_end(&mut text).map_err(Error::io("read", path))?;
        if text.len() as u64 > limit {
            return Err(Error::malformed(path, "file size", "more", format!("at most {limit} bytes")));
        }
        let value: Value = serde_json::from_slice(&text).map_err(|e| Error::Json {
            file: path.to_path_buf(),
            line: e.line(),
            column: e.column(),
            problem: without_place(&e),
        })?;
        if !value.is_object() {
            let found = shorten(&value.to_string(), 80);
            return Err(Error::malformed(path, "content", found, "a JSON object"));
        }
        Ok(JsonFile { path: path.to_path_buf(), value })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// A field of the object.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.value.get(field)
    }

    /// Read the content as `T`.
    ///
    /// # Errors
    /// [`Error::Field`]: which field, what was found there, what was expected.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_path_to_error::deserialize(&self.value).map_err(|e| {
            let found = lookup(&self.value, e.path());
            let path = e.path().to_string();
            Error::Field {
                file: self.path.clone(),
                field: if path == "." { "(the object itself)".into() } else { shorten(&path, 200) },
                found: found.map_or_else(|| "nothing".into(), |v| shorten(&v.to_string(), 80)),
                problem: shorten(&without_place(e.inner()), 300),
            }
        })
    }

    /// An error about one field of this file, for checks that go beyond types ("must divide d_model").
    pub fn field_error(&self, field: &str, expected: impl Into<String>) -> Error {
        let mut at = Some(&self.value);
        for part in field.split('.') {
            at = at.and_then(|v| match part.parse::<usize>() {
                Ok(i) if v.is_array() => v.get(i),
                _ => v.get(part),
            });
        }
        Error::Field {
            file: self.path.clone(),
            field: field.into(),
            found: at.map_or_else(|| "nothing".into(), |v| shorten(&v.to_string(), 80)),
            problem: format!("expected {}", expected.into()),
        }
    }
}

/// Read a JSON file as `T`: [`JsonFile::open`] and [`JsonFile::parse`] in one.
///
/// # Errors
/// As those.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    JsonFile::open(path)?.parse()
}

/// [`read_json`] with another bound than [`MAX_JSON`].
pub(crate) fn read_json_bounded<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    JsonFile::open_bounded(path, limit)?.parse()
}

/// serde_json's message without its " at line 1 column 2", which the error variants carry apart.
fn without_place(e: &serde_json::Error) -> String {
    let text = e.to_string();
    match text.rfind(" at line ") {
        Some(at) if e.line() != 0 => text[..at].to_string(),
        _ => text,
    }
}

/// The value at a path, or the nearest enclosing thing that exists when the path ends in a missing field.
fn lookup<'v>(mut value: &'v Value, path: &serde_path_to_error::Path) -> Option<&'v Value> {
    for segment in path.iter() {
        value = match segment {
            Segment::Seq { index } => value.get(*index)?,
            Segment::Map { key } => value.get(key.as_str())?,
            // An enum's variant names no further step into the JSON; an unknown step cannot be followed.
            Segment::Enum { .. } | Segment::Unknown => continue,
        };
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug, PartialEq)]
    struct Config {
        n_layer: usize,
        scaling: Option<Scaling>,
        layers: Option<Vec<String>>,
    }

    #[derive(serde::Deserialize, Debug, PartialEq)]
    struct Scaling {
        factor: f32,
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn message(text: &str) -> String {
        let (_dir, path) = file(text);
        read_json::<Config>(&path).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_file_field_and_value() {
        let m = message(r#"{"n_layer": -2}"#);
        assert!(m.contains("config.json") && m.contains("`n_layer`") && m.contains("-2"), "{m}");
        let m = message(r#"{"n_layer": 2, "scaling": {"factor": "eight"}}"#);
        assert!(m.contains("`scaling.factor`") && m.contains("eight"), "{m}");
        let m = message(r#"{"n_layer": 2, "layers": ["a", 7]}"#);
        assert!(m.contains("`layers[1]`") && m.contains("found 7"), "{m}");
        let m = message("{}");
        assert!(m.contains("missing field `n_layer`"), "{m}");
    }

    #[test]
    fn broken_json_says_where() {
        let m = message("{\n  \"n_layer\": 2,\n}");
        assert!(m.contains("line 3, column 1"), "{m}");
        assert!(message("[1]").contains("a JSON object"));
        let (dir, path) = file("{}");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(read_json::<Config>(&path), Err(Error::Io { .. })));
        assert!(JsonFile::open_optional(&path).unwrap().is_none());
        let long = dir.path().join("long.json");
        std::fs::write(&long, vec![b' '; MAX_JSON as usize + 1]).unwrap();
        assert!(JsonFile::open(&long).unwrap_err().to_string().contains("at most"));
        // Deep nesting is an error of the parser, not a stack overflow.
        assert!(message(&"[".repeat(100_000)).contains("recursion"));
    }

    #[test]
    fn own_checks_name_the_value() {
        let (_dir, path) = file(r#"{"n_head": 5, "a": {"b": [1, 2]}}"#);
        let json = JsonFile::open(&path).unwrap();
        let m = json.field_error("n_head", "a divisor of n_embd").to_string();
        assert!(m.contains("found 5; expected a divisor of n_embd"), "{m}");
        assert!(json.field_error("a.b.1", "x").to_string().contains("found 2"));
        assert_eq!(json.get("n_head"), Some(&Value::from(5)));
    }
}
