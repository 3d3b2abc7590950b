//! Memory of prepared weights: blocks side by side on huge pages, so that a model's weights are one long stream.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Size of a huge page, to which slabs are aligned.
const PAGE: usize = 2 << 20;
/// Blocks begin at multiples of it: a cache line's pair, which processors fetch together.
const LINE: usize = 128;
/// Sizes of the first slab and of the largest that is made for more than one block.
const SIZES: [usize; 2] = [4 << 20, 64 << 20];

struct Slab {
    ptr: *mut u8,
    layout: Layout,
}

// SAFETY: a slab is only memory; its blocks are disjoint, and each is written by its owner before it is shared.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    fn new(size: usize) -> Self {
        let layout = match Layout::from_size_align(size, PAGE) {
            Ok(layout) => layout,
            // Such a size fits no address space.
            Err(_) => handle_alloc_error(Layout::new::<u8>()),
        };
        // SAFETY: the size is not 0.
        let ptr = unsafe { alloc(layout) };
        if ptr.is_null() {
            handle_alloc_error(layout);
        }
        #[cfg(target_os = "linux")]
        // SAFETY: the range is this slab's own, nothing has been written yet, and advice changes no content.
        unsafe {
            libc::madvise(ptr.cast(), size, libc::MADV_HUGEPAGE)
        };
        Slab { ptr, layout }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this layout.
        unsafe { dealloc(self.ptr, self.layout) }
    }
}

/// The slab that the next block is cut from, and how much of it is taken.
struct Current {
    slab: Weak<Slab>,
    used: usize,
}

static CURRENT: Mutex<Current> = Mutex::new(Current { slab: Weak::new(), used: 0 });

/// Memory of one owner.
pub(super) struct Block {
    slab: Arc<Slab>,
    start: usize,
    bytes: usize,
}

impl Block {
    /// `bytes` bytes that are not initialised.
    pub fn new(bytes: usize) -> Self {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let old = current.slab.upgrade();
        if let Some(slab) = &old
            && current.used + bytes <= slab.layout.size()
        {
            let start = current.used;
            current.used = (start + bytes).next_multiple_of(LINE);
            return Block { slab: slab.clone(), start, bytes };
        }
        let size = old.map_or(SIZES[0], |old| (2 * old.layout.size()).min(SIZES[1]));
        let size = size.max(bytes).next_multiple_of(PAGE);
        let slab = Arc::new(Slab::new(size));
        // A block larger than any shared slab leaves the current one as it is.
        if bytes <= SIZES[1] / 2 || size - bytes > PAGE {
            *current = Current { slab: Arc::downgrade(&slab), used: bytes.next_multiple_of(LINE) };
        }
        Block { slab, start: 0, bytes }
    }

    /// The first byte.
    pub fn ptr(&self) -> *mut u8 {
        // SAFETY: the block lies inside its slab.
        unsafe { self.slab.ptr.add(self.start) }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_disjoint_and_keep_their_content() {
        let sizes = [1, 100, 1 << 20, 5 << 20, 3 << 20, 70 << 20, 7, 4 << 20];
        let blocks: Vec<Block> = sizes.iter().map(|&n| Block::new(n)).collect();
        for (i, b) in blocks.iter().enumerate() {
            assert!((b.ptr() as usize).is_multiple_of(LINE) && b.bytes() == sizes[i]);
            // SAFETY: the block has that many bytes and nobody else uses them.
            unsafe { b.ptr().write_bytes(i as u8, b.bytes()) };
        }
        for (i, b) in blocks.iter().enumerate() {
            // SAFETY: written above.
            let all = unsafe { std::slice::from_raw_parts(b.ptr(), b.bytes()) };
            assert!(all.iter().all(|&x| x == i as u8));
        }
    }
}
