//! Parity with `transformers` on PyTorch, on the fixtures that `tests/parity/generate.py` makes.
//!
//! Tolerances are not chosen by feel. `tolerances.json` holds how far the reference itself, in float32, is from the same
//! computation in float64. In float64 this library must be as close to the fixture as the reference's own float64 is
//! ([`Precision::Exact`]); in float32, two computations that sum in different orders may each be that far from the truth, and
//! what was measured is one sample of it ([`Precision::Working`]).

use candle_core::{DType, Device, Tensor};
use genus_models::nn::ClassTargets;
use genus_models::{Encoded, Input, LoadOptions, Model, SequenceCache, Task};
use genus_ops::{
    AdamW, IGNORE, Moments, Param, Spans, Tape, Value, adamw, columns, gather_rows, grad_norm, weighted_sum,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A fixture's batch: padded nested lists, as `genus forward` takes them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    input_ids: Vec<Vec<u32>>,
    attention_mask: Option<Vec<Vec<u8>>>,
    decoder_input_ids: Option<Vec<Vec<u32>>>,
    token_type_ids: Option<Vec<Vec<u32>>>,
    labels: Option<Vec<Vec<i32>>>,
    next_sentence_label: Option<Vec<i32>>,
}

/// How far a float32 reference is from float64.
#[derive(Clone, Copy, Deserialize)]
struct Deviation {
    max_abs: f64,
    #[allow(dead_code)]
    rel: f64,
}

type Deviations = BTreeMap<String, Deviation>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Precision {
    /// float64, by the definitions.
    Exact,
    /// float32, by the kernels.
    Working,
}

impl Precision {
    fn options(self) -> LoadOptions {
        let dtype = if self == Precision::Exact { DType::F64 } else { DType::F32 };
        LoadOptions { dtype, ..LoadOptions::default() }
    }

    /// Allowed deviation from the fixture, where the reference's own is `d` and values go up to `scale`.
    ///
    /// Exact: the reference's own, which is rounded to three digits, and half a unit of the last place of float32, in which
    /// this library holds the scale of attention (`1 / sqrt(12)` here). Working: eight times the reference's own (the sum of two
    /// deviations, each with the spread that other summation orders show), and at least four such units.
    fn allowed(self, d: Deviation, scale: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) * scale;
        match self {
            Precision::Exact => 1.01 * d.max_abs + 0.5 * unit,
            Precision::Working => 8.0 * d.max_abs + 4.0 * unit,
        }
    }
}

fn parity(file: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(file)
}

fn json<T: serde::de::DeserializeOwned>(file: impl AsRef<Path>) -> Result<T> {
    let path = parity(file);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?)
}

fn tensors(file: impl AsRef<Path>) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(parity(file), &Device::Cpu)?)
}

fn deviations(case: &str) -> Result<Deviations> {
    let mut all: BTreeMap<String, Deviations> = json("tolerances.json")?;
    all.append(&mut json("tolerances-xl.json")?);
    all.append(&mut json("tolerances-bidirectional.json")?);
    Ok(all.remove(case).ok_or_else(|| format!("tolerances.json has no {case:?}"))?)
}

fn numbers(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

/// The key's part of a packed bias has a true gradient of zero, so it is judged apart: `(name, values)` of both parts.
fn parts(name: &str, values: Vec<f64>) -> Vec<(String, Vec<f64>)> {
    if !name.ends_with("attn.c_attn.bias") {
        return vec![(name.to_owned(), values)];
    }
    let third = values.len() / 3;
    let rest = [&values[..third], &values[2 * third..]].concat();
    vec![(name.to_owned(), rest), (format!("{name}[key]"), values[third..2 * third].to_vec())]
}

fn is_key_bias(name: &str) -> bool {
    name.ends_with("[key]")
        || name.ends_with("k_proj.bias")
        || name.ends_with("self.key.bias")
        || name.ends_with("attention.k_lin.bias")
}

fn distance(a: &[f64], b: &[f64]) -> (f64, f64) {
    let most = |x: f64, y: f64| if x.is_nan() || y.is_nan() { f64::NAN } else { x.max(y) };
    let off = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, most);
    (off, b.iter().fold(0.0, |m, y| most(m, y.abs())))
}

