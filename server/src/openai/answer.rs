//! From the engine's events to text: what every answer goes through, streamed or not. A [`Delta`] is what is new of one choice; an
//! answer in one piece is a delta that was never handed out, so both forms say the same by construction.

use crate::chat::{IncrementalDecoder, Shown, StopInclusion, StopMatcher, Tokenizer};
use crate::engine_thread::{EventStream, Progress, SequenceEvent, Timings};
use crate::error::ApiError;
use crate::openai::generation::{Generation, TextOptions};
use scheduler::{FinishReason, PromptLogprob, SampledToken, SamplingParams, TokenId};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// What is new of one choice.
#[derive(Debug, Default)]
pub struct Delta {
    pub text: String,
    /// Only where the request asks for them.
    pub tokens: Vec<TokenId>,
    pub logprobs: Vec<TokenLogprob>,
    /// Of the prompt's tokens after the first, where they are wanted of this choice.
    pub prompt_logprobs: Vec<PromptLogprob>,
    pub finish: Option<Finish>,
}

#[derive(Debug, PartialEq)]
pub struct TokenLogprob {
    pub token: TokenId,
    pub logprob: f32,
    pub top: Vec<(TokenId, f32)>,
    /// Characters of the answer before this token, counting those not shown yet.
    pub text_offset: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
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
    pub fn clear(&mut self) {
        self.text.clear();
        self.tokens.clear();
        self.logprobs.clear();
        self.prompt_logprobs.clear();
        self.finish = None;
    }
}

/// One answer to one prompt, as far as it has come.
pub struct Choice {
    /// `None` once the answer is complete.
    events: Option<EventStream>,
    progress: Arc<Progress>,
    params: Arc<SamplingParams>,
    decoder: IncrementalDecoder,
    stops: StopMatcher,
    text: Arc<TextOptions>,
    model_ends: Arc<[TokenId]>,
    wants_tokens: bool,
    /// Decoded and not yet searched for stop strings.
    decoded: String,
    last_token: Option<TokenId>,
    num_tokens: usize,
    num_chars: usize,
}

impl Choice {
    pub fn new(
        events: EventStream,
        params: Arc<SamplingParams>,
        tokenizer: &Arc<Tokenizer>,
        model_ends: &Arc<[TokenId]>,
        generation: &Generation,
    ) -> Self {
        let text = &generation.text;
        let shown = if text.skip_special_tokens { Shown::WithoutSpecials } else { Shown::All };
        let inclusion = if text.include_stop { StopInclusion::Included } else { StopInclusion::Excluded };
        Self {
            progress: events.progress().clone(),
            events: Some(events),
            params,
            decoder: IncrementalDecoder::after_prompt(tokenizer.clone(), shown),
            stops: StopMatcher::new(&text.stops, inclusion).expect("lowering refuses empty stop strings"),
            text: Arc::new(text.clone()),
            model_ends: model_ends.clone(),
            wants_tokens: generation.report.token_ids,
            decoded: String::new(),
            last_token: None,
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

    pub fn cached_tokens(&self) -> usize {
        self.progress.timings().cached_tokens
    }

    /// Adds everything that is there to `delta`, and arranges to be woken for more. Says whether there was anything.
    pub fn drain(&mut self, context: &mut Context<'_>, delta: &mut Delta) -> Result<bool, ApiError> {
        let mut has_news = false;
        while let Some(events) = &mut self.events {
            let Poll::Ready(event) = events.poll_next(context) else { break };
            has_news = true;
            match event {
                Some(SequenceEvent::Token(token)) => self.push(token, delta),
                Some(SequenceEvent::Finished(reason)) => self.finish(reason, delta)?,
                Some(SequenceEvent::Rejected(reject)) => return Err(reject.into()),
                Some(SequenceEvent::Failed(reason)) => return Err(reason.into()),
                None => return Err(ApiError::engine_failed()),
                Some(SequenceEvent::PromptLogprobs(logprobs)) => delta.prompt_logprobs.extend(logprobs),
                // Whoever asks for an answer does not ask for this.
                Some(SequenceEvent::Pooled(_)) => {}
            }
        }
        Ok(has_news)
    }

    fn push(&mut self, sampled: SampledToken, delta: &mut Delta) {
        let SampledToken { token, logprob, top } = sampled;
        self.num_tokens += 1;
        self.last_token = Some(token);
        if self.wants_tokens {
            delta.tokens.push(token);
        }
        if let Some(logprob) = logprob {
            delta.logprobs.push(TokenLogprob { token, logprob, top, text_offset: self.num_chars });
        }
        // The token that ends an answer is not part of its text, whatever it is.
        if self.params.stop_token_ids.binary_search(&token).is_ok() && !self.text.include_stop {
            return;
        }
        self.decoded.clear();
        self.decoder.push(token, &mut self.decoded);
        if self.params.logprobs.is_some() {
            self.num_chars += self.decoded.chars().count();
        }
        if let Some(stop) = self.stops.push(&self.decoded, &mut delta.text) {
            self.stop(stop, delta);
        }
    }

    /// A stop string ends the answer here; the engine learns it before its next step.
    fn stop(&mut self, stop: usize, delta: &mut Delta) {
        if let Some(events) = self.events.take() {
            events.stop();
        }
        let cause = self.text.stops.get(stop).cloned().map(StopCause::Text);
        delta.finish = Some(Finish { reason: "stop", cause, timings: self.progress.timings() });
    }

    fn finish(&mut self, reason: FinishReason, delta: &mut Delta) -> Result<(), ApiError> {
        self.events = None;
        self.decoded.clear();
        self.decoder.finish(&mut self.decoded);
        if let Some(stop) = self.stops.push(&self.decoded, &mut delta.text) {
            self.stop(stop, delta);
            return Ok(());
        }
        self.stops.finish(&mut delta.text);
        let (reason, cause) = match reason {
            FinishReason::Stop => {
                let named = self.last_token.filter(|token| !self.model_ends.contains(token));
                ("stop", named.map(StopCause::Token))
            }
            FinishReason::Complete => ("stop", None),
            FinishReason::Length => ("length", None),
            FinishReason::Failed(failure) => return Err(ApiError::Numerical(failure)),
        };
        delta.finish = Some(Finish { reason, cause, timings: self.progress.timings() });
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
        let deltas = choices.iter().map(|_| Delta::default()).collect();
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
            // A prompt's later choices find what its first one computed: only the first tells what was there before.
            cached_tokens: self.choices.iter().step_by(self.n).map(Choice::cached_tokens).sum(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    /// Of the prompt, found in the cache.
    pub cached_tokens: usize,
}
