//! Published sizes: parameter counts, tensor names and shapes, without memory for the weights.

use genus_models::{Task, families, find_preset, lineage};

/// Counts recomputed from the published definitions (and by `transformers`, see `tests/parity/counts.json` of the repository).
#[test]
fn parameter_counts_are_exact() {
    for (name, task, count) in [
        ("gpt2", Task::CausalLm, 124_439_808),
        ("gpt2-medium", Task::CausalLm, 354_823_168),
        ("gpt2-large", Task::CausalLm, 774_030_080),
        ("gpt2-xl", Task::CausalLm, 1_557_611_200),
        ("bert-base-uncased", Task::Base, 109_482_240),
        ("bert-base-uncased", Task::Pretraining, 110_106_428),
        ("bert-large-uncased", Task::Base, 335_141_888),
        ("bert-large-uncased", Task::Pretraining, 336_226_108),
        ("bert-base-cased", Task::Base, 108_310_272),
        ("bert-base-chinese", Task::Base, 102_267_648),
        ("bert-tiny", Task::Base, 4_385_920),
        ("bert-mini", Task::Base, 11_170_560),
        ("bert-small", Task::Base, 28_763_648),
        ("bert-medium", Task::Base, 41_373_184),
        ("electra-small-discriminator", Task::Base, 13_483_008),
        ("electra-base-discriminator", Task::Base, 108_891_648),
        ("electra-large-discriminator", Task::Base, 334_092_288),
        ("electra-small-discriminator", Task::ReplacedToken, 13_549_057),
        ("electra-base-generator", Task::Base, 33_511_168),
        ("electra-base-generator", Task::MaskedLm, 33_740_602),
        ("openai-gpt", Task::CausalLm, 116_534_784),
        ("gpt3-125m", Task::CausalLm, 125_226_240),
        ("gpt3-350m", Task::CausalLm, 355_871_744),
        ("gpt3-760m", Task::CausalLm, 760_300_032),
        ("gpt3-1.3b", Task::CausalLm, 1_517_123_584),
        ("gpt3-2.7b", Task::CausalLm, 2_651_553_280),
        ("gpt3-6.7b", Task::CausalLm, 6_658_404_352),
        // Published in round numbers: 93.6, 28.0 and 13.6 million, the output over words not counted.
        ("elmo-original", Task::Base, 93_600_848),
        ("elmo-medium", Task::Base, 28_027_728),
        ("elmo-small", Task::Base, 13_593_296),
        // A table, and for each of two layers in two directions 8 d^2 weights and 4 d biases.
        ("bilstm", Task::Base, 30_522 * 512 + 4 * (8 * 512 * 512 + 4 * 512)),
        // GPT, and its layers once more.
        ("bi-transformer", Task::BidirectionalLm, 116_534_784 + 12 * (12 * 768 * 768 + 13 * 768)),
        // The definition has 63,045,632 and 214,171,648; Marian's form adds the biases of attention.
        ("transformer-base", Task::Seq2SeqLm, 63_045_632 + 72 * 512),
        ("transformer-big", Task::Seq2SeqLm, 214_171_648 + 72 * 1024),
        ("gpt3-13b", Task::CausalLm, 12_936_488_380),
        ("gpt3-175b", Task::CausalLm, 174_604_259_328),
    ] {
        let (family, preset) = find_preset(name).unwrap();
        assert_eq!(family.count(&(preset.spec)(), task).unwrap(), count, "{name} {task}");
    }
}

/// Every own name has a checkpoint name, no two the same, for every task of every member.
#[test]
fn name_tables_are_complete() {
    for family in families() {
        let spec = (family.presets[0].spec)();
        for (task, _) in family.tasks {
            let plan = family.plan(&spec, *task).unwrap();
            let mut names: Vec<String> = family.file_plan(&spec, *task).unwrap().into_iter().map(|p| p.0).collect();
            assert_eq!(names.len(), plan.len(), "{} {task}", family.name);
            names.sort();
            names.dedup();
            assert_eq!(names.len(), plan.len(), "{} {task}", family.name);
        }
    }
}

#[test]
fn every_member_hangs_in_the_tree_and_presets_are_unique() {
    let mut names = Vec::new();
    for family in families() {
        assert!(
            lineage().iter().any(|l| l.name == family.ancestor) || families().iter().any(|f| f.name == family.ancestor),
            "{} has an unknown ancestor",
            family.name
        );
        names.extend(family.presets.iter().map(|p| p.name));
    }
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn an_unknown_preset_suggests_the_nearest() {
    let error = find_preset("gpt2-mediun").err().unwrap().to_string();
    assert!(error.contains("gpt2-mediun") && error.contains("\"gpt2-medium\""), "{error}");
}
