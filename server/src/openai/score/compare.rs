//! How alike two texts are to the served model: the cosine of their pooled states, or how probable one is after the other.

use crate::chat::Prompt;
use crate::error::ApiError;
use crate::openai::embeddings::vector::{cosine, mean};
use crate::raw_prompt::RawPrompt;
use crate::reading::{Read, ReadOptions, ToRead};
use crate::service::Service;
use scheduler::{Pooling, PromptLogprob, PromptOutput, TokenId};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Cosine(Pooling),
    /// Natural logarithm of the probability of the second text's tokens after the first text.
    Logprob(Reduction),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// For each token, so that long texts and short ones can be compared.
    Mean,
    Sum,
}

/// How texts are compared, and for whom.
pub struct Manner {
    pub model: Option<String>,
    pub request_id: Option<String>,
    pub method: Method,
    pub add_special_tokens: bool,
    pub options: ReadOptions,
}

pub struct Comparison {
    pub first: Vec<String>,
    pub second: Vec<String>,
    /// Of which texts of the first and the second a score is wanted.
    pub pairs: Vec<(usize, usize)>,
}

pub struct Scores {
    /// One for each pair.
    pub scores: Vec<f64>,
    pub reads: Vec<Read>,
    pub prompt_tokens: usize,
}

impl Comparison {
    pub async fn run(self, service: &Arc<Service>, manner: &Manner) -> Result<Scores, ApiError> {
        match manner.method {
            Method::Cosine(pooling) => self.by_cosine(service, manner, pooling).await,
            Method::Logprob(reduction) => self.by_logprob(service, manner, reduction).await,
        }
    }

    /// Every text is read once, in however many pairs it is.
    async fn by_cosine(
        self,
        service: &Arc<Service>,
        manner: &Manner,
        pooling: Pooling,
    ) -> Result<Scores, ApiError> {
        let Self { first, second, pairs } = self;
        let num_first = first.len();
        let texts = first.into_iter().chain(second).map(RawPrompt::Text).collect();
        let tokens = service.completion_prompts(texts, manner.add_special_tokens).await?;
        let output = PromptOutput::Pooled(pooling);
        let (reads, prompt_tokens) =
            read(service, manner, tokens.into_iter().map(|tokens| (tokens, output))).await?;
        let vector = |read: &Read| mean(read.pooled.as_ref().expect("a pooled prompt ends with its vector"));
        let vectors: Vec<Vec<f64>> = reads.iter().map(vector).collect();
        let score = |&(a, b): &(usize, usize)| cosine(&vectors[a], &vectors[num_first + b]);
        Ok(Scores { scores: pairs.iter().map(score).collect(), reads, prompt_tokens })
    }

    /// The tokens of the second text follow those of the first as they are: where the two meet, nothing is tokenised anew.
    async fn by_logprob(
        self,
        service: &Arc<Service>,
        manner: &Manner,
        reduction: Reduction,
    ) -> Result<Scores, ApiError> {
        let Self { first, second, pairs } = self;
        let num_first = first.len();
        let texts = first.into_iter().chain(second).map(RawPrompt::Text).collect();
        let tokens = service.completion_prompts(texts, false).await?;
        let (first, second) = tokens.split_at(num_first);
        let prefix = if manner.add_special_tokens { service.tokenizer().prefix() } else { &[] };
        let joined = |&(a, b): &(usize, usize)| {
            let context = [prefix, &first[a]].concat();
            let output = PromptOutput::Logprobs { first: context.len(), top: 0 };
            ([context, second[b].clone()].concat(), output)
        };
        let (reads, prompt_tokens) = read(service, manner, pairs.iter().map(joined)).await?;
        let scores = reads.iter().map(|read| reduction.of(&read.logprobs)).collect();
        Ok(Scores { scores, reads, prompt_tokens })
    }
}

impl Reduction {
    fn of(self, logprobs: &[PromptLogprob]) -> f64 {
        let sum: f64 = logprobs.iter().map(|entry| f64::from(entry.logprob)).sum();
        match self {
            Reduction::Sum => sum,
            Reduction::Mean => sum / logprobs.len().max(1) as f64,
        }
    }
}

async fn read(
    service: &Service,
    manner: &Manner,
    prompts: impl Iterator<Item = (Vec<TokenId>, PromptOutput)>,
) -> Result<(Vec<Read>, usize), ApiError> {
    let adapter = service.find_model(manner.model.as_deref())?.adapter;
    let to_read = |(tokens, output)| {
        let prompt = Prompt { tokens, ..Prompt::default() };
        ToRead { prompt, output, adapter }
    };
    let prompts: Vec<_> = prompts.map(to_read).collect();
    let prompt_tokens = prompts.iter().map(|read| read.prompt.tokens.len()).sum();
    let readings = service.read(&prompts, manner.options)?;
    drop(prompts);
    Ok((readings.collect().await?, prompt_tokens))
}
