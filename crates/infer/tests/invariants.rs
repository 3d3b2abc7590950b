//! What holds for every registered model, bit for bit: a sequence alone is the same sequence in any batch, cached is uncached,
//! the future is not seen, the number of threads changes nothing, and neither does saving and loading.

use genus_infer::{
    Engine, GenerateOptions, Request, Sampling, StreamOptions, score_continuations, score_stream, score_tokens,
};
use genus_models::{Dimensions, Encoded, Family, Input, LoadOptions, Model, SequenceCache, Task, families};
use genus_nn::{Attend, Bands, CellOutput, Directions, Encoder, Memory, Mixing, Vocabulary};
use genus_ops::{IGNORE, Level, Precision, Tape, Value, columns, pool, to_vec, weighted_sum, with_level};

/// A small model with odd sizes of every member and task: heads 12 wide, 101 tokens.
fn models() -> Vec<Model> {
    families().iter().flat_map(|f| f.tasks.iter().map(|t| small(f, t.0, 11))).collect()
}

fn small(family: &'static Family, task: Task, seed: u64) -> Model {
    let spec = (family.presets[0].spec)();
    let [n_layers, d_model, n_heads, d_ff, vocab_size, n_ctx] = [2, 36, 3, 50, 101, 70].map(Some);
    let memory = (spec.memory != Memory::None).then_some(7);
    let d_ff = match spec.mixing {
        Mixing::Recurrent { output: CellOutput::Cells, .. } => d_model,
        _ => d_ff,
    };
    let mut spec = Dimensions { n_layers, d_model, n_heads, d_ff, vocab_size, n_ctx, memory }.apply(spec).unwrap();
    if let Memory::Carried { length } = spec.memory {
        // Every token sees as many, wherever segments end; and groups of tokens.
        spec.bands = Bands::Local { window: length, pattern: vec![true] };
        spec.vocabulary =
            Vocabulary::Adaptive { cutoffs: vec![20, 60], divisor: 2, d_embedding: 36, shared_maps: true };
    } else if let Bands::Local { window, .. } = &mut spec.bands {
        *window = 5;
    }
    if let Vocabulary::Characters(c) = &mut spec.vocabulary {
        (c.filters, c.length) = (vec![(1, 5), (3, 20), (4, 9)], 12);
    }
    if let Encoder::Layers { n_layers, n_heads, d_ff } = &mut spec.encoder {
        (*n_layers, *n_heads, *d_ff) = (1, 2, 30);
    }
    let mut model = Model::random(family, spec, task, seed).unwrap();
    if model.has_encoder() {
        model.set_config_field("decoder_start_token_id", 3.into());
    }
    // Weights far from their beginnings, so that attention and predictions are far from uniform; no bias is zero.
    if let Vocabulary::Characters(c) = &model.spec().vocabulary {
        let of = |i: usize| (genus_ops::rng::mix64(i as u64) % 261) as u32;
        model.set_spellings(&(0..101 * c.length).map(of).collect::<Vec<_>>()).unwrap();
    }
    for (i, p) in model.params().iter().enumerate().filter(|p| !model.is_buffer(p.1)) {
        let t = p.tensor();
        let noise: Vec<f32> = (0..t.elem_count() as u64)
            .map(|j| (genus_ops::rng::mix64((i as u64) << 32 | j) >> 40) as f32 / (1 << 24) as f32 - 0.5)
            .collect();
        let noise = candle_core::Tensor::from_vec(noise, t.dims(), t.device()).unwrap();
        p.set(t.affine(4.0, 0.0).unwrap().add(&noise.affine(0.3, 0.0).unwrap()).unwrap()).unwrap();
    }
    model
}

/// Sequences of unequal lengths; some longer than any tile.
fn sequences() -> Vec<Vec<u32>> {
    let id = |s: usize, i: usize| (genus_ops::rng::mix64((s * 1000 + i) as u64) % 101) as u32;
    [13, 1, 70, 9, 2, 33].iter().enumerate().map(|(s, &n)| (0..n).map(|i| id(s, i)).collect()).collect()
}

