//! What is told of an answer, piece by piece, before any dialect writes it down: see `answer` for where it comes from.

use crate::chat::parse::Events;
use crate::engine_thread::Timings;
use scheduler::{PromptLogprob, TokenId};
use std::ops::Range;

/// What is new of one choice.
#[derive(Debug, Default)]
pub struct Delta {
    /// Thinking; it ends before the first text or call of the choice begins.
    pub reasoning: String,
    /// The answer's text, what stands before, between and after calls joined.
    pub text: String,
    /// The bytes of the output that `text` is, in order; what lies between them is thinking, markers and calls. Only where log-probabilities
    /// are told, which belong to some of them.
    pub text_at: Vec<Range<usize>>,
    pub(super) tells_places: bool,
    /// Calls that began or went on, in the order of their indices, each at most once. A call ends before the next begins. What of the text
    /// stands before which of them tells [`Delta::said`].
    pub calls: Vec<CallDelta>,
    /// Only where the request asks for them.
    pub tokens: Vec<TokenId>,
    pub logprobs: Vec<TokenLogprob>,
    /// Of the prompt's tokens after the first, where they are wanted of this choice.
    pub prompt_logprobs: Vec<PromptLogprob>,
    pub finish: Option<Finish>,
}

/// A part of what was said besides thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said<'a> {
    Text(&'a str),
    Call(&'a CallDelta),
}

/// What is new of one call. Put together, the pieces of `arguments` are one JSON text, unless the answer ended within it or the model
/// wrote something else; `{}` where the model wrote nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallDelta {
    /// Among the calls of the choice, from 0.
    pub index: usize,
    /// In the first delta of a call, and only there.
    pub start: Option<CallStart>,
    /// Bytes of the delta's text that come before what is told here of the call.
    pub text_before: usize,
    pub arguments: String,
    /// The arguments are complete. Also true, in the last delta, of a call that was cut off.
    pub is_complete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallStart {
    pub id: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    pub token: TokenId,
    pub logprob: f32,
    pub top: Vec<(TokenId, f32)>,
    /// Characters of the answer before this token, counting those not shown yet.
    pub text_offset: usize,
    /// Its bytes of the output, markers counted; see [`Delta::text_at`].
    pub bytes: Range<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// `stop`, `length` or `tool_calls`.
    pub reason: &'static str,
    /// vLLM's `stop_reason`: what the request itself named as an end.
    pub cause: Option<StopCause>,
    pub timings: Timings,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum StopCause {
    Text(String),
    Token(TokenId),
}

impl Delta {
    /// Whether there is something to show. Tokens and log-probabilities alone belong to text that is not certain yet.
    pub fn has_news(&self) -> bool {
        !(self.reasoning.is_empty() && self.text.is_empty() && self.calls.is_empty())
    }

    /// Text and calls in the order in which they were said; no text is empty.
    pub fn said(&self) -> impl Iterator<Item = Said<'_>> {
        let starts = std::iter::once(0).chain(self.calls.iter().map(|call| call.text_before));
        let ends = self.calls.iter().map(|call| call.text_before).chain([self.text.len()]);
        let texts = starts.zip(ends).map(|(start, end)| &self.text[start..end]);
        let calls = self.calls.iter().map(Some).chain([None]);
        texts.zip(calls).flat_map(|(text, call)| {
            let text = (!text.is_empty()).then_some(Said::Text(text));
            text.into_iter().chain(call.map(Said::Call))
        })
    }

    /// Forgets thinking, text and calls, and keeps tokens and log-probabilities.
    pub fn clear_said(&mut self) {
        self.reasoning.clear();
        self.text.clear();
        self.text_at.clear();
        self.calls.clear();
    }

    pub fn clear(&mut self) {
        self.clear_said();
        self.tokens.clear();
        self.logprobs.clear();
        self.prompt_logprobs.clear();
        self.finish = None;
    }
}

impl Delta {
    /// The last call: the only one that can go on. It may have begun in an earlier delta.
    fn call(&mut self, index: usize) -> &mut CallDelta {
        if self.calls.last().is_none_or(|call| call.index != index) {
            let text_before = self.text.len();
            let arguments = String::new();
            self.calls.push(CallDelta { index, start: None, text_before, arguments, is_complete: false });
        }
        self.calls.last_mut().expect("was just pushed")
    }
}

impl Events for Delta {
    fn reasoning(&mut self, text: &str) {
        self.reasoning.push_str(text);
    }

    fn text(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn text_at(&mut self, bytes: Range<usize>) {
        if !self.tells_places {
            return;
        }
        match self.text_at.last_mut() {
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ => self.text_at.push(bytes),
        }
    }

    fn call_start(&mut self, index: usize, id: String, name: String) {
        self.call(index).start = Some(CallStart { id, name });
    }

    fn call_arguments(&mut self, index: usize, json: &str) {
        self.call(index).arguments.push_str(json);
    }

    fn call_end(&mut self, index: usize) {
        self.call(index).is_complete = true;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    /// Of the completion, spent on thinking.
    pub reasoning_tokens: usize,
    /// Of the prompt, found in the cache.
    pub cached_tokens: usize,
}
