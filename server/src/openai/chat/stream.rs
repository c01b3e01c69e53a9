//! Chat completion chunks, written by hand around the text: the parts that never change are made once for each stream.
//!
//! The role comes with the first delta of each choice, the finish reason alone in its last; there are no empty deltas, which some
//! clients take for the end of something. Thinking, text and calls come in chunks of their own, one call after the other: the first
//! chunk of a call has its id, its name and no arguments, as from OpenAI, and the others have nothing but arguments.

use crate::chat::Tokenizer;
use crate::openai::chat::response::{ResponseHead, finish_reason};
use crate::openai::delta::{CallDelta, CallStart, Delta, Finish, TokenLogprob, Usage};
use crate::openai::generation::{ReportOptions, StreamOptions};
use crate::openai::json;
use crate::openai::report::{TimingsJson, TokenNames};
use crate::openai::stream::Dialect;
use bytes::BytesMut;
use scheduler::TokenId;
use std::sync::Arc;

pub struct ChatChunks {
    /// `data: {"id":…,"choices":[`
    head: String,
    tokenizer: Arc<Tokenizer>,
    report: ReportOptions,
    stream: StreamOptions,
    /// Given with the first chunk of a choice, where the request asks for token ids.
    prompt: Option<Arc<[TokenId]>>,
    has_role: Vec<bool>,
}

/// What all chunks of one delta have in common.
struct Place<'a> {
    choice: usize,
    delta: &'a Delta,
    usage: Usage,
    is_first: bool,
}

impl ChatChunks {
    pub fn new(
        head: &ResponseHead,
        tokenizer: Arc<Tokenizer>,
        report: ReportOptions,
        prompt: Arc<[TokenId]>,
        num_choices: usize,
    ) -> Self {
        Self {
            head: format!("data: {},\"choices\":[", head.opened("chat.completion.chunk")),
            tokenizer,
            report,
            stream: report.stream.unwrap_or_default(),
            prompt: report.token_ids.then_some(prompt),
            has_role: vec![false; num_choices],
        }
    }

    /// Everything up to the inside of `delta`. The first time it holds the role, and a comma after it.
    fn open(&mut self, out: &mut BytesMut, choice: usize) {
        json::raw(out, &self.head);
        json::raw(out, "{\"index\":");
        json::value(out, &choice);
        if self.has_role[choice] {
            json::raw(out, ",\"delta\":{");
            return;
        }
        self.has_role[choice] = true;
        if let Some(prompt) = &self.prompt {
            json::raw(out, ",\"prompt_token_ids\":");
            json::value(out, &prompt[..]);
        }
        json::raw(out, ",\"delta\":{\"role\":\"assistant\",");
    }

    /// One chunk, with the inside of its `delta`. The first that a delta becomes has the tokens.
    fn chunk(&mut self, out: &mut BytesMut, place: &mut Place<'_>, inside: impl FnOnce(&mut BytesMut)) {
        self.open(out, place.choice);
        inside(out);
        json::raw(out, "}");
        let (logprobs, tokens) = match std::mem::replace(&mut place.is_first, false) {
            true => (&place.delta.logprobs[..], &place.delta.tokens[..]),
            false => (&[][..], &[][..]),
        };
        self.details(out, logprobs, tokens);
        json::raw(out, ",\"finish_reason\":null");
        self.stream.close_chunk(out, place.usage);
    }

    fn call(&mut self, out: &mut BytesMut, place: &mut Place<'_>, call: &CallDelta) {
        let is_legacy = self.report.legacy_calls;
        if let Some(CallStart { id, name }) = &call.start {
            // Some clients want the content of a message that has none to be there.
            let opening = if self.has_role[place.choice] { "" } else { "\"content\":null," };
            self.chunk(out, place, |out| {
                json::raw(out, opening);
                if is_legacy {
                    json::raw(out, "\"function_call\":{\"name\":");
                    json::value(out, name);
                    json::raw(out, ",\"arguments\":\"\"}");
                    return;
                }
                json::raw(out, "\"tool_calls\":[{\"index\":");
                json::value(out, &call.index);
                json::raw(out, ",\"id\":");
                json::value(out, id);
                json::raw(out, ",\"type\":\"function\",\"function\":{\"name\":");
                json::value(out, name);
                json::raw(out, ",\"arguments\":\"\"}}]");
            });
        }
        if !call.arguments.is_empty() {
            self.chunk(out, place, |out| {
                if is_legacy {
                    json::raw(out, "\"function_call\":{\"arguments\":");
                    json::value(out, &call.arguments);
                    json::raw(out, "}");
                    return;
                }
                json::raw(out, "\"tool_calls\":[{\"index\":");
                json::value(out, &call.index);
                json::raw(out, ",\"function\":{\"arguments\":");
                json::value(out, &call.arguments);
                json::raw(out, "}}]");
            });
        }
    }

    /// Everything after `delta`, but the finish reason's own fields.
    fn details(&self, out: &mut BytesMut, logprobs: &[TokenLogprob], tokens: &[TokenId]) {
        self.logprobs(out, logprobs);
        if self.report.token_ids {
            json::raw(out, ",\"token_ids\":");
            json::value(out, tokens);
        }
    }

    fn logprobs(&self, out: &mut BytesMut, logprobs: &[TokenLogprob]) {
        if self.report.logprobs.is_none() || logprobs.is_empty() {
            json::raw(out, ",\"logprobs\":null");
            return;
        }
        json::raw(out, ",\"logprobs\":");
        let names = TokenNames { tokenizer: &self.tokenizer, as_ids: self.report.tokens_as_ids };
        json::value(out, &names.chat(logprobs));
    }
}

impl Dialect for ChatChunks {
    fn delta(&mut self, out: &mut BytesMut, choice: usize, delta: &Delta, usage: Usage) {
        let mut place = Place { choice, delta, usage, is_first: true };
        if !delta.reasoning.is_empty() {
            self.chunk(out, &mut place, |out| {
                json::raw(out, "\"reasoning_content\":");
                json::value(out, &delta.reasoning);
                json::raw(out, ",\"reasoning\":");
                json::value(out, &delta.reasoning);
            });
        }
        if !delta.text.is_empty() {
            self.chunk(out, &mut place, |out| {
                json::raw(out, "\"content\":");
                json::value(out, &delta.text);
            });
        }
        for call in &delta.calls {
            self.call(out, &mut place, call);
        }
    }

    fn finish(&mut self, out: &mut BytesMut, choice: usize, last: &Delta, finish: &Finish, usage: Usage) {
        // An answer without text still has its role, and empty content.
        let is_silent = !self.has_role[choice];
        self.open(out, choice);
        json::raw(out, if is_silent { "\"content\":\"\"}" } else { "}" });
        self.details(out, &last.logprobs, &last.tokens);
        json::raw(out, ",\"finish_reason\":");
        json::value(out, finish_reason(finish.reason, self.report.legacy_calls));
        json::raw(out, ",\"stop_reason\":");
        json::value(out, &finish.cause);
        if self.report.timings {
            json::raw(out, ",\"timings\":");
            json::value(out, &TimingsJson::from(finish.timings));
        }
        self.stream.close_chunk(out, usage);
    }

    fn usage(&mut self, out: &mut BytesMut, usage: Usage) {
        self.stream.usage_chunk(out, &self.head, usage);
    }
}
