//! Whether a workload has become slower than it was: a report against an earlier one of the same workload.
//!
//! What counts is the median run. How far two medians may lie apart by chance is estimated from the runs themselves: the standard
//! error of a median of `n` runs with standard deviation `s` is about `1.2533 s / sqrt(n)` (Kenney and Keeping 1962, section 8.6),
//! and three times both sides' errors together is taken for noise. Runs of one process resemble each other more than those of
//! two, because machines drift by minutes; so what the ceiling that limits the workload (arithmetic, for decoding memory) has changed
//! between the two reports is added, and the noise is never taken to be less than 1 %.

use super::report::median;
use super::{Report, Share};
use crate::{Error, Result};
use serde::Serialize;
use std::path::Path;

/// Standard errors that count as noise.
const ERRORS: f64 = 3.0;
/// The least relative noise.
const LEAST: f64 = 0.01;
/// The least runs whose spread means something.
const RUNS: usize = 3;
/// Relative growth of memory that is no chance: it repeats to within pages, but a run has only one figure.
const MEMORY: f64 = 0.05;
/// Bytes of memory that are no matter.
const SMALL: u64 = 16 << 20;

/// How a figure changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    /// In the baseline.
    pub baseline: f64,
    /// In this run.
    pub now: f64,
    /// Relative change: 0.1 is ten per cent more.
    pub change: f64,
    /// Relative change that may be chance.
    pub noise: f64,
    /// Whether it grew by more than the noise.
    pub worse: bool,
}

impl Change {
    fn new(baseline: f64, now: f64, noise: f64) -> Self {
        let change = now / baseline - 1.0;
        Change { baseline, now, change, noise, worse: change > noise }
    }

    /// Whether it shrank by more than the noise.
    pub fn better(&self) -> bool {
        self.change < -self.noise
    }
}

/// An operation's seconds a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperationChange {
    /// Its name.
    pub name: String,
    /// In the baseline; 0 where it did not occur.
    pub baseline: f64,
    /// In this run.
    pub now: f64,
}

/// A report against its baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Seconds of the median run.
    pub seconds: Change,
    /// Peak memory, where both reports have it.
    pub peak_rss_bytes: Option<Change>,
    /// Relative change of the ceiling that limits the workload: the machine's own drift, negative when it is slower now.
    pub machine: f64,
    /// Operations whose time grew, the most first.
    pub grown: Vec<OperationChange>,
}

impl Comparison {
    /// Whether time or memory grew by more than the noise.
    pub fn regressed(&self) -> bool {
        self.seconds.worse || self.peak_rss_bytes.is_some_and(|m| m.worse)
    }
}

impl Report {
    /// Reads a report that `genus bench --json` wrote.
    ///
    /// # Errors
    /// When the file cannot be read or is not such a report.
    pub fn read(path: &Path) -> Result<Report> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { file: path.to_owned(), source })?;
        let report: Report = serde_json::from_str(text.trim()).map_err(|e| input(path, "report", e, WRITTEN))?;
        if report.seconds.is_empty() {
            return Err(input(path, "seconds", "no runs", format!("at least {RUNS}")));
        }
        if let Some(s) = report.seconds.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return Err(input(path, "seconds", s, "positive numbers"));
        }
        Ok(report)
    }

    /// Whether it has enough runs to be compared, and was taken at the kernel level in force: to be asked before its workload is
    /// run again. `path` is where it came from.
    ///
    /// # Errors
    /// When not.
    pub fn comparable(&self, path: &Path) -> Result<()> {
        if self.seconds.len() < RUNS {
            let expected = format!("at least {RUNS}, whose spread is the noise (--runs)");
            return Err(input(path, "number of runs", self.seconds.len(), expected));
        }
        let level = genus_ops::level().name();
        if self.kernel_level != level {
            let expected = format!("{level}, which is in force here (GENUS_SIMD chooses another)");
            return Err(input(path, "kernel_level", &self.kernel_level, expected));
        }
        Ok(())
    }
}

const WRITTEN: &str = "one JSON object, as `genus bench ... --json > FILE` writes it";

fn input(path: &Path, field: &str, found: impl ToString, expected: impl Into<String>) -> Error {
    Error::Input { file: path.to_owned(), field: field.to_owned(), found: found.to_string(), expected: expected.into() }
}

