//! What a route takes and gives, one entry for each. A route without an entry is in the document all the same, as one that takes and
//! gives some JSON; a test asks for an entry when a request's fields are declared anywhere and described nowhere.

use crate::anthropic::response::{Message, TokenCount};
use crate::anthropic::types::MessageFields;
use crate::batch::record::BatchObject;
use crate::disk::files::FileObject;
use crate::openai::batches::{BatchFields, BatchQuery};
use crate::openai::chat::response::ChatCompletion;
use crate::openai::chat::types::ChatFields;
use crate::openai::completions::response::Completion;
use crate::openai::completions::types::CompletionFields;
use crate::openai::embeddings::lower::EmbeddingFields;
use crate::openai::embeddings::response::EmbeddingList;
use crate::openai::files::{DeletedFile, FilePart, FileQuery, List, UploadFields};
use crate::openai::generation::GenerationFields;
use crate::openai::lora::{LoadAdapterFields, UnloadAdapterFields};
use crate::openai::models::{ModelCard, ModelList};
use crate::openai::render::RenderedPrompt;
use crate::openai::responses::InputTokens;
use crate::openai::responses::response::ResponseObject;
use crate::openai::responses::stored::{DeletedResponse, ItemList};
use crate::openai::responses::types::{ItemsQuery, ResponseFields, RetrieveQuery};
use crate::openai::rewards::lower::RewardFields;
use crate::openai::rewards::response::RewardList;
use crate::openai::score::lower::{MethodFields, RerankFields, ScoreFields};
use crate::openai::score::response::{RerankList, ScoreList};
use crate::openai::tokenize::{DetokenizeFields, Detokenized, TokenizeFields, Tokenized, TokenizerInfo};
use schemars::{JsonSchema, Schema, SchemaGenerator};

pub type Part = fn(&mut SchemaGenerator) -> Schema;

/// A type's schema.
pub fn part<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

