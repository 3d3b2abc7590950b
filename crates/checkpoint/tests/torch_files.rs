//! Torch's own files: every layout is read, nothing is executed, damage gives an error.

use std::fs;
use std::path::PathBuf;

use genus_checkpoint::{Dtype, Error, Weights, WriteOptions, copy_weights};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn values(w: &Weights, name: &str) -> (Vec<usize>, Vec<f32>) {
    let t = w.tensor(name).unwrap();
    (t.dims().to_vec(), t.flatten_all().unwrap().to_vec1().unwrap())
}

#[test]
fn every_layout_and_type_is_read() {
    for file in ["zip.bin", "legacy.bin", "protocol4.bin"] {
        let w = Weights::open(fixture(file)).unwrap();
        assert_eq!(w.len(), 14, "{file}");
        let plain: Vec<f32> = (0..12).map(|i| i as f32 / 8.0).collect();
        assert_eq!(values(&w, "plain"), (vec![3, 4], plain));
        let transposed = vec![0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.];
        assert_eq!(values(&w, "transposed"), (vec![4, 3], transposed));
        assert_eq!(values(&w, "shared.rows"), (vec![2, 4], (4..12).map(|i| i as f32).collect()));
        assert_eq!(values(&w, "shared.column"), (vec![3], vec![2., 6., 10.]));
        assert_eq!(values(&w, "expanded"), (vec![2, 3], vec![1.5, 1.5, 1.5, -2.5, -2.5, -2.5]));
        assert_eq!(values(&w, "half"), (vec![1, 3], vec![0.5, -1.25, 3.0]));
        assert_eq!(values(&w, "brain"), (vec![3], vec![0.5, -1.25, 3.0]));
        assert_eq!(values(&w, "double"), (vec![2], vec![0.1, f32::INFINITY]));
        assert_eq!(values(&w, "scalar"), (vec![], vec![2.5]));
        assert_eq!(values(&w, "empty"), (vec![0, 4], vec![]));
        assert_eq!(values(&w, "parameter"), (vec![2], vec![9.0, 8.0]));
        assert_eq!(w.integers("long").unwrap(), [1, -2, 3, 1 << 40]);
        assert_eq!(w.integers("int").unwrap(), [7, -7]);
        assert_eq!(w.integers("bool").unwrap(), [1, 0]);
        assert_eq!(w.info("brain").unwrap().dtype, Dtype::BF16);
    }
}

#[test]
fn a_torch_file_becomes_safetensors() {
    let w = Weights::open(fixture("zip.bin")).unwrap();
    let names: Vec<_> = w.names().map(|n| (n.to_string(), format!("x.{n}"))).collect();
    let dir = tempfile::tempdir().unwrap();
    for (dtype, max_shard_bytes) in [(Dtype::F32, None), (Dtype::F16, Some(40))] {
        let options = WriteOptions { dtype, max_shard_bytes, ..WriteOptions::default() };
        copy_weights(&w, &names, dir.path(), &options).unwrap();
        let copy = Weights::open(dir.path()).unwrap();
        assert_eq!(copy.files().count() > 1, max_shard_bytes.is_some());
        for (old, new) in &names {
            let info = copy.info(new).unwrap();
            assert_eq!(info.shape, w.info(old).unwrap().shape);
            match w.integers(old) {
                Ok(integers) => {
                    assert_eq!((copy.integers(new).unwrap(), info.dtype), (integers, w.info(old).unwrap().dtype))
                }
                Err(_) => {
                    assert_eq!(info.dtype, dtype);
                    // 0.1 is the only value that f16 does not hold.
                    let close = |(a, b): (&f32, &f32)| a == b || (a - b).abs() < 1e-4;
                    assert!(w.f32(old).unwrap().iter().zip(copy.f32(new).unwrap().iter()).all(close), "{old}");
                }
            }
        }
    }
    let none = [("none".to_string(), "none".to_string())];
    assert!(matches!(copy_weights(&w, &none, dir.path(), &WriteOptions::default()), Err(Error::NoTensor { .. })));
}

