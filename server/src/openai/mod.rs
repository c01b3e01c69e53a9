//! OpenAI's API, with vLLM's additions. With the sibling dialect `anthropic` the only place that knows wire types.

pub mod answer;
pub mod batches;
pub mod chat;
pub mod completions;
pub mod delta;
pub mod embeddings;
pub mod exchange;
pub mod fields;
pub mod files;
pub mod generation;
pub mod health;
pub(crate) mod json;
pub mod lora;
pub mod metadata;
pub mod models;
pub mod prompt_report;
pub mod render;
pub mod report;
pub mod responses;
pub mod rewards;
pub mod score;
pub mod stream;
mod strict;
pub mod structured;
pub mod tokenize;
pub mod tools;
