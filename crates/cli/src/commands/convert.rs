//! `genus convert`: a model folder in another element type, other shards, or out of the old pickle format.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use genus_checkpoint::config::JsonFile;
use genus_checkpoint::{Dtype, Weights, WriteOptions, atomic, copy_weights};
use genus_models::Model;
use genus_models::nn::Vocabulary;
use genus_text::Tokenizer;
use serde_json::{Value, json};

use crate::Context;
use crate::progress::{Progress, bytes, grouped};
use crate::report::json_line;
use crate::source::{model_folder, parse_size};

/// The element type of weights in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Float {
    /// 32 bits.
    F32,
    /// 16 bits, five of them exponent.
    F16,
    /// 16 bits, eight of them exponent.
    Bf16,
}

/// Write a model folder anew: element type, size of the files, safetensors instead of pickle.
///
/// Tensor names stay as they are. Configuration and tokenizer come along.
#[derive(Debug, clap::Args)]
pub(crate) struct Convert {
    /// Folder or hub id.
    #[arg(value_name = "MODEL")]
    model: String,
    /// Folder to write; it must not exist, or be empty.
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// Element type of the weights; without it, the one that most of them have.
    #[arg(long, value_enum)]
    dtype: Option<Float>,
    /// Start a new file where one would exceed this size.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "5GB")]
    max_shard_size: u64,
    /// The words of an ELMo as its authors published it (options and weights in HDF5), one a line. Commands that take text read other
    /// words as <UNK>; the library takes their characters.
    #[arg(long, value_name = "FILE")]
    vocabulary: Option<PathBuf>,
}

/// Files that belong to a model besides its weights.
const SIDE_FILES: &[&str] = &[
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "target.spm",
    "target_vocab.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

impl Convert {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        context.global()?;
        let folder = model_folder(&self.model)?;
        check_output(&folder, &self.output)?;
        if let Some(published) = published_elmo(&folder)? {
            let copied = self.import(&published)?;
            return self.report(context, self.written_as(Dtype::F32), &copied);
        }
        if self.vocabulary.is_some() {
            bail!("{}: --vocabulary belongs to an ELMo in HDF5, and there is none here", folder.display());
        }
        let config = JsonFile::open(folder.join("config.json"))?;
        let weights = Weights::open(&folder)?;
        let dtype = self.written_as(prevailing(&weights));
        let names: Vec<(String, String)> = weights.names().map(|n| (n.to_owned(), n.to_owned())).collect();
        let options = WriteOptions { dtype, max_shard_bytes: Some(self.max_shard_size), ..WriteOptions::default() };
        let mut progress = Progress::new("converting", None);
        progress.update(names.len() as u64, "tensors");
        let copied = atomic::atomic_folder(&self.output, |tmp| {
            copy_weights(&weights, &names, tmp, &options)?;
            write_config(tmp, &config, dtype)?;
            copy_side_files(&folder, tmp)
        })?;
        progress.finish();
        self.report(context, dtype, &copied)
    }

    fn written_as(&self, otherwise: Dtype) -> Dtype {
        match self.dtype {
            Some(Float::F32) => Dtype::F32,
            Some(Float::F16) => Dtype::F16,
            Some(Float::Bf16) => Dtype::BF16,
            None => otherwise,
        }
    }

    /// Writes a model folder of a published ELMo.
    fn import(&self, [options, weights]: &[PathBuf; 2]) -> anyhow::Result<Vec<PathBuf>> {
        let Some(vocabulary) = &self.vocabulary else {
            bail!("{}: an ELMo in HDF5 has no words; give them with --vocabulary FILE, one a line", weights.display());
        };
        let tokenizer = Tokenizer::from_words(vocabulary)?;
        let model = Model::import_elmo(options, weights, tokenizer.vocab_size())?;
        if let Vocabulary::Characters(c) = &model.spec().vocabulary {
            model.set_spellings(&genus_text::spellings(&tokenizer, tokenizer.vocab_size(), c.length))?;
        }
        let options = WriteOptions {
            dtype: self.written_as(Dtype::F32),
            max_shard_bytes: Some(self.max_shard_size),
            ..WriteOptions::default()
        };
        let mut failure = None;
        let written = atomic::atomic_folder(&self.output, |tmp| {
            let filled = model.save(tmp, &options).map_err(anyhow::Error::from);
            let filled = filled.and_then(|()| Ok(tokenizer.save(tmp, None)?));
            filled.map_err(|e| {
                let found = e.to_string();
                failure = Some(e);
                genus_checkpoint::Error::Argument { what: "folder".into(), found, expected: "no error".into() }
            })
        });
        match failure {
            Some(e) => Err(e),
            None => {
                written?;
                Ok(Vec::new())
            }
        }
    }

    fn report(&self, context: &Context, dtype: Dtype, copied: &[PathBuf]) -> anyhow::Result<()> {
        let written = Weights::open(&self.output).context("the written folder does not read back")?;
        let mut files = Vec::new();
        for path in written.files() {
            let size = std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.len();
            files.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), size));
        }
        let total: u64 = written.names().filter_map(|n| written.info(n)).map(|i| elements(&i.shape)).sum();
        let overflown = if dtype == Dtype::F16 { infinite(&written)? } else { Vec::new() };
        if !overflown.is_empty() {
            anstream::eprintln!(
                "\x1b[33mwarning:\x1b[0m {} tensor(s) have values that f16 cannot hold (beyond 65504), now infinite: {}; bf16 would keep them",
                overflown.len(),
                overflown.join(", ")
            );
        }
        if context.json {
            return json_line(&json!({
                "output": self.output,
                "dtype": dtype.name().to_lowercase(),
                "tensors": written.len(),
                "elements": total,
                "files": files.iter().map(|(name, size)| json!({"name": name, "bytes": size})).collect::<Vec<_>>(),
                "copied": copied,
            }));
        }
        let mut out = anstream::stdout().lock();
        writeln!(out, "{} tensors, {} elements, {}", written.len(), grouped(total), dtype.name().to_lowercase())?;
        for (name, size) in &files {
            writeln!(out, "  {name}  {}", bytes(*size))?;
        }
        writeln!(out, "written to {}", self.output.display())?;
        Ok(())
    }
}

