//! `genus bench`: what is reported, not how fast it is.

use crate::program::{arg, fails, json_lines, ok, run};

const SMALL: [&str; 14] = [
    "--n-layers",
    "2",
    "--d-model",
    "32",
    "--n-heads",
    "2",
    "--vocab-size",
    "300",
    "--n-ctx",
    "64",
    "--runs",
    "2",
    "--warm-up",
    "1",
];

#[test]
fn every_workload_reports_what_is_contracted() {
    let workloads: [(&str, &str, &[&str]); 7] = [
        ("train", "gpt2", &["--batch", "2", "--context", "32", "--recompute"]),
        ("train", "bert-base-uncased", &["--batch", "2", "--context", "32", "--task", "sequence-classification"]),
        ("train", "gpt2", &["--batch", "2", "--context", "32"]),
        ("train", "bert-base-uncased", &["--batch", "2", "--context", "32"]),
        ("forward", "gpt2", &["--batch", "2", "--context", "32"]),
        ("prefill", "gpt2", &["--prompt-tokens", "40"]),
        ("decode", "gpt2", &["--batch", "3", "--prompt-tokens", "8", "--new-tokens", "5"]),
    ];
    for (kind, model, extra) in workloads {
        let precision = if kind == "prefill" || model != "gpt2" { "bf16" } else { "f32" };
        let fixed = ["bench", kind, model, "--json", "--precision", precision];
        let lines = json_lines(&ok(&[&fixed, &SMALL[..], extra].concat()).stdout);
        assert_eq!(lines.len(), 1);
        let report = &lines[0];
        assert_eq!(report["seconds"].as_array().unwrap().len(), 2);
        for field in
            ["tokens_per_second", "flops_per_second", "ceiling_flops_per_second", "ceiling_bytes_per_second", "threads"]
        {
            assert!(report[field].as_f64().unwrap() > 0.0, "{kind}: {field}: {report}");
        }
        assert_eq!(report["model"], model);
        assert_eq!(report["precision"], precision);
        assert!(report["workload"].as_str().unwrap().starts_with(kind));
        assert!(report["kernel_level"].is_string() && report.get("peak_rss_bytes").is_some());
        assert_eq!(report.get("bytes_per_second").is_some(), kind == "decode");
        let operations = report["operations"].as_array().unwrap();
        let shares: f64 = operations.iter().map(|o| o["share"].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-6, "{kind}: {report}");
        assert!(operations.iter().any(|o| o["name"] == "attention forward"), "{kind}: {report}");
        assert_eq!(operations.iter().any(|o| o["name"] == "optimiser"), kind == "train");
        let tokens = report["tokens_per_second"].as_f64().unwrap();
        let expected = match kind {
            "prefill" => 40.0,
            "decode" => 15.0,
            _ => 64.0,
        };
        let mut seconds: Vec<f64> = report["seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        seconds.sort_by(f64::total_cmp);
        assert!((tokens * (seconds[0] + seconds[1]) / 2.0 - expected).abs() < 0.01 * expected, "{kind}: {report}");
    }
}

/// Lines with a class behind a tab, at their natural lengths, by a folder's own tokenizer.
#[test]
fn labelled_lines() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines.tsv");
    std::fs::write(&file, "sentence\tlabel\na good film\t1\nbad\t0\n\nneither good nor bad\t1\n").unwrap();
    let common = ["--task", "sequence-classification", "--tokenizer", "bytes", "--batch", "2", "--json"];
    let run = |file: &std::path::Path| {
        let args = [&["bench", "train", "bert-base-uncased", "--lines", arg(file)], &common[..], &SMALL[..]].concat();
        json_lines(&ok(&args).stdout).remove(0)
    };
    let report = run(&file);
    assert_eq!(report["workload"], "train classification 3 lines in batches of 2");
    let seconds: Vec<f64> = report["seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
    let tokens = report["tokens_per_second"].as_f64().unwrap() * (seconds[0] + seconds[1]) / 2.0;
    assert!((tokens - 34.0).abs() < 0.4, "{report}");
    assert_eq!(report["tokenizing_seconds"].as_array().unwrap().len(), 2);
    std::fs::write(&file, "a good film\t1\nbad\t2\n").unwrap();
    let args = [&["bench", "train", "bert-base-uncased", "--lines", arg(&file)], &common[..], &SMALL[..]].concat();
    fails(1, &args, &["lines.tsv", "line 2", "\"2\"", "from 0 to 1"]);
    fails(1, &["bench", "train", "gpt2", "--task", "base"], &["base", "objective"]);
}

#[test]
fn a_screen_of_figures_for_people() {
    let text = ok(&[&["bench", "forward", "gpt2", "--batch", "1", "--context", "16"], &SMALL[..]].concat()).stdout;
    for word in ["tokens/s", "GFLOP/s", "% of", "memory", "where the time went", "vocabulary product"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn tokenising_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines.txt");
    std::fs::write(&file, "some words\nand more\n").unwrap();
    let lines = file.to_str().unwrap();
    let report = json_lines(&ok(&["bench", "tokenize", "bytes", "--lines", lines, "--json"]).stdout).remove(0);
    assert_eq!((&report["workload"], &report["precision"]), (&"tokenize 2 lines".into(), &"-".into()));
    assert!(report["tokens_per_second"].as_f64() == report["bytes_per_second"].as_f64());
    let text = ok(&["bench", "tokenize", "bytes", "--lines", lines]).stdout;
    assert!(text.contains("of text"), "{text}");
}

#[test]
fn a_measurement_is_repeated_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let baseline = dir.path().join("baseline.json");
    let path = baseline.to_str().unwrap();
    let take = |runs: &str| {
        let workload = ["bench", "train", "gpt2", "--batch", "2", "--context", "16", "--json", "--threads", "2"];
        let large = ["--n-layers", "1", "--d-model", "256", "--n-heads", "4", "--vocab-size", "8192", "--n-ctx", "64"];
        let report = ok(&[&workload[..], &large, &["--runs", runs]].concat()).stdout;
        std::fs::write(&baseline, &report).unwrap();
        json_lines(&report).remove(0)
    };
    // How fast it is is not tested: a baseline that took ever so long cannot be missed, and memory regresses against one that
    // needed none.
    let mut report = take("3");
    let peak = report["peak_rss_bytes"].clone();
    let mut compare = |peak: serde_json::Value, code: i32| {
        report["seconds"] = vec![1e6; 3].into();
        report["peak_rss_bytes"] = peak;
        std::fs::write(&baseline, report.to_string()).unwrap();
        let ended = run(&["bench", "--compare", path, "--json"]);
        assert_eq!(ended.code, Some(code), "{ended:#?}");
        ended
    };
    let better = json_lines(&compare(peak.clone(), 0).stdout).remove(0);
    assert_eq!((&better["regressed"], &better["comparison"]["seconds"]["worse"]), (&false.into(), &false.into()));
    assert_eq!(better["now"]["seconds"].as_array().unwrap().len(), 3);
    assert_eq!((&better["now"]["threads"], &better["now"]["workload"]), (&2.into(), &"train 2x16".into()));
    // Where the system does not tell, there is nothing to compare.
    if !peak.is_null() {
        let worse = compare(1.into(), 3);
        let message = "regression: train 2x16 of gpt2 is larger in memory than";
        assert!(worse.stderr.contains(message), "{}", worse.stderr);
        assert_eq!(json_lines(&worse.stdout)[0]["regressed"], true);
        let text = run(&["bench", "--compare", path]).stdout;
        assert!(text.contains("time of a run") && text.contains("worse"), "{text}");
    }

    take("2");
    fails(1, &["bench", "--compare", path], &["number of runs", "found 2", "at least 3", "baseline.json"]);
    std::fs::write(&baseline, "{}").unwrap();
    fails(1, &["bench", "--compare", path], &["baseline.json", "missing field", "genus bench ... --json"]);
    fails(2, &["bench", "--compare", path, "train", "gpt2"], &["--compare", "leave the workload out"]);
    fails(1, &["bench", "--compare", "nowhere.json"], &["nowhere.json"]);
}

#[test]
fn what_cannot_be_measured_is_named() {
    fails(1, &[&["bench", "train", "gpt2", "--context", "65"], &SMALL[..]].concat(), &["context", "65", "64"]);
    fails(1, &[&["bench", "decode", "gpt2", "--new-tokens", "100"], &SMALL[..]].concat(), &["new_tokens"]);
    fails(1, &["bench", "forward", "gtp2"], &["gtp2", "gpt2"]);
    fails(1, &["bench", "forward", "gpt2", "--n-heads", "7"], &["n_heads", "7"]);
    fails(1, &["bench", "prefill", "bert-base-uncased"], &["causal-lm"]);
    fails(2, &["bench", "forward", "gpt2", "--runs", "0"], &["--runs"]);
}
