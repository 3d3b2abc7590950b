//! An allocator for programs that train or serve: buffers are kept when they are freed, and large ones lie on huge pages.
//!
//! A training step allocates and frees the same buffers again and again. Given back to the operating system, each comes back as
//! pages that must be faulted in and zeroed one by one: 5,000 faults in a step of a small model. Where no freed block has the size
//! that is asked for, a larger one is cut, or (on Linux) the pages of several are moved into one. A binary opts in with
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: genus_ops::memory::Recycler = genus_ops::memory::Recycler;
//! # fn main() { assert!(vec![1u8; 8 << 20].iter().all(|&x| x == 1)); }
//! ```
//!
//! What is kept and what is in use together exceed the most that was in use at one time by no more than 64 MiB,
//! and by nothing where that is a GiB or more.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator below 128 KiB, recycled blocks from there on, on huge pages from 4 MiB on (on Unix; elsewhere the
/// system's allocator alone).
#[derive(Clone, Copy, Debug, Default)]
pub struct Recycler;

#[cfg(unix)]
mod large {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Size of a huge page.
    const PAGE: usize = 2 << 20;
    /// From here on blocks lie on huge pages: below, what is not used of the last one would weigh too much.
    const HUGE: usize = 4 << 20;
    /// What smaller blocks are multiples of: a page of any common machine.
    const SMALL: usize = 16 << 10;
    /// Bytes by which kept blocks may go beyond the most that was in use: sizes that alternate would otherwise drive each other out,
    /// and in a small model's step the largest block of all was mapped and zeroed anew each time. Where more than [`MUCH`] is in
    /// use, memory is what is short, and there is none.
    const SLACK: usize = 64 << 20;
    /// See [`SLACK`].
    const MUCH: usize = 1 << 30;
    /// Blocks kept at most.
    const SLOTS: usize = 1024;
    /// Kept blocks that are made into one at most.
    #[cfg(target_os = "linux")]
    const PIECES: usize = 32;

    /// Freed blocks, oldest first, and the account of bytes.
    struct Kept {
        blocks: [(usize, usize); SLOTS],
        len: usize,
        kept: usize,
        live: usize,
        peak: usize,
    }

    static KEPT: Mutex<Kept> = Mutex::new(Kept { blocks: [(0, 0); SLOTS], len: 0, kept: 0, live: 0, peak: 0 });

    fn lock() -> MutexGuard<'static, Kept> {
        KEPT.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size of the block that serves `size` bytes: few distinct sizes, so that buffers of similar batches share blocks, with
    /// at most an eighth of (untouched) excess.
    pub fn class(size: usize) -> usize {
        let least = if size >= HUGE { PAGE } else { SMALL };
        size.next_multiple_of((size.next_power_of_two() / 16).max(least))
    }

    impl Kept {
        fn remove(&mut self, i: usize) -> (usize, usize) {
            let block = self.blocks[i];
            self.blocks.copy_within(i + 1..self.len, i);
            self.len -= 1;
            self.kept -= block.1;
            block
        }

        /// Whether a block consists of whole huge pages.
        fn whole(&self, i: usize) -> bool {
            let (start, size) = self.blocks[i];
            start.is_multiple_of(PAGE) && size.is_multiple_of(PAGE)
        }

        fn keep(&mut self, start: usize, size: usize) {
            if self.len == SLOTS {
                let (p, s) = self.remove(0);
                unmap(p, s);
            }
            self.blocks[self.len] = (start, size);
            self.len += 1;
            self.kept += size;
        }
    }

    /// A block of `class(size)` bytes, on a huge page's boundary if it is large, and whether it is fresh (and so zero); null when
    /// memory is short.
    pub fn take(asked: usize) -> (*mut u8, bool) {
        let size = class(asked);
        {
            let mut k = lock();
            k.live += size;
            k.peak = k.peak.max(k.live);
            // The youngest first: its pages are the likeliest to be in a cache.
            if let Some(i) = (0..k.len).rev().find(|&i| k.blocks[i].1 == size) {
                return (k.remove(i).0 as *mut u8, false);
            }
            #[cfg(target_os = "linux")]
            if size >= HUGE {
                if let Some(start) = k.split(size) {
                    return (start as *mut u8, false);
                }
                let pieces = k.pieces(size);
                if pieces.len > 0 {
                    drop(k);
                    if let Some(ptr) = glue(size, asked, &pieces) {
                        return (ptr, false);
                    }
                    k = lock();
                }
            }
            trim(&mut k);
        }
        let ptr = map(size, asked);
        if ptr.is_null() {
            lock().live -= size;
        }
        (ptr, true)
    }

    /// Kept blocks that make up a new one.
    #[cfg(target_os = "linux")]
    struct Pieces {
        blocks: [(usize, usize); PIECES],
        len: usize,
    }

