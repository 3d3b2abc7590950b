//! Every operation's kernel against its definition: values and gradients of the f32 kernels against the definition in f64, at
//! every level that the machine has, and the definition's gradients against central differences.

use genus_ops::*;

/// Reproducible numbers in [-1, 1).
fn data(n: usize, seed: u64) -> Vec<f64> {
    (0..n as u64).map(|i| (rng::mix64(seed * 77 + i) >> 40) as f64 / 8_388_608.0 - 1.0).collect()
}

type Op<'a> = dyn Fn(&Tape, &[Value]) -> Result<Vec<Value>> + 'a;

/// The loss that makes scalars of an operation's outputs: a fixed projection of each with cross-entropy.
fn loss(tape: &Tape, outputs: &[Value]) -> Result<Value> {
    let mut terms = Vec::new();
    for (i, y) in outputs.iter().enumerate() {
        if y.dims().is_empty() {
            terms.push(y.clone());
            continue;
        }
        let (n, d) = (y.dims()[0], y.dims()[1]);
        let w = Tensor::from_vec(data(d * 7, 99 + i as u64), (7, d), &Device::Cpu)?.to_dtype(y.tensor().dtype())?;
        let weight = Value::constant(w);
        let p = Projection { weight: &weight, bias: None, layout: Layout::OutIn, smoothing: 0.0, scale: 1.0 };
        let targets: Vec<i32> = (0..n).map(|r| (r * 5 % 7) as i32).collect();
        terms.push(cross_entropy(tape, y, &p, &targets)?);
    }
    let terms: Vec<_> = terms.iter().enumerate().map(|(i, t)| (t, 1.0 + i as f64)).collect();
    weighted_sum(tape, &terms)
}

