//! Input that cannot be: each has an error that names what was found and what was expected.

use genus_infer::{Engine, Error, ForwardOptions, GenerateOptions, PaddedBatch, Request, forward};
use genus_models::{Input, Model, SequenceCache, Task, find_preset};
use genus_ops::Tape;
use std::path::PathBuf;

fn tiny(preset: &str, task: Task) -> Model {
    let (family, preset) = find_preset(preset).unwrap();
    let mut spec = (preset.spec)();
    (spec.d_model, spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.d_head) = (24, 1, 2, 2, 12);
    (spec.d_ff, spec.vocab_size, spec.n_ctx) = (20, 101, 12);
    Model::random(family, spec, task, 5).unwrap()
}

fn request(prompt: &[u32]) -> Request {
    Request { prompt: prompt.to_vec(), options: GenerateOptions { max_new_tokens: 50, ..Default::default() } }
}

#[test]
fn prompts() {
    let mut model = tiny("gpt2", Task::CausalLm);
    let engine = Engine::new(&model, None).unwrap();
    let fails = |r: Request| engine.generate(&[request(&[1]), r], |_, _| panic!("nothing may run")).unwrap_err();
    assert!(matches!(fails(request(&[])), Error::EmptyPrompt { request: 1 }));
    let e = fails(request(&[3; 13]));
    assert!(matches!(e, Error::PromptTooLong { request: 1, found: 13, n_ctx: 12 }), "{e}");
    let e = fails(request(&[3, 101]));
    assert!(matches!(e, Error::Id { request: 1, id: 101, place: 1, vocab_size: 101 }), "{e}");
    let e =
        fails(Request { prompt: vec![1], options: GenerateOptions { stop: vec!["x".into()], ..Default::default() } });
    assert!(matches!(e, Error::NoTokenizer { .. }), "{e}");
    assert!(matches!(engine.encode("x"), Err(Error::NoTokenizer { .. })));
    // A model with a first token begins with it.
    model.set_config_field("bos_token_id", 7.into());
    let engine = Engine::new(&model, None).unwrap();
    let all = engine.generate(&[request(&[]), request(&[7])], |_, _| {}).unwrap();
    assert_eq!(all[0], all[1]);
}

#[test]
fn the_context_fills_up() {
    let model = tiny("gpt2", Task::CausalLm);
    let engine = Engine::new(&model, None).unwrap();
    let all = engine.generate(&[request(&[1, 2, 3]), request(&[4; 12])], |_, _| {}).unwrap();
    assert_eq!((all[0].ids.len(), all[0].finish.name()), (10, "context"));
    // A full context still predicts one token.
    assert_eq!((all[1].ids.len(), all[1].finish.name()), (1, "context"));
}

#[test]
fn only_models_that_predict_the_next_token_generate() {
    for (preset, task) in [("bert-tiny", Task::MaskedLm), ("gpt2", Task::Base)] {
        let e = Engine::new(&tiny(preset, task), None).unwrap_err();
        assert!(e.to_string().contains(task.name()) && e.to_string().contains("causal-lm"), "{e}");
    }
}

#[test]
fn predictions_that_are_no_numbers() {
    let model = tiny("gpt2", Task::CausalLm);
    let norm = model.params().iter().find(|p| p.name() == "final_norm.bias").unwrap();
    norm.set(norm.tensor().affine(1.0, f64::NAN).unwrap()).unwrap();
    let e = Engine::new(&model, None).unwrap().generate(&[request(&[1])], |_, _| {}).unwrap_err();
    assert!(matches!(e, Error::Logits { request: 0, step: 0, .. }), "{e}");
}

#[test]
fn cancelling() {
    let model = tiny("gpt2", Task::CausalLm);
    let flag = std::sync::atomic::AtomicBool::new(false);
    let engine = Engine::new(&model, None).unwrap().with_cancel(&flag);
    let mut seen = 0;
    let all = engine
        .generate(&[request(&[1]), request(&[2])], |_, _| {
            seen += 1;
            flag.store(seen == 6, std::sync::atomic::Ordering::Relaxed);
        })
        .unwrap();
    assert!(all.iter().all(|c| c.ids.len() == 3 && c.finish.name() == "cancelled"), "{all:?}");
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn batch(&self, text: &str) -> PathBuf {
        let path = self.0.path().join("batch.json");
        std::fs::write(&path, text).unwrap();
        path
    }
}

