//! The text that ships with the program, for `genus quickstart`: this project's own source and documentation.

use std::io::Read;

use anyhow::Context;

/// Made by `cargo run -p genus-cli --example make_corpus`.
static COMPRESSED: &[u8] = include_bytes!("../assets/corpus.txt.gz");

/// A line that stands between two files of the corpus.
pub const SEPARATOR: char = '\u{c}';

/// The documents of the corpus: one a file.
pub fn documents() -> anyhow::Result<Vec<String>> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(COMPRESSED).read_to_string(&mut text).context("the built-in corpus is damaged")?;
    Ok(text.split(SEPARATOR).map(str::trim_start).filter(|d| !d.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_is_text_in_documents() {
        let documents = super::documents().unwrap();
        assert!(documents.len() > 10, "{} documents", documents.len());
        assert!(documents.iter().map(String::len).sum::<usize>() > 50_000);
        assert!(documents.iter().all(|d| !d.contains('\0') && !d.contains('\r')));
    }
}
