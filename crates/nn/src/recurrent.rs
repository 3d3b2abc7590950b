//! Layers of long short-term memory.

use crate::{Builder, CellOutput, Error, Init, Mixing, Result, Skip, StackSpec};
use genus_ops::{
    Activation, Branch, Layout, Lstm, Param, Precision, Spans, Tape, Value, dropout, linear, lstm, reshape, residual,
};
use std::sync::Arc;

/// One layer that reads from left to right.
#[derive(Debug)]
pub(crate) struct RecurrentLayer {
    /// From the layer's input to the gates, `[4 h, d]`.
    input: Param,
    bias: Param,
    /// From the last output to the gates, `[4 h, d]`.
    recurrent: Param,
    /// `[d, h]`.
    projection: Option<Param>,
    cell_clip: Option<f32>,
    output_clip: Option<f32>,
    skip: bool,
    /// Of the layer's input.
    dropout: f32,
}

impl RecurrentLayer {
    pub fn build(b: &mut Builder<'_>, spec: &StackSpec, index: usize) -> Result<Self> {
        let Mixing::Recurrent { output, cell_clip, output_clip, skip } = spec.mixing else {
            let expected = "recurrent layers".into();
            return Err(Error::Spec { field: "mixing", found: format!("{:?}", spec.mixing), expected });
        };
        let (d, h, name) = (spec.d_model, spec.d_ff, format!("layers.{index}"));
        let mut matrix = |part: &str, d_in: usize, d_out: usize| {
            // Glorot and Bengio 2010; recurrences are sensitive to the size of their weights.
            let init = Init::Normal((2.0 / (d_in + d_out) as f64).sqrt());
            b.weight(format!("{name}.{part}.weight"), &[d_out, d_in], Layout::OutIn, init)
        };
        let (input, recurrent) = (matrix("input", d, 4 * h)?, matrix("recurrent", d, 4 * h)?);
        let projection = match output {
            CellOutput::Cells => None,
            CellOutput::Projected => Some(matrix("projection", h, d)?),
        };
        // Forget gates begin open (Gers et al. 2000; Jozefowicz et al. 2015).
        let bias = b.param(format!("{name}.input.bias"), &[4 * h], Init::OnesWithin { from: h, to: 2 * h })?;
        Ok(RecurrentLayer {
            input,
            bias,
            recurrent,
            projection,
            cell_clip,
            output_clip,
            skip: skip == Skip::AfterFirst && index > 0,
            // What the first layer reads was dropped as embeddings.
            dropout: if index == 0 { 0.0 } else { spec.dropout.residual },
        })
    }

    /// Packs the weights for inference.
    pub fn prepare(&self, precision: Precision) -> Result<()> {
        let maps = [&self.input, &self.recurrent].into_iter().chain(&self.projection);
        Ok(maps.into_iter().try_for_each(|w| w.prepare(Layout::OutIn, precision))?)
    }

    /// `[n, d]` to `[n, d]`.
    pub fn forward(&self, tape: &Tape, x: &Value, spans: &Spans) -> Result<Value> {
        // A value of the layer's own: where others read its input too (a mean of all layers), the layer's gradients are summed first,
        // as they are when it is run again in the backward pass.
        let x = reshape(tape, x, x.dims())?;
        let x = dropout(tape, &x, self.dropout)?;
        let (input, bias) = (tape.param(&self.input), tape.param(&self.bias));
        let gates = linear(tape, &x, &input, Some(&bias), Layout::OutIn, Activation::Identity)?;
        let (recurrent, projection) = (tape.param(&self.recurrent), self.projection.as_ref().map(|p| tape.param(p)));
        let w = Lstm {
            recurrent: &recurrent,
            projection: projection.as_ref(),
            cell_clip: self.cell_clip,
            projection_clip: self.output_clip,
        };
        let y = lstm(tape, &gates, &w, spans)?;
        if !self.skip {
            return Ok(y);
        }
        Ok(residual(tape, &y, Branch { value: &x, dropout: 0.0 })?)
    }

    /// As [`RecurrentLayer::forward`], forgotten until the backward pass runs it again.
    pub fn recomputed(layer: &Arc<Self>, tape: &Tape, x: &Value, spans: &Spans) -> Result<Value> {
        let (layer, spans) = (Arc::clone(layer), spans.clone());
        let outputs =
            tape.recompute(&[x], move |tape, inputs| Ok::<_, Error>(vec![layer.forward(tape, &inputs[0], &spans)?]))?;
        outputs.into_iter().next().ok_or(Error::Length { what: "outputs of a layer", found: 0, expected: 1 })
    }
}
