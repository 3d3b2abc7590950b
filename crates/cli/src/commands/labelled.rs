//! Lines of text with labels.

use anyhow::bail;
use genus_models::{Labels, Problem};
use genus_text::SequenceLabel;
use genus_text::rng::Key;

/// Takes the labels off lines that end in a tab and a class (a number from 0 on, or the class's name), as GLUE's files have them; a
/// first line whose last field is no class is a heading then. Lines without tabs get made-up labels: time does not depend on them.
pub(crate) fn split(
    lines: Vec<String>,
    labels: &Labels,
    seed: u64,
) -> anyhow::Result<(Vec<String>, Vec<SequenceLabel>)> {
    let n = labels.names.len();
    let class = |field: &str| {
        let field = field.trim();
        labels.names.iter().position(|name| name == field).or(field.parse().ok().filter(|c| *c < n))
    };
    let tabs = lines.iter().filter(|l| l.contains('\t')).count();
    let given = labels.problem() == Problem::SingleLabel && tabs > 0;
    let mut texts = Vec::with_capacity(lines.len());
    let mut out = Vec::with_capacity(lines.len());
    let mut draw = Key::new(seed ^ 0x6c61_6265_6c73).stream();
    for (i, line) in lines.into_iter().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        if !given {
            let mut numbers = || (0..n).map(|_| draw.unit() as f32).collect();
            out.push(match labels.problem() {
                Problem::Regression => SequenceLabel::Numbers(numbers()),
                Problem::MultiLabel => SequenceLabel::Classes(numbers()),
                _ => SequenceLabel::Class(draw.below(n) as u32),
            });
            texts.push(line);
            continue;
        }
        match line.rsplit_once('\t').map(|(text, field)| (text, field, class(field))) {
            Some((text, _, Some(c))) => {
                out.push(SequenceLabel::Class(c as u32));
                texts.push(text.to_owned());
            }
            Some(_) if i == 0 => {}
            found => {
                let found = found.map_or("no tab".into(), |(_, field, _)| format!("{field:?} behind the last tab"));
                bail!("line {}: found {found}, expected a class from 0 to {} there, as in other lines", i + 1, n - 1);
            }
        }
    }
    if texts.is_empty() {
        bail!("found no line with text, expected at least one");
    }
    Ok((texts, out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split('\n').map(String::from).collect()
    }

    #[test]
    fn labels_come_off() {
        let mut labels = Labels::numbered(2);
        labels.names[1] = "good".into();
        let (texts, classes) = split(lines("sentence\tlabel\na film \t0\n\nso\tgood\tgood\n"), &labels, 1).unwrap();
        assert_eq!(texts, ["a film ", "so\tgood"]);
        assert_eq!(classes, [SequenceLabel::Class(0), SequenceLabel::Class(1)]);
        for (text, expected) in [
            ("a\t0\nb\t2", "line 2: found \"2\" behind the last tab, expected a class from 0 to 1"),
            ("a\t0\nb", "line 2: found no tab"),
            ("\n \n", "found no line with text"),
        ] {
            let message = split(lines(text), &labels, 1).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn plain_lines_get_labels_of_the_models_kind() {
        let (texts, classes) = split(lines("a\nb\nc"), &Labels::numbered(3), 1).unwrap();
        assert_eq!(texts.len(), 3);
        assert!(classes.iter().all(|c| matches!(c, SequenceLabel::Class(0..3))));
        let (_, numbers) = split(lines("a\tb"), &Labels::numbered(1), 1).unwrap();
        assert!(matches!(&numbers[0], SequenceLabel::Numbers(x) if x.len() == 1));
        let multi = Labels { problem: Some(Problem::MultiLabel), ..Labels::numbered(4) };
        let (_, many) = split(lines("a"), &multi, 1).unwrap();
        assert!(matches!(&many[0], SequenceLabel::Classes(x) if x.len() == 4));
    }
}
