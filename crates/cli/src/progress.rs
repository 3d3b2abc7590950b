//! Progress of long work: one live line on a terminal; elsewhere nothing but a plain line at long intervals.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a plain line is written where standard error is not a terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// A progress line on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    live: bool,
    label: String,
    total: Option<u64>,
    started: Instant,
    first: Option<u64>,
    last_plain: Instant,
    show: fn(u64) -> String,
}

impl Progress {
    /// A line called `label` for `total` pieces of work (`None`: unknown).
    pub fn new(label: &str, total: Option<u64>) -> Self {
        let live = std::io::stderr().is_terminal();
        let target = if live { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(total, target);
        let template = if total.is_some() { "{prefix} {bar:16} {msg}" } else { "{prefix} {spinner} {msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar.set_prefix(label.to_owned());
        let now = Instant::now();
        let show = |n: u64| n.to_string();
        Self { bar, live, label: label.to_owned(), total, started: now, first: None, last_plain: now, show }
    }

    /// A line that counts bytes.
    pub fn bytes(label: &str, total: Option<u64>) -> Self {
        Self { show: bytes, ..Self::new(label, total) }
    }

    /// Shows that `done` pieces are done, with `detail` (figures of the work) after the count and the time left after that.
    pub fn update(&mut self, done: u64, detail: &str) {
        let first = *self.first.get_or_insert(done);
        let left = self.time_left(first, done);
        self.show(done, detail, left);
    }

    /// As [`Progress::update`], with a time left that the caller knows better.
    pub fn show(&mut self, done: u64, detail: &str, left: Option<Duration>) {
        let mut message = match self.total {
            Some(total) => format!("{}/{}", (self.show)(done), (self.show)(total)),
            None => (self.show)(done),
        };
        if !detail.is_empty() {
            message.push_str("  ");
            message.push_str(detail);
        }
        if let Some(left) = left {
            message.push_str(&format!("  {} left", duration(left)));
        }
        if self.live {
            self.bar.set_position(done);
            self.bar.set_message(message);
        } else if self.last_plain.elapsed() >= PLAIN_EVERY {
            self.last_plain = Instant::now();
            anstream::eprintln!("{} {message}", self.label);
        }
    }

    /// Writes a line of its own above the progress line, on a terminal and elsewhere.
    pub fn line(&self, text: &str) {
        if self.live {
            self.bar.suspend(|| anstream::eprintln!("{text}"));
        } else {
            anstream::eprintln!("{text}");
        }
    }

    /// Removes the line.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }

    fn time_left(&self, first: u64, done: u64) -> Option<Duration> {
        let total = self.total?;
        let so_far = done.checked_sub(first).filter(|&n| n > 0)?;
        let left = total.checked_sub(done)?;
        Some(self.started.elapsed().mul_f64(left as f64 / so_far as f64))
    }
}

/// A duration as people write it: `4.2 s`, `3:07`, `2:03:09`.
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..10 => format!("{:.1} s", d.as_secs_f64()),
        10..60 => format!("{s} s"),
        60..3600 => format!("{}:{:02}", s / 60, s % 60),
        _ => format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60),
    }
}

/// A count with a unit prefix: `950`, `12.3k`, `124.4M`, `1.56G`.
pub fn short_count(x: f64) -> String {
    let (scaled, unit) = match x.abs() {
        a if a >= 1e12 => (x / 1e12, "T"),
        a if a >= 1e9 => (x / 1e9, "G"),
        a if a >= 1e6 => (x / 1e6, "M"),
        a if a >= 1e4 => (x / 1e3, "k"),
        _ => (x, ""),
    };
    match scaled.abs() {
        _ if unit.is_empty() => format!("{scaled:.0}"),
        a if a < 10.0 => format!("{scaled:.2}{unit}"),
        _ => format!("{scaled:.1}{unit}"),
    }
}

/// A size in bytes: `512 B`, `3.2 MB`, `1.4 GB` (powers of ten).
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// A whole number with thin groups of three: `124,439,808`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(124_439_808), "124,439,808");
        assert_eq!(short_count(950.0), "950");
        assert_eq!(short_count(12_345.0), "12.3k");
        assert_eq!(short_count(1_557_611_200.0), "1.56G");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_990_000_000), "1.99 GB");
        assert_eq!(duration(Duration::from_millis(4_210)), "4.2 s");
        assert_eq!(duration(Duration::from_secs(187)), "3:07");
        assert_eq!(duration(Duration::from_secs(7_389)), "2:03:09");
    }

    #[test]
    fn the_time_left_follows_the_pace() {
        let mut progress = Progress::new("work", Some(10));
        progress.started = Instant::now() - Duration::from_secs(6);
        let left = progress.time_left(0, 6).expect("a pace");
        assert!((left.as_secs_f64() - 4.0).abs() < 0.5, "{left:?}");
        assert!(progress.time_left(6, 6).is_none(), "no pace after no work");
        assert!(progress.time_left(0, 11).is_none(), "past the end");
    }
}
