//! Where the time of a workload goes, operation by operation.
//!
//! Off by default, and then one thread-local flag is all that an operation looks at. While a thread records, each kernel that it
//! starts adds its time (two readings of the clock), its floating-point operations and one call to the account of its kind. Times
//! are exclusive: an operation inside another one counts for itself alone, so that the kinds add up to no more than the whole.
//! Kernels wait for the pool's threads, so the time of the thread that starts them is the time that passes.
//!
//! ```
//! use genus_ops::{Tape, Tensor, Value, profile};
//! let x = Value::constant(Tensor::ones((8, 16), genus_ops::DType::F32, &genus_ops::Device::Cpu)?);
//! let (_, profile) = profile::record(|| genus_ops::linear(
//!     &Tape::inference(), &x, &Value::constant(x.tensor().t()?.contiguous()?), None,
//!     genus_ops::Layout::InOut, genus_ops::Activation::Identity));
//! assert_eq!(profile[0].operation.name(), "linear forward");
//! assert_eq!(profile[0].flops, 2.0 * (8 * 16 * 8) as f64);
//! # Ok::<_, genus_ops::Error>(())
//! ```

use std::cell::{Cell, RefCell};
use std::time::Instant;

macro_rules! operations {
    ($($variant:ident $name:literal, $doc:literal;)*) => {
        /// Kinds of operations that are told apart.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Operation {
            $(#[doc = $doc] $variant,)*
        }

        impl Operation {
            /// All kinds, in the order of a report.
            pub const ALL: &'static [Operation] = &[$(Operation::$variant,)*];

            /// What a report calls it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Operation::$variant => $name,)*
                }
            }
        }
    };
}

operations! {
    LinearForward "linear forward", "Products of affine maps with bias and activation.";
    LinearInput "linear dX", "Products for the gradients of affine maps' inputs.";
    LinearWeight "linear dW", "Products for the gradients of affine maps' weights.";
    LinearOther "bias, activation", "Gradients of biases, and slopes of activations outside of a product.";
    Vocabulary "vocabulary product", "Products of the projection to the vocabulary, forward and backward.";
    CrossEntropy "cross-entropy", "Softmax, loss and their gradient, row by row.";
    AttentionForward "attention forward", "Scores, softmax and weighted values.";
    AttentionBackward "attention backward", "Gradients of queries, keys and values.";
    Recurrence "recurrent cells", "The steps of recurrent layers, forward and backward.";
    Convolution "convolution", "Patterns over characters and their maxima, forward and backward.";
    Norm "norm, residual", "Normalisation and residual connections, forward and backward.";
    Embedding "embedding", "Rows of tables, and their gradients.";
    Rows "rows, cache", "Rows chosen, dropped out or appended to a cache.";
    Optimizer "optimiser", "Norm of the gradients, and the update.";
}

/// What one kind of operation took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// The kind.
    pub operation: Operation,
    /// Seconds, without those of other operations inside.
    pub seconds: f64,
    /// Floating-point operations of matrix products that the definition needs.
    pub flops: f64,
    /// How often it ran.
    pub calls: u64,
}

const KINDS: usize = Operation::ALL.len();

struct State {
    seconds: [f64; KINDS],
    flops: [f64; KINDS],
    calls: [u64; KINDS],
    /// The operation that runs, and since when its time is not accounted for.
    current: Option<Operation>,
    since: Instant,
}

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

impl State {
    /// Gives the time since the last call to the operation that was running, and lets another one run.
    fn switch(&mut self, to: Option<Operation>) -> Option<Operation> {
        let now = Instant::now();
        if let Some(op) = self.current {
            self.seconds[op as usize] += now.duration_since(self.since).as_secs_f64();
        }
        self.since = now;
        std::mem::replace(&mut self.current, to)
    }
}

/// Starts an account on this thread; one that was open is forgotten.
pub fn start() {
    STATE.with(|s| {
        *s.borrow_mut() = Some(State {
            seconds: [0.0; KINDS],
            flops: [0.0; KINDS],
            calls: [0; KINDS],
            current: None,
            since: Instant::now(),
        });
    });
    ON.with(|on| on.set(true));
}

/// Ends this thread's account: the kinds that ran, in the order of [`Operation::ALL`].
pub fn finish() -> Vec<Entry> {
    ON.with(|on| on.set(false));
    let Some(s) = STATE.with(|s| s.borrow_mut().take()) else { return Vec::new() };
    let entry = |&operation: &Operation| {
        let i = operation as usize;
        Entry { operation, seconds: s.seconds[i], flops: s.flops[i], calls: s.calls[i] }
    };
    Operation::ALL.iter().map(entry).filter(|e| e.calls > 0).collect()
}

