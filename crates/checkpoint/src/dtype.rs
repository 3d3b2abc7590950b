//! Element types as they stand in files, and their conversion to `f32`.

use std::borrow::Cow;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

/// Type of a tensor's elements in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)] // The names are the documentation.
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

impl Dtype {
    const ALL: [Dtype; 15] = [
        Dtype::Bool,
        Dtype::U8,
        Dtype::I8,
        Dtype::F8E4M3,
        Dtype::F8E5M2,
        Dtype::U16,
        Dtype::I16,
        Dtype::F16,
        Dtype::BF16,
        Dtype::U32,
        Dtype::I32,
        Dtype::F32,
        Dtype::U64,
        Dtype::I64,
        Dtype::F64,
    ];

    /// Size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 | Dtype::F8E4M3 | Dtype::F8E5M2 => 1,
            Dtype::U16 | Dtype::I16 | Dtype::F16 | Dtype::BF16 => 2,
            Dtype::U32 | Dtype::I32 | Dtype::F32 => 4,
            Dtype::U64 | Dtype::I64 | Dtype::F64 => 8,
        }
    }

    /// Its name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "BOOL",
            Dtype::U8 => "U8",
            Dtype::I8 => "I8",
            Dtype::F8E4M3 => "F8_E4M3",
            Dtype::F8E5M2 => "F8_E5M2",
            Dtype::U16 => "U16",
            Dtype::I16 => "I16",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::U32 => "U32",
            Dtype::I32 => "I32",
            Dtype::F32 => "F32",
            Dtype::U64 => "U64",
            Dtype::I64 => "I64",
            Dtype::F64 => "F64",
        }
    }

    /// The type with that name in a safetensors header.
    pub fn from_name(name: &str) -> Option<Dtype> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Whether elements can be read as `f32` (f64, f32, f16 and bf16).
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    /// Names of all types, for error messages.
    pub(crate) fn all_names() -> String {
        Self::ALL.map(Dtype::name).join(", ")
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Little-endian elements of a float type as `f32`; `out` has one place an element. Returns false for other types.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> bool {
    debug_assert_eq!(bytes.len(), out.len() * dtype.size());
    match dtype {
        Dtype::F32 if cfg!(target_endian = "little") => {
            bytemuck::cast_slice_mut::<f32, u8>(out).copy_from_slice(bytes);
        }
        Dtype::F32 => {
            for (o, c) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*c);
            }
        }
        Dtype::F64 => {
            for (o, c) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *o = f64::from_le_bytes(*c) as f32;
            }
        }
        Dtype::F16 => match aligned_u16(bytes) {
            Some(bits) => bits.reinterpret_cast::<f16>().convert_to_f32_slice(out),
            None => {
                for (o, c) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f16::from_le_bytes(*c).to_f32();
                }
            }
        },
        Dtype::BF16 => match aligned_u16(bytes) {
            Some(bits) => bits.reinterpret_cast::<bf16>().convert_to_f32_slice(out),
            None => {
                for (o, c) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = bf16::from_le_bytes(*c).to_f32();
                }
            }
        },
        _ => return false,
    }
    true
}

/// The bytes as native 16-bit words, where alignment and byte order allow it without a copy.
pub(crate) fn aligned_u16(bytes: &[u8]) -> Option<&[u16]> {
    if cfg!(target_endian = "little") { bytemuck::try_cast_slice(bytes).ok() } else { None }
}

/// Elements of an integer type (or bool) as `i64`; `None` for other types and for a u64 beyond `i64`.
pub(crate) fn to_i64(dtype: Dtype, bytes: &[u8]) -> Option<Vec<i64>> {
    Some(match dtype {
        Dtype::Bool | Dtype::U8 => bytes.iter().map(|&b| i64::from(b)).collect(),
        Dtype::I8 => bytes.iter().map(|&b| i64::from(b.cast_signed())).collect(),
        Dtype::U16 => bytes.as_chunks().0.iter().map(|&c| i64::from(u16::from_le_bytes(c))).collect(),
        Dtype::I16 => bytes.as_chunks().0.iter().map(|&c| i64::from(i16::from_le_bytes(c))).collect(),
        Dtype::U32 => bytes.as_chunks().0.iter().map(|&c| i64::from(u32::from_le_bytes(c))).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|&c| i64::from(i32::from_le_bytes(c))).collect(),
        Dtype::I64 => bytes.as_chunks().0.iter().map(|&c| i64::from_le_bytes(c)).collect(),
        Dtype::U64 => {
            let values = bytes.as_chunks().0.iter().map(|&c| i64::try_from(u64::from_le_bytes(c)).ok());
            values.collect::<Option<_>>()?
        }
        _ => return None,
    })
}

/// `f32` elements as little-endian bytes of a float type, appended to `out` (which is emptied first).
pub(crate) fn from_f32(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) {
    out.clear();
    match dtype {
        Dtype::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        Dtype::BF16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        Dtype::F64 => out.extend(values.iter().flat_map(|&v| f64::from(v).to_le_bytes())),
        _ if cfg!(target_endian = "little") => out.extend_from_slice(bytemuck::cast_slice(values)),
        _ => out.extend(values.iter().flat_map(|&v| v.to_le_bytes())),
    }
}

/// The bytes as `f32` without a copy where alignment and byte order allow it.
pub(crate) fn as_f32(bytes: &[u8]) -> Option<Cow<'_, [f32]>> {
    if !cfg!(target_endian = "little") {
        return None;
    }
    bytemuck::try_cast_slice(bytes).ok().map(Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_agree_aligned_and_not() {
        let values = [0.0f32, -1.5, 65504.0, 1e-3, f32::INFINITY, 3.25];
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
            let mut bytes = Vec::new();
            from_f32(dtype, &values, &mut bytes);
            assert_eq!(bytes.len(), values.len() * dtype.size());
            let mut shifted = vec![0u8; 1];
            shifted.extend_from_slice(&bytes);
            let (mut a, mut b) = ([0f32; 6], [0f32; 6]);
            assert!(to_f32(dtype, &bytes, &mut a) && to_f32(dtype, &shifted[1..], &mut b));
            assert_eq!(a, b);
            for (got, want) in a.iter().zip(values) {
                let bound = if dtype.size() == 2 { want.abs() / 128.0 } else { 0.0 };
                assert!((got - want).abs() <= bound || *got == want, "{dtype}: {got} against {want}");
            }
        }
        assert!(!to_f32(Dtype::I32, &[0; 4], &mut [0.0]));
        assert_eq!(to_i64(Dtype::I8, &[255, 1]), Some(vec![-1, 1]));
        assert_eq!(to_i64(Dtype::U64, &[255; 8]), None);
        for d in Dtype::ALL {
            assert_eq!(Dtype::from_name(d.name()), Some(d));
        }
    }
}