pub enum Body {
    None,
    /// A request is all of its parts; a response one of them.
    Json(&'static [Part]),
    Multipart(&'static [Part]),
    /// Of this content type.
    Other(&'static str),
}

pub struct Operation {
    /// `METHOD /path`, with `/v1` where the route has it.
    route: &'static str,
    pub summary: &'static str,
    pub query: Option<Part>,
    pub request: Body,
    /// Fields of the request that may not be left out.
    pub required: &'static [&'static str],
    pub response: Body,
    /// Answers with events where the request has `"stream": true`.
    pub streams: bool,
}

impl Operation {
    pub const fn new(route: &'static str, summary: &'static str) -> Self {
        Self {
            route,
            summary,
            query: None,
            request: Body::None,
            required: &[],
            response: Body::None,
            streams: false,
        }
    }

    const fn takes(self, request: Body) -> Self {
        Self { request, ..self }
    }

    const fn asks(self, query: Part) -> Self {
        Self { query: Some(query), ..self }
    }

    const fn needs(self, required: &'static [&'static str]) -> Self {
        Self { required, ..self }
    }

    const fn gives(self, response: Body) -> Self {
        Self { response, ..self }
    }

    const fn streams(self) -> Self {
        Self { streams: true, ..self }
    }

    pub fn method(&self) -> &str {
        self.route.split(' ').next().unwrap_or_default()
    }

    pub fn path(&self) -> &str {
        self.route.split(' ').nth(1).unwrap_or_default()
    }
}

const PLAIN: Body = Body::Other("text/plain");

#[rustfmt::skip]
pub const OPERATIONS: &[Operation] = &[
    Operation::new("POST /v1/chat/completions", "Answer a conversation")
        .takes(Body::Json(&[part::<ChatFields>, part::<GenerationFields>])).needs(&["messages"])
        .gives(Body::Json(&[part::<ChatCompletion>])).streams(),
    Operation::new("POST /v1/completions", "Continue a text")
        .takes(Body::Json(&[part::<CompletionFields>, part::<GenerationFields>])).needs(&["prompt"])
        .gives(Body::Json(&[part::<Completion>])).streams(),
    Operation::new("POST /v1/chat/completions/render", "The prompt of a conversation, without an answer")
        .takes(Body::Json(&[part::<ChatFields>, part::<GenerationFields>])).needs(&["messages"])
        .gives(Body::Json(&[part::<RenderedPrompt>])),
    Operation::new("POST /v1/completions/render", "The tokens of prompts, without an answer")
        .takes(Body::Json(&[part::<CompletionFields>, part::<GenerationFields>])).needs(&["prompt"])
        .gives(Body::Json(&[part::<Vec<RenderedPrompt>>])),
    Operation::new("POST /v1/messages", "Answer a conversation, in Anthropic's dialect")
        .takes(Body::Json(&[part::<MessageFields>])).needs(&["max_tokens", "messages"])
        .gives(Body::Json(&[part::<Message>])).streams(),
    Operation::new("POST /v1/messages/count_tokens", "The tokens of such a request's prompt")
        .takes(Body::Json(&[part::<MessageFields>])).needs(&["messages"])
        .gives(Body::Json(&[part::<TokenCount>])),
    Operation::new("POST /v1/responses", "Answer a conversation with items, which may be kept")
        .takes(Body::Json(&[part::<ResponseFields>]))
        .gives(Body::Json(&[part::<ResponseObject>])).streams(),
    Operation::new("POST /v1/responses/input_tokens", "The tokens of such a request's prompt")
        .takes(Body::Json(&[part::<ResponseFields>]))
        .gives(Body::Json(&[part::<InputTokens>])),
    Operation::new("GET /v1/responses/{id}", "A response that is kept, or its events")
        .asks(part::<RetrieveQuery>).gives(Body::Json(&[part::<ResponseObject>])).streams(),
    Operation::new("DELETE /v1/responses/{id}", "Forget a response").gives(Body::Json(&[part::<DeletedResponse>])),
    Operation::new("POST /v1/responses/{id}/cancel", "Stop a response that is made in the background")
        .gives(Body::Json(&[part::<ResponseObject>])),
    Operation::new("GET /v1/responses/{id}/input_items", "What a response answers")
        .asks(part::<ItemsQuery>).gives(Body::Json(&[part::<ItemList>])),
    Operation::new("GET /v1/models", "The served model, under each of its names, and its adapters").gives(Body::Json(&[part::<ModelList>])),
    Operation::new("GET /v1/models/{*id}", "One of the names").gives(Body::Json(&[part::<ModelCard>])),
    Operation::new("POST /tokenize", "Tokens of a prompt or of messages")
        .takes(Body::Json(&[part::<TokenizeFields>])).gives(Body::Json(&[part::<Tokenized>])),
    Operation::new("POST /detokenize", "Text of tokens")
        .takes(Body::Json(&[part::<DetokenizeFields>])).needs(&["tokens"]).gives(Body::Json(&[part::<Detokenized>])),
    Operation::new("GET /tokenizer_info", "Names of special tokens and the chat template, where the operator turned it on")
        .gives(Body::Json(&[part::<TokenizerInfo>])),
    Operation::new("POST /v1/embeddings", "The states of the model, pooled to vectors")
        .takes(Body::Json(&[part::<EmbeddingFields>])).gives(Body::Json(&[part::<EmbeddingList>])),
    Operation::new("POST /v1/score", "How well texts go together")
        .takes(Body::Json(&[part::<ScoreFields>, part::<MethodFields>])).gives(Body::Json(&[part::<ScoreList>])),
    Operation::new("POST /v1/rerank", "Documents by how well they answer a query")
        .takes(Body::Json(&[part::<RerankFields>, part::<MethodFields>])).gives(Body::Json(&[part::<RerankList>])),
    Operation::new("POST /v2/rerank", "The same as /v1/rerank")
        .takes(Body::Json(&[part::<RerankFields>, part::<MethodFields>])).gives(Body::Json(&[part::<RerankList>])),
    Operation::new("POST /v1/rewards", "How much more probable answers are to a policy than to its reference")
        .takes(Body::Json(&[part::<RewardFields>])).gives(Body::Json(&[part::<RewardList>])),
    Operation::new("POST /v1/load_lora_adapter", "Serve an adapter under a name, where the operator turned it on")
        .takes(Body::Json(&[part::<LoadAdapterFields>])).needs(&["lora_name", "lora_path"]).gives(PLAIN),
    Operation::new("POST /v1/unload_lora_adapter", "Serve it no more")
        .takes(Body::Json(&[part::<UnloadAdapterFields>])).needs(&["lora_name"]).gives(PLAIN),
    Operation::new("POST /v1/files", "Upload a file")
        .takes(Body::Multipart(&[part::<FilePart>, part::<UploadFields>])).needs(&["file", "purpose"])
        .gives(Body::Json(&[part::<FileObject>])),
    Operation::new("GET /v1/files", "The files, by time").asks(part::<FileQuery>).gives(Body::Json(&[part::<List<FileObject>>])),
    Operation::new("GET /v1/files/{id}", "One file").gives(Body::Json(&[part::<FileObject>])),
    Operation::new("DELETE /v1/files/{id}", "Delete a file").gives(Body::Json(&[part::<DeletedFile>])),
    Operation::new("GET /v1/files/{id}/content", "A file's content").gives(Body::Other("application/octet-stream")),
    Operation::new("POST /v1/batches", "Run the requests of a file")
        .takes(Body::Json(&[part::<BatchFields>])).needs(&["input_file_id", "endpoint", "completion_window"])
        .gives(Body::Json(&[part::<BatchObject>])),
    Operation::new("GET /v1/batches", "The batches, the newest first").asks(part::<BatchQuery>)
        .gives(Body::Json(&[part::<List<BatchObject>>])),
    Operation::new("GET /v1/batches/{id}", "One batch").gives(Body::Json(&[part::<BatchObject>])),
    Operation::new("POST /v1/batches/{id}/cancel", "Cancel a batch").gives(Body::Json(&[part::<BatchObject>])),
    Operation::new("GET /health", "Whether a model is served, also while draining"),
    Operation::new("GET /ping", "The same as /health"),
    Operation::new("POST /ping", "The same as /health"),
    Operation::new("GET /load", "How many requests are in flight").gives(Body::Json(&[part::<crate::openai::health::ServerLoad>])),
    Operation::new("GET /livez", "Whether the process answers"),
    Operation::new("GET /live", "The same as /livez"),
    Operation::new("GET /readyz", "Whether to send requests here"),
    Operation::new("GET /ready", "The same as /readyz"),
    Operation::new("GET /version", "The program's version").gives(Body::Json(&[part::<crate::openai::health::Version>])),
    Operation::new("GET /metrics", "Prometheus metrics").gives(PLAIN),
    Operation::new("GET /openapi.json", "This document").gives(Body::Other("application/json")),
    Operation::new("GET /docs", "This document as a page").gives(Body::Other("text/html")),
];
