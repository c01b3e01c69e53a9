//! Black-box tests of the `perilune` binary: this crate knows only its command line, HTTP and SSE.

mod client;
pub mod examples;
pub mod imports;
mod process;
pub mod tree;

pub use client::{Client, Reply, chat, data_url, user};
pub use process::{Server, binary, run};
