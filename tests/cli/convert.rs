//! `genus convert`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use genus::checkpoint::Weights;
use serde_json::Value;

use crate::program::{arg, fails, fixture, json_lines, ok};

fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let weights = Weights::open(folder).unwrap();
    let floats = weights.names().filter(|n| weights.info(n).unwrap().dtype.is_float());
    floats.map(|n| (n.to_owned(), (weights.info(n).unwrap().shape, weights.f32(n).unwrap().into_owned()))).collect()
}

#[test]
fn halves_and_shards_hold_the_same_model() {
    let source = fixture("gpt2-causal-lm");
    let before = tensors(&source);
    let dir = tempfile::tempdir().unwrap();
    for (dtype, bits) in [("f32", 24), ("f16", 11), ("bf16", 8)] {
        let out = dir.path().join(dtype);
        let args =
            ["convert", arg(&source), "--output", arg(&out), "--dtype", dtype, "--max-shard-size", "8kB", "--json"];
        let report = json_lines(&ok(&args).stdout);
        assert_eq!(report.len(), 1);
        let files = report[0]["files"].as_array().unwrap();
        assert!(files.len() > 1, "{report:?}");
        assert!(out.join("model.safetensors.index.json").is_file());
        assert!(out.join("generation_config.json").is_file(), "side files come along");
        let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        let named = ["dtype", "torch_dtype"].iter().find_map(|f| config[*f].as_str());
        assert!(named.unwrap().ends_with(dtype.trim_start_matches(['b', 'f'])), "{config}");

        let after = tensors(&out);
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (name, (shape, values)) in &before {
            assert_eq!(shape, &after[name].0, "{name}");
            for (a, b) in values.iter().zip(&after[name].1) {
                // Half a unit in the last place, and f16's smallest steps near zero.
                let tolerance = a.abs() * 0.5f32.powi(bits) + if dtype == "f16" { 3e-8 } else { 0.0 };
                assert!((a - b).abs() <= tolerance, "{dtype} {name}: {a} became {b}");
            }
        }
    }
    // And back together: one file, in f32 again.
    let (halves, whole) = (dir.path().join("bf16"), dir.path().join("whole"));
    ok(&["convert", arg(&halves), "--output", arg(&whole), "--dtype", "f32"]);
    assert!(whole.join("model.safetensors").is_file() && !whole.join("model.safetensors.index.json").exists());
    assert_eq!(tensors(&halves), tensors(&whole));
}

#[test]
fn nothing_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("models/gpt2");
    fs::create_dir_all(&source).unwrap();
    for entry in fs::read_dir(fixture("gpt2-base")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, source.join(path.file_name().unwrap())).unwrap();
    }
    let before = fs::read(source.join("model.safetensors")).unwrap();
    let convert = |out: &Path, word: &str| {
        fails(1, &["convert", arg(&source), "--output", arg(out), "--dtype", "f16"], &[arg(out), word]);
    };
    convert(&source, "that is read");
    convert(&source.join("../gpt2"), "that is read");
    convert(&dir.path().join("models"), "inside of it");
    convert(&source.join("new/folder"), "inside the folder");
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious.txt"), "x").unwrap();
    convert(&full, "not empty");
    convert(&full.join("precious.txt"), "found a file");
    assert_eq!(fs::read(source.join("model.safetensors")).unwrap(), before);
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
}

#[test]
fn presets_and_damaged_folders_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fails(2, &["convert", "gpt2", "--output", arg(&out)], &["preset", "genus train gpt2", "owner/gpt2"]);
    let broken = dir.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fails(2, &["convert", arg(&broken), "--output", arg(&out), "--max-shard-size", "big"], &["200MB"]);
    fails(1, &["convert", arg(&broken), "--output", arg(&out)], &["config.json"]);
    fs::copy(fixture("gpt2-base").join("config.json"), broken.join("config.json")).unwrap();
    fails(1, &["convert", arg(&broken), "--output", arg(&out)], &["broken", "model.safetensors"]);
    let whole = fs::read(fixture("gpt2-base").join("model.safetensors")).unwrap();
    fs::write(broken.join("model.safetensors"), &whole[..whole.len() - 100]).unwrap();
    fails(1, &["convert", arg(&broken), "--output", arg(&out)], &["model.safetensors", "found", "expected"]);
    let mut huge = (1u64 << 40).to_le_bytes().to_vec();
    huge.extend_from_slice(b"{}");
    fs::write(broken.join("model.safetensors"), &huge).unwrap();
    fails(1, &["convert", arg(&broken), "--output", arg(&out)], &["model.safetensors", "expected at most"]);
    assert!(!out.exists());
    fails(1, &["convert", "no-owner/no-model", "--output", arg(&out)], &["no-owner/no-model", "HF_HUB_OFFLINE"]);
}

#[test]
fn pickles_become_safetensors_and_foreign_code_is_not_run() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gpt2-bin", "bert-old-names"] {
        let out = dir.path().join(name);
        ok(&["convert", arg(&fixture(name)), "--output", arg(&out)]);
        assert!(out.join("model.safetensors").is_file() && !out.join("pytorch_model.bin").exists());
        assert_eq!(tensors(&fixture(name)), tensors(&out));
    }
    let evil = dir.path().join("evil");
    fs::create_dir(&evil).unwrap();
    fs::copy(fixture("gpt2-base").join("config.json"), evil.join("config.json")).unwrap();
    // As in `pickle.dumps` of an object whose __reduce__ is (os.system, ("...",)).
    let marker = dir.path().join("ran");
    // Before it, what every older file of torch begins with: magic number, protocol, machine.
    let mut program = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00.".to_vec();
    program.extend_from_slice(b"\x80\x02cposix\nsystem\n(S'touch ");
    program.extend_from_slice(arg(&marker).as_bytes());
    program.extend_from_slice(b"'\ntR.");
    fs::write(evil.join("pytorch_model.bin"), program).unwrap();
    let out = dir.path().join("out");
    fails(1, &["convert", arg(&evil), "--output", arg(&out)], &["pytorch_model.bin", "posix.system"]);
    assert!(!out.exists() && !marker.exists());
}
