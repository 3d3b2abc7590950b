//! Options with one definition each.
//!
//! `options!` declares a group of options. From that one place come the command-line flag, the key of the configuration
//! file, the documentation of both, and the default. Two structs are generated: the *flags*, where every field is an
//! `Option` (parsed by clap and by serde), and the *resolved* group, with the values that hold after all layers have been
//! laid over each other: defaults, preset, file, flags; later layers win.
//!
//! Keys are spelled as the flags are (`n-layers`); a configuration file may also write them with underscores.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Spanned, Table, Value};

/// One option: its key, and what follows from its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The name of the field, with underscores.
    pub field: &'static str,
    /// Whether the option holds a list. A single value in a configuration file is then taken as a list of one.
    pub list: bool,
    /// The first paragraph of its documentation.
    pub doc: &'static [&'static str],
}

impl Key {
    /// The spelling in configuration files and on the command line.
    pub fn name(&self) -> String {
        self.field.replace('_', "-")
    }
}

/// A group of options, as declared by `options!`.
pub trait Options: Sized {
    /// The same group with every field optional: what one layer says.
    type Flags: clap::Args + Serialize + DeserializeOwned + Default + Clone + fmt::Debug;
    /// The keys of the group, in the order of their declaration.
    const KEYS: &'static [Key];
    /// The lowest layer: the documented defaults.
    fn defaults() -> Self::Flags;
    /// The group with its final values. Options that the flags leave open and that have a default get that default.
    fn from_flags(flags: Self::Flags) -> Self;
}

/// What is wrong with a layer of options.
#[derive(Debug)]
pub enum OptionError {
    /// The configuration file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration file is not TOML.
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with the place.
        message: String,
    },
    /// No option has this key.
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Its line, counted from one.
        line: usize,
        /// The key as written.
        key: String,
        /// The nearest key that exists, if one is near.
        suggestion: Option<String>,
    },
    /// The value has the wrong type or is out of range.
    Value {
        /// The file, or `command line`.
        origin: String,
        /// The line in the file, counted from one.
        line: Option<usize>,
        /// The key.
        key: String,
        /// What was found and what was expected.
        message: String,
    },
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, .. } => write!(f, "cannot read the configuration file {}", path.display()),
            Self::Syntax { path, message } => write!(f, "{} is not valid TOML: {}", path.display(), message.trim_end()),
            Self::UnknownKey { path, line, key, suggestion } => {
                write!(f, "{}:{line}: unknown key `{key}`", path.display())?;
                match suggestion {
                    Some(near) => write!(f, "; did you mean `{near}`?"),
                    None => write!(f, "; the keys are the long flags of the command (see --help)"),
                }
            }
            Self::Value { origin, line, key, message } => match line {
                Some(line) => write!(f, "{origin}:{line}: key `{key}`: {message}"),
                None => write!(f, "{origin}: `{key}`: {message}"),
            },
        }
    }
}

impl std::error::Error for OptionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// The layers of a command's options, laid over each other one by one.
#[derive(Debug, Default, Clone)]
pub struct Layers {
    table: Table,
}

/// A group for [`Layers::file`], without its type: its keys, and a check of one value.
#[derive(Clone, Copy)]
pub struct Group {
    keys: &'static [Key],
    check: fn(&Key, &Value) -> Result<(), String>,
}

impl Group {
    /// The group of `O`.
    pub fn of<O: Options>() -> Self {
        Self { keys: O::KEYS, check: check_value::<O> }
    }
}

impl Layers {
    /// No layer yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lays what `flags` says over the layers so far. `origin` is named in an error.
    pub fn add<O: Options>(&mut self, origin: &str, flags: &O::Flags) -> Result<&mut Self, OptionError> {
        for (field, value) in to_table::<O>(origin, flags)? {
            self.table.insert(field.replace('_', "-"), value);
        }
        Ok(self)
    }

