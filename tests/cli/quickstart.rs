//! `genus quickstart`, with few steps.

use std::fs;

use crate::program::{arg, command, fails, json_lines, ok};
use crate::train::text;

#[test]
fn the_built_in_corpus_trains_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let output = command(&["quickstart", "--steps", "2"]).current_dir(dir.path()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout} {}", String::from_utf8_lossy(&output.stderr));
    for word in ["bits per byte", "before", "after", "sample", "runs/quickstart-1", "generate", "--resume", "--data"] {
        assert!(stdout.contains(word), "{word} is not in {stdout}");
    }
    let run = dir.path().join("runs/quickstart-1");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"] {
        assert!(run.join("checkpoint-2").join(name).is_file(), "{name}");
    }
    // What it says goes on: resuming knows the built-in corpus.
    ok(&["train", "--resume", arg(&run), "--steps", "3"]);
    assert!(run.join("checkpoint-3").is_dir());
}

#[test]
fn own_text_and_a_new_folder_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(dir.path());
    let data_too_short = fs::read(&data).unwrap();
    fs::write(&data, data_too_short.repeat(10)).unwrap();
    let short = dir.path().join("short.txt");
    fs::write(&short, data_too_short).unwrap();
    fails(
        1,
        &["quickstart", "--data", arg(&short), "--output", arg(&dir.path().join("y"))],
        &["too little text", "tokens"],
    );
    for n in 1..3 {
        let output = command(&["quickstart", "--steps", "1", "--data", arg(&data), "--json"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = json_lines(std::str::from_utf8(&output.stdout).unwrap());
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["output"], format!("runs/quickstart-{n}"));
        assert!(lines[0]["last_dev"]["bits_per_byte"].as_f64().unwrap() > 0.0);
        assert_eq!(lines[0]["samples"].as_array().unwrap().len(), 3);
    }
    assert_eq!(fs::read_dir(dir.path().join("runs")).unwrap().count(), 2);
    fails(1, &["quickstart", "--data", "no-such-file", "--output", arg(&dir.path().join("x"))], &["no-such-file"]);
    fails(2, &["quickstart", "--steps", "0"], &["--steps"]);
}
