//! Each kind of bad input gives its own error, which names the file, what was found and what was expected.

use genus_text::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn all(path: &Path, split: DocumentSplit) -> Result<Vec<String>> {
    Corpus::open(&[path], CorpusOptions { split, ..Default::default() })?.documents().collect()
}

fn fails(path: &Path) -> TextError {
    let error = all(path, DocumentSplit::File).unwrap_err();
    assert!(error.to_string().contains(path.file_name().unwrap().to_str().unwrap()), "{error} does not name the file");
    error
}

#[test]
fn paths() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(fails(&dir.path().join("absent.txt")), TextError::MissingPath { .. }));
    assert!(matches!(fails(&write(dir.path(), "empty.txt", b"")), TextError::EmptyFile { .. }));
    assert!(matches!(fails(&write(dir.path(), "bom.txt", b"\xef\xbb\xbf")), TextError::EmptyFile { .. }));
    assert!(matches!(fails(&write(dir.path(), "blank.txt", b" \n\n ")), TextError::NoText { .. }));
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    assert!(matches!(fails(&folder), TextError::EmptyFolder { .. }));
    let none: [&Path; 0] = [];
    assert!(matches!(Corpus::open(&none, CorpusOptions::default()), Err(TextError::Argument { .. })));
}

#[test]
fn bytes_that_are_not_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "latin1.txt", b"caf\xe9 au lait");
    for split in [DocumentSplit::File, DocumentSplit::Lines, DocumentSplit::BlankLines] {
        match all(&path, split) {
            Err(TextError::InvalidUtf8 { offset: 3, found: 0xe9, .. }) => {}
            other => panic!("{split:?}: {other:?}"),
        }
    }
    let path = write(dir.path(), "later.txt", b"\xef\xbb\xbfline one\r\nline\xff");
    for split in [DocumentSplit::File, DocumentSplit::Lines] {
        let result = all(&path, split);
        assert!(matches!(result, Err(TextError::InvalidUtf8 { offset: 17, .. })), "{split:?}: {result:?}");
    }
    let path = write(dir.path(), "nul.txt", b"line one\nab\0c");
    for split in [DocumentSplit::File, DocumentSplit::Lines] {
        match all(&path, split) {
            Err(TextError::NulByte { place, .. }) => assert_eq!(place, "at byte 11"),
            other => panic!("{split:?}: {other:?}"),
        }
    }
    let path = write(dir.path(), "nul.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"a\\u0000b\"}\n");
    assert!(fails(&path).to_string().contains("in line 2"));
    let error = fails(&write(dir.path(), "not.txt.gz", b"this is no gzip file at all"));
    assert!(matches!(error, TextError::Io { .. }), "{error}");
}

#[test]
fn json() {
    let dir = tempfile::tempdir().unwrap();
    let message = |name: &str, text: &str| fails(&write(dir.path(), name, text.as_bytes())).to_string();
    let m = message("a.jsonl", "{\"text\": \"fine\"}\n\n{\"txt\": \"x\", \"id\": 1}\n");
    assert!(m.contains("line 3") && m.contains("\"text\"") && m.contains("only txt, id"), "{m}");
    let m = message("b.jsonl", "{\"text\": 5}");
    assert!(m.contains("line 1") && m.contains("found a number, expected a string"), "{m}");
    let m = message("c.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"cut o");
    assert!(m.contains("line 2") && m.contains("not valid JSON"), "{m}");
    let m = message("d.jsonl", "[1, 2]\n");
    assert!(m.contains("found an array"), "{m}");
    let m = message("e.json", "[{\"text\": \"fine\"},\n {\"text\": null}]");
    assert!(m.contains("element 2") && m.contains("found null"), "{m}");
    let m = message("f.json", "[{\"text\": \"fine\"},\n oops]");
    assert!(m.contains("line 2") && m.contains("not valid JSON"), "{m}");
}

#[test]
fn parquet_files() {
    let dir = tempfile::tempdir().unwrap();
    let error = fails(&write(dir.path(), "a.parquet", b"PAR1 and then nothing of the kind PAR1"));
    assert!(matches!(error, TextError::Parquet { .. }), "{error}");
    let error = fails(&write(dir.path(), "b.parquet.gz", b"x"));
    assert!(matches!(error, TextError::Parquet { .. }), "{error}");
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let error = fails(&fixture("null.parquet")).to_string();
    assert!(error.contains("column \"text\"") && error.contains("null in row 2"), "{error}");
    let column = |name: &str| {
        let options = CorpusOptions { text_field: name.into(), ..Default::default() };
        let corpus = Corpus::open(&[fixture("snappy.parquet")], options).unwrap();
        corpus.documents().next().unwrap().unwrap_err().to_string()
    };
    assert!(column("txt").contains("found only id, text, meta"), "{}", column("txt"));
    assert!(column("id").contains("found a column of type INT64"), "{}", column("id"));
    assert!(column("meta").contains("found a nested column"), "{}", column("meta"));
    // Damage anywhere is an error or leaves the text readable; it never brings the process down.
    let whole = std::fs::read(fixture("snappy.parquet")).unwrap();
    for at in (0..whole.len()).step_by(37) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        let _ = all(&write(dir.path(), "damaged.parquet", &damaged), DocumentSplit::File);
        let _ = all(&write(dir.path(), "short.parquet", &whole[..at + 1]), DocumentSplit::File);
    }
}

