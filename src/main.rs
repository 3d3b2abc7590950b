//! The `genus` command: everything it does is in `genus_cli`.

/// Keeps large buffers on huge pages between the steps of a training run.
#[global_allocator]
static ALLOCATOR: genus::ops::memory::Recycler = genus::ops::memory::Recycler;

fn main() -> std::process::ExitCode {
    genus_cli::run()
}
