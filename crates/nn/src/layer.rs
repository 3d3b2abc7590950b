//! One layer: attention and a position-wise network, each with its residual connection and norm.

use crate::attention::{Around, Attention};
use crate::cross::{Cross, Reading};
use crate::memory::Carried;
use crate::{
    Builder, Encoded, Encoder, Error, FeedForward, Init, Mixing, NormKind, Placement, ResidualInit, Result,
    SequenceCache, StackSpec,
};
use genus_ops::{
    Activation, Branch, Dense, Gated, Layout, Norm, Param, Precision, Spans, Tape, Value, dropout, feed_forward,
    gated_feed_forward, gather_rows, linear, residual, residual_norm,
};
use std::sync::Arc;

/// The parameters of a norm.
#[derive(Debug)]
pub(crate) struct NormParams {
    weight: Param,
    bias: Param,
    kind: NormKind,
}

impl NormParams {
    pub fn build(b: &mut Builder<'_>, name: &str, spec: &StackSpec) -> Result<Self> {
        Self::of_width(b, name, spec, spec.d_model)
    }

    /// Of rows that are not as wide as the stream.
    pub fn of_width(b: &mut Builder<'_>, name: &str, spec: &StackSpec, width: usize) -> Result<Self> {
        let weight = b.param(format!("{name}.weight"), &[width], Init::Ones)?;
        let bias = b.param(format!("{name}.bias"), &[width], Init::Zeros)?;
        Ok(NormParams { weight, bias, kind: spec.norm })
    }

    /// Lends the norm to an operation.
    pub fn with<R>(&self, tape: &Tape, f: impl FnOnce(Norm<'_>) -> genus_ops::Result<R>) -> Result<R> {
        let (weight, bias) = (tape.param(&self.weight), tape.param(&self.bias));
        match self.kind {
            NormKind::Layer { eps } => Ok(f(Norm::Layer { weight: &weight, bias: &bias, eps })?),
        }
    }
}

/// The parameters of an affine map, or of a linear one.
#[derive(Debug)]
pub(crate) struct Affine {
    weight: Param,
    bias: Option<Param>,
    layout: Layout,
}

impl Affine {
    pub fn build(b: &mut Builder<'_>, name: &str, d_in: usize, d_out: usize, layout: Layout, std: f64) -> Result<Self> {
        let map = Self::linear(b, name, d_in, d_out, layout, std)?;
        Ok(Affine { bias: Some(b.param(format!("{name}.bias"), &[d_out], Init::Zeros)?), ..map })
    }

    /// Without bias.
    pub fn linear(
        b: &mut Builder<'_>,
        name: &str,
        d_in: usize,
        d_out: usize,
        layout: Layout,
        std: f64,
    ) -> Result<Self> {
        let shape = layout.shape(d_in, d_out);
        let weight = b.weight(format!("{name}.weight"), &shape, layout, Init::Normal(std))?;
        Ok(Affine { weight, bias: None, layout })
    }

    /// Packs the weight for inference.
    pub fn prepare(&self, precision: Precision) -> Result<()> {
        Ok(self.weight.prepare(self.layout, precision)?)
    }

