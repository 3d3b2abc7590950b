//! Runs that die, and disks that are full. The runs are processes of their own: this program again, with an environment
//! variable that says what to do.
#![cfg(unix)]

mod common;

use common::{assert_same_run, bert, gpt2, metrics, resume, train, write_text};
use genus_models::{LoadOptions, Model};
use genus_train::TrainConfig;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TASK: &str = "GENUS_TRAIN_TEST_RUN";

/// The child's part: `run|config`. Does nothing when called as a test.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (run, config) = task.split_once('|').unwrap();
    let run = Path::new(run);
    let result = match run.join("config.toml").exists() {
        true => resume(run),
        false => train(&TrainConfig::read(Path::new(config)).unwrap(), run),
    };
    match result {
        Ok(_) => std::process::exit(0),
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(3);
        }
    }
}

fn command(shell: Option<&str>, run: &Path, config: &Path) -> Command {
    let me = std::env::current_exe().unwrap();
    let mut c = match shell {
        None => Command::new(me),
        Some(before) => {
            let mut c = Command::new("sh");
            c.arg("-c").arg(format!("{before}; exec \"$0\" \"$@\"")).arg(me);
            c
        }
    };
    c.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    c.env(TASK, format!("{}|{}", run.display(), config.display()));
    c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    c
}

/// Kills the child `after` its run has logged `lines` lines; gives whether it was still alive.
fn kill(mut child: Child, run: &Path, lines: usize, after: Duration) -> bool {
    let begin = Instant::now();
    let logged = || std::fs::read(run.join("metrics.jsonl")).map_or(0, |t| t.iter().filter(|&&b| b == b'\n').count());
    while logged() < lines && child.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < Duration::from_secs(120), "the run does not get on");
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(after);
    let alive = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    alive
}

fn killed_again_and_again(make: fn(&Path) -> TrainConfig) {
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 60);
    // Saving at every step, so that many of the kills hit a checkpoint that is being written.
    let config = TrainConfig { steps: 14, save_every: Some(1), keep_last: 2, ..make(&data) };
    let file = dir.path().join("config.toml");
    std::fs::write(&file, config.to_toml().unwrap()).unwrap();
    let whole = dir.path().join("whole");
    train(&config, &whole).unwrap();
    let run = dir.path().join("run");
    let mut kills = 0;
    // Before anything is there, while starting, and then after each line with delays that sweep over a step and its saving.
    for (i, (lines, micros)) in [
        (0, 3_000),
        (0, 40_000),
        (1, 0),
        (2, 1_000),
        (4, 2_000),
        (5, 3_500),
        (7, 5_000),
        (8, 7_000),
        (10, 9_000),
        (12, 500),
    ]
    .into_iter()
    .enumerate()
    {
        let child = command(None, &run, &file).spawn().unwrap();
        // A resumed run first cuts its log to the checkpoint, so a line more than there is now is waited for.
        let have = if run.join("metrics.jsonl").exists() && i > 2 { lines.max(2) } else { lines };
        kills += usize::from(kill(child, &run, have, Duration::from_micros(micros)));
    }
    assert!(kills >= 5, "only {kills} kills hit a living run");
    let out = command(None, &run, &file).spawn().unwrap().wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_same_run(&whole, &run, 14);
    let leftovers: Vec<String> = std::fs::read_dir(&run)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.contains(".tmp-") || n.contains(".old-"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[test]
fn gpt2_survives_kills() {
    killed_again_and_again(gpt2);
}

#[test]
fn bert_survives_kills() {
    killed_again_and_again(bert);
}

/// A full disk, as near as a test without privileges gets: files of the run may not grow beyond a limit that the log stays
/// below and, from a certain moment on, weights do not.
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let data = write_text(dir.path(), 60);
    let config = TrainConfig { steps: 4, ..gpt2(&data) };
    let file = dir.path().join("config.toml");
    std::fs::write(&file, config.to_toml().unwrap()).unwrap();
    let run = dir.path().join("run");
    train(&config, &run).unwrap();
    let mut longer = TrainConfig::read(&run.join("config.toml")).unwrap();
    longer.steps = 8;
    std::fs::write(run.join("config.toml"), longer.to_toml().unwrap()).unwrap();
    // In blocks of 512 bytes (or 1,024): 16 to 32 kB, less than the weights take.
    let out = command(Some("trap '' XFSZ; ulimit -f 32"), &run, &file).spawn().unwrap().wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{message}");
    assert!(message.contains("step 6: the checkpoint could not be written"), "{message}");
    assert!(message.contains("model.safetensors") && message.contains("the last good checkpoint is"), "{message}");
    assert!(Model::load(run.join("checkpoint-4"), &LoadOptions::default()).is_ok());
    assert!(!run.join("checkpoint-6").exists());
    // With room again, the run goes on.
    assert_eq!(resume(&run).unwrap().step, 8);
    assert_eq!(metrics(&run).len(), 8);
}
