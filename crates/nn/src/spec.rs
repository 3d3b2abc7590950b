//! The specification of a stack: one enum per slot.

use crate::{Error, Result};
use genus_ops::{Activation, AttentionSpec, Layout, Mask};

/// How a token's place in its sequence enters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// Not at all.
    None,
    /// A table of learned vectors, added to the token's. Its first `offset` rows belong to no position (RoBERTa counts from
    /// the row behind that of padding: 2; all others: 0), `n_ctx` more follow.
    Learned {
        /// The row of the first token.
        offset: usize,
    },
    /// Fixed sines and cosines of wavelengths from 2 pi to 10,000 times that, added to the token's (Vaswani et al. 2017, section
    /// 3.5); the sines first, then the cosines, as in the authors' code.
    Sinusoidal,
    /// Not at all by itself: the distance between query and key enters their score, as fixed sines and cosines through a map of each
    /// layer's own, and so do two learned vectors a head (Dai et al. 2019, arXiv 1901.02860, section 3.3).
    Relative {
        /// Longer distances count as this one; 0: none do.
        clamp: usize,
        /// Whether all layers share the two vectors.
        shared: bool,
    },
}

impl Positions {
    /// A table whose first row is that of the first token.
    pub const LEARNED: Positions = Positions::Learned { offset: 0 };

    /// The row of the first token.
    pub fn offset(self) -> usize {
        match self {
            Positions::Learned { offset } => offset,
            Positions::None | Positions::Sinusoidal | Positions::Relative { .. } => 0,
        }
    }
}

/// How tokens are turned into vectors, and vectors into predictions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// One table, as wide as the stream.
    Whole,
    /// Frequent tokens in a wide table, rarer ones in narrower ones, each with a map to the stream's width; the output predicts a
    /// frequent token or a group of rarer ones, and then one of the group (Grave et al. 2017, arXiv 1609.04309; Baevski and Auli
    /// 2019, arXiv 1809.10853). Predictions are log-probabilities.
    Adaptive {
        /// The first token of each group of rarer ones.
        cutoffs: Vec<usize>,
        /// Each group's table is this many times narrower than the one before; 1: all are one table.
        divisor: usize,
        /// Width of the first table.
        d_embedding: usize,
        /// Whether the output's maps are the input's; the frequent tokens' never is, except where there is one table.
        shared_maps: bool,
    },
    /// The input is the characters of words, of which a network makes vectors (Kim et al. 2016, arXiv 1508.06615); the output
    /// predicts words.
    Characters(Characters),
}

/// A network from a word's characters to its vector: patterns over characters and their maxima, then highway layers, then a map to
/// the stream's width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Characters {
    /// Number of different characters.
    pub alphabet: usize,
    /// Width of a character's vector.
    pub d_character: usize,
    /// Characters of a word; longer words are cut, shorter ones filled.
    pub length: usize,
    /// Width and number of each kind of pattern.
    pub filters: Vec<(usize, usize)>,
    /// Number of highway layers.
    pub highways: usize,
}

impl Characters {
    /// Patterns in all.
    pub fn patterns(&self) -> usize {
        self.filters.iter().map(|f| f.1).sum()
    }
}

/// What a layer is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mixing {
    /// Attention and a position-wise network (the Transformer).
    Attention,
    /// Long short-term memory of `d_ff` cells that reads from left to right (Hochreiter and Schmidhuber 1997).
    Recurrent {
        /// What of the cells goes on.
        output: CellOutput,
        /// Bound of cells.
        cell_clip: Option<f32>,
        /// Bound of projected outputs.
        output_clip: Option<f32>,
        /// Connections past a layer.
        skip: Skip,
    },
}

/// What a recurrent layer gives to the next layer and to its own next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellOutput {
    /// What the cells put out: `d_ff` is the stream's width.
    Cells,
    /// A linear map of it to the stream's width (Sak et al. 2014, arXiv 1402.1128).
    Projected,
}

/// Whether recurrent layers add what they read to what they give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// They do not.
    None,
    /// All but the first do (ELMo).
    AfterFirst,
}