    pub fn forward(&self, tape: &Tape, x: &Value, activation: Activation) -> Result<Value> {
        let bias = self.bias.as_ref().map(|b| tape.param(b));
        Ok(linear(tape, x, &tape.param(&self.weight), bias.as_ref(), self.layout, activation)?)
    }
}

/// The standard deviation of a projection into the residual stream.
pub(crate) fn residual_std(spec: &StackSpec) -> f64 {
    match spec.init.residual {
        ResidualInit::Plain => spec.init.std,
        ResidualInit::ByDepth => spec.init.std / (2.0 * spec.n_layers as f64).sqrt(),
    }
}

/// The position-wise network.
#[derive(Debug)]
enum Network {
    Dense {
        up: Param,
        up_bias: Param,
        down: Param,
        down_bias: Param,
        layout: Layout,
        activation: Activation,
        dropout: f32,
    },
    Gated {
        gate: Param,
        up: Param,
        down: Param,
        layout: Layout,
        activation: Activation,
    },
}

impl Network {
    fn build(b: &mut Builder<'_>, name: &str, spec: &StackSpec) -> Result<Self> {
        let (d, f, layout) = (spec.d_model, spec.d_ff, spec.layout);
        let (std, down_std) = (spec.init.std, residual_std(spec));
        match spec.feed_forward {
            FeedForward::Dense(activation) => {
                let mut map = |part: &str, d_in, d_out, std| {
                    let (shape, init) = (layout.shape(d_in, d_out), Init::Normal(std));
                    let weight = b.weight(format!("{name}.{part}.weight"), &shape, layout, init)?;
                    Ok::<_, Error>((weight, b.param(format!("{name}.{part}.bias"), &[d_out], Init::Zeros)?))
                };
                let ((up, up_bias), (down, down_bias)) = (map("up", d, f, std)?, map("down", f, d, down_std)?);
                let dropout = spec.dropout.inner;
                Ok(Network::Dense { up, up_bias, down, down_bias, layout, activation, dropout })
            }
            FeedForward::Gated(activation) => {
                let mut matrix = |part: &str, d_in, d_out, std| {
                    b.param(format!("{name}.{part}.weight"), &layout.shape(d_in, d_out), Init::Normal(std))
                };
                let (gate, up) = (matrix("gate", d, f, std)?, matrix("up", d, f, std)?);
                let down = matrix("down", f, d, down_std)?;
                Ok(Network::Gated { gate, up, down, layout, activation })
            }
        }
    }

    fn forward(&self, tape: &Tape, x: &Value) -> Result<Value> {
        Ok(match self {
            Network::Dense { up, up_bias, down, down_bias, layout, activation, dropout: rate }
                if *rate > 0.0 && tape.drops() =>
            {
                let (up, up_bias) = (tape.param(up), tape.param(up_bias));
                let inner = linear(tape, x, &up, Some(&up_bias), *layout, *activation)?;
                let (inner, down) = (dropout(tape, &inner, *rate)?, tape.param(down));
                linear(tape, &inner, &down, Some(&tape.param(down_bias)), *layout, Activation::Identity)?
            }
            Network::Dense { up, up_bias, down, down_bias, layout, activation, .. } => {
                let w = Dense {
                    up: &tape.param(up),
                    up_bias: &tape.param(up_bias),
                    down: &tape.param(down),
                    down_bias: &tape.param(down_bias),
                    layout: *layout,
                    activation: *activation,
                };
                feed_forward(tape, x, &w)?
            }
            Network::Gated { gate, up, down, layout, activation } => {
                let w = Gated {
                    gate: &tape.param(gate),
                    gate_bias: None,
                    up: &tape.param(up),
                    up_bias: None,
                    down: &tape.param(down),
                    down_bias: None,
                    layout: *layout,
                    activation: *activation,
                };
                gated_feed_forward(tape, x, &w)?
            }
        })
    }
}

/// The caches to append to and, where nothing else is asked of a last layer, the ends whose hidden states are wanted.
pub(crate) type Cached<'a> = Option<(&'a mut [SequenceCache], Option<&'a Ends>)>;

/// The last tokens of some of a batch's sequences.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) rows: Vec<u32>,
    /// One token in a sequence that counts, none in one that does not.
    pub(crate) spans: Spans,
}

impl Ends {
    /// The ends of those sequences that are `wanted`; empty ones have none.
    pub fn new(spans: &Spans, wanted: &[bool]) -> Self {
        let wanted: Vec<bool> = spans.iter().zip(wanted).map(|(r, w)| *w && !r.is_empty()).collect();
        let of = |(r, w): (std::ops::Range<usize>, &bool)| w.then(|| (r.end - 1) as u32);
        let rows = spans.iter().zip(&wanted).filter_map(of).collect();
        Ends { rows, spans: Spans::from_lengths(wanted.iter().map(|&w| usize::from(w))) }
    }

    /// Those rows of a value of the batch.
    pub fn of(&self, tape: &Tape, x: &Value) -> Result<Value> {
        Ok(gather_rows(tape, x, &self.rows)?)
    }
}

