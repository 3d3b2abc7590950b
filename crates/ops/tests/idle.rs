//! The pool's threads sleep when there is nothing to do. A process of its own: what other tests do would count.

#![cfg(unix)]

use genus_ops::pool;
use std::hint::black_box;
use std::time::Duration;

/// Processor time of the whole process.
#[allow(unsafe_code)]
fn processor_time() -> Duration {
    // SAFETY: plain data that the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &mut usage), 0);
        usage
    };
    let of = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

#[test]
fn an_idle_pool_uses_no_processor_time() {
    pool::set_threads(4);
    for _ in 0..50 {
        pool::run(64, |i| {
            black_box((0..10_000).fold(i, |a, b| a ^ b));
        });
    }
    let before = processor_time();
    std::thread::sleep(Duration::from_millis(600));
    let used = processor_time() - before;
    // Threads that spun would use 1.8 s on three cores, and 0.6 s or more on one; the spinning before they sleep takes well under
    // a millisecond.
    assert!(used < Duration::from_millis(100), "{used:?} in 600 ms of waiting");
}