/// What a model with an encoder reads before it writes a sequence: one of another length that follows from its first token.
fn encoded(model: &Model, tape: &Tape, sequences: &[Vec<u32>]) -> Encoded {
    let source = |s: &Vec<u32>| (0..1 + s.len() as u32 * 2 / 3).map(|j| (s[0] * 7 + j * 13) % 101).collect();
    let input = Input::from_sequences(&sequences.iter().map(source).collect::<Vec<Vec<u32>>>());
    Encoded { states: model.encode(tape, &input, false).unwrap().last, spans: input.spans }
}

/// The hidden states of whole sequences.
fn hidden(model: &Model, tape: &Tape, sequences: &[Vec<u32>]) -> Value {
    let input = Input::from_sequences(sequences);
    match model.has_encoder() {
        true => model.decode(tape, &input, &encoded(model, tape, sequences), false).unwrap().last,
        false => model.hidden(tape, &input, None, false).unwrap().last,
    }
}

/// A new cache for each sequence.
fn caches(model: &Model, tape: &Tape, sequences: &[Vec<u32>]) -> Vec<SequenceCache> {
    let mut new: Vec<SequenceCache> = sequences.iter().map(|_| SequenceCache::new()).collect();
    if model.has_encoder() {
        model.keep_encoded(tape, &encoded(model, tape, sequences), &mut new).unwrap();
    }
    new
}

/// The hidden states and, where the model has the head, the logits of each sequence.
fn outputs(model: &Model, sequences: &[Vec<u32>], precision: Precision) -> Vec<Vec<f32>> {
    let tape = Tape::inference().with_precision(precision);
    let input = Input::from_sequences(sequences);
    let hidden = hidden(model, &tape, sequences);
    let mut parts = vec![to_vec(hidden.tensor()).unwrap()];
    if let Ok(head) = model.lm_head() {
        let d = model.spec().d_model;
        // One direction's half after the other.
        for from in (0..model.spec().d_hidden()).step_by(d) {
            let half = columns(&tape, &hidden, from, d).unwrap();
            parts.push(to_vec(head.logits(&tape, &half).unwrap().tensor()).unwrap());
        }
    }
    let n = input.ids.len();
    input
        .spans
        .iter()
        .map(|r| parts.iter().flat_map(|p| p[r.start * p.len() / n..r.end * p.len() / n].to_vec()).collect())
        .collect()
}

fn name(model: &Model) -> String {
    format!("{} {}", model.family().name, model.task())
}

#[track_caller]
fn same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    if let Some(i) = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits()) {
        panic!("{what}: element {i} is {} and {}", a[i], b[i]);
    }
    assert!(a.iter().all(|x| x.is_finite()), "{what}");
}

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Runs a check at every instruction set that the machine has, in both precisions.
fn at_every_level(check: impl Fn(Precision)) {
    for level in Level::available() {
        PRECISIONS.into_iter().for_each(|p| with_level(level, || check(p)));
    }
}

#[test]
fn alone_is_in_any_batch() {
    at_every_level(alone);
}

fn alone(precision: Precision) {
    let all = sequences();
    for model in models() {
        let together = outputs(&model, &all, precision);
        for (i, s) in all.iter().enumerate() {
            same_bits(
                &outputs(&model, std::slice::from_ref(s), precision)[0],
                &together[i],
                &format!("{} alone {i}", name(&model)),
            );
        }
        let mut turned = all.clone();
        turned.reverse();
        let turned = outputs(&model, &turned, precision);
        for i in 0..all.len() {
            same_bits(&turned[all.len() - 1 - i], &together[i], &format!("{} reversed {i}", name(&model)));
        }
    }
}