    #[cfg(target_os = "linux")]
    impl Kept {
        /// Takes `size` bytes from the front of the kept block, and leaves the rest.
        fn cut(&mut self, i: usize, size: usize) -> usize {
            let (start, all) = self.blocks[i];
            if size == all {
                return self.remove(i).0;
            }
            self.blocks[i] = (start + size, all - size);
            self.kept -= size;
            start
        }

        /// The front of the smallest kept block that is large enough.
        fn split(&mut self, size: usize) -> Option<usize> {
            let fits = (0..self.len).filter(|&i| self.whole(i) && self.blocks[i].1 > size);
            let i = fits.min_by_key(|&i| self.blocks[i].1)?;
            Some(self.cut(i, size))
        }

        /// The oldest kept blocks that together have `size` bytes, or all there are.
        fn pieces(&mut self, size: usize) -> Pieces {
            let mut out = Pieces { blocks: [(0, 0); PIECES], len: 0 };
            let mut left = size;
            let mut i = 0;
            while left > 0 && out.len < PIECES && i < self.len {
                if !self.whole(i) {
                    i += 1;
                    continue;
                }
                let part = self.blocks[i].1.min(left);
                out.blocks[out.len] = (self.cut(i, part), part);
                out.len += 1;
                left -= part;
            }
            out
        }
    }

    /// A block of `size` bytes made of the pieces, whose pages move into it without being cleared, and of new pages if these are
    /// not enough; none, when the system refuses. Pieces that were not moved are kept again.
    #[cfg(target_os = "linux")]
    fn glue(size: usize, asked: usize, pieces: &Pieces) -> Option<*mut u8> {
        let pieces = &pieces.blocks[..pieces.len];
        let start = map(size, asked);
        let mut at = start as usize;
        for (i, &(from, part)) in pieces.iter().enumerate() {
            // SAFETY: the piece is nobody's, and its new place is a part of the new mapping, which nothing uses yet.
            let moved = !start.is_null()
                && unsafe {
                    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                    libc::mremap(from as *mut libc::c_void, part, part, flags, at as *mut libc::c_void)
                } != libc::MAP_FAILED;
            if !moved {
                if !start.is_null() {
                    // Whether the place of this piece is still mapped is not known, and another thread may have it by now: it is left.
                    unmap(start as usize, at - start as usize);
                    unmap(at + part, start as usize + size - at - part);
                }
                let mut k = lock();
                pieces[i..].iter().for_each(|&(from, part)| k.keep(from, part));
                return None;
            }
            at += part;
        }
        trim(&mut lock());
        Some(start)
    }

    /// Takes a block back.
    pub fn give(ptr: *mut u8, size: usize) {
        let size = class(size);
        let mut k = lock();
        k.live -= size;
        k.keep(ptr as usize, size);
        trim(&mut k);
    }

    /// Gives the oldest blocks back to the system while more is held than was ever in use, and [`SLACK`]; of the last one no more
    /// than what is too much.
    fn trim(k: &mut Kept) {
        let slack = if k.peak < MUCH { SLACK } else { 0 };
        while k.len > 0 && k.live + k.kept > k.peak + slack {
            let excess = (k.live + k.kept - k.peak - slack).next_multiple_of(PAGE);
            let (start, size) = k.blocks[0];
            if k.whole(0) && size > excess {
                k.blocks[0].1 -= excess;
                k.kept -= excess;
                unmap(start + size - excess, excess);
                return;
            }
            k.remove(0);
            unmap(start, size);
        }
    }

