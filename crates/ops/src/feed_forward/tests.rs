//! The gated network at random shapes: against its definition in f64, with any number of threads, and row by row.

use super::{Gated, gated_feed_forward};
use crate::testing::{data, every_level, thread_invariant};
use crate::{Activation, DType, Device, Error, Layout, Path, Tape, Tensor, Value, scalar, to_vec};
use proptest::prelude::*;

/// One network: sizes, what it is made of, and its inputs x, gate, up, down and three biases.
struct Case {
    shape: [usize; 4],
    has_bias: [bool; 3],
    layout: Layout,
    activation: Activation,
    inputs: Vec<(Vec<usize>, Vec<f32>)>,
}

impl Case {
    fn new(shape: [usize; 4], has_bias: [bool; 3], layout: Layout, activation: Activation, seed: u64) -> Self {
        let [n, d, f, out] = shape;
        let (wide, narrow) = (layout.shape(d, f).to_vec(), layout.shape(f, out).to_vec());
        let shapes = [vec![n, d], wide.clone(), wide, narrow, vec![f], vec![f], vec![out]];
        let inputs = shapes.into_iter().enumerate().map(|(i, dims)| {
            // Weights as small as their width asks for, so that results are of size one.
            let scale = if (1..4).contains(&i) { 1.0 / (if i == 3 { f } else { d } as f32).sqrt() } else { 1.0 };
            let values = data(dims.iter().product(), seed + i as u64).iter().map(|x| x * scale).collect();
            (dims, values)
        });
        Case { shape, has_bias, layout, activation, inputs: inputs.collect() }
    }

    fn apply(&self, tape: &Tape, v: &[Value]) -> Value {
        let bias = |i: usize| self.has_bias[i].then_some(&v[4 + i]);
        let w = Gated {
            gate: &v[1],
            gate_bias: bias(0),
            up: &v[2],
            up_bias: bias(1),
            down: &v[3],
            down_bias: bias(2),
            layout: self.layout,
            activation: self.activation,
        };
        gated_feed_forward(tape, &v[0], &w).unwrap()
    }

    /// The result and the gradients of all inputs under a fixed projection of the result.
    fn run(&self, path: Path, dtype: DType) -> Vec<Vec<f64>> {
        let tape = Tape::recording().with_path(path);
        let make =
            |dims: &[usize], x: &[f32]| Tensor::from_slice(x, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let leaves: Vec<Value> = self.inputs.iter().map(|(dims, x)| tape.leaf(make(dims, x))).collect();
        let y = self.apply(&tape, &leaves);
        let [n, _, _, out] = self.shape;
        let along = make(&[n, out], &data(n * out, 91));
        let [total] = tape.composed(&[&y], |t| Ok([t[0].mul(&along)?.sum_all()?])).unwrap();
        assert!(scalar(total.tensor()).unwrap().is_finite());
        let grads = tape.backward(&total).unwrap();
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let used = |i: &usize| *i < 4 || self.has_bias[i - 4];
        let mut all = vec![wide(y.tensor())];
        all.extend((0..7).filter(used).map(|i| wide(&grads.of(&leaves[i]).expect("a gradient"))));
        all
    }

    /// The result for some of the rows, without a record.
    fn rows(&self, from: usize, count: usize) -> Vec<f32> {
        let mut values: Vec<Value> = Vec::new();
        for (i, (dims, x)) in self.inputs.iter().enumerate() {
            let t = Tensor::from_slice(x, dims.as_slice(), &Device::Cpu).unwrap();
            values.push(Value::constant(if i == 0 { t.narrow(0, from, count).unwrap() } else { t }));
        }
        to_vec(self.apply(&Tape::inference(), &values).tensor()).unwrap()
    }
}

const GATES: [Activation; 5] =
    [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Tanh, Activation::Identity];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn right_and_invariant_at_random_shapes(
        n in 1usize..70, d in 1usize..100, f in 1usize..140, out in 1usize..50,
        has_bias: [bool; 3], out_in: bool, gate in 0..GATES.len(), seed in 0u64..1000,
    ) {
        let layout = if out_in { Layout::OutIn } else { Layout::InOut };
        let case = Case::new([n, d, f, out], has_bias, layout, GATES[gate], seed);
        let expected = case.run(Path::Definitions, DType::F64);
        every_level(|| {
            let found = case.run(Path::Kernels, DType::F32);
            prop_assert_eq_len(&found, &expected);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let size = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
                for (a, b) in found.iter().zip(expected) {
                    assert!((a - b).abs() < 1e-5 * size, "result {i}: {a} instead of {b}, largest {size}");
                }
            }
            thread_invariant(|| {
                let all = case.run(Path::Kernels, DType::F32);
                let mut flat: Vec<f32> = Vec::new();
                all.iter().for_each(|x| flat.extend(x.iter().map(|&x| x as f32)));
                [flat]
            });
            let whole = case.rows(0, n);
            let recorded: Vec<f32> = found[0].iter().map(|&y| y as f32).collect();
            assert_eq!(whole, recorded, "recording changed bits");
            for (from, count) in [(0, 1), (n / 2, 1), (n - 1, 1), (n / 3, n - n / 3)] {
                assert_eq!(case.rows(from, count), whole[from * out..(from + count) * out], "{count} rows from {from}");
            }
        });
    }
}

fn prop_assert_eq_len(found: &[Vec<f64>], expected: &[Vec<f64>]) {
    let lengths = |x: &[Vec<f64>]| x.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(found), lengths(expected));
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let value = |dims: &[usize]| Value::constant(Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap());
    let named = |x: &[usize], gate: &[usize], up: &[usize], down: &[usize], bias: Option<&[usize]>| {
        let [x, gate, up, down] = [x, gate, up, down].map(value);
        let bias = bias.map(value);
        let w = Gated {
            gate: &gate,
            gate_bias: None,
            up: &up,
            up_bias: bias.as_ref(),
            down: &down,
            down_bias: None,
            layout: Layout::InOut,
            activation: Activation::Silu,
        };
        match gated_feed_forward(&Tape::inference(), &x, &w) {
            Err(e @ Error::Shape { .. }) => e.to_string(),
            Err(e) => panic!("{e}"),
            Ok(_) => "fits".to_owned(),
        }
    };
    assert_eq!(named(&[2, 3], &[3, 5], &[3, 5], &[5, 3], Some(&[5])), "fits");
    for (message, what) in [
        (named(&[2, 4], &[3, 5], &[3, 5], &[5, 3], None), "x"),
        (named(&[2, 3], &[3, 6], &[3, 5], &[5, 3], None), "gate"),
        (named(&[2, 3], &[3, 5], &[3, 5], &[6, 3], None), "down"),
        (named(&[2, 3], &[3, 5], &[3, 5], &[5, 3], Some(&[4])), "up bias"),
    ] {
        assert!(message.contains(what) && message.contains("gated feed-forward"), "{message}");
    }
}
