//! The committed checkpoints of the reference: outputs, losses, gradients and greedy texts, through kernels and definitions.

use genus_checkpoint::Weights;
use genus_infer::{
    Engine, FinishReason, ForwardOptions, GenerateOptions, GenerationConfig, Overrides, PaddedBatch, Request, forward,
};
use genus_models::{LoadOptions, Model};
use genus_ops::Path as Way;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn parity() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity")
}

fn load(case: &str) -> Model {
    Model::load(parity().join(case), &LoadOptions::default()).unwrap().model
}

/// Folder, file suffix, whether the expectation has gradients.
const CASES: &[(&str, &str)] = &[
    ("gpt2-causal-lm", ""),
    ("gpt2-causal-lm", "-left"),
    ("gpt2-base", ""),
    ("gpt2-bf16", ""),
    ("gpt2-bin", ""),
    ("gpt2-sharded", ""),
    ("bert-pretraining", ""),
    ("bert-masked-lm", ""),
    ("bert-masked-lm", "-left"),
    ("bert-next-sentence", ""),
    ("bert-base", ""),
    ("bert-f16", ""),
    ("bert-old-names", ""),
    ("bert-classes", ""),
    ("bert-number", ""),
    ("bert-several-classes", ""),
    ("gpt2-classes", ""),
    ("gpt2-classes", "-left"),
    ("gpt2-numbers", ""),
    ("gpt-causal-lm", ""),
    ("gpt-causal-lm", "-left"),
    ("gpt-base", ""),
    ("gpt-classes", ""),
    ("gpt-neo-causal-lm", ""),
    ("gpt-neo-causal-lm", "-left"),
    ("gpt-neo-base", ""),
    ("gpt-neo-classes", ""),
    ("roberta-masked-lm", ""),
    ("roberta-masked-lm", "-left"),
    ("roberta-base", ""),
    ("roberta-classes", ""),
    ("distilbert-masked-lm", ""),
    ("distilbert-masked-lm", "-left"),
    ("distilbert-base", ""),
    ("distilbert-classes", ""),
    ("electra-discriminator", ""),
    ("electra-discriminator", "-left"),
    ("electra-generator", ""),
    ("electra-generator", "-left"),
    ("electra-base", ""),
    ("electra-classes", ""),
    ("bert-tags", ""),
    ("roberta-tags", ""),
    ("distilbert-tags", ""),
    ("electra-tags", ""),
    ("gpt2-tags", ""),
    ("marian-seq2seq", ""),
    ("marian-shifted", ""),
    ("marian-base", ""),
    ("xl-causal-lm", ""),
    ("xl-characters", ""),
    ("xl-norms-first", ""),
    ("xl-base", ""),
];

/// A computation in f32 with another order of sums is about as far from the exact result as the reference's, which
/// `tolerances.json` measured; this many times its deviation is allowed, and at least this part of the tensor's largest value.
const TIMES: f64 = 8.0;
const FLOOR: f64 = 1e-6;

fn check(case: &str, suffix: &str, way: Way, tolerances: &Value) {
    let folder = parity().join(case);
    let model = load(case);
    let batch = PaddedBatch::open(folder.join(format!("batch{suffix}.json"))).unwrap();
    let expected = Weights::open(folder.join(format!("expected{suffix}.safetensors"))).unwrap();
    let names: Vec<String> = expected.names().map(str::to_owned).collect();
    let options = ForwardOptions {
        grad: names.iter().any(|n| n.starts_with("grad.")),
        segment_length: segment_length(&folder),
        hidden_states: names.iter().any(|n| n.contains("hidden_states.")),
        path: way,
        ..Default::default()
    };
    let got: BTreeMap<String, candle_core::Tensor> = forward(&model, &batch, &options).unwrap().into_iter().collect();
    let mut want = names.clone();
    want.sort();
    assert_eq!(got.keys().cloned().collect::<Vec<_>>(), want, "{case}{suffix}: names");
    let measured = &tolerances[format!("{case}{suffix}")];
    for name in names {
        let t = &got[&name];
        assert_eq!(t.dims(), expected.info(&name).unwrap().shape, "{case}{suffix} {name}: shape");
        let (got, want) = (genus_ops::to_vec(t).unwrap(), expected.f32(&name).unwrap());
        let scale = want.iter().fold(0f64, |a, x| a.max(f64::from(x.abs())));
        let allowed = (TIMES * measured[&name]["max_abs"].as_f64().unwrap()).max(FLOOR * scale).max(1e-9);
        for (i, (g, w)) in got.iter().zip(want.iter()).enumerate() {
            let off = f64::from((g - w).abs());
            assert!(
                off <= allowed,
                "{case}{suffix} {way:?} {name}[{i}]: {g} instead of {w}, off {off:.2e}, allowed {allowed:.2e}"
            );
        }
    }
}