/// Loss and gradients of all inputs, given as f64.
fn run(
    (path, precision): (Path, Precision),
    dtype: DType,
    key: Option<rng::Key>,
    shapes: &[Vec<usize>],
    x: &[Vec<f64>],
    op: &Op<'_>,
) -> (f64, Vec<Vec<f64>>) {
    let tape = key.map_or_else(Tape::recording, Tape::training).with_path(path).with_precision(precision);
    let leaves: Vec<Value> = shapes
        .iter()
        .zip(x)
        .map(|(s, x)| {
            let t = Tensor::from_slice(x, s.as_slice(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            tape.leaf(t)
        })
        .collect();
    let l = loss(&tape, &op(&tape, &leaves).unwrap()).unwrap();
    let grads = tape.backward(&l).unwrap();
    let wide = |t: Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    (scalar(l.tensor()).unwrap(), leaves.iter().map(|v| wide(grads.of(v).expect("a gradient"))).collect())
}

/// Checks an operation with inputs of these shapes.
fn check(name: &str, dropout: bool, shapes: &[&[usize]], op: &Op<'_>) {
    let shapes: Vec<Vec<usize>> = shapes.iter().map(|s| s.to_vec()).collect();
    // Values that f32 holds exactly, so that both precisions see the same inputs.
    let mut x: Vec<Vec<f64>> = shapes
        .iter()
        .enumerate()
        .map(|(i, s)| data(s.iter().product(), 3 + i as u64).iter().map(|x| (x * 0.7) as f32 as f64).collect())
        .collect();
    let key = dropout.then(|| rng::Key::new(5, 6));
    let exact = (Path::Definitions, Precision::F32);
    let (expected, slopes) = run(exact, DType::F64, key, &shapes, &x, op);
    for i in 0..x.len() {
        for e in [0, x[i].len() / 2, x[i].len() - 1] {
            let (old, h) = (x[i][e], 1e-5);
            let mut side = |h: f64| {
                x[i][e] = old + h;
                run(exact, DType::F64, key, &shapes, &x, op).0
            };
            let slope = (side(h) - side(-h)) / (2.0 * h);
            x[i][e] = old;
            let error = (slope - slopes[i][e]).abs() / slope.abs().max(1.0);
            assert!(error < 1e-6, "{name}: definition, input {i}[{e}]: {} instead of {slope}", slopes[i][e]);
        }
    }
    // Rounding operands has no slope: the definition in bf16 is held against the exact gradients. Two operands are off by at
    // most 2^-9 each, and errors of sums mostly cancel; measured: 0.8 % of the largest element at worst.
    let rounded = run((Path::Definitions, Precision::Bf16), DType::F64, key, &shapes, &x, op);
    compare(&format!("{name}: definition in bf16"), &rounded, &(expected, slopes.clone()), [4e-3, 0.02, 0.01]);
    for level in Level::available() {
        // Chains of at most some hundred f32 operations; measured: below 2e-6 of the largest element.
        let found = with_level(level, || run((Path::Kernels, Precision::F32), DType::F32, key, &shapes, &x, op));
        compare(&format!("{name} at {level:?}"), &found, &(expected, slopes.clone()), [2e-6, 1e-5, 1e-5]);
        // The same in bf16, but an operand that comes out of f32 arithmetic may round to the other neighbour than in f64: then a
        // sum is off by 2^-8 of one of its terms. That is rare; measured: 1e-3 at worst, 2.2e-5 in the mean, and 4e-4 in the
        // mean where only one side rounds; the loss of the gated network was off by 1.7e-5.
        let found = with_level(level, || run((Path::Kernels, Precision::Bf16), DType::F32, key, &shapes, &x, op));
        compare(&format!("{name} in bf16 at {level:?}"), &found, &rounded, [5e-5, 4e-3, 1e-4]);
    }
}

/// The loss within the first tolerance of its size; of the largest element of each gradient, its worst error within the second
/// and its mean error within the third.
fn compare(name: &str, found: &(f64, Vec<Vec<f64>>), expected: &(f64, Vec<Vec<f64>>), [close, near, mean]: [f64; 3]) {
    let (loss, wanted) = (found.0, expected.0);
    let size = wanted.abs().max(1.0);
    assert!((loss - wanted).abs() < close * size, "{name}: loss {loss} instead of {wanted}");
    for (i, (g, e)) in found.1.iter().zip(&expected.1).enumerate() {
        let size = e.iter().fold(0.1f64, |m, x| m.max(x.abs()));
        let off = || g.iter().zip(e).map(|(a, b)| (a - b).abs());
        let (worst, middle) = (off().fold(0.0, f64::max), off().sum::<f64>() / g.len() as f64);
        assert!(worst < near * size, "{name}: gradient of input {i} off by {worst:.1e} of {size:.1e}");
        assert!(middle < mean * size, "{name}: gradient of input {i} off by {middle:.1e} of {size:.1e} in the mean");
        if std::env::var_os("SHOW_ERRORS").is_some() {
            println!("{name} {i}: {:.1e} {:.1e} {:.1e}", (loss - wanted).abs(), worst / size, middle / size);
        }
    }
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::Identity, Activation::GeluTanh, Activation::GeluErf, Activation::Tanh, Activation::Silu];

#[test]
fn linear_and_feed_forward() {
    for layout in [Layout::InOut, Layout::OutIn] {
        for f in ACTIVATIONS {
            let w = layout.shape(9, 35);
            check("linear", false, &[&[23, 9], &w, &[35]], &|t, x| {
                Ok(vec![linear(t, &x[0], &x[1], Some(&x[2]), layout, f)?])
            });
            check("linear without bias", false, &[&[23, 9], &w], &|t, x| {
                Ok(vec![linear(t, &x[0], &x[1], None, layout, f)?])
            });
            let down = layout.shape(35, 9);
            check("feed-forward", false, &[&[23, 9], &w, &[35], &down, &[9]], &|t, x| {
                let w = Dense { up: &x[1], up_bias: &x[2], down: &x[3], down_bias: &x[4], layout, activation: f };
                Ok(vec![feed_forward(t, &x[0], &w)?])
            });
            let bias: [&[usize]; 3] = [&[35], &[35], &[9]];
            // All biases, none, and one of each place.
            for has in [[true; 3], [false; 3], [true, false, false], [false, true, false], [false, false, true]] {
                let mut shapes: Vec<&[usize]> = vec![&[23, 9], &w, &w, &down];
                shapes.extend(bias.iter().zip(has).filter(|(_, has)| *has).map(|(b, _)| *b));
                check("gated feed-forward", false, &shapes, &|t, x| {
                    let mut rest = x[4..].iter();
                    let [gate_bias, up_bias, down_bias] = has.map(|has| if has { rest.next() } else { None });
                    let (gate, up, down) = (&x[1], &x[2], &x[3]);
                    let w = Gated { gate, gate_bias, up, up_bias, down, down_bias, layout, activation: f };
                    Ok(vec![gated_feed_forward(t, &x[0], &w)?])
                });
            }
        }
    }
}

#[test]
fn residuals_and_norms() {
    for dropout in [0.0, 0.3] {
        let drop = dropout > 0.0;
        check("layer norm", drop, &[&[40, 21], &[40, 21], &[21], &[21]], &|t, x| {
            let b = Branch { value: &x[1], dropout };
            let n = Norm::Layer { weight: &x[2], bias: &x[3], eps: 1e-5 };
            Ok(residual_norm(t, &x[0], Some(b), n)?.to_vec())
        });
        check("RMS norm", drop, &[&[40, 21], &[40, 21], &[21]], &|t, x| {
            let b = Branch { value: &x[1], dropout };
            Ok(residual_norm(t, &x[0], Some(b), Norm::Rms { weight: &x[2], eps: 1e-6 })?.to_vec())
        });
        check("residual", drop, &[&[5, 21], &[5, 21]], &|t, x| {
            Ok(vec![residual(t, &x[0], Branch { value: &x[1], dropout })?])
        });
        check("dropout", drop, &[&[5, 21]], &|t, x| Ok(vec![dropout_of(t, &x[0], dropout)?]));
    }
    // Either output alone, and no branch.
    for used in [0, 1] {
        check("one output", false, &[&[6, 8], &[8], &[8]], &|t, x| {
            let n = Norm::Layer { weight: &x[1], bias: &x[2], eps: 1e-5 };
            Ok(vec![residual_norm(t, &x[0], None, n)?[used].clone()])
        });
    }
}

fn dropout_of(t: &Tape, x: &Value, p: f32) -> Result<Value> {
    dropout(t, x, p)
}

#[test]
fn attention_of_all_kinds() {
    let spans = Spans::from_lengths([3, 0, 17, 1]);
    for (n_heads, n_kv_heads, d_head) in [(2, 2, 12), (4, 2, 5)] {
        for mask in [Mask::Full, Mask::Causal, Mask::Band { window: 4 }] {
            for dropout in [0.0, 0.2] {
                let scale = 1.0 / (d_head as f32).sqrt();
                let spec = AttentionSpec { n_heads, n_kv_heads, d_head, mask, scale, dropout };
                let (wq, wk) = (n_heads * d_head, n_kv_heads * d_head);
                check("packed", dropout > 0.0, &[&[21, wq + 2 * wk]], &|t, x| {
                    Ok(vec![attention(t, Qkv::Packed(&x[0]), &spans, &spec)?])
                });
                let k_spans = Spans::from_lengths([5, 2, 70, 1]);
                check("separate", dropout > 0.0, &[&[21, wq], &[78, wk], &[78, wk]], &|t, x| {
                    let qkv = Qkv::Separate { q: &x[0], k: &x[1], v: &x[2], k_spans: &k_spans };
                    Ok(vec![attention(t, qkv, &spans, &spec)?])
                });
            }
        }
    }
}

/// Decoding against caches that are views of larger buffers, with queries that are a part of a wider matrix, has the bits of
/// the whole sequence in one piece.
#[test]
fn cached_attention_has_the_bits_of_the_uncached() -> Result<()> {
    let (h, kv, d, n) = (4, 2, 12, 130);
    let (wq, wk) = (h * d, kv * d);
    let spec = AttentionSpec { n_heads: h, n_kv_heads: kv, d_head: d, mask: Mask::Causal, scale: 0.3, dropout: 0.0 };
    let x = Tensor::from_vec(data(n * (wq + 2 * wk), 8), (n, wq + 2 * wk), &Device::Cpu)?.to_dtype(DType::F32)?;
    let tape = Tape::inference();
    let all = attention(&tape, Qkv::Packed(&Value::constant(x.clone())), &Spans::single(n), &spec)?;
    let cache = |from| -> Result<Tensor> {
        let t = Tensor::zeros((n + 50, wk), DType::F32, &Device::Cpu)?;
        copy_rows(&t, 0, &x.narrow(1, from, wk)?, 0, n)?;
        Ok(t)
    };
    let (k, v) = (cache(wq)?, cache(wq + wk)?);
    for (from, count) in [(0, 5), (5, 1), (6, 100), (n - 1, 1)] {
        let pair = (k.narrow(0, 0, from + count)?, v.narrow(0, 0, from + count)?);
        let q = x.narrow(0, from, count)?.narrow(1, 0, wq)?;
        let some = attention(&tape, Qkv::Cached { q: &q, kv: &[pair] }, &Spans::single(count), &spec)?;
        assert_eq!(to_vec(some.tensor())?, to_vec(&all.tensor().narrow(0, from, count)?)?, "rows from {from}");
    }
    Ok(())
}

/// Scores that depend on distances: memory of several lengths, more distances than keys, tiles and blocks that are not whole.
#[test]
fn relative_attention() {
    for (mask, lengths, extra) in [
        (Mask::Causal, vec![(5, 5), (1, 9), (7, 20)], 0),
        (Mask::Causal, vec![(100, 170), (33, 33)], 3),
        (Mask::Band { window: 4 }, vec![(6, 10), (3, 3)], 1),
        (Mask::Band { window: 70 }, vec![(98, 168)], 0),
    ] {
        for dropout in [0.0, 0.3] {
            let (h, d) = (2, 6);
            let spec = AttentionSpec { n_heads: h, n_kv_heads: h, d_head: d, mask, scale: 0.4, dropout };
            let spans = Spans::from_lengths(lengths.iter().map(|l| l.0));
            let k_spans = Spans::from_lengths(lengths.iter().map(|l| l.1));
            let distances = extra + lengths.iter().map(|l| l.1).max().unwrap();
            let (n, m) = (spans.total(), k_spans.total());
            let w = h * d;
            check(
                "relative attention",
                dropout > 0.0,
                &[&[n, w], &[n, w], &[distances, w], &[m, w], &[m, w]],
                &|t, x| {
                    let kv = RelativeKeys::Rows { k: &x[3], v: &x[4], spans: &k_spans };
                    let qkv = RelativeQkv { q: &x[0], p: &x[1], r: &x[2], kv };
                    Ok(vec![attention_relative(t, &qkv, &spans, &spec)?])
                },
            );
        }
    }
}

/// A query's bits do not depend on what else is asked at once, nor on where its keys come from.
#[test]
fn relative_attention_in_pieces() -> Result<()> {
    let (h, d, n, memory) = (2, 12, 150, 40);
    let w = h * d;
    for mask in [Mask::Causal, Mask::Band { window: 41 }] {
        let spec = AttentionSpec { n_heads: h, n_kv_heads: h, d_head: d, mask, scale: 0.3, dropout: 0.0 };
        let matrix = |rows: usize, seed| -> Result<Tensor> {
            Ok(Tensor::from_vec(data(rows * w, seed), (rows, w), &Device::Cpu)?.to_dtype(DType::F32)?)
        };
        let (q, p, r) = (matrix(n, 1)?, matrix(n, 2)?, matrix(memory + n + 2, 3)?);
        let (k, v) = (matrix(memory + n, 4)?, matrix(memory + n, 5)?);
        let tape = Tape::inference();
        let run = |from: usize, count: usize| {
            let part = |t: &Tensor| -> Result<Value> { Ok(Value::constant(t.narrow(0, from, count)?.contiguous()?)) };
            let keys = memory + from + count;
            let kv = [(k.narrow(0, 0, keys)?, v.narrow(0, 0, keys)?)];
            let (q, p) = (part(&q)?, part(&p)?);
            let r = Value::constant(r.clone());
            let qkv = RelativeQkv { q: &q, p: &p, r: &r, kv: RelativeKeys::Cached(&kv) };
            to_vec(attention_relative(&tape, &qkv, &Spans::single(count), &spec)?.tensor())
        };
        let whole = run(0, n)?;
        for (from, count) in [(0, 1), (1, 99), (100, 50), (149, 1)] {
            assert_eq!(run(from, count)?, whole[from * w..(from + count) * w], "{mask:?} rows from {from}");
        }
    }
    Ok(())
}

/// With and without projection and bounds; the bounds hold some cells and outputs and leave others. In bf16 an operand that rounds to
/// the other neighbour is carried on by all later steps (with 5 outputs instead of 7: 7e-4 of the loss), so the tolerances hold
/// for numbers where none does.
#[test]
fn recurrence() {
    let spans = Spans::from_lengths([4, 0, 7, 1, 7]);
    let (n, h) = (19, 18);
    for (cell_clip, projection_clip) in [(None, None), (Some(0.2), Some(0.15))] {
        check("lstm", false, &[&[n, 4 * h], &[4 * h, h]], &|t, x| {
            let w = Lstm { recurrent: &x[1], projection: None, cell_clip, projection_clip: None };
            Ok(vec![lstm(t, &x[0], &w, &spans)?])
        });
        check("projected lstm", false, &[&[n, 4 * h], &[4 * h, 7], &[7, h]], &|t, x| {
            let w = Lstm { recurrent: &x[1], projection: Some(&x[2]), cell_clip, projection_clip };
            Ok(vec![lstm(t, &x[0], &w, &spans)?])
        });
    }
}

/// A sequence alone has the bits that it has beside others, in every number of threads.
#[test]
fn a_recurrence_does_not_depend_on_the_batch() -> Result<()> {
    let (h, p) = (40, 12);
    let lengths: Vec<usize> = (0..37).map(|i| (i * 5) % 11).collect();
    let spans = Spans::from_lengths(lengths.iter().copied());
    let make = |n: usize, d: usize, seed| {
        Ok::<_, Error>(Value::constant(
            Tensor::from_vec(data(n * d, seed), (n, d), &Device::Cpu)?.to_dtype(DType::F32)?,
        ))
    };
    let (gates, recurrent, projection) = (make(spans.total(), 4 * h, 1)?, make(4 * h, p, 2)?, make(p, h, 3)?);
    let tape = Tape::inference();
    let run = |gates: &Value, spans: &Spans| {
        let w =
            Lstm { recurrent: &recurrent, projection: Some(&projection), cell_clip: Some(3.0), projection_clip: None };
        to_vec(lstm(&tape, gates, &w, spans)?.tensor())
    };
    for level in Level::available() {
        with_level(level, || {
            let together = run(&gates, &spans)?;
            assert_eq!(pool::with_threads(1, || run(&gates, &spans))?, together);
            for r in spans.iter() {
                let alone = Value::constant(gates.tensor().narrow(0, r.start, r.len())?.contiguous()?);
                assert_eq!(run(&alone, &Spans::single(r.len()))?, together[r.start * p..r.end * p]);
            }
            Ok::<_, Error>(())
        })?;
    }
    let wrong = |gates: &Value, clip| {
        let w = Lstm { recurrent: &recurrent, projection: None, cell_clip: clip, projection_clip: None };
        lstm(&tape, gates, &w, &spans).unwrap_err().to_string()
    };
    assert!(wrong(&gates, None).contains("recurrent has shape [160, 12], expected [160, 40]"));
    assert!(wrong(&make(3, 160, 1)?, None).contains("the tokens of the spans"));
    Ok(())
}

/// Over one window and over many, with more rows than a block of answers holds.
#[test]
fn characters() {
    for (n, length, width) in [(3, 4, 4), (7, 9, 2), (5, 6, 1)] {
        check("convolve", false, &[&[n * length, 3], &[10, width * 3], &[10]], &|t, x| {
            Ok(vec![convolve_max(t, &x[0], &x[1], &x[2], length)?])
        });
    }
    // Equal windows: the gradient goes to the first.
    let ids: Vec<u32> = (0..21).map(|i| [0, 0, 1][i as usize % 3]).collect();
    check("convolve with equal windows", false, &[&[2, 3], &[8, 3], &[8]], &|t, x| {
        let x = [&gather_rows(t, &x[0], &ids)?, &x[1], &x[2]].map(Clone::clone);
        Ok(vec![convolve_max(t, &x[0], &x[1], &x[2], 7)?])
    });
    check("highway", false, &[&[6, 5], &[6, 10]], &|t, x| Ok(vec![highway(t, &x[0], &x[1])?]));
    check("row products", false, &[&[6, 5], &[6, 5]], &|t, x| Ok(vec![row_products(t, &x[0], &x[1])?]));
    check("sampled cross-entropy", false, &[&[6, 1], &[6, 3]], &|t, x| {
        let expected = Expected { truth: &[0.1; 6], drawn: &[-0.2, 0.3, 0.0], hits: &[(1, 2), (4, 0)] };
        Ok(vec![sampled_cross_entropy(t, &x[0], &x[1], &expected, 0.7)?])
    });
    check("scalar mix", false, &[&[6, 5], &[6, 5], &[2], &[1]], &|t, x| {
        Ok(vec![scalar_mix(t, &[&x[0], &x[1]], &x[2], &x[3])?])
    });
}

#[test]
fn rows_joined_and_a_row_added() {
    let order: Vec<u32> = (0..30).map(|i| i * 7 % 16).collect();
    check("join rows", false, &[&[11, 13], &[5, 13]], &|t, x| Ok(vec![join_rows(t, &x[0], &x[1], &order)?]));
    check("beside", false, &[&[9, 10], &[9, 1], &[9, 3]], &|t, x| Ok(vec![beside(t, &[&x[0], &x[1], &x[2]])?]));
    check("activation", false, &[&[9, 10]], &|t, x| Ok(vec![activate(t, &x[0], Activation::Tanh)?]));
    check("columns", false, &[&[9, 10]], &|t, x| Ok(vec![columns(t, &x[0], 0, 4)?, columns(t, &x[0], 3, 7)?]));
    check("reshape", false, &[&[6, 10]], &|t, x| Ok(vec![reshape(t, &x[0], &[15, 4])?]));
    check("add row", false, &[&[70, 12], &[3, 4]], &|t, x| Ok(vec![add_row(t, &x[0], &x[1])?]));
}

#[test]
fn embeddings_and_rows() {
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 11).collect();
    let segments: Vec<u32> = (0..40).map(|i| i % 2).collect();
    for (scale, dropout) in [(1.0, 0.0), (1.0, 0.2), (13f64.sqrt(), 0.0), (0.5, 0.2)] {
        check("embedding", dropout > 0.0, &[&[11, 13], &[2, 13]], &|t, x| {
            Ok(vec![embedding(t, &[(&x[0], &ids), (&x[1], &segments)], scale, dropout)?])
        });
    }
    check("gather", false, &[&[11, 13]], &|t, x| Ok(vec![gather_rows(t, &x[0], &ids)?]));
}

#[test]
fn losses() {
    let targets: Vec<i32> = (0..40).map(|i| if i % 3 == 1 { IGNORE } else { i % 29 }).collect();
    for (layout, smoothing) in [(Layout::OutIn, 0.0), (Layout::InOut, 0.1)] {
        let w = layout.shape(6, 29);
        check("cross-entropy", false, &[&[40, 6], &w, &[29]], &|t, x| {
            let p = Projection { weight: &x[1], bias: Some(&x[2]), layout, smoothing, scale: 0.5 };
            Ok(vec![cross_entropy(t, &x[0], &p, &targets)?])
        });
    }
    let targets: Vec<f32> = data(35, 4).iter().map(|t| (0.5 + 0.5 * t) as f32).collect();
    for kind in [Distance::Square, Distance::Binary] {
        check("distance", false, &[&[7, 5]], &|t, x| Ok(vec![distance(t, &x[0], kind, &targets, 0.3)?]));
    }
}

/// A parameter used twice, its gradient over two backward passes, and one update, against the definitions.
#[test]
fn shared_parameters_accumulate_in_place_and_learn() -> Result<()> {
    let result = |path, dtype| -> Result<(Vec<f32>, f64)> {
        let make = |name, n, shape: (usize, usize), seed| -> Result<Param> {
            Ok(Param::new(name, Tensor::from_vec(data(n, seed), shape, &Device::Cpu)?.to_dtype(dtype)?))
        };
        let table = make("table", 11 * 6, (11, 6), 1)?;
        let mut moments = Moments::zeros(&table)?;
        let mut norm = 0.0;
        for step in 1..=3 {
            for part in 0..2u32 {
                let tape = Tape::recording().with_path(path);
                let w = tape.param(&table);
                let ids: Vec<u32> = (0..9).map(|i| (i * 3 + part) % 11).collect();
                let x = embedding(&tape, &[(&w, &ids)], 1.0, 0.0)?;
                let p = Projection { weight: &w, bias: None, layout: Layout::OutIn, smoothing: 0.0, scale: 0.1 };
                let targets: Vec<i32> = ids.iter().map(|i| (i + 1) as i32 % 11).collect();
                let loss = cross_entropy(&tape, &x, &p, &targets)?;
                tape.backward(&loss)?;
            }
            norm = grad_norm([&table])?;
            let h = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 0.5 };
            adamw(&table, &mut moments, &h)?;
            assert!(table.grad().is_none());
        }
        Ok((to_vec(&table.tensor())?, norm))
    };
    let (expected, norm) = result(Path::Definitions, DType::F64)?;
    for level in Level::available() {
        let (found, n) = with_level(level, || result(Path::Kernels, DType::F32))?;
        assert!((n - norm).abs() < 1e-5 * norm, "{n} instead of {norm}");
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-5, "{level:?}: {a} instead of {b}");
        }
    }
    Ok(())
}

