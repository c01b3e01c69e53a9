//! What clients see: the HTTP server with a fake model, a scripted one, and the one that is built in. One binary, since linking is most of what a
//! small one costs: `cargo test -p perilune --test api NAME::` runs one file.

mod accounting;
mod adapter_changes;
mod adapters;
mod answers;
mod batches;
mod bodies;
mod chameleon;
mod cli;
mod connections;
mod constrained_demo;
mod embedded;
mod embeddings;
mod files;
#[path = "../../models/tests/common/formula.rs"]
mod formula;
mod harmony;
mod harness;
mod keys;
mod merge_lora;
mod messages;
mod messages_clients;
mod metrics;
mod openapi;
mod page;
mod pictures;
mod prompt_logprobs;
mod qwen3_vl;
#[path = "../../models/tests/common/qwen3_vl.rs"]
mod qwen3_vl_model;
mod qwen_vl;
mod random;
mod refusals;
mod remote_tls;
mod render;
mod responses;
mod rewards;
mod salt;
mod solar_open;
mod speculation;
mod stored_responses;
mod structured;
mod support;
mod tls;
mod tools;
mod web;
