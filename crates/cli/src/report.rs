//! What the program says when it ends: errors on standard error, exit codes.

use std::io::{self, Write};
use std::process::ExitCode;

/// The error of work that stopped because the user asked for it; everything worth keeping is saved.
#[derive(Debug)]
pub(crate) struct Interrupted(pub(crate) String);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// An error in how the command was called; the exit code is then 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The result of a comparison that found a measurement worse than its baseline; the exit code is then 3.
#[derive(Debug)]
pub(crate) struct Regressed(pub(crate) String);

impl std::fmt::Display for Regressed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Regressed {}

/// Tells the user how it ended, and returns the exit code: 0 done, 1 failed, 2 called wrongly, 3 slower than a baseline, 130
/// interrupted.
pub(crate) fn finish(result: anyhow::Result<()>) -> ExitCode {
    let error = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    if is_broken_pipe(&error) {
        // The reader has seen enough, as in `genus tree | head`.
        return ExitCode::SUCCESS;
    }
    if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
        // The message cannot be shown if standard error is gone; there is no one else to tell.
        if !interrupted.0.is_empty() {
            let _ = writeln!(anstream::stderr(), "{interrupted}");
        }
        return ExitCode::from(130);
    }
    if let Some(regressed) = error.downcast_ref::<Regressed>() {
        let _ = writeln!(anstream::stderr(), "\x1b[1;31mregression:\x1b[0m {regressed}");
        return ExitCode::from(3);
    }
    let _ = write!(anstream::stderr(), "{}", describe(&error));
    if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// The error and its causes as one block. A cause that its effect already quotes is not repeated.
fn describe(error: &anyhow::Error) -> String {
    let mut out = String::new();
    let mut shown = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if out.is_empty() {
            out.push_str(&format!("\x1b[1;31merror:\x1b[0m {text}\n"));
        } else if !shown.contains(text.trim()) {
            out.push_str(&format!("  because: {}\n", text.replace('\n', "\n    ")));
        } else {
            continue;
        }
        shown = text;
    }
    out
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let by_io = cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe);
        by_io
            || cause
                .downcast_ref::<serde_json::Error>()
                .is_some_and(|e| e.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
    })
}

/// How the user called the program: for commands to go on with.
pub(crate) fn program() -> &'static str {
    // `cargo run` tells the program where cargo is.
    if std::env::var_os("CARGO").is_some() { "cargo run --release --" } else { "genus" }
}

/// Writes one JSON value as one line on standard output.
pub(crate) fn json_line(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    #[test]
    fn causes_are_listed_once() {
        let error = anyhow!("disk full").context("cannot write a.bin").context("saving: cannot write a.bin");
        let text = anstream::adapter::strip_str(&super::describe(&error)).to_string();
        assert_eq!(text, "error: saving: cannot write a.bin\n  because: disk full\n");
    }

    #[test]
    fn a_closed_pipe_is_recognised_below_other_causes() {
        let pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let error = Err::<(), _>(pipe).context("writing the tree").unwrap_err();
        assert!(super::is_broken_pipe(&error));
        assert!(!super::is_broken_pipe(&anyhow!("broken pipe")));
    }
}
