//! The options that say which text is read, and how: the same for every command that reads a corpus.

use std::path::PathBuf;

use genus_text::{Corpus, CorpusOptions, CorpusStats, DocumentSplit};
use genus_train::DocumentKind;

use crate::options::options;
use crate::progress::{bytes, grouped};
use crate::report::Usage;

options!(
    /// Which text is read, and how.
    pub(crate) Data, DataFlags {
        /// Text, JSON lines (.jsonl) or Parquet files, or folders of them; for tagging CoNLL-U, or a word and its tag a line; .gz is unpacked.
        #[arg(value_name = "PATH")]
        list data: PathBuf,
        /// Field of JSON objects or column of Parquet files that holds the text.
        #[arg(value_name = "NAME")]
        value text_field: String = "text".to_owned(),
        /// What a document is in a text file: the file, what blank lines separate, or each line.
        #[arg(value_name = "file|blank-lines|lines")]
        value documents: DocumentKind = DocumentKind::File,
    }
);

impl Data {
    /// How files are read.
    pub(crate) fn options(&self) -> CorpusOptions {
        let split = match self.documents {
            DocumentKind::File => DocumentSplit::File,
            DocumentKind::BlankLines => DocumentSplit::BlankLines,
            DocumentKind::Lines => DocumentSplit::Lines,
        };
        CorpusOptions { text_field: self.text_field.clone(), split }
    }

    /// The corpus. Contents are looked at when it is read.
    pub(crate) fn open(&self) -> anyhow::Result<Corpus> {
        if self.data.is_empty() {
            return Err(
                Usage("no data: pass --data PATH (files or folders of text, JSON lines or Parquet)".into()).into()
            );
        }
        Ok(Corpus::open(&self.data, self.options())?)
    }
}

/// What was read, in a line; what was silently put right is named.
pub(crate) fn describe(stats: &CorpusStats) -> String {
    let mut out = format!(
        "{} in {} document{} from {} file{}",
        bytes(stats.bytes),
        grouped(stats.documents),
        if stats.documents == 1 { "" } else { "s" },
        grouped(stats.files),
        if stats.files == 1 { "" } else { "s" }
    );
    for (n, what) in [
        (stats.crlf, "CR LF line ends made LF"),
        (stats.boms, "byte order marks removed"),
        (stats.empty_files, "empty files skipped"),
        (stats.empty_documents, "empty documents skipped"),
    ] {
        if n > 0 {
            out.push_str(&format!("; {} {what}", grouped(n)));
        }
    }
    out
}
