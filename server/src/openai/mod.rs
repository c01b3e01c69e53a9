//! OpenAI's API, with vLLM's additions. The only place that knows its JSON.

pub mod answer;
pub mod chat;
pub mod completions;
pub mod exchange;
pub mod fields;
pub mod generation;
pub mod health;
mod json;
pub mod models;
mod report;
mod stream;
pub mod structured;
pub mod tokenize;
pub mod tools;