/// Compares a report with an earlier one; `path` is where the baseline came from.
///
/// # Errors
/// When the two are not of the same workload under the same conditions, or a side has fewer than three runs.
pub fn compare(baseline: &Report, path: &Path, now: &Report) -> Result<Comparison> {
    let fields = [
        ("model", &baseline.model, &now.model),
        ("workload", &baseline.workload, &now.workload),
        ("precision", &baseline.precision, &now.precision),
        ("kernel_level", &baseline.kernel_level, &now.kernel_level),
        ("threads", &baseline.threads.to_string(), &now.threads.to_string()),
    ];
    if let Some((field, found, expected)) = fields.into_iter().find(|(_, a, b)| a != b) {
        return Err(input(path, field, found, format!("{expected}, as in this run: only equals can be compared")));
    }
    for report in [baseline, now] {
        if report.seconds.len() < RUNS {
            let expected = format!("at least {RUNS}, whose spread is the noise (--runs)");
            return Err(input(path, "number of runs", report.seconds.len(), expected));
        }
    }
    let machine = match (baseline.bytes_per_second, now.bytes_per_second) {
        (Some(_), Some(_)) => now.ceiling_bytes_per_second / baseline.ceiling_bytes_per_second - 1.0,
        _ => now.ceiling_flops_per_second / baseline.ceiling_flops_per_second - 1.0,
    };
    let drift = if machine.is_finite() { machine.abs() } else { 0.0 };
    let (before, after) = (median(&baseline.seconds), median(&now.seconds));
    let error = (standard_error(&baseline.seconds).powi(2) + standard_error(&now.seconds).powi(2)).sqrt() / before;
    let seconds = Change::new(before, after, (ERRORS * error + drift).max(LEAST));
    let memory = |(a, b): (u64, u64)| {
        let change = Change::new(a as f64, b as f64, MEMORY);
        Change { worse: change.worse && b - a > SMALL, ..change }
    };
    Ok(Comparison {
        seconds,
        peak_rss_bytes: baseline.peak_rss_bytes.zip(now.peak_rss_bytes).map(memory),
        machine,
        grown: grown(&baseline.operations, &now.operations),
    })
}

/// Of the median.
fn standard_error(seconds: &[f64]) -> f64 {
    let n = seconds.len() as f64;
    let mean = seconds.iter().sum::<f64>() / n;
    let variance = seconds.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n - 1.0);
    1.2533 * (variance / n).sqrt()
}

fn grown(before: &[Share], now: &[Share]) -> Vec<OperationChange> {
    let old = |name: &str| before.iter().find(|s| s.name == name).map_or(0.0, |s| s.seconds);
    let mut grown: Vec<OperationChange> = now
        .iter()
        .map(|s| OperationChange { name: s.name.clone(), baseline: old(&s.name), now: s.seconds })
        .filter(|c| c.now > c.baseline)
        .collect();
    grown.sort_by(|a, b| (b.now - b.baseline).total_cmp(&(a.now - a.baseline)));
    grown
}

#[cfg(test)]
mod tests {
    use super::*;
    use genus_ops::rng::mix64;

    fn report(seconds: &[f64]) -> Report {
        Report {
            workload: "train 4x512".into(),
            model: "gpt2".into(),
            precision: "f32".into(),
            threads: 2,
            kernel_level: "avx512".into(),
            tokens_per_second: 2048.0 / median(seconds),
            lines_per_second: None,
            seconds: seconds.to_vec(),
            tokenizing_seconds: None,
            peak_rss_bytes: Some(3_000_000_000),
            flops_per_second: 180e9,
            bytes_per_second: None,
            ceiling_flops_per_second: 230e9,
            ceiling_bytes_per_second: 42e9,
            operations: Vec::new(),
            arguments: vec!["bench".into(), "train".into(), "gpt2".into()],
        }
    }

    fn verdict(a: &Report, b: &Report) -> Comparison {
        compare(a, Path::new("baseline.json"), b).unwrap()
    }

    /// `n` runs around `mean`, with a relative deviation of `spread`: twelve uniform numbers make nearly a normal one.
    fn runs(mean: f64, spread: f64, n: u64, seed: u64) -> Vec<f64> {
        let uniform = |i: u64| mix64(seed << 20 | i) as f64 / u64::MAX as f64;
        (0..n).map(|k| mean * (1.0 + spread * ((0..12).map(|i| uniform(12 * k + i + 1)).sum::<f64>() - 6.0))).collect()
    }

    #[test]
    fn the_same_speed_is_hardly_ever_a_regression_and_a_large_one_always_is() {
        let (mut false_alarms, mut found) = (0, 0);
        for seed in 0..400 {
            let old = report(&runs(2.0, 0.03, 5, seed));
            let same = report(&runs(2.0, 0.03, 5, 1000 + seed));
            let slower = report(&runs(2.0 * 1.2, 0.03, 5, 2000 + seed));
            false_alarms += usize::from(verdict(&old, &same).regressed());
            found += usize::from(verdict(&old, &slower).regressed());
        }
        assert!(false_alarms <= 8, "{false_alarms} of 400");
        assert!(found >= 396, "{found} of 400");
    }

