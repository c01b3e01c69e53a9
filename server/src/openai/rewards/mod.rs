//! `POST /v1/rewards`: the implicit reward of DPO (Rafailov et al. 2023, "Direct Preference Optimization", eq. 5), up to the term that all
//! answers to one prompt share: r = β · (log π(y | x) − log π_ref(y | x)). The policy π is a served model, mostly an adapter; the reference another
//! one, mostly the base. Named after what TRL logs as `rewards/chosen` and `rewards/rejected`; `/v1/score` compares texts under one model.

pub mod lower;
pub mod response;

use crate::app::App;
use crate::chat::Prompt;
use crate::error::ApiError;
use crate::openai::embeddings::response::ReadUsage;
use crate::openai::exchange::Exchange;
use crate::openai::fields::Fields;
use crate::openai::rewards::lower::{Answers, Context, End, Lowered, RewardFields};
use crate::openai::rewards::response::{Reward, RewardList};
use crate::reading::{Read, ToRead};
use crate::request::ApiRequest;
use crate::service::Service;
use axum::extract::State;
use axum::response::Response;
use scheduler::{AdapterId, PromptOutput, TokenId};
use std::sync::Arc;

pub async fn create(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let service = exchange.service.clone();
    let mut fields = Fields::parse(&body)?;
    let held = body.parsed();
    let rewards = RewardFields::take(&mut fields)?;
    let ignored = fields.into_ignored()?;
    let Lowered { policy, reference, context, answers, beta, end, shows_tokens, request_id, options } =
        rewards.lower(&exchange.app.limits.request)?;
    let head = exchange.head_for("reward-", policy.as_deref(), request_id.as_deref())?;
    let policy = service.find_model(policy.as_deref())?;
    let reference = service
        .find_model(reference.as_deref())
        .map_err(|error| error.with_param(|_| "reference".to_owned()))?;
    let end = end_token(&service, &context, end).await?;
    let param = context.param();
    let context = context_prompt(&service, context).await?;
    if context.tokens.is_empty() {
        return Err(ApiError::invalid(param, "is empty"));
    }
    check_tokens(&service, &context.tokens, param)?;
    service.check_placeholders(&context, param)?;
    let answers = answer_tokens(&service, answers, end).await?;
    // One model needs to read an answer once.
    let models: Vec<Option<AdapterId>> = match policy.adapter == reference.adapter {
        true => vec![policy.adapter],
        false => vec![policy.adapter, reference.adapter],
    };
    let reads: Vec<ToRead> = models
        .iter()
        .flat_map(|&model| answers.iter().map(move |tokens| (model, tokens)))
        .map(|(adapter, tokens)| {
            let output = PromptOutput::Logprobs { first: context.tokens.len(), top: 0 };
            let tokens = [&context.tokens[..], tokens].concat();
            ToRead { prompt: Prompt { tokens, ..context.clone() }, output, adapter }
        })
        .collect();
    let prompt_tokens = reads.iter().map(|read| read.prompt.tokens.len()).sum();
    let readings = service.read(&reads, options)?;
    drop((reads, held));
    let reads = readings.collect().await?;
    let by_policy = &reads[..answers.len()];
    let by_reference = &reads[reads.len() - answers.len()..];
    let rewards = by_policy.iter().zip(by_reference).zip(answers).enumerate();
    let rewards: Vec<Reward> = rewards
        .map(|(index, ((policy, reference), tokens))| {
            let (logprob, reference_logprob) = (sum(policy), sum(reference));
            Reward {
                object: "reward",
                index,
                num_tokens: tokens.len(),
                logprob,
                reference_logprob,
                reward: beta * (logprob - reference_logprob),
                token_ids: shows_tokens.then_some(tokens),
            }
        })
        .collect();
    let timings: Vec<_> = reads.iter().map(|read| read.timings).collect();
    let usage = ReadUsage::new(&reads, prompt_tokens);
    let list = RewardList::new(&head, &reference.name, beta, rewards, usage);
    let list = if shows_tokens { list.with_prompt(&context.tokens) } else { list };
    Ok(exchange.respond_timed(&timings, &list, &ignored))
}

/// In f64, in the order of the tokens.
fn sum(read: &Read) -> f64 {
    read.logprobs.iter().map(|entry| f64::from(entry.logprob)).sum()
}

async fn context_prompt(service: &Arc<Service>, context: Context) -> Result<Prompt, ApiError> {
    match context {
        Context::Chat(chat) => service.chat_prompt(chat).await,
        Context::Text { prompt, add_special_tokens } => {
            let tokens = service.completion_prompts(vec![prompt], add_special_tokens).await?.concat();
            Ok(Prompt { tokens, ..Prompt::default() })
        }
    }
}

/// The answers' own tokens: where an answer meets the prompt, nothing is tokenised anew. Control tokens in an answer mean themselves, as where
/// the model writes them.
async fn answer_tokens(
    service: &Arc<Service>,
    answers: Answers,
    end: Option<TokenId>,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let Answers { texts, is_pair } = answers;
    let mut answers = service.completion_prompts(texts, false).await?;
    let names = Answers { texts: Vec::new(), is_pair };
    for (index, tokens) in answers.iter_mut().enumerate() {
        check_tokens(service, tokens, &names.param(index))?;
        // Where the text has it, it is there.
        if tokens.last() != end.as_ref() {
            tokens.extend(end);
        }
        if tokens.is_empty() {
            return Err(ApiError::invalid(names.param(index), "has no tokens"));
        }
    }
    Ok(answers)
}

fn check_tokens(service: &Service, tokens: &[TokenId], param: &str) -> Result<(), ApiError> {
    let vocab_size = service.info().vocab_size;
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        Some(token) => {
            let message = format!("token {token} is not below the vocabulary size {vocab_size}");
            Err(ApiError::invalid(param, message))
        }
        None => Ok(()),
    }
}

/// The token that ends an answer: of a chat, what the template puts behind one, if that is a token at which the model stops; of a text, the
/// tokenizer's end of text.
async fn end_token(service: &Arc<Service>, context: &Context, end: End) -> Result<Option<TokenId>, ApiError> {
    if end == End::None {
        return Ok(None);
    }
    let (token, missing) = match context {
        Context::Chat(_) => {
            let missing = "the chat template puts no token behind an answer at which the model stops";
            (service.end_of_turn().await?, missing)
        }
        Context::Text { .. } => {
            let tokenizer = service.tokenizer();
            let token = tokenizer.eos_token().and_then(|text| tokenizer.token_id(text));
            (token, "the tokenizer names no end of text")
        }
    };
    if end == End::Needed && token.is_none() {
        return Err(ApiError::unsupported("add_end_token", missing));
    }
    Ok(token)
}
