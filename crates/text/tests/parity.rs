//! The ids are those of Python's `tokenizers` and `transformers`. The fixtures' generator is `fixtures/make.py`.

use genus_text::*;
use proptest::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn texts() -> Vec<String> {
    json("texts.json").as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

const TINY: [&str; 6] = ["tiny_gpt2", "tiny_bert", "tiny_bert_cased", "tiny_llama", "tiny_roberta", "tiny_gpt"];

/// The folder of real data, or `None` with a plain word about it.
fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("GENUS_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SKIPPED: set GENUS_DATA to the folder of real data (docs/data.md) to run this test");
    }
    folder
}

/// A folder for [`Tokenizer::open`] made of single files of the data folder.
fn folder(files: &[(&Path, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (from, to) in files {
        std::fs::copy(from, dir.path().join(to)).unwrap();
    }
    dir
}

fn gpt2(data: &Path) -> Tokenizer {
    let dir = folder(&[
        (&data.join("tok_gpt2/encoder.json"), "vocab.json"),
        (&data.join("tok_gpt2/vocab.bpe"), "merges.txt"),
    ]);
    Tokenizer::open(dir.path()).unwrap()
}

fn bert(data: &Path, file: &str, lower: bool) -> Tokenizer {
    let dir = folder(&[(&data.join("tok_bert").join(file), "vocab.txt")]);
    let config = format!("{{\"do_lower_case\": {lower}, \"tokenizer_class\": \"BertTokenizer\"}}");
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::open(dir.path()).unwrap()
}

#[test]
fn tiny_tokenizers() {
    let (texts, expected) = (texts(), json("expected.json"));
    for name in TINY {
        let tokenizer = Tokenizer::open(fixture(name)).unwrap();
        for (i, (text, row)) in texts.iter().zip(expected[name].as_array().unwrap()).enumerate() {
            let what = format!("{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&row["ids"]), "{what}");
            let special = tokenizer.encode(text, true).unwrap();
            assert_eq!(special, ids(&row["special"]), "{what}");
            let before = &texts[(i + texts.len() - 1) % texts.len()];
            let pair = tokenizer.encode_pair(text, before).unwrap();
            assert_eq!((pair.ids, pair.token_types), (ids(&row["pair"]), ids(&row["types"])), "{what}");
            assert_eq!(tokenizer.decode(&special, false).unwrap(), row["decoded"].as_str().unwrap(), "{what}");
            assert_eq!(tokenizer.decode(&special, true).unwrap(), row["skipped"].as_str().unwrap(), "{what}");
        }
        let batch = tokenizer.encode_batch(&texts, true).unwrap();
        assert!(batch.iter().zip(&texts).all(|(ids, text)| *ids == tokenizer.encode(text, true).unwrap()));
    }
}

#[test]
fn special_tokens() {
    let gpt2 = Tokenizer::open(fixture("tiny_gpt2")).unwrap();
    let end = gpt2.id("<|endoftext|>");
    assert!(end.is_some());
    assert_eq!((gpt2.special().eos, gpt2.special().bos, gpt2.special().pad), (end, end, None));
    assert_eq!((gpt2.end_of_text(), gpt2.kind()), (end, TokenizerKind::ByteLevelBpe));
    assert_eq!(gpt2.vocab_size(), end.unwrap() as usize + 1);
    let bert = Tokenizer::open(fixture("tiny_bert")).unwrap();
    let s = bert.special();
    assert_eq!((s.pad, s.unk, s.cls, s.sep, s.mask), (Some(0), Some(1), Some(2), Some(3), Some(4)));
    assert_eq!((s.bos, s.eos, bert.end_of_text()), (None, None, Some(3)));
    let roberta = Tokenizer::open(fixture("tiny_roberta")).unwrap();
    let s = roberta.special();
    assert_eq!((s.cls, s.pad, s.sep, s.unk), (Some(0), Some(1), Some(2), Some(3)));
    assert_eq!((s.mask, roberta.kind()), (roberta.id("<mask>"), TokenizerKind::ByteLevelBpe));
    let gpt = Tokenizer::open(fixture("tiny_gpt")).unwrap();
    assert_eq!((gpt.special().unk, gpt.special().eos), (gpt.id("<unk>"), None));
    let llama = Tokenizer::open(fixture("tiny_llama")).unwrap();
    assert_eq!((llama.special().unk, llama.special().bos, llama.special().eos), (Some(0), Some(1), Some(2)));
    let bytes = Tokenizer::bytes();
    assert_eq!(bytes.encode("hé\0\n", false).unwrap(), [b'h' as u32, 0xc3, 0xa9, 0, 10]);
    assert_eq!((bytes.vocab_size(), bytes.end_of_text()), (257, Some(256)));
}

#[test]
fn a_token_that_only_the_configuration_names_is_added() {
    let dir =
        folder(&[(&fixture("tiny_gpt2/vocab.json"), "vocab.json"), (&fixture("tiny_gpt2/merges.txt"), "merges.txt")]);
    let config = r#"{"eos_token": {"content": "<|endoftext|>"}, "pad_token": "<pad>"}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let (plain, padded) = (Tokenizer::open(fixture("tiny_gpt2")).unwrap(), Tokenizer::open(dir.path()).unwrap());
    assert_eq!(padded.special().pad, Some(plain.vocab_size() as u32));
    assert_eq!(padded.special().eos, plain.special().eos);
    assert_eq!(padded.vocab_size(), plain.vocab_size() + 1);
}

#[test]
fn saving_and_opening_changes_no_id() {
    for tokenizer in TINY.map(|n| Tokenizer::open(fixture(n)).unwrap()).into_iter().chain([Tokenizer::bytes()]) {
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path(), Some(512)).unwrap();
        let again = Tokenizer::open(dir.path()).unwrap();
        assert_eq!((again.special(), again.vocab_size()), (tokenizer.special(), tokenizer.vocab_size()));
        for text in texts() {
            assert_eq!(again.encode(&text, true).unwrap(), tokenizer.encode(&text, true).unwrap());
        }
        // The older form alone gives the same ids.
        if matches!(tokenizer.kind(), TokenizerKind::ByteLevelBpe | TokenizerKind::WordPiece) {
            std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
            let older = Tokenizer::open(dir.path()).unwrap();
            assert_eq!(older.special(), tokenizer.special());
            for text in texts() {
                assert_eq!(older.encode(&text, true).unwrap(), tokenizer.encode(&text, true).unwrap());
            }
        }
    }
}

#[test]
fn word_starts() {
    let continues = |name: &str, text: &str| -> Vec<bool> {
        let tokenizer = Tokenizer::open(fixture(name)).unwrap();
        tokenizer.encode(text, true).unwrap().into_iter().map(|id| tokenizer.continues_word(id)).collect()
    };
    let bert = Tokenizer::open(fixture("tiny_bert")).unwrap();
    for id in bert.encode("overtaking foxes", true).unwrap() {
        assert_eq!(bert.continues_word(id), bert.token(id).unwrap().starts_with("##"));
    }
    // `q`, `w` after a space start words; a comma does; letters after letters do not.
    assert_eq!(continues("tiny_gpt2", "xqz, wq"), [true, true, true, false, false, true]);
}

/// Cross-implementation vectors: strings with the ids that several programs agree on.
fn vectors(tokenizer: &Tokenizer, data: &Path, name: &str, skip: &[&str]) {
    let read = |end: &str| {
        std::fs::read_to_string(data.join(format!("tok_gguf_vectors/ggml-vocab-{name}.gguf.{end}"))).unwrap()
    };
    let (input, output) = (read("inp"), read("out"));
    let inputs: Vec<&str> = input.trim_end_matches('\n').split("\n__ggml_vocab_test__\n").collect();
    let outputs: Vec<&str> = output.lines().collect();
    let inputs: Vec<&str> = inputs.into_iter().map(|i| i.trim_end_matches("\n__ggml_vocab_test__")).collect();
    assert_eq!(inputs.len(), outputs.len(), "{name}");
    for (text, line) in inputs.iter().zip(outputs) {
        if skip.contains(text) {
            continue;
        }
        let expected: Vec<u32> = line.split_whitespace().map(|w| w.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{name}: {text:?}");
    }
}

#[test]
fn published_vectors_gpt2() {
    let Some(data) = data() else { return };
    vectors(&gpt2(&data), &data, "gpt-2", &[]);
    let dir = folder(&[(&data.join("tok_gpt2/gpt2_tokenizer.json"), "tokenizer.json")]);
    vectors(&Tokenizer::open(dir.path()).unwrap(), &data, "gpt-2", &[]);
}

#[test]
fn published_vectors_bert() {
    let Some(data) = data() else { return };
    vectors(&bert(&data, "google_uncased_en_vocab.txt", true), &data, "bert-bge", &[]);
}

#[test]
fn real_texts_as_python_encodes_them() {
    let Some(data) = data() else { return };
    let tokenizers = [
        ("gpt2", gpt2(&data)),
        ("bert_uncased", bert(&data, "google_uncased_en_vocab.txt", true)),
        ("bert_cased", bert(&data, "google_cased_en_vocab.txt", false)),
        ("bert_zh", bert(&data, "google_zh_vocab.txt", true)),
    ];
    for (name, row) in json("expected_data.json").as_object().unwrap() {
        let mut bytes = std::fs::read(data.join(row["file"].as_str().unwrap())).unwrap();
        bytes.truncate(row["limit"].as_u64().unwrap() as usize);
        let text: String = bytes.utf8_chunks().map(|c| c.valid()).collect();
        for (key, tokenizer) in &tokenizers {
            let ids = tokenizer.encode(&text, false).unwrap();
            let hash = ids.iter().fold(0xcbf29ce484222325u64, |h, &i| (h ^ i as u64).wrapping_mul(0x100000001b3));
            let found = (ids.len() as u64, format!("{hash:016x}"));
            let expected = (row[key][0].as_u64().unwrap(), row[key][1].as_str().unwrap().to_owned());
            assert_eq!(found, expected, "{name} with {key}");
            if *key == "gpt2" {
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
            }
        }
    }
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
    let mut stream = tokenizer.stream_decoder(skip);
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text += &stream.finish().unwrap();
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn streaming_is_decoding_for_any_ids(raw in prop::collection::vec(any::<u32>(), 0..40), skip in any::<bool>()) {
        for tokenizer in TINY.map(|n| Tokenizer::open(fixture(n)).unwrap()).iter().take(3) {
            let ids: Vec<u32> = raw.iter().map(|r| r % tokenizer.vocab_size() as u32).collect();
            prop_assert_eq!(streamed(tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
        }
    }

    #[test]
    fn streaming_is_decoding_for_text(text in "([a-z ,.'é\n]|\\PC){0,40}", skip in any::<bool>()) {
        for tokenizer in TINY.map(|n| Tokenizer::open(fixture(n)).unwrap()) {
            let ids = tokenizer.encode(&text, true).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
        }
    }

    #[test]
    fn bytes_come_back(text in "\\PC{0,40}|[\\s\\S]{0,40}") {
        let tokenizer = Tokenizer::bytes();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(&ids, &text.bytes().map(u32::from).collect::<Vec<_>>());
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}
