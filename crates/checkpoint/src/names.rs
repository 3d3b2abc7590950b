//! Tensor names as data: one table of patterns serves loading and saving.
//!
//! A pattern is a name in which `{i}` (any letter or word in braces) stands for a number; in patterns for tensors that
//! are passed over, `*` at the end stands for anything. A [`NameMap`] pairs the model's own names with those of
//! checkpoints; [`resolve`] finds each expected tensor in an opened file, or reports all differences at once.

use std::collections::BTreeMap;

use crate::{Error, Result, Weights};

mod pattern;
mod resolver;

use pattern::Pattern;
pub use resolver::{Expected, Problem, Resolution, ResolveError, resolve};

/// Whether a rule's checkpoint name carries the base model's prefix in files of a model with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Base,
    Head,
}

#[derive(Debug, Clone)]
struct Rule {
    internal: Pattern,
    file: Pattern,
    part: Part,
    /// A further name of a tensor that another rule covers: read and compared, not written.
    tied: bool,
}

/// A renaming table between a model's own tensor names and a checkpoint's, in both directions.
///
/// ```
/// use genus_checkpoint::names::NameMap;
/// let map = NameMap::new()
///     .prefix("transformer.")
///     .base([("embedding.token", "wte.weight"), ("layers.{i}.norm1.weight", "h.{i}.ln_1.weight")])?
///     .tied("embedding.token", "lm_head.weight")?
///     .ignore(["h.{i}.attn.bias"])?;
/// assert_eq!(map.to_file("layers.11.norm1.weight").as_deref(), Some("transformer.h.11.ln_1.weight"));
/// assert_eq!(map.to_internal("h.11.ln_1.weight").as_deref(), Some("layers.11.norm1.weight"));
/// assert_eq!(map.to_internal("lm_head.weight").as_deref(), Some("embedding.token"));
/// # Ok::<(), genus_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct NameMap {
    /// The first is written; all of them, and none, are read.
    prefixes: Vec<String>,
    bare: bool,
    rules: Vec<Rule>,
    spellings: Vec<(String, String)>,
    ignored: Vec<Pattern>,
    other_heads: Vec<Pattern>,
}

impl NameMap {
    /// An empty table.
    pub fn new() -> NameMap {
        NameMap::default()
    }

    /// A prefix of the base model's tensors in files of models with a head (`transformer.`, `bert.`). Files with and
    /// without it are read; the first prefix given is the one that is written, unless [`NameMap::write_bare`].
    pub fn prefix(mut self, prefix: &str) -> NameMap {
        self.prefixes.push(prefix.into());
        self
    }

    /// Write the base model's tensors without prefix, as files of models without a head have them.
    pub fn write_bare(mut self) -> NameMap {
        self.bare = true;
        self
    }

