//! The text of tokens: which of them are shown, and characters that several of them make together.

use super::vocabulary::{LeadingSpace, Vocabulary};
use scheduler::TokenId;

/// Which tokens decoding shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    All,
    WithoutSpecials,
}

/// All of a text at once.
pub(super) fn decode(vocabulary: &Vocabulary, tokens: &[TokenId], shown: Shown) -> String {
    let mut state = State::new(shown);
    let mut out = String::new();
    for &token in tokens {
        state.push(vocabulary, token, &mut out);
    }
    state.finish(&mut out);
    out
}

/// Of a text that is decoded token by token.
pub(super) struct State {
    shown: Shown,
    /// Nothing was shown yet, so the rule for leading spaces applies.
    at_start: bool,
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl State {
    /// A space that the tokenizer puts before a first word is part of the text.
    pub fn after_prompt(shown: Shown) -> Self {
        Self { at_start: false, ..Self::new(shown) }
    }

    pub fn new(shown: Shown) -> Self {
        Self { shown, at_start: true, pending: Vec::new() }
    }

    pub fn whole<'a>(&self, vocabulary: &'a Vocabulary, token: TokenId) -> Option<&'a str> {
        if self.at_start || !self.pending.is_empty() {
            return None;
        }
        if self.shown == Shown::WithoutSpecials && vocabulary.is_special(token) {
            return Some("");
        }
        std::str::from_utf8(vocabulary.token_bytes(token).unwrap_or_default()).ok()
    }

    pub fn push(&mut self, vocabulary: &Vocabulary, token: TokenId, out: &mut String) {
        if self.shown == Shown::WithoutSpecials && vocabulary.is_special(token) {
            return;
        }
        let Some(mut bytes) = vocabulary.token_bytes(token) else { return };
        let without_spaces: Vec<u8>;
        if self.at_start {
            match vocabulary.leading_space {
                LeadingSpace::Keep => {}
                LeadingSpace::DropOne => bytes = bytes.strip_prefix(b" ").unwrap_or(bytes),
                LeadingSpace::DropInFirstToken => {
                    without_spaces = bytes.iter().copied().filter(|&b| b != b' ').collect();
                    bytes = &without_spaces;
                }
            }
            self.at_start = false;
        }
        if self.pending.is_empty() {
            self.take(bytes, out);
        } else {
            let mut joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(bytes);
            self.take(&joined, out);
        }
    }

    /// Appends the whole characters of `bytes`, U+FFFD for what can never become one, and keeps an unfinished end.
    fn take(&mut self, mut bytes: &[u8], out: &mut String) {
        loop {
            match std::str::from_utf8(bytes) {
                Ok(text) => return out.push_str(text),
                Err(error) => {
                    let (text, rest) = bytes.split_at(error.valid_up_to());
                    // Checked by from_utf8 up to here; lossy copies nothing.
                    out.push_str(&String::from_utf8_lossy(text));
                    match error.error_len() {
                        None => return self.pending.extend_from_slice(rest),
                        Some(len) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            bytes = &rest[len..];
                        }
                    }
                }
            }
        }
    }

    pub fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}
