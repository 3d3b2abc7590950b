//! Examples: windows, pairs and masks, and that they are pure functions of (seed, position).

use genus_text::rng::{Key, Permutation};
use genus_text::*;
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::Arc;

/// Documents whose words tell the document: document `d` consists of words `w<d>`.
fn documents(count: usize, sentences: usize) -> Vec<String> {
    let sentence = |d: usize, s: usize| vec![format!("w{d}"); 3 + (d * 7 + s * 5) % 11].join(" ") + ".";
    (0..count).map(|d| (0..sentences).map(|s| sentence(d, s)).collect::<Vec<_>>().join("\n")).collect()
}

fn stream(documents: Vec<String>, tokenizer: &Tokenizer) -> Arc<TokenStream> {
    let corpus = Corpus::from_documents("memory", documents);
    Arc::new(TokenStream::build(&corpus, tokenizer, |_| {}).unwrap())
}

/// A WordPiece tokenizer in which every `w<d>` is one token.
fn word_tokenizer(documents: usize) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    let mut vocab = String::from("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n.\n");
    (0..documents).for_each(|d| vocab += &format!("w{d}\n"));
    vocab += "##ing\n##ly\nword\n";
    std::fs::write(dir.path().join("vocab.txt"), vocab).unwrap();
    Tokenizer::open(dir.path()).unwrap()
}

#[test]
fn the_stream_is_the_documents_one_after_another() {
    let tokenizer = Tokenizer::bytes();
    let texts = vec!["abc".to_owned(), "é".into(), "xyz\n".into()];
    let mut last = BuildProgress::default();
    let corpus = Corpus::from_documents("memory", texts.clone());
    let stream = TokenStream::build(&corpus, &tokenizer, |p| last = p).unwrap();
    assert_eq!(stream.document_ends(), [4, 7, 12]);
    assert_eq!(stream.len(), 12);
    assert_eq!(last, BuildProgress { documents: 3, bytes: 9, tokens: 12 });
    assert_eq!((stream.stats().bytes, stream.bytes_per_token()), (9, 0.75));
    assert!(matches!(stream.tokens(), Tokens::U16(_)));
    let ids = stream.tokens().get(0..12);
    assert_eq!(ids[3], 256);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), texts.concat());
}

#[test]
fn windows_cover_the_stream_once_an_epoch() {
    let stream = stream(documents(7, 4), &Tokenizer::bytes());
    let context = 13;
    for shuffle in [false, true] {
        let options = WindowOptions { context, shuffle, ..Default::default() };
        let windows = CausalWindows::new(stream.clone(), options).unwrap();
        assert_eq!(windows.len(), (stream.len() - 1) / context);
        let all = stream.tokens().get(0..stream.len());
        let mut shifts = HashSet::new();
        for epoch in 0..5 {
            let samples: Vec<Sample> = (0..windows.len()).map(|i| windows.sample(epoch, i)).collect();
            // Some shift makes the windows, in some order, the stream's.
            let grid = |shift: usize| -> HashSet<Vec<u32>> {
                all[shift..].chunks_exact(context).take(windows.len()).map(<[u32]>::to_vec).collect()
            };
            let found: HashSet<Vec<u32>> = samples.iter().map(|s| s.ids.clone()).collect();
            let shift = (0..context).find(|&s| grid(s) == found).expect("a grid of windows");
            shifts.insert(shift);
            for s in &samples {
                assert_eq!((s.spans.as_slice(), s.labels.len()), ([context].as_slice(), context));
                assert!(s.ids[1..].iter().zip(&s.labels).all(|(&id, &l)| id as i32 == l));
                assert!(s.labels[context - 1] >= 0);
            }
            if !shuffle {
                assert_eq!(
                    samples.iter().flat_map(|s| s.ids.clone()).collect::<Vec<_>>(),
                    all[..windows.len() * context]
                );
            }
        }
        assert_eq!(shifts.len() > 1, shuffle);
    }
}

#[test]
fn separate_documents_are_spans() {
    let stream = stream(vec!["abc".into(), "defgh".into(), "i".into(), "jklmnop".into()], &Tokenizer::bytes());
    let options = WindowOptions { context: 4, separate_documents: true, shuffle: false, seed: 0 };
    let windows = CausalWindows::new(stream, options).unwrap();
    let rows: Vec<_> = (0..windows.len()).map(|i| windows.sample(0, i)).map(|s| (s.spans, s.labels)).collect();
    let b = |c: char| c as i32;
    // abc| defgh| i| jklmnop|   where | is 256
    assert_eq!(rows[0], (vec![4], vec![b('b'), b('c'), 256, -100]));
    assert_eq!(rows[1], (vec![4], vec![b('e'), b('f'), b('g'), b('h')]));
    assert_eq!(rows[2], (vec![2, 2], vec![256, -100, 256, -100]));
    assert_eq!(rows[3], (vec![4], vec![b('k'), b('l'), b('m'), b('n')]));
    let whole = windows.batch(0, 4);
    assert_eq!((whole.ids.len(), whole.spans, whole.examples), (16, vec![4, 4, 2, 2, 4], 4));
}

