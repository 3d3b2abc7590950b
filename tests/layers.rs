//! The layers of the design, kept by a test: which of our packages may use which.
//!
//! Direct dependencies count, development dependencies do not. The table is the one of ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// A package, and those of ours that it may use directly.
const TABLE: &[(&str, &[&str])] = &[
    ("genus-ops", &[]),
    ("genus-text", &[]),
    ("genus-nn", &["genus-ops"]),
    ("genus-checkpoint", &["genus-ops"]),
    ("genus-models", &["genus-ops", "genus-nn", "genus-checkpoint"]),
    ("genus-infer", &["genus-ops", "genus-nn", "genus-models", "genus-text", "genus-checkpoint"]),
    ("genus-train", &["genus-ops", "genus-nn", "genus-models", "genus-text", "genus-checkpoint", "genus-infer"]),
    (
        "genus-cli",
        &["genus-ops", "genus-nn", "genus-models", "genus-text", "genus-checkpoint", "genus-infer", "genus-train"],
    ),
    (
        "genus",
        &[
            "genus-ops",
            "genus-nn",
            "genus-models",
            "genus-text",
            "genus-checkpoint",
            "genus-infer",
            "genus-train",
            "genus-cli",
        ],
    ),
];

/// Every package of the workspace with those of ours that it depends on.
fn edges(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |p: &Value| p["name"].as_str().expect("a name").to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let used = dependencies
                .iter()
                .filter(|d| d["kind"].as_str() != Some("dev"))
                .map(name)
                .filter(|d| ours.contains(d))
                .collect();
            (name(package), used)
        })
        .collect()
}

/// What `edges` has outside of `table`.
fn violations(edges: &BTreeMap<String, BTreeSet<String>>, table: &[(&str, &[&str])]) -> Vec<String> {
    let mut out = Vec::new();
    for (package, used) in edges {
        let Some((_, allowed)) = table.iter().find(|(name, _)| name == package) else {
            out.push(format!("{package} is not in the table"));
            continue;
        };
        out.extend(used.iter().filter(|u| !allowed.contains(&u.as_str())).map(|u| format!("{package} uses {u}")));
    }
    out
}

#[test]
fn packages_use_only_the_layers_below_them() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let edges = edges(&metadata);
    assert!(edges.values().any(|used| !used.is_empty()), "no edge found: the metadata was not understood");
    assert_eq!(violations(&edges, TABLE), Vec::<String>::new());
}

#[test]
fn an_edge_outside_the_table_is_found() {
    let metadata = serde_json::json!({"packages": [
        {"name": "genus-ops", "dependencies": [{"name": "libc", "kind": null}]},
        {"name": "genus-text", "dependencies": [{"name": "genus-ops", "kind": null}]},
        {"name": "genus-nn", "dependencies": [{"name": "genus-text", "kind": "dev"}, {"name": "genus-ops", "kind": null}]},
        {"name": "genus-new", "dependencies": []},
    ]});
    assert_eq!(violations(&edges(&metadata), TABLE), ["genus-new is not in the table", "genus-text uses genus-ops"]);
}