/// What flows between layers: the residual stream and a branch that the next norm will add to it, so that addition, dropout
/// and norm are one operation.
pub(crate) struct Stream {
    pub x: Value,
    pub branch: Option<Value>,
}

/// One layer of a stack.
#[derive(Debug)]
pub struct Layer {
    attention: Attention,
    attention_norm: NormParams,
    cross: Option<Cross>,
    network: Network,
    network_norm: NormParams,
    placement: Placement,
    dropout: f32,
    index: usize,
}

impl Layer {
    pub(crate) fn build(
        b: &mut Builder<'_>,
        spec: &StackSpec,
        index: usize,
        shared: Option<&[Param; 2]>,
    ) -> Result<Self> {
        let name = |part: &str| format!("layers.{index}.{part}");
        Ok(Layer {
            attention: Attention::build(b, &name("attention"), spec, index, shared)?,
            attention_norm: NormParams::build(b, &name("attention_norm"), spec)?,
            cross: match spec.encoder {
                Encoder::None => None,
                Encoder::Layers { .. } => Some(Cross::build(b, &name("cross_attention"), spec)?),
            },
            network: Network::build(b, &name("feed_forward"), spec)?,
            network_norm: NormParams::build(b, &name("feed_forward_norm"), spec)?,
            placement: spec.placement,
            dropout: spec.dropout.residual,
            index,
        })
    }

    /// Packs the weights for inference.
    pub(crate) fn prepare(&self, precision: Precision) -> Result<()> {
        self.attention.prepare(precision)?;
        if let Some(cross) = &self.cross {
            cross.prepare(precision)?;
        }
        match &self.network {
            Network::Dense { up, down, layout, .. } => {
                up.prepare(*layout, precision)?;
                Ok(down.prepare(*layout, precision)?)
            }
            // Its one fused operation takes weights as they lie.
            Network::Gated { .. } => Ok(()),
        }
    }

    /// The norm applied to the stream after its pending branch is added: `[sum, norm(sum)]`.
    pub(crate) fn join(tape: &Tape, s: &Stream, norm: &NormParams, dropout: f32) -> Result<[Value; 2]> {
        let branch = s.branch.as_ref().map(|value| Branch { value, dropout });
        norm.with(tape, |norm| residual_norm(tape, &s.x, branch, norm))
    }

    /// Keeps this layer's keys and values of an encoded batch, each sequence's in its cache.
    pub(crate) fn keep_encoded(&self, tape: &Tape, encoded: &Encoded, caches: &mut [SequenceCache]) -> Result<()> {
        self.cross.as_ref().map_or(Ok(()), |cross| cross.keep(tape, encoded, caches))
    }

