//! How much context a model makes use of, among others (Dai et al. 2019, arXiv 1901.02860, section 4.3 and appendix C).
//!
//! With `l_i(c, t)` the loss of model `i` at token `t` when it sees the `c` tokens before it, the group's baseline for a short context
//! is `b(c, t) = min_i l_i(c, t)`. Over the hard tokens `T`, the share `r` with the largest baselines, a longer context `c'` gives model
//! `i` the relative loss `f_i(c, c') = mean_T min(b(c, t), l_i(c', t))` and, as a share of the perplexity, the gain
//! `g_i(c, c') = (exp f_i(c, c) - exp f_i(c, c')) / exp f_i(c, c)`. The relative effective context length of a model is the first
//! context from which going on to the next one gains no more than a threshold.

use crate::{Error, Result};

/// Losses of a group of models on the same tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct ContextLosses {
    contexts: Vec<usize>,
    /// For each model and each context, the loss of each token.
    losses: Vec<Vec<Vec<f64>>>,
}

/// What a model makes of longer and longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveContext {
    /// The relative effective context length.
    pub length: usize,
    /// Whether the next context gained too little; otherwise none longer was measured, and the length may be more.
    pub settled: bool,
    /// The relative gain of each context over the one before, all of them.
    pub gains: Vec<f64>,
}

impl ContextLosses {
    /// `losses[model][context][token]`, in nats, for rising `contexts`.
    ///
    /// # Errors
    /// When there are less than two contexts or they do not rise, there is no model or no token, or lists have unequal lengths.
    pub fn new(contexts: Vec<usize>, losses: Vec<Vec<Vec<f64>>>) -> Result<Self> {
        if contexts.len() < 2 || contexts[0] == 0 || contexts.windows(2).any(|w| w[0] >= w[1]) {
            return Err(Error::option("contexts", format!("{contexts:?}"), "at least two that rise, from 1 on"));
        }
        let tokens = losses.first().and_then(|m| m.first()).map_or(0, Vec::len);
        if tokens == 0 {
            return Err(Error::option("losses", "none", "those of at least one model and one token"));
        }
        for model in &losses {
            if model.len() != contexts.len() {
                return Err(Error::option("contexts of a model", model.len(), contexts.len().to_string()));
            }
            if let Some(bad) = model.iter().find(|l| l.len() != tokens) {
                return Err(Error::option("losses of a context", bad.len(), tokens.to_string()));
            }
        }
        Ok(ContextLosses { contexts, losses })
    }

    /// The contexts.
    pub fn contexts(&self) -> &[usize] {
        &self.contexts
    }

    /// The mean loss of a model at each context.
    pub fn means(&self, model: usize) -> Vec<f64> {
        self.losses[model].iter().map(|l| mean(l.iter().copied())).collect()
    }

    /// The relative effective context length of a model of the group on the `hardest` share of the tokens.
    ///
    /// # Errors
    /// When there is no such model, the share is not in (0, 1], or the threshold is not a number.
    pub fn effective(&self, model: usize, hardest: f64, threshold: f64) -> Result<EffectiveContext> {
        if model >= self.losses.len() {
            return Err(Error::option("model", model, format!("below {}", self.losses.len())));
        }
        if !(hardest > 0.0 && hardest <= 1.0) {
            return Err(Error::option("hardest", hardest, "a share above 0, at most 1"));
        }
        if !threshold.is_finite() {
            return Err(Error::option("threshold", threshold, "a number"));
        }
        let gains: Vec<f64> = (1..self.contexts.len()).map(|long| self.gain(model, long, hardest)).collect();
        let end = gains.iter().position(|&g| g <= threshold);
        Ok(EffectiveContext { length: self.contexts[end.unwrap_or(gains.len())], settled: end.is_some(), gains })
    }

    /// `g_i(c, c')` of the context number `long` over the one before it.
    fn gain(&self, model: usize, long: usize, hardest: f64) -> f64 {
        let tokens = self.losses[0][0].len();
        let best = |t: usize| self.losses.iter().map(|m| m[long - 1][t]).fold(f64::INFINITY, f64::min);
        let baseline: Vec<f64> = (0..tokens).map(best).collect();
        let mut order: Vec<usize> = (0..tokens).collect();
        order.sort_by(|&a, &b| baseline[b].total_cmp(&baseline[a]));
        let hard = &order[..((tokens as f64 * hardest).round() as usize).clamp(1, tokens)];
        let short = mean(hard.iter().map(|&t| baseline[t])).exp();
        let longer = mean(hard.iter().map(|&t| baseline[t].min(self.losses[model][long][t]))).exp();
        (short - longer) / short
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1);
    values.sum::<f64>() / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Losses of tokens that each need a context of their own: 3 nats until it is reached, then 1.
    fn steps(contexts: &[usize], needs: &[usize], most: usize) -> Vec<Vec<f64>> {
        let loss = |c: usize, n: usize| if c.min(most) >= n { 1.0 } else { 3.0 };
        contexts.iter().map(|&c| needs.iter().map(|&n| loss(c, n)).collect()).collect()
    }

