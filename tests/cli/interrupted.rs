//! Stopping by a signal.
#![cfg(unix)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::program::{arg, command, fails, ok};
use crate::train::{TINY, text};

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().expect("kill runs");
    assert!(status.success());
}

fn start(data: &Path, run: &Path) -> Child {
    let args = [
        "train",
        "gpt2",
        "--data",
        arg(data),
        "--output",
        arg(run),
        "--steps",
        "100000",
        "--save-every",
        "5",
        "--eval-every",
        "0",
        "--warmup-steps",
        "2",
    ];
    let mut child = command(&[&args[..], &TINY].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let begin = Instant::now();
    while !run.join("checkpoint-5").is_dir() {
        assert!(child.try_wait().expect("a state").is_none(), "the run ended by itself");
        assert!(begin.elapsed() < Duration::from_secs(300), "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

#[test]
fn interrupted_and_killed_runs_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(dir.path());
    for (name, code) in [("INT", Some(130)), ("TERM", Some(130)), ("KILL", None)] {
        let run = dir.path().join(name);
        let child = start(&data, &run);
        // The folder is in use while the run lasts.
        fails(1, &["train", "--resume", arg(&run)], &["in use"]);
        signal(&child, name);
        let output = child.wait_with_output().expect("an end");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), code, "{name}: {stderr}");
        if code.is_some() {
            assert!(stderr.contains("--resume"), "{stderr}");
        }
        let last = std::fs::read_dir(&run)
            .unwrap()
            .filter_map(|e| e.unwrap().file_name().to_string_lossy().strip_prefix("checkpoint-")?.parse::<u64>().ok())
            .max()
            .unwrap();
        ok(&["train", "--resume", arg(&run), "--steps", &(last + 2).to_string()]);
        assert!(run.join(format!("checkpoint-{}", last + 2)).is_dir(), "{name}");
    }
}
