//! Where models, prompts and texts come from.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use genus_checkpoint::hub;

use crate::progress::Progress;
use crate::report::Usage;

/// The folder of the model that the user named: a local folder or a hub id. A bare preset has no weights and is refused with both ways out.
pub(crate) fn model_folder(model: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    if let Ok((family, preset)) = genus_models::find_preset(model) {
        return Err(Usage(format!(
            "`{model}` is a preset: a published configuration of {} with random weights, and this command needs a trained model. \
             Either train one (`genus train {} --data FILE --output RUN`) and pass a folder RUN/checkpoint-N, \
             or pass a hub id `owner/{model}` or a folder that holds a model",
            family.name, preset.name
        ))
        .into());
    }
    let mut shown: Option<Progress> = None;
    let mut current = String::new();
    let folder = hub::resolve(model, &mut |event| match event {
        hub::Progress::Bytes { file, done, total } => {
            if current != file || shown.is_none() {
                current = file.to_owned();
                if let Some(old) = shown.take() {
                    old.finish();
                }
                shown = Some(Progress::bytes(&format!("{model} {file}"), total));
            }
            if let Some(progress) = &mut shown {
                progress.update(done, "");
            }
        }
        hub::Progress::Cached { reason } => anstream::eprintln!("{model}: using the copy in the cache ({reason})"),
        _ => {}
    })?;
    if let Some(progress) = shown {
        progress.finish();
    }
    Ok(folder)
}

/// Texts from the command line: given ones, a file with one a line, a file as a whole, or standard input as a whole.
#[derive(Debug, Default)]
pub(crate) struct Texts<'a> {
    /// Given on the command line.
    pub(crate) given: &'a [String],
    /// A file with one a line.
    pub(crate) lines: Option<&'a Path>,
    /// A file that is one text.
    pub(crate) whole: Option<&'a Path>,
    /// The flags, for the error when there is nothing.
    pub(crate) flags: &'a str,
}

impl Texts<'_> {
    /// All of them, in the order above. Standard input is read when nothing is given, unless it is a terminal.
    pub(crate) fn read(&self) -> anyhow::Result<Vec<String>> {
        let mut out = self.given.to_vec();
        if let Some(path) = self.lines {
            let text = read_text(path)?;
            out.extend(text.lines().map(str::to_owned));
            if out.is_empty() {
                return Err(anyhow!("{}: found an empty file, expected one text a line", path.display()));
            }
        }
        if let Some(path) = self.whole {
            out.push(read_text(path)?);
        }
        if out.is_empty() && self.lines.is_none() {
            if std::io::stdin().is_terminal() {
                return Err(
                    Usage(format!("nothing to work on: pass {}, or a text on standard input", self.flags)).into()
                );
            }
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
            out.push(as_text(bytes, "standard input")?);
        }
        Ok(out)
    }
}

/// A file as text; what is not UTF-8 is an error with its place.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    as_text(bytes, &path.display().to_string())
}

fn as_text(bytes: Vec<u8>, name: &str) -> anyhow::Result<String> {
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let byte = e.as_bytes().get(at).copied().unwrap_or_default();
        anyhow!("{name}: found byte {byte:#04x} at offset {at}, expected UTF-8 text")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Ids as people write them: separated by spaces or commas, brackets allowed.
pub(crate) fn parse_ids(text: &str) -> anyhow::Result<Vec<u32>> {
    text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']'))
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse()
                .map_err(|_| anyhow!("ids: found `{word}`, expected whole numbers of at least 0, as in \"3 14 15\""))
        })
        .collect()
}

/// A size as people write it: `200MB`, `1.5GiB`, `4096`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("found `{text}`, expected a size such as 200MB, 5GB or 512MiB");
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "tb" | "t" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number * factor;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse() {
        assert_eq!(parse_size("200MB"), Ok(200_000_000));
        assert_eq!(parse_size("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("5 gb"), Ok(5_000_000_000));
        for wrong in ["", "MB", "200XB", "-1MB", "0", "1e99", "9999999TB", "0.1"] {
            assert!(parse_size(wrong).unwrap_err().contains("200MB"), "{wrong}");
        }
    }

    #[test]
    fn ids_parse() {
        assert_eq!(parse_ids("3 14\t15\n").unwrap(), [3, 14, 15]);
        assert_eq!(parse_ids("[3, 14]").unwrap(), [3, 14]);
        assert!(parse_ids("").unwrap().is_empty());
        assert!(parse_ids("3 -1").unwrap_err().to_string().contains("`-1`"));
        assert!(parse_ids("4294967296").is_err());
    }

    #[test]
    fn a_preset_is_refused_with_both_ways_out() {
        let error = model_folder("gpt2-medium").unwrap_err().to_string();
        assert!(error.contains("genus train gpt2-medium") && error.contains("owner/gpt2-medium"), "{error}");
        assert!(model_folder("no/such/folder").unwrap_err().to_string().contains("no/such/folder"));
    }

    #[test]
    fn text_that_is_not_utf8_is_an_error_with_its_place() {
        let error = as_text(b"ab\xff".to_vec(), "x.txt").unwrap_err().to_string();
        assert_eq!(error, "x.txt: found byte 0xff at offset 2, expected UTF-8 text");
        assert_eq!(as_text("\u{feff}ab".into(), "x").unwrap(), "ab");
    }
}
