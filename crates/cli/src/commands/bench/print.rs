//! The figures of a measurement on one screen.

use std::io::Write;

use genus_infer::bench::{Measured, Report};

use crate::progress::{bytes, grouped, short_count};

/// Below this part of the time an operation is not worth a line of its own.
const SMALL: f64 = 0.001;

/// Each figure beside what it is measured against, then where the time went.
pub(super) fn report(report: &Report, measured: &Measured, parameters: Option<u64>) -> anyhow::Result<()> {
    write(&mut anstream::stdout().lock(), report, measured, parameters)
}

fn write(out: &mut impl Write, report: &Report, measured: &Measured, parameters: Option<u64>) -> anyhow::Result<()> {
    let peak = report.ceiling_flops_per_second;
    let plural = if report.threads == 1 { "" } else { "s" };
    let threads = format!("{} thread{plural}", report.threads);
    match parameters {
        Some(n) => writeln!(
            out,
            "\x1b[1m{}\x1b[0m of {} ({} parameters), {}, {threads}, {}",
            report.workload,
            report.model,
            grouped(n),
            report.precision,
            report.kernel_level
        )?,
        None => writeln!(out, "\x1b[1m{}\x1b[0m by {}, {threads}", report.workload, report.model)?,
    }
    writeln!(
        out,
        "tokens/s   {:>10}   {} tokens in {}, the median of {}",
        short(report.tokens_per_second),
        grouped(measured.tokens as u64),
        seconds(measured.median()),
        spread(&report.seconds)
    )?;
    if let Some(n) = report.lines_per_second {
        writeln!(out, "lines/s    {:>10}   {} lines", short(n), grouped(measured.lines.unwrap_or(0) as u64))?;
    }
    if measured.flops > 0.0 {
        writeln!(
            out,
            "GFLOP/s    {:>10.1}   {:.0} % of {:.1}, multiply-adds in registers; {} operations a token",
            report.flops_per_second / 1e9,
            100.0 * report.flops_per_second / peak,
            peak / 1e9,
            short_count(measured.flops / measured.tokens.max(1) as f64)
        )?;
    }
    let reading = report.ceiling_bytes_per_second;
    match report.bytes_per_second {
        Some(b) if measured.flops == 0.0 => writeln!(out, "MB/s       {:>10.1}   of text", b / 1e6)?,
        Some(b) => writeln!(
            out,
            "GB/s       {:>10.1}   {:.0} % of {:.1}, reading memory; weights read once a step",
            b / 1e9,
            100.0 * b / reading,
            reading / 1e9
        )?,
        None => writeln!(out, "reading    {:>10.1}   GB/s, the ceiling of memory", reading / 1e9)?,
    }
    if let Some(tokenizing) = &report.tokenizing_seconds {
        let share = tokenizing.iter().sum::<f64>() / report.seconds.iter().sum::<f64>();
        writeln!(out, "tokenising {:>9.1}%   of the time", 100.0 * share)?;
    }
    if let Some(peak) = report.peak_rss_bytes {
        writeln!(out, "memory     {:>10}   at most, the weights' included", bytes(peak))?;
    }
    if report.operations.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{:<22}{:>10}{:>8}{:>10}{:>9}", "where the time went", "a run", "share", "GFLOP/s", "of peak")?;
    for s in report.operations.iter().filter(|s| s.share >= SMALL) {
        let (speed, part) = match s.flops_per_second {
            Some(f) => (format!("{:.1}", f / 1e9), format!("{:.0} %", 100.0 * f / peak)),
            None => (String::new(), String::new()),
        };
        let line = format!("{:<22}{:>10}{:>6.1} %{speed:>10}{part:>9}", s.name, seconds(s.seconds), 100.0 * s.share);
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// All runs where they are few, else their range.
fn spread(runs: &[f64]) -> String {
    if runs.len() <= 7 {
        return runs.iter().map(|&s| number(s)).collect::<Vec<_>>().join(" ");
    }
    let (least, most) = runs.iter().fold((f64::INFINITY, 0f64), |(a, b), &s| (a.min(s), b.max(s)));
    format!("{} runs from {} to {}", runs.len(), number(least), number(most))
}

/// Seconds with three or four digits that count.
fn number(s: f64) -> String {
    match s {
        s if s >= 100.0 => format!("{s:.0}"),
        s if s >= 10.0 => format!("{s:.1}"),
        s if s >= 1.0 => format!("{s:.2}"),
        s if s >= 0.1 => format!("{s:.3}"),
        s => format!("{s:.4}"),
    }
}

/// A time with its unit.
pub(super) fn seconds(s: f64) -> String {
    if s >= 0.1 { format!("{} s", number(s)) } else { format!("{:.2} ms", 1e3 * s) }
}

fn short(x: f64) -> String {
    if x < 1000.0 { format!("{x:.1}") } else { short_count(x) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use genus_infer::bench::Share;

    /// A report with invented figures.
    pub(in super::super) fn example(seconds: &[f64]) -> Report {
        let share = |name: &str, share: f64, flops_per_second| Share {
            name: name.into(),
            seconds: 8.9 * share,
            share,
            flops_per_second,
            calls: 48.0,
        };
        Report {
            workload: "train 4x512".into(),
            model: "gpt2".into(),
            precision: "f32".into(),
            threads: 2,
            kernel_level: "avx512".into(),
            tokens_per_second: 230.1,
            lines_per_second: None,
            seconds: seconds.to_vec(),
            tokenizing_seconds: None,
            peak_rss_bytes: Some(3_310_000_000),
            flops_per_second: 177e9,
            bytes_per_second: None,
            ceiling_flops_per_second: 233e9,
            ceiling_bytes_per_second: 42e9,
            operations: vec![
                share("linear dW", 0.6, Some(190e9)),
                share("norm, residual", 0.3995, None),
                share("embedding", 0.0005, None),
            ],
            arguments: Vec::new(),
        }
    }

    #[test]
    fn one_screen_aligned() {
        let report = example(&[8.9, 8.8, 9.0]);
        let measured =
            Measured { tokens: 2048, flops: 1.576e12, seconds: report.seconds.clone(), ..Measured::default() };
        let mut out = Vec::new();
        write(&mut out, &report, &measured, Some(124_439_808)).unwrap();
        let text = anstream::adapter::strip_bytes(&out).into_vec();
        let expected = "\
train 4x512 of gpt2 (124,439,808 parameters), f32, 2 threads, avx512
tokens/s        230.1   2,048 tokens in 8.90 s, the median of 8.90 8.80 9.00
GFLOP/s         177.0   76 % of 233.0, multiply-adds in registers; 769.5M operations a token
reading          42.0   GB/s, the ceiling of memory
memory        3.31 GB   at most, the weights' included

where the time went        a run   share   GFLOP/s  of peak
linear dW                 5.34 s  60.0 %     190.0     82 %
norm, residual            3.56 s  40.0 %
";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn text_has_a_speed_in_bytes() {
        let report = Report {
            workload: "tokenize 3 lines".into(),
            model: "bytes".into(),
            bytes_per_second: Some(26e6),
            operations: Vec::new(),
            ..example(&[1.0])
        };
        let mut out = Vec::new();
        write(&mut out, &report, &Measured { tokens: 10, seconds: vec![1.0], ..Measured::default() }, None).unwrap();
        let text = String::from_utf8(anstream::adapter::strip_bytes(&out).into_vec()).unwrap();
        assert!(text.starts_with("tokenize 3 lines by bytes, 2 threads\n"), "{text}");
        assert!(text.contains("MB/s             26.0   of text") && !text.contains("GFLOP/s"), "{text}");
    }

    #[test]
    fn many_runs_are_a_range() {
        assert_eq!(spread(&[0.0681; 3]), "0.0681 0.0681 0.0681");
        assert_eq!(spread(&[12.04, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 123.4]), "8 runs from 0.500 to 123");
        assert_eq!((seconds(0.0123), seconds(0.25)), ("12.30 ms".into(), "0.250 s".into()));
    }
}
