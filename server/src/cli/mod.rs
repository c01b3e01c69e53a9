//! Subcommands that talk to a running server over HTTP: they know its API and nothing of its insides.

pub mod bench;
mod bench_report;
pub mod chat;
mod client;
mod picture;
#[cfg(test)]
mod stand_in;