#[test]
fn nested_and_sharded_state_dicts_are_found() {
    let w = Weights::open(fixture("nested.bin")).unwrap();
    assert_eq!(w.names().collect::<Vec<_>>(), ["w"]);
    let w = Weights::open(fixture("sharded")).unwrap();
    assert_eq!(values(&w, "b").1[11], 12.0);
    assert_eq!(w.names().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn programs_are_refused_by_name_and_not_run() {
    for (file, global) in
        [("evil.bin", "posix.system"), ("evil_legacy.bin", "posix.system"), ("namespace.bin", "argparse.Namespace")]
    {
        match Weights::open(fixture(file)) {
            Err(Error::ForbiddenGlobal { global: found, .. }) => assert_eq!(found, global, "{file}"),
            other => panic!("{file}: {other:?}"),
        }
    }
    assert!(!fixture("executed.txt").exists() && !PathBuf::from("executed.txt").exists());
    let m = Weights::open(fixture("list.bin")).unwrap_err().to_string();
    assert!(m.contains("state dict"), "{m}");
}

fn open_bytes(bytes: &[u8]) -> Result<Weights, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    fs::write(&path, bytes).unwrap();
    Weights::open(&path)
}

/// A legacy file whose third pickle is `body`, followed by `tail`.
fn legacy_with(body: &[u8], tail: &[u8]) -> Vec<u8> {
    let whole = fs::read(fixture("legacy.bin")).unwrap();
    // magic, version (STOP at the end of each), then the dict of sizes up to its STOP.
    let info = whole.windows(2).position(|w| w == b"}q").unwrap();
    let stop = info + whole[info..].windows(2).position(|w| w == b"u.").unwrap() + 2;
    [&whole[..stop], body, tail].concat()
}

/// [`legacy_with`] no storages.
fn legacy(body: &[u8]) -> Vec<u8> {
    legacy_with(body, b"\x80\x02]q\x00.")
}

/// A legacy file with one tensor `t` over a storage of four floats.
fn one_tensor(offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let int = |i: &i64| [b"\x8a\x08".as_slice(), &i.to_le_bytes()].concat();
    let tuple = |v: &[i64]| [b"(".to_vec(), v.iter().flat_map(int).collect(), b"t".to_vec()].concat();
    let body = [
        b"\x80\x02}X\x01\x00\x00\x00tctorch._utils\n_rebuild_tensor_v2\n(".to_vec(),
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04NtQ".to_vec(),
        int(&offset),
        tuple(shape),
        tuple(strides),
        b"tRs.".to_vec(),
    ]
    .concat();
    let data: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let tail = [b"\x80\x02]X\x01\x00\x00\x000a.".to_vec(), 4u64.to_le_bytes().to_vec(), data].concat();
    legacy_with(&body, &tail)
}

#[test]
fn hostile_pickles_are_errors() {
    let deep =
        [b"\x80\x02".to_vec(), b"]".to_vec(), [b"\x85".as_slice()].concat().repeat(200_000), b".".to_vec()].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.".to_vec(), "os.system"),
        (b"\x80\x02c__builtin__\neval\n.".to_vec(), "__builtin__.eval"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n.".to_vec(), "torch.storage._load_from_bytes"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.".to_vec(), "os.system"),
        // INST, OBJ, NEWOBJ, EXT1: other ways to call something.
        (b"\x80\x02(ios\nsystem\n.".to_vec(), "0x69"),
        (b"\x80\x02(o.".to_vec(), "0x6f"),
        (b"\x80\x02N)\x81.".to_vec(), "0x81"),
        (b"\x80\x02\x82\x01.".to_vec(), "0x82"),
        (b"\x80\x02.".to_vec(), "empty stack"),
        (b"\x80\x02X\xff\xff\xff\xffab.".to_vec(), "truncated"),
        (b"\x80\x02h\x07.".to_vec(), "memo 7"),
        (b"\x80\x02t.".to_vec(), "no mark"),
        (b"\x80\x02N\x87.".to_vec(), "3 for a tuple"),
        (b"\x80\x02]N\x86s.".to_vec(), "stack"),
        (b"\x80\x02N)R.".to_vec(), "a call of None"),
        (b"\x80\x02]q\x00h\x00a.".to_vec(), "no tensors"),
        (deep, "no tensors"),
        (b"\x80\x02}".to_vec(), "bytes left"),
        (b"\x80\x09}.".to_vec(), "protocol 9"),
        (
            b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ."
                .to_vec(),
            "no tensors",
        ),
    ];
    for (body, part) in cases {
        let message = open_bytes(&legacy(&body)).unwrap_err().to_string();
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(open_bytes(b"").unwrap_err().to_string().contains("torch.save"));
}

#[test]
fn tensors_must_lie_within_their_storage() {
    let whole = fs::read(fixture("zip.bin")).unwrap();
    // `plain` has sizes (3, 4): BININT1 3, BININT1 4, TUPLE2.
    let at = whole.windows(5).position(|w| w == b"K\x03K\x04\x86").unwrap();
    let mut larger = whole.clone();
    larger[at + 1] = 30;
    let m = open_bytes(&larger).unwrap_err().to_string();
    assert!(m.contains("tensor `plain`") && m.contains("within the 12 elements"), "{m}");
    // Half a file has no directory.
    let m = open_bytes(&whole[..whole.len() / 2]).unwrap_err().to_string();
    assert!(m.contains("truncated"), "{m}");
}

#[test]
fn sizes_and_strides_are_checked() {
    let w = open_bytes(&one_tensor(0, &[2, 2], &[1, 2])).unwrap();
    assert_eq!(values(&w, "t"), (vec![2, 2], vec![1.0, 3.0, 2.0, 4.0]));
    // Nobody steps along a dimension of one element.
    let w = open_bytes(&one_tensor(1, &[1, 3, 1], &[i64::MAX, 1, i64::MAX])).unwrap();
    assert_eq!(values(&w, "t").1, [2.0, 3.0, 4.0]);
    let w = open_bytes(&one_tensor(3, &[2, 2], &[0, 0])).unwrap();
    assert_eq!(values(&w, "t").1, [4.0; 4]);
    for (offset, shape, strides, part) in [
        (1, vec![4], vec![1], "within the 4 elements"),
        (4, vec![], vec![], "within the 4 elements"),
        (0, vec![2], vec![i64::MAX], "within the 4 elements"),
        (0, vec![3, 3], vec![i64::MAX, i64::MAX], "within the 4 elements"),
        (i64::MAX, vec![2], vec![1], "within the 4 elements"),
        // Repeating one element must not fill the memory.
        (0, vec![1 << 40], vec![0], "bytes of the file"),
        (0, vec![1 << 40, 1 << 40], vec![0, 0], "bytes of the file"),
        (0, vec![0, 1 << 40, 1 << 40], vec![0, 0, 0], "bytes of the file"),
        (-1, vec![1], vec![1], "another form"),
        (0, vec![-1], vec![1], "another form"),
        (0, vec![2], vec![-1], "another form"),
        (0, vec![1; 65], vec![1; 65], "another form"),
        (0, vec![2], vec![1, 1], "1 sizes and 2 strides"),
    ] {
        let m = open_bytes(&one_tensor(offset, &shape, &strides)).unwrap_err().to_string();
        assert!(m.contains(part), "{shape:?}: `{part}` is not in: {m}");
    }
    let whole = one_tensor(0, &[4], &[1]);
    let m = open_bytes(&whole[..whole.len() - 1]).unwrap_err().to_string();
    assert!(m.contains("storage `0`") && m.contains("truncated"), "{m}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..ProptestConfig::default() })]

    /// Whatever is changed in a file, opening and reading it all either works or gives an error.
    #[test]
    fn mutations_never_panic(
        which in 0usize..3,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = fs::read(fixture(["zip.bin", "legacy.bin", "protocol4.bin"][which])).unwrap();
        for (at, byte, how) in edits {
            // Most of a small zip is padding; aim two edits in three at the pickle in front of it.
            let at = if how == 0 { at.index(bytes.len()) } else { at.index(1500) };
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(w) = open_bytes(&bytes) {
            for name in w.names().map(String::from).collect::<Vec<_>>() {
                let _ = (w.raw(&name).unwrap().len(), w.tensor(&name), w.integers(&name));
            }
        }
    }
}