    /// Lays a configuration file over the layers so far. Every key must belong to one of `groups` and have its type.
    pub fn file(&mut self, path: &Path, groups: &[Group]) -> Result<&mut Self, OptionError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| OptionError::Read { path: path.to_path_buf(), source })?;
        self.text(path, &text, groups)
    }

    /// As [`Layers::file`], from the file's text.
    pub fn text(&mut self, path: &Path, text: &str, groups: &[Group]) -> Result<&mut Self, OptionError> {
        let entries: BTreeMap<Spanned<String>, Spanned<Value>> = toml::from_str(text)
            .map_err(|e| OptionError::Syntax { path: path.to_path_buf(), message: e.to_string() })?;
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (written, value) in entries {
            let line =
                1 + text.as_bytes()[..written.span().start.min(text.len())].iter().filter(|&&b| b == b'\n').count();
            let name = written.get_ref().replace('_', "-");
            let found = groups.iter().find_map(|g| g.keys.iter().find(|k| k.name() == name).map(|k| (g, k)));
            let Some((group, key)) = found else {
                let names: Vec<String> = groups.iter().flat_map(|g| g.keys.iter().map(Key::name)).collect();
                let suggestion = nearest(&name, names.iter().map(String::as_str)).map(str::to_owned);
                let key = written.into_inner();
                return Err(OptionError::UnknownKey { path: path.to_path_buf(), line, key, suggestion });
            };
            let mut value = value.into_inner();
            if key.list && !value.is_array() {
                value = Value::Array(vec![value]);
            }
            (group.check)(key, &value).map_err(|message| OptionError::Value {
                origin: path.display().to_string(),
                line: Some(line),
                key: written.get_ref().clone(),
                message,
            })?;
            self.table.insert(name, value);
        }
        Ok(self)
    }

    /// The group's final values.
    pub fn resolve<O: Options>(&self) -> Result<O, OptionError> {
        let flags: O::Flags = self.table(O::KEYS).try_into().map_err(|e: toml::de::Error| OptionError::Value {
            origin: "options".into(),
            line: None,
            key: String::new(),
            message: e.message().to_owned(),
        })?;
        Ok(O::from_flags(flags))
    }

    /// The values of `keys`, under the names of their fields.
    pub fn table<'k>(&self, keys: impl IntoIterator<Item = &'k Key>) -> Table {
        keys.into_iter().filter_map(|k| Some((k.field.to_owned(), self.table.get(&k.name())?.clone()))).collect()
    }

    /// All keys that a layer so far sets.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.table.keys().map(String::as_str)
    }

    /// Whether any layer so far sets `key`.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The effective configuration as a commented TOML file, which [`Layers::file`] reads back to the same values.
    pub fn to_toml(&self, groups: &[Group]) -> String {
        let mut out = String::new();
        for key in groups.iter().flat_map(|g| g.keys) {
            let Some(value) = self.table.get(&key.name()) else { continue };
            for line in key.doc.iter().take_while(|l| !l.trim().is_empty()) {
                out.push_str(&format!("# {}\n", line.trim()));
            }
            out.push_str(&format!("{} = {value}\n\n", key.name()));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }
}

/// The candidate nearest to `word`, if any is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(word, c), c))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

fn to_table<O: Options>(origin: &str, flags: &O::Flags) -> Result<Table, OptionError> {
    Table::try_from(flags).map_err(|e| OptionError::Value {
        origin: origin.to_owned(),
        line: None,
        key: "options".into(),
        message: e.to_string(),
    })
}

fn check_value<O: Options>(key: &Key, value: &Value) -> Result<(), String> {
    let table = Table::from_iter([(key.field.to_owned(), value.clone())]);
    match table.try_into::<O::Flags>() {
        Ok(_) => Ok(()),
        Err(e) => {
            let message = e.message().trim();
            let message = message
                .strip_prefix("invalid type: ")
                .or_else(|| message.strip_prefix("invalid value: "))
                .map_or_else(|| message.to_owned(), |rest| format!("found {rest}"));
            Err(plain_types(&message))
        }
    }
}

