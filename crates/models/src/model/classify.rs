//! The part of a model that classifies sequences or tokens.

use super::Model;
use crate::registry::Classified;
use crate::{Labels, Result};
use genus_nn::{Classifier, Input};
use genus_ops::{Tape, Value, dropout, gather_rows};
use std::ops::Range;

impl Model {
    /// The head that classifies sequences, by what [`Model::summary`] gives, or tokens, by what [`Model::tokens`] gives.
    ///
    /// # Errors
    /// When the task has none.
    pub fn classifier(&self) -> Result<&Classifier> {
        self.part(self.parts.classifier.as_ref(), "head that classifies sequences or tokens")
    }

    /// The classes of a model that classifies sequences or tokens; two without names for other tasks.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The hidden states of tokens as their classifier takes them: after dropout at the rate that the reference's class for this member
    /// has.
    ///
    /// # Errors
    /// When an operation fails.
    pub fn tokens(&self, tape: &Tape, hidden: &Value) -> Result<Value> {
        let rate = match (self.family.classified, self.family.classifier_dropout) {
            (Classified::LastToken, _) => self.labels.dropout.unwrap_or(0.1),
            // Its field is for sequences alone (DistilBERT).
            (_, (_, Some(_))) => self.spec.dropout.residual,
            _ => self.labels.dropout.unwrap_or(self.spec.dropout.residual),
        };
        Ok(dropout(tape, hidden, rate)?)
    }

    /// One vector a sequence, `[sequences, d]`, off which its class is read: the pooler's after dropout, or the last token's
    /// hidden state. As in the reference, the last token is the last one that is not `pad_token_id`, if config.json has that, and
    /// the first one of a sequence that is all padding.
    ///
    /// # Errors
    /// When the task has no classifier or a sequence is empty.
    pub fn summary(&self, tape: &Tape, hidden: &Value, input: &Input) -> Result<Value> {
        let rate = self.labels.dropout.unwrap_or(self.spec.dropout.residual);
        let before = match self.family.classified {
            Classified::Pooled => Some(0.0),
            Classified::PooledAfterDropout => Some(rate),
            Classified::LastToken => None,
        };
        if let Some(before) = before {
            let pooled = self.pooler()?.forward(tape, hidden, &input.spans, before)?;
            return Ok(dropout(tape, &pooled, rate)?);
        }
        if let Some(found) = input.spans.iter().position(|r| r.is_empty()) {
            return Err(genus_nn::Error::Length { what: "tokens of an empty sequence", found, expected: 1 }.into());
        }
        let pad = self.config_field("pad_token_id").and_then(|v| v.as_u64());
        let last = |r: Range<usize>| {
            let found = r.clone().rev().find(|&i| Some(u64::from(input.ids[i])) != pad);
            found.unwrap_or(r.start) as u32
        };
        let rows: Vec<u32> = input.spans.iter().map(last).collect();
        Ok(gather_rows(tape, hidden, &rows)?)
    }
}
