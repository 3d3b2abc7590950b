//! Weights in safetensors: what is written is read back, and hostile files get errors that name the place.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use genus_checkpoint::{Dtype, Error, Weights, WriteOptions, write_model};
use proptest::prelude::*;

fn tensor(shape: &[usize], first: f32) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_vec((0..n).map(|i| first + i as f32).collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

fn model() -> Vec<(String, Tensor)> {
    vec![
        ("wte.weight".into(), tensor(&[5, 4], 0.5)),
        ("h.0.ln.weight".into(), tensor(&[4], -2.0)),
        ("ids".into(), Tensor::from_vec(vec![7i64, -1, 3], 3, &Device::Cpu).unwrap()),
        // A transposed view: its memory is not in its own order.
        ("h.0.w".into(), tensor(&[3, 4], 10.0).t().unwrap()),
        ("empty".into(), tensor(&[0, 4], 0.0)),
        ("scalar".into(), tensor(&[], 3.0)),
    ]
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn check(folder: &Path, exact: bool) {
    let w = Weights::open(folder).unwrap();
    assert_eq!(w.names().collect::<Vec<_>>(), ["empty", "h.0.ln.weight", "h.0.w", "ids", "scalar", "wte.weight"]);
    for (name, t) in model().iter().filter(|(n, _)| n != "ids") {
        let got = w.tensor(name).unwrap();
        assert_eq!((got.dims(), got.dtype()), (t.dims(), DType::F32), "{name}");
        let diff = flat(&got).iter().zip(flat(t)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // bf16 keeps 8 bits: values up to 24 are within 1/16.
        assert!(diff <= if exact { 0.0 } else { 0.0625 }, "{name}: {diff}");
        assert_eq!(w.info(name).unwrap().shape, t.dims());
        let mut buffer = vec![0.0; got.elem_count()];
        w.read_f32(name, &mut buffer).unwrap();
        assert_eq!(buffer, flat(&got));
    }
    assert_eq!(w.integers("ids").unwrap(), [7, -1, 3]);
    assert!(matches!(w.tensor("ids"), Err(Error::Dtype { .. })));
    assert!(matches!(w.read_f32("scalar", &mut []), Err(Error::Argument { .. })));
    let m = w.tensor("h.0.ln.wieght").unwrap_err().to_string();
    assert!(m.contains("nearest: h.0.ln.weight"), "{m}");
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn round_trips_in_every_type_single_and_sharded() {
    let dir = tempfile::tempdir().unwrap();
    for (dtype, name) in [(Dtype::F32, "F32"), (Dtype::F16, "F16"), (Dtype::BF16, "BF16"), (Dtype::F64, "F64")] {
        for max_shard_bytes in [None, Some(64)] {
            let metadata = BTreeMap::from([("made-by".to_string(), "test".to_string())]);
            let options = WriteOptions { dtype, max_shard_bytes, metadata };
            write_model(dir.path(), &model(), &options).unwrap();
            check(dir.path(), matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::F16));
            let w = Weights::open(dir.path()).unwrap();
            assert_eq!(w.info("h.0.w").unwrap().dtype.name(), name);
            assert_eq!(w.metadata()["format"], "pt");
            assert_eq!(w.metadata()["made-by"], "test");
            let sharded = files(dir.path()).len() > 1;
            assert_eq!(sharded, max_shard_bytes.is_some());
            if sharded {
                assert!(!dir.path().join("model.safetensors").exists());
                let text = fs::read_to_string(dir.path().join("model.safetensors.index.json")).unwrap();
                let index: serde_json::Value = serde_json::from_str(&text).unwrap();
                let total = 38 * dtype.size() as u64 - dtype.size() as u64 + 24;
                assert_eq!(index["metadata"]["total_size"], total);
                assert!(index["weight_map"]["wte.weight"].as_str().unwrap().starts_with("model-00001-of-0000"));
            }
        }
    }
}

#[test]
fn the_reference_implementation_reads_what_is_written() {
    // candle reads through the `safetensors` crate.
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &model(), &WriteOptions::default()).unwrap();
    let read = candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(read.len(), 6);
    assert_eq!(flat(&read["h.0.w"]), flat(&model()[3].1));
}

#[test]
fn f32_is_bit_exact_and_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..4000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
    let t = Tensor::from_vec(values.clone(), 4000, &Device::Cpu).unwrap();
    write_model(dir.path(), &[("x".into(), t)], &WriteOptions::default()).unwrap();
    let w = Weights::open(dir.path()).unwrap();
    let view = w.f32("x").unwrap();
    assert!(matches!(view, std::borrow::Cow::Borrowed(_)));
    assert!(view.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
    let (at, value) = w.first_non_finite("x").unwrap().unwrap();
    assert_eq!(Some(at), values.iter().position(|v| !v.is_finite()));
    assert!(!value.is_finite());
}

#[test]
fn overwriting_a_mapped_file_leaves_the_map_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &[("x".into(), tensor(&[1000], 0.0))], &WriteOptions::default()).unwrap();
    let old = Weights::open(dir.path()).unwrap();
    write_model(dir.path(), &[("x".into(), tensor(&[2], 5.0))], &WriteOptions::default()).unwrap();
    assert_eq!(old.f32("x").unwrap()[999], 999.0);
    assert_eq!(*Weights::open(dir.path()).unwrap().f32("x").unwrap(), [5.0, 6.0]);
}

