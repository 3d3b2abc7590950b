//! Running the program.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The program with these arguments, without the environment's settings for it.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_genus"));
    command.args(args).env("HF_HUB_OFFLINE", "1").env_remove("HF_HOME").env_remove("RUST_BACKTRACE");
    command
}

/// Runs it to its end, with nothing on standard input.
pub fn run(args: &[&str]) -> Ended {
    run_with(args, b"")
}

/// Runs it to its end, with this on standard input.
pub fn run_with(args: &[&str], input: &[u8]) -> Ended {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that does not read its input closes it.
    let _ = child.stdin.take().expect("standard input").write_all(input);
    let output = child.wait_with_output().expect("the program ends");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8 on standard output"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8 on standard error"),
    }
}

/// Runs it and expects success.
pub fn ok(args: &[&str]) -> Ended {
    let ended = run(args);
    assert_eq!(ended.code, Some(0), "{args:?}: {ended:#?}");
    ended
}

/// Runs it and expects one error block with `code`, nothing on standard output, and all of `words` in the block.
pub fn fails(code: i32, args: &[&str], words: &[&str]) -> String {
    let ended = run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {ended:#?}");
    assert_eq!(ended.stdout, "", "{args:?}");
    let blocks = ended.stderr.lines().filter(|l| l.starts_with("error:")).count();
    assert_eq!(blocks, 1, "{args:?}: {}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "{args:?}: `{word}` is not in: {}", ended.stderr);
    }
    for trace in ["panicked", "RUST_BACKTRACE", "\u{1b}["] {
        assert!(!ended.stderr.contains(trace), "{args:?}: {}", ended.stderr);
    }
    ended.stderr
}

/// Every line of standard output as JSON.
pub fn json_lines(stdout: &str) -> Vec<serde_json::Value> {
    stdout.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("not JSON ({e}): {l}"))).collect()
}

/// A folder of `tests/parity`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
