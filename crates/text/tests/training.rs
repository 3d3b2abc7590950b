//! Vocabularies learnt from text.

use genus_text::*;

fn text() -> Vec<String> {
    // Text at hand everywhere: this crate's own sources, and a little Chinese.
    let mut documents: Vec<String> = [
        include_str!("../src/error.rs"),
        include_str!("../src/tokenizer/train.rs"),
        include_str!("../src/dataset/pairs.rs"),
        include_str!("../src/corpus/mod.rs"),
    ]
    .map(str::to_owned)
    .into();
    documents.push("床前明月光，疑是地上霜。举头望明月，低头思故乡。\n".repeat(20));
    documents.push("Où est le café? Übergrößenträger: naïve façade. ".repeat(30));
    documents
}

fn train(kind: TrainKind, vocab_size: usize) -> Tokenizer {
    Tokenizer::train(&TrainOptions::new(kind, vocab_size), text().into_iter().map(Ok), |_| {}).unwrap()
}

const KINDS: [TrainKind; 3] = [TrainKind::Bpe, TrainKind::WordPiece, TrainKind::Unigram];

/// Everything that is saved, as bytes.
fn saved(tokenizer: &Tokenizer) -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path(), Some(128)).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn training_is_repeatable() {
    for kind in KINDS {
        let first = saved(&train(kind, 600));
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| saved(&train(kind, 600))) == first, "{kind} on {threads} threads");
        }
    }
}

#[test]
fn sizes_and_special_tokens() {
    let bpe = train(TrainKind::Bpe, 600);
    assert_eq!(bpe.vocab_size(), 600);
    assert_eq!(bpe.special().eos, bpe.id("<|endoftext|>"));
    assert!(bpe.special().eos.is_some() && bpe.kind() == TokenizerKind::ByteLevelBpe);
    let wp = train(TrainKind::WordPiece, 600);
    assert_eq!(wp.vocab_size(), 600);
    let names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    assert_eq!(names.map(|n| wp.id(n)), [0, 1, 2, 3, 4].map(Some));
    assert_eq!((wp.special().cls, wp.special().mask, wp.end_of_text()), (Some(2), Some(4), Some(3)));
    let uni = train(TrainKind::Unigram, 600);
    assert!((500..=600).contains(&uni.vocab_size()), "{}", uni.vocab_size());
    assert_eq!((uni.special().pad, uni.special().eos, uni.special().unk), (Some(0), Some(1), Some(2)));
    assert_eq!(uni.end_of_text(), Some(1));
}

#[test]
fn the_learnt_text_is_spelled_briefly_and_comes_back() {
    let documents = text();
    let bytes: usize = documents.iter().map(String::len).sum();
    for kind in KINDS {
        let tokenizer = train(kind, 1000);
        let encoded = tokenizer.encode_batch(&documents, false).unwrap();
        let tokens: usize = encoded.iter().map(Vec::len).sum();
        assert!(tokens * 2 < bytes, "{kind}: {tokens} tokens for {bytes} bytes");
        for (ids, document) in encoded.iter().zip(&documents) {
            let back = tokenizer.decode(ids, false).unwrap();
            match kind {
                TrainKind::Bpe => assert!(&back == document),
                TrainKind::Unigram => {
                    // NFKC turns the full-width marks into half-width ones; the mark for a space is not spelled itself.
                    let plain = |s: &str| s.replace('，', ",").trim_end().to_owned();
                    assert!(document.contains('▁') || plain(&back) == plain(document), "{document:.40}");
                }
                // Only some words are known.
                TrainKind::Words => {}
                TrainKind::WordPiece => {
                    let unk = tokenizer.special().unk.unwrap();
                    assert!(document.contains("[UNK]") || !ids.contains(&unk), "{document:.40}");
                    let letters = |s: &str| s.chars().filter(|c| c.is_alphanumeric()).count();
                    let close = letters(&back).abs_diff(letters(document)) * 100 <= letters(document);
                    assert!(close, "{} {}", letters(&back), letters(document));
                }
            }
        }
    }
}

#[test]
fn case_is_kept_where_asked() {
    let options = TrainOptions { lowercase: false, ..TrainOptions::new(TrainKind::WordPiece, 600) };
    let cased = Tokenizer::train(&options, text().into_iter().map(Ok), |_| {}).unwrap();
    let folded = train(TrainKind::WordPiece, 600);
    let same = |t: &Tokenizer| t.encode("Tokenizer", false).unwrap() == t.encode("tokenizer", false).unwrap();
    assert!(!same(&cased) && same(&folded));
}

#[test]
fn progress_counts_documents_and_bytes() {
    let mut seen = Vec::new();
    let options = TrainOptions::new(TrainKind::Bpe, 300);
    Tokenizer::train(&options, text().into_iter().map(Ok), |p| seen.push(p)).unwrap();
    let bytes = text().iter().map(|d| d.len() as u64).sum();
    let documents = text().len() as u64;
    assert_eq!(seen.last(), Some(&TrainProgress::Learning));
    assert_eq!(seen[seen.len() - 2], TrainProgress::Reading { documents, bytes });
}

#[test]
fn odd_text_is_no_trouble() {
    for kind in KINDS {
        for text in
            ["a", "字", "\u{1F600}", "aaaa aaaa", &"x".repeat(100_000), &"床前明月光".repeat(20_000), "e\u{301}\n\n\t"]
        {
            let options = TrainOptions::new(kind, 300);
            let tokenizer = Tokenizer::train(&options, [Ok(text.to_owned())].into_iter(), |_| {}).unwrap();
            let ids = tokenizer.encode(text, true).unwrap();
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        }
    }
}
