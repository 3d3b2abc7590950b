//! Training state: exact round trips, damage recognised, disk full survived.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use genus_checkpoint::atomic::{atomic_folder, atomic_write, clean_leftovers};
use genus_checkpoint::state::{
    Check, STATE_FILE, TENSORS_FILE, TrainingState, checkpoint_folder, keep_last, latest_valid, list_checkpoints,
    verify,
};
use genus_checkpoint::{Error, LOCK_FILE, RunLock, Weights, WriteOptions, write_model};
use serde_json::json;

fn vector(values: Vec<f32>) -> Tensor {
    let n = values.len();
    Tensor::from_vec(values, n, &Device::Cpu).unwrap()
}

fn state(step: u64) -> TrainingState {
    let odd: Vec<f32> = (0..1000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
    let json = json!({
        "step": step, "seed": u64::MAX, "rng": [i64::MIN, 0.1 + 0.2, 1e-310, -0.0, f64::MAX, 5e-324],
        "schedule": {"kind": "cosine"}, "text": "ü\n",
    });
    TrainingState { json, tensors: vec![("m.weight".into(), vector(odd)), ("v".into(), vector(vec![step as f32]))] }
}

fn save(run: &Path, step: u64) {
    atomic_folder(checkpoint_folder(run, step), |tmp| {
        write_model(tmp, &[("w".into(), vector(vec![1.0; 64]))], &WriteOptions::default())?;
        fs::create_dir(tmp.join("1_Pooling")).unwrap();
        fs::write(tmp.join("1_Pooling/config.json"), "{}").unwrap();
        state(step).save(tmp)
    })
    .unwrap();
}

#[test]
fn a_state_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 7);
    let back = TrainingState::load(checkpoint_folder(dir.path(), 7)).unwrap();
    assert_eq!(back.json, state(7).json);
    for (got, want) in back.json["rng"].as_array().unwrap().iter().zip(state(7).json["rng"].as_array().unwrap()) {
        assert_eq!(got.as_f64().unwrap().to_bits(), want.as_f64().unwrap().to_bits());
    }
    let bits = |t: &Tensor| t.to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for ((name, got), (wanted, want)) in back.tensors.iter().zip(&state(7).tensors) {
        assert_eq!((name, bits(got)), (wanted, bits(want)));
    }
    assert_eq!(Weights::open(checkpoint_folder(dir.path(), 7)).unwrap().len(), 1);
    let wrong = TrainingState { tensors: vec![("x".into(), Tensor::new(1i64, &Device::Cpu).unwrap())], ..state(1) };
    assert!(matches!(wrong.save(dir.path()), Err(Error::Argument { .. })));
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn damage_is_recognised_and_the_newest_sound_one_found() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    for step in [5, 10, 100, 20, 30, 40, 50] {
        save(run, step);
    }
    for other in ["checkpoint-x", "checkpoint-007", "checkpoint-", "best"] {
        fs::create_dir(run.join(other)).unwrap();
    }
    fs::write(run.join("checkpoint-999"), "a file").unwrap();
    assert_eq!(list_checkpoints(run).unwrap(), [5, 10, 20, 30, 40, 50, 100]);
    assert_eq!(latest_valid(run).unwrap().found, Some((100, checkpoint_folder(run, 100))));

    flip(&checkpoint_folder(run, 100).join("model.safetensors"), 300);
    fs::write(checkpoint_folder(run, 50).join(TENSORS_FILE), "short").unwrap();
    fs::remove_file(checkpoint_folder(run, 40).join("1_Pooling/config.json")).unwrap();
    fs::remove_file(checkpoint_folder(run, 30).join(STATE_FILE)).unwrap();
    let text = fs::read_to_string(checkpoint_folder(run, 20).join(STATE_FILE)).unwrap();
    fs::write(checkpoint_folder(run, 20).join(STATE_FILE), text.replace("cosine", "linear")).unwrap();
    let latest = latest_valid(run).unwrap();
    assert_eq!(latest.found, Some((10, checkpoint_folder(run, 10))));
    let reasons: Vec<String> = latest.skipped.iter().map(|(s, e)| format!("{s}: {e}")).collect();
    let parts = ["model.safetensors: found checksum", "found 5 bytes", "1_Pooling/config.json", STATE_FILE, "`state`"];
    for ((reason, part), step) in reasons.iter().zip(parts).zip([100, 50, 40, 30, 20]) {
        assert!(reason.starts_with(&format!("{step}: ")) && reason.contains(part), "{reason}");
    }
    assert!(matches!(TrainingState::load(checkpoint_folder(run, 100)), Err(Error::BrokenCheckpoint { .. })));
    // The cheap check does not see the flipped bit.
    verify(checkpoint_folder(run, 100), Check::Sizes).unwrap();
}

