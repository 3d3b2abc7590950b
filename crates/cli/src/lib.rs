//! The `genus` command line: arguments, progress and reports. Everything that a command does is done by the other packages.
//!
//! - `options`: each option is declared once; flag, configuration key, documentation and default follow.
//! - `global`: the options of every command.
//! - `commands`: one module a command.
//! - `progress`, `report`, `interrupt`: what the user sees while work goes on, when it ends, and how it is stopped.
//! - `corpus`: the text that quickstart trains on.

use std::process::ExitCode;

use clap::Parser;

mod commands;
pub mod corpus;
mod data;
mod global;
pub mod interrupt;
mod model;
pub mod options;
pub mod progress;
mod report;
mod source;
mod training;

use global::Global;
use options::{Args, Layers, Options};

/// The Transformer family: pretrain, fine-tune, prompt and convert language models, without Python.
#[derive(Debug, Parser)]
#[command(name = "genus", bin_name = "genus", version, propagate_version = true, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Args<Global>,
    /// Machine-readable results on standard output, everything else on standard error.
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    #[command(subcommand)]
    command: commands::Command,
}

/// What a command knows besides its own options.
#[derive(Debug)]
pub(crate) struct Context {
    /// The global flags as given.
    pub(crate) global: <Global as Options>::Flags,
    /// Whether `--json` was given.
    pub(crate) json: bool,
}

impl Context {
    /// The global options of a command without a configuration file, put in force.
    pub(crate) fn global(&self) -> anyhow::Result<Global> {
        let mut layers = Layers::new();
        layers.add::<Global>("defaults", &Global::defaults())?.add::<Global>("command line", &self.global)?;
        let global: Global = layers.resolve()?;
        global.apply()?;
        Ok(global)
    }
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output, errors to standard error; a closed one cannot be told so.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    report::finish(cli.command.run(&Context { global: cli.global.0, json: cli.json }))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
