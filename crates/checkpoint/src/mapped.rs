//! Read-only memory maps of files.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A whole file, mapped read-only; pages are read from disk when they are touched.
#[derive(Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    map: Option<memmap2::Mmap>,
}

impl Mapped {
    /// Map `path`; an empty file gives no bytes.
    pub(crate) fn open(path: &Path) -> Result<Mapped> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let meta = file.metadata().map_err(Error::io("read the size of", path))?;
        if !meta.is_file() {
            return Err(Error::malformed(path, "path", "not a regular file", "a file"));
        }
        let map = if meta.len() == 0 { None } else { Some(map(&file).map_err(Error::io("map", path))?) };
        Ok(Mapped { path: path.to_path_buf(), map })
    }

    /// The file's path as opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

#[allow(unsafe_code)]
impl Mapped {
    /// Takes part of the map out of this process's memory; it comes back from the file when it is touched.
    pub(crate) fn forget(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // SAFETY: the map is read-only and backed by the file, so that nothing is lost. It is only advice: failing changes nothing.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the map is read-only and never handed out as mutable. Files of models are replaced by renaming a finished
    // file over them (this crate's writers and the hub's clients do), which leaves the mapped file as it was. A foreign
    // process that shortens the file in place ends this one with a bus error; it cannot make it read other memory.
    unsafe { memmap2::Mmap::map(file) }
}
