//! A sequence's text as its tokens arrive, held back where it may be the beginning of a stop text.

use crate::Result;
use genus_text::{StreamDecoder, TextError};

#[derive(Debug)]
pub(crate) struct TextStream {
    decoder: StreamDecoder,
    stops: Vec<String>,
    text: String,
    emitted: usize,
}

impl TextStream {
    pub fn new(decoder: StreamDecoder, stops: &[String]) -> Self {
        TextStream { decoder, stops: stops.to_vec(), text: String::new(), emitted: 0 }
    }

    /// Takes a token; returns the text that is certain now, and whether a stop text was reached.
    pub fn push(&mut self, id: u32) -> Result<(String, bool)> {
        let piece = match self.decoder.push(id) {
            // A model may have more rows than its tokenizer has tokens.
            Err(TextError::UnknownId { .. }) => char::REPLACEMENT_CHARACTER.to_string(),
            other => other?,
        };
        Ok(self.take(&piece))
    }

    /// The rest of the text.
    pub fn finish(&mut self) -> Result<String> {
        let piece = self.decoder.finish()?;
        let (mut out, stopped) = self.take(&piece);
        if !stopped {
            out.push_str(&self.text[self.emitted..]);
            self.emitted = self.text.len();
        }
        Ok(out)
    }

    /// All of the text so far, without a stop text.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn take(&mut self, piece: &str) -> (String, bool) {
        self.text.push_str(piece);
        // What was handed out cannot be part of a stop text: it would have been held back.
        let rest = &self.text[self.emitted..];
        let stop = self.stops.iter().filter_map(|s| rest.find(s.as_str())).min();
        let end = match stop {
            Some(at) => self.emitted + at,
            None => self.text.len() - self.held(),
        };
        let out = self.text[self.emitted..end].to_owned();
        self.emitted = end;
        if stop.is_some() {
            self.text.truncate(end);
        }
        (out, stop.is_some())
    }

    /// Bytes at the end of the text that a stop text may begin with.
    fn held(&self) -> usize {
        let rest = &self.text[self.emitted..];
        let begins =
            |n: &usize| self.stops.iter().any(|s| s.as_bytes().starts_with(&rest.as_bytes()[rest.len() - n..]));
        (1..=rest.len()).rev().filter(|n| rest.is_char_boundary(rest.len() - n)).find(begins).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use genus_text::Tokenizer;

    /// Feeds bytes; returns what came out, piece by piece, and the text at the end.
    fn run(input: &str, stops: &[&str]) -> (Vec<String>, String) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let tokenizer = Tokenizer::bytes();
        let mut stream = TextStream::new(tokenizer.stream_decoder(true), &stops);
        let mut pieces = Vec::new();
        for id in tokenizer.encode(input, false).unwrap() {
            let (piece, stopped) = stream.push(id).unwrap();
            pieces.push(piece);
            if stopped {
                return (pieces, stream.text().to_owned());
            }
        }
        pieces.push(stream.finish().unwrap());
        (pieces, stream.text().to_owned())
    }

    #[test]
    fn text_is_held_back_no_longer_than_needed() {
        let (pieces, text) = run("abcabd", &["abd"]);
        assert_eq!(pieces, ["", "", "abc", "", "", ""]);
        assert_eq!(text, "abc");
        let (pieces, text) = run("abab", &["abc"]);
        assert_eq!(pieces.concat(), "abab");
        assert_eq!((pieces[2].as_str(), text.as_str()), ("ab", "abab"));
        let (pieces, _) = run("xyz", &[]);
        assert_eq!(pieces, ["x", "y", "z", ""]);
    }

    #[test]
    fn the_earliest_stop_wins_and_characters_stay_whole() {
        assert_eq!(run("naïve end\n\nmore", &["\n\n", "end"]).1, "naïve ");
        // Two bytes of a character in two tokens.
        assert_eq!(run("aïb", &["ïc"]).0.concat(), "aïb");
    }

    #[test]
    fn an_unfinished_character_is_replaced_at_the_end() {
        let tokenizer = Tokenizer::bytes();
        let mut stream = TextStream::new(tokenizer.stream_decoder(true), &[]);
        let first = tokenizer.encode("é", false).unwrap()[0];
        assert_eq!(stream.push(first).unwrap(), (String::new(), false));
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }
}
