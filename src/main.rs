//! The `genus` command: everything it does is in `genus_cli`.
fn main() -> std::process::ExitCode {
    genus_cli::run()
}
