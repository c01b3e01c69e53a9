//! The binary as a process of its own.

mod bench_engine;
#[path = "harness/certificates.rs"]
mod certificates;
mod process;
mod secure;
mod surroundings;