/// Collects what does not agree, so that a failure shows everything at once.
struct Comparison {
    case: String,
    precision: Precision,
    deviations: Deviations,
    problems: Vec<String>,
    compared: usize,
}

impl Comparison {
    fn new(case: &str, precision: Precision) -> Result<Self> {
        Ok(Comparison {
            case: case.to_owned(),
            precision,
            deviations: deviations(case)?,
            problems: vec![],
            compared: 0,
        })
    }

    /// Compares one tensor; `slack` is added to what is allowed, for a reason that the caller states.
    fn check(&mut self, name: &str, got: Vec<f64>, expected: Vec<f64>, slack: impl Fn(&str) -> f64) {
        if got.len() != expected.len() {
            self.problems.push(format!("{name}: {} numbers, expected {}", got.len(), expected.len()));
            return;
        }
        for ((name, got), (_, expected)) in parts(name, got).into_iter().zip(parts(name, expected)) {
            self.compared += 1;
            let Some(&d) = self.deviations.get(&name) else {
                self.problems.push(format!("{name}: tolerances.json has no entry"));
                continue;
            };
            let (off, scale) = distance(&got, &expected);
            let allowed = self.precision.allowed(d, scale) + slack(&name);
            if off.is_nan() || off > allowed {
                self.problems
                    .push(format!("{name}: off by {off:.3e}, allowed {allowed:.3e} (values up to {scale:.3})"));
            }
        }
    }

    fn finish(self) {
        assert!(
            self.problems.is_empty(),
            "{} in {:?}: {} of {} tensors differ from the reference\n  {}",
            self.case,
            self.precision,
            self.problems.len(),
            self.compared,
            self.problems.join("\n  ")
        );
        assert!(self.compared > 0, "{}: nothing was compared", self.case);
    }
}

/// A padded batch without its padding.
struct Ragged {
    input: Input,
    /// Tokens of the segments that rows of a recurrent model are run in.
    segment: Option<usize>,
    /// What a model with an encoder writes; nothing of it is padding.
    target: Option<Input>,
    labels: Option<Vec<i32>>,
    pairs: Option<Vec<i32>>,
    mask: Vec<Vec<u8>>,
}

impl Ragged {
    fn new(batch: Batch) -> Self {
        fn real<T: Copy>(rows: &[Vec<T>], mask: &[Vec<u8>]) -> Vec<T> {
            let pairs = rows.iter().flatten().zip(mask.iter().flatten());
            pairs.filter(|(_, m)| **m == 1).map(|(x, _)| *x).collect()
        }
        let whole = || batch.input_ids.iter().map(|row| vec![1; row.len()]).collect();
        let mask = batch.attention_mask.unwrap_or_else(whole);
        let target = batch.decoder_input_ids.map(|ids| Input::from_sequences(&ids));
        let input = Input {
            ids: real(&batch.input_ids, &mask),
            spans: Spans::from_lengths(mask.iter().map(|r| r.iter().filter(|m| **m == 1).count())),
            positions: None,
            types: batch.token_type_ids.map(|t| real(&t, &mask)),
            characters: None,
        };
        let labels = match target {
            Some(_) => batch.labels.map(|l| l.concat()),
            None => batch.labels.map(|l| real(&l, &mask)),
        };
        Ragged { input, segment: None, target, labels, pairs: batch.next_sentence_label, mask }
    }

    /// Labels moved one place to the left inside each row: what the token at a place is to predict.
    fn next_tokens(&self, labels: &[i32]) -> Vec<i32> {
        let next = |r: std::ops::Range<usize>| labels[r].iter().copied().skip(1).chain([IGNORE]).collect::<Vec<_>>();
        self.input.spans.iter().flat_map(next).collect()
    }