/// The class of a sequence alone is its class in any batch.
#[test]
fn classes_alone_are_those_of_any_batch() {
    let all = sequences();
    let classifiers = models().into_iter().filter(|m| m.task() == Task::SequenceClassification);
    let logits = |model: &Model, sequences: &[Vec<u32>], precision| {
        let (tape, input) = (Tape::inference().with_precision(precision), Input::from_sequences(sequences));
        let hidden = model.hidden(&tape, &input, None, false).unwrap().last;
        let summary = model.summary(&tape, &hidden, &input).unwrap();
        to_vec(model.classifier().unwrap().logits(&tape, &summary).unwrap().tensor()).unwrap()
    };
    let mut count = 0;
    for model in classifiers {
        at_every_level(|precision| {
            let together = logits(&model, &all, precision);
            for (i, s) in all.iter().enumerate() {
                let alone = logits(&model, std::slice::from_ref(s), precision);
                same_bits(&alone, &together[2 * i..2 * i + 2], &format!("{} {i}", name(&model)));
            }
        });
        count += 1;
    }
    let classifies = |f: &&&Family| f.class(Task::SequenceClassification).is_some();
    assert_eq!(count, families().iter().filter(classifies).count());
}

/// As [`same_bits`]; of a model that forgets, where a tile of keys begins depends on what was forgotten, and so do the last bits
/// (which the rounding of products to bf16 makes more of).
#[track_caller]
fn same_memory(model: &Model, precision: Precision, a: &[f32], b: &[f32], what: &str) {
    if model.spec().memory == Memory::None {
        return same_bits(a, b, what);
    }
    let scale = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    let allowed = if precision == Precision::F32 { 1e-4 } else { 0.1 } * scale;
    let off = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    assert!(a.len() == b.len() && off <= allowed, "{what}: off by {off} of {scale}");
}

#[test]
fn cached_is_uncached() {
    at_every_level(cached);
}

fn cached(precision: Precision) {
    let all = sequences();
    for model in models().iter().filter(|m| m.spec().sees_past_only()) {
        let whole = outputs(model, &all, precision);
        let (d, v) = (model.spec().d_model, if model.lm_head().is_ok() { 101 } else { 0 });
        // Read in unequal pieces, the sequences out of step with each other.
        let mut caches = caches(model, &Tape::inference().with_precision(precision), &all);
        let mut step = 0;
        while caches.iter().zip(&all).any(|(c, s)| c.len() < s.len()) {
            let mut rest: Vec<usize> = (0..all.len()).filter(|&i| caches[i].len() < all[i].len()).collect();
            if step % 3 == 2 && rest.len() > 1 {
                rest.remove(step % rest.len());
            }
            let from: Vec<usize> = rest.iter().map(|&i| caches[i].len()).collect();
            let piece = |k: usize, i: usize| {
                let n = if (step + i).is_multiple_of(2) { 1 } else { 1 + (step * 5 + i) % 7 };
                &all[i][from[k]..(from[k] + n).min(all[i].len())]
            };
            let pieces: Vec<&[u32]> = rest.iter().enumerate().map(|(k, &i)| piece(k, i)).collect();
            let input = Input::from_sequences(&pieces);
            let mut used: Vec<SequenceCache> = rest.iter().map(|&i| std::mem::take(&mut caches[i])).collect();
            let tape = Tape::inference().with_precision(precision);
            let hidden = model.hidden(&tape, &input, Some(&mut used), false).unwrap().last;
            let logits = model.lm_head().ok().map(|h| to_vec(h.logits(&tape, &hidden).unwrap().tensor()).unwrap());
            let hidden = to_vec(hidden.tensor()).unwrap();
            for (k, (r, &i)) in input.spans.iter().zip(&rest).enumerate() {
                let what = format!("{} sequence {i} at {}", name(model), from[k]);
                let want = &whole[i][from[k] * d..(from[k] + r.len()) * d];
                same_memory(model, precision, &hidden[r.start * d..r.end * d], want, &what);
                if let Some(logits) = &logits {
                    let at = all[i].len() * d + from[k] * v;
                    same_memory(
                        model,
                        precision,
                        &logits[r.start * v..r.end * v],
                        &whole[i][at..at + r.len() * v],
                        &what,
                    );
                }
            }
            for (&i, cache) in rest.iter().zip(used) {
                caches[i] = cache;
            }
            step += 1;
        }
    }
}

