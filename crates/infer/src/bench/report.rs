//! What a measurement gives, and how it is reported.

use super::{Runs, Timed};
use crate::{Error, Result};
use genus_ops::Precision;
use genus_ops::profile::{self, Entry};
use serde::{Deserialize, Serialize};

/// A workload's work and times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Tokens of one run.
    pub tokens: usize,
    /// Lines of one run, where text is translated.
    pub lines: Option<usize>,
    /// Floating-point operations of one run's matrix products.
    pub flops: f64,
    /// Bytes of weights that one run reads, where that is what limits it.
    pub bytes: Option<f64>,
    /// All timed runs.
    pub seconds: Vec<f64>,
    /// The part of `seconds` that tokenising took, where there is text; before training it is done once, and is not part of them.
    pub tokenizing_seconds: Option<Vec<f64>>,
    /// The largest resident memory while the workload ran; `None` where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    /// Where the time of all timed runs went.
    pub operations: Vec<Entry>,
}

impl Measured {
    /// With the work of one run.
    #[must_use]
    pub fn work(self, tokens: usize, flops: f64) -> Self {
        Measured { tokens, flops, ..self }
    }

    /// The median run's time.
    pub fn median(&self) -> f64 {
        median(&self.seconds)
    }

    /// Where the time of a run went, on average: operations in the order of their time, then what was none of them.
    pub fn operations(&self) -> Vec<Share> {
        let (runs, whole) = (self.seconds.len().max(1) as f64, self.seconds.iter().sum::<f64>());
        if self.operations.is_empty() || whole <= 0.0 {
            return Vec::new();
        }
        let share = |name: &str, seconds: f64, flops: f64, calls: u64| Share {
            name: name.to_owned(),
            seconds: seconds / runs,
            share: seconds / whole,
            flops_per_second: (flops > 0.0 && seconds > 0.0).then(|| flops / seconds),
            calls: calls as f64 / runs,
        };
        let mut all: Vec<Share> =
            self.operations.iter().map(|e| share(e.operation.name(), e.seconds, e.flops, e.calls)).collect();
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let known: f64 = self.operations.iter().map(|e| e.seconds).sum();
        all.push(share(ELSE, (whole - known).max(0.0), 0.0, 0));
        all
    }
}

/// The name of what is no operation: allocation, the tape, sampling, tokenising, waiting.
pub const ELSE: &str = "everything else";

/// One kind of operation's part in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Its name.
    pub name: String,
    /// Seconds of a run, the average of the timed ones.
    pub seconds: f64,
    /// Part of the whole time.
    pub share: f64,
    /// Speed while it ran, where it is made of matrix products.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops_per_second: Option<f64>,
    /// How often a run called it.
    pub calls: f64,
}

pub(super) fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Runs `f`, which times itself, as often as `runs` says, and watches the process's largest resident memory meanwhile (the mark is
/// set back before, where the system allows it; the model's weights are part of it).
///
/// # Errors
/// Those of `f`, and when no run is wanted.
pub fn measure(runs: Runs, mut f: impl FnMut() -> Timed) -> Result<Measured> {
    if runs.timed == 0 {
        return Err(Error::option("runs", 0, "at least 1"));
    }
    reset_peak();
    for _ in 0..runs.warm_up {
        f()?;
    }
    let (seconds, operations) =
        profile::record(|| (0..runs.timed).map(|_| Ok(f()?.as_secs_f64())).collect::<Result<Vec<f64>>>());
    Ok(Measured { seconds: seconds?, operations, peak_rss_bytes: peak(), ..Default::default() })
}

/// Sets `VmHWM` back to the present size; needs Linux 4.0. Without it the mark is the process's largest size so far, which is
/// the workload's as well, since the ceilings are measured after it.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// `VmHWM` of this process.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// The machine's ceilings, with the threads and the kernel level in force.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Of multiply-adds in registers; in bf16 of its pairs, where the level in force multiplies those.
    pub flops_per_second: f64,
    /// Of reading memory.
    pub bytes_per_second: f64,
}

impl Ceilings {
    /// Measures them; takes about a second. To be called after the workload, so that its memory does not count as the workload's.
    pub fn measure(precision: Precision) -> Self {
        Ceilings {
            flops_per_second: genus_ops::ceiling::product_flops(precision),
            bytes_per_second: genus_ops::ceiling::read_bytes(),
        }
    }
}

