//! The binary as a process of its own.

mod bench_engine;
mod process;
mod surroundings;
