//! Prompts that are read and not answered: pooled to a vector, or told how probable their tokens are. They take the same way as
//! those that are answered, with the same admission, priorities, limits and end when the client goes away; nothing is sampled.

use crate::chat::Prompt;
use crate::engine_thread::{EventStream, SequenceEvent, Timings};
use crate::error::ApiError;
use crate::service::{Service, fit_max_tokens};
use scheduler::{AdapterId, Digest, FinishReason, PooledSum, PromptLogprob, PromptOutput, SamplingParams};
use std::sync::Arc;
use std::task::{Context, Poll};

/// What all prompts of a request have in common.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions {
    /// The name of the prompts in the request.
    pub param: &'static str,
    pub priority: i32,
    pub salt: Digest,
}

/// A prompt, what is wanted of it, and what reads it beside the model's own weights.
#[derive(Debug)]
pub struct ToRead {
    pub prompt: Prompt,
    pub output: PromptOutput,
    pub adapter: Option<AdapterId>,
}

/// What was asked of one prompt.
#[derive(Debug, Default)]
pub struct Read {
    /// Of the tokens that were to be told.
    pub logprobs: Vec<PromptLogprob>,
    /// Where the prompt was to be pooled.
    pub pooled: Option<PooledSum>,
    pub timings: Timings,
}

/// Prompts on their way. Dropping it cancels them.
pub struct Readings(Vec<Reading>);

struct Reading {
    /// `None` once all was told.
    events: Option<EventStream>,
    read: Read,
}

impl Service {
    /// Starts to read prompts, all or none.
    pub fn read(&self, prompts: &[ToRead], options: ReadOptions) -> Result<Readings, ApiError> {
        let params = Arc::new(SamplingParams { max_tokens: 0, ..SamplingParams::default() });
        let mut sequences = Vec::with_capacity(prompts.len());
        for ToRead { prompt, output, adapter } in prompts {
            self.check_placeholders(prompt, options.param)?;
            fit_max_tokens(prompt.tokens.len(), Some(0), self.info().max_model_len, options.param)?;
            let sequence = self.sequence(prompt, params.clone(), options.param)?;
            let mut sequence = sequence.wanting(*output)?;
            sequence.priority = options.priority;
            sequence.salt = options.salt;
            sequence.adapter = *adapter;
            sequences.push(sequence);
        }
        let streams = self.submit(sequences)?;
        for (stream, read) in streams.iter().zip(prompts) {
            stream.progress().set_vision(read.prompt.vision);
        }
        let reading = |events| Reading { events: Some(events), read: Read::default() };
        Ok(Readings(streams.into_iter().map(reading).collect()))
    }
}

impl Readings {
    /// Waits for all of them, in the order of the prompts.
    pub async fn collect(mut self) -> Result<Vec<Read>, ApiError> {
        std::future::poll_fn(|context| {
            for reading in &mut self.0 {
                reading.drain(context)?;
            }
            match self.0.iter().all(|reading| reading.events.is_none()) {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        })
        .await
        .map(|()| self.0.into_iter().map(|reading| reading.read).collect())
    }
}

impl Reading {
    fn drain(&mut self, context: &mut Context<'_>) -> Result<(), ApiError> {
        while let Some(events) = &mut self.events {
            let Poll::Ready(event) = events.poll_next(context) else { break };
            match event {
                Some(SequenceEvent::PromptLogprobs(logprobs)) => self.read.logprobs.extend(logprobs),
                Some(SequenceEvent::Pooled(pooled)) => self.read.pooled = Some(pooled),
                Some(SequenceEvent::Finished(FinishReason::Failed(failure), _)) => {
                    return Err(ApiError::Failed(failure));
                }
                Some(SequenceEvent::Finished(_, spent)) => {
                    self.read.timings = events.progress().timings(spent);
                    self.events = None;
                }
                Some(SequenceEvent::Rejected(reject)) => return Err(reject.into()),
                Some(SequenceEvent::Failed(reason)) => return Err(reason.into()),
                // A prompt without an answer has no tokens.
                Some(SequenceEvent::Token(..)) => {}
                None => return Err(ApiError::engine_failed()),
            }
        }
        Ok(())
    }
}