/// What of the layers a stack gives to tasks with labels of their own; predictions of tokens read the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readout {
    /// The last one's.
    Last,
    /// A mean of the embeddings and all layers with learned weights, times a learned number (Peters et al. 2018, arXiv 1802.05365,
    /// equation 1).
    Mixed,
}

/// Over which tokens the output's loss is taken in training; everywhere else it is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftmaxSample {
    /// All.
    Whole,
    /// The true one and so many others, drawn anew in each step; all where there are no more.
    Drawn(usize),
}

/// From which end sequences are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directions {
    /// The beginning.
    One,
    /// Both: a second set of layers, which sees nothing of the first, reads from the end, and hidden states are both directions'
    /// side by side. So each half can be trained to predict the token that it has not seen.
    Both,
}

/// How wide the vectors of tokens, positions and segments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenWidth {
    /// As wide as the stream.
    Stream,
    /// As wide as this; an affine map takes them to the stream's width, where that is another (ELECTRA).
    Own(usize),
}

/// What a stack carries from one segment of a text to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Nothing.
    None,
    /// Each layer's inputs for the last tokens, to which the layer attends as well; no gradient flows into them (Dai et al. 2019,
    /// section 3.2). All zeros before the first segment.
    Carried {
        /// How many tokens.
        length: usize,
    },
}

/// Whether the stack's output is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputDropout {
    /// It is not.
    None,
    /// At the rate of sublayers (Transformer-XL).
    Residual,
}

/// What token vectors are multiplied by before positions are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddingScale {
    /// Nothing.
    One,
    /// `sqrt(d_model)` (Vaswani et al. 2017, section 3.4).
    Root,
}

/// How a token's segment enters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Segments {
    /// Not at all.
    None,
    /// A table of that many learned vectors, added to the token's (BERT's sentence A and B).
    Learned(usize),
}

/// The normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// Layer normalisation.
    Layer {
        /// Added to the variance.
        eps: f64,
    },
}

/// Where a layer normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Before each sublayer: `x + f(norm(x))` (GPT-2).
    Pre,
    /// After each residual connection: `norm(x + f(x))` (the Transformer, GPT, BERT).
    Post,
}

/// Whether the embeddings are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddingNorm {
    /// They are not; dropout follows the sum.
    None,
    /// They are, before dropout (BERT).
    Norm,
}

/// Whether a norm follows the last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalNorm {
    /// None.
    None,
    /// One (GPT-2).
    Norm,
}

/// Who attends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attend {
    /// Every token to all of its sequence: an encoder.
    All,
    /// Every token to itself and those before it: a decoder.
    Past,
}

/// Another stack that reads a sequence first, for this one's layers to attend to (Vaswani et al. 2017, section 3.1). Width,
/// token table and all that is not said here are this stack's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoder {
    /// None.
    None,
    /// One whose tokens see all of its sequence.
    Layers {
        /// Number of layers.
        n_layers: usize,
        /// Number of heads.
        n_heads: usize,
        /// Width inside the feed-forward network.
        d_ff: usize,
    },
}

/// Layers whose attention is local.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bands {
    /// None: every layer sees all that [`Attend`] allows.
    None,
    /// Some: a token sees the last `window` tokens, itself included (GPT-3; Child et al. 2019, arXiv 1904.10509).
    Local {
        /// Tokens that are seen at most.
        window: usize,
        /// Which layers are local; the pattern repeats over the layers.
        pattern: Vec<bool>,
    },
}

/// What the scores of queries and keys are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreScale {
    /// `1 / sqrt(d_head)` (Vaswani et al. 2017, equation 1).
    Root,
    /// Nothing (GPT-Neo).
    One,
}

/// Which projections of attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBias {
    /// All.
    All,
    /// The output's alone (GPT-Neo).
    Output,
    /// None (Transformer-XL).
    None,
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// By one matrix, side by side (GPT, GPT-2).
    Packed,
    /// By three matrices (BERT).
    Separate,
}

/// The position-wise network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// `act(x W1 + b1) W2 + b2`.
    Dense(Activation),
    /// `(act(x Wg) * (x Wu)) Wd`, without biases (Shazeer 2020, arXiv 2002.05202; Llama, T5 1.1).
    Gated(Activation),
}

