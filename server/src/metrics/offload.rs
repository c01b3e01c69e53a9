//! What goes to the second tier of KV blocks and comes back, by vLLM's names.

use super::register::Maker;
use prometheus::{Counter, Gauge, IntCounter};
use scheduler::{Occupancy, StepStats};

pub(super) struct Offload {
    block_bytes: u64,
    queries: IntCounter,
    hits: IntCounter,
    store_bytes: IntCounter,
    load_bytes: IntCounter,
    store_time: Counter,
    load_time: Counter,
    stores_skipped: IntCounter,
    usage: Gauge,
}

impl Offload {
    /// Blocks of so many bytes.
    pub fn new(make: &Maker, block_bytes: u64) -> Self {
        let seconds = |name, help| make.register(Counter::with_opts(make.opts(name, help)));
        #[rustfmt::skip]
        let offload = Self {
            block_bytes,
            queries: make.counter("vllm:external_prefix_cache_queries_total", "tokens looked up in the host's memory: those that the prefix cache on the device has not"),
            hits: make.counter("vllm:external_prefix_cache_hits_total", "tokens found in the host's memory"),
            store_bytes: make.counter("vllm:kv_offload_store_bytes_total", "KV blocks copied to the host"),
            load_bytes: make.counter("vllm:kv_offload_load_bytes_total", "KV blocks copied from the host"),
            store_time: seconds("vllm:kv_offload_store_time_total", "seconds of the device in which KV blocks were copied to the host"),
            load_time: seconds("vllm:kv_offload_load_time_total", "seconds of the device in which KV blocks were copied from the host"),
            stores_skipped: make.counter("vllm:kv_offload_stores_skipped_total", "KV blocks that lost their places and found none on the host"),
            usage: make.register(Gauge::with_opts(make.opts("vllm:kv_offload_cpu_cache_usage_perc", "share of the host's KV blocks that hold something, 1 is all"))),
        };
        offload
    }

    pub fn copies(&self, stats: &StepStats, copy_us: [u64; 2]) {
        let on_device = stats.prefix_hits - stats.host_hits;
        self.queries.inc_by((stats.prefix_queries - on_device) as u64);
        self.hits.inc_by(stats.host_hits as u64);
        self.store_bytes.inc_by(stats.stored_blocks as u64 * self.block_bytes);
        self.load_bytes.inc_by(stats.loaded_blocks as u64 * self.block_bytes);
        self.stores_skipped.inc_by(stats.lost_blocks as u64);
        let [store, load] = copy_us.map(|us| us as f64 / 1e6);
        self.store_time.inc_by(store);
        self.load_time.inc_by(load);
        let Occupancy { host_blocks_used, host_blocks_total, .. } = stats.occupancy;
        self.usage.set(host_blocks_used as f64 / host_blocks_total.max(1) as f64);
    }
}
