//! The options of training. Defaults are the training library's; what is left open there is settled from the model and the data.

use std::path::PathBuf;

use genus_train::{Objective, ScheduleKind, TrainConfig};

use crate::options::options;

fn library() -> TrainConfig {
    TrainConfig::default()
}

options!(
    /// The options of training.
    pub(crate) Training, TrainingFlags {
        /// Preset (random weights; `genus tree` lists them), model folder, or hub id.
        #[arg(value_name = "PRESET|MODEL")]
        place model: String,
        /// Start from this model's weights, with a fresh optimiser.
        #[arg(value_name = "MODEL", help_heading = "Model")]
        maybe init: PathBuf,
        /// What is learned: causal, masked, pretraining (masked words and next sentences), replaced-tokens, tagging, or translation; by default what the model was published with.
        #[arg(value_name = "OBJECTIVE", help_heading = "Model")]
        maybe objective: Objective,
        /// Number of layers, instead of the preset's.
        #[arg(value_name = "N", help_heading = "Model")]
        maybe n_layers: usize,
        /// Width, instead of the preset's.
        #[arg(value_name = "N", help_heading = "Model")]
        maybe d_model: usize,
        /// Number of heads, instead of the preset's.
        #[arg(value_name = "N", help_heading = "Model")]
        maybe n_heads: usize,
        /// Width inside the feed-forward network; four times d-model when only that is given.
        #[arg(value_name = "N", help_heading = "Model")]
        maybe d_ff: usize,
        /// Number of tokens of the model; by default the tokenizer's.
        #[arg(value_name = "N", help_heading = "Model")]
        maybe vocab_size: usize,
        /// Longest sequence that the model takes.
        #[arg(value_name = "N", help_heading = "Model")]
        maybe n_ctx: usize,
        /// Tokens of memory, instead of the preset's (Transformer-XL).
        #[arg(value_name = "N", help_heading = "Model")]
        maybe memory: usize,
        /// Size of a new generator, of replaced tokens (ELECTRA): its share of the model's heads and width; published are 1/4, and 1/3 for base.
        #[arg(value_name = "SHARE", allow_negative_numbers = true, help_heading = "Model")]
        value generator_share: f64 = library().generator_share,
        /// Dropout everywhere; by default as published.
        #[arg(value_name = "P", allow_negative_numbers = true, help_heading = "Model")]
        maybe dropout: f32,

        /// Text file to translate from, instead of --data; may be repeated; .gz is unpacked.
        #[arg(value_name = "FILE", help_heading = "Data")]
        list source: PathBuf,
        /// Text file with the translations, line by line; as many as --source.
        #[arg(value_name = "FILE", help_heading = "Data")]
        list target: PathBuf,
        /// Held-out text file to translate from.
        #[arg(value_name = "FILE", help_heading = "Data")]
        list dev_source: PathBuf,
        /// Held-out text file with the translations.
        #[arg(value_name = "FILE", help_heading = "Data")]
        list dev_target: PathBuf,
        /// Held-out text: a file or folder (of words and tags for tagging), a fraction of the data, or none; by default 0.05.
        #[arg(value_name = "FILE|FRACTION", help_heading = "Data")]
        maybe dev: String,
        /// Folder, train:bpe:8000, train:wordpiece:8000, train:unigram:8000 or bytes; by default the model folder's, or one trained on the data.
        #[arg(value_name = "TOKENIZER", help_heading = "Data")]
        maybe tokenizer: String,
        /// Each document is a span of its own: no attention and no prediction across documents.
        #[arg(help_heading = "Data")]
        switch separate_documents,
        /// Tokens of a training sequence; by default the model's n_ctx.
        #[arg(value_name = "N", help_heading = "Data")]
        maybe context: usize,
        /// Sequences in a batch; by default 8.
        #[arg(value_name = "N", help_heading = "Data", conflicts_with = "batch_tokens")]
        maybe batch: usize,
        /// Tokens in a batch, instead of --batch.
        #[arg(value_name = "N", help_heading = "Data")]
        maybe batch_tokens: usize,
        /// Steps in which the batch grows from --batch-start to its size, evenly, as GPT-3's did; 0: whole from the first step.
        #[arg(value_name = "N", help_heading = "Data")]
        value batch_ramp_steps: u64 = library().batch_ramp_steps,
        /// The first batch where it grows: sequences, or tokens with --batch-tokens.
        #[arg(value_name = "N", help_heading = "Data")]
        maybe batch_start: usize,
        /// Batches whose gradients are added up for one step.
        #[arg(value_name = "N", help_heading = "Data")]
        value accumulate: usize = library().accumulate,
        /// Recompute every layer in the backward pass instead of remembering it: much less memory, about a quarter more time, the same results.
        #[arg(help_heading = "Optimisation")]
        switch recompute,
        /// The uniform distribution's weight in the targets of tokens; by default 0.1 for translation, else 0.
        #[arg(value_name = "P", allow_negative_numbers = true, help_heading = "Optimisation")]
        maybe label_smoothing: f64,
        /// Share of tokens to predict, of masked objectives.
        #[arg(value_name = "P", allow_negative_numbers = true, help_heading = "Data")]
        value mask_probability: f64 = library().mask_probability,
        /// Share of those that become the mask token.
        #[arg(value_name = "P", allow_negative_numbers = true, help_heading = "Data")]
        value mask_share: f64 = library().mask_share,
        /// Share of those that become a random token; the rest stay.
        #[arg(value_name = "P", allow_negative_numbers = true, help_heading = "Data")]
        value mask_random: f64 = library().mask_random,
        /// Mask whole words.
        #[arg(help_heading = "Data")]
        switch whole_words,
        /// Share of examples made shorter at random, of masked objectives.
        #[arg(value_name = "P", allow_negative_numbers = true, help_heading = "Data")]
        value short_probability: f64 = library().short_probability,

        /// Number of steps.
        #[arg(value_name = "N", help_heading = "Optimisation")]
        value steps: u64 = library().steps,
        /// The highest learning rate (noam: a factor).
        #[arg(value_name = "X", allow_negative_numbers = true, help_heading = "Optimisation")]
        value lr: f64 = library().lr,
        /// Course of the learning rate: constant, linear, cosine or noam.
        #[arg(value_name = "SCHEDULE", help_heading = "Optimisation")]
        value schedule: ScheduleKind = library().schedule,
        /// Steps in which the learning rate rises; by default a tenth of the steps, at most 2,000.
        #[arg(value_name = "N", help_heading = "Optimisation")]
        maybe warmup_steps: u64,
        /// Learning rate at the end, as a share of the highest.
        #[arg(value_name = "X", allow_negative_numbers = true, help_heading = "Optimisation")]
        value lr_floor: f64 = library().lr_floor,
        /// Decoupled weight decay; biases and norms have none.
        #[arg(value_name = "X", allow_negative_numbers = true, help_heading = "Optimisation")]
        value weight_decay: f64 = library().weight_decay,
        /// Decay of the first moment.
        #[arg(value_name = "X", allow_negative_numbers = true, help_heading = "Optimisation")]
        value beta1: f64 = library().beta1,
        /// Decay of the second moment.
        #[arg(value_name = "X", allow_negative_numbers = true, help_heading = "Optimisation")]
        value beta2: f64 = library().beta2,
        /// Added to the root of the second moment.
        #[arg(value_name = "X", allow_negative_numbers = true, help_heading = "Optimisation")]
        value eps: f64 = library().eps,
        /// Global norm that gradients are clipped to; 0: not.
        #[arg(value_name = "X", allow_negative_numbers = true, help_heading = "Optimisation")]
        value clip: f64 = library().clip,
        /// Parameters that do not learn, by name; `*` stands for any text.
        #[arg(value_name = "NAME", help_heading = "Optimisation")]
        list freeze: String,
        /// Stop after that many steps in a row whose loss or gradient was not finite.
        #[arg(value_name = "N", help_heading = "Optimisation")]
        value max_skipped: u64 = library().max_skipped,

        /// Log every that many steps.
        #[arg(value_name = "N", help_heading = "Reports and checkpoints")]
        value log_every: u64 = library().log_every,
        /// Evaluate every that many steps, and before the first and after the last; by default a tenth of the steps, 0: never.
        #[arg(value_name = "N", help_heading = "Reports and checkpoints")]
        maybe eval_every: u64,
        /// Held-out tokens to evaluate at most, 0: all; by default all of a --dev that was given, else 32,768.
        #[arg(value_name = "N", help_heading = "Reports and checkpoints")]
        maybe eval_tokens: usize,
        /// Write a checkpoint every that many steps, and at the end; by default a tenth of the steps, 0: only at the end.
        #[arg(value_name = "N", help_heading = "Reports and checkpoints")]
        maybe save_every: u64,
        /// Keep that many of the last checkpoints, 0: all.
        #[arg(value_name = "N", help_heading = "Reports and checkpoints")]
        value keep_last: usize = library().keep_last,
    }
);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use genus_train::TrainConfig;

    use super::Training;
    use crate::data::Data;
    use crate::global::Global;
    use crate::options::{Layers, Options};

    #[test]
    fn every_option_of_the_library_is_a_flag_and_the_defaults_agree() {
        let library = serde_json::to_value(TrainConfig::default()).unwrap();
        let fields: BTreeSet<&str> = library.as_object().unwrap().keys().map(String::as_str).collect();
        let global = Global::KEYS.iter().filter(|k| matches!(k.field, "seed" | "precision"));
        let flags: BTreeSet<&str> = Training::KEYS.iter().chain(Data::KEYS).chain(global).map(|k| k.field).collect();
        assert_eq!(fields, flags);

        let mut layers = Layers::new();
        layers.add::<Training>("defaults", &Training::defaults()).unwrap();
        layers.add::<Data>("defaults", &Data::defaults()).unwrap();
        let table = layers.table(Training::KEYS.iter().chain(Data::KEYS));
        assert_eq!(table.try_into::<TrainConfig>().unwrap(), TrainConfig::default());
    }
}