    /// A mapping of `size` bytes. If it is large it lies on huge pages, all but the one that `asked` bytes end in, unless they
    /// nearly fill it: were it huge, what lies behind the end would be resident as well. Over the many matrices of a model that
    /// adds up (165 MB in training GPT-2 124M).
    fn map(size: usize, asked: usize) -> *mut u8 {
        let huge = size >= HUGE;
        let all = if huge { size + PAGE } else { size };
        // SAFETY: a new anonymous mapping; the parts before and behind the aligned block are returned at once.
        unsafe {
            let p = libc::mmap(
                std::ptr::null_mut(),
                all,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if p == libc::MAP_FAILED {
                return std::ptr::null_mut();
            }
            if !huge {
                return p.cast();
            }
            let start = (p as usize).next_multiple_of(PAGE);
            unmap(p as usize, start - p as usize);
            unmap(start + size, p as usize + all - start - size);
            #[cfg(target_os = "linux")]
            {
                libc::madvise(start as *mut libc::c_void, size, libc::MADV_HUGEPAGE);
                let (last, used) = (asked / PAGE * PAGE, asked % PAGE);
                if used > 0 && used <= PAGE / 8 * 7 {
                    libc::madvise((start + last) as *mut libc::c_void, PAGE, libc::MADV_NOHUGEPAGE);
                }
            }
            #[cfg(not(target_os = "linux"))]
            let _ = asked;
            start as *mut u8
        }
    }

    fn unmap(start: usize, size: usize) {
        if size > 0 {
            // SAFETY: a part of a mapping that `map` made and that nobody uses any more.
            unsafe { libc::munmap(start as *mut libc::c_void, size) };
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn classes_hold_what_they_serve_with_little_excess() {
            for size in [4 << 20, (4 << 20) + 1, 6_291_456, 25_165_824, 154_389_504, 205_852_672] {
                let c = class(size);
                assert!(c >= size && c.is_multiple_of(PAGE) && c <= size + (size / 8).max(PAGE), "{size} {c}");
            }
            for size in [128 << 10, 524_288, 524_289, 2_000_000, (4 << 20) - 1] {
                let c = class(size);
                assert!(c >= size && c.is_multiple_of(SMALL) && c <= size + (size / 8).max(SMALL), "{size} {c}");
            }
        }

        #[test]
        #[cfg(target_os = "linux")]
        fn blocks_are_cut_and_glued() {
            let mut k = Kept { blocks: [(0, 0); SLOTS], len: 0, kept: 0, live: 0, peak: 0 };
            let block = |size: usize| {
                let p = map(size, size);
                // SAFETY: the block has `size` bytes.
                unsafe { p.write_bytes((size / PAGE) as u8, size) };
                p as usize
            };
            for pages in [3, 5, 2] {
                k.keep(block(pages * PAGE), pages * PAGE);
            }
            k.keep(map(SMALL, SMALL) as usize, SMALL);
            let first = k.blocks[0].0;
            assert_eq!(k.split(2 * PAGE), Some(first));
            assert_eq!((k.len, k.kept, k.blocks[0]), (4, 8 * PAGE + SMALL, (first + 2 * PAGE, PAGE)));

            let pieces = k.pieces(7 * PAGE);
            assert_eq!((pieces.len, k.len, k.kept), (3, 2, PAGE + SMALL));
            let all = glue(9 * PAGE, 9 * PAGE, &pieces).unwrap() as *const u8;
            // One page of the block of three, five of that of five, one of that of two, and two new ones.
            for (page, expected) in [3, 5, 5, 5, 5, 5, 2, 0, 0].into_iter().enumerate() {
                for at in [0, PAGE / 2, PAGE - 1] {
                    // SAFETY: the block has nine pages.
                    assert_eq!(unsafe { *all.add(page * PAGE + at) }, expected, "page {page}, byte {at}");
                }
            }
            unmap(all as usize, 9 * PAGE);
            unmap(first, 2 * PAGE);
            (0..k.len).for_each(|i| unmap(k.blocks[i].0, k.blocks[i].1));
        }

        #[test]
        fn a_freed_block_comes_back() {
            for (size, aligned) in [(37 << 20, PAGE), (333_333, 4096)] {
                let (p, fresh) = take(size);
                assert!(fresh && !p.is_null() && (p as usize).is_multiple_of(aligned));
                // SAFETY: the block has `size` bytes.
                unsafe { p.write_bytes(7, size) };
                give(p, size);
                let (q, fresh) = take(size);
                assert!(!fresh && q == p);
                give(q, size);
                // SAFETY: the kept block is still mapped.
                assert_eq!(unsafe { *q }, 7);
            }
        }
    }
}

/// From here on buffers are recycled.
#[cfg(unix)]
const LARGE: usize = 128 << 10;

// SAFETY: large blocks are exclusive mappings of at least the asked size, on a page's boundary; all else is the system's.
unsafe impl GlobalAlloc for Recycler {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        #[cfg(unix)]
        if layout.size() >= LARGE && layout.align() <= 4096 {
            return large::take(layout.size()).0;
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        #[cfg(unix)]
        if layout.size() >= LARGE && layout.align() <= 4096 {
            let (p, fresh) = large::take(layout.size());
            if !fresh {
                // SAFETY: the block has that many bytes.
                unsafe { p.write_bytes(0, layout.size()) };
            }
            return p;
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        #[cfg(unix)]
        if layout.size() >= LARGE && layout.align() <= 4096 {
            return large::give(ptr, layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        #[cfg(unix)]
        {
            let (old, new) = (layout.size() >= LARGE, new_size >= LARGE);
            if layout.align() <= 4096 && (old || new) {
                if old && new && large::class(layout.size()) == large::class(new_size) {
                    return ptr;
                }
                // SAFETY: the caller's promise: the sizes are valid for the layout's alignment, and the block is the caller's.
                unsafe {
                    let to = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
                    if !to.is_null() {
                        std::ptr::copy_nonoverlapping(ptr, to, layout.size().min(new_size));
                        self.dealloc(ptr, layout);
                    }
                    return to;
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}
