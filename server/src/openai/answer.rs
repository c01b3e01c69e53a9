//! From the engine's events to an answer: thinking, text and calls of tools, which every dialect goes through, streamed or not.
//!
//! ```text
//!   token ─▶ IncrementalDecoder ─▶ StopMatcher ─▶ Parser ─▶ Delta { reasoning, text, calls, … finish }
//! ```
//! A [`Delta`] is what is new of one choice since its last delta was taken, in the order thinking, text, calls. An answer in one piece
//! is a delta that was never taken, so both forms say the same by construction, the finish reason included. A dialect reads deltas and
//! nothing else: it needs no state of the parser, and never sees a marker.

mod reasoning_tokens;

use crate::chat::parse::{Ending, Parser};
use crate::chat::{IncrementalDecoder, Shown, StopInclusion, StopMatcher, Tokenizer};
use crate::engine_thread::{EventStream, Progress, SequenceEvent, Spent};
use crate::error::ApiError;
use crate::openai::delta::{Delta, Finish, StopCause, TokenLogprob, Usage};
use crate::openai::generation::{Generation, TextOptions};
use reasoning_tokens::ReasoningTokens;
use scheduler::{FinishReason, SampledToken, SamplingParams, TokenId};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// One answer to one prompt, as far as it has come.
pub struct Choice {
    /// `None` once the answer is complete.
    events: Option<EventStream>,
    progress: Arc<Progress>,
    ends: EndTokens,
    has_logprobs: bool,
    include_stop: bool,
    wants_tokens: bool,
    decoder: IncrementalDecoder,
    stops: StopMatcher,
    text: Arc<TextOptions>,
    model_ends: Arc<[TokenId]>,
    parser: Parser,
    /// Control tokens that are not shown and that the parser has to see, in order.
    controls: Arc<[TokenId]>,
    one_call: bool,
    hides_reasoning: bool,
    thinking: ReasoningTokens,
    /// Decoded and not yet searched for stop strings, where a token is not whole characters by itself.
    decoded: String,
    /// Searched for stop strings and not yet parsed, where there are some.
    shown: String,
    last_token: Option<TokenId>,
    /// Up to the last token.
    spent: Spent,
    /// Of the prompt; certain once there is a token.
    cached_tokens: usize,
    num_tokens: usize,
    num_chars: usize,
}

/// The tokens that end an answer. Most tokens are told apart without a look at the list, which lies elsewhere in memory.
struct EndTokens {
    params: Arc<SamplingParams>,
    /// Bit `i % 64` is set for each token `i` of the list.
    may_be: u64,
}

impl EndTokens {
    fn new(params: Arc<SamplingParams>) -> Self {
        let may_be = params.stop_token_ids.iter().fold(0, |bits, token| bits | 1 << (token % 64));
        Self { params, may_be }
    }

    fn contains(&self, token: TokenId) -> bool {
        self.may_be >> (token % 64) & 1 == 1 && self.params.stop_token_ids.binary_search(&token).is_ok()
    }
}

/// How an answer is read.
pub struct Parsing {
    pub parser: Parser,
    pub controls: Arc<[TokenId]>,
    /// The answer ends with its first call.
    pub one_call: bool,
    pub hides_reasoning: bool,
}

impl Choice {
    pub fn new(
        events: EventStream,
        params: Arc<SamplingParams>,
        tokenizer: &Arc<Tokenizer>,
        model_ends: &Arc<[TokenId]>,
        generation: &Generation,
        parsing: Parsing,
    ) -> Self {
        let Parsing { parser, controls, one_call, hides_reasoning } = parsing;
        let text = &generation.text;
        let shown = if text.skip_special_tokens { Shown::WithoutSpecials } else { Shown::All };
        let inclusion = if text.include_stop { StopInclusion::Included } else { StopInclusion::Excluded };
        Self {
            progress: events.progress().clone(),
            events: Some(events),
            has_logprobs: params.logprobs.is_some(),
            ends: EndTokens::new(params),
            include_stop: text.include_stop,
            decoder: IncrementalDecoder::after_prompt(tokenizer.clone(), shown),
            stops: StopMatcher::new(&text.stops, inclusion).expect("lowering refuses empty stop strings"),
            text: Arc::new(text.clone()),
            model_ends: model_ends.clone(),
            wants_tokens: generation.report.token_ids,
            parser,
            controls: if text.skip_special_tokens { controls } else { Arc::default() },
            one_call,
            hides_reasoning,
            thinking: ReasoningTokens::default(),
            decoded: String::new(),
            shown: String::new(),
            last_token: None,
            spent: Spent::default(),
            cached_tokens: 0,
            num_tokens: 0,
            num_chars: 0,
        }
    }

