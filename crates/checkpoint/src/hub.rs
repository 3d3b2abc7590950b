//! Models by name: a local folder, or a hub id whose files are fetched into the cache that Hugging Face's own tools use.
//!
//! Cache layout: `models--<owner>--<name>/` with `blobs/<etag>`, `refs/<revision>` (a commit) and
//! `snapshots/<commit>/<file>`, links to blobs. What another tool has downloaded is found, and the other way round.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::shorten;
use crate::weights::{FILE_NAMES, check_shard_name};
use crate::{Error, Result, config};

mod cache;
mod client;

use cache::Cache;
use client::{Client, Failure};

/// Files beside the weights that are fetched where a repository has them.
const SIDE_FILES: [&str; 22] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "target_vocab.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// Where models are fetched from and kept.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Address of the hub, without a slash at the end (HF_ENDPOINT).
    pub endpoint: String,
    /// The cache folder (HF_HUB_CACHE; HF_HOME/hub).
    pub cache: PathBuf,
    /// Access token for private and gated models (HF_TOKEN; sent to `endpoint` only).
    pub token: Option<String>,
    /// Use the cache only (HF_HUB_OFFLINE).
    pub offline: bool,
}

impl HubOptions {
    /// As the environment says.
    pub fn from_env() -> HubOptions {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// As the variables that `var` gives say; empty ones count as unset.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> HubOptions {
        let var = |name: &str| var(name).map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let path = |name: &str| var(name).map(PathBuf::from);
        let user_cache = path("XDG_CACHE_HOME")
            .or_else(|| path("HOME").or_else(|| path("USERPROFILE")).map(|home| home.join(".cache")))
            .unwrap_or_else(|| PathBuf::from(".cache"));
        let home = path("HF_HOME").unwrap_or_else(|| user_cache.join("huggingface"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let stored = || fs::read_to_string(token_file).ok().map(|t| t.trim().to_string()).filter(|t| !t.is_empty());
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline =
            var("HF_HUB_OFFLINE").is_some_and(|v| matches!(v.to_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        HubOptions {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache,
            token: var("HF_TOKEN").or_else(stored),
            offline,
        }
    }
}

/// What a download reports while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Bytes of a file that are there, and of how many where known.
    Bytes {
        /// The file's name in the repository.
        file: &'a str,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: Option<u64>,
    },
    /// A file is complete.
    Done {
        /// The file's name in the repository.
        file: &'a str,
    },
    /// The hub could not be reached; what the cache holds is used.
    Cached {
        /// Why.
        reason: &'a str,
    },
}

/// The folder of a model: `model` itself where it is a folder, else the snapshot of the hub id `owner/name` or
/// `owner/name@revision`, downloaded where the cache lacks it. Options come from the environment.
///
/// # Errors
/// [`Error::ModelName`] for what is neither, [`Error::Hub`] (offline, unreachable, unknown, gated) with the ways out,
/// [`Error::Write`] when the cache's disk is full.
pub fn resolve(model: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
    resolve_with(model, &HubOptions::from_env(), progress)
}

/// [`resolve`] with options.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_with(model: &str, options: &HubOptions, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
    let path = Path::new(model);
    let name_error = |problem: &str| Error::ModelName { model: shorten(model, 200), problem: problem.into() };
    if model.is_empty() {
        return Err(name_error("it is empty"));
    }
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.exists() {
        return Err(name_error("it is a file, not a folder"));
    }
    let id = Id::parse(model).map_err(|problem| name_error(&problem))?;
    Fetch { id, options, cache: Cache::new(&options.cache) }.run(progress)
}

/// A checked hub id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Id {
    owner: String,
    name: String,
    revision: String,
}

impl Id {
    fn parse(text: &str) -> Result<Id, String> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let no_folder = "there is no folder of that name";
        let Some((owner, name)) = repo.split_once('/') else {
            return Err(format!(
                "{no_folder}, and a hub id has an owner (a published preset's name has random weights only)"
            ));
        };
        let plain = |part: &str| {
            let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            !part.is_empty()
                && part.len() <= 96
                && part.bytes().all(ok)
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
                && !part.contains("--")
        };
        if !plain(owner) || !plain(name) {
            return Err(format!("{no_folder}, and it is not a hub id either (letters, digits, `.`, `_`, `-`)"));
        }
        // A revision may be a path (`refs/pr/3`), each part of which is plain.
        if !revision.split('/').all(plain) || revision.len() > 200 {
            return Err(format!("`{}` is not a revision (a branch, a tag or a commit)", shorten(revision, 100)));
        }
        Ok(Id { owner: owner.into(), name: name.into(), revision: revision.into() })
    }

