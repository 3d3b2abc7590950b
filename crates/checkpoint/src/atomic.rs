//! Files and folders that appear complete or not at all.
//!
//! Everything is first written under a hidden name beside its destination (`.<name>.tmp-<pid>-<n>`), flushed to the disk,
//! and then renamed. A crash or a full disk leaves what was there before, and possibly a hidden leftover, which
//! [`clean_leftovers`] removes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A hidden name beside `path` that nothing else uses.
fn sibling(path: &Path, kind: &str) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::Argument {
            what: "destination".into(),
            found: path.display().to_string(),
            expected: "a path that ends in a name".into(),
        });
    };
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{kind}-{}-{n}", std::process::id()));
    Ok(path.with_file_name(hidden))
}

/// The folder that holds `path`, "." for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Flush a folder's entries to the disk, so that a rename in it survives a power cut.
pub(crate) fn sync_dir(folder: &Path) -> Result<()> {
    // Other systems cannot open a folder as a file; their renames are journalled.
    if cfg!(unix) {
        let dir = File::open(folder).map_err(Error::io("open", folder))?;
        dir.sync_all().map_err(Error::io("flush", folder))?;
    }
    Ok(())
}

/// A file being written under a hidden name; it gets its name with [`Pending::commit`] and vanishes when dropped before.
pub(crate) struct Pending {
    path: PathBuf,
    tmp: PathBuf,
    file: Option<File>,
    bytes: u64,
    written: u64,
}

impl Pending {
    /// Start a file that will be `bytes` long.
    pub(crate) fn create(path: &Path, bytes: u64) -> Result<Pending> {
        let tmp = sibling(path, "tmp")?;
        let fail = |source| Error::Write { path: path.to_path_buf(), bytes, written: 0, source };
        // A leftover of a dead process with the same id may be in the way; `create` empties it.
        let file = File::create(&tmp).map_err(fail)?;
        Ok(Pending { path: path.to_path_buf(), tmp, file: Some(file), bytes, written: 0 })
    }

    fn fail(&self, source: io::Error) -> Error {
        Error::Write { path: self.path.clone(), bytes: self.bytes, written: self.written, source }
    }

    /// Append bytes.
    pub(crate) fn write(&mut self, mut data: &[u8]) -> Result<()> {
        let Some(mut file) = self.file.as_ref() else { return Err(self.fail(io::ErrorKind::NotConnected.into())) };
        // Not `write_all`: the error says how many bytes had gone out.
        while !data.is_empty() {
            match file.write(data) {
                Ok(0) => return Err(self.fail(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.written += n as u64;
                    data = data.get(n..).unwrap_or(&[]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.fail(e)),
            }
        }
        Ok(())
    }

    /// Flush to the disk and close; the hidden name stays until [`Pending::commit`].
    pub(crate) fn finish(&mut self) -> Result<()> {
        if let Some(file) = self.file.take() {
            file.sync_all().map_err(|e| self.fail(e))?;
        }
        Ok(())
    }

    /// Give the file its name, over any file that has it.
    pub(crate) fn commit(mut self) -> Result<()> {
        self.finish()?;
        fs::rename(&self.tmp, &self.path).map_err(|e| self.fail(e))?;
        self.tmp = PathBuf::new();
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.file = None;
        if !self.tmp.as_os_str().is_empty() {
            // The error that led here matters more than one about the leftover.
            let _ = fs::remove_file(&self.tmp);
        }
    }
}

/// Write a file so that `path` holds either all of `bytes` or what it held before, also after a crash.
///
/// # Errors
/// [`Error::Write`] with the path and the number of bytes; `path` is then unchanged.
pub fn atomic_write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let mut file = Pending::create(path, bytes.len() as u64)?;
    file.write(bytes)?;
    file.commit()?;
    sync_dir(parent(path))
}

/// Write a folder so that `path` appears complete or not at all: `fill` writes into a hidden folder beside it, which is
/// flushed and renamed. An existing folder at `path` is replaced as a whole.
///
/// # Errors
/// Those of `fill` and of the file system; `path` is then unchanged.
pub fn atomic_folder<T>(path: impl AsRef<Path>, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let path = path.as_ref();
    let tmp = sibling(path, "tmp")?;
    if tmp.exists() {
        fs::remove_dir_all(&tmp).map_err(Error::io("remove", &tmp))?;
    }
    fs::create_dir_all(&tmp).map_err(Error::io("create", &tmp))?;
    let result = fill(&tmp).and_then(|value| {
        sync_tree(&tmp)?;
        replace_folder(&tmp, path)?;
        Ok(value)
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&tmp);
    }
    result
}

/// Flush every file and folder below `folder`.
fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io("look at", folder))?);
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            // Windows flushes only handles that may write; elsewhere a copied file may be read-only.
            let file =
                File::options().read(true).append(cfg!(windows)).open(&path).map_err(Error::io("open", &path))?;
            file.sync_all().map_err(Error::io("flush", &path))?;
        }
    }
    sync_dir(folder)
}

