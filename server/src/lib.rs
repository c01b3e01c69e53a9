//! An OpenAI-compatible server around an engine: HTTP, JSON, text and pictures live here, and nowhere below.
//!
//! `command_line` → `config` → `serve` (bind, load, serve, drain). A request: `http` → `router` → `openai` → `service` → `engine_thread`, and back as
//! events, which `openai::answer` turns into text and `openai::stream` into bytes.

// They panic where nobody listens: `say` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod adapters;
pub mod anthropic;
pub mod app;
pub mod args;
pub mod auth;
pub mod batch;
pub mod blocking;
pub mod body;
pub mod chat;
pub mod cli;
pub mod command_line;
pub mod config;
mod config_file;
pub mod constrain;
mod constraining;
pub mod defaults;
mod device_share;
pub mod disk;
pub mod engine_thread;
pub mod error;
pub mod exit_code;
pub mod http;
pub mod lifecycle;
pub mod load;
pub mod logging;
mod mailbox;
pub mod metrics;
pub mod offline;
mod open_files;
pub mod openai;
pub mod openapi;
pub mod page;
pub mod pictures;
mod raw_prompt;
pub mod reading;
pub mod request;
pub mod route;
pub mod router;
pub mod run;
pub mod say;
pub mod serve;
pub mod service;
pub mod source;
pub mod speculation;
mod throughput;
pub mod units;
pub mod unix_time;
pub mod web;