    fn repo(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

/// A commit's name, which becomes part of a path.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

struct Fetch<'o> {
    id: Id,
    options: &'o HubOptions,
    cache: Cache,
}

#[derive(serde::Deserialize)]
struct RepoInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(serde::Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Fetch<'_> {
    fn fail(&self, problem: impl Into<String>) -> Error {
        let revision = if self.id.revision == "main" { String::new() } else { format!("@{}", self.id.revision) };
        Error::Hub {
            id: self.id.repo() + &revision,
            endpoint: self.options.endpoint.clone(),
            cache: self.options.cache.clone(),
            problem: problem.into(),
        }
    }

    fn run(&self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        let cached = self.cached();
        if self.options.offline {
            return cached.map_err(|lacks| self.fail(format!("HF_HUB_OFFLINE is set and {lacks}")));
        }
        let client = Client::new(self.options).map_err(|e| self.fail(e))?;
        match self.download(&client, progress) {
            Ok(folder) => Ok(folder),
            Err(Failure::Unreachable(reason)) => match cached {
                Ok(folder) => {
                    progress(Progress::Cached { reason: &reason });
                    Ok(folder)
                }
                Err(lacks) => Err(self.fail(format!("{reason}, and {lacks}"))),
            },
            Err(Failure::Refused(problem)) => Err(self.fail(problem)),
            Err(Failure::Local(e)) => Err(*e),
        }
    }

    /// The snapshot in the cache, when it is complete; else what is lacking.
    fn cached(&self) -> Result<PathBuf, String> {
        let repo = self.cache.repo(&self.id);
        let commit = if is_commit(&self.id.revision) {
            self.id.revision.clone()
        } else {
            let text = fs::read_to_string(repo.reference(&self.id.revision)).unwrap_or_default();
            let commit = text.trim().to_string();
            if !is_commit(&commit) {
                return Err("the cache does not hold it".into());
            }
            commit
        };
        let folder = repo.snapshot(&commit);
        if !folder.join("config.json").is_file() {
            return Err("the cache holds it without config.json".into());
        }
        let weights = FILE_NAMES.iter().map(|n| folder.join(n)).find(|p| p.is_file());
        let weights = weights.ok_or("the cache holds it without weights")?;
        if weights.extension().is_some_and(|e| e == "json") {
            let shards = shards(&weights).map_err(|e| e.to_string())?;
            if let Some(missing) = shards.iter().find(|s| !folder.join(s).is_file()) {
                return Err(format!("the cache holds it without its shard {missing}"));
            }
        }
        Ok(folder)
    }

    fn download(&self, client: &Client, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf, Failure> {
        let revision = self.id.revision.replace('/', "%2F");
        let info: RepoInfo = client.json(&format!("/api/models/{}/revision/{revision}", self.id.repo()))?;
        if !is_commit(&info.sha) {
            let found = shorten(&info.sha, 60);
            return Err(Failure::Refused(format!("the hub answered with `{found}` where a commit was expected")));
        }
        let has = |name: &str| info.siblings.iter().any(|s| s.rfilename == name);
        let Some(weights) = FILE_NAMES.into_iter().find(|n| has(n)) else {
            return Err(Failure::Refused(format!(
                "the repository holds no weights (none of {})",
                FILE_NAMES.join(", ")
            )));
        };
        if !has("config.json") {
            return Err(Failure::Refused("the repository holds no config.json".into()));
        }
        let repo = self.cache.repo(&self.id);
        let snapshot = repo.snapshot(&info.sha);
        let mut get = |file: &str| -> Result<(), Failure> {
            if !snapshot.join(file).is_file() {
                let path = format!("/{}/resolve/{}/{file}", self.id.repo(), info.sha);
                let blob = client.fetch(&path, file, &repo.blobs(), progress)?;
                repo.link(&snapshot, file, &blob).map_err(Failure::local)?;
            }
            progress(Progress::Done { file });
            Ok(())
        };
        for file in SIDE_FILES.into_iter().filter(|f| has(f)) {
            get(file)?;
        }
        get(weights)?;
        if weights.ends_with(".json") {
            for shard in shards(&snapshot.join(weights)).map_err(Failure::local)? {
                get(&shard)?;
            }
        }
        // Last, so that a reference never leads to half a snapshot.
        if self.id.revision != info.sha {
            repo.set_reference(&self.id.revision, &info.sha).map_err(Failure::local)?;
        }
        Ok(snapshot)
    }
}

/// The distinct shards that an index names, each a plain file name.
fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let parsed: Index = config::read_json_bounded(index, crate::MAX_HEADER)?;
    let mut out: Vec<String> = Vec::new();
    for (tensor, shard) in parsed.weight_map {
        check_shard_name(index, &shard, &tensor)?;
        out.push(shard);
    }
    out.sort();
    out.dedup();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        let id = Id::parse("sentence-transformers/all-MiniLM-L6-v2@refs/pr/3").unwrap();
        assert_eq!((id.repo().as_str(), id.revision.as_str()), ("sentence-transformers/all-MiniLM-L6-v2", "refs/pr/3"));
        assert_eq!(Id::parse("a/b").unwrap().revision, "main");
        for bad in [
            "gpt2",
            "../x",
            "a/..",
            "/etc/passwd",
            "a/b/c",
            "a\\b",
            "a/b\\c",
            "a/.b",
            "a/b@../x",
            "a/b@",
            "a/b@/x",
            "./x/y",
            "a//b",
            "a/b c",
            "a/b\n",
            "C:\\m",
            "a/b@x/../y",
            "https://h/a/b",
            "a--b/c",
            "a/b\0",
        ] {
            assert!(Id::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_environment_is_honoured() {
        let options = |vars: &[(&str, &str)]| {
            HubOptions::from_vars(|n| vars.iter().find(|(k, _)| *k == n).map(|(_, v)| v.to_string()))
        };
        let o = options(&[("HOME", "/nowhere/u")]);
        assert_eq!(o.cache, Path::new("/nowhere/u/.cache/huggingface/hub"));
        assert_eq!((o.endpoint.as_str(), o.offline, o.token), ("https://huggingface.co", false, None));
        let o = options(&[("HF_HOME", "/h"), ("HF_ENDPOINT", "http://m/"), ("HF_HUB_OFFLINE", "1"), ("HF_TOKEN", "t")]);
        assert_eq!((o.cache.as_path(), o.endpoint.as_str()), (Path::new("/h/hub"), "http://m"));
        assert_eq!((o.offline, o.token.as_deref()), (true, Some("t")));
        let o = options(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", " ")]);
        assert_eq!((o.cache.as_path(), o.offline, o.token), (Path::new("/c"), false, None));
    }
}
