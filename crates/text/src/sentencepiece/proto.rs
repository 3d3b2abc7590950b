//! Protocol buffers as they lie in a file, as far as SentencePiece's models need them.

/// One field of a message.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    /// A number, a flag or one of a list.
    Number(u64),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
    /// Four bytes: a float.
    Four([u8; 4]),
}

/// Why bytes are no message: where, and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed {
    /// Offset from the beginning of the message.
    pub at: usize,
    pub found: String,
}

/// Walks over the fields of a message.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Fields { bytes, at: 0 }
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], Malformed> {
        let left = self.bytes.len() - self.at;
        let n = usize::try_from(n).ok().filter(|&n| n <= left).ok_or_else(|| Malformed {
            at: self.at,
            found: format!("a field of {n} bytes where {left} are left (is the file cut off?)"),
        })?;
        self.at += n;
        Ok(&self.bytes[self.at - n..self.at])
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed { at: start, found: "a number of more than ten bytes".into() })
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Malformed> {
        let start = self.at;
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let n = self.varint()?;
                Value::Bytes(self.take(n)?)
            }
            5 => {
                let b = self.take(4)?;
                Value::Four([b[0], b[1], b[2], b[3]])
            }
            kind => return Err(Malformed { at: start, found: format!("a field of kind {kind}") }),
        };
        match key >> 3 {
            0 => Err(Malformed { at: start, found: "a field with number 0".into() }),
            number => Ok((number, value)),
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_kind_and_what_is_none() {
        let bytes = [0x08, 0xac, 0x02, 0x12, 2, b'h', b'i', 0x1d, 0, 0, 0x80, 0x3f];
        let fields: Vec<_> = Fields::new(&bytes).collect::<Result<_, _>>().unwrap();
        assert!(matches!(fields[0], (1, Value::Number(300))));
        assert!(matches!(fields[1], (2, Value::Bytes(b"hi"))));
        assert!(matches!(fields[2], (3, Value::Four([0, 0, 0x80, 0x3f]))));
        let fails = |bytes: &[u8]| Fields::new(bytes).collect::<Result<Vec<_>, _>>().unwrap_err();
        assert_eq!(fails(&bytes[..6]).at, 5);
        assert!(fails(&[0x0b]).found.contains("kind 3"));
        assert!(fails(&[0x08, 0xff]).found.contains("cut off"));
        assert!(fails(&[0x02, 0x00]).found.contains("number 0"));
        assert!(fails(&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]).found.contains("ten bytes"));
    }
}
