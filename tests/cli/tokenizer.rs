//! `genus tokenizer`.

use std::fs;

use crate::program::{arg, fails, json_lines, ok, run_with};

const TEXT: &str = "the cat sat on the mat. the cat ate the rat. the rat sat on the cat's mat, and that was that.\n";

#[test]
fn what_is_trained_encodes_and_decodes() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("text.txt");
    fs::write(&data, TEXT.repeat(20)).unwrap();
    for (kind, size) in [("bpe", "280"), ("wordpiece", "60"), ("unigram", "40")] {
        let out = dir.path().join(kind);
        let args = [
            "tokenizer",
            "train",
            "--data",
            arg(&data),
            "--kind",
            kind,
            "--vocab-size",
            size,
            "--output",
            arg(&out),
            "--json",
        ];
        let trained = json_lines(&ok(&args).stdout);
        assert_eq!(trained.len(), 1);
        let learned = trained[0]["vocab_size"].as_u64().unwrap();
        assert!(learned > 10 && learned <= size.parse().unwrap(), "{kind}: {learned}");

        let encoded = ok(&["tokenizer", "encode", arg(&out), "--text", "the cat sat", "--no-special-tokens"]).stdout;
        let ids = encoded.trim();
        assert!(ids.split(' ').count() < 11, "{kind}: nothing was learned: {ids}");
        let decoded = ok(&["tokenizer", "decode", arg(&out), "--ids", ids]).stdout;
        assert_eq!(decoded, "the cat sat\n", "{kind}");
        fails(1, &args, &[kind, "holds a tokenizer already"]);
    }
}

#[test]
fn texts_come_from_flags_files_and_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let lines = dir.path().join("lines.txt");
    fs::write(&lines, "a\nbc\n").unwrap();
    assert_eq!(ok(&["tokenizer", "encode", "bytes", "--texts", arg(&lines)]).stdout, "97\n98 99\n");
    assert_eq!(ok(&["tokenizer", "encode", "bytes", "--text-file", arg(&lines)]).stdout, "97 10 98 99 10\n");
    assert_eq!(ok(&["tokenizer", "encode", "bytes", "--text", "a", "--text", "é"]).stdout, "97\n195 169\n");
    assert_eq!(run_with(&["tokenizer", "encode", "bytes"], b"hi").stdout, "104 105\n");
    assert_eq!(run_with(&["tokenizer", "decode", "bytes"], b"104 105\n[72, 105]\n").stdout, "hi\nHi\n");
    let json = json_lines(&ok(&["tokenizer", "encode", "bytes", "--text", "a b", "--json"]).stdout);
    assert_eq!(json, [serde_json::json!({"ids": [97, 32, 98], "tokens": ["a", "Ġ", "b"]})]);
}

#[test]
fn bad_data_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let out = dir.path().join("out");
    let train = |data: &str, words: &[&str]| {
        let args = ["tokenizer", "train", "--data", data, "--output", arg(&out)];
        fails(1, &args, words);
        assert!(!out.exists(), "a failed run leaves nothing");
    };
    train("no-such-file.txt", &["no-such-file.txt"]);
    train(arg(&file("empty.txt", b"")), &["empty.txt", "empty"]);
    train(arg(&file("bad.txt", b"good line\nbad \xff\xfe line\n")), &["bad.txt", "UTF-8"]);
    train(arg(&file("nul.txt", b"a\0b\n")), &["nul.txt", "NUL"]);
    train(arg(&file("x.jsonl", b"{\"text\": \"a\"}\n{\"txt\": \"b\"}\n")), &["x.jsonl", "2", "text"]);
    train(arg(&file("y.jsonl", b"{\"text\": \"a\"\n")), &["y.jsonl", "1"]);
    train(arg(&file("z.parquet", b"not parquet at all, but long enough")), &["z.parquet"]);
    let empty = dir.path().join("folder");
    fs::create_dir(&empty).unwrap();
    train(arg(&empty), &["folder"]);
    fails(2, &["tokenizer", "train", "--output", arg(&out)], &["--data"]);
}

#[test]
fn line_ends_and_marks_are_put_right_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("dos.txt");
    fs::write(&data, [b"\xef\xbb\xbf".as_slice(), TEXT.replace('\n', "\r\n").repeat(3).as_bytes()].concat()).unwrap();
    let out = dir.path().join("out");
    let text = ok(&["tokenizer", "train", "--data", arg(&data), "--vocab-size", "300", "--output", arg(&out)]).stdout;
    assert!(text.contains("3 CR LF line ends made LF") && text.contains("1 byte order marks removed"), "{text}");
}

#[test]
fn ids_and_models_that_cannot_be_are_named() {
    fails(1, &["tokenizer", "decode", "bytes", "--ids", "3 999"], &["999", "257"]);
    fails(1, &["tokenizer", "decode", "bytes", "--ids", "3 x"], &["`x`", "whole numbers"]);
    fails(1, &["tokenizer", "encode", "no/such/model/folder", "--text", "a"], &["no/such/model/folder"]);
    let dir = tempfile::tempdir().unwrap();
    fails(1, &["tokenizer", "encode", arg(dir.path()), "--text", "a"], &["tokenizer.json", "vocab.txt"]);
}