    /// Values `[n, d]` back at their padded places, zeros elsewhere.
    fn padded(&self, t: &Tensor) -> Result<Vec<f64>> {
        let (n, d) = t.dims2()?;
        let values = numbers(t)?;
        let mut rows = values.chunks_exact(d.max(1));
        let mut out = Vec::with_capacity(self.mask.iter().map(|r| r.len() * d).sum());
        for &m in self.mask.iter().flatten() {
            match (m, if m == 1 { rows.next() } else { None }) {
                (1, Some(row)) => out.extend_from_slice(row),
                (1, None) => return Err(format!("only {n} rows").into()),
                _ => out.extend(std::iter::repeat_n(0.0, d)),
            }
        }
        Ok(out)
    }
}

fn mean(targets: &[i32]) -> f64 {
    1.0 / targets.iter().filter(|t| **t != IGNORE).count() as f64
}

/// Outputs under the reference's names.
type Outputs = BTreeMap<String, Vec<f64>>;

/// The outputs, and the loss where the batch has labels.
fn forward(model: &Model, batch: &Ragged, tape: &Tape) -> Result<(Outputs, Option<Value>)> {
    if let Some(segment) = batch.segment {
        return forward_in_segments(model, batch, segment, tape);
    }
    let mut out = Outputs::new();
    let hidden = match &batch.target {
        None => {
            let hidden = model.hidden(tape, &batch.input, None, true)?;
            for (i, h) in hidden.all.iter().enumerate() {
                out.insert(format!("hidden_states.{i}"), batch.padded(h.tensor())?);
            }
            hidden
        }
        Some(target) => {
            let read = model.encode(tape, &batch.input, true)?;
            let encoded = Encoded { states: read.last.clone(), spans: batch.input.spans.clone() };
            let hidden = model.decode(tape, target, &encoded, true)?;
            out.insert("encoder_last_hidden_state".into(), batch.padded(read.last.tensor())?);
            for (i, (e, d)) in read.all.iter().map(Some).chain(std::iter::repeat(None)).zip(&hidden.all).enumerate() {
                if let Some(e) = e {
                    out.insert(format!("encoder_hidden_states.{i}"), batch.padded(e.tensor())?);
                }
                out.insert(format!("decoder_hidden_states.{i}"), numbers(d.tensor())?);
            }
            hidden
        }
    };
    // Of models with an encoder, every place that is written is real.
    let padded = |t: &Tensor| if batch.target.is_some() { numbers(t) } else { batch.padded(t) };
    let task = model.task();
    let mut terms = Vec::new();
    if task == Task::Base {
        out.insert("last_hidden_state".into(), padded(hidden.last.tensor())?);
        if let Ok(pooler) = model.pooler() {
            let pooled = pooler.forward(tape, &hidden.last, &batch.input.spans, 0.0)?;
            out.insert("pooler_output".into(), numbers(pooled.tensor())?);
        }
    }
    if task == Task::BidirectionalLm {
        terms = both_directions(model, batch, tape, &hidden.last, &mut out)?;
    } else if task.predicts_tokens() {
        let head = model.lm_head()?;
        let name = if task == Task::Pretraining { "prediction_logits" } else { "logits" };
        let logits = head.logits(&Tape::inference(), &Value::constant(hidden.last.tensor().clone()))?;
        out.insert(name.into(), padded(logits.tensor())?);
        if let Some(labels) = &batch.labels {
            let targets = if task == Task::CausalLm { batch.next_tokens(labels) } else { labels.clone() };
            terms.push(head.loss(tape, &hidden.last, &targets, mean(&targets), 0.0)?);
        }
    }
    if task.predicts_next_sentence() {
        let head = model.next_sentence()?;
        let pooled = model.pooler()?.forward(tape, &hidden.last, &batch.input.spans, 0.0)?;
        let name = if task == Task::Pretraining { "seq_relationship_logits" } else { "logits" };
        out.insert(name.into(), numbers(head.logits(tape, &pooled)?.tensor())?);
        if let Some(pairs) = &batch.pairs {
            terms.push(head.loss(tape, &pooled, ClassTargets::One(pairs), mean(pairs))?);
        }
    }
    if task == Task::ReplacedToken {
        let head = model.detector()?;
        out.insert("logits".into(), padded(head.logits(tape, &hidden.last)?.tensor())?);
        if let Some(labels) = &batch.labels {
            let replaced: Vec<f32> = labels.iter().map(|&l| l as f32).collect();
            terms.push(head.loss(tape, &hidden.last, &replaced, mean(labels))?);
        }
    }
    if task == Task::TokenClassification {
        let (head, x) = (model.classifier()?, model.tokens(tape, &hidden.last)?);
        out.insert("logits".into(), padded(head.logits(tape, &x)?.tensor())?);
        if let Some(labels) = &batch.labels {
            terms.push(head.loss(tape, &x, ClassTargets::One(labels), mean(labels))?);
        }
    }
    let loss = match terms.as_slice() {
        [] => None,
        terms => Some(weighted_sum(tape, &terms.iter().map(|t| (t, 1.0)).collect::<Vec<_>>())?),
    };
    if let Some(loss) = &loss {
        out.insert("loss".into(), numbers(loss.tensor())?);
    }
    Ok((out, loss))
}

