//! Sentence vectors: sentence-transformers/all-MiniLM-L6-v2 as the reference computes them, and what a folder says.

use genus_checkpoint::Weights;
use genus_infer::{EmbedOptions, Pooling, embed, embed_ids, encode_lines, read_lines};
use genus_models::{LoadOptions, Model, Task, find_preset};
use genus_ops::{Path as Way, to_vec};
use genus_text::Tokenizer;
use std::path::Path;

#[test]
fn minilm_gives_the_references_vectors() {
    let Ok(folder) = std::env::var("GENUS_MINILM") else {
        eprintln!("SKIPPED: GENUS_MINILM does not name the folder of sentence-transformers/all-MiniLM-L6-v2");
        return;
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/minilm");
    let lines = read_lines(here.join("sentences.txt")).unwrap();
    let expected = Weights::open(here.join("expected.safetensors")).unwrap();
    let want = expected.f32("embeddings").unwrap();
    let off = f64::from(expected.f32("off").unwrap()[0]);
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let task = LoadOptions { task: Some(Task::Base), ..Default::default() };
    let model = Model::load(&folder, &task).unwrap().model;
    let options = EmbedOptions::open(&folder).unwrap();
    assert_eq!((options.pooling, options.normalize, options.max_tokens), (Pooling::Mean, true, Some(256)));
    let run = |o: EmbedOptions| {
        let e = embed(&model, &tokenizer, &lines, &o, |_| {}).unwrap();
        assert_eq!((e.vectors.dims(), e.truncated), ([lines.len(), 384].as_slice(), 1));
        to_vec(&e.vectors).unwrap()
    };
    for path in [Way::Kernels, Way::Definitions] {
        let got = run(EmbedOptions { path, ..options.clone() });
        let far = got.iter().zip(want.iter()).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        eprintln!("{path:?}: largest deviation {far:.2e}; the reference's own from float64 {off:.2e}");
        // Both are off from the exact result by about as much; values are about 0.05.
        assert!(far <= 8.0 * off, "{path:?}: off {far:e}");
    }
    // The size of batches changes no bit.
    assert_eq!(run(options.clone()), run(EmbedOptions { batch_tokens: 1, ..options }));
}

fn tiny(task: Task) -> Model {
    let (family, preset) = find_preset("bert-tiny").unwrap();
    let mut spec = (preset.spec)();
    (spec.d_model, spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.d_head) = (24, 2, 2, 2, 12);
    (spec.d_ff, spec.vocab_size, spec.n_ctx) = (20, 300, 16);
    Model::random(family, spec, task, 3).unwrap()
}

#[test]
fn poolings_keep_the_order_of_lines() {
    let model = tiny(Task::Base);
    let ids: Vec<Vec<u32>> =
        [3usize, 7, 1, 16, 5].iter().map(|&n| (0..n as u32).map(|i| i * 7 % 300).collect()).collect();
    for pooling in Pooling::ALL {
        let o = EmbedOptions { pooling, batch_tokens: 20, ..Default::default() };
        let mut heard = Vec::new();
        let all = to_vec(&embed_ids(&model, &ids, &o, |n| heard.push(n)).unwrap()).unwrap();
        assert_eq!(heard.last(), Some(&5));
        for (i, line) in ids.iter().enumerate() {
            let one = to_vec(&embed_ids(&model, std::slice::from_ref(line), &o, |_| {}).unwrap()).unwrap();
            assert_eq!(one, all[i * 24..(i + 1) * 24], "{pooling:?} {i}");
        }
        let unit = EmbedOptions { normalize: true, ..o };
        let unit = to_vec(&embed_ids(&model, &ids, &unit, |_| {}).unwrap()).unwrap();
        for (u, v) in unit.chunks(24).zip(all.chunks(24)) {
            let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!(u.iter().zip(v).all(|(a, b)| (a * norm - b).abs() < 1e-5));
        }
        // A line of one token is its own first, last and mean.
        if pooling != Pooling::Pooler {
            let first = to_vec(&embed_ids(&model, &ids, &EmbedOptions::default(), |_| {}).unwrap()).unwrap();
            assert!(all[2 * 24..3 * 24].iter().zip(&first[2 * 24..3 * 24]).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
    let o = EmbedOptions { pooling: Pooling::Pooler, ..Default::default() };
    let message = embed_ids(&tiny(Task::MaskedLm), &ids, &o, |_| {}).unwrap_err().to_string();
    assert!(message.contains("no pooler"), "{message}");
    let message = embed_ids(&model, &[vec![1], vec![]], &o, |_| {}).unwrap_err().to_string();
    assert!(message.contains("line 2"), "{message}");
}

#[test]
fn long_lines_are_cut_and_counted() {
    let model = tiny(Task::Base);
    let lines = ["0123456789abcdefXYZ", "0123456789abcdef", "0123456789"];
    let o = EmbedOptions::default();
    let e = embed(&model, &Tokenizer::bytes(), &lines, &o, |_| {}).unwrap();
    assert_eq!((e.truncated, e.tokens), (1, 42));
    let v = to_vec(&e.vectors).unwrap();
    assert_eq!(v[..24], v[24..48]);
    let e = embed(&model, &Tokenizer::bytes(), &lines, &EmbedOptions { max_tokens: Some(4), ..o }, |_| {}).unwrap();
    assert_eq!((e.truncated, e.tokens), (3, 12));
    let (ids, cut) = encode_lines(&Tokenizer::bytes(), &["abc"], 3).unwrap();
    assert_eq!((ids[0].len(), cut), (3, 0));
}

#[test]
fn what_a_folder_says() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    assert_eq!(EmbedOptions::open(dir.path()).unwrap(), EmbedOptions::default());
    write("modules.json", r#"[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#);
    let message = EmbedOptions::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("1_Pooling"), "{message}");
    write("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#);
    let o = EmbedOptions::open(dir.path()).unwrap();
    assert_eq!((o.pooling, o.normalize), (Pooling::Cls, false));
    for (file, text, part) in [
        ("1_Pooling/config.json", r#"{"pooling_mode_max_tokens": true}"#, "pooling_mode_max_tokens"),
        ("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#, "only one"),
        ("1_Pooling/config.json", r#"{"pooling_mode": "weightedmean"}"#, "weightedmean"),
        ("modules.json", r#"[{"type": "sentence_transformers.models.Dense"}]"#, "[0].type"),
        ("modules.json", "{", "modules.json"),
        ("sentence_bert_config.json", r#"{"max_seq_length": 0}"#, "max_seq_length"),
    ] {
        write(file, text);
        let message = EmbedOptions::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(file) && message.contains(part), "{message}");
    }
}

#[test]
fn files_of_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines.txt");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        read_lines(&path).map_err(|e| e.to_string())
    };
    assert_eq!(read(b"\xef\xbb\xbfa\r\n\nb").unwrap(), ["a", "", "b"]);
    assert_eq!(read(b"a\nb\n").unwrap(), ["a", "b"]);
    assert!(read(b"").unwrap_err().contains("empty file"));
    let message = read(b"a\n\xff\n").unwrap_err();
    assert!(message.contains("lines.txt") && message.contains("line 2") && message.contains("UTF-8"), "{message}");
    assert!(read_lines(dir.path().join("none")).unwrap_err().to_string().contains("none"));
}
