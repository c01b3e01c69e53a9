//! Chat completion chunks, written by hand around the text: the parts that never change are made once for each stream.
//!
//! The role comes with the first delta of each choice, the finish reason alone in its last; there are no empty deltas, which some
//! clients take for the end of something.

use crate::chat::Tokenizer;
use crate::openai::answer::{Delta, Finish, TokenLogprob, Usage};
use crate::openai::chat::response::ResponseHead;
use crate::openai::generation::{ReportOptions, StreamOptions};
use crate::openai::json;
use crate::openai::report::{TimingsJson, TokenNames, UsageJson};
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
            stream: report
                .stream
                .unwrap_or(StreamOptions { include_usage: false, continuous_usage_stats: false }),
            prompt: report.token_ids.then_some(prompt),
            has_role: vec![false; num_choices],
        }
    }

    /// Everything up to the inside of `delta`. The first time it holds the role; says whether it does.
    fn open(&mut self, out: &mut BytesMut, choice: usize) -> bool {
        json::raw(out, &self.head);
        json::raw(out, "{\"index\":");
        json::value(out, &choice);
        if self.has_role[choice] {
            json::raw(out, ",\"delta\":{");
            return false;
        }
        self.has_role[choice] = true;
        if let Some(prompt) = &self.prompt {
            json::raw(out, ",\"prompt_token_ids\":");
            json::value(out, &prompt[..]);
        }
        json::raw(out, ",\"delta\":{\"role\":\"assistant\"");
        true
    }

    /// Everything after `delta`, but the finish reason's own fields.
    fn details(&self, out: &mut BytesMut, delta: &Delta) {
        self.logprobs(out, &delta.logprobs);
        if self.report.token_ids {
            json::raw(out, ",\"token_ids\":");
            json::value(out, &delta.tokens);
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

    fn close(&self, out: &mut BytesMut, usage: Usage) {
        match self.stream {
            StreamOptions { continuous_usage_stats: true, .. } => {
                json::raw(out, "}],\"usage\":");
                json::value(out, &UsageJson::from(usage));
                json::raw(out, "}\n\n");
            }
            StreamOptions { include_usage: true, .. } => json::raw(out, "}],\"usage\":null}\n\n"),
            _ => json::raw(out, "}]}\n\n"),
        }
    }
}

impl Dialect for ChatChunks {
    fn delta(&mut self, out: &mut BytesMut, choice: usize, delta: &Delta, usage: Usage) {
        let has_role = self.open(out, choice);
        json::raw(out, if has_role { ",\"content\":" } else { "\"content\":" });
        json::value(out, &delta.text);
        json::raw(out, "}");
        self.details(out, delta);
        json::raw(out, ",\"finish_reason\":null");
        self.close(out, usage);
    }

    fn finish(&mut self, out: &mut BytesMut, choice: usize, last: &Delta, finish: &Finish, usage: Usage) {
        // An answer without text still has its role, and empty content.
        let has_role = self.open(out, choice);
        json::raw(out, if has_role { ",\"content\":\"\"}" } else { "}" });
        self.details(out, last);
        json::raw(out, ",\"finish_reason\":");
        json::value(out, finish.reason);
        json::raw(out, ",\"stop_reason\":");
        json::value(out, &finish.cause);
        if self.report.timings {
            json::raw(out, ",\"timings\":");
            json::value(out, &TimingsJson::from(finish.timings));
        }
        self.close(out, usage);
    }

    fn usage(&mut self, out: &mut BytesMut, usage: Usage) {
        if self.stream.include_usage {
            json::raw(out, &self.head);
            json::raw(out, "],\"usage\":");
            json::value(out, &UsageJson::from(usage));
            json::raw(out, "}\n\n");
        }
    }
}