    #[test]
    fn a_model_that_stops_gaining_at_a_known_context() {
        let contexts = [10, 20, 30, 40, 50];
        let needs = [5, 15, 25, 35, 45, 45];
        // The first sees all, the second 30 tokens at most.
        let losses = vec![steps(&contexts, &needs, 99), steps(&contexts, &needs, 30)];
        let group = ContextLosses::new(contexts.to_vec(), losses).unwrap();
        let far = group.effective(0, 1.0, 0.01).unwrap();
        assert_eq!((far.length, far.settled), (50, false));
        let near = group.effective(1, 1.0, 0.01).unwrap();
        assert_eq!((near.length, near.settled), (30, true));
        // From 10 to 20 one token of six falls from 3 to 1: the perplexity by a factor exp(-2/6).
        for found in [&far, &near] {
            assert!((found.gains[0] - (1.0 - (-2.0f64 / 6.0).exp())).abs() < 1e-12, "{found:?}");
        }
        assert_eq!(&near.gains[2..], [0.0, 0.0]);
        // Of the hardest third (two tokens, both hard until 45) nothing is gained before that; sorting keeps the order of equals, so
        // that tokens 1 and 2 are the hard ones at 10, 2 and 3 at 20, and so on: one of two falls each time.
        let third = group.effective(0, 1.0 / 3.0, 0.01).unwrap();
        assert!((third.gains[0] - (1.0 - (-1.0f64).exp())).abs() < 1e-12, "{third:?}");
        // Both of the last two fall at 50.
        assert!((third.gains[3] - (1.0 - (-2.0f64).exp())).abs() < 1e-12, "{third:?}");
        assert_eq!(group.means(0)[4], 1.0);
    }

    #[test]
    fn the_baseline_is_the_groups() {
        // The second model is bad with a short context and no better than the first with a long one: it gains nothing on the group,
        // though its own loss falls by three nats.
        let losses = vec![vec![vec![2.0; 4]; 2], vec![vec![5.0; 4], vec![2.0; 4]]];
        let group = ContextLosses::new(vec![1, 2], losses).unwrap();
        let found = group.effective(1, 0.5, 0.0).unwrap();
        assert_eq!((found.length, found.settled, found.gains[0]), (1, true, 0.0));
        // A loss that grows with the context does not count as one: the minimum is taken token by token.
        let losses = vec![vec![vec![2.0, 2.0], vec![9.0, 1.0]]];
        let group = ContextLosses::new(vec![1, 2], losses).unwrap();
        assert!((group.effective(0, 1.0, 0.0).unwrap().gains[0] - (1.0 - (-0.5f64).exp())).abs() < 1e-12);
    }

    #[test]
    fn lists_that_do_not_fit_are_errors() {
        let one = || vec![vec![vec![1.0, 2.0]; 2]];
        for (contexts, losses, expected) in [
            (vec![4], vec![vec![vec![1.0]]], "contexts: found [4], expected at least two"),
            (vec![4, 4], one(), "contexts: found [4, 4]"),
            (vec![1, 2], vec![], "losses: found none"),
            (vec![1, 2, 3], one(), "contexts of a model: found 2, expected 3"),
            (vec![1, 2], vec![vec![vec![1.0], vec![1.0, 2.0]]], "losses of a context: found 2, expected 1"),
        ] {
            let found = ContextLosses::new(contexts, losses).unwrap_err().to_string();
            assert!(found.contains(expected), "{found}");
        }
        let group = ContextLosses::new(vec![1, 2], one()).unwrap();
        for (model, hardest, threshold, expected) in [
            (1, 1.0, 0.0, "model: found 1"),
            (0, 0.0, 0.0, "hardest: found 0"),
            (0, 1.0, f64::NAN, "threshold: found NaN"),
        ] {
            let found = group.effective(model, hardest, threshold).unwrap_err().to_string();
            assert!(found.contains(expected), "{found}");
        }
    }
}
