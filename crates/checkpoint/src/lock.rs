//! One run a folder.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// Name of the lock file in a run's folder.
pub const LOCK_FILE: &str = ".genus.lock";

/// Exclusive use of a folder, until dropped. The operating system holds the lock, so it ends with the process however
/// that ends; the file that stays behind means nothing.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    path: PathBuf,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Holder {
    pid: u32,
    host: String,
    since: String,
}

impl RunLock {
    /// Take the folder, which is created if need be.
    ///
    /// # Errors
    /// [`Error::InUse`] when another holder (also in this process) has it; [`Error::Io`].
    pub fn acquire(folder: impl AsRef<Path>) -> Result<RunLock> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(LOCK_FILE);
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Some systems do not let others read a locked file; the answer is then less detailed.
                let _ = file.take(4096).read_to_string(&mut text);
                let holder: Option<Holder> = serde_json::from_str(&text).ok();
                let known = |f: fn(&Holder) -> String| holder.as_ref().map_or_else(|| "?".into(), f);
                return Err(Error::InUse {
                    folder: folder.to_path_buf(),
                    pid: known(|h| h.pid.to_string()),
                    host: known(|h| h.host.clone()),
                    since: known(|h| h.since.clone()),
                });
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
        }
        let holder = Holder { pid: std::process::id(), host: host(), since: utc(SystemTime::now()) };
        let text = serde_json::to_string(&holder).unwrap_or_default();
        let written =
            file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).and_then(|_| file.write_all(text.as_bytes()));
        // A full disk must not keep a run from being resumed and seen: the lock itself holds without its description.
        let _ = written;
        Ok(RunLock { file, path })
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

/// The machine's name, as far as it can be had without a system library.
fn host() -> String {
    let file = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = file.or_else(|| std::env::var("HOSTNAME").ok()).or_else(|| std::env::var("COMPUTERNAME").ok());
    name.map(|n| n.trim().to_string()).filter(|n| !n.is_empty()).unwrap_or_else(|| "this machine".into())
}

/// `2026-01-31T23:59:59Z`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date in the proleptic Gregorian calendar, counting years from March (Howard Hinnant's `civil_from_days`).
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_second_holder_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let lock = RunLock::acquire(&run).unwrap();
        let message = RunLock::acquire(&run).unwrap_err().to_string();
        if cfg!(unix) {
            assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        }
        assert!(message.contains("in use by another run"), "{message}");
        drop(lock);
        RunLock::acquire(&run).unwrap();
        // What a dead process left does no harm, whatever it says.
        std::fs::write(run.join(LOCK_FILE), r#"{"pid":1,"host":"h","since":"s"}"#).unwrap();
        RunLock::acquire(&run).unwrap();
    }
}
