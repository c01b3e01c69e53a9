//! The subcommands besides `serve`. `chat` and `bench` talk to a running server over HTTP: they know its API and nothing of its insides.

pub mod bench;
pub mod bench_engine;
mod bench_report;
pub mod chat;
mod client;
mod engine_jobs;
pub mod kernels;
pub mod merge_lora;
mod picture;
pub mod plan;
pub mod quantize;
pub mod run_batch;
#[cfg(test)]
mod stand_in;
