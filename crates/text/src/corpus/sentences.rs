//! Sentences, for next-sentence pairs.

use unicode_segmentation::UnicodeSegmentation;

/// Sentences of a text by the rules of Unicode (UAX #29), trimmed, without empty ones. A line end always ends a
/// sentence there. With `lines`, lines are taken for sentences instead, as the published BERT data has them.
pub fn split_sentences(text: &str, lines: bool) -> Vec<&str> {
    let trimmed = |s: &'_ str| -> bool { !s.is_empty() };
    match lines {
        true => text.lines().map(str::trim).filter(|s| trimmed(s)).collect(),
        false => text.split_sentence_bounds().map(str::trim).filter(|s| trimmed(s)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_of_two_scripts() {
        let text = "Hello there. How are you?  Fine!\nNext line 3.5 metres";
        let expected = ["Hello there.", "How are you?", "Fine!", "Next line 3.5 metres"];
        assert_eq!(split_sentences(text, false), expected);
        assert_eq!(split_sentences("床前明月光。疑是地上霜！", false), ["床前明月光。", "疑是地上霜！"]);
        assert_eq!(split_sentences("a. b\n\n c \n", true), ["a. b", "c"]);
    }
}