impl FeedForward {
    /// The activation inside.
    pub fn activation(self) -> Activation {
        match self {
            FeedForward::Dense(activation) | FeedForward::Gated(activation) => activation,
        }
    }

    /// The number of matrices between `d_model` and `d_ff`, either way.
    pub fn maps(self) -> usize {
        match self {
            FeedForward::Dense(_) => 2,
            FeedForward::Gated(_) => 3,
        }
    }
}

/// Whether the output projection is the token table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tying {
    /// It is (Press and Wolf 2017, arXiv 1608.05859).
    Tied,
    /// It is a matrix of its own.
    Untied,
}

/// Dropout probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// After the embeddings.
    pub embedding: f32,
    /// On attention weights.
    pub attention: f32,
    /// On each sublayer's output.
    pub residual: f32,
    /// Inside the position-wise network, after the activation.
    pub inner: f32,
}

/// How projections into the residual stream begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResidualInit {
    /// As all others.
    Plain,
    /// Scaled by `1 / sqrt(2 n_layers)`, so that the stream's size does not grow with depth (GPT-2).
    ByDepth,
}

/// How parameters begin: matrices from a normal distribution, biases 0, norms 1 and 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InitScheme {
    /// Standard deviation of matrices and token vectors.
    pub std: f64,
    /// Standard deviation of position vectors.
    pub position_std: f64,
    /// Projections into the residual stream.
    pub residual: ResidualInit,
}

/// A stack of layers over embeddings. Every field is given: nothing has a hidden default.
#[derive(Clone, Debug, PartialEq)]
pub struct StackSpec {
    /// Width of the hidden states.
    pub d_model: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head; `n_heads * d_head` need not be `d_model`.
    pub d_head: usize,
    /// Width inside the feed-forward network, or of the cells of a recurrent layer.
    pub d_ff: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Longest sequence.
    pub n_ctx: usize,
    /// Token tables and output projection.
    pub vocabulary: Vocabulary,
    /// What layers are made of.
    pub mixing: Mixing,
    /// From which end sequences are read.
    pub directions: Directions,
    /// Width of the tables.
    pub token_width: TokenWidth,
    /// Positions.
    pub positions: Positions,
    /// The scale of token vectors.
    pub embedding_scale: EmbeddingScale,
    /// Segments.
    pub segments: Segments,
    /// Norm over the embeddings.
    pub embedding_norm: EmbeddingNorm,
    /// The kind of all norms.
    pub norm: NormKind,
    /// Where layers normalise.
    pub placement: Placement,
    /// Norm after the last layer.
    pub final_norm: FinalNorm,
    /// Who attends to whom.
    pub attend: Attend,
    /// The sequence that layers attend to besides.
    pub encoder: Encoder,
    /// What is carried from segment to segment.
    pub memory: Memory,
    /// Layers that see less than that.
    pub bands: Bands,
    /// The scale of scores.
    pub scores: ScoreScale,
    /// Query, key and value projections.
    pub projections: Projections,
    /// Biases of attention.
    pub attention_bias: AttentionBias,
    /// How matrices lie in memory.
    pub layout: Layout,
    /// Position-wise network.
    pub feed_forward: FeedForward,
    /// Output projection.
    pub tying: Tying,
    /// Dropout.
    pub dropout: Dropout,
    /// Tokens that the output's loss is taken over in training.
    pub softmax_sample: SoftmaxSample,
    /// What of the layers tasks with labels read.
    pub readout: Readout,
    /// Dropout of the output.
    pub output_dropout: OutputDropout,
    /// Initial values.
    pub init: InitScheme,
}

impl StackSpec {
    /// The attention of layer `layer`.
    pub fn attention(&self, layer: usize) -> AttentionSpec {
        AttentionSpec {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_head: self.d_head,
            mask: match (self.attend, &self.bands) {
                (Attend::All, _) => Mask::Full,
                (Attend::Past, Bands::Local { window, pattern }) if pattern[layer % pattern.len()] => {
                    Mask::Band { window: *window }
                }
                (Attend::Past, _) => Mask::Causal,
            },
            scale: match self.scores {
                ScoreScale::Root => (1.0 / (self.d_head as f64).sqrt()) as f32,
                ScoreScale::One => 1.0,
            },
            dropout: self.dropout.attention,
        }
    }

