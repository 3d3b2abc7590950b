//! Random numbers that are a function of where they are used: dropout masks that a resumed run, a recomputed layer and the
//! backward pass all see again without storing them.

/// Identifies one stream of random bits: a seed, a training step and the operation's number within the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

/// The finaliser of SplitMix64: a bijection whose output bits each depend on all input bits.
pub fn mix64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Key {
    /// The key of a run's step.
    pub fn new(seed: u64, step: u64) -> Self {
        Key(mix64(mix64(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(step)))
    }

    /// A key derived from this one.
    pub fn child(self, i: u64) -> Self {
        Key(mix64(self.0.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))))
    }

    /// The key's bits.
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// Multiplies `values[j]` by 0 with probability `p`, else by `1 / (1 - p)`, by the stream `key` at row `row`, columns from `col`.
///
/// Written so that the compiler vectorises it inside a kernel of any level; the bits do not depend on the level.
#[inline(always)]
pub(crate) fn drop_row(key: Key, row: u64, col: u32, p: f32, values: &mut [f32]) {
    let k = key.child(row).0;
    let (lo, hi) = (k as u32, (k >> 32) as u32);
    let threshold = (p as f64 * 4_294_967_296.0) as u32;
    let keep = 1.0 / (1.0 - p);
    for (j, v) in values.iter_mut().enumerate() {
        let mut x = (col.wrapping_add(j as u32)).wrapping_mul(0x9e37_79b9) ^ lo;
        x ^= x >> 16;
        x = x.wrapping_mul(0x7feb_352d);
        x ^= hi;
        x ^= x >> 15;
        x = x.wrapping_mul(0x846c_a68b);
        x ^= x >> 16;
        *v *= if x < threshold { 0.0 } else { keep };
    }
}

/// The factors (0 or `1 / (1 - p)`) of dropout over a `[rows, cols]` array, rows numbered from `row0`.
pub(crate) fn dropout_factors(key: Key, row0: u64, rows: usize, cols: usize, p: f32) -> Vec<f32> {
    let mut mask = vec![1f32; rows * cols];
    for (r, row) in mask.chunks_mut(cols.max(1)).enumerate() {
        drop_row(key, row0 + r as u64, 0, p, row);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_independence() {
        let (rows, cols, p) = (400, 500, 0.1);
        let key = Key::new(7, 3).child(2);
        let m = dropout_factors(key, 0, rows, cols, p);
        let kept = m.iter().filter(|&&x| x != 0.0).count() as f64 / m.len() as f64;
        // 200,000 draws: one standard deviation is 0.00067.
        assert!((kept - 0.9).abs() < 0.0034, "{kept}");
        // Neighbours in a row, in a column, and the same place under the next key are independent.
        let other = dropout_factors(Key::new(7, 4).child(2), 0, rows, cols, p);
        let pair = |f: &dyn Fn(usize) -> (f32, f32)| {
            (0..m.len() - cols).filter(|&i| f(i) == (0.0, 0.0)).count() as f64 / (m.len() - cols) as f64
        };
        for both in [pair(&|i| (m[i], m[i + 1])), pair(&|i| (m[i], m[i + cols])), pair(&|i| (m[i], other[i]))] {
            // 0.01 expected, one standard deviation 0.00022.
            assert!((both - 0.01).abs() < 0.0011, "{both}");
        }
    }

    #[test]
    fn a_part_equals_the_whole() {
        let key = Key::new(1, 1);
        let whole = dropout_factors(key, 5, 1, 64, 0.5);
        let mut part = vec![1f32; 24];
        drop_row(key, 5, 40, 0.5, &mut part);
        assert_eq!(part, whole[40..]);
    }
}
