//! Keys and values of the tokens seen so far.

use crate::Result;
use candle_core::{DType, Device, Tensor};
use genus_ops::copy_rows;

/// One layer's keys and values, in buffers that grow by doubling.
#[derive(Debug)]
struct LayerCache {
    keys: Tensor,
    values: Tensor,
    /// Rows at the front that were forgotten.
    from: usize,
    len: usize,
}

/// The cache of one sequence over all layers. The forward pass appends to it; there is no second forward.
#[derive(Debug, Default)]
pub struct SequenceCache {
    layers: Vec<LayerCache>,
    len: usize,
    /// Of a stack that attends to an encoder: each layer's keys and values of the encoded sequence. They never change, so that
    /// copies share them.
    encoded: Vec<(Tensor, Tensor)>,
    /// Of a stack whose scores depend on distances: what each layer makes of them, for as many as were needed so far. Copies share it.
    distances: Vec<Tensor>,
}

/// Rows of a new buffer.
const FIRST: usize = 32;

impl SequenceCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of tokens seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Counts the tokens of a forward pass, after every layer appended them.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// An independent copy.
    ///
    /// # Errors
    /// When memory on the device is short.
    pub fn fork(&self) -> Result<Self> {
        let copy = |t: &Tensor, l: &LayerCache| -> Result<Tensor> {
            let (rows, width) = t.dims2()?;
            let new = buffer(rows, width, t.dtype(), t.device())?;
            copy_rows(&new, 0, t, l.from, l.len)?;
            Ok(new)
        };
        let of = |l: &LayerCache| {
            Ok(LayerCache { keys: copy(&l.keys, l)?, values: copy(&l.values, l)?, from: 0, len: l.len })
        };
        let layers = self.layers.iter().map(of).collect::<Result<_>>()?;
        Ok(SequenceCache { layers, len: self.len, encoded: self.encoded.clone(), distances: self.distances.clone() })
    }

    /// Becomes an independent copy of another one, in its own memory where that is large enough. Its first `common` tokens must be
    /// the other's: they are not copied.
    ///
    /// # Errors
    /// When memory on the device is short.
    pub fn copy_from(&mut self, other: &Self, common: usize) -> Result<()> {
        let fits = |(own, l): (&LayerCache, &LayerCache)| {
            own.from == 0 && l.from == 0 && own.len >= common && own.keys.dims()[0] >= l.len
        };
        if self.layers.len() != other.layers.len() || !self.layers.iter().zip(&other.layers).all(fits) {
            *self = other.fork()?;
            return Ok(());
        }
        for (own, l) in self.layers.iter_mut().zip(&other.layers) {
            let first = common.min(l.len);
            copy_rows(&own.keys, first, &l.keys, first, l.len - first)?;
            copy_rows(&own.values, first, &l.values, first, l.len - first)?;
            own.len = l.len;
        }
        self.len = other.len;
        self.encoded.clone_from(&other.encoded);
        self.distances.clone_from(&other.distances);
        Ok(())
    }

    /// What a layer makes of distances, if it is kept for at least `n`.
    pub(crate) fn distances(&self, layer: usize, n: usize) -> Option<&Tensor> {
        self.distances.get(layer).filter(|t| t.dims()[0] >= n)
    }

    /// Keeps what a layer makes of distances.
    pub(crate) fn keep_distances(&mut self, layer: usize, mapped: Tensor) {
        match self.distances.get_mut(layer) {
            Some(t) => *t = mapped,
            None => self.distances.push(mapped),
        }
    }

    /// Whether nothing was appended to a layer.
    pub(crate) fn is_new(&self, layer: usize) -> bool {
        self.layers.len() <= layer
    }

    /// Keys that a layer holds.
    pub(crate) fn held(&self, layer: usize) -> usize {
        self.layers.get(layer).map_or(0, |l| l.len)
    }

    /// Forgets all but the last `n` keys and values.
    pub(crate) fn keep_last(&mut self, n: usize) {
        for l in &mut self.layers {
            let gone = l.len.saturating_sub(n);
            l.from += gone;
            l.len -= gone;
        }
    }

    /// Keeps the next layer's keys and values of the encoded sequence.
    pub(crate) fn keep_encoded(&mut self, keys: Tensor, values: Tensor) {
        self.encoded.push((keys, values));
    }

    /// A layer's keys and values of the encoded sequence.
    pub(crate) fn encoded(&self, layer: usize) -> Option<&(Tensor, Tensor)> {
        self.encoded.get(layer)
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for l in &mut self.layers {
            l.len = l.len.min(len);
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let of = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        let own: usize = self.layers.iter().map(|l| of(&l.keys) + of(&l.values)).sum();
        own + self.encoded.iter().map(|(k, v)| of(k) + of(v)).sum::<usize>()
    }

    /// Appends rows `from..from + n` of `keys` and `values` (`[_, width]`) to layer `layer` and returns all of its keys and
    /// values, `[tokens, width]`.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        from: usize,
        n: usize,
    ) -> Result<(Tensor, Tensor)> {
        let (width, dtype, device) = (keys.dim(1)?, keys.dtype(), keys.device());
        while self.layers.len() <= layer {
            let (keys, values) =
                (buffer(FIRST.max(n), width, dtype, device)?, buffer(FIRST.max(n), width, dtype, device)?);
            self.layers.push(LayerCache { keys, values, from: 0, len: 0 });
        }
        let l = &mut self.layers[layer];
        let end = l.len + n;
        let capacity = l.keys.dim(0)?;
        if l.from + end > capacity {
            // What was forgotten makes room, too.
            let rows = if 2 * end <= capacity { capacity } else { end.max(2 * capacity) };
            for t in [&mut l.keys, &mut l.values] {
                let larger = buffer(rows, width, dtype, device)?;
                copy_rows(&larger, 0, t, l.from, l.len)?;
                *t = larger;
            }
            l.from = 0;
        }
        copy_rows(&l.keys, l.from + l.len, keys, from, n)?;
        copy_rows(&l.values, l.from + l.len, values, from, n)?;
        l.len = end;
        Ok((l.keys.narrow(0, l.from, end)?, l.values.narrow(0, l.from, end)?))
    }
}

