//! Saved tokenizers, loaded by Python's `transformers`: the same ids. Runs where `GENUS_PYTHON` names a Python that has it.

use genus_text::*;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn transformers_loads_what_is_saved() {
    let Some(python) = std::env::var_os("GENUS_PYTHON") else {
        eprintln!("SKIPPED: set GENUS_PYTHON to a Python with transformers to run this test");
        return;
    };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let texts_json = std::fs::read_to_string(fixtures.join("texts.json")).unwrap();
    let texts: Vec<String> = serde_json::from_str(&texts_json).unwrap();
    let learn = |kind| {
        let documents = [include_str!("parity.rs").to_owned(), texts.join("\n\n")];
        Tokenizer::train(&TrainOptions::new(kind, 500), documents.into_iter().map(Ok), |_| {}).unwrap()
    };
    let cased = TrainOptions { lowercase: false, ..TrainOptions::new(TrainKind::WordPiece, 500) };
    let cased = Tokenizer::train(&cased, texts.clone().into_iter().map(Ok), |_| {}).unwrap();
    let tokenizers = [
        ("bytes", Tokenizer::bytes()),
        ("bpe", learn(TrainKind::Bpe)),
        ("wordpiece", learn(TrainKind::WordPiece)),
        ("wordpiece, cased", cased),
        ("unigram", learn(TrainKind::Unigram)),
        ("tiny_gpt2", Tokenizer::open(fixtures.join("tiny_gpt2")).unwrap()),
        ("tiny_bert_cased", Tokenizer::open(fixtures.join("tiny_bert_cased")).unwrap()),
        ("tiny_roberta", Tokenizer::open(fixtures.join("tiny_roberta")).unwrap()),
        ("tiny_gpt", Tokenizer::open(fixtures.join("tiny_gpt")).unwrap()),
        ("tiny_llama", Tokenizer::open(fixtures.join("tiny_llama")).unwrap()),
    ];
    for (name, tokenizer) in tokenizers {
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path(), Some(123_456)).unwrap();
        let mut child = Command::new(&python)
            .arg(fixtures.join("check.py"))
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(texts_json.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{name}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        eprintln!("{name}: {}", answer["class"]);
        for (i, (text, row)) in texts.iter().zip(answer["rows"].as_array().unwrap()).enumerate() {
            assert_eq!(ids(&row["ids"]), tokenizer.encode(text, false).unwrap(), "{name}: {text:?}");
            assert_eq!(ids(&row["special"]), tokenizer.encode(text, true).unwrap(), "{name}: {text:?}");
            let before = &texts[(i + texts.len() - 1) % texts.len()];
            // `transformers` takes an empty second text for none.
            if !before.is_empty() {
                let pair = tokenizer.encode_pair(text, before).unwrap();
                assert_eq!(ids(&row["pair"]), pair.ids, "{name}: {text:?}");
            }
        }
        let s = tokenizer.special();
        for (field, id) in [
            ("bos", s.bos),
            ("eos", s.eos),
            ("pad", s.pad),
            ("unk", s.unk),
            ("cls", s.cls),
            ("sep", s.sep),
            ("mask", s.mask),
        ] {
            assert_eq!(answer["special"][field].as_u64(), id.map(u64::from), "{name}: {field}");
        }
        assert_eq!(answer["size"].as_u64(), Some(tokenizer.vocab_size() as u64), "{name}");
        assert_eq!(answer["length"].as_u64(), Some(123_456), "{name}");
    }
}
