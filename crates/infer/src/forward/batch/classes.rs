//! Labels of whole sequences in `batch.json`.

use super::{PaddedBatch, kind};
use crate::Result;
use genus_models::{Labels, Problem};
use genus_nn::ClassTargets;
use genus_ops::IGNORE;
use serde_json::Value;

/// What the rows are labelled with.
pub(crate) enum ClassLabels {
    /// A class each.
    One(Vec<i32>),
    /// For each class whether it applies.
    Many(Vec<f32>),
    /// Numbers.
    Numbers(Vec<f32>),
}

impl ClassLabels {
    pub fn targets(&self) -> ClassTargets<'_> {
        match self {
            ClassLabels::One(x) => ClassTargets::One(x),
            ClassLabels::Many(x) => ClassTargets::Many(x),
            ClassLabels::Numbers(x) => ClassTargets::Numbers(x),
        }
    }
}

impl PaddedBatch {
    /// The labels, as the configuration's problem takes them. Where it names none, a list of lists means that each class applies
    /// or not, as the reference understands it.
    pub(super) fn class_labels(&self, labels: &Labels) -> Result<Option<ClassLabels>> {
        let Some(value) = self.file.get("labels") else { return Ok(None) };
        let n = labels.names.len();
        let nested = value.as_array().is_some_and(|rows| rows.iter().any(Value::is_array));
        let problem = match labels.problem {
            None if nested && n > 1 => Problem::MultiLabel,
            _ => labels.problem(),
        };
        Ok(Some(match problem {
            Problem::SingleLabel => {
                let fits = |c: i64| (0..n as i64).contains(&c) || c == i64::from(IGNORE);
                let what = format!("a class from 0 to {}, or -100", n.saturating_sub(1));
                let classes = self.vector("labels", fits, &what)?.unwrap_or_default();
                if classes.iter().all(|&c| c == i64::from(IGNORE)) {
                    return Err(self.bad("labels", "only -100", "at least one class"));
                }
                ClassLabels::One(classes.iter().map(|&c| c as i32).collect())
            }
            Problem::MultiLabel => {
                ClassLabels::Many(self.numbers(value, n, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")?)
            }
            Problem::Regression => ClassLabels::Numbers(self.numbers(value, n, f32::is_finite, "a finite number")?),
        }))
    }

    /// `n` numbers a row, or one without a list around it where `n` is 1.
    fn numbers(&self, value: &Value, n: usize, ok: impl Fn(f32) -> bool, what: &str) -> Result<Vec<f32>> {
        let rows = value.as_array().ok_or_else(|| self.bad("labels", kind(value), "a list, one entry a row"))?;
        if rows.len() != self.rows {
            let expected = format!("{}, one a row of input_ids", self.rows);
            return Err(self.bad("labels", format!("{} entries", rows.len()), expected));
        }
        let mut out = Vec::with_capacity(rows.len() * n);
        for (r, row) in rows.iter().enumerate() {
            let place = format!("labels[{r}]");
            let list = match row {
                Value::Array(list) => list.as_slice(),
                one if n == 1 => std::slice::from_ref(one),
                other => return Err(self.bad(place, kind(other), format!("a list of {n} numbers"))),
            };
            if list.len() != n {
                return Err(self.bad(place, format!("{} numbers", list.len()), format!("{n}, one a label")));
            }
            for v in list {
                match v.as_f64().map(|x| x as f32).filter(|x| ok(*x)) {
                    Some(x) => out.push(x),
                    None if v.is_number() => return Err(self.bad(place, v.to_string(), what)),
                    None => return Err(self.bad(place, kind(v), what)),
                }
            }
        }
        Ok(out)
    }
}