/// Each direction predicts the token that it has not seen; the loss is the mean over all of them.
fn both_directions(
    model: &Model,
    batch: &Ragged,
    tape: &Tape,
    hidden: &Value,
    out: &mut Outputs,
) -> Result<Vec<Value>> {
    let (head, d) = (model.lm_head()?, model.spec().d_model);
    let sides = match &batch.labels {
        None => Vec::new(),
        Some(labels) => {
            let before = |r: std::ops::Range<usize>| [&[IGNORE][..], &labels[r.start..r.end - 1]].concat();
            let before = batch.input.spans.iter().flat_map(before).collect();
            vec![batch.next_tokens(labels), before]
        }
    };
    let scale = mean(&sides.concat());
    let mut terms = Vec::new();
    for (i, name) in ["forward_logits", "backward_logits"].into_iter().enumerate() {
        let half = columns(tape, hidden, i * d, d)?;
        let logits = head.logits(&Tape::inference(), &Value::constant(half.tensor().clone()))?;
        out.insert(name.into(), batch.padded(logits.tensor())?);
        if let Some(targets) = sides.get(i) {
            terms.push(head.loss(tape, &half, targets, scale, 0.0)?);
        }
    }
    Ok(terms)
}

/// Rows of one length, run in segments with the memory carried; the loss is put together from those of the segments.
fn forward_in_segments(model: &Model, batch: &Ragged, n: usize, tape: &Tape) -> Result<(Outputs, Option<Value>)> {
    let (rows, total) = (batch.input.spans.len(), batch.input.ids.len());
    let width = total / rows;
    let targets = batch.labels.as_ref().map(|labels| batch.next_tokens(labels));
    let mut memories = vec![model.new_memory()?.ok_or("a model without memory")?; rows];
    let mut out: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
    let mut terms = Vec::new();
    for at in (0..width).step_by(n) {
        let m = n.min(width - at);
        let of = |row: usize| row * width + at..row * width + at + m;
        let pieces: Vec<&[u32]> = (0..rows).map(|r| &batch.input.ids[of(r)]).collect();
        let hidden = model.hidden_carrying(tape, &Input::from_sequences(&pieces), &mut memories, true)?;
        let mut named: Vec<(String, Vec<f64>)> = Vec::new();
        for (i, h) in hidden.all.iter().enumerate() {
            named.push((format!("hidden_states.{i}"), numbers(h.tensor())?));
        }
        match model.lm_head() {
            Err(_) => named.push(("last_hidden_state".into(), numbers(hidden.last.tensor())?)),
            Ok(head) => {
                named.push(("logits".into(), numbers(head.logits(&Tape::inference(), &hidden.last)?.tensor())?));
                if let Some(targets) = &targets {
                    let wanted: Vec<i32> = (0..rows).flat_map(|r| targets[of(r)].to_vec()).collect();
                    terms.push(head.loss(tape, &hidden.last, &wanted, mean(targets), 0.0)?);
                }
            }
        }
        for (name, values) in named {
            let d = values.len() / (rows * m);
            let whole = out.entry(name).or_insert_with(|| vec![Vec::new(); rows]);
            values.chunks(m * d).zip(whole).for_each(|(part, row)| row.extend_from_slice(part));
        }
    }
    let mut out: Outputs = out.into_iter().map(|(name, rows)| (name, rows.concat())).collect();
    if terms.is_empty() {
        return Ok((out, None));
    }
    let loss = weighted_sum(tape, &terms.iter().map(|t| (t, 1.0)).collect::<Vec<_>>())?;
    out.insert("loss".into(), numbers(loss.tensor())?);
    Ok((out, Some(loss)))
}

