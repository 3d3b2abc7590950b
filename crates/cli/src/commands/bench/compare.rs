//! `genus bench --compare`: the same workload again, against what it was.

use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Parser;
use genus_infer::bench::{Change, Comparison, Report, compare};
use serde_json::json;

use super::Taken;
use super::print::seconds;
use crate::commands::Command;
use crate::progress::bytes;
use crate::report::{Regressed, json_line};
use crate::{Cli, Context};

/// Repeats the baseline's measurement and reports what changed.
pub(super) fn run(path: &Path, context: &Context) -> anyhow::Result<()> {
    let baseline = Report::read(path)?;
    baseline.comparable(path)?;
    let (workload, own) = repeated(&baseline).with_context(|| format!("{}: arguments", path.display()))?;
    let Taken { report, .. } = workload.run(&own)?;
    let c = compare(&baseline, path, &report)?;
    if context.json {
        json_line(&json!({ "comparison": c, "regressed": c.regressed(), "baseline": baseline, "now": report }))?;
    } else {
        write(&mut anstream::stdout().lock(), &baseline, &c)?;
    }
    if c.regressed() {
        let what = if c.seconds.worse { "slower" } else { "larger in memory" };
        return Err(
            Regressed(format!("{} of {} is {what} than {}", report.workload, report.model, path.display())).into()
        );
    }
    Ok(())
}

/// The workload that a report's arguments name, with the options of every command as they were.
fn repeated(baseline: &Report) -> anyhow::Result<(super::Workload, Context)> {
    if baseline.arguments.is_empty() {
        bail!("found none, expected those that the measurement was started with; take the baseline again with --json");
    }
    let words = std::iter::once("genus").chain(baseline.arguments.iter().map(String::as_str));
    let cli = Cli::try_parse_from(words)?;
    let Command::Bench(super::Bench { workload: Some(workload), .. }) = cli.command else {
        bail!("found `{}`, expected those of a `genus bench` measurement", baseline.arguments.join(" "));
    };
    let mut global = cli.global.0;
    // As many threads as then, also where the machine now has more.
    global.threads.get_or_insert(baseline.threads);
    Ok((workload, Context { global, json: false }))
}

fn write(out: &mut impl Write, baseline: &Report, c: &Comparison) -> anyhow::Result<()> {
    writeln!(
        out,
        "\x1b[1m{}\x1b[0m of {}, {}, {}",
        baseline.workload, baseline.model, baseline.precision, baseline.kernel_level
    )?;
    writeln!(out, "{:<22}{:>10}{:>10}{:>9}{:>9}", "", "baseline", "now", "change", "noise")?;
    row(out, "time of a run", c.seconds, seconds)?;
    if let Some(memory) = c.peak_rss_bytes {
        row(out, "memory", memory, |b| bytes(b as u64))?;
    }
    writeln!(out, "{:<22}{:>29}", "the machine's ceiling", percent(c.machine))?;
    if c.seconds.worse {
        for g in c.grown.iter().take(3) {
            let more = format!("+{}", seconds(g.now - g.baseline));
            writeln!(out, "{:<22}{:>10}{:>10}{more:>9}", format!("  {}", g.name), seconds(g.baseline), seconds(g.now))?;
        }
    }
    Ok(())
}

fn row(out: &mut impl Write, name: &str, c: Change, show: impl Fn(f64) -> String) -> anyhow::Result<()> {
    let verdict = match (c.worse, c.better()) {
        (true, _) => "   \x1b[31mworse\x1b[0m",
        (_, true) => "   \x1b[32mbetter\x1b[0m",
        _ => "   within the noise",
    };
    let noise = format!("±{:.1} %", 100.0 * c.noise);
    writeln!(out, "{name:<22}{:>10}{:>10}{:>9}{noise:>9}{verdict}", show(c.baseline), show(c.now), percent(c.change))?;
    Ok(())
}

fn percent(x: f64) -> String {
    format!("{:+.1} %", 100.0 * x)
}

#[cfg(test)]
mod tests {
    use super::super::print::tests::example;
    use super::*;

    fn with(arguments: &[&str]) -> Report {
        example(&[1.0; 3]).repeated_by(arguments.iter().map(|a| (*a).to_owned()).collect())
    }

    #[test]
    fn the_arguments_name_the_workload() {
        let (workload, context) = repeated(&with(&["--seed", "3", "bench", "train", "gpt2", "--batch", "7"])).unwrap();
        assert!(format!("{workload:?}").contains("batch: 7"));
        assert_eq!((context.global.threads, context.global.seed), (Some(2), Some(3)));
        let (_, context) = repeated(&with(&["bench", "decode", "gpt2", "--threads", "1"])).unwrap();
        assert_eq!(context.global.threads, Some(1));
        for (wrong, message) in [
            (&[][..], "found none"),
            (&["tree"][..], "found `tree`"),
            (&["bench", "--compare", "x.json"][..], "expected those of a `genus bench` measurement"),
            (&["bench", "train", "gpt2", "--batchs", "1"][..], "--batchs"),
        ] {
            let error = repeated(&with(wrong)).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn changes_are_told_in_a_few_aligned_lines() {
        let (old, new) = (example(&[1.0, 1.01, 0.99]), example(&[1.3, 1.31, 1.29]));
        let c = compare(&old, Path::new("old.json"), &new).unwrap();
        let mut out = Vec::new();
        write(&mut out, &old, &c).unwrap();
        let text = String::from_utf8(anstream::adapter::strip_bytes(&out).into_vec()).unwrap();
        let expected = "\
train 4x512 of gpt2, f32, avx512
                        baseline       now   change    noise
time of a run             1.00 s    1.30 s  +30.0 %   ±3.1 %   worse
memory                   3.31 GB   3.31 GB   +0.0 %   ±5.0 %   within the noise
the machine's ceiling                        +0.0 %
";
        assert_eq!(text, expected);
    }
}