#[test]
fn too_short() {
    let tokenizer = Tokenizer::bytes();
    let corpus = Corpus::from_documents("memory", vec!["0123456789".into()]);
    let stream = Arc::new(TokenStream::build(&corpus, &tokenizer, |_| {}).unwrap());
    let windows = |context| CausalWindows::new(stream.clone(), WindowOptions { context, ..Default::default() });
    let error = windows(11).unwrap_err();
    assert!(matches!(error, TextError::TooShort { found: 11, needed: 12, .. }), "{error}");
    let error = windows(5).unwrap().require(3).unwrap_err();
    assert!(matches!(error, TextError::TooShort { found: 11, needed: 16, .. }), "{error}");
    windows(5).unwrap().require(2).unwrap();
    assert!(matches!(windows(0), Err(TextError::Argument { .. })));
}

#[test]
fn splits() {
    assert_eq!("0.1".parse::<DevSplit>().unwrap(), DevSplit::Fraction(0.1));
    assert_eq!("dev.txt".parse::<DevSplit>().unwrap(), DevSplit::File("dev.txt".into()));
    assert!("1.5".parse::<DevSplit>().is_err());
    assert!("0".parse::<DevSplit>().is_err());
    let one = Corpus::from_documents("memory", vec!["x".into()]);
    assert!(matches!(one.split_dev(&DevSplit::Fraction(0.5)), Err(TextError::TooShort { .. })));
    let absent = DevSplit::File("/nonexistent/dev.txt".into());
    assert!(matches!(one.split_dev(&absent), Err(TextError::MissingPath { .. })));
}