    /// Pairs (own pattern, checkpoint's pattern without prefix) of the base model.
    ///
    /// # Errors
    /// [`Error::NameRule`] when a pattern is malformed, the two sides have different placeholders, or a checkpoint
    /// pattern is already taken.
    pub fn base<'a>(self, rules: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<NameMap> {
        rules.into_iter().try_fold(self, |map, (i, f)| map.rule(i, f, Part::Base, false))
    }

    /// Pairs (own pattern, checkpoint's pattern) of heads, which never carry the prefix.
    ///
    /// # Errors
    /// As [`NameMap::base`].
    pub fn head<'a>(self, rules: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<NameMap> {
        rules.into_iter().try_fold(self, |map, (i, f)| map.rule(i, f, Part::Head, false))
    }

    /// A further name (without prefix) under which checkpoints hold the tensor `internal`, whose own rule stands
    /// already. It is read, compared with the others when several are there, and not written.
    ///
    /// # Errors
    /// As [`NameMap::base`]; also when no rule covers `internal`.
    pub fn tied(self, internal: &str, file: &str) -> Result<NameMap> {
        if !self.rules.iter().any(|r| r.internal.text() == internal) {
            return Err(Error::NameRule {
                rule: internal.into(),
                problem: "tied before it has a rule of its own".into(),
            });
        }
        self.rule(internal, file, Part::Head, true)
    }

    /// As [`NameMap::tied`], for one tensor of those that a rule with placeholders covers: `rule` is its pattern, `internal` the name.
    ///
    /// # Errors
    /// As [`NameMap::tied`].
    pub fn tied_one(self, rule: &str, internal: &str, file: &str) -> Result<NameMap> {
        if !self.rules.iter().any(|r| r.internal.text() == rule && r.internal.matches(internal).is_some()) {
            return Err(Error::NameRule {
                rule: internal.into(),
                problem: "tied before it has a rule of its own".into(),
            });
        }
        self.rule(internal, file, Part::Head, true)
    }

    /// An older spelling of a name's last part: `older("gamma", "weight")`.
    pub fn older(mut self, old: &str, new: &str) -> NameMap {
        self.spellings.push((old.into(), new.into()));
        self
    }

    /// Checkpoint patterns (with or without prefix) of buffers that carry no information.
    ///
    /// # Errors
    /// [`Error::NameRule`] when a pattern is malformed.
    pub fn ignore<'a>(mut self, patterns: impl IntoIterator<Item = &'a str>) -> Result<NameMap> {
        for p in patterns {
            self.ignored.push(Pattern::new(p)?);
        }
        Ok(self)
    }

    /// Checkpoint patterns of tensors that belong to a head this model does not have; they give a warning, not an error.
    ///
    /// # Errors
    /// [`Error::NameRule`] when a pattern is malformed.
    pub fn other_heads<'a>(mut self, patterns: impl IntoIterator<Item = &'a str>) -> Result<NameMap> {
        for p in patterns {
            self.other_heads.push(Pattern::new(p)?);
        }
        Ok(self)
    }

    fn rule(mut self, internal: &str, file: &str, part: Part, tied: bool) -> Result<NameMap> {
        let rule = Rule { internal: Pattern::new(internal)?, file: Pattern::new(file)?, part, tied };
        let problem =
            |problem: &str| Error::NameRule { rule: format!("{internal} <-> {file}"), problem: problem.into() };
        if rule.internal.open_ended() || rule.file.open_ended() {
            return Err(problem("`*` cannot be renamed"));
        }
        if rule.internal.placeholders() != rule.file.placeholders() {
            return Err(problem("the two sides have different placeholders"));
        }
        if self.rules.iter().any(|r| r.file == rule.file) {
            return Err(problem("this checkpoint name has a rule already"));
        }
        if !tied && self.rules.iter().any(|r| r.internal == rule.internal) {
            return Err(problem("this own name has a rule already (use `tied` for further checkpoint names)"));
        }
        self.rules.push(rule);
        Ok(self)
    }

    /// The checkpoint name under which an own tensor is written; `None` when no rule covers it.
    pub fn to_file(&self, internal: &str) -> Option<String> {
        self.rules.iter().filter(|r| !r.tied).find_map(|r| {
            let name = r.file.fill(&r.internal.matches(internal)?);
            let prefix = self.prefixes.first().filter(|_| r.part == Part::Base && !self.bare);
            Some(prefix.map_or_else(|| name.clone(), |p| format!("{p}{name}")))
        })
    }

    /// The own name of a checkpoint's tensor, in any spelling; `None` when no rule covers it.
    pub fn to_internal(&self, file: &str) -> Option<String> {
        self.rank(file).map(|(_, name)| name)
    }

    /// Own name and how far the spelling is from the one that is written: tied names and older spellings come last.
    fn rank(&self, file: &str) -> Option<(usize, String)> {
        let modern = self.modern(file);
        let spellings = [(0, Some(file)), (1, modern.as_deref())];
        for (age, name) in spellings.into_iter().filter_map(|(age, n)| Some((age, n?))) {
            for rule in &self.rules {
                // A tied name may carry the prefix in the file too (`transformer.wte.weight` as the further name).
                for stripped in
                    self.stripped(name).filter(|s| rule.part == Part::Base || rule.tied || s.len() == name.len())
                {
                    if let Some(values) = rule.file.matches(stripped) {
                        return Some((age + 2 * usize::from(rule.tied), rule.internal.fill(&values)));
                    }
                }
            }
        }
        None
    }

    /// The name itself, and what is left of it without each prefix.
    fn stripped<'n>(&self, name: &'n str) -> impl Iterator<Item = &'n str> {
        std::iter::once(name).chain(self.prefixes.iter().filter_map(move |p| name.strip_prefix(p.as_str())))
    }

    /// The name with an older last part replaced.
    fn modern(&self, name: &str) -> Option<String> {
        let (head, last) = name.rsplit_once('.').map_or(("", name), |(h, l)| (h, l));
        let (_, new) = self.spellings.iter().find(|(old, _)| old == last)?;
        Some(if head.is_empty() { new.clone() } else { format!("{head}.{new}") })
    }

    /// The name without any prefix, for comparing names that files spell with and without it.
    fn bare<'n>(&self, name: &'n str) -> &'n str {
        self.stripped(name).min_by_key(|n| n.len()).unwrap_or(name)
    }

    fn is_ignored(&self, name: &str) -> bool {
        self.stripped(name).any(|n| self.ignored.iter().any(|p| p.matches(n).is_some()))
    }

    fn is_other_head(&self, name: &str) -> bool {
        self.stripped(name).any(|n| self.other_heads.iter().any(|p| p.matches(n).is_some()))
    }

    /// Own name -> names of a checkpoint that hold it, the preferred spelling first.
    fn group<'n>(&self, names: impl Iterator<Item = &'n str>) -> (BTreeMap<String, Vec<&'n str>>, Vec<&'n str>) {
        let mut groups: BTreeMap<String, Vec<(usize, &str)>> = BTreeMap::new();
        let mut rest = Vec::new();
        for name in names {
            match self.rank(name) {
                Some((rank, internal)) => groups.entry(internal).or_default().push((rank, name)),
                None => rest.push(name),
            }
        }
        let sorted = groups.into_iter().map(|(internal, mut names)| {
            names.sort();
            (internal, names.into_iter().map(|(_, n)| n).collect())
        });
        (sorted.collect(), rest)
    }
}

