//! The default build needs nothing but a Rust toolchain and a C compiler: no system library, no cmake, no bindgen, no pkg-config.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crates that look for, build or bind to something outside of the crate registry.
const REFUSED: &[(&str, &str)] = &[
    ("autotools", "runs configure and make"),
    ("bindgen", "needs libclang"),
    ("cmake", "runs cmake"),
    ("pkg-config", "looks for system libraries"),
    ("protobuf-src", "runs cmake"),
    ("prost-build", "runs protoc"),
    ("system-deps", "looks for system libraries"),
    ("vcpkg", "looks for system libraries"),
];

/// Packages named `...-sys`, or that link a native library, and why each is harmless.
const ALLOWED_SYS: &[(&str, &str)] = &[
    ("linux-raw-sys", "declarations of the kernel's own interface; links nothing"),
    ("windows-sys", "declarations; links what every Windows has"),
    ("onig_sys", "bundled C sources, compiled by cc; its bindgen feature is off"),
    ("ring", "bundled C and assembly, compiled by cc"),
    ("zstd-sys", "bundled C sources, compiled by cc; its pkg-config feature is off"),
    ("rayon-core", "`links` only keeps two versions apart; links nothing"),
    ("prettyplease", "`links` only keeps two versions apart; links nothing"),
];

/// Build dependencies that are never called in this build, and why.
const UNUSED: &[(&str, &str, &str)] =
    &[("zstd-sys", "pkg-config", "called only with its feature pkg-config, or ZSTD_SYS_USE_PKG_CONFIG set")];

/// The name of the package with this id.
fn id_name<'a>(metadata: &'a Value, id: &str) -> &'a str {
    let packages = metadata["packages"].as_array().expect("packages");
    packages.iter().find(|p| p["id"] == id).and_then(|p| p["name"].as_str()).expect("a package of the graph")
}

/// The packages that `roots` need in a normal build: normal and build dependencies, followed from package to package.
fn reachable<'a>(metadata: &'a Value, roots: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .map(|n| (n["id"].as_str().expect("an id"), n))
        .collect();
    let mut seen = BTreeSet::new();
    let mut open: Vec<&str> = roots.iter().copied().collect();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in nodes[id]["deps"].as_array().expect("deps") {
            let (from, to) = (id_name(metadata, id), dependency["name"].as_str().unwrap_or_default().replace('_', "-"));
            if UNUSED.iter().any(|(package, unused, _)| *package == from && *unused == to) {
                continue;
            }
            let kinds = dependency["dep_kinds"].as_array().expect("kinds");
            if kinds.iter().any(|k| k["kind"].as_str() != Some("dev")) {
                open.push(dependency["pkg"].as_str().expect("a package"));
            }
        }
    }
    seen
}

/// What among the packages that the workspace needs breaks the promise.
fn violations(metadata: &Value) -> Vec<String> {
    let members = metadata["workspace_members"].as_array().expect("members");
    let roots: BTreeSet<&str> = members.iter().filter_map(Value::as_str).collect();
    let needed = reachable(metadata, &roots);
    let mut out = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let (id, name) = (package["id"].as_str().expect("an id"), package["name"].as_str().expect("a name"));
        if !needed.contains(id) {
            continue;
        }
        if let Some((_, why)) = REFUSED.iter().find(|(n, _)| *n == name) {
            out.push(format!("{name}: {why}"));
        }
        let native = name.ends_with("-sys") || name.ends_with("_sys") || !package["links"].is_null();
        if native && !ALLOWED_SYS.iter().any(|(n, _)| *n == name) {
            out.push(format!("{name}: links a native library, or its name says so, and it is not on the list"));
        }
    }
    out
}

/// The platform of this machine, whose packages are at hand without a network.
fn host() -> String {
    let output =
        Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into())).arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().find_map(|l| l.strip_prefix("host: ")).expect("a host").to_owned()
}

#[test]
fn the_default_build_needs_no_system_library() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--filter-platform", &host(), "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    assert_eq!(violations(&metadata), Vec::<String>::new());
}

#[test]
fn a_system_library_is_found_behind_another_package() {
    let metadata = serde_json::json!({
        "workspace_members": ["ours"],
        "packages": [
            {"id": "ours", "name": "ours", "links": null},
            {"id": "tls", "name": "tls", "links": null},
            {"id": "openssl-sys", "name": "openssl-sys", "links": "openssl"},
            {"id": "cmake", "name": "cmake", "links": null},
        ],
        "resolve": {"nodes": [
            {"id": "ours", "deps": [
                {"pkg": "tls", "dep_kinds": [{"kind": null}]},
                {"pkg": "cmake", "dep_kinds": [{"kind": "dev"}]},
            ]},
            {"id": "tls", "deps": [{"pkg": "openssl-sys", "dep_kinds": [{"kind": "build"}]}]},
            {"id": "openssl-sys", "deps": []},
            {"id": "cmake", "deps": []},
        ]},
    });
    let found = violations(&metadata);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("openssl-sys"), "{found:?}");
}
