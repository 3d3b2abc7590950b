//! Text in, text out; beam search as the reference does it.

use genus_infer::{BeamOptions, Engine, FinishReason, GenerateOptions, Request, Sampling};
use genus_models::{LoadOptions, Model, Task, find_preset};
use genus_text::Tokenizer;
use serde_json::Value;
use std::path::Path;

/// A random model over bytes.
fn bytes_model(tokenizer: &Tokenizer) -> Model {
    let (family, preset) = find_preset("gpt2").unwrap();
    let mut spec = (preset.spec)();
    (spec.d_model, spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.d_head) = (24, 2, 2, 2, 12);
    // More rows than the tokenizer has tokens, as in models padded to a round number.
    (spec.d_ff, spec.vocab_size, spec.n_ctx) = (20, tokenizer.vocab_size() + 7, 64);
    Model::random(family, spec, Task::CausalLm, 3).unwrap()
}

#[test]
fn streamed_text_is_the_whole_text() {
    let tokenizer = Tokenizer::bytes();
    let model = bytes_model(&tokenizer);
    let engine = Engine::new(&model, Some(&tokenizer)).unwrap();
    let options = |seed| GenerateOptions {
        sampling: Sampling::Random { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 },
        max_new_tokens: 40,
        seed,
        ..Default::default()
    };
    let prompts = ["To be", "or not", "ü"];
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .map(|(i, p)| Request { prompt: engine.encode(p).unwrap(), options: options(i as u64) })
        .collect();
    let mut streamed = vec![String::new(); requests.len()];
    let all = engine.generate(&requests, |i, e| streamed[i].push_str(&e.text)).unwrap();
    for (i, c) in all.iter().enumerate() {
        assert_eq!(c.text.as_deref(), Some(streamed[i].as_str()));
        assert_eq!((c.ids.len(), c.finish), (40, FinishReason::Length));
        if c.ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()) {
            assert_eq!(streamed[i], tokenizer.decode(&c.ids, true).unwrap());
        }
    }
    // A stop text taken from the middle of what was generated: the same tokens up to it, and nothing of it in the text.
    let mut request = requests[0].clone();
    let text = all[0].text.clone().unwrap();
    let chars: Vec<char> = text.chars().collect();
    let stop: String = chars[10..13].iter().collect();
    request.options.stop = vec!["never in it, as it is too long for that".into(), stop.clone()];
    let mut streamed = String::new();
    let stopped = engine.generate(&[request], |_, e| streamed.push_str(&e.text)).unwrap().remove(0);
    assert_eq!(stopped.finish, FinishReason::Stop);
    assert_eq!(stopped.text.as_deref(), Some(&text[..text.find(&stop).unwrap()]));
    assert_eq!(Some(streamed), stopped.text);
    assert_eq!(stopped.ids, all[0].ids[..stopped.ids.len()]);
    // An end token is among the ids and not in the text.
    let mut request = requests[1].clone();
    request.options.eos = vec![all[1].ids[7]];
    let n = all[1].ids.iter().position(|id| *id == all[1].ids[7]).unwrap();
    let ended = engine.generate(&[request], |_, _| {}).unwrap().remove(0);
    assert_eq!((ended.ids.len(), ended.finish), (n + 1, FinishReason::EndToken));
    assert!(all[1].text.as_ref().unwrap().starts_with(ended.text.unwrap().trim_end_matches('\u{fffd}')));
}

#[test]
fn beams_are_the_references() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cases = std::fs::read_to_string(folder.join("tests/beams/beams.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    let model = folder.join("../../tests/parity/gpt2-causal-lm");
    let model = Model::load(model, &LoadOptions::default()).unwrap().model;
    let engine = Engine::new(&model, None).unwrap();
    let list = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect::<Vec<u32>>();
    for case in &cases {
        let options = GenerateOptions {
            max_new_tokens: case["max_new_tokens"].as_u64().unwrap() as usize,
            eos: vec![case["eos"].as_u64().unwrap() as u32],
            ..Default::default()
        };
        let request = Request { prompt: list(&case["prompt"]), options };
        let beams = BeamOptions {
            beams: case["beams"].as_u64().unwrap() as usize,
            length_penalty: case["length_penalty"].as_f64().unwrap(),
        };
        let found = engine.beam_search(&request, beams).unwrap();
        let want = case["found"].as_array().unwrap();
        assert_eq!(found.len(), want.len(), "{case}");
        for (f, w) in found.iter().zip(want) {
            assert_eq!(f.ids, list(&w["ids"]), "{case}");
            assert!((f.score - w["score"].as_f64().unwrap()).abs() < 1e-3, "{} {case}", f.score);
        }
    }
}