#[test]
fn batches() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let gpt2 = tiny("gpt2", Task::CausalLm);
    let bert = tiny("bert-tiny", Task::Pretraining);
    let next = tiny("bert-tiny", Task::NextSentence);
    let base = tiny("gpt2", Task::Base);
    let classes = tiny("gpt2", Task::SequenceClassification);
    let cases: &[(&Model, &str, &[&str])] = &[
        (&gpt2, r#"[1]"#, &["JSON object"]),
        (&gpt2, r#"{"attention_mask": [[1]]}"#, &["input_ids", "nothing"]),
        (&gpt2, r#"{"input_id": [[1]]}"#, &["input_id", "unknown", "did you mean", "input_ids"]),
        (&gpt2, r#"{"input_ids": [[1, 2], [3]]}"#, &["input_ids[1]", "1 numbers", "2"]),
        (&gpt2, r#"{"input_ids": []}"#, &["input_ids", "[0, 0]"]),
        (&gpt2, r#"{"input_ids": [[]]}"#, &["input_ids", "[1, 0]"]),
        (&gpt2, r#"{"input_ids": [1, 2]}"#, &["input_ids[0]", "list of whole numbers"]),
        (&gpt2, r#"{"input_ids": [[1, 2.5]]}"#, &["input_ids[0][1]", "2.5"]),
        (&gpt2, r#"{"input_ids": [[1, "a"]]}"#, &["input_ids[0][1]", "a text"]),
        (&gpt2, r#"{"input_ids": [[1, 101]]}"#, &["input_ids[0][1]", "101", "from 0 to 100"]),
        (&gpt2, r#"{"input_ids": [[1, -1]]}"#, &["input_ids[0][1]", "-1"]),
        (&gpt2, r#"{"input_ids": [[1, 2]], "attention_mask": [[1, 2]]}"#, &["attention_mask[0][1]", "0 or 1"]),
        (&gpt2, r#"{"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}"#, &["attention_mask[0]", "at least one 1"]),
        (&gpt2, r#"{"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}"#, &["zeros between ones"]),
        (
            &gpt2,
            r#"{"input_ids": [[1, 2]], "attention_mask": [[1, 1], [1, 1]]}"#,
            &["attention_mask", "2 rows", "1 as in"],
        ),
        (&gpt2, r#"{"input_ids": [[1, 2]], "attention_mask": [[1]]}"#, &["attention_mask[0]", "2, as in input_ids"]),
        (&gpt2, r#"{"input_ids": [[1, 2]], "labels": [[1, 101]]}"#, &["labels[0][1]", "101", "-100 or"]),
        (
            &gpt2,
            r#"{"input_ids": [[1, 2]], "attention_mask": [[1, 0]], "labels": [[1, 1]]}"#,
            &["labels[0][1]", "attention_mask is 0"],
        ),
        (&gpt2, r#"{"input_ids": [[1, 2]], "labels": [[5, -100]]}"#, &["labels", "no token to predict"]),
        (&gpt2, r#"{"input_ids": [[1, 2]], "token_type_ids": [[0, 0]]}"#, &["token_type_ids", "no segments"]),
        (&gpt2, r#"{"input_ids": [[1, 2]], "position_ids": [[0, 12]]}"#, &["position_ids[0][1]", "12", "n_ctx"]),
        (&gpt2, r#"{"input_ids": [[1, 2]], "next_sentence_label": [0]}"#, &["next_sentence_label", "causal-lm takes"]),
        (&gpt2, r#"{"input_ids": [[1, 2]], "start_positions": [0]}"#, &["start_positions"]),
        (&base, r#"{"input_ids": [[1, 2]], "labels": [[1, 2]]}"#, &["labels", "base takes"]),
        (
            &base,
            r#"{"input_ids": [[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]]}"#,
            &["input_ids[0]", "13 tokens", "at most 12"],
        ),
        (&bert, r#"{"input_ids": [[1, 2]], "token_type_ids": [[0, 2]]}"#, &["token_type_ids[0][1]", "from 0 to 1"]),
        (&bert, r#"{"input_ids": [[1, 2]], "next_sentence_label": [2]}"#, &["next_sentence_label[0]", "0, 1"]),
        (&bert, r#"{"input_ids": [[1, 2]], "next_sentence_label": [1, 1]}"#, &["next_sentence_label", "2 numbers"]),
        (&next, r#"{"input_ids": [[1, 2]], "next_sentence_label": [1], "labels": [1]}"#, &["labels", "one of the two"]),
        (&next, r#"{"input_ids": [[1, 2]], "labels": [[1, 1]]}"#, &["labels[0]", "a list"]),
        (&classes, r#"{"input_ids": [[1, 2]], "labels": [2]}"#, &["labels[0]", "2", "from 0 to 1"]),
        (&classes, r#"{"input_ids": [[1, 2]], "labels": [1, 1]}"#, &["labels", "2 numbers", "1, one a row"]),
        (&classes, r#"{"input_ids": [[1, 2]], "labels": [0.5]}"#, &["labels[0]", "0.5", "a class"]),
        (&classes, r#"{"input_ids": [[1, 2]], "labels": [-100]}"#, &["labels", "only -100"]),
        (&classes, r#"{"input_ids": [[1, 2]], "labels": [[0.5]]}"#, &["labels[0]", "1 numbers", "2, one a label"]),
        (&classes, r#"{"input_ids": [[1, 2]], "labels": [[0.5, 2]]}"#, &["labels[0]", "2", "from 0 to 1"]),
        (&classes, r#"{"input_ids": [[1, 2], [3, 4]], "labels": [[1, 0]]}"#, &["labels", "1 entries", "2, one a row"]),
        (&classes, r#"{"input_ids": [[1, 2]], "next_sentence_label": [0]}"#, &["sequence-classification takes"]),
    ];
    for (model, text, parts) in cases {
        let file = folder.batch(text);
        let result = match PaddedBatch::open(&file) {
            Ok(batch) => forward(model, &batch, &ForwardOptions::default()),
            Err(e) => Err(e),
        };
        let message = result.err().unwrap_or_else(|| panic!("{text} was taken")).to_string();
        for part in ["batch.json"].iter().chain(parts.iter()) {
            assert!(message.contains(part), "{text}: {message:?} lacks {part:?}");
        }
    }
    // Gradients need a loss, and one label is none for pretraining.
    let b = PaddedBatch::open(folder.batch(r#"{"input_ids": [[1, 2]], "labels": [[1, 2]]}"#)).unwrap();
    let out = forward(&bert, &b, &ForwardOptions::default()).unwrap();
    assert!(out.iter().all(|(n, _)| n != "loss"));
    let e = forward(&bert, &b, &ForwardOptions { grad: true, ..Default::default() }).unwrap_err();
    assert!(e.to_string().contains("no loss"), "{e}");
    let e = forward(&gpt2, &b, &ForwardOptions { segment_length: Some(2), ..Default::default() }).unwrap_err();
    assert!(e.to_string().contains("not recurrent"), "{e}");
    // The next-sentence head takes its label under either name.
    let a = PaddedBatch::open(folder.batch(r#"{"input_ids": [[1, 2]], "labels": [1]}"#)).unwrap();
    let loss =
        |b: &PaddedBatch| genus_ops::scalar(&forward(&next, b, &ForwardOptions::default()).unwrap()[0].1).unwrap();
    let b = PaddedBatch::open(folder.batch(r#"{"input_ids": [[1, 2]], "next_sentence_label": [1]}"#)).unwrap();
    assert_eq!(loss(&a), loss(&b));
}

#[test]
fn encoders_have_no_cache() {
    let model = tiny("bert-tiny", Task::Base);
    let input = Input::from_sequences(&[[1u32, 2]]);
    assert!(model.hidden(&Tape::inference(), &input, Some(&mut [SequenceCache::new()]), false).is_err());
}
