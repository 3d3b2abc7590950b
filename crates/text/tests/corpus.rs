//! Reading documents.

use genus_text::*;
use std::io::Write;
use std::path::Path;

fn open(path: &Path, split: DocumentSplit) -> Corpus {
    Corpus::open(&[path], CorpusOptions { split, ..Default::default() }).unwrap()
}

fn all(corpus: &Corpus) -> Vec<String> {
    corpus.documents().collect::<Result<_>>().unwrap()
}

#[test]
fn line_ends_and_marks_are_put_right_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    std::fs::write(&path, b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\rfour\n").unwrap();
    let corpus = open(&path, DocumentSplit::File);
    let mut documents = corpus.documents();
    assert_eq!(documents.next().unwrap().unwrap(), "one\ntwo\n\nthree\rfour\n");
    assert!(documents.next().is_none());
    let stats = documents.stats();
    assert_eq!((stats.boms, stats.crlf, stats.documents, stats.bytes), (1, 3, 1, 20));
    assert_eq!(all(&open(&path, DocumentSplit::BlankLines)), ["one\ntwo", "three\rfour"]);
    assert_eq!(all(&open(&path, DocumentSplit::Lines)), ["one", "two", "three\rfour"]);
}

#[test]
fn folders_are_walked_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    file("b/second.jsonl", b"{\"text\": \"2a\"}\n\n{\"text\": \" \"}\n{\"text\": \"2b\\r\\nx\", \"n\": 1}");
    file("a/first.txt", b"1");
    file("c.json", b"[{\"text\": \"3a\"}, {\"text\": \"3b\"}]");
    file("d.json", b"{\"text\": \"4\"}\n");
    file("empty.txt", b"");
    file(".hidden", b"\0");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    gz.write_all("{\"text\": \"5\"}\n".as_bytes()).unwrap();
    file("z.jsonl.gz", &gz.finish().unwrap());
    let corpus = open(dir.path(), DocumentSplit::File);
    assert_eq!(all(&corpus), ["1", "2a", "2b\nx", "3a", "3b", "4", "5"]);
    let mut documents = corpus.documents();
    documents.by_ref().for_each(drop);
    let stats = documents.stats();
    assert_eq!((stats.files, stats.empty_files, stats.empty_documents), (6, 1, 1));
}

#[test]
fn holding_out_documents_and_text() {
    let documents: Vec<String> = (0..10).map(|i| format!("document {i}")).collect();
    let corpus = Corpus::from_documents("memory", documents.clone());
    for (fraction, held) in [(0.05, 1), (0.1, 1), (0.25, 3), (0.99, 9)] {
        let (train, dev) = corpus.split_dev(&DevSplit::Fraction(fraction)).unwrap();
        assert_eq!(all(&train), documents[..10 - held]);
        assert_eq!(all(&dev), documents[10 - held..]);
    }
    let (train, _) = corpus.split_dev(&DevSplit::Fraction(0.5)).unwrap();
    let (a, b) = train.split_dev(&DevSplit::Fraction(0.4)).unwrap();
    assert_eq!((all(&a), all(&b)), (documents[..3].to_vec(), documents[3..5].to_vec()));

    for text in
        ["line one\nline two\nline three\nline four\n", "no line ends but words in a row", "字字字字字字字字字字"]
    {
        let corpus = Corpus::from_documents("memory", vec![text.into()]);
        let (train, dev) = corpus.split_dev(&DevSplit::Fraction(0.3)).unwrap();
        let (train, dev) = (all(&train).concat(), all(&dev).concat());
        assert_eq!(format!("{train}{dev}"), text);
        assert!(dev.len() * 10 <= text.len() * 4 && !dev.is_empty(), "{dev:?}");
    }
}

/// The share is one of text: a folder with a note beside the one large file must not hold out nearly everything.
#[test]
fn a_large_document_among_small_ones_is_cut() {
    let large = "a line of text\n".repeat(1000);
    for (documents, parts) in [
        (vec!["a note".to_owned(), large.clone()], (2, 1)),
        (vec![large.clone(), "a note".to_owned()], (1, 2)),
        (vec!["a note".to_owned(), large.clone(), "another".to_owned()], (2, 2)),
    ] {
        let text = documents.concat();
        let corpus = Corpus::from_documents("memory", documents);
        let (train, dev) = corpus.split_dev(&DevSplit::Fraction(0.05)).unwrap();
        let (a, b) = (all(&train), all(&dev));
        assert_eq!((a.len(), b.len()), parts);
        let (a, b) = (a.concat(), b.concat());
        assert_eq!(format!("{a}{b}"), text);
        assert!((0.04..0.06).contains(&(b.len() as f64 / text.len() as f64)), "{} of {}", b.len(), text.len());
        // A part of a part, too.
        let (c, d) = train.split_dev(&DevSplit::Fraction(0.5)).unwrap();
        assert_eq!(all(&c).concat() + &all(&d).concat(), a);
    }
}

#[test]
fn a_very_long_line_is_one_pass() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("line.txt");
    std::fs::write(&path, "x y ".repeat(4 << 20)).unwrap();
    for split in [DocumentSplit::File, DocumentSplit::Lines, DocumentSplit::BlankLines] {
        let corpus = open(&path, split);
        assert_eq!(corpus.documents().next().unwrap().unwrap().len(), 16 << 20);
    }
    let stream = TokenStream::build(&open(&path, DocumentSplit::File), &Tokenizer::bytes(), |_| {}).unwrap();
    assert_eq!(stream.len(), (16 << 20) + 1);
}

#[test]
fn parquet() {
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let expected = ["first document".to_owned(), "第二个文档".into(), "third\ndocument".into(), "x".repeat(3000)];
    for codec in ["snappy", "gzip", "zstd", "lz4"] {
        let file = fixture(&format!("{codec}.parquet"));
        assert_eq!(all(&open(&file, DocumentSplit::File)), expected, "{codec}");
    }
}
