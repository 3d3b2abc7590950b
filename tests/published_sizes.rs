//! Names, shapes and counts of published sizes, against those of `transformers` (see `tests/parity/generate.py`).

use genus_models::{Task, find_preset};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn read(file: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(file);
    Ok(std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?)
}

#[test]
fn parameter_counts_of_published_sizes() -> Result<()> {
    let mut counts: BTreeMap<String, u64> = serde_json::from_str(&read("counts.json")?)?;
    counts.append(&mut serde_json::from_str(&read("counts-xl.json")?)?);
    for (name, count) in &counts {
        let (preset, pretraining) = match name.strip_suffix("-pretraining") {
            Some(preset) => (preset, true),
            None => (name.as_str(), false),
        };
        let (family, preset) = find_preset(preset)?;
        let whole = pretraining || matches!(family.default_task(), Task::CausalLm | Task::Seq2SeqLm);
        let task = if whole { family.task_of(preset.name) } else { Task::Base };
        assert_eq!(family.count(&(preset.spec)(), task)?, *count, "{name}");
    }
    assert!(counts.len() >= 8);
    Ok(())
}

#[test]
fn tensor_names_of_published_sizes() -> Result<()> {
    for name in [
        "gpt2",
        "bert-base-uncased",
        "openai-gpt",
        "gpt-neo-125m",
        "opus-mt-en-de",
        "electra-small-discriminator",
        "electra-base-generator",
    ] {
        let text = read(&format!("published/{name}.txt"))?;
        // A line with "=" is a second name of a tied tensor, which is not saved.
        let expected: BTreeSet<(String, String)> = text
            .lines()
            .filter(|line| !line.contains('='))
            .filter_map(|line| line.split_once(' '))
            .map(|(name, shape)| (name.to_owned(), shape.to_owned()))
            .collect();
        let (family, preset) = find_preset(name)?;
        let shape = |dims: Vec<usize>| dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let plan = family.file_plan(&(preset.spec)(), family.task_of(name))?;
        // A buffer is no parameter.
        let plan = plan.into_iter().filter(|(n, _)| n != "final_logits_bias");
        let got: BTreeSet<(String, String)> = plan.map(|(n, dims)| (n, shape(dims))).collect();
        assert_eq!(got, expected, "{name}");
    }
    Ok(())
}