fn buffer(rows: usize, width: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    Ok(Tensor::zeros((rows, width), dtype, device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: usize, first: f32) -> Tensor {
        let data: Vec<f32> = (0..n * 3).map(|i| first + i as f32).collect();
        Tensor::from_vec(data, (n, 3), &Device::Cpu).unwrap()
    }

    fn held(cache: &SequenceCache) -> Vec<Vec<f32>> {
        let all = |t: &Tensor, l: &LayerCache| t.narrow(0, l.from, l.len).unwrap().flatten_all().unwrap();
        let layers = cache.layers.iter().flat_map(|l| [all(&l.keys, l), all(&l.values, l)]);
        layers.map(|t| t.to_vec1().unwrap()).collect()
    }

    /// Two caches that are alike up to a token.
    fn pair(alike: usize, n: usize) -> [SequenceCache; 2] {
        [100.0, 200.0].map(|own| {
            let mut cache = SequenceCache::new();
            for layer in 0..2 {
                let (k, v) = (rows(alike, layer as f32), rows(alike, 50.0));
                cache.append(layer, &k, &v, 0, alike).unwrap();
                let (k, v) = (rows(n - alike, own), rows(n - alike, own + 7.0));
                cache.append(layer, &k, &v, 0, n - alike).unwrap();
            }
            cache.advance(n);
            cache
        })
    }

    #[test]
    fn copies_are_whole_and_independent() {
        // The last is longer than a first buffer.
        for (alike, n) in [(3, 5), (0, 4), (4, 5), (2, 40)] {
            let [mut a, b] = pair(alike, n);
            let expected = held(&b);
            assert_eq!(held(&b.fork().unwrap()), expected);
            a.copy_from(&b, alike).unwrap();
            assert_eq!((held(&a), a.len()), (expected.clone(), n));
            let mut small = SequenceCache::new();
            small.copy_from(&b, 0).unwrap();
            assert_eq!((held(&small), small.len()), (expected.clone(), n));
            a.append(0, &rows(1, -9.0), &rows(1, -9.0), 0, 1).unwrap();
            small.append(0, &rows(1, -9.0), &rows(1, -9.0), 0, 1).unwrap();
            assert_eq!(held(&b), expected);
        }
    }

    #[test]
    fn what_was_forgotten_is_not_copied() {
        let [mut a, mut b] = pair(3, 9);
        b.keep_last(4);
        a.copy_from(&b, 3).unwrap();
        assert_eq!(held(&a), held(&b));
        assert_eq!(held(&a)[0].len(), 12);
    }
}