    #[test]
    fn quiet_runs_show_small_changes_and_noisy_ones_hide_them() {
        let old = report(&[1.000, 1.001, 0.999, 1.000, 1.001]);
        let slower = verdict(&old, &report(&[1.021, 1.020, 1.019, 1.020, 1.022]));
        assert!(slower.regressed() && (slower.seconds.change - 0.02).abs() < 1e-9 && slower.seconds.noise == 0.01);
        assert!(verdict(&report(&[1.02; 5]), &old).seconds.better());
        let noisy = verdict(&report(&[1.0, 0.9, 1.1, 0.95, 1.05]), &report(&[1.02, 0.92, 1.12, 0.97, 1.07]));
        assert!(!noisy.regressed() && noisy.seconds.noise > 0.1, "{noisy:?}");
        // Below the least noise nothing counts, however quiet.
        assert!(!verdict(&report(&[1.0; 5]), &report(&[1.009; 5])).regressed());
    }

    #[test]
    fn a_slower_machine_is_not_a_regression() {
        let old = report(&[1.0; 5]);
        let now = Report { ceiling_flops_per_second: 230e9 * 0.93, ..report(&[1.06; 5]) };
        let c = verdict(&old, &now);
        assert!(!c.regressed() && (c.machine + 0.07).abs() < 1e-9, "{c:?}");
        // For decoding it is the memory that counts.
        let decode = |s, flops, bytes| Report {
            bytes_per_second: Some(30e9),
            ceiling_flops_per_second: flops,
            ceiling_bytes_per_second: bytes,
            ..report(&[s; 5])
        };
        assert!(verdict(&decode(1.0, 230e9, 42e9), &decode(1.06, 200e9, 42e9)).regressed());
        assert!(!verdict(&decode(1.0, 230e9, 42e9), &decode(1.06, 230e9, 38e9)).regressed());
    }

    #[test]
    fn memory_counts_too() {
        let with = |bytes| Report { peak_rss_bytes: bytes, ..report(&[1.0; 3]) };
        let regressed = |a, b| verdict(&with(a), &with(b)).regressed();
        assert!(regressed(Some(3_000_000_000), Some(3_200_000_000)));
        assert!(!regressed(Some(3_000_000_000), Some(3_100_000_000)));
        assert!(!regressed(Some(50_000_000), Some(60_000_000)), "a few MB are no matter");
        assert!(!regressed(None, Some(60_000_000)));
    }

    #[test]
    fn what_grew_comes_first() {
        let share =
            |name: &str, seconds| Share { name: name.into(), seconds, share: 0.1, flops_per_second: None, calls: 1.0 };
        let with = |operations| Report { operations, ..report(&[1.0; 3]) };
        let old = with(vec![share("a", 0.5), share("b", 0.3), share("c", 0.2)]);
        let now = with(vec![share("a", 0.55), share("b", 0.5), share("c", 0.1), share("d", 0.01)]);
        let names: Vec<String> = verdict(&old, &now).grown.into_iter().map(|c| c.name).collect();
        assert_eq!(names, ["b", "a", "d"]);
    }

    #[test]
    fn only_equals_are_compared() {
        let old = report(&[1.0; 5]);
        let message = |now: Report| compare(&old, Path::new("old.json"), &now).unwrap_err().to_string();
        let m = message(Report { threads: 4, ..old.clone() });
        assert!(m.starts_with("old.json: threads: found 2, expected 4, as in this run"), "{m}");
        let m = message(Report { kernel_level: "avx2".into(), ..old.clone() });
        assert!(m.contains("kernel_level: found avx512, expected avx2"), "{m}");
        let m = message(report(&[1.0; 2]));
        assert!(m.contains("number of runs: found 2, expected at least 3"), "{m}");
    }

    #[test]
    fn reports_are_read_back_and_damaged_ones_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("baseline.json");
        let old = report(&[1.0, 1.1]);
        std::fs::write(&path, serde_json::to_string(&old).unwrap() + "\n").unwrap();
        assert_eq!(Report::read(&path).unwrap(), old);
        for (text, part) in [
            ("{", "baseline.json: report: found EOF"),
            ("[1, 2]", "baseline.json: report"),
            (r#"{"workload": "train"}"#, "missing field"),
        ] {
            std::fs::write(&path, text).unwrap();
            let m = Report::read(&path).unwrap_err().to_string();
            assert!(m.contains(part) && m.contains("genus bench ... --json"), "{m}");
        }
        for seconds in [vec![], vec![1.0, -1.0]] {
            std::fs::write(&path, serde_json::to_string(&Report { seconds, ..old.clone() }).unwrap()).unwrap();
            assert!(Report::read(&path).unwrap_err().to_string().contains("seconds: found"));
        }
        assert!(Report::read(&folder.path().join("none.json")).is_err());
    }
}
