//! The wire form of a completion's request.

use crate::error::ApiError;
use crate::openai::fields::{Fields, Ignored, request_fields};
use crate::openai::generation::GenerationFields;
use scheduler::TokenId;
use schemars::JsonSchema;
use serde::Deserialize;

request_fields! {
    pub struct CompletionFields {
        prompt: PromptField,
        max_tokens: usize,
        logprobs: i64,
        echo: bool,
        add_special_tokens: bool,
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids, or a list of lists of token ids"
)]
pub enum PromptField {
    Text(String),
    Tokens(Vec<TokenId>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<TokenId>>),
}

pub struct CompletionRequest {
    pub completion: CompletionFields,
    pub generation: GenerationFields,
    pub ignored: Ignored,
}

impl CompletionRequest {
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let completion = CompletionFields::take(&mut fields)?;
        let generation = GenerationFields::take(&mut fields)?;
        Ok(Self { completion, generation, ignored: fields.into_ignored()? })
    }
}