fn pair_examples(options: PairOptions) -> PairExamples {
    let tokenizer = word_tokenizer(40);
    let corpus = Corpus::from_documents("memory", documents(40, 25));
    let sentences = SentenceStream::build(&corpus, &tokenizer, SentenceSplit::Lines, |_| {}).unwrap();
    assert_eq!((sentences.documents(), sentences.sentences()), (40, 1000));
    PairExamples::new(Arc::new(sentences), &tokenizer, options).unwrap()
}

/// The original ids of an example: what masking hid is in the labels.
fn unmasked(s: &Sample) -> Vec<u32> {
    s.ids.iter().zip(&s.labels).map(|(&id, &l)| if l >= 0 { l as u32 } else { id }).collect()
}

#[test]
fn pairs() {
    let options = PairOptions { max_length: 64, ..Default::default() };
    let examples = pair_examples(options);
    let (mut count, mut random, mut short, mut first_parts) = (0, 0, 0, HashSet::new());
    for epoch in 0..10 {
        for i in 0..examples.epoch_len(epoch) {
            let s = examples.sample(epoch, i);
            let ids = unmasked(&s);
            let first_sep = ids.iter().position(|&id| id == 3).unwrap();
            assert_eq!((ids[0], ids[ids.len() - 1], s.spans.as_slice()), (2, 3, [ids.len()].as_slice()));
            assert!(ids.len() <= 64 && ids.iter().filter(|&&id| id == 3).count() == 2);
            assert!(s.token_types.iter().enumerate().all(|(i, &t)| t == u32::from(i > first_sep)));
            // Words tell the document.
            let of = |part: &[u32]| part.iter().filter(|&&id| id > 5).copied().collect::<HashSet<u32>>();
            let (a, b) = (&ids[1..first_sep], &ids[first_sep + 1..ids.len() - 1]);
            assert!(!a.is_empty() && !b.is_empty());
            assert!(of(a).len() <= 1 && of(b).len() <= 1);
            if !of(a).is_empty() && !of(b).is_empty() {
                assert_eq!(
                    of(a) == of(b),
                    s.next_sentence == Some(0),
                    "a random second segment is never of the same document"
                );
            }
            count += 1;
            random += s.next_sentence.unwrap();
            short += u32::from(ids.len() < 40);
            first_parts.insert(a.len());
        }
    }
    let share = random as f64 / count as f64;
    assert!((share - 0.5).abs() < 0.04, "{share} of {count}");
    assert!(short > 0 && (short as f64) < 0.5 * count as f64, "{short} of {count}");
    assert!(first_parts.len() > 20);
}

#[test]
fn true_continuations_follow() {
    let examples = pair_examples(PairOptions { max_length: 512, short_probability: 0.0, ..Default::default() });
    let tokenizer = word_tokenizer(40);
    let all: Vec<Vec<u32>> = documents(40, 25).iter().map(|d| tokenizer.encode(d, false).unwrap()).collect();
    for i in 0..examples.epoch_len(0) {
        let s = examples.sample(0, i);
        let ids: Vec<u32> = unmasked(&s).into_iter().filter(|&id| id != 2 && id != 3).collect();
        let found = all.iter().any(|d| d.windows(ids.len()).any(|w| w == ids));
        assert_eq!(found, s.next_sentence == Some(0));
    }
}

#[test]
fn single_sentence_documents_still_give_both_kinds() {
    let tokenizer = word_tokenizer(40);
    let corpus = Corpus::from_documents("memory", documents(40, 1));
    let sentences = Arc::new(SentenceStream::build(&corpus, &tokenizer, SentenceSplit::Unicode, |_| {}).unwrap());
    let examples =
        PairExamples::new(sentences, &tokenizer, PairOptions { max_length: 32, ..Default::default() }).unwrap();
    let labels: Vec<u32> = (0..400).filter_map(|p| examples.batch(p, 1).next_sentence.first().copied()).collect();
    let random = labels.iter().sum::<u32>();
    assert!((140..=260).contains(&random), "{random} of 400");
}

