//! Completion chunks, written by hand around the text.

use crate::chat::Tokenizer;
use crate::openai::chat::response::ResponseHead;
use crate::openai::completions::response::Echo;
use crate::openai::delta::{Delta, Finish, Usage};
use crate::openai::generation::{ReportOptions, StreamOptions};
use crate::openai::json;
use crate::openai::report::{TimingsJson, TokenNames};
use crate::openai::stream::Dialect;
use bytes::BytesMut;
use std::sync::Arc;

pub struct CompletionChunks {
    /// `data: {"id":…,"choices":[{"index":`
    head: String,
    tokenizer: Arc<Tokenizer>,
    report: ReportOptions,
    stream: StreamOptions,
    /// One for each prompt, which `n` choices in a row answer.
    prompts: Vec<Echo>,
    n: usize,
    has_begun: Vec<bool>,
}

impl CompletionChunks {
    pub fn new(
        head: &ResponseHead,
        tokenizer: Arc<Tokenizer>,
        report: ReportOptions,
        prompts: Vec<Echo>,
        n: usize,
    ) -> Self {
        Self {
            head: format!("data: {},\"choices\":[", head.opened("text_completion")),
            tokenizer,
            report,
            stream: report.stream.unwrap_or_default(),
            has_begun: vec![false; prompts.len() * n],
            prompts,
            n,
        }
    }

    /// A choice up to its finish reason. `text` is what is left of it; the echo comes before the first.
    fn choice(&mut self, out: &mut BytesMut, choice: usize, delta: &Delta) {
        let prompt = &self.prompts[choice / self.n];
        json::raw(out, &self.head);
        json::raw(out, "{\"index\":");
        json::value(out, &choice);
        json::raw(out, ",\"text\":");
        match (&prompt.text, self.has_begun[choice]) {
            (Some(echo), false) => json::value(out, &format!("{echo}{}", delta.text)),
            _ => json::value(out, &delta.text),
        }
        let repeats = prompt.text.is_some() && !self.has_begun[choice];
        match self.report.logprobs {
            Some(top) if repeats || !delta.logprobs.is_empty() => {
                let names = TokenNames { tokenizer: &self.tokenizer, as_ids: self.report.tokens_as_ids };
                json::raw(out, ",\"logprobs\":");
                match repeats {
                    true => {
                        let (of_prompt, of_answer) = (&delta.prompt_logprobs, &delta.logprobs);
                        json::value(out, &prompt.logprobs(names, top, of_prompt, of_answer));
                    }
                    false => json::value(out, &names.completion(&delta.logprobs, prompt.num_chars)),
                }
            }
            _ => json::raw(out, ",\"logprobs\":null"),
        }
        if self.report.token_ids {
            json::raw(out, ",\"token_ids\":");
            json::value(out, &delta.tokens);
            if !self.has_begun[choice] {
                json::raw(out, ",\"prompt_token_ids\":");
                json::value(out, &prompt.tokens[..]);
            }
        }
        self.has_begun[choice] = true;
    }
}

impl Dialect for CompletionChunks {
    fn delta(&mut self, out: &mut BytesMut, choice: usize, delta: &Delta, usage: Usage) {
        self.choice(out, choice, delta);
        json::raw(out, ",\"finish_reason\":null");
        self.stream.close_chunk(out, usage);
    }

    fn finish(&mut self, out: &mut BytesMut, choice: usize, last: &Delta, finish: &Finish, usage: Usage) {
        self.choice(out, choice, last);
        json::raw(out, ",\"finish_reason\":");
        json::value(out, finish.reason);
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
