//! The commands, one module each.

use crate::Context;

mod tree;

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Tree(tree::Tree),
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Tree(command) => command.run(context),
        }
    }
}