/// In which segments the reference ran a recurrent model's rows.
fn segment_length(folder: &Path) -> Option<usize> {
    let text = std::fs::read_to_string(folder.join("segment.json")).ok()?;
    serde_json::from_str::<Value>(&text).unwrap()["segment_length"].as_u64().map(|n| n as usize)
}

#[test]
fn outputs_losses_and_gradients() {
    let read = |file: &str| -> serde_json::Map<String, Value> {
        serde_json::from_str(&std::fs::read_to_string(parity().join(file)).unwrap()).unwrap()
    };
    let mut tolerances = read("tolerances.json");
    tolerances.append(&mut read("tolerances-xl.json"));
    let tolerances = Value::Object(tolerances);
    for (case, suffix) in CASES {
        for way in [Way::Kernels, Way::Definitions] {
            check(case, suffix, way, &tolerances);
        }
    }
}

/// Rows padded at the left: the same gradients, since the same tokens are run.
#[test]
fn padding_does_not_matter() {
    for case in ["gpt2-causal-lm", "bert-masked-lm", "gpt2-classes"] {
        let model = load(case);
        let run = |file: &str| {
            let batch = PaddedBatch::open(parity().join(case).join(file)).unwrap();
            let all = forward(&model, &batch, &ForwardOptions { grad: true, ..Default::default() }).unwrap();
            let mut kept: Vec<(String, Vec<f32>)> = all
                .into_iter()
                .filter(|(n, _)| n.starts_with("grad.") || n == "loss")
                .map(|(n, t)| (n, genus_ops::to_vec(&t).unwrap()))
                .collect();
            kept.sort_by(|a, b| a.0.cmp(&b.0));
            kept
        };
        assert_eq!(run("batch.json"), run("batch-left.json"), "{case}");
    }
}

#[test]
fn greedy_texts() {
    ["gpt2-causal-lm", "gpt-causal-lm", "gpt-neo-causal-lm", "xl-causal-lm"].into_iter().for_each(greedy_texts_of);
}

fn greedy_texts_of(case: &str) {
    let folder = parity().join(case);
    let model = load(case);
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("generation.json")).unwrap()).unwrap();
    let config = GenerationConfig::open(&folder).unwrap();
    let eos = cases["eos_token_id"].as_u64().unwrap() as u32;
    let list = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect::<Vec<u32>>();
    for (key, ignore_eos) in [("ignoring_eos", true), ("until_eos", false)] {
        for way in [Way::Kernels, Way::Definitions] {
            let runs = cases[key].as_array().unwrap();
            let requests: Vec<Request> = runs
                .iter()
                .map(|run| {
                    let prompt = list(&run["prompt"]);
                    let o = Overrides {
                        ignore_eos,
                        max_new_tokens: Some(run["max_new_tokens"].as_u64().unwrap() as usize),
                        ..Default::default()
                    };
                    Request { options: config.options(&o, prompt.len()).unwrap(), prompt }
                })
                .collect();
            let engine = Engine::new(&model, None).unwrap().with_path(way);
            let mut streamed = vec![Vec::new(); requests.len()];
            let together = engine.generate(&requests, |i, e| streamed[i].push(e.id)).unwrap();
            for (i, (run, got)) in runs.iter().zip(&together).enumerate() {
                assert_eq!(got.ids, list(&run["ids"]), "{case} {key} {i} {way:?}");
                assert_eq!(streamed[i], got.ids);
                let ended = !ignore_eos && got.ids.last() == Some(&eos);
                assert_eq!(got.finish, if ended { FinishReason::EndToken } else { FinishReason::Length });
            }
            // In pieces of three tokens, and alone.
            let pieces = engine.clone().with_step_tokens(3).generate(&requests, |_, _| {}).unwrap();
            assert_eq!(pieces, together);
            for (r, t) in requests.iter().zip(&together) {
                assert_eq!(&engine.generate(std::slice::from_ref(r), |_, _| {}).unwrap()[0], t);
            }
        }
    }
}

