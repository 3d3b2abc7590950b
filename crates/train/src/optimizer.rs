//! AdamW over a model's parameters.

use crate::{Error, Result};
use genus_checkpoint::names::nearest_names;
use genus_models::Model;
use genus_ops::{AdamW, Moments, Param, Tensor, adamw, check_reached, grad_norm};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// AdamW's numbers (Loshchilov and Hutter 2019, arXiv 1711.05101).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices; biases and norms have none.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them.
    pub clip: f64,
}

struct Group {
    param: Param,
    moments: Moments,
    weight_decay: f64,
}

/// AdamW with its moments for the parameters that learn.
pub struct Optimizer {
    groups: Vec<Group>,
    settings: OptimizerSettings,
    updates: u64,
}

impl Optimizer {
    /// A fresh optimiser. Frozen parameters get no moments.
    ///
    /// # Errors
    /// When nothing learns, or memory is short.
    pub fn new(params: &[Param], settings: OptimizerSettings) -> Result<Self> {
        let mut groups = Vec::new();
        for param in params.iter().filter(|p| p.trainable()) {
            let decays = param.tensor().rank() >= 2;
            let weight_decay = if decays { settings.weight_decay } else { 0.0 };
            groups.push(Group { param: param.clone(), moments: Moments::zeros(param)?, weight_decay });
        }
        if groups.is_empty() {
            return Err(Error::AllFrozen { count: params.len() });
        }
        Ok(Optimizer { groups, settings, updates: 0 })
    }

    fn params(&self) -> impl Iterator<Item = &Param> {
        self.groups.iter().map(|g| &g.param)
    }

    /// The global norm of the gradients.
    ///
    /// # Errors
    /// When a parameter that learns was not reached by the backward pass; all of them are named.
    pub fn norm(&self) -> Result<f64> {
        check_reached(self.params())?;
        Ok(grad_norm(self.params())?)
    }

    /// One update with gradients of global norm `norm`, which it clears.
    ///
    /// # Errors
    /// When an operation fails.
    pub fn update(&mut self, lr: f64, norm: f64) -> Result<()> {
        self.updates += 1;
        let s = self.settings;
        // The small addend is PyTorch's `clip_grad_norm_`.
        let grad_scale = if s.clip > 0.0 { (s.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        for g in &mut self.groups {
            let hyper = AdamW {
                lr,
                beta1: s.beta1,
                beta2: s.beta2,
                eps: s.eps,
                weight_decay: g.weight_decay,
                step: self.updates,
                grad_scale,
            };
            adamw(&g.param, &mut g.moments, &hyper)?;
        }
        Ok(())
    }

    /// Forgets the gradients.
    pub fn clear(&self) {
        self.params().for_each(Param::clear_grad);
    }

    /// Number of updates made.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The first and second moments by name.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = |g: &Group| {
            let (first, second) = (g.moments.first.clone(), g.moments.second.clone());
            [(format!("first.{}", g.param.name()), first), (format!("second.{}", g.param.name()), second)]
        };
        self.groups.iter().flat_map(named).collect()
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// When a moment is missing, too many are there, or one has another shape; `checkpoint` is for the message.
    pub fn restore(&mut self, state: Vec<(String, Tensor)>, updates: u64, checkpoint: &Path) -> Result<()> {
        let mut state: BTreeMap<String, Tensor> = state.into_iter().collect();
        let error = |what: String, found: String, expected: String| Error::State {
            checkpoint: checkpoint.to_owned(),
            what,
            found,
            expected,
        };
        for g in &mut self.groups {
            let tensor = g.param.tensor();
            let shape = tensor.dims().to_vec();
            let mut take = |which: &str| {
                let name = format!("{which}.{}", g.param.name());
                match state.remove(&name) {
                    Some(t) if t.dims() == shape => Ok(t.to_device(tensor.device()).map_err(genus_ops::Error::from)?),
                    Some(t) => Err(error(name, format!("shape {:?}", t.dims()), format!("{shape:?}"))),
                    None => Err(error(name, "nothing".into(), format!("a tensor of shape {shape:?}"))),
                }
            };
            g.moments = Moments { first: take("first")?, second: take("second")? };
        }
        if let Some(name) = state.keys().next() {
            return Err(error(name.clone(), "moments".into(), "none, as that parameter does not learn".into()));
        }
        self.updates = updates;
        Ok(())
    }
}

/// Freezes the parameters whose own name or checkpoint name fits one of the patterns, where `*` stands for any text.
/// Returns how many.
///
/// # Errors
/// When a pattern fits nothing; the names most like it are listed.
pub fn freeze(model: &Model, patterns: &[String]) -> Result<usize> {
    let mut named: Vec<(String, &Param)> = Vec::new();
    for p in model.params() {
        named.push((p.name().to_owned(), p));
        named.extend(model.file_names(p)?.into_iter().map(|n| (n, p)));
    }
    for pattern in patterns {
        let mut any = false;
        for (_, p) in named.iter().filter(|(name, _)| fits(pattern, name)) {
            p.set_trainable(false);
            any = true;
        }
        if !any {
            let plain = pattern.replace('*', "");
            let nearest = nearest_names(&plain, named.iter().map(|(n, _)| n.as_str()), 3);
            return Err(Error::Freeze { pattern: pattern.clone(), nearest });
        }
    }
    Ok(model.params().iter().filter(|p| !p.trainable() && !model.is_buffer(p)).count())
}

/// Whether `name` is `pattern` with some text in place of each `*`.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns() {
        for (pattern, name, yes) in [
            ("wte.weight", "wte.weight", true),
            ("wte", "wte.weight", false),
            ("h.*.attn.*", "h.10.attn.c_attn.bias", true),
            ("h.*.attn.*", "h.10.mlp.c_fc.bias", false),
            ("*.bias", "ln_f.bias", true),
            ("*.bias", "ln_f.bias2", false),
            ("*", "anything", true),
            ("a*a", "a", false),
            ("*b*b", "ab", false),
        ] {
            assert_eq!(fits(pattern, name), yes, "{pattern} {name}");
        }
    }
}