#[test]
fn the_future_is_not_seen() {
    let all = sequences();
    for model in models() {
        let mut changed = all.clone();
        for s in &mut changed {
            let n = s.len();
            s[n - 1] = (s[n - 1] + 50) % 101;
        }
        let (a, b) = (outputs(&model, &all, Precision::F32), outputs(&model, &changed, Precision::F32));
        let (d, half) = (model.spec().d_hidden(), model.spec().d_model);
        for (i, s) in all.iter().enumerate() {
            let before = (s.len() - 1) * d;
            let what = format!("{} sequence {i}", name(&model));
            match (model.spec().attend, model.spec().directions) {
                (Attend::Past, Directions::One) => same_bits(&a[i][..before], &b[i][..before], &what),
                (Attend::Past, Directions::Both) => {
                    for (a, b) in a[i][..before].chunks(d).zip(b[i][..before].chunks(d)) {
                        same_bits(&a[..half], &b[..half], &what);
                        assert_ne!(a[half..], b[half..], "{what}: the second direction comes from the end");
                    }
                }
                (Attend::All, _) => assert!(s.len() == 1 || a[i][..d] != b[i][..d], "{what}: an encoder sees all"),
            }
            assert_ne!(a[i][before..before + d], b[i][before..before + d], "{what}");
        }
    }
}

/// The loss and all gradients of a task on labels that are the ids themselves.
fn gradients(model: &Model, sequences: &[Vec<u32>], precision: Precision) -> Vec<(String, Vec<f32>)> {
    let tape = Tape::recording().with_precision(precision);
    let input = Input::from_sequences(sequences);
    let hidden = hidden(model, &tape, sequences);
    let targets: Vec<i32> =
        input.ids.iter().enumerate().map(|(i, &id)| if i % 3 == 1 { IGNORE } else { id as i32 }).collect();
    let d = model.spec().d_model;
    let of = |from: usize| {
        let half = columns(&tape, &hidden, from, d).unwrap();
        model.lm_head().unwrap().loss(&tape, &half, &targets, 0.01, 0.0).unwrap()
    };
    let losses: Vec<Value> = (0..model.spec().d_hidden()).step_by(d).map(of).collect();
    let loss = weighted_sum(&tape, &losses.iter().map(|l| (l, 1.0)).collect::<Vec<_>>()).unwrap();
    let mut all = vec![("loss".to_owned(), to_vec(loss.tensor()).unwrap())];
    model.params().iter().for_each(|p| p.clear_grad());
    tape.backward(&loss).unwrap();
    all.extend(model.params().iter().filter_map(|p| Some((p.name().to_owned(), to_vec(&p.grad()?).unwrap()))));
    all
}

#[test]
fn threads_change_no_bit() {
    at_every_level(threads);
}

fn threads(precision: Precision) {
    let all = sequences();
    for model in models() {
        let many = outputs(&model, &all, precision);
        for n in [1, 2, 3] {
            let few = pool::with_threads(n, || outputs(&model, &all, precision));
            for (i, (a, b)) in many.iter().zip(&few).enumerate() {
                same_bits(a, b, &format!("{} {n} threads {i}", name(&model)));
            }
        }
        if model.lm_head().is_ok() {
            let many = gradients(&model, &all, precision);
            let one = pool::with_threads(1, || gradients(&model, &all, precision));
            assert_eq!(many.len(), one.len());
            for (a, b) in many.iter().zip(&one) {
                same_bits(&a.1, &b.1, &format!("{} gradient of {}", name(&model), a.0));
            }
        }
    }
}

#[test]
fn saving_and_loading_changes_no_bit() {
    let all = sequences();
    for model in models() {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), &Default::default()).unwrap();
        let loaded = Model::load(folder.path(), &LoadOptions::default()).unwrap().model;
        assert_eq!((loaded.task(), loaded.spec().n_layers, loaded.count()), (model.task(), 2, model.count()));
        for (a, b) in model.params().iter().zip(loaded.params()) {
            assert_eq!(a.name(), b.name());
            same_bits(&to_vec(&a.tensor()).unwrap(), &to_vec(&b.tensor()).unwrap(), a.name());
        }
        for (a, b) in outputs(&model, &all, Precision::F32).iter().zip(&outputs(&loaded, &all, Precision::F32)) {
            same_bits(a, b, &name(&model));
        }
    }
}