    pub fn is_complete(&self) -> bool {
        self.events.is_none()
    }

    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Of the answer's tokens, those of its thinking.
    pub fn reasoning_tokens(&self) -> usize {
        self.thinking.count()
    }

    pub fn cached_tokens(&self) -> usize {
        if self.num_tokens > 0 { self.cached_tokens } else { self.progress.cached_tokens() }
    }

    /// Adds everything that is there to `delta`, and arranges to be woken for more. Says whether there was anything.
    pub fn drain(&mut self, context: &mut Context<'_>, delta: &mut Delta) -> Result<bool, ApiError> {
        let mut has_news = false;
        let drained = self.drain_all(context, delta, &mut has_news);
        if self.hides_reasoning {
            delta.reasoning.clear();
        }
        drained.map(|()| has_news)
    }

    fn drain_all(
        &mut self,
        context: &mut Context<'_>,
        delta: &mut Delta,
        has_news: &mut bool,
    ) -> Result<(), ApiError> {
        while let Some(events) = &mut self.events {
            let Poll::Ready(event) = events.poll_next(context) else { break };
            *has_news = true;
            match event {
                Some(SequenceEvent::Token(token, spent)) => {
                    self.spent = spent;
                    self.push(token, delta);
                }
                Some(SequenceEvent::Finished(reason, spent)) => {
                    self.spent = spent;
                    self.finish(reason, delta)?;
                }
                Some(SequenceEvent::Rejected(reject)) => return Err(reject.into()),
                Some(SequenceEvent::Failed(reason)) => return Err(reason.into()),
                None => return Err(ApiError::engine_failed()),
                Some(SequenceEvent::PromptLogprobs(logprobs)) => delta.prompt_logprobs.extend(logprobs),
                // Whoever asks for an answer does not ask for this.
                Some(SequenceEvent::Pooled(_)) => {}
            }
        }
        Ok(())
    }

    fn push(&mut self, sampled: SampledToken, delta: &mut Delta) {
        let SampledToken { token, logprob, top } = sampled;
        if self.num_tokens == 0 {
            self.cached_tokens = self.progress.cached_tokens();
        }
        self.num_tokens += 1;
        self.last_token = Some(token);
        if self.wants_tokens {
            delta.tokens.push(token);
        }
        let start = self.parser.len() + self.stops.held_len();
        if let Some(logprob) = logprob {
            let text_offset = self.num_chars;
            delta.logprobs.push(TokenLogprob { token, logprob, top, text_offset, bytes: start..start });
        }
        // The token that ends an answer is not part of its text, whatever it is.
        if !self.include_stop && self.ends.contains(token) {
            return;
        }
        let stop = if self.controls.binary_search(&token).is_ok() {
            self.push_control(token, delta)
        } else {
            self.push_text(token, delta)
        };
        let bytes = start..self.parser.len() + self.stops.held_len();
        if let Some(entry) = delta.logprobs.last_mut().filter(|_| self.has_logprobs) {
            entry.bytes = bytes.clone();
        }
        self.thinking.push(bytes, &self.parser);
        if let Some(stop) = stop {
            let cause = self.text.stops.get(stop).cloned().map(StopCause::Text);
            self.stop(cause, delta);
        } else if self.one_call && self.parser.num_calls() > 0 && !self.parser.is_in_call() {
            self.stop(None, delta);
        }
    }

    /// Says which stop string is complete with this token.
    fn push_text(&mut self, token: TokenId, delta: &mut Delta) -> Option<usize> {
        let text = match self.decoder.whole(token) {
            Some(text) => text,
            None => {
                self.decoded.clear();
                self.decoder.push(token, &mut self.decoded);
                &self.decoded
            }
        };
        if self.has_logprobs {
            self.num_chars += text.chars().count();
        }
        if self.stops.is_empty() {
            self.parser.push(text, delta);
            return None;
        }
        self.shown.clear();
        let stop = self.stops.push(text, &mut self.shown);
        self.parser.push(&self.shown, delta);
        stop
    }

    /// A marker has no text of its own, and no stop string reaches over it. Half a character before it cannot become whole any more.
    fn push_control(&mut self, token: TokenId, delta: &mut Delta) -> Option<usize> {
        self.decoded.clear();
        self.decoder.finish(&mut self.decoded);
        if self.has_logprobs {
            self.num_chars += self.decoded.chars().count();
        }
        self.shown.clear();
        let stop = self.stops.push(&self.decoded, &mut self.shown);
        if stop.is_none() {
            self.stops.finish(&mut self.shown);
        }
        self.parser.push(&self.shown, delta);
        if let Some(text) = self.decoder.tokenizer().token_text(token).filter(|_| stop.is_none()) {
            self.parser.push_control(&text, delta);
        }
        stop
    }

