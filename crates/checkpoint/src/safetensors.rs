//! The safetensors header, checked strictly: whatever the bytes are, the result is a set of ranges that lie within the
//! file, do not overlap and cover its data completely, or an error that names the field.
//!
//! Format: 8 bytes little-endian length `n`, `n` bytes of JSON (`name -> {dtype, shape, data_offsets}` and optionally
//! `__metadata__` with strings), then the data.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};

use crate::error::shorten;
use crate::{Dtype, Error, Result};

/// Longest header that is read, as in the reference implementation.
pub const MAX_HEADER: u64 = 100_000_000;

/// One tensor of a header; the range counts from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeaderEntry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) begin: usize,
    pub(crate) end: usize,
}

/// A checked header.
#[derive(Debug, Clone, Default)]
pub(crate) struct Header {
    pub(crate) entries: Vec<HeaderEntry>,
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Default)]
struct RawHeader {
    entries: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

struct HeaderSeed;

impl<'de> DeserializeSeed<'de> for HeaderSeed {
    type Value = RawHeader;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed {
    type Value = RawHeader;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object with one entry a tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut out = RawHeader::default();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("`{}` stands in the header twice", shorten(&name, 120))));
            }
            let problem = |e: A::Error| A::Error::custom(format!("entry `{}`: {e}", shorten(&name, 120)));
            if name == "__metadata__" {
                out.metadata = map.next_value().map_err(problem)?;
            } else {
                let entry = map.next_value().map_err(problem)?;
                out.entries.push((name, entry));
            }
        }
        Ok(out)
    }
}

/// Parse and check the header of a safetensors file of which `bytes` is the whole content.
pub(crate) fn parse(file: &Path, bytes: &[u8]) -> Result<Header> {
    let bad = |item: &str, found: String, expected: String| Error::malformed(file, item, found, expected);
    let total = bytes.len() as u64;
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(bad("file size", format!("{total} bytes"), "at least 8 bytes with the header's length".into()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(bad(
            "header length",
            format!("{length} bytes"),
            format!("at most {MAX_HEADER} (is this a safetensors file?)"),
        ));
    }
    if length > rest.len() as u64 {
        let expected = format!("at most the {} bytes that follow it in the file (truncated?)", rest.len());
        return Err(bad("header length", format!("{length} bytes"), expected));
    }
    // `length` fits usize: it is no longer than a slice.
    let (json, data) = rest.split_at(length as usize);
    let mut de = serde_json::Deserializer::from_slice(json);
    let raw = HeaderSeed.deserialize(&mut de).and_then(|raw| de.end().map(|()| raw)).map_err(|e| {
        bad("header", shorten(&e.to_string(), 400), "valid JSON with dtype, shape and data_offsets".into())
    })?;

    let data_start = 8 + length as usize;
    let mut entries = Vec::with_capacity(raw.entries.len());
    for (name, entry) in raw.entries {
        entries.push(check_entry(file, name, entry, data_start, data.len())?);
    }
    check_coverage(file, &entries, data_start, data.len())?;
    Ok(Header { entries, metadata: raw.metadata })
}

fn check_entry(file: &Path, name: String, raw: RawEntry, data_start: usize, data_len: usize) -> Result<HeaderEntry> {
    let bad = |field: &str, found: String, expected: String| {
        Error::malformed(file, format!("tensor `{}`, {field}", shorten(&name, 120)), found, expected)
    };
    let dtype = Dtype::from_name(&raw.dtype)
        .ok_or_else(|| bad("dtype", shorten(&raw.dtype, 40), format!("one of {}", Dtype::all_names())))?;
    let (begin, end) = raw.data_offsets;
    if begin > end || end > data_len as u64 {
        let expected = format!("begin <= end <= {data_len}, the bytes of data in the file (truncated?)");
        return Err(bad("data_offsets", format!("[{begin}, {end}]"), expected));
    }
    // With empty dimensions left out, because strides are products of the others and must be countable too.
    let span = raw.shape.iter().try_fold(dtype.size() as u64, |acc, &d| acc.checked_mul(d.max(1)));
    let Some(span) = span.filter(|s| usize::try_from(*s).is_ok()) else {
        return Err(bad("shape", shorten(&format!("{:?}", raw.shape), 120), "a size below 2^64 bytes".into()));
    };
    let bytes = if raw.shape.contains(&0) { 0 } else { span };
    if bytes != end - begin {
        let found = format!("[{begin}, {end}], that is {} bytes", end - begin);
        let expected = format!("{bytes} bytes for shape {} of {dtype}", shorten(&format!("{:?}", raw.shape), 120));
        return Err(bad("data_offsets", found, expected));
    }
    let mut shape = Vec::with_capacity(raw.shape.len());
    for &d in &raw.shape {
        shape.push(
            usize::try_from(d)
                .map_err(|_| bad("shape", d.to_string(), "a dimension this machine can address".into()))?,
        );
    }
    // Both lie within the data, whose length is a usize.
    let (begin, end) = (data_start + begin as usize, data_start + end as usize);
    Ok(HeaderEntry { name, dtype, shape, begin, end })
}

/// Tensors must cover the data without holes and without overlap.
fn check_coverage(file: &Path, entries: &[HeaderEntry], data_start: usize, data_len: usize) -> Result<()> {
    let mut order: Vec<&HeaderEntry> = entries.iter().collect();
    order.sort_by_key(|e| (e.begin, e.end));
    let mut covered = data_start;
    let mut before: Option<&HeaderEntry> = None;
    for entry in order {
        if entry.begin != covered {
            let what = if entry.begin < covered { "overlaps" } else { "leaves a hole after" };
            let other = before.map_or_else(|| "the header".into(), |b| format!("`{}`", shorten(&b.name, 120)));
            return Err(Error::malformed(
                file,
                format!("tensor `{}`, data_offsets", shorten(&entry.name, 120)),
                format!("begin {}, which {what} {other}", entry.begin - data_start),
                format!("begin {}", covered - data_start),
            ));
        }
        covered = entry.end;
        before = Some(entry);
    }
    if covered - data_start != data_len {
        return Err(Error::malformed(
            file,
            "data",
            format!("{data_len} bytes"),
            format!("{} bytes, which is what the tensors in the header cover", covered - data_start),
        ));
    }
    Ok(())
}
