//! Marian's tokenizers, against `transformers`' `MarianTokenizer`. The fixtures' generator is
//! `tests/parity/generate_marian_tokenizer.py` in the root.

use genus_text::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny_marian")
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder().join("expected.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// A copy of the folder that may be damaged.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["source.spm", "target.spm", "vocab.json", "tokenizer_config.json"] {
        std::fs::copy(folder().join(name), dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn ids_and_texts_are_those_of_transformers() {
    let tokenizer = Tokenizer::open(folder()).unwrap();
    let expected = expected();
    let rows = expected["texts"].as_array().unwrap();
    assert!(rows.len() > 40);
    for row in rows {
        let text = row["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&row["source"]), "{text:?}");
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&row["bare"]), "{text:?}");
        assert_eq!(tokenizer.encode_target(text, true).unwrap(), ids(&row["target"]), "target: {text:?}");
        let with_offsets = tokenizer.encode_with_offsets(text, true).unwrap();
        assert_eq!(with_offsets.iter().map(|t| t.0).collect::<Vec<_>>(), ids(&row["source"]), "{text:?}");
        assert!(with_offsets.iter().all(|t| text.get(t.1.clone()).is_some()), "{text:?}: {with_offsets:?}");
    }
    for row in expected["ids"].as_array().unwrap() {
        let sequence = ids(&row["ids"]);
        assert_eq!(tokenizer.decode(&sequence, false).unwrap(), row["text"].as_str().unwrap(), "{sequence:?}");
        assert_eq!(tokenizer.decode(&sequence, true).unwrap(), row["skipped"].as_str().unwrap(), "{sequence:?}");
    }
    let special = tokenizer.special();
    for (name, id) in [("eos", special.eos), ("unk", special.unk), ("pad", special.pad)] {
        assert_eq!(expected["special"][name].as_u64(), id.map(u64::from), "{name}");
    }
    assert_eq!(tokenizer.kind(), TokenizerKind::Unigram);
    assert_eq!(tokenizer.end_of_text(), special.eos);
    assert!(matches!(tokenizer.decode(&[100_000], true), Err(TextError::UnknownId { .. })));
}

#[test]
fn a_stream_of_ids_is_the_text_of_all() {
    let tokenizer = Tokenizer::open(folder()).unwrap();
    for text in ["Drei schwarze Katzen schlafen.", "Der Bäcker und die Lehrerin", "12 塔 5%"] {
        let sequence = tokenizer.encode_target(text, true).unwrap();
        let mut stream = tokenizer.stream_decoder(true);
        let mut out: String = sequence.iter().map(|&id| stream.push(id).unwrap()).collect();
        out += &stream.finish().unwrap();
        assert_eq!(out, tokenizer.decode(&sequence, true).unwrap());
    }
}

#[test]
fn saved_files_are_the_files_that_were_read() {
    let (from, dir) = (copy(), tempfile::tempdir().unwrap());
    let tokenizer = Tokenizer::open(from.path()).unwrap();
    let bytes = |folder: &Path, name: &str| std::fs::read(folder.join(name)).unwrap();
    // The folder is gone by then.
    from.close().unwrap();
    tokenizer.save(dir.path(), Some(40)).unwrap();
    for name in ["source.spm", "target.spm", "vocab.json", "tokenizer_config.json"] {
        assert_eq!(bytes(dir.path(), name), bytes(&folder(), name), "{name}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
    let again = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(again.encode("a boat", true).unwrap(), tokenizer.encode("a boat", true).unwrap());
}

#[test]
fn pairs_for_training_have_both_models() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    std::fs::write(&source, "The old baker\n").unwrap();
    std::fs::write(&target, "Der alte Bäcker\n").unwrap();
    let tokenizer = Tokenizer::open(folder()).unwrap();
    let special = tokenizer.special();
    let (start, end) = (special.pad.unwrap(), special.eos.unwrap());
    let options = TranslationOptions { start, end, longest: 50, shuffle: false, seed: 0 };
    let text = Parallel::open(&[&source], &[&target]).unwrap();
    let example = TranslationExamples::build(&text, &tokenizer, options, |_| {}).unwrap().sample(0, 0);
    assert_eq!(example.source, tokenizer.encode("The old baker", true).unwrap());
    let labels: Vec<u32> = example.labels.iter().map(|&l| l as u32).collect();
    assert_eq!(labels, tokenizer.encode_target("Der alte Bäcker", true).unwrap());
    assert_ne!(labels, tokenizer.encode("Der alte Bäcker", true).unwrap());
    assert_eq!(example.ids[0], start);
}

/// Opens a damaged copy; the error must name the file.
fn fails(name: &str, damage: impl FnOnce(&Path)) -> String {
    let dir = copy();
    damage(&dir.path().join(name));
    let error = Tokenizer::open(dir.path()).unwrap_err();
    assert!(matches!(error, TextError::TokenizerFile { .. } | TextError::Io { .. }), "{error:?}");
    let error = error.to_string();
    assert!(error.contains(name), "{error} does not name {name}");
    error
}

#[test]
fn damaged_folders_are_refused_by_name() {
    fails("target.spm", |p| std::fs::remove_file(p).unwrap());
    fails("vocab.json", |p| std::fs::remove_file(p).unwrap());
    for name in ["source.spm", "target.spm"] {
        let cut = |p: &Path| std::fs::write(p, &std::fs::read(p).unwrap()[..1000]).unwrap();
        assert!(fails(name, cut).contains("expected a SentencePiece model"));
        assert!(fails(name, |p| std::fs::write(p, b"").unwrap()).contains("empty"));
    }
    let vocab = |change: fn(&mut serde_json::Map<String, Value>)| {
        move |p: &Path| {
            let mut value: Value = serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap();
            change(value.as_object_mut().unwrap());
            std::fs::write(p, value.to_string()).unwrap();
        }
    };
    for token in ["<unk>", "</s>", "<pad>"] {
        let error = match token {
            "<unk>" => fails("vocab.json", vocab(|v| drop(v.remove("<unk>")))),
            "</s>" => fails("vocab.json", vocab(|v| drop(v.remove("</s>")))),
            _ => fails("vocab.json", vocab(|v| drop(v.remove("<pad>")))),
        };
        assert!(error.contains(token), "{error}");
    }
    let other = vocab(|v| v.retain(|k, _| k.starts_with('<')));
    assert!(fails("vocab.json", other).contains("pieces of source.spm"));
    assert!(fails("vocab.json", vocab(|v| drop(v.insert("x".into(), json!(0))))).contains("ids that differ"));
    assert!(fails("vocab.json", vocab(|v| drop(v.insert("x".into(), json!(-1))))).contains("expected an id"));
    assert!(fails("vocab.json", |p| std::fs::write(p, "[]").unwrap()).contains("an array"));
    let separate = r#"{"separate_vocabs": true}"#;
    assert!(fails("tokenizer_config.json", |p| std::fs::write(p, separate).unwrap()).contains("separate_vocabs"));
}