/// The account of what `f` does on this thread.
pub fn record<R>(f: impl FnOnce() -> R) -> (R, Vec<Entry>) {
    start();
    let result = f();
    (result, finish())
}

/// What `f` does on this thread is left out of the account.
pub fn paused<R>(f: impl FnOnce() -> R) -> R {
    struct Resume(bool);
    impl Drop for Resume {
        fn drop(&mut self) {
            ON.with(|on| on.set(self.0));
        }
    }
    let _resume = Resume(ON.with(|on| on.replace(false)));
    f()
}

/// An operation at work; it ends when this is dropped.
pub(crate) struct Running {
    outer: Option<Option<Operation>>,
}

/// Accounts the time until the result is dropped to `operation`. Products inside of cross-entropy are the vocabulary's, and rows
/// that are moved inside of another operation are that operation's.
#[inline]
pub(crate) fn running(operation: Operation, flops: f64) -> Running {
    if !ON.with(Cell::get) {
        return Running { outer: None };
    }
    enter(operation, flops)
}

/// As [`running`], for a number of floating-point operations that is counted only while the account is open.
#[inline]
pub(crate) fn running_with(operation: Operation, flops: impl FnOnce() -> f64) -> Running {
    if !ON.with(Cell::get) {
        return Running { outer: None };
    }
    enter(operation, flops())
}

/// Accounts what `f` does, as far as it is not an operation of another kind, to `operation`.
pub fn within<R>(operation: Operation, f: impl FnOnce() -> R) -> R {
    let _running = running(operation, 0.0);
    f()
}

#[cold]
fn enter(operation: Operation, flops: f64) -> Running {
    STATE.with(|s| {
        let mut s = s.borrow_mut();
        let Some(s) = s.as_mut() else { return Running { outer: None } };
        let operation = match (s.current, operation) {
            (
                Some(Operation::CrossEntropy | Operation::Vocabulary),
                Operation::LinearForward | Operation::LinearInput | Operation::LinearWeight | Operation::LinearOther,
            ) => Operation::Vocabulary,
            (Some(outer), Operation::Rows) => outer,
            (_, other) => other,
        };
        s.flops[operation as usize] += flops;
        s.calls[operation as usize] += 1;
        Running { outer: Some(s.switch(Some(operation))) }
    })
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(outer) = self.outer.take() else { return };
        STATE.with(|s| {
            if let Some(s) = s.borrow_mut().as_mut() {
                s.switch(outer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn sleep(ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }

    #[test]
    fn times_are_exclusive_and_products_of_the_loss_are_the_vocabularys() {
        let begin = Instant::now();
        let ((), entries) = record(|| {
            let _outer = running(Operation::CrossEntropy, 0.0);
            sleep(4);
            for _ in 0..2 {
                let _inner = running(Operation::LinearWeight, 50.0);
                sleep(3);
            }
            let _other = running(Operation::Norm, 0.0);
            sleep(1);
        });
        let whole = begin.elapsed().as_secs_f64();
        let of = |op: Operation| *entries.iter().find(|e| e.operation == op).unwrap();
        let (ce, product, norm) = (of(Operation::CrossEntropy), of(Operation::Vocabulary), of(Operation::Norm));
        assert_eq!((entries.len(), product.calls, product.flops), (3, 2, 100.0));
        // Sleeping takes at least as long as asked for, and no moment counts twice.
        assert!(ce.seconds >= 4e-3 && product.seconds >= 6e-3 && norm.seconds >= 1e-3);
        assert!(entries.iter().map(|e| e.seconds).sum::<f64>() <= whole);
    }

    #[test]
    fn nothing_is_kept_while_off_and_threads_do_not_mix() {
        drop(running(Operation::Norm, 1.0));
        assert_eq!(finish(), Vec::new());
        start();
        paused(|| drop(running(Operation::Norm, 1.0)));
        std::thread::spawn(|| drop(running(Operation::Norm, 1.0))).join().unwrap();
        assert_eq!(finish(), Vec::new());
    }

    #[test]
    fn a_panic_inside_leaves_the_account_in_order() {
        start();
        let caught = std::panic::catch_unwind(|| {
            let _inside = running(Operation::Norm, 1.0);
            panic!("on purpose");
        });
        assert!(caught.is_err());
        drop(running(Operation::Embedding, 2.0));
        let entries = finish();
        assert_eq!(entries.iter().map(|e| e.calls).collect::<Vec<_>>(), [1, 1]);
    }
}
