//! From deltas to items: the order in which a model said things is the order of the items, whether they are told one by one or at the
//! end. Only the last item is open; what is said next goes on with it, or closes it and begins another.

use super::item::{ItemStatus, OutputItem};
use crate::chat::Tokenizer;
use crate::openai::delta::{CallDelta, Delta, TokenLogprob};
use crate::openai::report::{ChatLogprob, TokenNames};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

pub struct Assembly {
    items: Vec<OutputItem>,
    is_open: bool,
    /// Log-probabilities whose tokens lie behind the text that was told.
    waiting: VecDeque<TokenLogprob>,
    tokenizer: Arc<Tokenizer>,
}

/// What is new of the last item.
pub enum News<'a> {
    Begun(&'a OutputItem),
    More { item: &'a OutputItem, text: &'a str, logprobs: &'a [ChatLogprob] },
    Ended(&'a OutputItem),
}

/// Who wants to know it, with the item's number.
pub type Listener<'a> = &'a mut dyn FnMut(usize, News<'_>);

impl Assembly {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { items: Vec::new(), is_open: false, waiting: VecDeque::new(), tokenizer }
    }

    pub fn items(&self) -> &[OutputItem] {
        &self.items
    }

    pub fn take(&mut self, delta: &Delta, listener: Listener<'_>) {
        self.waiting.extend(delta.logprobs.iter().cloned());
        if !delta.reasoning.is_empty() {
            if !self.is_in(|item| matches!(item, OutputItem::Reasoning { .. })) {
                self.begin(OutputItem::reasoning(), listener);
            }
            self.more(&delta.reasoning, Vec::new(), listener);
        }
        let mut told = 0;
        for call in &delta.calls {
            self.text(delta, told..call.text_before, listener);
            told = call.text_before;
            self.call(call, listener);
        }
        self.text(delta, told..delta.text.len(), listener);
    }

    /// No more comes. What is still open becomes `status`.
    pub fn finish(&mut self, status: ItemStatus, listener: Listener<'_>) {
        self.end(status, listener);
        self.waiting.clear();
    }

    fn is_in(&self, kind: impl Fn(&OutputItem) -> bool) -> bool {
        self.is_open && self.items.last().is_some_and(kind)
    }

    fn begin(&mut self, item: OutputItem, listener: Listener<'_>) {
        self.end(ItemStatus::Completed, listener);
        self.items.push(item);
        self.is_open = true;
        let index = self.items.len() - 1;
        listener(index, News::Begun(&self.items[index]));
    }

    fn end(&mut self, status: ItemStatus, listener: Listener<'_>) {
        if !std::mem::replace(&mut self.is_open, false) {
            return;
        }
        let index = self.items.len() - 1;
        self.items[index].end(status);
        listener(index, News::Ended(&self.items[index]));
    }

    fn more(&mut self, text: &str, logprobs: Vec<ChatLogprob>, listener: Listener<'_>) {
        let index = self.items.len() - 1;
        listener(index, News::More { item: &self.items[index], text, logprobs: &logprobs });
        self.items[index].push(text, logprobs);
    }

    fn text(&mut self, delta: &Delta, piece: Range<usize>, listener: Listener<'_>) {
        let text = &delta.text[piece.clone()];
        if text.is_empty() {
            return;
        }
        if !self.is_in(|item| matches!(item, OutputItem::Message { .. })) {
            self.begin(OutputItem::message(), listener);
        }
        let logprobs = self.logprobs(&delta.text_at, piece);
        self.more(text, logprobs, listener);
    }

    fn call(&mut self, call: &CallDelta, listener: Listener<'_>) {
        if let Some(start) = &call.start {
            self.begin(OutputItem::function_call(start.id.clone(), start.name.clone()), listener);
        }
        if !call.arguments.is_empty() {
            self.more(&call.arguments, Vec::new(), listener);
        }
        if call.is_complete {
            let arguments = self.items.last().map_or("", OutputItem::text);
            // A call that was cut off ends as well.
            let is_whole = serde_json::from_str::<serde::de::IgnoredAny>(arguments).is_ok();
            self.end(if is_whole { ItemStatus::Completed } else { ItemStatus::Incomplete }, listener);
        }
    }

    /// Of the tokens of a piece of a delta's text. Those before it that are not of the text are dropped: thinking, markers and calls.
    fn logprobs(&mut self, text_at: &[Range<usize>], piece: Range<usize>) -> Vec<ChatLogprob> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let ranges = in_output(text_at, piece);
        let end = ranges.last().map_or(0, |range| range.end);
        let names = TokenNames { tokenizer: &self.tokenizer, as_ids: false };
        let mut logprobs = Vec::new();
        while self.waiting.front().is_some_and(|token| token.bytes.start < end) {
            let Some(token) = self.waiting.pop_front() else { break };
            if ranges.iter().any(|range| overlaps(range, &token.bytes)) {
                logprobs.push(names.with_top(&token));
            }
        }
        logprobs
    }
}

/// A token without bytes is the beginning of a character that the next one completes.
fn overlaps(text: &Range<usize>, token: &Range<usize>) -> bool {
    if token.is_empty() {
        text.contains(&token.start)
    } else {
        token.start < text.end && text.start < token.end
    }
}

/// Where a piece of a text lies in the output of which `text_at` are the text's bytes.
fn in_output(text_at: &[Range<usize>], piece: Range<usize>) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut before = 0;
    for range in text_at {
        let (from, to) = (piece.start.max(before), piece.end.min(before + range.len()));
        if from < to {
            ranges.push(range.start + from - before..range.start + to - before);
        }
        before += range.len();
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_text_are_found_in_the_output() {
        let text_at = [2..5, 9..10, 20..24];
        for (piece, expected) in [
            (0..0, vec![]),
            (0..3, vec![(2, 5)]),
            (1..4, vec![(3, 5), (9, 10)]),
            (3..8, vec![(9, 10), (20, 24)]),
            (5..6, vec![(21, 22)]),
            (0..8, vec![(2, 5), (9, 10), (20, 24)]),
        ] {
            let found = in_output(&text_at, piece.clone()).into_iter().map(|range| (range.start, range.end));
            assert_eq!(found.collect::<Vec<_>>(), expected, "{piece:?}");
        }
    }

    #[test]
    fn tokens_belong_to_the_text_that_they_touch() {
        for (text, token, expected) in [
            (2..5, 0..2, false),
            (2..5, 0..3, true),
            (2..5, 4..9, true),
            (2..5, 5..9, false),
            (2..5, 2..2, true),
            (2..5, 5..5, false),
        ] {
            assert_eq!(overlaps(&text, &token), expected, "{text:?} {token:?}");
        }
    }
}