#[test]
fn generation_does_not_depend_on_company() {
    PRECISIONS.into_iter().for_each(company);
}

fn company(precision: Precision) {
    for model in models().iter().filter(|m| matches!(m.task(), Task::CausalLm | Task::Seq2SeqLm)) {
        let engine = Engine::new(model, None).unwrap().with_precision(precision);
        let requests: Vec<Request> = sequences()
            .into_iter()
            .enumerate()
            .map(|(i, prompt)| {
                let sampling = match i % 3 {
                    0 => Sampling::Greedy,
                    1 => Sampling::Random { temperature: 1.3, top_k: 0, top_p: 1.0, min_p: 0.0 },
                    _ => Sampling::Random { temperature: 0.8, top_k: 20, top_p: 0.9, min_p: 0.01 },
                };
                let options = GenerateOptions {
                    sampling,
                    max_new_tokens: 5 + 7 * i,
                    repetition_penalty: if i == 4 { 1.3 } else { 1.0 },
                    seed: 40 + i as u64 / 2,
                    ..Default::default()
                };
                Request { prompt, options }
            })
            .collect();
        let together = engine.generate(&requests, |_, _| {}).unwrap();
        for (r, t) in requests.iter().zip(&together) {
            assert_eq!(&engine.generate(std::slice::from_ref(r), |_, _| {}).unwrap()[0], t);
        }
        let pieces = engine.clone().with_step_tokens(4).generate(&requests, |_, _| {}).unwrap();
        assert_eq!(pieces, together);
        // One after the other joins the running batch.
        let mut batch = engine.batch();
        let mut done = vec![None; requests.len()];
        let mut waiting = requests.iter();
        while let (next, false) | (next @ Some(_), true) = (waiting.next(), batch.is_empty()) {
            if let Some(r) = next {
                batch.add(r).unwrap();
            }
            for (i, event) in batch.step().unwrap() {
                done[i] = event.unwrap().done;
            }
        }
        assert_eq!(done.into_iter().flatten().collect::<Vec<_>>(), together);
        // Another seed gives another text, where there is a choice.
        let mut other = requests[5].clone();
        other.options.sampling = Sampling::Random { temperature: 30.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        let ids = |r: &Request| engine.generate(std::slice::from_ref(r), |_, _| {}).unwrap().remove(0).ids;
        let first = ids(&other);
        assert_eq!(ids(&other), first);
        other.options.seed += 1;
        assert_ne!(ids(&other), first);
    }
}

#[test]
fn scores_are_the_sums_of_log_probabilities() {
    PRECISIONS.into_iter().for_each(scores);
}

fn scores(precision: Precision) {
    for model in models().iter().filter(|m| m.task() == Task::CausalLm) {
        let all = sequences();
        let text = &all[5];
        // By hand, from the logits of the whole.
        let (d, v) = (model.spec().d_model, 101);
        let flat = &outputs(model, std::slice::from_ref(text), precision)[0][text.len() * d..];
        let log_p = |i: usize| {
            let row = &flat[i * v..(i + 1) * v];
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            f64::from(row[text[i + 1] as usize]) - sum.ln()
        };
        let by_hand = |r: std::ops::Range<usize>| r.map(log_p).sum::<f64>();
        let parts = [text[20..].to_vec(), text[20..21].to_vec(), text[20..25].to_vec()];
        let found = score_continuations(model, &text[..20], &parts, precision).unwrap();
        for (s, p) in found.iter().zip(&parts) {
            assert_eq!(s.tokens, p.len());
            assert!((s.log_likelihood - by_hand(19..19 + p.len())).abs() < 1e-4, "{s:?}");
        }
        // What the model itself would say is the greedy continuation.
        let greedy =
            Request { prompt: text.clone(), options: GenerateOptions { max_new_tokens: 6, ..Default::default() } };
        let engine = Engine::new(model, None).unwrap().with_precision(precision);
        let ids = engine.generate(&[greedy], |_, _| {}).unwrap().remove(0).ids;
        assert!(score_continuations(model, text, &[ids], precision).unwrap()[0].greedy);

        let whole = score_stream(model, text, &StreamOptions { precision, ..Default::default() }).unwrap();
        assert_eq!(whole.tokens, text.len() - 1);
        assert!((whole.nats + by_hand(0..text.len() - 1)).abs() < 1e-3, "{whole:?}");
        assert!((whole.perplexity() - whole.loss().exp()).abs() < 1e-9);
        if model.spec().memory != Memory::None {
            segments(model, text, precision);
            continue;
        }
        // Windows of 8 that overlap by 5: every token is scored once, with a context of its window.
        let windows = StreamOptions { window: Some(8), overlap: 5, batch_tokens: 20, precision, ..Default::default() };
        let windows = score_stream(model, text, &windows).unwrap();
        assert_eq!(windows.tokens, text.len() - 1);
        let mut by_windows = 0.0;
        for start in (0..text.len() - 1).step_by(3) {
            let end = (start + 8).min(text.len() - 1);
            let known = if start == 0 { 0 } else { 5 };
            if end - start > known {
                let context = &text[start..start + known + 1];
                let score =
                    score_continuations(model, context, &[&text[start + known + 1..end + 1]], precision).unwrap();
                by_windows -= score[0].log_likelihood;
            }
            if end == text.len() - 1 {
                break;
            }
        }
        assert!((windows.nats - by_windows).abs() < 1e-3, "{} {by_windows}", windows.nats);
    }
}

/// Segments of any length with the memory's keys and values kept are what those with the memory itself carried are; and a memory of
/// another length than the configuration's is what it says.
fn segments(model: &Model, text: &[u32], precision: Precision) {
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path(), &Default::default()).unwrap();
    for (memory, segment, from) in [(7, 8, 1), (7, 3, 1), (20, 5, 1), (3, 1, 12), (60, 33, 2)] {
        let options = LoadOptions { memory: Some(memory), ..LoadOptions::default() };
        let model = Model::load(folder.path(), &options).unwrap().model;
        assert_eq!(model.spec().memory_length(), memory);
        let mut memories = vec![model.new_memory().unwrap().unwrap()];
        assert_eq!(memories[0].tensors()[0].dims()[0], memory);
        let mut by_hand = 0.0;
        for start in (0..text.len() - 1).step_by(segment) {
            let end = (start + segment).min(text.len() - 1);
            let tape = Tape::inference().with_precision(precision);
            let input = Input::from_sequences(&[&text[start..end]]);
            let hidden = model.hidden_carrying(&tape, &input, &mut memories, false).unwrap().last;
            let target = |t: usize| if t < from { IGNORE } else { text[t] as i32 };
            let targets: Vec<i32> = (start + 1..end + 1).map(target).collect();
            let loss = model.lm_head().unwrap().loss(&tape, &hidden, &targets, 1.0, 0.0).unwrap();
            by_hand += genus_ops::scalar(loss.tensor()).unwrap();
        }
        let options = StreamOptions { window: Some(segment), from, precision, ..Default::default() };
        let (mut places, mut nats) = (Vec::new(), 0.0);
        let found = score_tokens(&model, text, &options, |t, loss| {
            places.push(t);
            nats += loss;
        })
        .unwrap();
        assert_eq!(places, (from..text.len()).collect::<Vec<_>>());
        assert!((found.nats - nats).abs() < 1e-9 && (found.nats - by_hand).abs() < 1e-3, "{found:?} {by_hand}");
        let overlapping = StreamOptions { overlap: 1, ..options };
        let error = score_stream(&model, text, &overlapping).unwrap_err().to_string();
        assert!(error.contains(&format!("a memory of {memory} is carried")), "{error}");
    }
}

