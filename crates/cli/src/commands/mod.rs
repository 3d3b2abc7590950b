//! The commands, one module each.

use crate::Context;

mod convert;
mod tokenizer;
mod tree;

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Tree(tree::Tree),
    Convert(convert::Convert),
    #[command(subcommand)]
    Tokenizer(tokenizer::TokenizerCommand),
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Tree(command) => command.run(context),
            Self::Convert(command) => command.run(context),
            Self::Tokenizer(command) => command.run(context),
        }
    }
}
