//! Heads: what is read off the hidden states.

use crate::adaptive::AdaptiveSoftmax;
use crate::layer::{Affine, NormParams};
use crate::sampled::Drawn;
use crate::{Builder, Error, Init, Result, SoftmaxSample, Stack, StackSpec, Tying};
use genus_ops::profile::{Operation, within};
use genus_ops::rng::Key;
use genus_ops::{
    Activation, Distance, Layout, Param, Precision, Projection, Spans, Tape, Value, cross_entropy, cross_entropy_rows,
    distance, dropout, gather_rows, linear, residual_norm,
};

/// What stands between the hidden states and a head's projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadTransform {
    /// Nothing (GPT-2).
    None,
    /// An affine map to the width of the token table, the stack's activation and a norm of the stack's kind (BERT).
    Dense,
}

/// A head that predicts tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSpec {
    /// What stands before the projection.
    pub transform: HeadTransform,
    /// Whether the projection adds a bias per token.
    pub bias: HeadBias,
}

/// Whether a head's projection has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadBias {
    /// It has none (GPT-2).
    None,
    /// One value a token (BERT).
    PerToken,
    /// One value a token that does not learn (Marian's `final_logits_bias`); `[1, v]` in checkpoints.
    Fixed,
}

/// Predicts tokens from hidden states.
#[derive(Debug)]
pub struct LmHead {
    transform: Option<(Affine, Activation, NormParams)>,
    projection: Output,
}

/// How hidden states become predictions.
#[derive(Debug)]
enum Output {
    Whole { weight: Param, tying: Tying, bias: Option<Param>, sample: SoftmaxSample },
    Adaptive(AdaptiveSoftmax),
}

impl LmHead {
    /// Builds the head; a tied projection shares the stack's token table.
    ///
    /// # Errors
    /// When a parameter cannot be had.
    pub fn build(b: &mut Builder<'_>, spec: &StackSpec, stack: &Stack, head: &HeadSpec) -> Result<Self> {
        let (d, e) = (spec.d_model, spec.d_embedding());
        if d != e && (head.transform == HeadTransform::None || spec.tying == Tying::Untied) {
            let expected = format!("d_model = {d}: the head predicts from the stream itself");
            return Err(Error::Spec { field: "token_width", found: e.to_string(), expected });
        }
        let transform = match head.transform {
            HeadTransform::None => None,
            HeadTransform::Dense => Some((
                Affine::build(b, "lm_head.transform", d, e, spec.layout, spec.init.std)?,
                spec.feed_forward.activation(),
                NormParams::of_width(b, "lm_head.norm", spec, e)?,
            )),
        };
        if let Some(input) = stack.embeddings().adaptive() {
            let projection = Output::Adaptive(AdaptiveSoftmax::build(b, spec, input)?);
            return Ok(LmHead { transform, projection });
        }
        let weight = match spec.tying {
            Tying::Tied => stack.embeddings().tokens().clone(),
            Tying::Untied => {
                b.weight("lm_head.weight", &[spec.vocab_size, d], Layout::OutIn, Init::Normal(spec.init.std))?
            }
        };
        let bias = match head.bias {
            HeadBias::None => None,
            HeadBias::PerToken => Some(b.param("lm_head.bias", &[spec.vocab_size], Init::Zeros)?),
            HeadBias::Fixed => Some(b.buffer("lm_head.bias", &[1, spec.vocab_size])?),
        };
        Ok(LmHead {
            transform,
            projection: Output::Whole { weight, tying: spec.tying, bias, sample: spec.softmax_sample },
        })
    }

    /// Packs the weights for inference; a tied projection's serves as the stack's token table in that form.
    ///
    /// # Errors
    /// None for a head that was built.
    pub fn prepare(&self, precision: Precision) -> Result<()> {
        if let Some((map, ..)) = &self.transform {
            map.prepare(precision)?;
        }
        match &self.projection {
            Output::Whole { weight, tying: Tying::Tied, .. } => Ok(weight.prepare_table(Layout::OutIn, precision)?),
            Output::Whole { weight, tying: Tying::Untied, .. } => Ok(weight.prepare(Layout::OutIn, precision)?),
            // Its weights are put together anew each time.
            Output::Adaptive(_) => Ok(()),
        }
    }

    fn transformed(&self, tape: &Tape, x: &Value) -> Result<Value> {
        match &self.transform {
            None => Ok(x.clone()),
            Some((map, activation, norm)) => {
                let x = map.forward(tape, x, *activation)?;
                let [_, y] = norm.with(tape, |norm| residual_norm(tape, &x, None, norm))?;
                Ok(y)
            }
        }
    }

