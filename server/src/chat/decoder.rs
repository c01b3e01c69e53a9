//! Tokens in, text out as soon as it is certain. A character may need several tokens; the bytes of an unfinished one, three at most, wait.

use super::text::{Shown, State};
use super::tokenizer::Tokenizer;
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
        Self { tokenizer, state: State::after_prompt(shown) }
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
