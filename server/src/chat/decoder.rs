//! Tokens in, text out as soon as it is certain. A character may need several tokens; the bytes of an unfinished one, three at most, wait.

use super::tokenizer::{Shown, Tokenizer};
use super::vocabulary::{LeadingSpace, Vocabulary};
use scheduler::TokenId;
use std::sync::Arc;

/// Decodes one sequence. All deltas together, with that of `finish`, are what `Tokenizer::decode` says of the same tokens.
pub struct IncrementalDecoder {
    tokenizer: Arc<Tokenizer>,
    state: State,
}

impl IncrementalDecoder {
    /// For a text on its own: the space that the tokenizer puts before a first word is dropped.
    pub fn new(tokenizer: Arc<Tokenizer>, shown: Shown) -> Self {
        Self { tokenizer, state: State::new(shown) }
    }

    /// For what follows a prompt: a space before the first word is part of the answer.
    pub fn after_prompt(tokenizer: Arc<Tokenizer>, shown: Shown) -> Self {
        Self { tokenizer, state: State { at_start: false, ..State::new(shown) } }
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the token makes certain, where that is its own text and nothing else: then it need not be copied, nor [pushed](Self::push).
    pub fn whole(&self, token: TokenId) -> Option<&str> {
        self.state.whole(self.tokenizer.vocabulary(), token)
    }

    /// Appends what the token makes certain.
    pub fn push(&mut self, token: TokenId, out: &mut String) {
        self.state.push(self.tokenizer.vocabulary(), token, out);
    }

    /// Appends what is left: U+FFFD for a character that never became whole.
    pub fn finish(&mut self, out: &mut String) {
        self.state.finish(out);
    }
}

pub(super) fn decode(vocabulary: &Vocabulary, tokens: &[TokenId], shown: Shown) -> String {
    let mut state = State::new(shown);
    let mut out = String::new();
    for &token in tokens {
        state.push(vocabulary, token, &mut out);
    }
    state.finish(&mut out);
    out
}

struct State {
    shown: Shown,
    /// Nothing was shown yet, so the rule for leading spaces applies.
    at_start: bool,
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl State {
    fn new(shown: Shown) -> Self {
        Self { shown, at_start: true, pending: Vec::new() }
    }

    fn whole<'a>(&self, vocabulary: &'a Vocabulary, token: TokenId) -> Option<&'a str> {
        if self.at_start || !self.pending.is_empty() {
            return None;
        }
        if self.shown == Shown::WithoutSpecials && vocabulary.is_special(token) {
            return Some("");
        }
        std::str::from_utf8(vocabulary.token_bytes(token).unwrap_or_default()).ok()
    }

    fn push(&mut self, vocabulary: &Vocabulary, token: TokenId, out: &mut String) {
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

    fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}
