//! `genus embed`.

use std::fs;

use genus::checkpoint::Weights;

use crate::program::{arg, fails, fixture, json_lines, ok};

#[test]
fn one_vector_a_line_whatever_shares_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("bert");
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("bert-base").join(name), model.join(name)).unwrap();
    }
    let vocabulary: Vec<String> =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##a", "##b"].map(String::from).to_vec();
    fs::write(model.join("vocab.txt"), vocabulary.join("\n")).unwrap();
    let embed = |text: &str, extra: &[&str]| {
        let (input, out) = (dir.path().join("in.txt"), dir.path().join("out.safetensors"));
        fs::write(&input, text).unwrap();
        let args = [&["embed", arg(&model), "--input", arg(&input), "--output", arg(&out), "--json"], extra].concat();
        let report = json_lines(&ok(&args).stdout);
        assert_eq!(report.len(), 1);
        let weights = Weights::open(&out).unwrap();
        let shape = weights.info("embeddings").unwrap().shape;
        assert_eq!(report[0]["lines"], shape[0]);
        let rows: Vec<Vec<f32>> = weights.f32("embeddings").unwrap().chunks(shape[1]).map(<[f32]>::to_vec).collect();
        rows
    };
    let rows = embed("a b c\nab\nc c c c c c\na b c\n", &[]);
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0], rows[3]);
    assert_ne!(rows[0], rows[1]);
    assert_eq!(embed("ab\n", &[])[0], rows[1], "alone as in company");
    for row in embed("a b c\nab\n", &["--normalize", "--pooling", "cls"]) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
    }
    assert_ne!(embed("a b\n", &["--pooling", "pooler"]), embed("a b\n", &["--pooling", "last"]));

    let (input, out) = (dir.path().join("bad.txt"), dir.path().join("never.safetensors"));
    fs::write(&input, b"a\n\xff\n").unwrap();
    fails(1, &["embed", arg(&model), "--input", arg(&input), "--output", arg(&out)], &["bad.txt", "line 2", "UTF-8"]);
    fs::write(&input, b"").unwrap();
    fails(1, &["embed", arg(&model), "--input", arg(&input), "--output", arg(&out)], &["bad.txt", "empty"]);
    fails(
        2,
        &["embed", arg(&model), "--input", arg(&input), "--output", arg(&out), "--pooling", "max"],
        &["max", "mean"],
    );
    assert!(!out.exists());
}
