//! A word's vector: of the whole text in models that read in both directions, of what stands before it in all others.

use genus_infer::{cosine, represent};
use genus_models::{Model, Task, families};
use genus_nn::{Bands, CellOutput, Mixing, Vocabulary};
use genus_ops::Precision;
use genus_text::Tokenizer;

const BANK: [&str; 2] = ["i went to the bank to deposit cash", "i went to the bank to sit down"];

fn small(family: &'static genus_models::Family) -> Model {
    let mut spec = (family.presets[0].spec)();
    (spec.d_model, spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.d_head) = (24, 2, 2, 2, 12);
    (spec.d_ff, spec.vocab_size, spec.n_ctx) = (30, 257, 40);
    if let Bands::Local { window, .. } = &mut spec.bands {
        *window = 8;
    }
    if matches!(spec.mixing, Mixing::Recurrent { output: CellOutput::Cells, .. }) {
        spec.d_ff = spec.d_model;
    }
    if let Vocabulary::Characters(c) = &mut spec.vocabulary {
        c.filters = vec![(1, 5), (3, 20)];
    }
    let model = Model::random(family, spec, Task::Base, 5).unwrap();
    if let Vocabulary::Characters(c) = &model.spec().vocabulary {
        model.set_spellings(&genus_text::spellings(&Tokenizer::bytes(), 257, c.length)).unwrap();
    }
    model
}

#[test]
fn a_bank_is_a_bank_only_to_models_that_do_not_look_ahead() {
    let tokenizer = Tokenizer::bytes();
    let mut both = [0, 0];
    for family in families() {
        let model = small(family);
        let past = model.spec().sees_past_only() && !model.has_encoder();
        both[usize::from(past)] += 1;
        let found = represent(&model, &tokenizer, &BANK, "bank", None, Precision::F32).unwrap();
        let (a, b) = (&found[0].vector, &found[1].vector);
        assert_eq!(found[0].word, 14..18);
        assert_eq!(a == b, past, "{}: cosine {}", family.name, cosine(a, b));
        // The embeddings know nothing of the text, and so do not differ.
        let found = represent(&model, &tokenizer, &BANK, "bank", Some(0), Precision::F32).unwrap();
        assert_eq!(found[0].vector, found[1].vector, "{}", family.name);
        // What stands before the word counts for all.
        let other = ["i went to the bank", "we walked to a bank"];
        let found = represent(&model, &tokenizer, &other, "bank", None, Precision::F32).unwrap();
        assert_ne!(found[0].vector, found[1].vector, "{}", family.name);
    }
    assert!(both.iter().all(|&n| n > 0), "both kinds of models are registered");
}

#[test]
fn what_cannot_be_is_told() {
    let (model, tokenizer) = (small(families()[1]), Tokenizer::bytes());
    let fails = |texts: &[&str], word: &str, layer| {
        represent(&model, &tokenizer, texts, word, layer, Precision::F32).unwrap_err().to_string()
    };
    let message = fails(&["a bank", "a river"], "bank", None);
    assert!(message.contains("\"bank\"") && message.contains("a river"), "{message}");
    assert!(fails(&["a bank"], "bank", Some(3)).contains("from 0 (embeddings) to 2"));
}