#[test]
fn pruning_keeps_complete_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    for step in 1..=5 {
        save(dir.path(), step);
    }
    fs::remove_file(checkpoint_folder(dir.path(), 5).join(STATE_FILE)).unwrap();
    assert_eq!(keep_last(dir.path(), 2).unwrap(), [1, 2]);
    assert_eq!(list_checkpoints(dir.path()).unwrap(), [3, 4, 5]);
    assert_eq!(keep_last(dir.path(), 0).unwrap(), [3]);
    assert_eq!(latest_valid(dir.path()).unwrap().found.unwrap().0, 4);
    assert_eq!(keep_last(dir.path(), 9).unwrap(), [0u64; 0]);
}

#[test]
fn a_manifest_cannot_point_outside() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 1);
    let path = checkpoint_folder(dir.path(), 1).join(STATE_FILE);
    let text = fs::read_to_string(&path).unwrap().replace("1_Pooling/config.json", "../../etc/passwd");
    fs::write(&path, text).unwrap();
    assert!(TrainingState::load(path.parent().unwrap()).unwrap_err().to_string().contains("`files` names ../../etc"));
}

// ---- a full disk: this test runs itself again with a limit on the size of files ----

const LIMITED: &str = "GENUS_TEST_LIMITED_FOLDER";

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_leaves_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    let small = [("w".to_string(), vector(vec![1.0, 2.0]))];
    write_model(&folder, &small, &WriteOptions::default()).unwrap();
    atomic_write(folder.join("a.txt"), b"old").unwrap();
    let me = std::env::current_exe().unwrap();
    // Without the trap the kernel would end the process instead of failing the write. 64 blocks of 512 bytes.
    let script = r#"trap '' XFSZ; ulimit -f 64; exec "$0" --exact limited_writer --ignored --nocapture"#;
    let output = std::process::Command::new("sh").args(["-c", script]).arg(&me).env(LIMITED, &folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(*Weights::open(&folder).unwrap().f32("w").unwrap(), [1.0, 2.0]);
    assert_eq!(fs::read(folder.join("a.txt")).unwrap(), b"old");
    assert!(!dir.path().join("new").exists());
    let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["a.txt", "model.safetensors"]);
    assert!(clean_leftovers(dir.path()).unwrap().is_empty());
}

#[test]
#[ignore = "started by the test above with a limit on file sizes"]
fn limited_writer() {
    let Some(folder) = std::env::var_os(LIMITED) else { return };
    let folder = Path::new(&folder);
    let big = [("small".to_string(), vector(vec![3.0; 16])), ("w".to_string(), vector(vec![3.0; 20_000]))];
    for max_shard_bytes in [None, Some(1000)] {
        let options = WriteOptions { max_shard_bytes, ..WriteOptions::default() };
        match write_model(folder, &big, &options) {
            Err(Error::Write { path, bytes, written, .. }) => {
                assert!(path.to_string_lossy().contains("model"), "{path:?}");
                assert!(bytes >= 80_000 && written < bytes, "{written} of {bytes}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(atomic_write(folder.join("a.txt"), &[1; 80_000]), Err(Error::Write { .. })));
    let state = TrainingState { json: json!({}), tensors: big.to_vec() };
    let new = folder.parent().unwrap().join("new");
    assert!(matches!(atomic_folder(new, |tmp| state.save(tmp)), Err(Error::Write { .. })));
}

// ---- a killed run: the test starts itself as a process that saves without end, and kills it ----

const KILLED: &str = "GENUS_TEST_KILLED_FOLDER";

#[test]
fn whenever_a_run_is_killed_its_last_checkpoint_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    let me = std::env::current_exe().unwrap();
    for round in 0..6u64 {
        let mut child = std::process::Command::new(&me)
            .args(["--exact", "endless_writer", "--ignored", "--nocapture"])
            .env(KILLED, run)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // It has to have saved something in this round; then the moment of its death differs from round to round.
        let before = list_checkpoints(run).unwrap().last().copied().unwrap_or(0);
        while list_checkpoints(run).unwrap().last().copied().unwrap_or(0) == before {
            assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_micros(round * 1700));
        child.kill().unwrap();
        child.wait().unwrap();
        let _lock = RunLock::acquire(run).unwrap();
        clean_leftovers(run).unwrap();
        let latest = latest_valid(run).unwrap();
        assert!(latest.skipped.is_empty(), "{:?}", latest.skipped);
        let (step, folder) = latest.found.unwrap();
        assert!(step > before);
        assert_eq!(TrainingState::load(folder).unwrap().json["step"], step);
        for entry in fs::read_dir(run).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name.starts_with("checkpoint-") || name == LOCK_FILE, "{name}");
        }
    }
}

#[test]
#[ignore = "started by the test above, which kills it"]
fn endless_writer() {
    let Some(run) = std::env::var_os(KILLED) else { return };
    let run = Path::new(&run);
    let _lock = RunLock::acquire(run).unwrap();
    let first = list_checkpoints(run).unwrap().last().map_or(1, |s| s + 1);
    for step in first.. {
        save(run, step);
        keep_last(run, 2).unwrap();
    }
}