/// Put the finished folder `tmp` at `path`.
fn replace_folder(tmp: &Path, path: &Path) -> Result<()> {
    let old = match fs::symlink_metadata(path) {
        Ok(_) => {
            let old = sibling(path, "old")?;
            if old.exists() {
                fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
            }
            fs::rename(path, &old).map_err(Error::io("rename", path))?;
            Some(old)
        }
        Err(_) => None,
    };
    if let Err(e) = fs::rename(tmp, path) {
        if let Some(old) = &old {
            let _ = fs::rename(old, path);
        }
        return Err(Error::io("rename", tmp)(e));
    }
    sync_dir(parent(path))?;
    if let Some(old) = old {
        remove_any(&old)?;
    }
    Ok(())
}

fn remove_any(path: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
    let removed = if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(Error::io("remove", path))
}

/// Remove a folder so that no half of it is ever seen under its name: it is hidden first, then removed.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_folder(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let hidden = sibling(path, "tmp")?;
    fs::rename(path, &hidden).map_err(Error::io("rename", path))?;
    remove_any(&hidden)
}

/// Split a hidden name into the name it stands for and its kind ("tmp" or "old").
fn leftover(name: &OsStr) -> Option<(&str, &str)> {
    let name = name.to_str()?.strip_prefix('.')?;
    for kind in ["tmp", "old"] {
        if let Some(at) = name.rfind(&format!(".{kind}-")) {
            let (pid, n) = name[at + kind.len() + 2..].split_once('-')?;
            let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
            if at > 0 && digits(pid) && digits(n) {
                return Some((&name[..at], kind));
            }
        }
    }
    None
}

/// Remove what killed runs left in `folder` (hidden temporary files and folders of this module, also within its
/// immediate subfolders), and put back a folder that was being replaced when its run died. Returns what was removed.
///
/// Call it when nothing else writes there, that is with the folder's [`RunLock`](crate::RunLock) held and before the
/// first save.
///
/// # Errors
/// [`Error::Io`].
pub fn clean_leftovers(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    clean(folder.as_ref(), 1, &mut removed)?;
    Ok(removed)
}

fn clean(folder: &Path, depth: usize, removed: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        entries.push(entry.map_err(Error::io("list", folder))?);
    }
    for entry in entries {
        let path = entry.path();
        let file_name = entry.file_name();
        match leftover(&file_name) {
            Some((name, "old")) if !folder.join(name).exists() => {
                fs::rename(&path, folder.join(name)).map_err(Error::io("rename", &path))?;
            }
            Some(_) => {
                remove_any(&path)?;
                removed.push(path);
            }
            None => {
                let kind = entry.file_type().map_err(Error::io("look at", &path))?;
                if depth > 0 && kind.is_dir() {
                    clean(&path, depth - 1, removed)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        atomic_write(&path, b"one").unwrap();
        atomic_write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(entries(dir.path()), ["a.json"]);
        assert!(matches!(atomic_write(dir.path().join("no/such"), b"x"), Err(Error::Write { .. })));
        assert!(atomic_write("/", b"x").is_err());
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint-1");
        let fail = atomic_folder(&path, |tmp| {
            fs::write(tmp.join("half"), b"x").unwrap();
            Err::<(), _>(Error::malformed(tmp, "a", "b", "c"))
        });
        assert!(fail.is_err() && entries(dir.path()).is_empty());
        for content in ["one", "two"] {
            atomic_folder(&path, |tmp| {
                fs::create_dir(tmp.join("sub")).unwrap();
                fs::write(tmp.join("sub/file"), content).unwrap();
                // A copied tokenizer may be read-only.
                let mut mode = fs::metadata(tmp.join("sub/file")).unwrap().permissions();
                mode.set_readonly(cfg!(unix));
                fs::set_permissions(tmp.join("sub/file"), mode).unwrap();
                assert_eq!(path.exists(), content == "two");
                Ok(())
            })
            .unwrap();
            assert_eq!(fs::read_to_string(path.join("sub/file")).unwrap(), content);
        }
        assert_eq!(entries(dir.path()), ["checkpoint-1"]);
        remove_folder(&path).unwrap();
        assert!(entries(dir.path()).is_empty());
    }

    #[test]
    fn leftovers_go_and_an_interrupted_replacement_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        for d in [".checkpoint-2.tmp-77-0", ".checkpoint-3.old-77-1", ".checkpoint-4.old-77-2", "checkpoint-4", "best"]
        {
            fs::create_dir(dir.path().join(d)).unwrap();
        }
        fs::write(dir.path().join(".checkpoint-3.old-77-1/kept"), b"x").unwrap();
        fs::write(dir.path().join("best/.model.safetensors.tmp-1-2"), b"x").unwrap();
        for keep in [".tmp-notes", ".git", ".a.tmp-x-1", "b.tmp-1-1"] {
            fs::write(dir.path().join(keep), b"x").unwrap();
        }
        let removed = clean_leftovers(dir.path()).unwrap();
        assert_eq!(removed.len(), 3, "{removed:?}");
        let expected = [".a.tmp-x-1", ".git", ".tmp-notes", "b.tmp-1-1", "best", "checkpoint-3", "checkpoint-4"];
        assert_eq!(entries(dir.path()), expected);
        assert!(dir.path().join("checkpoint-3/kept").exists());
        assert!(entries(&dir.path().join("best")).is_empty());
    }
}