#[test]
fn what_cannot_be_written_is_refused_before_any_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &model(), &WriteOptions::default()).unwrap();
    let twice = [("a".to_string(), tensor(&[1], 0.0)), ("a".to_string(), tensor(&[1], 0.0))];
    assert!(matches!(write_model(dir.path(), &twice, &WriteOptions::default()), Err(Error::Argument { .. })));
    let options = WriteOptions { dtype: Dtype::I64, ..WriteOptions::default() };
    assert!(matches!(write_model(dir.path(), &model(), &options), Err(Error::Argument { .. })));
    check(dir.path(), true);
    assert_eq!(files(dir.path()), ["model.safetensors"]);
}

// ---- hostile files ----

fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

fn open_bytes(bytes: &[u8]) -> Result<Weights, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    Weights::open(dir.path())
}

#[test]
fn hostile_headers_are_named() {
    let a = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let good = raw(&format!("{{{a}}}"), 8);
    assert_eq!(open_bytes(&good).unwrap().len(), 1);
    let mut long = good.clone();
    long[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
    let mut beyond = good.clone();
    beyond[..8].copy_from_slice(&5_000u64.to_le_bytes());
    let mut overflow = good.clone();
    overflow[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["file size", "0 bytes"]),
        (vec![1, 2, 3], &["file size", "3 bytes"]),
        (long, &["header length", "at most 100000000"]),
        (overflow, &["header length", "at most 100000000"]),
        (beyond, &["header length", "5000", "truncated"]),
        (good[..good.len() - 1].to_vec(), &["tensor `a`", "[0, 8]", "truncated"]),
        ([good.clone(), vec![0]].concat(), &["data", "9 bytes", "8 bytes"]),
        (raw("{not json", 0), &["header", "line 1"]),
        (raw(&format!("{{{a}}} trailing"), 8), &["header", "trailing"]),
        (raw("[]", 0), &["header", "an object"]),
        (raw(&format!("{{{a},{a}}}"), 8), &["`a` stands in the header twice"]),
        (raw(r#"{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}"#, 8), &["tensor `a`, dtype", "F31", "BF16"]),
        (raw(r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,8]}}"#, 8), &["tensor `a`", "8 bytes", "4 bytes"]),
        (raw(r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8), &["entry `a`", "-2"]),
        (raw(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8), &["tensor `a`", "[8, 0]"]),
        (raw(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}"#, 8), &["entry `a`"]),
        (raw(r#"{"a":{"dtype":"F32","shape":[2],"offsets":[0,8]}}"#, 8), &["entry `a`", "unknown field"]),
        (
            raw(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#, 8),
            &["tensor `a`, shape", "2^64"],
        ),
        (
            raw(r#"{"a":{"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}"#, 0),
            &["tensor `a`, shape", "2^64"],
        ),
        (
            raw(&format!(r#"{{{a},"b":{{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}}}"#), 12),
            &["tensor `b`", "overlaps `a`", "begin 8"],
        ),
        (
            raw(&format!(r#"{{{a},"b":{{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}}}"#), 16),
            &["tensor `b`", "leaves a hole after `a`"],
        ),
        (raw(r#"{"__metadata__":{"a":1}}"#, 0), &["__metadata__"]),
    ];
    for (bytes, parts) in cases {
        let message = open_bytes(&bytes).unwrap_err().to_string();
        for part in [&["model.safetensors"], parts].concat() {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
}

/// File names of shards and the tensors in each.
type Shards<'a> = &'a [(&'a str, &'a [&'a str])];

/// A folder with an index and shards; each shard holds one f32 tensor a name.
fn sharded(index: &str, shards: Shards<'_>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    for (file, names) in shards {
        let entries: Vec<String> = names
            .iter()
            .enumerate()
            .map(|(i, n)| format!(r#""{n}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4))
            .collect();
        fs::write(folder.join(file), raw(&format!("{{{}}}", entries.join(",")), 4 * names.len())).unwrap();
    }
    (dir, folder)
}

#[test]
fn index_and_shards_must_agree() {
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let (_dir, folder) = sharded(index, &[("1.safetensors", &["a"]), ("2.safetensors", &["b"])]);
    assert_eq!(Weights::open(&folder).unwrap().len(), 2);
    assert_eq!(Weights::open(folder.join("model.safetensors.index.json")).unwrap().len(), 2);
    let cases: [(&str, Shards<'_>, &[&str]); 9] = [
        (index, &[("1.safetensors", &["a"])], &["does not exist", "2.safetensors"]),
        (index, &[("1.safetensors", &["a"]), ("2.safetensors", &[])], &["tensor `b`", "2.safetensors"]),
        (index, &[("1.safetensors", &["a", "b"]), ("2.safetensors", &["b"])], &["tensor `b`", "1.safetensors"]),
        (index, &[("1.safetensors", &["a"]), ("2.safetensors", &["b", "a"])], &["tensor `a`", "in one shard only"]),
        (index, &[("1.safetensors", &["a", "c"]), ("2.safetensors", &["b"])], &["tensor `c`", "not in the index"]),
        (r#"{"weight_map":{"a":"../1.safetensors"}}"#, &[], &["shard of `a`", "../1.safetensors", "beside"]),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, &[], &["shard of `a`", "/etc/passwd"]),
        (r#"{"weight_map":{"a":".."}}"#, &[], &["shard of `a`"]),
        (r#"{"weight_map":{"a":7}}"#, &[], &["weight_map", "found 7"]),
    ];
    for (index, shards, parts) in cases {
        let (_dir, folder) = sharded(index, shards);
        let message = Weights::open(&folder).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
}

#[test]
fn a_folder_without_weights_says_what_it_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let m = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(m.contains("model.safetensors") && m.contains("pytorch_model.bin.index.json"), "{m}");
    assert!(matches!(Weights::open(dir.path().join("none")), Err(Error::Io { .. })));
}

fn read_all(w: &Weights) {
    for name in w.names().map(String::from).collect::<Vec<_>>() {
        let _ = (w.raw(&name).unwrap().len(), w.tensor(&name), w.integers(&name));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..ProptestConfig::default() })]

    /// Whatever is changed in a file, opening and reading it all either works or gives an error.
    #[test]
    fn mutations_never_panic(
        edits in prop::collection::vec((0usize..400, any::<u8>(), 0u8..3), 1..6),
        cut in prop::option::of(0usize..400),
    ) {
        let a = r#""a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}"#;
        let b = r#""b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}"#;
        let mut bytes = raw(&format!("{{{a},{b}}}"), 32);
        for (at, byte, how) in edits {
            let at = at % bytes.len();
            match how {
                0 => bytes[at] = byte,
                // Digits keep the JSON valid and move sizes and offsets.
                1 => bytes[at] = b'0' + byte % 10,
                _ => bytes.insert(at, byte),
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        if let Ok(w) = open_bytes(&bytes) {
            read_all(&w);
        }
    }

    #[test]
    fn random_offsets_never_read_out_of_bounds(
        entries in prop::collection::vec((0u64..40, 0u64..40, prop::collection::vec(0u64..5, 0..3)), 0..5),
        data in 0usize..40,
    ) {
        let entries: Vec<String> = entries.iter().enumerate().map(|(i, (begin, end, shape))| {
            format!(r#""t{i}":{{"dtype":"U8","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
        }).collect();
        if let Ok(w) = open_bytes(&raw(&format!("{{{}}}", entries.join(",")), data)) {
            read_all(&w);
            let total: usize = w.names().map(|n| w.raw(n).unwrap().len()).sum();
            prop_assert_eq!(total, data);
        }
    }
}
