//! Words as rows of characters, for models that read those (ELMo).

use crate::Tokenizer;

/// Beginning of a sentence, as a word's only character.
pub const SENTENCE_BEGIN: u32 = 256;
/// End of a sentence.
pub const SENTENCE_END: u32 = 257;
const WORD_BEGIN: u32 = 258;
const WORD_END: u32 = 259;
const FILL: u32 = 260;

/// The characters of a word as ELMo has them: its bytes in UTF-8 between two marks, cut or filled to `length`.
pub fn spelling(word: &str, length: usize) -> Vec<u32> {
    framed(word.bytes().map(u32::from), length)
}

fn framed(characters: impl Iterator<Item = u32>, length: usize) -> Vec<u32> {
    let inside = characters.take(length.saturating_sub(2));
    let mut all: Vec<u32> = std::iter::once(WORD_BEGIN).chain(inside).chain([WORD_END]).collect();
    all.resize(length, FILL);
    all
}

/// The spellings of all tokens of a vocabulary, those beyond the tokenizer's as fillings. Tokens that begin and end texts are marks
/// of sentences.
pub fn spellings(tokenizer: &Tokenizer, vocab_size: usize, length: usize) -> Vec<u32> {
    let special = tokenizer.special();
    let of = |id: u32| {
        if special.eos == Some(id) || special.sep == Some(id) || tokenizer.end_of_text() == Some(id) {
            return framed([SENTENCE_END].into_iter(), length);
        }
        if special.bos == Some(id) || special.cls == Some(id) {
            return framed([SENTENCE_BEGIN].into_iter(), length);
        }
        match tokenizer.token(id) {
            Some(token) => spelling(&token, length),
            None => vec![FILL; length],
        }
    };
    (0..vocab_size as u32).flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_framed_cut_and_filled() {
        assert_eq!(spelling("né", 7), [258, 110, 195, 169, 259, 260, 260]);
        assert_eq!(spelling("abcdef", 5), [258, 97, 98, 99, 259]);
        let tokenizer = Tokenizer::bytes();
        let all = spellings(&tokenizer, 258, 4);
        assert_eq!(all.len(), 258 * 4);
        let end = tokenizer.end_of_text().unwrap() as usize;
        assert_eq!(all[end * 4..end * 4 + 4], [258, 257, 259, 260]);
        assert_eq!(all[257 * 4..], [260; 4]);
    }
}