/// Outputs, loss and every gradient of a folder's batch (`suffix` "-left": the same rows padded at the left, whose gradients
/// are those of the batch padded at the right).
fn check(case: &str, suffix: &str, precision: Precision) -> Result<()> {
    let model = Model::load(parity(case), &precision.options())?.model;
    let mut batch = Ragged::new(json(format!("{case}/batch{suffix}.json"))?);
    if parity(format!("{case}/segment.json")).exists() {
        let file: BTreeMap<String, usize> = json(format!("{case}/segment.json"))?;
        batch.segment = file.get("segment_length").copied();
    }
    let mut expected = tensors(format!("{case}/expected{suffix}.safetensors"))?;
    let mut comparison = Comparison::new(&format!("{case}{suffix}"), precision)?;
    if !suffix.is_empty() {
        expected.extend(tensors(format!("{case}/expected.safetensors"))?.into_iter().filter(|t| is_grad(&t.0)));
        comparison.deviations.extend(deviations(case)?.into_iter().filter(|d| is_grad(&d.0)));
    }
    let tape = Tape::recording();
    let (got, loss) = forward(&model, &batch, &tape)?;
    let mut got: Outputs = got.into_iter().filter(|(name, _)| asked(&expected, name)).collect();
    if let Some(loss) = &loss
        && expected.keys().any(|name| is_grad(name))
    {
        tape.backward(loss)?;
        for param in model.params() {
            let Some(grad) = param.grad() else { continue };
            for name in model.file_names(param)? {
                got.insert(format!("grad.{name}"), numbers(&grad)?);
            }
        }
    }
    let names = |keys: Vec<&String>| keys.into_iter().cloned().collect::<BTreeSet<String>>();
    assert_eq!(
        names(got.keys().collect()),
        names(expected.keys().collect()),
        "{case}{suffix}: which tensors there are"
    );
    for (name, got) in got {
        let expected = numbers(&expected[&name])?;
        // What rounding leaves of a zero, where other gradients of attention are around 1e-2.
        let slack = |part: &str| if is_key_bias(part) { 2e-7 } else { 0.0 };
        comparison.check(&name, got, expected, slack);
    }
    comparison.finish();
    Ok(())
}

fn is_grad(name: &str) -> bool {
    name.starts_with("grad.")
}

/// Hidden states of inner layers are in some fixtures only.
fn asked(expected: &HashMap<String, Tensor>, name: &str) -> bool {
    !name.contains("hidden_states.") || expected.contains_key(name)
}

macro_rules! cases {
    ($($name:ident: $case:literal, $suffix:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            check($case, $suffix, Precision::Exact)?;
            check($case, $suffix, Precision::Working)
        }
    )*};
}

