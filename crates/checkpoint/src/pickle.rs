//! Torch files: tensors out of pickles without ever running one.
//!
//! A pickle is a program for a small stack machine that may call anything. The machine here ([`vm`]) knows only the
//! instructions and names that a file of tensors needs, builds plain data, and refuses everything else by name. Both
//! containers are read: the zip archive of torch since 1.6 and the older sequence of pickles.

use std::collections::HashMap;
use std::path::Path;

use crate::error::shorten;
use crate::weights::Entry;
use crate::{Error, Result};

mod extract;
mod vm;
mod zip;

use vm::{Machine, Node};

/// First bytes of the older container: the pickle of torch's magic number.
const LEGACY_MAGIC: [u8; 14] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Whether a file's content is one of torch's containers.
pub(crate) fn is_torch(bytes: &[u8]) -> bool {
    // A safetensors header may by chance be as long as "PK\3\4" says; its JSON follows at byte 8, where zip has zero.
    (bytes.starts_with(b"PK\x03\x04") && bytes.get(8) != Some(&b'{')) || bytes.starts_with(&LEGACY_MAGIC)
}

/// Names and places of all tensors in a torch file; `index` is the number that entries get as their file.
pub(crate) fn read(file: &Path, bytes: &[u8], index: usize) -> Result<Vec<(String, Entry)>> {
    if bytes.starts_with(b"PK") { read_zip(file, bytes, index) } else { read_legacy(file, bytes, index) }
}

fn read_zip(file: &Path, bytes: &[u8], index: usize) -> Result<Vec<(String, Entry)>> {
    let records = zip::records(file, bytes)?;
    let mut pickles = records.keys().filter(|n| n.ends_with("/data.pkl") || *n == "data.pkl");
    let (Some(name), None) = (pickles.next(), pickles.next()) else {
        return Err(Error::malformed(
            file,
            "archive",
            "no or several data.pkl",
            "one data.pkl, as torch.save writes it",
        ));
    };
    let prefix = name.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(order) = records.get(&format!("{prefix}byteorder"))
        && bytes.get(order.clone()) != Some(b"little")
    {
        return Err(Error::malformed(file, "byteorder", "another order", "little"));
    }
    let pickle = records.get(name).and_then(|r| bytes.get(r.clone())).unwrap_or_default();
    let mut machine = Machine::new(file);
    let (root, _) = machine.run(pickle)?;
    extract::tensors(file, &machine, root, index, bytes.len(), |key| {
        let record = records.get(&format!("{prefix}data/{key}")).cloned();
        record.ok_or_else(|| {
            let item = format!("storage `{}`", shorten(key, 80));
            Error::malformed(file, item, "no such record in the archive", format!("a record {prefix}data/<key>"))
        })
    })
}

fn read_legacy(file: &Path, bytes: &[u8], index: usize) -> Result<Vec<(String, Entry)>> {
    let bad = |item: &str, found: &str, expected: &str| Error::malformed(file, item, found, expected);
    let mut at = LEGACY_MAGIC.len() + 1; // the magic number's STOP
    let mut next = |machine: &mut Machine<'_>| -> Result<u32> {
        let (root, used) = machine.run(bytes.get(at..).unwrap_or_default())?;
        at += used;
        Ok(root)
    };
    let mut head = Machine::new(file);
    let version = next(&mut head)?;
    if !matches!(head.node(version), Node::Int(1001)) {
        return Err(bad("protocol version", "another one", "1001"));
    }
    let info = next(&mut head)?;
    if let Some(little) = head.dict_get(info, "little_endian")
        && !matches!(head.node(little), Node::Bool(true))
    {
        return Err(bad("byte order", "big endian", "little endian"));
    }
    let mut machine = Machine::new(file);
    let root = next(&mut machine)?;
    let keys = next(&mut head)?;
    let Node::List(keys) = head.node(keys) else { return Err(bad("storage keys", "something else", "a list of keys")) };

    // The storages follow in the order of the keys: a 64-bit count of elements, then the elements.
    let mut places = HashMap::new();
    for &key in keys {
        let Node::Str(key) = head.node(key) else { return Err(bad("storage keys", "something else", "text")) };
        let item = format!("storage `{}`", shorten(key, 80));
        let Some(size) = machine.storages().iter().find(|s| s.key == *key).map(|s| s.dtype.size()) else {
            return Err(bad(&item, "data that no tensor refers to", "data of a tensor"));
        };
        let count = bytes.get(at..).and_then(|b| b.first_chunk::<8>()).map(|c| u64::from_le_bytes(*c));
        let start = at.saturating_add(8);
        let length = count.and_then(|c| usize::try_from(c).ok()).and_then(|c| c.checked_mul(size));
        let end = length.and_then(|l| start.checked_add(l)).filter(|e| *e <= bytes.len());
        let Some(end) = end else {
            return Err(bad(&item, "an end of the file within it", "all of its elements (truncated?)"));
        };
        places.insert(key.clone(), start..end);
        at = end;
    }
    extract::tensors(file, &machine, root, index, bytes.len(), |key| {
        places.get(key).cloned().ok_or_else(|| {
            bad(&format!("storage `{}`", shorten(key, 80)), "no data in the file", "data under that key")
        })
    })
}
