//! The commands, one module each.

use crate::Context;

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {}

impl Command {
    pub(crate) fn run(self, _context: &Context) -> anyhow::Result<()> {
        match self {}
    }
}