#[test]
fn full_sentences() {
    let options = PairOptions { max_length: 48, segments: Segments::Full, shuffle: false, ..Default::default() };
    let examples = pair_examples(options);
    let tokenizer = word_tokenizer(40);
    let all: Vec<u32> = documents(40, 25).iter().flat_map(|d| tokenizer.encode(d, false).unwrap()).collect();
    let mut seen = Vec::new();
    for i in 0..examples.epoch_len(0) {
        let s = examples.sample(0, i);
        let ids = unmasked(&s);
        assert!(ids.len() <= 48 && ids[0] == 2 && ids[ids.len() - 1] == 3);
        assert_eq!((s.next_sentence, s.spans.len(), s.token_types.iter().sum::<u32>()), (None, 1, 0));
        // Documents change exactly at separators.
        for part in ids[1..].split(|&id| id == 3).filter(|p| !p.is_empty()) {
            assert!(part.iter().filter(|&&id| id > 5).collect::<HashSet<_>>().len() <= 1);
        }
        seen.extend(ids.into_iter().filter(|&id| id != 2 && id != 3));
    }
    assert_eq!(seen, all);
}

#[test]
fn pairs_need_two_documents_and_a_mask() {
    let tokenizer = word_tokenizer(3);
    let corpus = Corpus::from_documents("memory", documents(1, 5));
    let one = Arc::new(SentenceStream::build(&corpus, &tokenizer, SentenceSplit::Lines, |_| {}).unwrap());
    let error = PairExamples::new(one.clone(), &tokenizer, PairOptions::default()).unwrap_err();
    assert!(matches!(error, TextError::TooShort { found: 1, needed: 2, .. }), "{error}");
    let full = PairOptions { segments: Segments::Full, ..Default::default() };
    let examples = PairExamples::new(one.clone(), &tokenizer, full).unwrap();
    assert!(matches!(examples.require(1000), Err(TextError::TooShort { needed: 1000, .. })));
    let error = PairExamples::new(one, &Tokenizer::bytes(), full).unwrap_err();
    assert!(matches!(error, TextError::Argument { name: "tokenizer", .. }), "{error}");
}

#[test]
fn batches_are_pure_functions_of_seed_and_position() {
    let tokenizer = word_tokenizer(40);
    let make = |seed| -> Vec<Box<dyn Examples>> {
        let sentences = SentenceStream::build(
            &Corpus::from_documents("memory", documents(40, 25)),
            &tokenizer,
            SentenceSplit::Lines,
            |_| {},
        );
        let sentences = Arc::new(sentences.unwrap());
        let pairs = PairOptions { max_length: 64, layouts: 3, seed, ..Default::default() };
        let full = PairOptions { segments: Segments::Full, ..pairs };
        let windows = WindowOptions { context: 50, seed, ..Default::default() };
        vec![
            Box::new(CausalWindows::new(stream(documents(40, 25), &tokenizer), windows).unwrap()),
            Box::new(PairExamples::new(sentences.clone(), &tokenizer, pairs).unwrap()),
            Box::new(PairExamples::new(sentences, &tokenizer, full).unwrap()),
        ]
    };
    for ((a, b), other) in make(1).into_iter().zip(make(1)).zip(make(2)) {
        let total: u64 = (0..7).map(|e| a.epoch_len(e) as u64).sum();
        let mut position = 0;
        for epoch in 0..7 {
            for index in 0..a.epoch_len(epoch) {
                assert_eq!(a.locate(position), (epoch, index));
                position += 1;
            }
        }
        for at in [0, 5, total / 3, total / 2 + 1, total - 4] {
            let batch = a.batch(at, 9);
            assert_eq!(batch, b.batch(at, 9));
            assert_ne!(batch, other.batch(at, 9));
            let singles: Batch = (0..9).map(|i| a.locate(at + i)).map(|(e, i)| b.sample(e, i)).collect();
            assert_eq!(batch, singles);
            assert_eq!(batch.spans.iter().sum::<usize>(), batch.ids.len());
        }
    }
}