cases! {
    gpt2_causal_lm: "gpt2-causal-lm", "";
    gpt2_padded_at_the_left: "gpt2-causal-lm", "-left";
    gpt2_base_without_prefix: "gpt2-base", "";
    gpt2_pickle_with_mask_buffers: "gpt2-bin", "";
    gpt2_in_shards: "gpt2-sharded", "";
    gpt2_in_bf16: "gpt2-bf16", "";
    bert_base_with_pooler: "bert-base", "";
    bert_masked_lm: "bert-masked-lm", "";
    bert_padded_at_the_left: "bert-masked-lm", "-left";
    bert_next_sentence: "bert-next-sentence", "";
    bert_pretraining: "bert-pretraining", "";
    bert_pickle_with_old_names: "bert-old-names", "";
    bert_in_f16: "bert-f16", "";
    gpt_causal_lm: "gpt-causal-lm", "";
    gpt_padded_at_the_left: "gpt-causal-lm", "-left";
    gpt_base: "gpt-base", "";
    gpt_neo_causal_lm: "gpt-neo-causal-lm", "";
    gpt_neo_padded_at_the_left: "gpt-neo-causal-lm", "-left";
    gpt_neo_base: "gpt-neo-base", "";
    roberta_masked_lm: "roberta-masked-lm", "";
    roberta_padded_at_the_left: "roberta-masked-lm", "-left";
    roberta_base: "roberta-base", "";
    distilbert_masked_lm: "distilbert-masked-lm", "";
    distilbert_padded_at_the_left: "distilbert-masked-lm", "-left";
    distilbert_base: "distilbert-base", "";
    electra_discriminator: "electra-discriminator", "";
    electra_discriminator_padded_at_the_left: "electra-discriminator", "-left";
    electra_generator: "electra-generator", "";
    electra_generator_padded_at_the_left: "electra-generator", "-left";
    electra_base: "electra-base", "";
    bert_tags: "bert-tags", "";
    roberta_tags: "roberta-tags", "";
    distilbert_tags: "distilbert-tags", "";
    electra_tags: "electra-tags", "";
    gpt2_tags: "gpt2-tags", "";
    marian_seq2seq: "marian-seq2seq", "";
    marian_base: "marian-base", "";
    xl_causal_lm: "xl-causal-lm", "";
    xl_characters: "xl-characters", "";
    xl_norms_first_in_a_pickle: "xl-norms-first", "";
    xl_base: "xl-base", "";
    bilstm_bidirectional_lm: "bilstm-bidirectional-lm", "";
    bilstm_base: "bilstm-base", "";
    elmo_bidirectional_lm: "elmo-bidirectional-lm", "";
    elmo_without_bounds: "elmo-without-bounds", "";
    elmo_base: "elmo-base", "";
    bi_transformer_bidirectional_lm: "bi-transformer-bidirectional-lm", "";
    bi_transformer_base: "bi-transformer-base", "";
}

/// Ten steps of AdamW as the reference took them.
#[derive(Deserialize)]
struct Steps {
    lr: Vec<f64>,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    max_norm: f64,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    no_decay: BTreeSet<String>,
    batches: Vec<Batch>,
}