    fn bias(tape: &Tape, bias: &Option<Param>) -> Result<Option<Value>> {
        match bias {
            Some(b) if b.dims().len() == 2 => Ok(Some(Value::constant(b.tensor().flatten_all()?))),
            other => Ok(other.as_ref().map(|b| tape.param(b))),
        }
    }

    /// Logits `[n, v]` of hidden states `[n, d]`; of an adaptive vocabulary log-probabilities, through which no gradient flows.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits(&self, tape: &Tape, x: &Value) -> Result<Value> {
        let x = self.transformed(tape, x)?;
        let (weight, bias) = match &self.projection {
            Output::Adaptive(softmax) => return within(Operation::Vocabulary, || softmax.log_probabilities(&x, tape)),
            Output::Whole { weight, bias, .. } => (tape.param(weight), Self::bias(tape, bias)?),
        };
        Ok(within(Operation::Vocabulary, || {
            linear(tape, &x, &weight, bias.as_ref(), Layout::OutIn, Activation::Identity)
        })?)
    }

    /// `scale` times the summed cross-entropy of the targets (`-100`: none) under the predictions from `x` `[n, d]`.
    ///
    /// # Errors
    /// When shapes do not fit or a target is beyond the vocabulary.
    pub fn loss(&self, tape: &Tape, x: &Value, targets: &[i32], scale: f64, smoothing: f64) -> Result<Value> {
        let x = self.transformed(tape, x)?;
        let (weight, bias) = match &self.projection {
            Output::Adaptive(softmax) => return softmax.loss(tape, &x, targets, scale, smoothing),
            Output::Whole { weight, bias, sample: SoftmaxSample::Drawn(n), .. }
                if tape.key().is_some() && *n < weight.dims()[0] =>
            {
                let key = tape.key().map_or_else(|| Key::new(0, 0), |key| key.child(u64::MAX - 1));
                let drawn = Drawn::new(key, *n, weight.dims()[0]);
                return crate::sampled::loss(tape, &x, (&tape.param(weight), bias.as_ref()), targets, &drawn, scale);
            }
            Output::Whole { weight, bias, .. } => (tape.param(weight), Self::bias(tape, bias)?),
        };
        let p = Projection { weight: &weight, bias: bias.as_ref(), layout: Layout::OutIn, smoothing, scale };
        Ok(cross_entropy(tape, &x, &p, targets)?)
    }

    /// The cross-entropy of each target (`-100`: none, 0), of which [`LmHead::loss`] is the sum. No gradient flows.
    ///
    /// # Errors
    /// As [`LmHead::loss`].
    pub fn losses(&self, tape: &Tape, x: &Value, targets: &[i32]) -> Result<Vec<f64>> {
        let x = self.transformed(tape, x)?;
        let (weight, bias) = match &self.projection {
            Output::Adaptive(softmax) => return softmax.losses(tape, &x, targets),
            Output::Whole { weight, bias, .. } => (tape.param(weight), Self::bias(tape, bias)?),
        };
        let p = Projection { weight: &weight, bias: bias.as_ref(), layout: Layout::OutIn, smoothing: 0.0, scale: 1.0 };
        Ok(cross_entropy_rows(tape, &x, &p, targets)?)
    }
}

/// The first token's hidden state through an affine map and an activation: tanh in BERT's summary of a sequence.
#[derive(Debug)]
pub struct Pooler {
    map: Affine,
    activation: Activation,
}

impl Pooler {
    /// Builds the pooler.
    ///
    /// # Errors
    /// When its parameters cannot be had.
    pub fn build(b: &mut Builder<'_>, spec: &StackSpec, activation: Activation) -> Result<Self> {
        let map = Affine::build(b, "pooler", spec.d_model, spec.d_model, spec.layout, spec.init.std)?;
        Ok(Pooler { map, activation })
    }

    /// Packs the weight for inference.
    ///
    /// # Errors
    /// None for a part that was built.
    pub fn prepare(&self, precision: Precision) -> Result<()> {
        self.map.prepare(precision)
    }

    /// One vector a sequence, `[sequences, d]`, from hidden states `[n, d]`, those of the first tokens after `rate` of dropout.
    ///
    /// # Errors
    /// When a sequence is empty.
    pub fn forward(&self, tape: &Tape, hidden: &Value, spans: &Spans, rate: f32) -> Result<Value> {
        if let Some(i) = spans.iter().position(|r| r.is_empty()) {
            return Err(Error::Length { what: "tokens of an empty sequence", found: i, expected: 1 });
        }
        let first: Vec<u32> = spans.iter().map(|r| r.start as u32).collect();
        let first = dropout(tape, &gather_rows(tape, hidden, &first)?, rate)?;
        self.map.forward(tape, &first, self.activation)
    }
}

