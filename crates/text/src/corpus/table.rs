//! Text fields of JSON and Parquet files.

use crate::error::{Result, TextError, json_kind};
use parquet::basic::Type as Physical;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::Value;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The text field of a line of JSON.
pub(super) fn json_line(path: &Path, place: String, line: &str, field: &str) -> Result<String> {
    match serde_json::from_str(line) {
        Ok(value) => text_of(path, &place, value, field),
        Err(e) => Err(TextError::Json {
            path: path.to_owned(),
            place,
            message: format!("not valid JSON ({e})"),
            field: field.to_owned(),
        }),
    }
}

fn text_of(path: &Path, place: &str, value: Value, field: &str) -> Result<String> {
    let Value::Object(mut object) = value else {
        return Err(TextError::Json {
            path: path.to_owned(),
            place: place.to_owned(),
            message: format!("found {}", json_kind(&value)),
            field: field.to_owned(),
        });
    };
    let found = match object.remove(field) {
        Some(Value::String(text)) => return Ok(text),
        Some(other) => json_kind(&other).to_owned(),
        None => {
            let names: Vec<&str> = object.keys().take(8).map(String::as_str).collect();
            match names.is_empty() {
                true => "no field at all".to_owned(),
                false => format!("only {}", names.join(", ")),
            }
        }
    };
    Err(TextError::JsonField { path: path.to_owned(), place: place.to_owned(), field: field.to_owned(), found })
}

/// A `.json` file that is one array of objects.
pub(super) struct JsonArray {
    path: PathBuf,
    values: std::vec::IntoIter<Value>,
    element: u64,
}

impl JsonArray {
    pub(super) fn parse(path: &Path, text: &str, field: &str) -> Result<Self> {
        let values: Vec<Value> = serde_json::from_str(text).map_err(|e| TextError::Json {
            path: path.to_owned(),
            place: format!("line {}", e.line()),
            message: format!("not valid JSON ({e})"),
            field: field.to_owned(),
        })?;
        Ok(JsonArray { path: path.to_owned(), values: values.into_iter(), element: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn number(&self) -> String {
        format!("element {}", self.element)
    }

    pub(super) fn next(&mut self, field: &str) -> Result<Option<String>> {
        let Some(value) = self.values.next() else {
            return Ok(None);
        };
        self.element += 1;
        text_of(&self.path, &self.number(), value, field).map(Some)
    }
}

/// The text column of a Parquet file, row by row.
pub(super) struct Rows {
    path: PathBuf,
    column: String,
    rows: RowIter<'static>,
    row: u64,
}

impl Rows {
    pub(super) fn open(path: &Path, column: &str) -> Result<Self> {
        let error = |message: String| TextError::Parquet { path: path.to_owned(), message };
        let file = File::open(path).map_err(|e| TextError::io(path, e))?;
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(error)?;
        let schema = reader.metadata().file_metadata().schema();
        let fields = schema.get_fields();
        let wrong =
            |found: String| TextError::ParquetColumn { path: path.to_owned(), column: column.to_owned(), found };
        let Some(field) = fields.iter().find(|f| f.name() == column) else {
            let names: Vec<&str> = fields.iter().take(8).map(|f| f.name()).collect();
            return Err(wrong(format!("only {}", names.join(", "))));
        };
        if !field.is_primitive() || field.get_physical_type() != Physical::BYTE_ARRAY {
            let found = match field.is_primitive() {
                true => format!("a column of type {}", field.get_physical_type()),
                false => "a nested column".to_owned(),
            };
            return Err(wrong(found));
        }
        let projection = Type::group_type_builder(schema.name())
            .with_fields(vec![Arc::clone(field)])
            .build()
            .map_err(|e| error(e.to_string()))?;
        let rows = guarded(|| RowIter::from_file_into(Box::new(reader)).project(Some(projection))).map_err(error)?;
        Ok(Rows { path: path.to_owned(), column: column.to_owned(), rows, row: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn number(&self) -> String {
        format!("row {}", self.row)
    }

    pub(super) fn next(&mut self) -> Result<Option<String>> {
        let row: Option<Row> = guarded(|| self.rows.next().transpose()).map_err(|message| TextError::Parquet {
            path: self.path.clone(),
            message: format!("row {}: {message}", self.row + 1),
        })?;
        let Some(row) = row else {
            return Ok(None);
        };
        self.row += 1;
        let found = match row.into_columns().into_iter().next() {
            Some((_, Field::Str(text))) => return Ok(Some(text)),
            // A column without the annotation for text.
            Some((_, Field::Bytes(bytes))) => match String::from_utf8(bytes.data().to_vec()) {
                Ok(text) => return Ok(Some(text)),
                Err(e) => format!("bytes that are not UTF-8 (at {}) in row {}", e.utf8_error().valid_up_to(), self.row),
            },
            Some((_, Field::Null)) => format!("null in row {}", self.row),
            _ => format!("no text in row {}", self.row),
        };
        Err(TextError::ParquetColumn { path: self.path.clone(), column: self.column.clone(), found })
    }
}

/// The reader panics on some damaged files; that is an error like any other.
fn guarded<T>(f: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the file is damaged".to_owned()),
    }
}
