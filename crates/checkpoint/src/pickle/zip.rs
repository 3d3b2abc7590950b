//! Where the records of a zip archive lie. Torch stores them uncompressed, so each is a range of the file.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use crate::error::shorten;
use crate::{Error, Result};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64_LOCATOR: u32 = 0x0706_4b50;
const END64: u32 = 0x0606_4b50;

/// Little-endian numbers out of a slice, `None` beyond its end.
fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*b.get(at..)?.first_chunk()?))
}
fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*b.get(at..)?.first_chunk()?))
}
fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*b.get(at..)?.first_chunk()?))
}
fn usize_at(b: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64_at(b, at)?).ok()
}

/// Ranges of the file's records by name.
pub(super) fn records(file: &Path, bytes: &[u8]) -> Result<HashMap<String, Range<usize>>> {
    let bad = |item: &str, found: &str, expected: &str| Error::malformed(file, item, found, expected);
    let (start, size) = directory(bytes)
        .ok_or_else(|| bad("archive", "no directory at its end", "a complete zip archive (truncated?)"))?;
    let end = start.checked_add(size).filter(|e| *e <= bytes.len());
    let directory = end.and_then(|end| bytes.get(start..end));
    let directory =
        directory.ok_or_else(|| bad("archive directory", "a place beyond the file", "a place within it"))?;
    let mut out = HashMap::new();
    let mut at = 0;
    while at < directory.len() {
        let entry = entry(directory.get(at..).unwrap_or_default()).ok_or_else(|| {
            bad("archive directory", &format!("a broken entry at byte {}", start + at), "a zip entry")
        })?;
        at += entry.length;
        let item = format!("archive record `{}`", shorten(&entry.name, 120));
        if entry.method != 0 || entry.encrypted || entry.stored != entry.size {
            return Err(bad(&item, "compressed or encrypted", "stored as it is, as torch.save does"));
        }
        let range = data_range(bytes, entry.header, entry.size, start)
            .ok_or_else(|| bad(&item, "a place outside the archive's data", "a place within it"))?;
        if out.insert(entry.name, range).is_some() {
            return Err(bad(&item, "it twice", "every record once"));
        }
    }
    Ok(out)
}

/// Start and length of the central directory.
fn directory(bytes: &[u8]) -> Option<(usize, usize)> {
    // The end record is 22 bytes and a comment of at most 65,535.
    let last = bytes.len().checked_sub(22)?;
    let first = last.saturating_sub(65_535);
    let at = (first..=last).rev().find(|&at| u32_at(bytes, at) == Some(END))?;
    let (size, start) = (u32_at(bytes, at + 12)?, u32_at(bytes, at + 16)?);
    if (size == u32::MAX || start == u32::MAX || u16_at(bytes, at + 10)? == u16::MAX)
        && let Some(locator) = at.checked_sub(20)
        && u32_at(bytes, locator) == Some(END64_LOCATOR)
    {
        let end64 = usize_at(bytes, locator + 8)?;
        if u32_at(bytes, end64)? != END64 {
            return None;
        }
        return Some((usize_at(bytes.get(end64..)?, 48)?, usize_at(bytes.get(end64..)?, 40)?));
    }
    Some((start as usize, size as usize))
}

struct Entry {
    name: String,
    method: u16,
    encrypted: bool,
    stored: usize,
    size: usize,
    /// Where its local header lies.
    header: usize,
    /// Bytes of this entry in the directory.
    length: usize,
}

fn entry(b: &[u8]) -> Option<Entry> {
    if u32_at(b, 0)? != CENTRAL {
        return None;
    }
    let (name_len, extra_len, comment_len) = (u16_at(b, 28)?, u16_at(b, 30)?, u16_at(b, 32)?);
    let name_end = 46 + usize::from(name_len);
    let extra_end = name_end + usize::from(extra_len);
    let name = std::str::from_utf8(b.get(46..name_end)?).ok()?.to_string();
    let extra = b.get(name_end..extra_end)?;
    let length = extra_end + usize::from(comment_len);
    b.get(..length)?;
    let mut wide = Zip64 { extra: zip64_extra(extra) };
    let size = wide.or_narrow(u32_at(b, 24)?)?;
    let stored = wide.or_narrow(u32_at(b, 20)?)?;
    let header = wide.or_narrow(u32_at(b, 42)?)?;
    Some(Entry { name, method: u16_at(b, 10)?, encrypted: u16_at(b, 8)? & 1 == 1, stored, size, header, length })
}

/// The 64-bit values that stand in for those 32-bit ones that are all ones, in their order.
struct Zip64<'a> {
    extra: &'a [u8],
}

impl Zip64<'_> {
    fn or_narrow(&mut self, narrow: u32) -> Option<usize> {
        if narrow != u32::MAX {
            return Some(narrow as usize);
        }
        let value = usize_at(self.extra, 0)?;
        self.extra = self.extra.get(8..)?;
        Some(value)
    }
}

fn zip64_extra(mut extra: &[u8]) -> &[u8] {
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let end = 4 + usize::from(len);
        if id == 1 {
            return extra.get(4..end).unwrap_or_default();
        }
        extra = extra.get(end..).unwrap_or_default();
    }
    &[]
}

/// The record's bytes: after its local header, before the directory.
fn data_range(bytes: &[u8], header: usize, size: usize, limit: usize) -> Option<Range<usize>> {
    let local = bytes.get(header..)?;
    if u32_at(local, 0)? != LOCAL {
        return None;
    }
    let skip = 30 + usize::from(u16_at(local, 26)?) + usize::from(u16_at(local, 28)?);
    let start = header.checked_add(skip)?;
    let end = start.checked_add(size)?;
    (end <= limit).then_some(start..end)
}