/// What the outputs of a [`Classifier`] are to be, one row a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ClassTargets<'a> {
    /// One class of several, by cross-entropy; `-100` for a sequence that does not count.
    One(&'a [i32]),
    /// For each class whether it applies, from 0 to 1, by binary cross-entropy: `classes` numbers a sequence.
    Many(&'a [f32]),
    /// Numbers, by squared error: `classes` numbers a sequence.
    Numbers(&'a [f32]),
}

/// A linear map to a few classes (next sentence: 2), with or without bias.
#[derive(Debug)]
pub struct Classifier {
    weight: Param,
    bias: Option<Param>,
}

impl Classifier {
    /// Builds a classifier under a name. The weight is `[classes, d]`, whatever the stack's layout.
    ///
    /// # Errors
    /// When its parameters cannot be had.
    pub fn build(b: &mut Builder<'_>, name: &str, spec: &StackSpec, classes: usize, bias: bool) -> Result<Self> {
        let (shape, init) = ([classes, spec.d_hidden()], Init::Normal(spec.init.std));
        let weight = b.weight(format!("{name}.weight"), &shape, Layout::OutIn, init)?;
        let bias = if bias { Some(b.param(format!("{name}.bias"), &[classes], Init::Zeros)?) } else { None };
        Ok(Classifier { weight, bias })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Packs the weight for inference.
    ///
    /// # Errors
    /// None for a part that was built.
    pub fn prepare(&self, precision: Precision) -> Result<()> {
        Ok(self.weight.prepare(Layout::OutIn, precision)?)
    }

    /// Logits `[n, classes]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits(&self, tape: &Tape, x: &Value) -> Result<Value> {
        let bias = self.bias.as_ref().map(|b| tape.param(b));
        Ok(linear(tape, x, &tape.param(&self.weight), bias.as_ref(), Layout::OutIn, Activation::Identity)?)
    }

    /// `scale` times the loss summed over the rows of `x` `[n, d]`; where a row has several numbers as targets, its loss is the
    /// mean over them.
    ///
    /// # Errors
    /// When shapes do not fit or a target cannot be.
    pub fn loss(&self, tape: &Tape, x: &Value, targets: ClassTargets<'_>, scale: f64) -> Result<Value> {
        let (kind, numbers) = match targets {
            ClassTargets::One(targets) => {
                let (weight, bias) = (tape.param(&self.weight), self.bias.as_ref().map(|b| tape.param(b)));
                let layout = Layout::OutIn;
                let p = Projection { weight: &weight, bias: bias.as_ref(), layout, smoothing: 0.0, scale };
                return Ok(cross_entropy(tape, x, &p, targets)?);
            }
            ClassTargets::Many(numbers) => (Distance::Binary, numbers),
            ClassTargets::Numbers(numbers) => (Distance::Square, numbers),
        };
        let y = self.logits(tape, x)?;
        Ok(distance(tape, &y, kind, numbers, scale / self.classes().max(1) as f64)?)
    }
}

/// Tells for each token whether another stood in its place: an affine map, the stack's activation, and one number (ELECTRA's
/// discriminator, Clark et al. 2020, arXiv 2003.10555).
#[derive(Debug)]
pub struct Detector {
    map: Affine,
    activation: Activation,
    out: Classifier,
}

impl Detector {
    /// Builds the head.
    ///
    /// # Errors
    /// When its parameters cannot be had.
    pub fn build(b: &mut Builder<'_>, spec: &StackSpec) -> Result<Self> {
        let map = Affine::build(b, "detector.map", spec.d_model, spec.d_model, spec.layout, spec.init.std)?;
        let out = Classifier::build(b, "detector.out", spec, 1, true)?;
        Ok(Detector { map, activation: spec.feed_forward.activation(), out })
    }

    /// Packs the weights for inference.
    ///
    /// # Errors
    /// None for a head that was built.
    pub fn prepare(&self, precision: Precision) -> Result<()> {
        self.map.prepare(precision)?;
        self.out.prepare(precision)
    }

    /// The logarithm of the odds that a token was replaced, `[n, 1]`, from hidden states `[n, d]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits(&self, tape: &Tape, x: &Value) -> Result<Value> {
        self.out.logits(tape, &self.map.forward(tape, x, self.activation)?)
    }

    /// `scale` times the binary cross-entropy summed over tokens; `replaced` has 1 where a token was replaced and 0 elsewhere.
    ///
    /// # Errors
    /// When shapes do not fit, or a target is not within 0..=1.
    pub fn loss(&self, tape: &Tape, x: &Value, replaced: &[f32], scale: f64) -> Result<Value> {
        let x = self.map.forward(tape, x, self.activation)?;
        self.out.loss(tape, &x, ClassTargets::Many(replaced), scale)
    }
}
