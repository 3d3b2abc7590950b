//! The thread pool of the kernels: a few threads that spin for some microseconds between two pieces of work and then sleep.
//!
//! A training step of a small model hands out thousands of pieces of a few microseconds each, so waking threads through the
//! operating system would cost more than the work; an idle process must not burn a core, so the spinning is bounded.

#![allow(unsafe_code)]

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, OnceLock};

/// How often a worker looks for work before it sleeps: about 100 microseconds.
const SPINS: usize = 4_000;

type Task = dyn Fn(usize) + Sync;

struct Shared {
    /// Number of the current job; 0 when none is open.
    open: AtomicUsize,
    job: UnsafeCell<Option<(*const Task, usize)>>,
    next: AtomicUsize,
    active: AtomicUsize,
    panicked: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the thread that holds the submission lock while no job is open and no worker is active,
// and read by workers only after they registered as active and saw the job open.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only followed while `run` keeps the closure alive.
unsafe impl Send for Shared {}

struct Pool {
    shared: &'static Shared,
    submit: Mutex<usize>,
    threads: usize,
}

static POOL: OnceLock<Pool> = OnceLock::new();
static WANTED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Sets the number of threads that kernels use, the caller's included. Takes effect if called before the first operation.
///
/// Returns the number in force.
pub fn set_threads(n: usize) -> usize {
    WANTED.store(n, SeqCst);
    pool().threads
}

/// The number of threads that kernels use, the caller's included. By default [`crate::cores::default_threads`]:
/// what the operating system grants this process (affinity and cgroup quota respected), one for each physical core at most.
pub fn threads() -> usize {
    pool().threads.min(LIMIT.with(Cell::get))
}

/// Runs `f` with at most `n` threads for the operations that it starts on this thread. Results do not depend on `n`.
pub fn with_threads<R>(n: usize, f: impl FnOnce() -> R) -> R {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.with(|l| l.set(self.0));
        }
    }
    let _restore = Restore(LIMIT.with(|l| l.replace(n.max(1))));
    f()
}

fn pool() -> &'static Pool {
    POOL.get_or_init(|| {
        let threads = match WANTED.load(SeqCst) {
            0 => crate::cores::default_threads(),
            n => n,
        };
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            open: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        }));
        let started = (1..threads)
            .filter(|i| std::thread::Builder::new().name(format!("genus-{i}")).spawn(move || worker(shared)).is_ok())
            .count();
        Pool { shared, submit: Mutex::new(0), threads: started + 1 }
    })
}

