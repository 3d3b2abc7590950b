//! Makes `crates/cli/assets/corpus.txt.gz`, the text that `genus quickstart` trains on: this project's own source and documentation.
//!
//! `cargo run -p genus-cli --example make_corpus` in a checkout. Takes the committed files that end in `.md`, `.rs`, `.toml` or `.py`, in
//! the order of `git ls-files` (documents first), up to [`LIMIT`] bytes, and mixes them. The result depends on nothing but those files: the same commit gives the
//! same bytes.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Bytes of text at most.
const LIMIT: usize = 2_000_000;
/// The order in which kinds of files are taken, should the limit cut some off.
const KINDS: [&str; 4] = [".md", ".rs", ".toml", ".py"];
/// Files that are no text to learn from: checksums.
const SKIP: [&str; 1] = ["docs/data.md"];
/// Stands between two files.
const SEPARATOR: &str = "\n\u{c}\n";

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let listed = Command::new("git").arg("-C").arg(&root).args(["ls-files", "-z"]).output()?;
    if !listed.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr)).into());
    }
    let names: Vec<&str> = std::str::from_utf8(&listed.stdout)?.split('\0').filter(|n| !n.is_empty()).collect();
    let mut taken: Vec<(&str, String)> = Vec::new();
    let mut size = 0;
    for kind in KINDS {
        for name in names.iter().filter(|n| n.ends_with(kind) && !SKIP.contains(n)) {
            let body = std::fs::read_to_string(root.join(name)).map_err(|e| format!("{name}: {e}"))?;
            let body = body.replace('\r', "").replace(['\0', '\u{c}'], "");
            if body.trim().is_empty() || size + body.len() + SEPARATOR.len() > LIMIT {
                continue;
            }
            size += body.len() + SEPARATOR.len();
            taken.push((name, body));
        }
    }
    // Mixed, and always in the same way: the last documents are held out for evaluation and must be like the others.
    taken.sort_by_key(|(name, _)| (fnv1a(name), *name));
    let files = taken.len();
    let bodies: Vec<String> = taken.into_iter().map(|(_, body)| body).collect();
    let text = bodies.join(SEPARATOR);
    // No file name and no time in the header: the same text gives the same bytes.
    let mut encoder = flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes())?;
    let packed = encoder.finish()?;
    let out = root.join("crates/cli/assets/corpus.txt.gz");
    std::fs::create_dir_all(out.parent().ok_or("no parent folder")?)?;
    std::fs::write(&out, &packed)?;
    println!("{files} files, {} bytes, {} compressed: crates/cli/assets/corpus.txt.gz", text.len(), packed.len());
    Ok(())
}

/// Fowler, Noll and Vo's hash.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