/// Serde's names of types, in words that people use who do not write Rust.
fn plain_types(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let expected = match expected.trim() {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "path string" => "a path in quotes",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// The flags of a group as clap arguments, with the defaults written into the help.
#[derive(Debug, Clone)]
pub struct Args<O: Options>(pub O::Flags);

impl<O: Options> clap::FromArgMatches for Args<O> {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        O::Flags::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<O: Options> clap::Args for Args<O> {
    fn augment_args(cmd: clap::Command) -> clap::Command {
        with_defaults::<O>(O::Flags::augment_args(cmd))
    }

    fn augment_args_for_update(cmd: clap::Command) -> clap::Command {
        with_defaults::<O>(O::Flags::augment_args_for_update(cmd))
    }
}

fn with_defaults<O: Options>(mut cmd: clap::Command) -> clap::Command {
    let Ok(defaults) = to_table::<O>("defaults", &O::defaults()) else { return cmd };
    for (field, value) in defaults {
        let shown = match &value {
            Value::Boolean(_) => continue,
            Value::String(s) => s.clone(),
            Value::Float(x) if x.abs() < 1e-3 && *x != 0.0 => format!("{x:e}"),
            other => other.to_string(),
        };
        cmd = cmd.mut_arg(field, |arg| {
            let help = arg.get_help().map(|h| h.to_string()).unwrap_or_default();
            arg.help(format!("{help} [default: {shown}]"))
        });
    }
    cmd
}

/// Declares a group of options: `options!(pub Name, NameFlags { ... })`, each field being one of
///
/// ```text
/// /// Documentation.                      the kinds:
/// value steps: u64 = 1000,                a value with a default
/// maybe dev: String,                      a value that may be absent
/// list data: PathBuf,                     any number of values; the flag takes several, or is repeated
/// switch greedy,                          off unless given: --greedy, --greedy=false, greedy = true
/// place model: String,                    the positional argument
/// ```
///
/// Further `#[arg(...)]` attributes are handed to clap.
macro_rules! options {
    ($(#[$meta:meta])* $vis:vis $name:ident, $flags:ident { $($body:tt)* }) => {
        $crate::options::options!(@munch
            [$(#[$meta])* $vis $name $flags] [] [] [] [] [] $($body)*);
    };
    (@munch $head:tt [$($f:tt)*] [$($r:tt)*] [$($d:tt)*] [$($i:tt)*] [$($k:tt)*]
        $(#[doc = $doc:literal])* $(#[arg($($arg:tt)*)])? value $n:ident : $t:ty = $e:expr, $($rest:tt)*) => {
        $crate::options::options!(@munch $head
            [$($f)* $(#[doc = $doc])* #[arg(long $(, $($arg)*)?)] #[serde(skip_serializing_if = "Option::is_none")] pub $n: Option<$t>,]
            [$($r)* $(#[doc = $doc])* pub $n: $t,]
            [$($d)* $n: Some($e),]
            [$($i)* { $n: |v: Option<$t>| v.unwrap_or_else(|| $e) }]
            [$($k)* $crate::options::Key { field: stringify!($n), list: false, doc: &[$($doc),*] },]
            $($rest)*);
    };
    (@munch $head:tt [$($f:tt)*] [$($r:tt)*] [$($d:tt)*] [$($i:tt)*] [$($k:tt)*]
        $(#[doc = $doc:literal])* $(#[arg($($arg:tt)*)])? maybe $n:ident : $t:ty, $($rest:tt)*) => {
        $crate::options::options!(@munch $head
            [$($f)* $(#[doc = $doc])* #[arg(long $(, $($arg)*)?)] #[serde(skip_serializing_if = "Option::is_none")] pub $n: Option<$t>,]
            [$($r)* $(#[doc = $doc])* pub $n: Option<$t>,]
            [$($d)* $n: None,]
            [$($i)* { $n: |v: Option<$t>| v }]
            [$($k)* $crate::options::Key { field: stringify!($n), list: false, doc: &[$($doc),*] },]
            $($rest)*);
    };
    (@munch $head:tt [$($f:tt)*] [$($r:tt)*] [$($d:tt)*] [$($i:tt)*] [$($k:tt)*]
        $(#[doc = $doc:literal])* $(#[arg($($arg:tt)*)])? place $n:ident : $t:ty, $($rest:tt)*) => {
        $crate::options::options!(@munch $head
            [$($f)* $(#[doc = $doc])* #[arg($($($arg)*)?)] #[serde(skip_serializing_if = "Option::is_none")] pub $n: Option<$t>,]
            [$($r)* $(#[doc = $doc])* pub $n: Option<$t>,]
            [$($d)* $n: None,]
            [$($i)* { $n: |v: Option<$t>| v }]
            [$($k)* $crate::options::Key { field: stringify!($n), list: false, doc: &[$($doc),*] },]
            $($rest)*);
    };
    (@munch $head:tt [$($f:tt)*] [$($r:tt)*] [$($d:tt)*] [$($i:tt)*] [$($k:tt)*]
        $(#[doc = $doc:literal])* $(#[arg($($arg:tt)*)])? list $n:ident : $t:ident, $($rest:tt)*) => {
        $crate::options::options!(@munch $head
            [$($f)* $(#[doc = $doc])* #[arg(long, num_args = 1.. $(, $($arg)*)?)] #[serde(skip_serializing_if = "Option::is_none")] pub $n: Option<Vec<$t>>,]
            [$($r)* $(#[doc = $doc])* pub $n: Vec<$t>,]
            [$($d)* $n: None,]
            [$($i)* { $n: |v: Option<Vec<$t>>| v.unwrap_or_default() }]
            [$($k)* $crate::options::Key { field: stringify!($n), list: true, doc: &[$($doc),*] },]
            $($rest)*);
    };
    (@munch $head:tt [$($f:tt)*] [$($r:tt)*] [$($d:tt)*] [$($i:tt)*] [$($k:tt)*]
        $(#[doc = $doc:literal])* $(#[arg($($arg:tt)*)])? switch $n:ident, $($rest:tt)*) => {
        $crate::options::options!(@munch $head
            [$($f)* $(#[doc = $doc])*
             #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, hide_possible_values = true, value_name = "BOOL" $(, $($arg)*)?)]
             #[serde(skip_serializing_if = "Option::is_none")] pub $n: Option<bool>,]
            [$($r)* $(#[doc = $doc])* pub $n: bool,]
            [$($d)* $n: Some(false),]
            [$($i)* { $n: |v: Option<bool>| v.unwrap_or(false) }]
            [$($k)* $crate::options::Key { field: stringify!($n), list: false, doc: &[$($doc),*] },]
            $($rest)*);
    };
    (@munch [$(#[$meta:meta])* $vis:vis $name:ident $flags:ident]
        [$($f:tt)*] [$($r:tt)*] [$($d:tt)*] [$({ $n:ident : $conv:expr })*] [$($k:tt)*]) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name { $($r)* }

        /// One layer of the options of the same name: what is `None` is left to the layers below.
        #[derive(Debug, Clone, Default, PartialEq, clap::Args, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        $vis struct $flags { $($f)* }

        impl $crate::options::Options for $name {
            type Flags = $flags;
            const KEYS: &'static [$crate::options::Key] = &[$($k)*];
            fn defaults() -> $flags {
                $flags { $($d)* }
            }
            fn from_flags(flags: $flags) -> Self {
                $name { $($n: ($conv)(flags.$n)),* }
            }
        }
    };
}
pub(crate) use options;

#[cfg(test)]
mod tests;
