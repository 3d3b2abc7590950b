//! What the outputs of a model that classifies sequences mean.

use crate::Result;
use genus_checkpoint::config::JsonFile;
use serde_json::{Map, Value};

/// What is learned about a sequence; `problem_type` in Hugging Face's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Problem {
    /// One class of several; the loss is cross-entropy.
    SingleLabel,
    /// Each class applies or not; the loss is binary cross-entropy.
    MultiLabel,
    /// A number for each output; the loss is the squared error.
    Regression,
}

impl Problem {
    const ALL: [(Problem, &'static str); 3] = [
        (Problem::SingleLabel, "single_label_classification"),
        (Problem::MultiLabel, "multi_label_classification"),
        (Problem::Regression, "regression"),
    ];

    /// The name in a configuration.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|p| p.0 == self).map_or("", |p| p.1)
    }
}

/// The outputs of a model that classifies sequences.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// The classes' names, in the order of the outputs.
    pub names: Vec<String>,
    /// What is learned, where the configuration says so.
    pub problem: Option<Problem>,
    /// Dropout before the classifier of a pooled model; the stack's residual dropout when not given.
    pub dropout: Option<f32>,
}

impl Default for Labels {
    /// Two classes, as in Hugging Face's library.
    fn default() -> Self {
        Labels::numbered(2)
    }
}

impl Labels {
    /// `n` classes called `LABEL_0`, `LABEL_1`, ...
    pub fn numbered(n: usize) -> Self {
        Labels { names: (0..n).map(|i| format!("LABEL_{i}")).collect(), problem: None, dropout: None }
    }

    /// What is learned: what the configuration says, else regression of a single output and one class of several.
    pub fn problem(&self) -> Problem {
        self.problem.unwrap_or(if self.names.len() == 1 { Problem::Regression } else { Problem::SingleLabel })
    }

    /// Reads `id2label` (or `num_labels`), `problem_type` and the dropout before the classifier, by its field and default.
    ///
    /// # Errors
    /// When a field cannot be, or two contradict each other.
    pub(crate) fn read(file: &JsonFile, (field, default): (&str, Option<f32>)) -> Result<Self> {
        let named = file.get("id2label").filter(|v| !v.is_null()).map(|v| names(file, v)).transpose()?;
        let count = match file.get("num_labels").filter(|v| !v.is_null()) {
            None => None,
            Some(n) => match n.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..1 << 20).contains(n)) {
                Some(n) => Some(n),
                None => return Err(file.field_error("num_labels", "a number of classes from 1 on").into()),
            },
        };
        let names = match (named, count) {
            (Some(names), Some(n)) if names.len() != n => {
                let expected = format!("{}, the number of names in id2label", names.len());
                return Err(file.field_error("num_labels", expected).into());
            }
            (Some(names), _) => names,
            (None, n) => Labels::numbered(n.unwrap_or(2)).names,
        };
        let problem = match file.get("problem_type").filter(|v| !v.is_null()) {
            None => None,
            Some(v) => match Problem::ALL.iter().find(|(_, name)| v.as_str() == Some(name)) {
                Some((problem, _)) => Some(*problem),
                None => {
                    let known: Vec<&str> = Problem::ALL.iter().map(|p| p.1).collect();
                    return Err(file.field_error("problem_type", format!("null, {}", known.join(", "))).into());
                }
            },
        };
        let dropout = match file.get(field).filter(|v| !v.is_null()) {
            None => default,
            Some(v) => match v.as_f64().filter(|p| (0.0..1.0).contains(p)) {
                Some(p) => Some(p as f32),
                None => return Err(file.field_error(field, "at least 0 and below 1, or null").into()),
            },
        };
        if problem == Some(Problem::SingleLabel) && names.len() < 2 {
            return Err(file.field_error("problem_type", "regression: there is a single label").into());
        }
        Ok(Labels { names, problem, dropout })
    }

    /// Writes what [`Labels::read`] reads.
    pub(crate) fn write(&self, config: &mut Map<String, Value>, dropout_field: &str) {
        let ids = self.names.iter().enumerate();
        let names: Map<String, Value> = ids.clone().map(|(i, n)| (i.to_string(), n.as_str().into())).collect();
        config.insert("id2label".into(), names.into());
        config.insert("label2id".into(), Value::Object(ids.map(|(i, n)| (n.clone(), i.into())).collect()));
        if let Some(problem) = self.problem {
            config.insert("problem_type".into(), problem.name().into());
        }
        if let Some(p) = self.dropout {
            config.insert(dropout_field.into(), p.into());
        }
        if config.contains_key("num_labels") {
            config.insert("num_labels".into(), self.names.len().into());
        }
    }
}

/// The names under "0", "1", ... of `id2label`.
fn names(file: &JsonFile, value: &Value) -> Result<Vec<String>> {
    let wrong = || file.field_error("id2label", "an object with a name for each of \"0\", \"1\", ...");
    let map = value.as_object().filter(|m| !m.is_empty()).ok_or_else(wrong)?;
    let name = |i: usize| match map.get(&i.to_string()) {
        Some(Value::String(s)) => Ok(s.clone()),
        // Data sets whose classes are numbers.
        Some(Value::Number(n)) => Ok(n.to_string()),
        _ => Err(wrong()),
    };
    Ok((0..map.len()).map(name).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::CLASSIFIER_DROPOUT;

    fn read(text: &str) -> Result<Labels, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        Labels::read(&JsonFile::open(&path).unwrap(), CLASSIFIER_DROPOUT).map_err(|e| e.to_string())
    }

    #[test]
    fn configurations_of_all_kinds() {
        let l = read("{}").unwrap();
        assert_eq!((l.names.len(), l.problem()), (2, Problem::SingleLabel));
        let l = read(r#"{"id2label": {"1": "b", "0": "a", "2": 7}, "classifier_dropout": null}"#).unwrap();
        assert_eq!((l.names, l.problem, l.dropout), (vec!["a".into(), "b".into(), "7".into()], None, None));
        let l = read(r#"{"num_labels": 1, "classifier_dropout": 0.25}"#).unwrap();
        assert_eq!((l.problem(), l.dropout), (Problem::Regression, Some(0.25)));
        let l = read(r#"{"num_labels": 4, "problem_type": "multi_label_classification"}"#).unwrap();
        assert_eq!((l.names[3].as_str(), l.problem()), ("LABEL_3", Problem::MultiLabel));
        let mut config = Map::new();
        l.write(&mut config, CLASSIFIER_DROPOUT.0);
        assert_eq!(read(&Value::Object(config).to_string()).unwrap(), l);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, field) in [
            (r#"{"id2label": ["a", "b"]}"#, "id2label"),
            (r#"{"id2label": {"0": "a", "2": "b"}}"#, "id2label"),
            (r#"{"id2label": {}}"#, "id2label"),
            (r#"{"id2label": {"0": "a", "1": "b"}, "num_labels": 3}"#, "num_labels"),
            (r#"{"num_labels": 0}"#, "num_labels"),
            (r#"{"problem_type": "guessing"}"#, "problem_type"),
            (r#"{"num_labels": 1, "problem_type": "single_label_classification"}"#, "problem_type"),
            (r#"{"classifier_dropout": 1.0}"#, "classifier_dropout"),
        ] {
            let message = read(text).unwrap_err();
            assert!(message.contains("config.json") && message.contains(field), "{text}: {message}");
        }
    }
}
