//! Which text a run learns from.

use crate::{Error, Objective, Result, TrainConfig};
use genus_text::{Corpus, DevSplit, Parallel, Tagged};

/// Training and held-out text.
#[derive(Clone, Debug)]
pub(crate) enum Text {
    /// Documents.
    Documents { train: Corpus, dev: Option<Corpus> },
    /// Sequences and their translations.
    Pairs { train: Parallel, dev: Option<Parallel> },
    /// Sentences whose words have tags.
    Tagged { train: Tagged, dev: Option<Tagged> },
}

impl Text {
    /// Opens what the configuration names; `corpus` stands for its documents.
    pub fn open(config: &TrainConfig, objective: Objective, corpus: Option<&Corpus>) -> Result<Self> {
        let split = config.dev_split()?;
        let named = |paths: &[std::path::PathBuf], e: genus_text::TextError| Error::from(e).of_files(paths);
        if !config.source.is_empty() {
            let all = Parallel::open(&config.source, &config.target)?;
            if !config.dev_source.is_empty() {
                let dev = Some(Parallel::open(&config.dev_source, &config.dev_target)?);
                return Ok(Text::Pairs { train: all, dev });
            }
            return Ok(match split {
                Some(DevSplit::Fraction(f)) => {
                    let (train, dev) = all.split_dev(f).map_err(|e| named(&config.source, e))?;
                    Text::Pairs { train, dev: Some(dev) }
                }
                _ => Text::Pairs { train: all, dev: None },
            });
        }
        if objective == Objective::Tagging {
            let all = Tagged::open(&config.data)?;
            return Ok(match split {
                None => Text::Tagged { train: all, dev: None },
                Some(DevSplit::File(path)) => Text::Tagged { train: all, dev: Some(Tagged::open(&[path])?) },
                Some(DevSplit::Fraction(f)) => {
                    let (train, dev) = all.split_dev(f).map_err(|e| named(&config.data, e))?;
                    Text::Tagged { train, dev: Some(dev) }
                }
            });
        }
        let all = match corpus {
            Some(corpus) => corpus.clone(),
            None => Corpus::open(&config.data, config.corpus_options())?,
        };
        Ok(match split {
            None => Text::Documents { train: all, dev: None },
            Some(split) => {
                let (train, dev) = all.split_dev(&split).map_err(|e| named(&config.data, e))?;
                Text::Documents { train, dev: Some(dev) }
            }
        })
    }

    /// All training text, for learning a vocabulary.
    pub fn lines(&self) -> Box<dyn Iterator<Item = genus_text::Result<String>> + Send> {
        match self {
            Text::Documents { train, .. } => Box::new(train.documents()),
            Text::Pairs { train, .. } => Box::new(train.lines()),
            Text::Tagged { train, .. } => Box::new(train.lines()),
        }
    }
}

impl TrainConfig {
    /// Checks that text is given in one way.
    pub(crate) fn check_parallel(&self) -> Result<()> {
        let (data, pairs) = (!self.data.is_empty(), !self.source.is_empty() || !self.target.is_empty());
        if data && pairs {
            let expected = "data (text), or source and target (parallel text)";
            return Err(Error::config("data", "given beside source or target", expected));
        }
        for (field, a, other, b) in [
            ("source", &self.source, "target", &self.target),
            ("dev_source", &self.dev_source, "dev_target", &self.dev_target),
        ] {
            if a.len() != b.len() {
                let found = format!("{} file(s), and {} in {other}", a.len(), b.len());
                return Err(Error::config(field, found, "as many of one as of the other"));
            }
        }
        let held_out = !self.dev_source.is_empty();
        if held_out && (!pairs || self.dev.is_some()) {
            let expected = "source and target with it, and no dev beside it";
            return Err(Error::config("dev_source", "given", expected));
        }
        if pairs && matches!(self.dev_split()?, Some(DevSplit::File(_))) {
            let found = self.dev.clone().unwrap_or_default();
            return Err(Error::config("dev", found, "a fraction; held-out parallel text is dev_source and dev_target"));
        }
        Ok(())
    }

    /// Checks that there is the kind of text that an objective learns from.
    pub(crate) fn check_text(&self, objective: Objective) -> Result<()> {
        match (objective, self.source.is_empty()) {
            (Objective::Translation, true) => {
                Err(Error::config("source", "no file", "source and target: translation learns from parallel text"))
            }
            (Objective::Translation, false) | (_, true) => Ok(()),
            (other, false) => Err(Error::config("source", "given", format!("data: {other} learns from text alone"))),
        }
    }
}
