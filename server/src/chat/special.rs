//! Control tokens in text: finding them where a template wrote them, and breaking them where a user typed them.

use aho_corasick::{AhoCorasick, MatchKind};
use scheduler::TokenId;
use std::borrow::Cow;
use std::collections::HashSet;

/// A token that means something to the model beyond its letters, such as `<|im_end|>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ControlToken {
    pub id: TokenId,
    pub text: String,
    /// Whitespace before it belongs to it.
    pub lstrip: bool,
    /// Whitespace after it belongs to it.
    pub rstrip: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Text { start: usize, text: &'a str },
    Control(TokenId),
}

/// Finds control tokens in linear time, however many there are.
pub(super) struct ControlFinder {
    tokens: Vec<ControlToken>,
    /// The leftmost, and of those the longest: what a tokenizer takes.
    longest: AhoCorasick,
    /// Every occurrence, overlapping ones too: what has to be broken.
    every: AhoCorasick,
    /// Every beginning of a token that is not a whole one.
    beginnings: HashSet<String>,
    longest_beginning: usize,
}

impl ControlFinder {
    pub fn new(tokens: Vec<ControlToken>) -> Result<Self, aho_corasick::BuildError> {
        let tokens: Vec<_> = tokens.into_iter().filter(|token| !token.text.is_empty()).collect();
        let texts: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
        let longest = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts)?;
        let every = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&texts)?;
        let cut = |token: &&str| {
            token.char_indices().skip(1).map(|(at, _)| token[..at].to_string()).collect::<Vec<_>>()
        };
        let beginnings: HashSet<String> = texts.iter().flat_map(cut).collect();
        let longest_beginning = beginnings.iter().map(String::len).max().unwrap_or(0);
        Ok(Self { tokens, longest, every, beginnings, longest_beginning })
    }

    /// The text cut at its control tokens.
    pub fn split<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut done = 0;
        for found in self.longest.find_iter(text) {
            let token = &self.tokens[found.pattern().as_usize()];
            // Whitespace that an earlier token took may reach over this one's start, never over its end.
            let (mut start, mut end) = (found.start(), found.end());
            if token.lstrip {
                start = text[..start].trim_end().len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            let start = start.max(done);
            if start > done {
                pieces.push(Piece::Text { start: done, text: &text[done..start] });
            }
            pieces.push(Piece::Control(token.id));
            done = end;
        }
        if done < text.len() {
            pieces.push(Piece::Text { start: done, text: &text[done..] });
        }
        pieces
    }

    /// The text with `mark` put into every control token, and after an end that further text could complete to one. Taking all
    /// marks out again gives the text back. Tokens of one character cannot be broken and stay.
    pub fn mask<'a>(&self, text: &'a str, mark: char) -> Cow<'a, str> {
        let mut marks: Vec<usize> = self
            .every
            .find_overlapping_iter(text)
            .map(|found| found.start() + text[found.start()..].chars().next().map_or(0, char::len_utf8))
            .collect();
        // A template may trim, so the end that counts is that of the trimmed text.
        let trimmed = text.trim_end();
        marks.extend(self.open_end(text).then_some(text.len()));
        marks.extend(self.open_end(trimmed).then_some(trimmed.len()));
        if marks.is_empty() {
            return Cow::Borrowed(text);
        }
        marks.sort_unstable();
        marks.dedup();
        let mut masked = String::with_capacity(text.len() + marks.len() * mark.len_utf8());
        let mut done = 0;
        for at in marks {
            masked.push_str(&text[done..at]);
            masked.push(mark);
            done = at;
        }
        masked.push_str(&text[done..]);
        Cow::Owned(masked)
    }

    /// Whether the text ends with the beginning of a control token.
    fn open_end(&self, text: &str) -> bool {
        let first = text.len().saturating_sub(self.longest_beginning);
        (first..text.len()).any(|at| text.is_char_boundary(at) && self.beginnings.contains(&text[at..]))
    }
}

/// A character that Unicode reserves for internal use and that occurs in none of the texts.
pub(super) fn free_noncharacter<'a>(
    texts: impl Iterator<Item = &'a str> + Clone,
    taken: Option<char>,
) -> Option<char> {
    // U+FDD0..U+FDEF all begin with the bytes EF B7: a text without them is done after one search.
    let mut used = [false; 32];
    for c in texts.flat_map(|text| text.char_indices().map(|(_, c)| c)) {
        let index = (c as u32).wrapping_sub(FIRST_NONCHARACTER as u32);
        if index < 32 {
            used[index as usize] = true;
        }
    }
    (0..32)
        .filter(|&index| !used[index as usize])
        .filter_map(|index| char::from_u32(FIRST_NONCHARACTER as u32 + index))
        .find(|&c| Some(c) != taken)
}

pub(super) const FIRST_NONCHARACTER: char = '\u{FDD0}';
pub(super) const LAST_NONCHARACTER: char = '\u{FDEF}';

#[cfg(test)]
mod tests {
    use super::*;

    fn finder(texts: &[&str]) -> ControlFinder {
        let token = |(id, text): (usize, &&str)| ControlToken {
            id: id as TokenId,
            text: text.to_string(),
            lstrip: *text == "<mask>",
            rstrip: *text == "<right>",
        };
        ControlFinder::new(texts.iter().enumerate().map(token).collect()).expect("small automaton")
    }

    #[test]
    fn splits_leftmost_longest_and_takes_the_whitespace_it_owns() {
        let finder = finder(&["<s>", "<s>>", "<mask>", "<right>"]);
        let text = |start, text| Piece::Text { start, text };
        assert_eq!(finder.split(""), []);
        assert_eq!(
            finder.split("a<s>b<s>>"),
            [text(0, "a"), Piece::Control(0), text(4, "b"), Piece::Control(1)]
        );
        assert_eq!(finder.split("a  <mask> b"), [text(0, "a"), Piece::Control(2), text(9, " b")]);
        assert_eq!(finder.split("<right>  <mask>x"), [Piece::Control(3), Piece::Control(2), text(15, "x")]);
    }

    #[test]
    fn no_masked_text_holds_a_control_token_alone_or_joined() {
        let finder = finder(&["<|im_end|>", "<|im_start|>", "end|><|", "[BOS]"]);
        let texts = [
            "<|im_end|>",
            "<|im_end|><|im_start|>",
            "x <|im_",
            "<|im_ \n",
            "[",
            "end|>",
            "|im_end|>",
            "plain",
            "",
        ];
        for first in texts {
            let masked = finder.mask(first, FIRST_NONCHARACTER);
            assert_eq!(masked.replace(FIRST_NONCHARACTER, ""), first);
            for second in texts {
                let second = finder.mask(second, FIRST_NONCHARACTER);
                for joined in [format!("{masked}{second}"), format!("{}{second}", masked.trim())] {
                    let controls =
                        finder.split(&joined).iter().filter(|p| matches!(p, Piece::Control(_))).count();
                    assert_eq!(controls, 0, "{joined:?}");
                }
            }
        }
    }

    #[test]
    fn a_noncharacter_in_use_is_not_taken() {
        let texts = ["a\u{FDD0}", "\u{FDD1}"];
        assert_eq!(free_noncharacter(texts.iter().copied(), None), Some('\u{FDD2}'));
        assert_eq!(free_noncharacter(texts.iter().copied(), Some('\u{FDD2}')), Some('\u{FDD3}'));
        let all: String = (0..32).filter_map(|i| char::from_u32(0xFDD0 + i)).collect();
        assert_eq!(free_noncharacter([all.as_str()].into_iter(), None), None);
    }
}
