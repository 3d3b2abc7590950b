//! Names with numbered places in them.

use crate::{Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A number, by the name of its placeholder.
    Number(String),
    /// Anything; only at the end.
    Rest,
}

/// `layers.{i}.norm.weight`, `cls.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    text: String,
    pieces: Vec<Piece>,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Pattern> {
        let problem = |problem: &str| Error::NameRule { rule: text.into(), problem: problem.into() };
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if rest == "*" {
                pieces.push(Piece::Rest);
                break;
            }
            if let Some(after) = rest.strip_prefix('{') {
                let Some((name, after)) = after.split_once('}') else { return Err(problem("`{` without `}`")) };
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
                    return Err(problem("a placeholder needs a name of letters and digits"));
                }
                if matches!(pieces.last(), Some(Piece::Number(_))) {
                    return Err(problem("two placeholders without anything between them"));
                }
                if pieces.contains(&Piece::Number(name.into())) {
                    return Err(problem("a placeholder stands in it twice"));
                }
                pieces.push(Piece::Number(name.into()));
                rest = after;
            } else {
                // At least one character, so this ends: `*` that is not last is taken as text and refused below.
                let end =
                    rest.char_indices().skip(1).find(|(_, c)| matches!(c, '{' | '*')).map_or(rest.len(), |(i, _)| i);
                let (literal, after) = rest.split_at(end);
                if literal.contains(['*', '}']) {
                    return Err(problem("`*` may only stand at the end, and `}` only after `{`"));
                }
                if literal.starts_with(|c: char| c.is_ascii_digit()) && matches!(pieces.last(), Some(Piece::Number(_)))
                {
                    return Err(problem("a digit right after a placeholder"));
                }
                pieces.push(Piece::Text(literal.into()));
                rest = after;
            }
        }
        if pieces.is_empty() {
            return Err(problem("empty"));
        }
        Ok(Pattern { text: text.into(), pieces })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn open_ended(&self) -> bool {
        self.pieces.last() == Some(&Piece::Rest)
    }

    /// Names of the placeholders, sorted.
    pub(super) fn placeholders(&self) -> Vec<&str> {
        let numbers = self.pieces.iter().filter_map(|p| if let Piece::Number(n) = p { Some(n.as_str()) } else { None });
        let mut out: Vec<&str> = numbers.collect();
        out.sort_unstable();
        out
    }

    /// The numbers in `name` by placeholder, when it has this form. Numbers have no leading zeros, so that renaming back
    /// gives the same name.
    pub(super) fn matches<'p, 'n>(&'p self, name: &'n str) -> Option<Vec<(&'p str, &'n str)>> {
        let mut values = Vec::new();
        let mut rest = name;
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => rest = rest.strip_prefix(text.as_str())?,
                Piece::Number(placeholder) => {
                    let end = rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
                    let (digits, after) = rest.split_at(end);
                    if digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
                        return None;
                    }
                    values.push((placeholder.as_str(), digits));
                    rest = after;
                }
                Piece::Rest => return Some(values),
            }
        }
        rest.is_empty().then_some(values)
    }

    /// The name with these numbers.
    pub(super) fn fill(&self, values: &[(&str, &str)]) -> String {
        let mut out = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Number(n) => out.push_str(values.iter().find(|(p, _)| p == n).map_or("", |(_, v)| v)),
                Piece::Rest => {}
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_and_filled_in() {
        let p = Pattern::new("layers.{i}.experts.{e}.up").unwrap();
        assert_eq!(p.matches("layers.3.experts.12.up"), Some(vec![("i", "3"), ("e", "12")]));
        for other in ["layers.3.experts.12.up2", "layers..experts.1.up", "layers.03.experts.1.up", "layers.3.experts.1"]
        {
            assert_eq!(p.matches(other), None, "{other}");
        }
        let q = Pattern::new("{e}/{i}").unwrap();
        assert_eq!(q.fill(&p.matches("layers.3.experts.12.up").unwrap()), "12/3");
        assert_eq!(p.placeholders(), q.placeholders());
        assert!(Pattern::new("cls.*").unwrap().matches("cls.predictions.bias").is_some());
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for bad in ["", "a.{", "a.{}", "{i}{j}", "{i}.{i}", "a*b", "a}", "{i}0", "**", "{i j}"] {
            assert!(Pattern::new(bad).is_err(), "{bad}");
        }
    }
}