/// A computation cut in two, the gradient carried over by hand, has the bits of the whole.
#[test]
fn a_backward_pass_can_start_from_any_output() -> Result<()> {
    let make =
        |n: usize, d: usize, seed| Tensor::from_vec(data(n * d, seed), (n, d), &Device::Cpu)?.to_dtype(DType::F32);
    let (x, w) = (make(9, 6, 1)?, Param::new("w", make(6, 6, 2)?));
    let first = |tape: &Tape, x: &Value| {
        let f = Activation::Silu;
        linear(tape, x, &tape.param(&w), None, Layout::InOut, f)
    };
    let second = |tape: &Tape, y: &Value| loss(tape, std::slice::from_ref(y));
    let gradients = |dx: Option<Tensor>| -> Result<(Vec<f32>, Vec<f32>)> {
        let all = (to_vec(&dx.expect("of the input"))?, to_vec(&w.grad().expect("of the weight"))?);
        w.clear_grad();
        Ok(all)
    };
    let tape = Tape::recording();
    let leaf = tape.leaf(x.clone());
    let whole = gradients(tape.backward(&second(&tape, &first(&tape, &leaf)?)?)?.of(&leaf))?;

    let (front, back) = (Tape::recording(), Tape::recording());
    let leaf = front.leaf(x);
    let y = first(&front, &leaf)?;
    let border = back.leaf(y.tensor().clone());
    let g = back.backward(&second(&back, &border)?)?.of(&border).expect("of the border");
    let wrong = front.backward_from(&y, g.narrow(0, 0, 3)?).err().map(|e| e.to_string());
    assert!(wrong.is_some_and(|e| e.contains("gradient has shape [3, 6], expected [9, 6]")));
    assert_eq!(gradients(front.backward_from(&y, g)?.of(&leaf))?, whole);
    Ok(())
}
