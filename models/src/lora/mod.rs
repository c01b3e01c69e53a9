//! Low-rank adapters (LoRA), for each request its own: `y = W x + scale · B (A x)`, beside the model's weights and not merged into them.
//!
//! ```text
//! folder ─Adapter::read: host memory, any thread─▶ Adapter ─DeviceRunner::add_adapter: between steps─▶ a slot on the device
//! step: rows of each adapter ─gather─▶ · A ─▶ · B ─▶ times scale, onto the rows that the model's own matrix made
//! ```
//! Rows without an adapter go through the same ops as in a step without any, so that their bits cannot change.

mod adapter;
mod buffers;
mod config;
mod error;
mod experts;
mod merge;
mod slots;
mod spec;

pub use adapter::Adapter;
pub use error::AdapterError;
pub use merge::{Merged, merge};
pub use spec::AdapterSpec;

pub(crate) use buffers::{LoraBuffers, LoraLimits};
pub(crate) use slots::{ExpertJob, Loras};
pub(crate) use spec::{AdapterLimits, Target};