#[test]
fn one_beam_is_greedy_and_more_are_no_worse() {
    let model = load("gpt2-causal-lm");
    let engine = Engine::new(&model, None).unwrap();
    let request = Request {
        prompt: vec![79, 3],
        options: GenerateOptions { max_new_tokens: 9, eos: vec![10], ..Default::default() },
    };
    let beams = |n| engine.beam_search(&request, genus_infer::BeamOptions { beams: n, length_penalty: 1.0 }).unwrap();
    let greedy = engine.generate(std::slice::from_ref(&request), |_, _| {}).unwrap();
    assert_eq!(beams(1)[0].ids, greedy[0].ids);
    let four = beams(4);
    assert_eq!(four.len(), 4);
    assert!(four.windows(2).all(|w| w[0].score >= w[1].score));
    assert!(four[0].score >= beams(1)[0].score);
    // A banned token is never chosen, by either way.
    let banned = four[0].ids[0];
    let options = GenerateOptions { banned: vec![banned, greedy[0].ids[0]], ..request.options.clone() };
    let request = Request { options, ..request.clone() };
    let search = genus_infer::BeamOptions { beams: 4, length_penalty: 1.0 };
    let found = engine.beam_search(&request, search).unwrap();
    let greedy = engine.generate(std::slice::from_ref(&request), |_, _| {}).unwrap();
    let all = found.iter().map(|b| &b.ids).chain(greedy.iter().map(|g| &g.ids));
    assert!(all.flatten().all(|id| !request.options.banned.contains(id)), "{found:?} {greedy:?}");
}

/// Greedy translations and the best of four beams, as the reference's library finds them; all sources together.
#[test]
fn translations() {
    let folder = parity().join("marian-seq2seq");
    let model = load("marian-seq2seq");
    let cases: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("translation.json")).unwrap()).unwrap();
    let runs = cases["runs"].as_array().unwrap();
    let list = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect::<Vec<u32>>();
    let max_new_tokens = cases["max_new_tokens"].as_u64().unwrap() as usize;
    let eos = vec![cases["eos_token_id"].as_u64().unwrap() as u32];
    let options = GenerateOptions { max_new_tokens, eos, ..Default::default() };
    let requests: Vec<Request> =
        runs.iter().map(|run| Request { prompt: list(&run["source"]), options: options.clone() }).collect();
    for way in [Way::Kernels, Way::Definitions] {
        let engine = Engine::new(&model, None).unwrap().with_path(way);
        let greedy = engine.generate(&requests, |_, _| {}).unwrap();
        for (run, found) in runs.iter().zip(&greedy) {
            assert_eq!(found.ids, list(&run["greedy"]), "{way:?} {}", run["source"]);
            assert_eq!(found.prompt_tokens, list(&run["source"]).len());
        }
        for length_penalty in [0.6, 1.0] {
            let beams = genus_infer::BeamOptions { beams: 4, length_penalty };
            let mut done = Vec::new();
            let found = engine.beam_searches(&requests, beams, |i, _| done.push(i)).unwrap();
            done.sort();
            assert_eq!(done, (0..requests.len()).collect::<Vec<_>>());
            for (i, (run, found)) in runs.iter().zip(&found).enumerate() {
                let ids: Vec<Vec<u32>> =
                    run[format!("beams {length_penalty:.1}")].as_array().unwrap().iter().map(list).collect();
                assert_eq!(found.iter().map(|b| b.ids.clone()).collect::<Vec<_>>(), ids, "{way:?} source {i}");
                let scores = run[format!("scores {length_penalty:.1}")].as_array().unwrap();
                for (beam, score) in found.iter().zip(scores) {
                    // The reference's are rounded to three digits.
                    let score = score.as_f64().unwrap();
                    assert!((beam.score - score).abs() <= 6e-3 * score.abs(), "{} {score}", beam.score);
                }
                // Of the definitions' products, the order of sums depends on the batch.
                let alone = engine.beam_search(&requests[i], beams).unwrap();
                assert!(way == Way::Definitions || alone == *found, "alone: {alone:?} {found:?}");
            }
        }
    }
}
