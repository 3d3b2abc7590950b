//! The Transformer (Vaswani et al. 2017, arXiv 1706.03762): what the stacks of its descendants begin as.
//!
//! The encoder-decoder model itself is not a member yet; its two halves are where GPT (the decoder without the encoder) and BERT
//! (the encoder) come from. Each says what it changes.

use genus_nn::{
    Attend, AttentionBias, Bands, Dropout, EmbeddingNorm, FeedForward, FinalNorm, InitScheme, NormKind, Placement,
    Positions, Projections, ResidualInit, ScoreScale, Segments, StackSpec, Tying,
};
use genus_ops::{Activation, Layout};

/// One half: heads of `d_model / n_heads`, a network four times as wide as the stream, norms after each residual connection,
/// dropout 0.1, the output tied to the token table. Positions are the descendants' learned ones.
pub(crate) fn stack(n_layers: usize, d_model: usize, n_heads: usize, attend: Attend) -> StackSpec {
    StackSpec {
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        d_head: d_model / n_heads,
        d_ff: 4 * d_model,
        vocab_size: 37_000,
        n_ctx: 512,
        positions: Positions::LEARNED,
        segments: Segments::None,
        embedding_norm: EmbeddingNorm::None,
        norm: NormKind::Layer { eps: 1e-5 },
        placement: Placement::Post,
        final_norm: FinalNorm::None,
        attend,
        bands: Bands::None,
        scores: ScoreScale::Root,
        projections: Projections::Separate,
        attention_bias: AttentionBias::All,
        layout: Layout::OutIn,
        feed_forward: FeedForward::Dense(Activation::Relu),
        tying: Tying::Tied,
        dropout: Dropout { embedding: 0.1, attention: 0.1, residual: 0.1 },
        init: InitScheme { std: 0.02, position_std: 0.02, residual: ResidualInit::Plain },
    }
}