/// The `count` names most like `name` (Jaro-Winkler above 0.8), the best first.
pub fn nearest_names<'n>(name: &str, names: impl Iterator<Item = &'n str>, count: usize) -> Vec<String> {
    nearest_by(name, names.map(|n| (n, n)), count)
}

/// [`nearest_names`] with names compared by a key that is given beside each.
fn nearest_by<'n>(key: &str, names: impl Iterator<Item = (&'n str, &'n str)>, count: usize) -> Vec<String> {
    let scored = names.map(|(k, n)| (strsim::jaro_winkler(key, k), n));
    let mut scored: Vec<(f64, &str)> = scored.filter(|(s, _)| *s > 0.8).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(count).map(|(_, n)| n.to_string()).collect()
}

/// Used by [`resolve`]; here so that `resolver` needs no other access to the table.
fn expected_file_name(map: &NameMap, internal: &str) -> String {
    map.to_file(internal).unwrap_or_else(|| internal.to_string())
}

/// Compare a group of spellings of one tensor; the first one that differs from the first.
fn first_difference<'n>(weights: &Weights, names: &[&'n str]) -> Result<Option<&'n str>> {
    let Some((first, rest)) = names.split_first() else { return Ok(None) };
    for other in rest {
        if !weights.same_content(first, other)? {
            return Ok(Some(other));
        }
    }
    Ok(None)
}
