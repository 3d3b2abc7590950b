//! The folders of the cache.

use std::fs;
use std::path::{Path, PathBuf};

use super::Id;
use crate::atomic::atomic_write;
use crate::{Error, Result};

pub(super) struct Cache {
    root: PathBuf,
}

/// One repository's folder. Every part of a path below it has been checked to be plain.
pub(super) struct Repo {
    root: PathBuf,
}

impl Cache {
    pub(super) fn new(root: &Path) -> Cache {
        Cache { root: root.to_path_buf() }
    }

    pub(super) fn repo(&self, id: &Id) -> Repo {
        Repo { root: self.root.join(format!("models--{}--{}", id.owner, id.name)) }
    }
}

impl Repo {
    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn reference(&self, revision: &str) -> PathBuf {
        self.root.join("refs").join(revision)
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn set_reference(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.reference(revision);
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        atomic_write(&path, commit.as_bytes())
    }

    /// Make `file` of a snapshot lead to a blob: by a relative link, or by a copy where links are not to be had.
    pub(super) fn link(&self, snapshot: &Path, file: &str, blob: &Path) -> Result<()> {
        let path = snapshot.join(file);
        let parent = path.parent().unwrap_or(snapshot);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        if fs::symlink_metadata(&path).is_ok() {
            // A link whose blob has been removed.
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        let up = "../".repeat(2 + file.matches('/').count());
        let name = blob.file_name().unwrap_or_default();
        let target = Path::new(&up).join("blobs").join(name);
        match symlink(&target, &path) {
            Ok(()) => Ok(()),
            // Another process has just made the same link.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(_) => fs::copy(blob, &path).map(drop).map_err(Error::io("copy to", &path)),
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