    /// Runs the layer. In pre-norm stacks `before` receives the layer's input (the residual stream) once it is known. Where only
    /// ends are wanted, the stream goes on with their rows alone.
    pub(crate) fn forward(
        &self,
        tape: &Tape,
        s: Stream,
        spans: &Spans,
        around: &Around<'_>,
        mut cached: Cached<'_>,
        before: &mut dyn FnMut(&Value),
    ) -> Result<Stream> {
        let ends = cached.as_ref().and_then(|c| c.1);
        let narrowed = |x: Value| ends.map_or(Ok(x.clone()), |ends| ends.of(tape, &x));
        let norm = (self.placement == Placement::Pre).then_some(&self.attention_norm);
        let own = |cached: &mut Cached<'_>, x: &Value| {
            let cached = cached.as_mut().map(|(caches, ends)| (&mut **caches, *ends));
            self.attention.forward(tape, x, spans, self.index, around, norm, cached)
        };
        let dropout = self.dropout;
        // The attention to the encoder's sequence, of the rows that go on.
        let read = |cross: &Cross, cached: &Cached<'_>, x: &Value| {
            let from = match cached {
                Some((caches, _)) => Reading::Kept(caches),
                None => Reading::States(around.encoded.ok_or(Error::NotEncoded)?),
            };
            cross.forward(tape, x, ends.map_or(spans, |e| &e.spans), self.index, &from)
        };
        match self.placement {
            Placement::Pre => {
                let [x, y] = Self::join(tape, &s, &self.attention_norm, dropout)?;
                before(&x);
                let a = own(&mut cached, &y)?;
                let mut s = Stream { x: narrowed(x)?, branch: Some(a) };
                if let Some(cross) = &self.cross {
                    let [x, y] = Self::join(tape, &s, &cross.norm, dropout)?;
                    s = Stream { x, branch: Some(read(cross, &cached, &y)?) };
                }
                let [x, y] = Self::join(tape, &s, &self.network_norm, dropout)?;
                Ok(Stream { x, branch: Some(self.network.forward(tape, &y)?) })
            }
            Placement::Post => {
                before(&s.x);
                let a = own(&mut cached, &s.x)?;
                let s = Stream { x: narrowed(s.x)?, branch: Some(a) };
                let [_, mut x] = Self::join(tape, &s, &self.attention_norm, dropout)?;
                if let Some(cross) = &self.cross {
                    let branch = Some(read(cross, &cached, &x)?);
                    [_, x] = Self::join(tape, &Stream { x, branch }, &cross.norm, dropout)?;
                }
                let branch = Some(self.network.forward(tape, &x)?);
                let [_, x] = Self::join(tape, &Stream { x, branch }, &self.network_norm, dropout)?;
                Ok(Stream { x, branch: None })
            }
        }
    }
}

impl Layer {
    /// As [`Layer::forward`] without a cache, but forgotten until the backward pass runs it again. A pending branch is added
    /// before, so that a single matrix is held for each layer; the sum has the bits that it has inside the norm.
    pub(crate) fn recomputed(
        layer: &Arc<Self>,
        tape: &Tape,
        s: Stream,
        spans: &Spans,
        encoded: Option<&Encoded>,
        carried: Option<&(Arc<Carried>, Value)>,
        before: &mut dyn FnMut(&Value),
    ) -> Result<Stream> {
        let x = match &s.branch {
            Some(value) => residual(tape, &s.x, Branch { value, dropout: layer.dropout })?,
            None => s.x.clone(),
        };
        before(&x);
        drop(s);
        let (layer, spans, carried) = (Arc::clone(layer), spans.clone(), carried.cloned());
        let mut inputs = vec![&x];
        inputs.extend(encoded.map(|e| &e.states));
        let encoded_spans = encoded.map(|e| e.spans.clone());
        let outputs = tape.recompute(&inputs, move |tape, inputs| {
            let s = Stream { x: inputs[0].clone(), branch: None };
            let encoded = encoded_spans.as_ref().map(|s| Encoded { states: inputs[1].clone(), spans: s.clone() });
            let around = Around {
                encoded: encoded.as_ref(),
                carried: carried.as_ref().map(|c| &*c.0),
                distances: carried.as_ref().map(|c| &c.1),
            };
            let s = layer.forward(tape, s, &spans, &around, None, &mut |_| {})?;
            Ok::<_, Error>(std::iter::once(s.x).chain(s.branch).collect())
        })?;
        let mut outputs = outputs.into_iter();
        let x = outputs.next().ok_or(Error::Length { what: "outputs of a layer", found: 0, expected: 1 })?;
        Ok(Stream { x, branch: outputs.next() })
    }
}

/// Checks that a stack may be run with a cache.
pub(crate) fn check_cache(spec: &StackSpec, spans: &Spans, caches: Option<&[SequenceCache]>) -> Result<()> {
    let Some(caches) = caches else { return Ok(()) };
    if !spec.sees_past_only() || spec.mixing != Mixing::Attention {
        return Err(Error::Spec {
            field: "attend",
            found: format!("{:?} in {:?} directions by {:?}", spec.attend, spec.directions, spec.mixing),
            expected: "attention to the past: others have no cache".into(),
        });
    }
    if caches.len() != spans.len() {
        return Err(Error::Length { what: "number of caches", found: caches.len(), expected: spans.len() });
    }
    Ok(())
}
