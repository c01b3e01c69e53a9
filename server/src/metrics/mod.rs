//! What is counted, under vLLM's names, types and labels, so that its dashboards and autoscalers read this server. Every series is
//! there, at zero, from the start. What only this server has is named `perilune:`.

mod adapters;
mod buckets;
mod engine;
mod http;
mod offload;
mod register;

pub use engine::{CacheInfo, Metrics, SequenceRecord, TokenCounts, kv_usage};
pub use http::HttpMetrics;