fn check_steps(case: &str, precision: Precision) -> Result<()> {
    let model = Model::load(parity(case), &precision.options())?.model;
    let steps: Steps = json(format!("{case}/steps.json"))?;
    let mut comparison = Comparison::new(&format!("{case}-steps"), precision)?;
    let params: Vec<&Param> = model.params().iter().filter(|p| p.trainable()).collect();
    let mut moments = params.iter().map(|p| Moments::zeros(p)).collect::<genus_ops::Result<Vec<_>>>()?;
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for (i, (batch, &lr)) in steps.batches.into_iter().zip(&steps.lr).enumerate() {
        let tape = Tape::recording();
        let (_, loss) = forward(&model, &Ragged::new(batch), &tape)?;
        let loss = loss.ok_or("a batch without labels")?;
        losses.extend(numbers(loss.tensor())?);
        tape.backward(&loss)?;
        let norm = grad_norm(params.iter().copied())?;
        norms.push(norm);
        for (&param, moments) in params.iter().zip(&mut moments) {
            let decays = !model.file_names(param)?.iter().any(|n| steps.no_decay.contains(n));
            let hyper = AdamW {
                lr,
                beta1: steps.betas[0],
                beta2: steps.betas[1],
                eps: steps.eps,
                weight_decay: if decays { steps.weight_decay } else { 0.0 },
                step: i as u64 + 1,
                // as `clip_grad_norm_` of the reference
                grad_scale: (steps.max_norm / (norm + 1e-6)).min(1.0),
            };
            adamw(param, moments, &hyper)?;
        }
    }
    assert_eq!(losses.len(), 10, "{case}: number of steps");
    comparison.check("loss", losses, steps.losses, |_| 0.0);
    comparison.check("grad_norm", norms, steps.grad_norms, |_| 0.0);
    let expected = tensors(format!("{case}/steps.safetensors"))?;
    let longest = steps.lr.iter().copied().fold(0.0, f64::max);
    let mut seen = BTreeSet::new();
    for (name, value) in model.named_tensors()? {
        let Some(e) = expected.get(&name) else {
            return Err(format!("{case}: no weight {name} in the fixture").into());
        };
        // Adam divides by the gradient's size. Where the true gradient is zero, the direction of every step is rounding's; where
        // it nearly vanishes in some step, rounding moves that step's part: a thousandth of one step in float32, and a
        // ten-thousandth in float64 (the scale of attention) are allowed.
        let slack = |part: &str| match (precision, is_key_bias(part)) {
            (Precision::Exact, _) => 1e-4 * longest,
            (Precision::Working, true) => 2.0 * steps.lr.iter().sum::<f64>(),
            (Precision::Working, false) => 1e-3 * longest,
        };
        comparison.check(&name, numbers(&value)?, numbers(e)?, slack);
        seen.insert(name);
    }
    assert_eq!(seen.len(), expected.len(), "{case}: number of weights");
    comparison.finish();
    Ok(())
}

#[test]
fn gpt2_ten_steps() -> Result<()> {
    check_steps("gpt2-causal-lm", Precision::Exact)?;
    check_steps("gpt2-causal-lm", Precision::Working)
}

#[test]
fn bert_ten_steps() -> Result<()> {
    check_steps("bert-pretraining", Precision::Exact)?;
    check_steps("bert-pretraining", Precision::Working)
}

/// Greedy continuations, each made by the reference from its prompt alone.
#[derive(Deserialize)]
struct Generation {
    eos_token_id: u32,
    ignoring_eos: Vec<Continuation>,
    until_eos: Vec<Continuation>,
}

#[derive(Clone, Deserialize)]
struct Continuation {
    prompt: Vec<u32>,
    max_new_tokens: usize,
    ids: Vec<u32>,
}

/// Decodes all prompts together with the cache; a sequence leaves the batch when it ends.
fn greedy(model: &Model, wanted: &[Continuation], eos: Option<u32>) -> Result<Vec<Vec<u32>>> {
    let mut out = vec![Vec::new(); wanted.len()];
    let mut running: Vec<usize> = (0..wanted.len()).collect();
    let mut caches: Vec<SequenceCache> = running.iter().map(|_| SequenceCache::new()).collect();
    let mut next: Vec<Vec<u32>> = wanted.iter().map(|c| c.prompt.clone()).collect();
    let tape = Tape::inference();
    while !running.is_empty() {
        let input = Input::from_sequences(&next);
        let hidden = model.hidden(&tape, &input, Some(&mut caches), false)?;
        let last: Vec<u32> = input.spans.iter().map(|r| r.end as u32 - 1).collect();
        let logits = model.lm_head()?.logits(&tape, &gather_rows(&tape, &hidden.last, &last)?)?;
        let chosen: Vec<u32> = logits.tensor().argmax(1)?.to_vec1()?;
        let ends = |i: usize, id: u32, len: usize| Some(id) == eos || len == wanted[i].max_new_tokens;
        let mut kept = (Vec::new(), Vec::new(), Vec::new());
        for ((i, id), cache) in running.into_iter().zip(chosen).zip(caches) {
            out[i].push(id);
            if !ends(i, id, out[i].len()) {
                kept.0.push(i);
                kept.1.push(cache);
                kept.2.push(vec![id]);
            }
        }
        (running, caches, next) = kept;
    }
    Ok(out)
}