#[test]
fn prepared_is_unprepared() {
    at_every_level(prepared);
}

fn prepared(precision: Precision) {
    let all = sequences();
    for model in models() {
        let plain = outputs(&model, &all, precision);
        let weights: Vec<Vec<f32>> = model.params().iter().map(|p| to_vec(&p.tensor()).unwrap()).collect();
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), &Default::default()).unwrap();
        model.prepare(precision).unwrap();
        assert!(model.params().iter().any(|p| p.is_prepared()));
        for (p, w) in model.params().iter().zip(&weights) {
            if precision == Precision::F32 || !p.is_prepared() || p.name() == "embeddings.tokens" {
                same_bits(&to_vec(&p.tensor()).unwrap(), w, p.name());
            }
        }
        for (i, (p, s)) in outputs(&model, &all, precision).iter().zip(&all).enumerate() {
            same_bits(p, &plain[i], &format!("{} prepared, sequence {i}", name(&model)));
            let alone = &outputs(&model, std::slice::from_ref(s), precision)[0];
            same_bits(alone, &plain[i], &format!("{} prepared, alone {i}", name(&model)));
        }
        // Loading straight into the prepared form gives the same.
        let options = LoadOptions { task: Some(model.task()), prepare: Some(precision), ..LoadOptions::default() };
        let loaded = Model::load(folder.path(), &options).unwrap().model;
        for (a, b) in model.params().iter().zip(loaded.params()) {
            assert_eq!((a.name(), a.is_prepared()), (b.name(), b.is_prepared()));
        }
        for (i, p) in outputs(&loaded, &all, precision).iter().enumerate() {
            same_bits(p, &plain[i], &format!("{} loaded prepared, sequence {i}", name(&model)));
        }
    }
}

