//! How much arithmetic a model's definition needs.

use genus_nn::{CellOutput, Mixing, Positions, StackSpec, Vocabulary};
use genus_ops::Spans;

/// Floating-point operations of matrix products: `2 m n k` each, on real tokens only, causal attention as a triangle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flops {
    /// One forward pass.
    pub forward: f64,
}

impl Flops {
    /// Of a batch with the given spans, of which `predicted` rows go through a projection to the vocabulary (after a square
    /// network of the head where `transform`).
    pub fn of(spec: &StackSpec, spans: &Spans, predicted: usize, transform: bool) -> Self {
        let (d, q, kv) = (spec.d_model as f64, spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
        let network = 2.0 * d * (spec.feed_forward.maps() * spec.d_ff) as f64;
        let per_token = 2.0 * d * (q + 2 * kv) as f64 + 2.0 * q as f64 * d + network;
        if let Mixing::Recurrent { output, .. } = spec.mixing {
            // From the input and from the last output to four gates a cell, and the projection.
            let projection = if output == CellOutput::Projected { spec.d_ff } else { 0 };
            let layer = 2.0 * d * (8 * spec.d_ff + projection) as f64;
            return Self::with_ends(
                spec,
                spans.total(),
                layer * (spec.n_layers * spans.total()) as f64,
                predicted,
                transform,
            );
        }
        let mut forward = per_token * spec.n_layers as f64 * spans.total() as f64;
        // Keys and values of a memory, and scores of distances with their map.
        let memory = spec.memory_length();
        let relative = matches!(spec.positions, Positions::Relative { .. });
        let longest = spans.iter().map(|r| r.len()).max().unwrap_or(0);
        let distances = if relative { memory + longest } else { 0 };
        let rows = 2 * kv * memory * spans.len() + q * distances;
        forward += 2.0 * d * rows as f64 * spec.n_layers as f64;
        for layer in 0..spec.n_layers {
            let mask = spec.attention(layer).mask;
            let seen = |r: std::ops::Range<usize>| -> usize {
                (0..r.len()).map(|p| mask.visible(memory + p, memory + r.len()).len()).sum()
            };
            let products = if relative { 6.0 } else { 4.0 };
            forward += products * q as f64 * spans.iter().map(seen).sum::<usize>() as f64;
        }
        Self::with_ends(spec, spans.total(), forward, predicted, transform)
    }

    /// With the layers of the second direction, where there is one, a network over characters, and the head.
    fn with_ends(spec: &StackSpec, tokens: usize, layers: f64, predicted: usize, transform: bool) -> Self {
        let (d, e) = (spec.d_model as f64, spec.d_embedding() as f64);
        let directions = (spec.d_hidden() / spec.d_model.max(1)) as f64;
        let mut forward = directions * layers;
        if spec.d_embedding() != spec.d_model {
            forward += 2.0 * d * e * tokens as f64;
        }
        if let Vocabulary::Characters(c) = &spec.vocabulary {
            let wide = c.patterns() as f64;
            let windows = |&(width, n): &(usize, usize)| ((c.length + 1 - width) * width * c.d_character * n) as f64;
            let word = c.filters.iter().map(windows).sum::<f64>() + c.highways as f64 * 2.0 * wide * wide + wide * d;
            // As if every word were another one.
            forward += 2.0 * word * tokens as f64;
        }
        let output = match &spec.vocabulary {
            Vocabulary::Whole | Vocabulary::Characters(_) => 2.0 * e * spec.vocab_size as f64,
            // The first step; how often the second is taken depends on the text.
            Vocabulary::Adaptive { cutoffs, divisor, d_embedding, .. } => {
                let frequent = cutoffs.first().copied().unwrap_or(spec.vocab_size) + cutoffs.len();
                let map = if *divisor == 1 && *d_embedding == spec.d_model { 0.0 } else { d };
                2.0 * *d_embedding as f64 * (frequent as f64 + map)
            }
        };
        let head = output + if transform { 2.0 * d * e } else { 0.0 };
        Flops { forward: forward + head * predicted as f64 }
    }

    /// Of an encoder and the decoder's attention to it, for targets and their sources.
    pub fn of_encoder(spec: &StackSpec, spans: &Spans, sources: &Spans) -> Self {
        let Some(encoder) = spec.encoder() else { return Flops { forward: 0.0 } };
        let (d, q, kv) = (spec.d_model as f64, spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
        let maps = 4.0 * d * (q * spans.total() + kv * sources.total()) as f64;
        let seen: usize = spans.iter().zip(sources.iter()).map(|(t, s)| t.len() * s.len()).sum();
        let cross = spec.n_layers as f64 * (maps + 4.0 * q as f64 * seen as f64);
        Flops { forward: Flops::of(&encoder, sources, 0, false).forward + cross }
    }

    /// Of translating by beams: an encoder reads `sources`; for each, the decoder reads `rows` tokens over all beams and steps, which
    /// see `seen` tokens before themselves together. Every one of them is predicted from.
    pub fn of_search(spec: &StackSpec, searches: impl IntoIterator<Item = (usize, usize, usize)>) -> f64 {
        let q = (spec.n_heads * spec.d_head * spec.n_layers) as f64;
        let one = Flops::of(spec, &Spans::single(1), 1, false).forward;
        let search = |(source, rows, seen)| {
            let encoded = Flops::of_encoder(spec, &Spans::single(rows), &Spans::single(source)).forward;
            encoded + one * rows as f64 + 4.0 * q * seen as f64
        };
        searches.into_iter().map(search).sum()
    }

    /// Forward and backward: each product has two in the backward pass; recomputation does not count.
    pub fn training(self) -> f64 {
        3.0 * self.forward
    }

    /// Of reading a prompt of `n` tokens to the logits after its last one: of the last layer's other tokens only keys and values are
    /// needed.
    pub fn prompt(spec: &StackSpec, n: usize) -> f64 {
        let (spans, d) = (Spans::single(n), spec.d_model as f64);
        let all = Flops::of(spec, &spans, 1, false).forward;
        let Some(last) = spec.n_layers.checked_sub(1) else { return all };
        let kv = 4.0 * d * (spec.n_kv_heads * spec.d_head) as f64;
        let one =
            |layers| Flops::of(&StackSpec { n_layers: layers, ..spec.clone() }, &Spans::single(1), 0, false).forward;
        let q = (spec.n_heads * spec.d_head) as f64;
        // A token's products in one layer, without its attention to itself.
        let per_token = one(1) - 4.0 * q;
        let mask = spec.attention(last).mask;
        let unseen: usize = (0..n.saturating_sub(1)).map(|p| mask.visible(p, n).len()).sum();
        all - n.saturating_sub(1) as f64 * (per_token - kv) - 4.0 * q * unseen as f64
    }

    /// Of one decoding step of a sequence whose cache holds `seen` tokens.
    pub fn decode(spec: &StackSpec, seen: usize) -> f64 {
        let one = Flops::of(spec, &Spans::single(1), 1, false).forward;
        one + 4.0 * (spec.n_heads * spec.d_head * spec.n_layers * seen) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use genus_nn::FeedForward;
    use genus_ops::Activation;

    #[test]
    fn gpt2_at_context_512() {
        let (_, preset) = crate::find_preset("gpt2").unwrap();
        let f = Flops::of(&(preset.spec)(), &Spans::from_lengths([512; 4]), 2048, false);
        // 769.5 MFLOP a token, counted by hand from the definition.
        assert!((f.training() / 2048.0 / 1e6 - 769.5).abs() < 0.1, "{}", f.training() / 2048.0 / 1e6);
    }

    #[test]
    fn a_prompt_needs_less_of_the_last_layer() {
        let (_, preset) = crate::find_preset("gpt2").unwrap();
        let spec = (preset.spec)();
        assert_eq!(Flops::prompt(&spec, 1), Flops::of(&spec, &Spans::single(1), 1, false).forward);
        // 10 d^2 weights of a layer's 12 d^2, and its attention, for one token alone.
        let (d, n) = (768.0, 100.0);
        let saved = Flops::of(&spec, &Spans::single(100), 1, false).forward - Flops::prompt(&spec, 100);
        assert_eq!(saved, (n - 1.0) * 20.0 * d * d + 4.0 * d * (n - 1.0) * n / 2.0);
    }

    /// One token attends to itself alone (4 q a layer) and goes through every matrix of the layers once.
    #[test]
    fn products_are_two_operations_a_weight() {
        let (family, preset) = crate::find_preset("gpt2").unwrap();
        let mut counts = Vec::new();
        for network in [FeedForward::Dense(Activation::GeluTanh), FeedForward::Gated(Activation::Silu)] {
            let spec = StackSpec { feed_forward: network, d_ff: 2048, ..(preset.spec)() };
            let plan = family.plan(&spec, family.default_task()).unwrap();
            let matrices = plan.iter().filter(|p| p.name.starts_with("layers.") && p.shape.len() == 2);
            let weights: usize = matrices.map(|p| p.shape.iter().product::<usize>()).sum();
            let f = Flops::of(&spec, &Spans::single(1), 0, false).forward;
            assert_eq!(f, (2 * weights + 4 * 768 * 12) as f64, "{network:?}");
            counts.push(family.count(&spec, family.default_task()).unwrap());
        }
        // A third matrix a layer, and neither of the network's biases.
        assert_eq!(counts[1] - counts[0], 12 * (768 * 2048 - 2048 - 768));
    }
}
