//! `POST /v1/completions`.

pub mod lower;
pub mod response;
mod stream;
pub mod types;

use crate::app::App;
use crate::chat::{IncrementalDecoder, Prompt, Shown};
use crate::error::ApiError;
use crate::openai::completions::lower::Lowered;
use crate::openai::completions::response::{Completion, Echo};
use crate::openai::completions::stream::CompletionChunks;
use crate::openai::completions::types::CompletionRequest;
use crate::openai::exchange::Exchange;
use crate::openai::report::TokenNames;
use crate::raw_prompt::RawPrompt;
use crate::request::ApiRequest;
use crate::service::Service;
use axum::extract::State;
use axum::response::Response;
use scheduler::TokenId;
use std::sync::Arc;

pub async fn create(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let service = exchange.service.clone();
    let CompletionRequest { completion, generation, ignored } = CompletionRequest::parse(&body)?;
    let held = body.parsed();
    let Lowered { prompts: raw, echo, add_special_tokens, mut generation } =
        completion.lower(generation, service.defaults(), &exchange.app.limits.request)?;
    let head = exchange.head("cmpl-", &generation)?;
    let tokens = service.completion_prompts(raw.clone(), add_special_tokens).await?;
    let echoes: Vec<Echo> =
        raw.iter().zip(&tokens).map(|(raw, tokens)| make_echo(&service, raw, tokens, echo)).collect();
    let prompts: Vec<Prompt> =
        tokens.into_iter().map(|tokens| Prompt { tokens, ..Prompt::default() }).collect();
    service.constrain(&mut generation, None).await?;
    let mut answers = service.start(&prompts, &generation, "prompt")?;
    drop((prompts, held));
    let report = generation.report;
    if report.stream.is_some() {
        let chunks = CompletionChunks::new(&head, service.tokenizer().clone(), report, echoes, generation.n);
        return exchange.stream(answers, chunks, &ignored).await;
    }
    answers.collect().await?;
    let names = TokenNames { tokenizer: service.tokenizer(), as_ids: report.tokens_as_ids };
    let completion = Completion::new(&head, &answers, &report, names, &echoes);
    Ok(exchange.respond(&answers, &completion, &ignored))
}

/// A text as it was given; token ids as what they decode to.
pub fn prompt_text(service: &Service, raw: &RawPrompt) -> String {
    match raw {
        RawPrompt::Text(text) => text.clone(),
        RawPrompt::Tokens(tokens) => service.tokenizer().decode(tokens, Shown::All),
    }
}

fn make_echo(service: &Service, raw: &RawPrompt, tokens: &[TokenId], echo: bool) -> Echo {
    let text = echo.then(|| prompt_text(service, raw));
    let num_chars = text.as_ref().map_or(0, |text| text.chars().count());
    let offsets = if echo { text_offsets(service, raw, tokens, num_chars) } else { Vec::new() };
    Echo { tokens: tokens.into(), text, num_chars, offsets }
}

/// Characters of the repeated text before each token. Tokens that were added around a text are not part of it; a token that only
/// begins a character has the place of that character.
fn text_offsets(service: &Service, raw: &RawPrompt, tokens: &[TokenId], num_chars: usize) -> Vec<usize> {
    let tokenizer = service.tokenizer();
    let num_added = match raw {
        RawPrompt::Text(_) if tokens.starts_with(tokenizer.prefix()) => tokenizer.prefix().len(),
        _ => 0,
    };
    let mut decoder = IncrementalDecoder::new(tokenizer.clone(), Shown::All);
    let (mut offsets, mut offset, mut text) = (vec![0; num_added.min(tokens.len())], 0, String::new());
    for &token in &tokens[offsets.len()..] {
        offsets.push(num_chars.min(offset));
        text.clear();
        decoder.push(token, &mut text);
        offset += text.chars().count();
    }
    offsets
}
