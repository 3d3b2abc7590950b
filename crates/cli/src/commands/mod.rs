//! The commands, one module each.

use crate::Context;

mod average;
mod bench;
mod convert;
mod embed;
mod eval;
mod eval_words;
mod forward;
mod generate;
mod inspect;
mod labelled;
mod plan;
mod quickstart;
mod tokenizer;
mod train;
mod train_options;
mod translate;
mod tree;

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Quickstart(quickstart::Quickstart),
    Tree(tree::Tree),
    Plan(plan::Plan),
    Train(Box<train::Train>),
    Generate(generate::Generate),
    Translate(translate::Translate),
    #[command(subcommand)]
    Eval(eval::EvalCommand),
    Embed(embed::Embed),
    Forward(forward::Forward),
    Convert(convert::Convert),
    Average(average::Average),
    #[command(subcommand)]
    Tokenizer(tokenizer::TokenizerCommand),
    #[command(subcommand)]
    Inspect(inspect::InspectCommand),
    Bench(bench::Bench),
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Quickstart(command) => command.run(context),
            Self::Tree(command) => command.run(context),
            Self::Plan(command) => command.run(context),
            Self::Train(command) => command.run(context),
            Self::Generate(command) => command.run(context),
            Self::Translate(command) => command.run(context),
            Self::Eval(command) => command.run(context),
            Self::Embed(command) => command.run(context),
            Self::Forward(command) => command.run(context),
            Self::Convert(command) => command.run(context),
            Self::Average(command) => command.run(context),
            Self::Tokenizer(command) => command.run(context),
            Self::Inspect(command) => command.run(context),
            Self::Bench(command) => command.run(context),
        }
    }
}