/// A checkpoint in bf16 is packed as it lies.
#[test]
fn prepared_from_bf16() {
    let all = sequences();
    for model in models().iter().filter(|m| m.task() == Task::CausalLm) {
        let folder = tempfile::tempdir().unwrap();
        let options = genus_checkpoint::WriteOptions { dtype: genus_checkpoint::Dtype::BF16, ..Default::default() };
        model.save(folder.path(), &options).unwrap();
        let plain = Model::load(folder.path(), &LoadOptions::default()).unwrap().model;
        for precision in [Precision::F32, Precision::Bf16] {
            let options = LoadOptions { prepare: Some(precision), ..LoadOptions::default() };
            let loaded = Model::load(folder.path(), &options).unwrap().model;
            for (a, b) in outputs(&plain, &all, precision).iter().zip(&outputs(&loaded, &all, precision)) {
                same_bits(a, b, &name(model));
            }
        }
    }
}

#[test]
fn ends_are_rows_of_the_whole() {
    at_every_level(ends);
}

fn ends(precision: Precision) {
    let all: Vec<Vec<u32>> = sequences().into_iter().map(|s| s[..s.len().min(60)].to_vec()).collect();
    for model in models().iter().filter(|m| m.spec().sees_past_only()) {
        let tape = Tape::inference().with_precision(precision);
        let new = || caches(model, &tape, &all);
        let (mut whole, mut some) = (new(), new());
        let d = model.spec().d_model;
        // The second time every sequence is one token long; nobody wants anything of the last batch.
        let next: Vec<Vec<u32>> = (0..all.len() as u32).map(|i| vec![i]).collect();
        let wanted = [true, false, true, true, false, true];
        for (batch, wanted) in [(&all, wanted), (&next, [true; 6]), (&next, wanted), (&next, [false; 6])] {
            let input = Input::from_sequences(batch);
            let rows = to_vec(model.hidden(&tape, &input, Some(&mut whole), false).unwrap().last.tensor()).unwrap();
            let found = to_vec(model.hidden_ends(&tape, &input, &mut some, &wanted).unwrap().tensor()).unwrap();
            let ends = input.spans.iter().zip(wanted).filter(|(_, w)| *w).map(|(r, _)| r.end - 1);
            let expected: Vec<f32> = ends.flat_map(|i| rows[i * d..(i + 1) * d].to_vec()).collect();
            same_bits(&found, &expected, &name(model));
        }
    }
}
