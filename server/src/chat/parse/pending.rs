//! Text that was decoded and not yet told: what may still turn out to be a marker or a part of a call.
//!
//! ```text
//!   |  told  |  taken in: a call, if it goes on like one  |  not looked at  |
//!            start                                        pos
//! ```
//! Control tokens that a client is not shown lie in the same text, so that the parsers see them, and are left out when text is told.

use std::ops::Range;

#[derive(Debug, Default)]
pub(super) struct Pending {
    text: String,
    start: usize,
    pos: usize,
    /// In order. Of these bytes the client sees nothing.
    hidden: Vec<Range<usize>>,
    /// Bytes of the output that were dropped from the front of `text`.
    dropped: usize,
    is_end: bool,
    /// White space known to begin at `pos`: the position and how much. A long run is looked at once, not with every piece.
    white: (usize, usize),
}

impl Pending {
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub fn push_hidden(&mut self, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        self.hidden.push(start..self.text.len());
    }

    /// No more text will come.
    pub fn end(&mut self) {
        self.is_end = true;
    }

    pub fn is_end(&self) -> bool {
        self.is_end
    }

    /// Bytes of the whole output so far.
    pub fn len(&self) -> usize {
        self.dropped + self.text.len()
    }

    /// Bytes of the whole output that were taken in.
    pub fn offset(&self) -> usize {
        self.dropped + self.pos
    }

    /// Bytes of the whole output that were told or used up.
    pub fn told(&self) -> usize {
        self.dropped + self.start
    }

    pub fn rest(&self) -> &str {
        &self.text[self.pos..]
    }

    /// The rest up to the first control token in it.
    pub fn plain(&self) -> &str {
        let hidden = self.hidden.iter().find(|hidden| hidden.end > self.pos);
        let end = hidden.map_or(self.text.len(), |hidden| hidden.start.max(self.pos));
        &self.text[self.pos..end]
    }

    pub fn advance(&mut self, len: usize) {
        self.pos += len;
        debug_assert!(self.text.is_char_boundary(self.pos));
    }

    /// Bytes of white space with which the rest begins.
    pub fn white(&mut self) -> usize {
        let known = if self.white.0 == self.pos { self.white.1 } else { 0 };
        let rest = self.rest();
        let len = rest.len() - rest[known..].trim_start().len();
        self.white = (self.pos, len);
        len
    }

    /// Takes white space in; says whether something else follows.
    pub fn skip_white(&mut self) -> bool {
        self.pos = self.text.len() - self.rest().trim_start().len();
        self.pos < self.text.len()
    }

    /// Takes in only the first `len` bytes of what was taken in since the last commit.
    pub fn rewind(&mut self, len: usize) {
        debug_assert!(self.start + len <= self.pos);
        self.pos = self.start + len;
    }

    /// All that is there is used up.
    pub fn discard(&mut self) {
        self.pos = self.text.len();
        self.start = self.pos;
    }

    /// What was taken in is used up.
    pub fn commit(&mut self) {
        self.start = self.pos;
    }

    /// What was taken in is text after all: the pieces of it that a client may see, and where in the output they begin.
    pub fn tell(&mut self, mut say: impl FnMut(usize, &str)) {
        let Range { start, end } = self.start..self.pos;
        let mut from = start;
        for hidden in self.hidden.iter().filter(|hidden| hidden.start < end && hidden.end > start) {
            if hidden.start > from {
                say(self.dropped + from, &self.text[from..hidden.start]);
            }
            from = hidden.end.max(from);
        }
        if end > from {
            say(self.dropped + from, &self.text[from..end]);
        }
        self.start = end;
    }

    /// Forgets what was told. Text that was taken in or not looked at stays.
    pub fn compact(&mut self) {
        if self.start == 0 {
            return;
        }
        self.text.drain(..self.start);
        self.hidden.retain_mut(|hidden| {
            let keep = hidden.end > self.start;
            *hidden = hidden.start.saturating_sub(self.start)..hidden.end.saturating_sub(self.start);
            keep
        });
        self.white.0 = self.white.0.wrapping_sub(self.start);
        self.pos -= self.start;
        self.dropped += self.start;
        self.start = 0;
    }
}
