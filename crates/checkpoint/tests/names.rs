//! Renaming tables and the report of differences between a checkpoint and a model.

use candle_core::{Device, Tensor};
use genus_checkpoint::names::{Expected, NameMap, Problem, Resolution, resolve};
use genus_checkpoint::{Error, Weights, WriteOptions, write_model};

fn map() -> NameMap {
    NameMap::new()
        .prefix("transformer.")
        .base([
            ("tokens", "wte.weight"),
            ("layers.{i}.norm.weight", "h.{i}.ln.weight"),
            ("layers.{i}.norm.bias", "h.{i}.ln.bias"),
        ])
        .unwrap()
        .head([("score.weight", "score.weight")])
        .unwrap()
        .tied("tokens", "lm_head.weight")
        .unwrap()
        .older("gamma", "weight")
        .older("beta", "bias")
        .ignore(["h.{i}.attn.bias", "h.{i}.attn.masked_bias"])
        .unwrap()
        .other_heads(["multiple_choice_head.*"])
        .unwrap()
}

fn expected() -> Vec<Expected> {
    vec![
        Expected::required("tokens", [3, 2]),
        Expected::required("layers.0.norm.weight", [2]),
        Expected::required("layers.0.norm.bias", [2]),
        Expected::optional("score.weight", [2]),
    ]
}

/// (name, shape, value of every element)
fn run(tensors: &[(&str, &[usize], f32)]) -> Result<Resolution, Error> {
    let dir = tempfile::tempdir().unwrap();
    let make = |(n, s, v): &(&str, &[usize], f32)| {
        (n.to_string(), Tensor::full(*v, *s, &Device::Cpu).unwrap().contiguous().unwrap())
    };
    let tensors: Vec<_> = tensors.iter().map(make).collect();
    write_model(dir.path(), &tensors, &WriteOptions::default()).unwrap();
    resolve(&map(), &expected(), &Weights::open(dir.path()).unwrap())
}

#[test]
fn names_go_both_ways() {
    let map = map();
    assert_eq!(map.to_file("layers.7.norm.bias").as_deref(), Some("transformer.h.7.ln.bias"));
    assert_eq!(map.clone().write_bare().to_file("layers.7.norm.bias").as_deref(), Some("h.7.ln.bias"));
    assert_eq!(map.to_file("score.weight").as_deref(), Some("score.weight"));
    assert_eq!(map.to_file("tokens").as_deref(), Some("transformer.wte.weight"));
    assert_eq!(map.to_file("layers.x.norm.bias"), None);
    for file in ["h.7.ln.bias", "transformer.h.7.ln.bias", "transformer.h.7.ln.beta"] {
        assert_eq!(map.to_internal(file).as_deref(), Some("layers.7.norm.bias"), "{file}");
    }
    for file in ["h.07.ln.bias", "transformer.score.weight", "transformer.transformer.h.7.ln.bias", "gamma", ""] {
        assert_eq!(map.to_internal(file), None, "{file}");
    }
}

#[test]
fn contradicting_tables_are_refused() {
    for rules in [
        vec![("a.{i}", "b")],
        vec![("a", "b"), ("c", "b")],
        vec![("a", "b"), ("a", "c")],
        vec![("a*", "b*")],
        vec![("a.{i}", "b.{j}")],
    ] {
        assert!(matches!(NameMap::new().base(rules.clone()), Err(Error::NameRule { .. })), "{rules:?}");
    }
    assert!(NameMap::new().tied("a", "b").is_err());
}

#[test]
fn every_spelling_is_found() {
    let plain = run(&[("wte.weight", &[3, 2], 1.0), ("h.0.ln.weight", &[2], 2.0), ("h.0.ln.bias", &[2], 3.0)]).unwrap();
    assert_eq!(plain.get("layers.0.norm.weight"), Some("h.0.ln.weight"));
    assert_eq!(plain.absent, ["score.weight"]);
    let old = run(&[
        ("lm_head.weight", &[3, 2], 1.0),
        ("transformer.h.0.ln.gamma", &[2], 2.0),
        ("transformer.h.0.ln.beta", &[2], 3.0),
        ("transformer.h.0.attn.bias", &[1, 1, 4, 4], 1.0),
        ("h.0.attn.masked_bias", &[], 1.0),
        ("multiple_choice_head.summary.bias", &[1], 1.0),
        ("score.weight", &[2], 1.0),
    ])
    .unwrap();
    assert_eq!(old.get("tokens"), Some("lm_head.weight"));
    assert_eq!(old.get("layers.0.norm.weight"), Some("transformer.h.0.ln.gamma"));
    assert_eq!(old.ignored, ["h.0.attn.masked_bias", "transformer.h.0.attn.bias"]);
    assert_eq!(old.other_heads, ["multiple_choice_head.summary.bias"]);
    assert!(old.absent.is_empty());
}

#[test]
fn tied_tensors_must_agree() {
    let rest: [(&str, &[usize], f32); 2] = [("h.0.ln.weight", &[2], 2.0), ("h.0.ln.bias", &[2], 3.0)];
    let with = |value| {
        let tied: [(&str, &[usize], f32); 2] =
            [("lm_head.weight", &[3, 2], value), ("transformer.wte.weight", &[3, 2], 1.0)];
        run(&[&tied[..], &rest[..]].concat())
    };
    assert_eq!(with(1.0).unwrap().names["tokens"], ["transformer.wte.weight", "lm_head.weight"]);
    let Err(Error::Resolve(e)) = with(1.5) else { panic!("accepted") };
    let differ = Problem::TiedDiffer { first: "transformer.wte.weight".into(), second: "lm_head.weight".into() };
    assert_eq!(e.problems, [differ]);
}

#[test]
fn one_report_lists_everything() {
    let Err(Error::Resolve(e)) = run(&[
        ("wte.weight", &[4, 2], 1.0),
        ("h.0.ln.wieght", &[2], 2.0),
        ("h.1.ln.bias", &[2], 3.0),
        ("something.else", &[2], 3.0),
    ]) else {
        panic!("accepted")
    };
    let text = e.to_string();
    for part in [
        "6 problems",
        "missing `transformer.h.0.ln.weight` (nearest: h.0.ln.wieght",
        "missing `transformer.h.0.ln.bias`",
        "unexpected `h.0.ln.wieght`",
        "unexpected `h.1.ln.bias`",
        "unexpected `something.else`",
        "`wte.weight` has shape [4, 2], expected [3, 2]",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert_eq!(e.problems.len(), 6);
}
