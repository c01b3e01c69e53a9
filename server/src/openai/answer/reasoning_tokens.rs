//! How many tokens of an answer are thinking: those with a byte of it. A marker is text of several tokens with some models, and it is
//! certain only at its end that it was one.

use crate::chat::parse::Parser;
use std::collections::VecDeque;
use std::ops::Range;

#[derive(Debug, Default)]
pub struct ReasoningTokens {
    count: usize,
    /// Where the last counted tokens begin: those that may turn out to be of the end marker.
    recent: VecDeque<usize>,
}

/// Longer than any marker is in tokens.
const RECENT: usize = 64;

impl ReasoningTokens {
    pub fn count(&self) -> usize {
        self.count
    }

    /// `bytes` of the output are the token's, and the parser has seen them.
    pub fn push(&mut self, bytes: Range<usize>, parser: &Parser) {
        let Some(thinking) = parser.thinking() else { return };
        let ends_inside = bytes.end > thinking.start || (bytes.is_empty() && bytes.start >= thinking.start);
        if ends_inside && bytes.start < thinking.end {
            self.count += 1;
            self.recent.push_back(bytes.start);
            if self.recent.len() > RECENT {
                self.recent.pop_front();
            }
        }
        self.settle(parser);
    }

    /// Takes back what was counted before it was known to be behind the thinking.
    pub fn settle(&mut self, parser: &Parser) {
        let Some(thinking) = parser.thinking() else { return };
        while self.recent.back().is_some_and(|&start| start >= thinking.end) {
            self.recent.pop_back();
            self.count -= 1;
        }
    }
}
