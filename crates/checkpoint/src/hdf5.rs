//! Arrays in HDF5 files, as older libraries published weights.

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// An opened HDF5 file.
pub struct Hdf5 {
    path: PathBuf,
    file: hdf5_reader::Hdf5File,
}

impl Hdf5 {
    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be read or is no HDF5 file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        std::fs::File::open(&path).map_err(|source| Error::Io { action: "open", path: path.clone(), source })?;
        let file = hdf5_reader::Hdf5File::open(&path).map_err(|e| malformed(&path, "file", e, "an HDF5 file"))?;
        Ok(Hdf5 { path, file })
    }

    /// The values of an array of f32 of that shape, the last dimension the fastest.
    ///
    /// # Errors
    /// When there is no such array, or it has another shape or element type.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let expected = format!("an array of f32 of shape {shape:?}");
        let array = self.file.dataset(name).map_err(|e| malformed(&self.path, name, e, &expected))?;
        if !array.shape().iter().map(|&n| n as usize).eq(shape.iter().copied()) {
            return Err(malformed(&self.path, name, format!("shape {:?}", array.shape()), &expected));
        }
        let values = array.read_array::<f32>().map_err(|e| malformed(&self.path, name, e, &expected))?;
        Ok(values.into_iter().collect())
    }

    /// The shape of an array.
    ///
    /// # Errors
    /// When there is no such array.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let array = self.file.dataset(name).map_err(|e| malformed(&self.path, name, e, "an array"))?;
        Ok(array.shape().iter().map(|&n| n as usize).collect())
    }
}

fn malformed(file: &Path, item: &str, found: impl ToString, expected: &str) -> Error {
    Error::Malformed {
        file: file.to_owned(),
        item: item.to_owned(),
        found: found.to_string(),
        expected: expected.to_owned(),
    }
}