#[test]
fn specifications() {
    let ok = |s: &str| s.parse::<TokenizerSpec>().unwrap();
    assert_eq!(ok("train:bpe:8000"), TokenizerSpec::Train { kind: TrainKind::Bpe, vocab_size: 8000 });
    assert_eq!(ok("train:wordpiece:100"), TokenizerSpec::Train { kind: TrainKind::WordPiece, vocab_size: 100 });
    assert_eq!(ok("train:unigram:100").to_string(), "train:unigram:100");
    assert_eq!(ok("bytes"), TokenizerSpec::Bytes);
    assert_eq!(ok("./bytes"), TokenizerSpec::Folder("./bytes".into()));
    for (spec, part) in [
        ("", "is empty"),
        ("train", "train:bpe:8000"),
        ("train:bpe", "has no size"),
        ("train:bep:8000", "unknown kind \"bep\""),
        ("train:bpe:many", "not a whole number"),
        ("train:bpe:10", "at least 257"),
    ] {
        let error = spec.parse::<TokenizerSpec>().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn tokenizer_folders() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Tokenizer::open(dir.path()).unwrap_err();
    assert!(matches!(open(), TextError::NoTokenizer { .. }));
    assert!(matches!(Tokenizer::open("/nonexistent/folder"), Err(TextError::Io { .. })));

    write(dir.path(), "vocab.txt", b"[PAD]\n[UNK]\n[CLS]\na\n");
    assert!(open().to_string().contains("[SEP]: found no such line"), "{}", open());
    std::fs::remove_file(dir.path().join("vocab.txt")).unwrap();

    write(dir.path(), "vocab.json", br#"{"a": 0, "b": 1, "ab": 2, "c": -3}"#);
    write(dir.path(), "merges.txt", b"#version: 0.2\na b\n");
    assert!(open().to_string().contains("vocabulary[\"c\"]: found -3"), "{}", open());
    write(dir.path(), "vocab.json", br#"{"a": 0, "b": 1}"#);
    assert!(open().to_string().contains("merges.txt: line 2: found \"ab\""), "{}", open());
    write(dir.path(), "merges.txt", b"#version: 0.2\nab\n");
    assert!(open().to_string().contains("line 2: found \"ab\", expected two tokens"), "{}", open());

    write(dir.path(), "tokenizer.json", b"{\"version\": ");
    assert!(open().to_string().contains("expected valid JSON"), "{}", open());
    write(dir.path(), "tokenizer.json", b"{\"version\": \"1.0\"}");
    assert!(open().to_string().contains("model: found nothing"), "{}", open());
    write(dir.path(), "tokenizer.json", br#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "z"]]}}"#);
    assert!(open().to_string().contains("model: found"), "{}", open());
    write(dir.path(), "tokenizer.json", br#"{"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}"#);
    assert!(open().to_string().contains("model.vocab[\"a\"]: found 4000000000"), "{}", open());
    let odd = br#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"Nope"},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
    write(dir.path(), "tokenizer.json", odd);
    assert!(open().to_string().contains("normalizer: found"), "{}", open());

    Tokenizer::bytes().save(dir.path(), None).unwrap();
    write(dir.path(), "tokenizer_config.json", br#"{"eos_token": 3}"#);
    assert!(open().to_string().contains("tokenizer_config.json: eos_token: found a number"), "{}", open());
}

#[test]
fn ids_beyond_the_vocabulary() {
    let tokenizer = Tokenizer::bytes();
    let error = tokenizer.decode(&[104, 105, 257], false).unwrap_err();
    assert!(matches!(error, TextError::UnknownId { id: 257, position: 2, vocab_size: 257 }), "{error}");
    let mut stream = tokenizer.stream_decoder(false);
    stream.push(104).unwrap();
    assert!(matches!(stream.push(9999), Err(TextError::UnknownId { id: 9999, position: 1, .. })));
}

#[test]
fn training_errors() {
    let train = |kind, size, documents: Vec<Result<String>>| {
        Tokenizer::train(&TrainOptions::new(kind, size), documents.into_iter(), |_| {}).unwrap_err()
    };
    for kind in [TrainKind::Bpe, TrainKind::WordPiece, TrainKind::Unigram] {
        assert!(matches!(train(kind, 3, vec![]), TextError::Argument { .. }));
        assert!(matches!(train(kind, 300, vec![]), TextError::NoText { .. }));
        let broken = Err(TextError::EmptyFile { path: "x".into() });
        assert!(matches!(train(kind, 300, vec![Ok("a b".into()), broken]), TextError::EmptyFile { .. }));
    }
}

#[test]
fn characters_that_a_vocabulary_cannot_spell() {
    let dir = tempfile::tempdir().unwrap();
    let vocabulary = |json: &str, class: &str| {
        std::fs::write(dir.path().join("vocab.json"), json).unwrap();
        std::fs::write(dir.path().join("merges.txt"), "#version: 0.2\na b\n").unwrap();
        let config = format!(r#"{{"tokenizer_class":"{class}","eos_token":"<|endoftext|>"}}"#);
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        Tokenizer::open(dir.path()).unwrap()
    };
    // Some bytes of many: the two of an umlaut are not both there.
    let some = vocabulary(r#"{"a":0,"b":1,"c":2,"ab":3,"<|endoftext|>":4,"Ã":5}"#, "GPT2Tokenizer");
    assert_eq!(some.encode("abcab<|endoftext|>", false).unwrap(), [3, 2, 3, 4]);
    for (text, wanted, at) in [("abcz", 'z', 3), ("abü", 'ü', 2), ("a b", ' ', 1), ("<|endoftext|>z", 'z', 13)] {
        let error = some.encode(text, false).unwrap_err();
        assert!(
            matches!(error, TextError::Character { character, position } if (character, position) == (wanted, at)),
            "{error}"
        );
        assert!(some.encode_with_offsets(text, false).is_err() && some.encode_pair("a", text).is_err());
    }
    // Of words, with and without a token for what is unknown.
    let words = r#"{"a":0,"b":1,"a</w>":2,"b</w>":3,"ab":4"#;
    let known = vocabulary(&format!("{words},\"<unk>\":5}}"), "OpenAIGPTTokenizer");
    assert!(known.encode("a z", false).unwrap().contains(&5));
    let none = vocabulary(&format!("{words}}}"), "OpenAIGPTTokenizer");
    assert_eq!(none.encode("a  b\n", false).unwrap(), [2, 3]);
    let error = none.encode("a z", false).unwrap_err();
    assert!(matches!(error, TextError::Character { character: 'z', position: 2 }), "{error}");
}