    /// The answer ends here; the engine learns it before its next step.
    fn stop(&mut self, cause: Option<StopCause>, delta: &mut Delta) {
        if let Some(events) = self.events.take() {
            events.stop();
        }
        let reason = if self.parser.is_in_call() { "stop" } else { self.natural_reason() };
        self.parser.finish(Ending::Cut, delta);
        self.thinking.settle(&self.parser);
        delta.finish = Some(Finish { reason, cause, timings: self.progress.timings(self.spent) });
    }

    /// Of an answer that ended by itself.
    fn natural_reason(&self) -> &'static str {
        if self.parser.num_calls() > 0 { "tool_calls" } else { "stop" }
    }

    fn finish(&mut self, reason: FinishReason, delta: &mut Delta) -> Result<(), ApiError> {
        self.events = None;
        self.decoded.clear();
        self.shown.clear();
        self.decoder.finish(&mut self.decoded);
        let stop = self.stops.push(&self.decoded, &mut self.shown);
        if stop.is_none() {
            self.stops.finish(&mut self.shown);
        }
        self.parser.push(&self.shown, delta);
        if let Some(stop) = stop {
            let cause = self.text.stops.get(stop).cloned().map(StopCause::Text);
            self.stop(cause, delta);
            return Ok(());
        }
        // A token of the request's own that ended the answer, not the model's.
        let named = self.last_token.filter(|token| !self.model_ends.contains(token));
        let (reason, cause, ending) = match reason {
            FinishReason::Stop if named.is_some() => {
                (self.natural_reason(), named.map(StopCause::Token), Ending::Cut)
            }
            FinishReason::Stop | FinishReason::Complete => (self.natural_reason(), None, Ending::Natural),
            FinishReason::Length => ("length", None, Ending::Cut),
            FinishReason::Failed(failure) => return Err(ApiError::Failed(failure)),
        };
        self.parser.finish(ending, delta);
        self.thinking.settle(&self.parser);
        delta.finish = Some(Finish { reason, cause, timings: self.progress.timings(self.spent) });
        Ok(())
    }
}

/// All choices of one request, those of the first prompt first.
pub struct Answers {
    pub choices: Vec<Choice>,
    pub deltas: Vec<Delta>,
    pub prompt_tokens: usize,
    /// Choices for each prompt.
    n: usize,
}

impl Answers {
    pub fn new(choices: Vec<Choice>, n: usize, prompt_tokens: usize) -> Self {
        let delta = |choice: &Choice| Delta { tells_places: choice.has_logprobs, ..Delta::default() };
        let deltas = choices.iter().map(delta).collect();
        Self { choices, deltas, prompt_tokens, n }
    }

    pub fn drain(&mut self, context: &mut Context<'_>) -> Result<bool, ApiError> {
        let mut has_news = false;
        for (choice, delta) in self.choices.iter_mut().zip(&mut self.deltas) {
            has_news |= choice.drain(context, delta)?;
        }
        Ok(has_news)
    }

    pub fn is_complete(&self) -> bool {
        self.choices.iter().all(Choice::is_complete)
    }

    /// Whether nothing has come since the last [drain](Self::drain) of an answer that is not complete.
    pub fn is_quiet(&self, context: &Context<'_>) -> bool {
        let is_quiet = |choice: &Choice| choice.events.as_ref().is_none_or(|events| events.is_quiet(context));
        self.choices.iter().all(is_quiet) && !self.is_complete()
    }

    /// Waits until there is something to say, or for `limit`: an error that comes before that can still be a status.
    pub async fn first(&mut self, limit: Option<Duration>) -> Result<(), ApiError> {
        let first = std::future::poll_fn(|context| match self.drain(context) {
            Ok(false) => Poll::Pending,
            Ok(true) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error)),
        });
        match limit {
            None => first.await,
            Some(limit) => tokio::time::timeout(limit, first).await.unwrap_or(Ok(())),
        }
    }

    /// Waits for all of everything.
    pub async fn collect(&mut self) -> Result<(), ApiError> {
        std::future::poll_fn(|context| {
            self.drain(context)?;
            if self.is_complete() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.choices.iter().map(Choice::num_tokens).sum(),
            reasoning_tokens: self.choices.iter().map(Choice::reasoning_tokens).sum(),
            // A prompt's later choices find what its first one computed: only the first tells what was there before.
            cached_tokens: self.choices.iter().step_by(self.n).map(Choice::cached_tokens).sum(),
        }
    }
}