fn worker(shared: &'static Shared) {
    INSIDE.with(|i| i.set(true));
    let mut done = 0;
    loop {
        let mut spins = 0;
        let job = loop {
            let job = shared.open.load(SeqCst);
            if job != 0 && job != done {
                break job;
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            let Ok(mut sleepers) = shared.sleepers.lock() else { return };
            let job = shared.open.load(SeqCst);
            if job != 0 && job != done {
                break job;
            }
            *sleepers += 1;
            let Ok(mut sleepers) = shared.wake.wait(sleepers) else { return };
            *sleepers -= 1;
            spins = 0;
        };
        shared.active.fetch_add(1, SeqCst);
        if shared.open.load(SeqCst) == job {
            // SAFETY: this worker is registered as active and the job is open, so `run` waits for it before it returns.
            if let Some((task, n)) = unsafe { *shared.job.get() } {
                // SAFETY: as above, the closure outlives the job.
                let task = unsafe { &*task };
                if catch_unwind(AssertUnwindSafe(|| work(shared, task, n))).is_err() {
                    shared.panicked.store(true, SeqCst);
                    shared.next.store(n, SeqCst);
                }
            }
        }
        done = job;
        shared.active.fetch_sub(1, SeqCst);
    }
}

fn work(shared: &Shared, task: &Task, n: usize) {
    loop {
        let i = shared.next.fetch_add(1, SeqCst);
        if i >= n {
            return;
        }
        task(i);
    }
}

/// Calls `task(0)`, ..., `task(n - 1)`, spread over the threads in no particular order, and returns when all are done.
///
/// Called from inside a task, or while another thread's work is under way, it runs all of them on the calling thread.
pub fn run(n: usize, task: impl Fn(usize) + Sync) {
    // A level forced on this thread (by a test) holds for the workers too.
    if let Some(level) = crate::simd::forced() {
        return submit(n, |i| crate::simd::with_forced(level, || task(i)));
    }
    submit(n, task);
}

fn submit(n: usize, task: impl Fn(usize) + Sync) {
    let serial = || (0..n).for_each(&task);
    if n <= 1 || INSIDE.with(Cell::get) || threads() == 1 {
        return serial();
    }
    let pool = pool();
    let Ok(mut number) = pool.submit.try_lock() else { return serial() };
    *number = (*number + 1).max(1);
    let shared = pool.shared;
    let erased: &(dyn Fn(usize) + Sync + '_) = &task;
    // SAFETY: only the lifetime is erased. Workers follow the pointer only while the job is open and they are active, and this
    // function leaves (also by a panic) only after it closed the job and saw no active worker.
    let erased: &'static Task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync + '_), &'static Task>(erased) };
    // SAFETY: no job is open and no worker is active (the end of the previous `run`), and the submission lock is held.
    unsafe { *shared.job.get() = Some((erased, n)) };
    shared.next.store(0, SeqCst);
    shared.panicked.store(false, SeqCst);
    shared.open.store(*number, SeqCst);
    if let Ok(sleepers) = shared.sleepers.lock()
        && *sleepers > 0
    {
        shared.wake.notify_all();
    }
    INSIDE.with(|i| i.set(true));
    let result = catch_unwind(AssertUnwindSafe(|| work(shared, erased, n)));
    INSIDE.with(|i| i.set(false));
    if result.is_err() {
        shared.next.store(n, SeqCst);
    }
    shared.open.store(0, SeqCst);
    let mut spins = 0u32;
    while shared.active.load(SeqCst) != 0 {
        spins += 1;
        if spins < 20_000 {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
    drop(number);
    match result {
        Err(panic) => resume_unwind(panic),
        Ok(()) if shared.panicked.load(SeqCst) => panic!("a kernel panicked on a worker thread"),
        Ok(()) => {}
    }
}

/// Splits `[0, n)` into pieces of at most `grain` and runs them on the pool. The pieces do not depend on the number of threads.
pub fn run_chunks(n: usize, grain: usize, task: impl Fn(std::ops::Range<usize>) + Sync) {
    let grain = grain.max(1);
    run(n.div_ceil(grain), |i| task(i * grain..((i + 1) * grain).min(n)));
}

/// Splits `[0, n)` into one contiguous share a thread. Each thread works through a share of its own from its beginning, in pieces
/// of `grain`, so that it reads one long stream, and then helps with the ends of the others'.
pub fn run_shares(n: usize, grain: usize, task: impl Fn(std::ops::Range<usize>) + Sync) {
    let grain = grain.max(1);
    let pieces = n.div_ceil(grain);
    let threads = threads().min(pieces);
    if threads <= 1 || INSIDE.with(Cell::get) {
        if n > 0 {
            task(0..n);
        }
        return;
    }
    /// What is left of a share: pieces from `next` to `end`, in one word.
    struct Share(AtomicU64);
    impl Share {
        fn take(&self, from_front: bool) -> Option<usize> {
            let mut taken = 0;
            let found = self.0.fetch_update(SeqCst, SeqCst, |word| {
                let (next, end) = (word >> 32, word & 0xffff_ffff);
                taken = if from_front { next } else { end.wrapping_sub(1) };
                (next < end).then(|| if from_front { (next + 1) << 32 | end } else { next << 32 | (end - 1) })
            });
            found.ok().map(|_| taken as usize)
        }
    }
    let bound = |i: usize| (i * pieces / threads) as u64;
    let shares: Vec<Share> = (0..threads).map(|i| Share(AtomicU64::new(bound(i) << 32 | bound(i + 1)))).collect();
    run(threads, |i| {
        for other in 0..threads {
            let share = &shares[(i + other) % threads];
            while let Some(piece) = share.take(other == 0) {
                task(piece * grain..((piece + 1) * grain).min(n));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_once_also_nested_and_from_many_threads() {
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for n in [0usize, 1, 2, 7, 1000] {
                        let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                        run(n, |i| {
                            run(2, |_| {
                                counts[i].fetch_add(1, SeqCst);
                            })
                        });
                        assert!(counts.iter().all(|c| c.load(SeqCst) == 2));
                    }
                });
            }
        });
    }

    #[test]
    fn shares_cover_everything_once() {
        for (n, grain) in [(0, 1), (1, 5), (7, 1), (1000, 3), (64, 64), (65, 64)] {
            let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            run_shares(n, grain, |r| {
                for i in r {
                    counts[i].fetch_add(1, SeqCst);
                }
            });
            assert!(counts.iter().all(|c| c.load(SeqCst) == 1), "{n} {grain}");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        for _ in 0..20 {
            assert!(catch_unwind(|| run(64, |i| assert!(i != 40))).is_err());
            let sum = AtomicUsize::new(0);
            run(64, |i| {
                sum.fetch_add(i, SeqCst);
            });
            assert_eq!(sum.load(SeqCst), 2016);
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let sum = AtomicUsize::new(0);
            run_chunks(1000, 7, |r| {
                sum.fetch_add(r.len(), SeqCst);
            });
            assert_eq!(sum.load(SeqCst), 1000);
        }
    }
}