/// A measurement as `genus bench --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was measured.
    pub workload: String,
    /// Preset or folder.
    pub model: String,
    /// Precision of matrix products: f32 or bf16.
    pub precision: String,
    /// Threads of the kernels.
    pub threads: usize,
    /// Instruction set of the kernels.
    pub kernel_level: String,
    /// Of the median run.
    pub tokens_per_second: f64,
    /// Of the median run, where text is translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines_per_second: Option<f64>,
    /// All runs.
    pub seconds: Vec<f64>,
    /// The part of `seconds` that tokenising took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizing_seconds: Option<Vec<f64>>,
    /// Largest resident memory of the workload.
    pub peak_rss_bytes: Option<u64>,
    /// Of the median run.
    pub flops_per_second: f64,
    /// Of the median run: weights read (decoding), or text tokenised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
    /// See [`Ceilings`].
    pub ceiling_flops_per_second: f64,
    /// See [`Ceilings`].
    pub ceiling_bytes_per_second: f64,
    /// Where the time of a run went.
    #[serde(default)]
    pub operations: Vec<Share>,
    /// The arguments that the measurement was started with: what [`compare`](super::compare) repeats.
    #[serde(default)]
    pub arguments: Vec<String>,
}

impl Report {
    /// A report of what was measured; `name` is the preset or folder, `workload` says what was run. Without a precision (where text
    /// was tokenised), it is `-`.
    pub fn new(
        name: &str,
        precision: Option<Precision>,
        workload: impl Into<String>,
        m: &Measured,
        ceilings: Ceilings,
    ) -> Self {
        let median = m.median();
        Report {
            workload: workload.into(),
            model: name.to_owned(),
            precision: precision.map_or("-", Precision::name).to_owned(),
            threads: genus_ops::pool::threads(),
            kernel_level: genus_ops::level().name().to_owned(),
            tokens_per_second: m.tokens as f64 / median,
            lines_per_second: m.lines.map(|n| n as f64 / median),
            seconds: m.seconds.clone(),
            tokenizing_seconds: m.tokenizing_seconds.clone(),
            peak_rss_bytes: m.peak_rss_bytes,
            flops_per_second: m.flops / median,
            bytes_per_second: m.bytes.map(|b| b / median),
            ceiling_flops_per_second: ceilings.flops_per_second,
            ceiling_bytes_per_second: ceilings.bytes_per_second,
            operations: m.operations(),
            arguments: Vec::new(),
        }
    }

    /// With the arguments that repeat the measurement.
    #[must_use]
    pub fn repeated_by(self, arguments: Vec<String>) -> Self {
        Report { arguments, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn shares_add_up_to_the_whole() {
        use genus_ops::profile::Operation::{LinearForward, Norm};
        let entry = |operation, seconds, flops| Entry { operation, seconds, flops, calls: 6 };
        let operations = vec![entry(Norm, 1.0, 0.0), entry(LinearForward, 2.0, 8e9)];
        let m = Measured { seconds: vec![2.0, 2.0], operations, ..Measured::default() };
        let shares = m.operations();
        let names: Vec<&str> = shares.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["linear forward", "norm, residual", ELSE]);
        assert_eq!(shares.iter().map(|s| s.share).collect::<Vec<_>>(), [0.5, 0.25, 0.25]);
        assert_eq!((shares[0].seconds, shares[0].flops_per_second, shares[0].calls), (1.0, Some(4e9), 3.0));
        assert_eq!((shares[1].flops_per_second, shares[2].seconds), (None, 0.5));
        assert!(Measured { seconds: vec![1.0], ..Measured::default() }.operations().is_empty());
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn the_peak_is_the_workloads() {
        let run = |bytes: usize| {
            measure(Runs { warm_up: 0, timed: 1 }, || {
                std::hint::black_box(vec![1u8; bytes]);
                Ok(Duration::from_millis(1))
            })
            .unwrap()
            .peak_rss_bytes
        };
        if let (Some(large), Some(small)) = (run(200 << 20), run(1 << 20)) {
            assert!(large > 200 << 20);
            // Where the mark cannot be set back, it stays.
            assert!(small <= large);
        }
    }
}
