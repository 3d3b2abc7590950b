use super::*;
use serde_json::Value as Json;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(path: &Path) -> SentencePiece {
    SentencePiece::read(path, &std::fs::read(path).unwrap()).unwrap()
}

/// A model with a full table of replacements, against what Python's `sentencepiece` makes of the same texts.
#[test]
fn pieces_of_the_librarys_own_test_model() {
    let Some(data) = std::env::var_os("GENUS_DATA") else {
        eprintln!("SKIPPED: set GENUS_DATA to the folder of real data (docs/data.md) to run this test");
        return;
    };
    let model = open(&Path::new(&data).join("tok_spm_test/test_model.model"));
    let rows: Vec<Json> =
        serde_json::from_str(&std::fs::read_to_string(fixture("sentencepiece.json")).unwrap()).unwrap();
    assert!(rows.len() > 30);
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let prepared = model.prepare(text);
        let parts = model.encode(&prepared);
        let pieces: Vec<&str> = parts.iter().map(|p| p.text.as_ref()).collect();
        let expected: Vec<&str> = row["pieces"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        assert_eq!(pieces, expected, "{text:?}");
        let ids: Vec<u64> = parts.iter().map(|p| u64::from(p.id)).collect();
        let expected: Vec<u64> = row["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
        assert_eq!(ids, expected, "{text:?}");
        assert_eq!(model.decode(&pieces), row["decoded"].as_str().unwrap(), "{text:?}");
    }
}

#[test]
fn parts_cover_the_text_in_order() {
    for name in ["source.spm", "target.spm"] {
        let model = open(&fixture("tiny_marian").join(name));
        for text in ["a small boat", "  two   spaces ", "塔塔 x\u{fb01}sh", "½½", "", " "] {
            let prepared = model.prepare(text);
            let mut at = 0;
            for part in model.encode(&prepared) {
                let Range { start, end } = part.range;
                assert!(start <= end && end <= text.len() && start >= at.min(start), "{name}: {text:?}");
                assert!(text.is_char_boundary(start) && text.is_char_boundary(end), "{name}: {text:?}");
                at = end;
            }
            assert!(text[at..].trim().is_empty(), "{name}: {text:?}");
        }
    }
}

/// Cut off or changed anywhere, a file is refused or is another model; nothing panics.
#[test]
fn damaged_files() {
    let path = fixture("tiny_marian").join("source.spm");
    let bytes = std::fs::read(&path).unwrap();
    for n in 0..bytes.len() {
        if let Err(e) = SentencePiece::read(&path, &bytes[..n]) {
            assert!(e.to_string().contains("source.spm"), "{e}");
        }
        let mut changed = bytes.clone();
        changed[n] ^= 0x55;
        if let Ok(model) = SentencePiece::read(&path, &changed) {
            let prepared = model.prepare("a small ﬁsh… <sep> 塔");
            model.encode(&prepared);
        }
    }
    let fails = |bytes: &[u8]| SentencePiece::read(&path, bytes).unwrap_err().to_string();
    assert!(fails(b"").contains("an empty file"));
    assert!(fails(&bytes[..bytes.len() - 1]).contains("cut off"));
    // A model of type BPE.
    assert!(fails(&[&bytes[..], &[0x12, 2, 0x18, 2]].concat()).contains("BPE"));
    assert!(fails(&[0x0a, 3, 0x0a, 1, b'a']).contains("unknown"));
    assert!(fails(&[0x0a, 3, 0x0a, 1, b'a', 0x0a, 3, 0x0a, 1, b'a']).contains("again"));
}
