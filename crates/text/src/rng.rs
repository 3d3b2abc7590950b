//! Counter-based random numbers: pure functions of a key and a counter, so that a data set's order is a function of
//! (seed, position) and resuming needs only a number.
//!
//! The mixer is the finaliser of SplitMix64 (Steele, Lea & Flood 2014).

/// The finaliser of SplitMix64: a bijection of 64 bits.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A key: the root is the seed, children are named by numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of a seed.
    pub fn new(seed: u64) -> Self {
        Key(mix(seed.wrapping_add(GOLDEN)))
    }

    /// The child key of a number (an epoch, an index, a purpose).
    #[must_use]
    pub fn child(self, n: u64) -> Self {
        Key(mix(self.0 ^ mix(n.wrapping_mul(GOLDEN).wrapping_add(GOLDEN))))
    }

    /// A stream of numbers drawn from this key.
    pub fn stream(self) -> Stream {
        Stream { state: self.0 }
    }
}

/// SplitMix64 started at a key.
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// A uniform number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A uniform number below `n` (multiply-shift; the bias is below n / 2^64). 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next_u64() as u128 * n as u128) >> 64) as usize
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// A pseudo-random permutation of `0..n`, evaluated one index at a time: a four-round Feistel network on the next even
/// number of bits, walked along its cycle until the result is below `n` (Black & Rogaway 2002).
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    n: u64,
    half: u32,
    rounds: [u64; 4],
}

impl Permutation {
    /// The permutation of `0..n` that a key stands for.
    pub fn new(n: usize, key: Key) -> Self {
        let n = n as u64;
        let bits = (64 - n.saturating_sub(1).leading_zeros()).max(2);
        let mut s = key.stream();
        Permutation { n, half: bits.div_ceil(2), rounds: std::array::from_fn(|_| s.next_u64()) }
    }

    /// Where index `i` goes.
    ///
    /// # Panics
    /// When `i` is not below `n`.
    pub fn get(&self, i: usize) -> usize {
        assert!((i as u64) < self.n, "index {i} of a permutation of {}", self.n);
        let mask = (1u64 << self.half) - 1;
        let mut x = i as u64;
        loop {
            let (mut l, mut r) = (x >> self.half, x & mask);
            for k in self.rounds {
                (l, r) = (r, l ^ (mix(r ^ k) & mask));
            }
            x = l << self.half | r;
            if x < self.n {
                return x as usize;
            }
        }
    }
}