    /// The encoder as a stack of its own.
    pub fn encoder(&self) -> Option<StackSpec> {
        let Encoder::Layers { n_layers, n_heads, d_ff } = self.encoder else { return None };
        Some(StackSpec {
            n_layers,
            n_heads,
            n_kv_heads: n_heads,
            d_head: self.d_model.checked_div(n_heads).unwrap_or(0),
            d_ff,
            attend: Attend::All,
            encoder: Encoder::None,
            bands: Bands::None,
            ..self.clone()
        })
    }

    /// The layers' attention to the encoder's sequence.
    pub fn cross_attention(&self) -> AttentionSpec {
        AttentionSpec { mask: Mask::Full, ..self.attention(0) }
    }

    /// Width of hidden states as they leave the stack.
    pub fn d_hidden(&self) -> usize {
        match self.directions {
            Directions::One => self.d_model,
            Directions::Both => 2 * self.d_model,
        }
    }

    /// Whether a token's hidden state depends on itself and those before it alone.
    pub fn sees_past_only(&self) -> bool {
        self.attend == Attend::Past && self.directions == Directions::One
    }

    /// Sets the number of tokens; groups of rarer tokens that begin beyond it are left out.
    pub fn set_vocab_size(&mut self, n: usize) {
        self.vocab_size = n;
        if let Vocabulary::Adaptive { cutoffs, .. } = &mut self.vocabulary {
            cutoffs.retain(|&c| c < n);
        }
    }

    /// Width of the vectors of tokens, positions and segments.
    pub fn d_embedding(&self) -> usize {
        match self.token_width {
            TokenWidth::Stream => self.d_model,
            TokenWidth::Own(width) => width,
        }
    }

    /// Tokens of memory; 0 where none is carried.
    pub fn memory_length(&self) -> usize {
        match self.memory {
            Memory::None => 0,
            Memory::Carried { length } => length,
        }
    }

    /// Tokens of a training sequence where nothing says how many: all that the model takes, or, where that has no end, as many as its
    /// memory has (512 where that is none); 128 of recurrent layers.
    pub fn segment(&self) -> usize {
        match self.memory {
            Memory::None if self.mixing != Mixing::Attention => self.n_ctx.min(128),
            Memory::None => self.n_ctx,
            Memory::Carried { length } => self.n_ctx.min(if length == 0 { 512 } else { length }),
        }
    }

