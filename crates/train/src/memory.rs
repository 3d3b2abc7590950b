//! How much memory the process holds.

/// Bytes of memory that the process holds now; `None` where the system does not say.
pub fn rss() -> Option<u64> {
    status("VmRSS:")
}

/// The most bytes that the process has held since it began, or since [`reset_peak_rss`].
pub fn peak_rss() -> Option<u64> {
    status("VmHWM:")
}

/// Lets [`peak_rss`] count from now on. Returns whether the system can do that.
pub fn reset_peak_rss() -> bool {
    cfg!(target_os = "linux") && std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|k| k * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn a_large_buffer_is_seen() {
        let before = super::rss().unwrap();
        let buffer = vec![1u8; 64 << 20];
        let after = super::rss().unwrap();
        assert!(buffer.iter().all(|&b| b == 1) && after > before + (48 << 20), "{before} {after}");
        assert!(super::peak_rss().unwrap() >= after);
    }
}