/// Options and weights of an ELMo as its authors published it: a folder without `config.json` that holds one of each.
fn published_elmo(folder: &Path) -> anyhow::Result<Option<[PathBuf; 2]>> {
    if folder.join("config.json").exists() {
        return Ok(None);
    }
    let mut found: [Vec<PathBuf>; 2] = Default::default();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is = [name.ends_with("options.json"), name.ends_with(".hdf5") || name.ends_with(".h5")];
        found.iter_mut().zip(is).filter(|f| f.1).for_each(|f| f.0.push(path.clone()));
    }
    match found.each_ref().map(Vec::as_slice) {
        [_, []] => Ok(None),
        [[options], [weights]] => Ok(Some([options.clone(), weights.clone()])),
        [options, weights] => bail!(
            "{}: found {} files named *options.json and {} in HDF5, expected one of each",
            folder.display(),
            options.len(),
            weights.len()
        ),
    }
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&n| n as u64).product()
}

/// The output must be a new or empty folder that is neither the input, nor around it, nor inside it.
pub(crate) fn check_output(input: &Path, output: &Path) -> anyhow::Result<()> {
    let real = |p: &Path| std::fs::canonicalize(p).with_context(|| format!("cannot find {}", p.display()));
    let input = real(input)?;
    if output.exists() {
        let resolved = real(output)?;
        if resolved == input {
            bail!("--output {}: that is the folder that is read; choose another one", output.display());
        }
        if input.starts_with(&resolved) {
            bail!("--output {}: the model that is read lies inside of it; choose another one", output.display());
        }
        if !resolved.is_dir() {
            bail!("--output {}: found a file, expected a folder or nothing", output.display());
        }
        let mut entries = std::fs::read_dir(&resolved).with_context(|| format!("cannot list {}", output.display()))?;
        if entries.next().is_some() {
            bail!(
                "--output {}: the folder exists and is not empty; choose another one, or empty it first",
                output.display()
            );
        }
    }
    // A new folder inside the input would become part of it.
    let mut parent = output.parent();
    while let Some(p) = parent {
        let p = if p.as_os_str().is_empty() { Path::new(".") } else { p };
        if p.exists() {
            if real(p)?.starts_with(&input) {
                bail!("--output {}: lies inside the folder that is read; choose another one", output.display());
            }
            break;
        }
        parent = p.parent();
    }
    Ok(())
}

/// The element type that holds most of the model.
fn prevailing(weights: &Weights) -> Dtype {
    let mut counts: BTreeMap<&str, (u64, Dtype)> = BTreeMap::new();
    for info in weights.names().filter_map(|n| weights.info(n)) {
        if matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            counts.entry(info.dtype.name()).or_insert((0, info.dtype)).0 += elements(&info.shape);
        }
    }
    counts.values().max_by_key(|(n, _)| *n).map_or(Dtype::F32, |(_, dtype)| *dtype)
}

/// Tensors with infinities or NaN.
fn infinite(weights: &Weights) -> anyhow::Result<Vec<String>> {
    let mut out = Vec::new();
    for name in weights.names() {
        if weights.info(name).is_some_and(|i| i.dtype.is_float()) && weights.first_non_finite(name)?.is_some() {
            out.push(name.to_owned());
        }
    }
    Ok(out)
}

/// The configuration with the new element type.
fn write_config(folder: &Path, config: &JsonFile, dtype: Dtype) -> genus_checkpoint::Result<()> {
    let mut value = config.value().clone();
    let name = match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    };
    if let Value::Object(map) = &mut value {
        let field = if map.contains_key("torch_dtype") && !map.contains_key("dtype") { "torch_dtype" } else { "dtype" };
        map.insert(field.into(), name.into());
    }
    atomic::atomic_write(folder.join("config.json"), format!("{value:#}\n").as_bytes())
}

/// Copies what belongs to the model, and the folders of pooling and the like that `modules.json` names.
pub(crate) fn copy_side_files(from: &Path, to: &Path) -> genus_checkpoint::Result<Vec<PathBuf>> {
    let mut names: Vec<PathBuf> = SIDE_FILES.iter().map(PathBuf::from).collect();
    if let Some(modules) = JsonFile::open_optional(from.join("modules.json"))? {
        for module in modules.value().as_array().into_iter().flatten() {
            // One folder below, by a plain name: a path from a stranger's file leads nowhere else.
            let plain = |p: &&str| !p.is_empty() && !p.starts_with('.') && !p.contains(['/', '\\', ':']);
            if let Some(path) = module["path"].as_str().filter(plain) {
                names.push(Path::new(path).join("config.json"));
            }
        }
    }
    let mut copied = Vec::new();
    for name in names {
        let source = from.join(&name);
        if !source.is_file() {
            continue;
        }
        let target = to.join(&name);
        let io = |action: &'static str, path: &Path| {
            let path = path.to_path_buf();
            move |source| genus_checkpoint::Error::Io { action, path, source }
        };
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(io("create", parent))?;
        }
        let content = std::fs::read(&source).map_err(io("read", &source))?;
        atomic::atomic_write(&target, &content)?;
        copied.push(name);
    }
    Ok(copied)
}
