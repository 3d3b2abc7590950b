//! A stack with gated networks: its parameters, its gradients, and its cache.

use genus_nn::ops::{Activation, Layout, Path, Tape, check_reached, to_vec};
use genus_nn::*;
use genus_nn::{Readout, SoftmaxSample};

fn spec(feed_forward: FeedForward, layout: Layout) -> StackSpec {
    StackSpec {
        d_model: 12,
        n_layers: 2,
        n_heads: 3,
        n_kv_heads: 1,
        d_head: 4,
        d_ff: 20,
        vocab_size: 17,
        n_ctx: 10,
        vocabulary: Vocabulary::Whole,
        mixing: Mixing::Attention,
        readout: Readout::Last,
        softmax_sample: SoftmaxSample::Whole,
        directions: Directions::One,
        token_width: TokenWidth::Stream,
        positions: Positions::LEARNED,
        embedding_scale: EmbeddingScale::One,
        segments: Segments::None,
        embedding_norm: EmbeddingNorm::None,
        norm: NormKind::Layer { eps: 1e-5 },
        placement: Placement::Pre,
        final_norm: FinalNorm::Norm,
        attend: Attend::Past,
        encoder: Encoder::None,
        memory: Memory::None,
        bands: Bands::None,
        scores: ScoreScale::Root,
        projections: Projections::Separate,
        attention_bias: AttentionBias::All,
        layout,
        feed_forward,
        tying: Tying::Tied,
        dropout: Dropout { embedding: 0.0, attention: 0.0, residual: 0.0, inner: 0.0 },
        output_dropout: OutputDropout::None,
        init: InitScheme { std: 0.3, position_std: 0.3, residual: ResidualInit::Plain },
    }
}

fn network(layout: Layout) -> Vec<(String, Vec<usize>)> {
    let gated = spec(FeedForward::Gated(Activation::Silu), layout);
    let plan = plan(|b| Stack::build(b, &gated, None).map(|_| ())).unwrap();
    let of_network = |p: &Planned| p.name.starts_with("layers.1.feed_forward.");
    plan.into_iter().filter(of_network).map(|p| (p.name, p.shape)).collect()
}

#[test]
fn three_matrices_and_no_bias() {
    let named = |parts: [(&str, [usize; 2]); 3]| {
        parts.map(|(part, shape)| (format!("layers.1.feed_forward.{part}.weight"), shape.to_vec())).to_vec()
    };
    assert_eq!(network(Layout::OutIn), named([("gate", [20, 12]), ("up", [20, 12]), ("down", [12, 20])]));
    assert_eq!(network(Layout::InOut), named([("gate", [12, 20]), ("up", [12, 20]), ("down", [20, 12])]));
}

fn stack(feed_forward: FeedForward, layout: Layout) -> (Stack, LmHead, Vec<genus_nn::ops::Param>) {
    let spec = spec(feed_forward, layout);
    let mut source = RandomSource::new(3);
    let mut b = Builder::new(&mut source);
    let stack = Stack::build(&mut b, &spec, None).unwrap();
    let head = HeadSpec { transform: HeadTransform::Dense, bias: HeadBias::None };
    let head = LmHead::build(&mut b, &spec, &stack, &head).unwrap();
    (stack, head, b.finish())
}

/// Hidden states and the parameters' gradients, by kernels and by definitions.
#[test]
fn kernels_learn_what_definitions_do() {
    for layout in [Layout::OutIn, Layout::InOut] {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let run = |path| {
                let (stack, head, params) = stack(FeedForward::Gated(activation), layout);
                let tape = Tape::recording().with_path(path);
                let input = Input::from_sequences(&[&[1, 5, 9][..], &[2, 2, 16, 0]]);
                let hidden = stack.forward(&tape, &input, None, None, false).unwrap().last;
                let loss = head.loss(&tape, &hidden, &[5, 9, 3, 2, 16, 0, 8], 1.0, 0.0).unwrap();
                tape.backward(&loss).unwrap();
                check_reached(&params).unwrap();
                let grads = params.iter().map(|p| (p.name().to_owned(), to_vec(&p.grad().unwrap()).unwrap()));
                let mut all = vec![("hidden".to_owned(), to_vec(hidden.tensor()).unwrap())];
                all.extend(grads);
                all
            };
            for ((name, found), (_, expected)) in run(Path::Kernels).iter().zip(&run(Path::Definitions)) {
                let size = expected.iter().fold(0.1f32, |m, x| m.max(x.abs()));
                assert!(expected.iter().any(|x| *x != 0.0), "{name} is 0");
                for (a, b) in found.iter().zip(expected) {
                    assert!((a - b).abs() < 2e-5 * size, "{name}: {a} instead of {b}");
                }
            }
        }
    }
}

#[test]
fn a_token_at_a_time_has_the_bits_of_the_whole() {
    let (stack, _, _) = stack(FeedForward::Gated(Activation::Silu), Layout::OutIn);
    let ids = [1u32, 5, 9, 2, 16, 0];
    let tape = Tape::inference();
    let run = |ids: &[u32], cache: Option<&mut [SequenceCache]>| {
        let hidden = stack.forward(&tape, &Input::from_sequences(&[ids]), None, cache, false).unwrap();
        to_vec(hidden.last.tensor()).unwrap()
    };
    let whole = run(&ids, None);
    let mut caches = [SequenceCache::new()];
    let mut parts = Vec::new();
    for id in ids {
        parts.extend(run(&[id], Some(&mut caches)));
    }
    assert_eq!(parts, whole);
}
