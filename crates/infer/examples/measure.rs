//! Measures GPT-2 of a published size with random weights: `cargo run --release -p genus-infer --example measure -- gpt2 [WORKLOAD [PRECISION]]`.

use genus_infer::bench::{Ceilings, Report, Runs, decode, forward, prefill};
use genus_models::{Model, find_preset};
use genus_ops::Precision;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "gpt2".into());
    let (family, preset) = find_preset(&name)?;
    let model = Model::random(family, (preset.spec)(), family.default_task(), 1)?;
    let precision = std::env::args().nth(3).map_or(Ok(Precision::F32), |p| p.parse())?;
    let runs = Runs { warm_up: 1, timed: 3 };
    let only = std::env::args().nth(2).unwrap_or_default();
    let mut all = Vec::new();
    for kind in ["forward", "prefill", "decode", "decode-8"].into_iter().filter(|k| only.is_empty() || *k == only) {
        all.push(match kind {
            "forward" => ("forward 2x256", forward(&model, 2, 256, precision, runs)?),
            "prefill" => ("prefill 512", prefill(&model, 512, precision, runs)?),
            "decode" => ("decode 1x16+32", decode(&model, 1, 16, 32, precision, runs)?),
            _ => ("decode 8x16+16", decode(&model, 8, 16, 16, precision, runs)?),
        });
    }
    let ceilings = Ceilings::measure(precision);
    for (workload, m) in all {
        let r = Report::new(&name, Some(precision), workload, &m, ceilings);
        println!("{}", serde_json::to_string(&r)?);
    }
    Ok(())
}
