//! TensorBoard event files: TFRecord framing around a few fields of the `Event` message.

use crate::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// CRC-32C (Castagnoli), reflected polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut c, mut k) = (i as u32, 0);
        while k < 8 {
            c = if c & 1 == 1 { (c >> 1) ^ POLYNOMIAL } else { c >> 1 };
            k += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |c, &b| TABLE[((c ^ u32::from(b)) & 0xff) as usize] ^ (c >> 8))
}

/// TFRecord stores checksums rotated and offset, so that a checksum of data that holds checksums is still one.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Length, its checksum, the data, its checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked(data).to_le_bytes());
    out
}

fn varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// A length-delimited field.
fn bytes_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// `Event`: wall_time 1, step 2, and one of file_version 3, summary 5, session_log 7.
fn event(step: u64, what: u8, bytes: &[u8]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let mut out = vec![1 << 3 | 1];
    out.extend(now.to_le_bytes());
    out.push(2 << 3);
    varint(&mut out, step);
    bytes_field(&mut out, what, bytes);
    out
}

/// `Summary` of scalars: each `value` 1 with tag 1 and simple_value 2.
fn summary(scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, value) in scalars {
        let mut one = Vec::new();
        bytes_field(&mut one, 1, tag.as_bytes());
        one.push(2 << 3 | 5);
        one.extend((*value as f32).to_le_bytes());
        bytes_field(&mut out, 1, &one);
    }
    out
}

/// Writes scalars to an event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Starts a file in `folder`. What earlier files there say of steps from `from` on is declared void, so that a resumed
    /// run shows no double lines.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(folder: &Path, from: u64) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{}.genus.{}.{}", now.as_secs(), std::process::id(), now.subsec_nanos());
        let path = folder.join(name);
        let file = File::options().create_new(true).append(true).open(&path).map_err(Error::io(&path))?;
        let mut writer = EventWriter { file, path };
        writer.write(&event(0, 3, b"brain.Event:2"))?;
        if from > 0 {
            // SessionLog { status: START }.
            writer.write(&event(from, 7, &[1 << 3, 1]))?;
        }
        Ok(writer)
    }

    /// Appends scalars of a step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        self.write(&event(step, 5, &summary(scalars)))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(&frame(data)).map_err(Error::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_published_ones() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_record_is_framed_as_tensorflow_does() {
        // Made by TensorFlow's reader and writer: the record of `Event { wall_time: 0, file_version: "brain.Event:2" }`
        // begins with its length and that length's masked checksum.
        let record = frame(&[0; 24]);
        assert_eq!(record.len(), 40);
        assert_eq!(record[..12], [24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn scalars_are_the_bytes_of_the_message() {
        let s = summary(&[("loss", 1.5)]);
        assert_eq!(s, [0x0a, 11, 0x0a, 4, b'l', b'o', b's', b's', 0x15, 0, 0, 0xc0, 0x3f]);
        let e = event(300, 5, &s);
        assert_eq!((e[0], e[9]), (0x09, 0x10));
        assert_eq!(e[10..14], [0xac, 0x02, 0x2a, 13]);
    }

    #[test]
    fn a_file_reads_back_record_by_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut w = EventWriter::create(dir.path(), 7).unwrap();
        w.scalars(7, &[("loss", 2.0), ("lr", 1e-3)]).unwrap();
        let bytes = std::fs::read(w.path()).unwrap();
        let (mut at, mut records) = (0, 0);
        while at < bytes.len() {
            let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(bytes[at..at + 16 + n], frame(&bytes[at + 12..at + 12 + n])[..]);
            at += 16 + n;
            records += 1;
        }
        assert_eq!(records, 3);
    }
}