    /// Checks that the dimensions can be.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("d_model", self.d_model),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("d_head", self.d_head),
            ("d_ff", self.d_ff),
            ("vocab_size", self.vocab_size),
            ("n_ctx", self.n_ctx),
            ("token_width", self.d_embedding()),
        ];
        for (field, value) in positive {
            if value == 0 || value > u32::MAX as usize {
                return Err(Error::Spec {
                    field,
                    found: value.to_string(),
                    expected: format!("a number from 1 to {}", u32::MAX),
                });
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(Error::Spec {
                field: "n_kv_heads",
                found: self.n_kv_heads.to_string(),
                expected: format!("a divisor of n_heads = {}", self.n_heads),
            });
        }
        if let Encoder::Layers { n_layers, n_heads, d_ff } = self.encoder {
            let heads = n_heads > 0 && self.d_model.is_multiple_of(n_heads);
            if n_layers == 0 || d_ff == 0 || !heads || self.attend == Attend::All {
                return Err(Error::Spec {
                    field: "encoder",
                    found: format!("{:?} with attend = {:?}", self.encoder, self.attend),
                    expected: format!(
                        "layers, a width and a number of heads that divides d_model = {}, before tokens that see the past",
                        self.d_model
                    ),
                });
            }
        }
        self.check_reading()?;
        let relative = matches!(self.positions, Positions::Relative { .. });
        let packed = self.projections == Projections::Packed && self.n_heads == self.n_kv_heads;
        if (relative || self.memory != Memory::None)
            && !(relative && packed && self.attend == Attend::Past && self.encoder == Encoder::None)
        {
            return Err(Error::Spec {
                field: "positions",
                found: format!("{:?} with memory = {:?}", self.positions, self.memory),
                expected: "distances and memory together, packed projections, as many key heads as heads, and tokens that see the past"
                    .into(),
            });
        }
        if relative && !self.d_model.is_multiple_of(2) {
            let expected = "an even number: half of them are sines".into();
            return Err(Error::Spec { field: "d_model", found: self.d_model.to_string(), expected });
        }
        if let (TokenWidth::Own(width), Vocabulary::Adaptive { .. }) = (self.token_width, &self.vocabulary) {
            let expected = "the stream's: an adaptive vocabulary has widths of its own".into();
            return Err(Error::Spec { field: "token_width", found: width.to_string(), expected });
        }
        if let Vocabulary::Adaptive { cutoffs, divisor, d_embedding, .. } = &self.vocabulary {
            let rising = cutoffs.windows(2).all(|w| w[0] < w[1]);
            let inside = cutoffs.iter().all(|&c| c > 0 && c < self.vocab_size);
            let narrowest = d_embedding.checked_div(divisor.saturating_pow(cutoffs.len() as u32)).unwrap_or(0);
            if !rising || !inside || narrowest == 0 {
                return Err(Error::Spec {
                    field: "vocabulary",
                    found: format!("{:?}", self.vocabulary),
                    expected: format!(
                        "rising cutoffs from 1 to {}, and tables of at least one column",
                        self.vocab_size.saturating_sub(1)
                    ),
                });
            }
        }
        if let Bands::Local { window, pattern } = &self.bands
            && (*window == 0 || pattern.is_empty() || self.attend == Attend::All)
        {
            return Err(Error::Spec {
                field: "bands",
                found: format!("{:?} with attend = {:?}", self.bands, self.attend),
                expected:
                    "a window of at least 1 token and a pattern of at least one layer, of tokens that see the past"
                        .into(),
            });
        }
        for (field, p) in [
            ("dropout.embedding", self.dropout.embedding),
            ("dropout.attention", self.dropout.attention),
            ("dropout.residual", self.dropout.residual),
            ("dropout.inner", self.dropout.inner),
        ] {
            if !(0.0..1.0).contains(&p) {
                return Err(Error::Spec { field, found: p.to_string(), expected: "at least 0 and below 1".into() });
            }
        }
        Ok(())
    }

    /// Recurrent layers, two directions and characters.
    fn check_reading(&self) -> Result<()> {
        let alone = self.encoder == Encoder::None && self.memory == Memory::None && self.attend == Attend::Past;
        let wrong = |field, found, expected: &str| Err(Error::Spec { field, found, expected: expected.into() });
        if let Mixing::Recurrent { output, cell_clip, output_clip, .. } = self.mixing {
            let found = || format!("{:?} with positions = {:?}", self.mixing, self.positions);
            if !alone || self.bands != Bands::None || self.positions != Positions::None {
                return wrong("mixing", found(), "recurrent layers without positions, bands, memory or encoder");
            }
            if output == CellOutput::Cells && self.d_ff != self.d_model {
                let expected = format!("d_model = {}: cells without projection are as many", self.d_model);
                return Err(Error::Spec { field: "d_ff", found: self.d_ff.to_string(), expected });
            }
            if [cell_clip, output_clip].iter().flatten().any(|c| !(*c > 0.0 && c.is_finite())) {
                return wrong("mixing", found(), "bounds above 0");
            }
        }
        if self.directions == Directions::Both && !alone {
            let found = format!("{:?} with attend = {:?}", self.directions, self.attend);
            return wrong("directions", found, "two directions of tokens that see the past, without memory or encoder");
        }
        if let Vocabulary::Characters(c) = &self.vocabulary {
            let filters = !c.filters.is_empty() && c.filters.iter().all(|f| f.0 > 0 && f.0 <= c.length && f.1 > 0);
            let plain = self.positions == Positions::None && self.segments == Segments::None;
            if !filters || !plain || c.alphabet == 0 || c.d_character == 0 || self.tying == Tying::Tied {
                let expected =
                    "an alphabet, patterns as wide as a word at most, an output of its own, no positions and segments";
                return wrong("vocabulary", format!("{c:?} with tying = {:?}", self.tying), expected);
            }
        }
        Ok(())
    }
}