#[test]
fn gpt2_greedy_texts() -> Result<()> {
    let g: Generation = json("gpt2-causal-lm/generation.json")?;
    let model = Model::load(parity("gpt2-causal-lm"), &LoadOptions::default())?.model;
    for (wanted, eos) in [(&g.ignoring_eos, None), (&g.until_eos, Some(g.eos_token_id))] {
        let expected: Vec<&Vec<u32>> = wanted.iter().map(|c| &c.ids).collect();
        let together = greedy(&model, wanted, eos)?;
        assert_eq!(together.iter().collect::<Vec<_>>(), expected, "all prompts together, end token {eos:?}");
        for c in wanted {
            let alone = greedy(&model, std::slice::from_ref(c), eos)?;
            assert_eq!(alone, std::slice::from_ref(&c.ids), "prompt {:?} alone, end token {eos:?}", c.prompt);
        }
    }
    Ok(())
}

#[test]
fn relatives_ten_steps() -> Result<()> {
    for case in [
        "gpt-causal-lm",
        "gpt-neo-causal-lm",
        "roberta-masked-lm",
        "distilbert-masked-lm",
        "electra-discriminator",
        "electra-generator",
        "marian-seq2seq",
    ] {
        check_steps(case, Precision::Exact)?;
        check_steps(case, Precision::Working)?;
    }
    Ok(())
}

#[test]
fn bidirectional_ten_steps() -> Result<()> {
    for case in ["bilstm-bidirectional-lm", "elmo-bidirectional-lm", "bi-transformer-bidirectional-lm"] {
        check_steps(case, Precision::Exact)?;
        check_steps(case, Precision::Working)?;
    }
    Ok(())
}

/// Options, weights in HDF5 and a list of words, as ELMo's authors published it, turned into a model folder.
#[test]
fn elmo_as_published() -> Result<()> {
    let (folder, case) = (parity("elmo-published"), "elmo-published");
    let tokenizer = genus_text::Tokenizer::from_words(folder.join("words.txt"))?;
    let (options, weights) = (folder.join("tiny_options.json"), folder.join("tiny_weights.hdf5"));
    let model = Model::import_elmo(&options, &weights, tokenizer.vocab_size())?;
    model.set_spellings(&genus_text::spellings(&tokenizer, tokenizer.vocab_size(), 9))?;
    let written = tempfile::tempdir()?;
    model.save(written.path(), &Default::default())?;
    let expected = tensors(format!("{case}/expected.safetensors"))?;
    for precision in [Precision::Exact, Precision::Working] {
        let model = Model::load(written.path(), &precision.options())?.model;
        let batch = Ragged::new(json(format!("{case}/batch.json"))?);
        let (got, _) = forward(&model, &batch, &Tape::inference())?;
        assert_eq!(got.keys().collect::<BTreeSet<_>>(), expected.keys().collect::<BTreeSet<_>>());
        let mut comparison = Comparison::new(case, precision)?;
        for (name, got) in got {
            comparison.check(&name, got, numbers(&expected[&name])?, |_| 0.0);
        }
        comparison.finish();
    }
    let wrong = Model::import_elmo(&options, &folder.join("words.txt"), 101).unwrap_err().to_string();
    assert!(wrong.contains("words.txt") && wrong.contains("an HDF5 file"), "{wrong}");
    Ok(())
}