#[test]
fn masking_rates() {
    let tokenizer = word_tokenizer(500);
    let config = MaskingConfig::default();
    let (mut chosen, mut masked, mut kept, mut total) = (0, 0, 0, 0);
    for n in 0..400u64 {
        let length = 2 + (n as usize * 7) % 200;
        let mut ids: Vec<u32> = (0..length).map(|i| 6 + ((n as usize * 31 + i * 17) % 500) as u32).collect();
        ids[0] = 2;
        ids[length - 1] = 3;
        let before = ids.clone();
        let labels = mask_tokens(&mut ids, &tokenizer, Key::new(n), &config);
        let here = labels.iter().filter(|&&l| l >= 0).count();
        let wanted = ((length as f64 * 0.15).round() as usize).max(1).min(length - 2);
        assert_eq!(here, wanted, "of {length}");
        for i in 0..length {
            match labels[i] {
                -100 => assert_eq!(ids[i], before[i]),
                l => {
                    assert!(l as u32 == before[i] && before[i] > 5);
                    masked += usize::from(ids[i] == 4);
                    kept += usize::from(ids[i] == before[i]);
                }
            }
        }
        chosen += here;
        total += length;
        let again = mask_tokens(&mut before.clone(), &tokenizer, Key::new(n), &config);
        assert_eq!(again, labels);
    }
    let share = |n: usize, of: usize| n as f64 / of as f64;
    assert!((share(chosen, total) - 0.15).abs() < 0.01);
    assert!((share(masked, chosen) - 0.8).abs() < 0.03, "{}", share(masked, chosen));
    assert!((share(kept, chosen) - 0.1).abs() < 0.03, "{}", share(kept, chosen));
    let few = MaskingConfig { max_predictions: 3, ..config };
    let labels = mask_tokens(&mut vec![7; 200], &tokenizer, Key::new(0), &few);
    assert_eq!(labels.iter().filter(|&&l| l >= 0).count(), 3);
}

#[test]
fn whole_words_are_masked_whole() {
    let tokenizer = word_tokenizer(3);
    let (word, ing, ly) =
        (tokenizer.id("word").unwrap(), tokenizer.id("##ing").unwrap(), tokenizer.id("##ly").unwrap());
    let config = MaskingConfig { whole_word: true, probability: 0.4, ..Default::default() };
    let mut partial = 0;
    for n in 0..200 {
        let mut ids = vec![2];
        (0..6).for_each(|_| ids.extend([word, ing, ly]));
        ids.push(3);
        let labels = mask_tokens(&mut ids, &tokenizer, Key::new(n), &config);
        // 0.4 of 20 places is 8: two words of three tokens fit, a third does not.
        assert_eq!(labels.iter().filter(|&&l| l >= 0).count(), 6);
        for w in labels[1..19].chunks(3) {
            partial += usize::from(w.iter().any(|&l| l >= 0) && w.contains(&-100));
        }
    }
    assert_eq!(partial, 0);
    // A single word longer than what may be predicted is cut rather than left without a prediction.
    let mut ids = vec![2, word, ing, ly, 3];
    let labels = mask_tokens(&mut ids, &tokenizer, Key::new(0), &MaskingConfig { probability: 0.15, ..config });
    assert_eq!(labels, [-100, word as i32, -100, -100, -100]);
}

proptest! {
    #[test]
    fn permutations(n in 1usize..3000, seed in any::<u64>()) {
        let p = Permutation::new(n, Key::new(seed));
        let mut seen = vec![false; n];
        for i in 0..n {
            let j = p.get(i);
            prop_assert!(!seen[j]);
            seen[j] = true;
        }
    }

    #[test]
    fn windows_of_any_shape(
        lengths in prop::collection::vec(1usize..40, 1..12),
        context in 1usize..20,
        separate_documents in any::<bool>(),
        seed in any::<u64>(),
        epoch in 0u64..4,
    ) {
        let texts: Vec<String> = lengths.iter().map(|&n| "abcdefghij".repeat(4)[..n].to_owned()).collect();
        let stream = stream(texts, &Tokenizer::bytes());
        let options = WindowOptions { context, separate_documents, shuffle: true, seed };
        match CausalWindows::new(stream.clone(), options) {
            Err(_) => prop_assert!(stream.len() < context + 1),
            Ok(windows) => for i in 0..windows.len() {
                let s = windows.sample(epoch, i);
                prop_assert_eq!(s.spans.iter().sum::<usize>(), context);
                prop_assert!(s.spans.iter().all(|&n| n > 0));
                for at in 0..context {
                    let last_of_document = s.ids[at] == 256;
                    prop_assert_eq!(s.labels[at] < 0, separate_documents && last_of_document);
                }
                if separate_documents {
                    let ends = s.ids[..context - 1].iter().filter(|&&id| id == 256).count();
                    prop_assert_eq!(s.spans.len(), ends + 1);
                }
            }
        }
    }
}

#[test]
fn a_permutation_moves_things() {
    let p = Permutation::new(1000, Key::new(3));
    let fixed = (0..1000).filter(|&i| p.get(i) == i).count();
    assert!(fixed < 10, "{fixed}");
    let (other, again) = (Permutation::new(1000, Key::new(4)), Permutation::new(1000, Key::new(3)));
    assert!((0..1000).filter(|&i| p.get(i) == other.get(i)).count() < 20);
    assert!((0..1000).all(|i| p.get(i) == again.get(i)));
}
