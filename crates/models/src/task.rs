//! What a model is loaded for.

use std::fmt;
use std::str::FromStr;

/// A use of a model; decides which heads it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Task {
    /// Hidden states only.
    Base,
    /// The next token.
    CausalLm,
    /// The next token of a sequence, given another (translation).
    Seq2SeqLm,
    /// The next token from those before it, and the one before from those behind it (ELMo).
    BidirectionalLm,
    /// Masked tokens.
    MaskedLm,
    /// Whether one segment follows another.
    NextSentence,
    /// BERT's pretraining: masked tokens and next sentence.
    Pretraining,
    /// Whether each token was put there in place of another (ELECTRA's pretraining, as its discriminator sees it).
    ReplacedToken,
    /// A class (or several, or a number) for each sequence.
    SequenceClassification,
    /// A class for each token.
    TokenClassification,
}

impl Task {
    /// All tasks.
    pub const ALL: [Task; 10] = [
        Task::Base,
        Task::CausalLm,
        Task::Seq2SeqLm,
        Task::BidirectionalLm,
        Task::MaskedLm,
        Task::NextSentence,
        Task::Pretraining,
        Task::ReplacedToken,
        Task::SequenceClassification,
        Task::TokenClassification,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Task::Base => "base",
            Task::CausalLm => "causal-lm",
            Task::Seq2SeqLm => "seq2seq-lm",
            Task::BidirectionalLm => "bidirectional-lm",
            Task::MaskedLm => "masked-lm",
            Task::NextSentence => "next-sentence",
            Task::Pretraining => "pretraining",
            Task::ReplacedToken => "replaced-token",
            Task::SequenceClassification => "sequence-classification",
            Task::TokenClassification => "token-classification",
        }
    }

    /// Whether the task predicts tokens.
    pub fn predicts_tokens(self) -> bool {
        matches!(self, Task::CausalLm | Task::Seq2SeqLm | Task::BidirectionalLm | Task::MaskedLm | Task::Pretraining)
    }

    /// Whether the task has classes with names.
    pub fn has_labels(self) -> bool {
        matches!(self, Task::SequenceClassification | Task::TokenClassification)
    }

    /// Whether the task classifies pairs of segments.
    pub fn predicts_next_sentence(self) -> bool {
        matches!(self, Task::NextSentence | Task::Pretraining)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Task::ALL
            .into_iter()
            .find(|t| t.name() == s)
            .ok_or_else(|| format!("no task is called {s:?}, expected one of {}", Task::ALL.map(Task::name).join(", ")))
    }
}
