//! Which adapters wait and run.

use super::register::Maker;
use crate::engine_thread::adapters::AdaptersInUse;
use crate::unix_time::unix_time;
use prometheus::{IntCounter, IntGauge};

/// vLLM's `lora_requests_info`: names are labels, and the value is the time at which they became so. One series, for what is now.
pub(super) struct AdapterGauge {
    gauge: prometheus::GaugeVec,
    max_loras: String,
    parked: IntGauge,
    moved: IntCounter,
}

impl AdapterGauge {
    pub fn new(make: &Maker, max_loras: usize) -> Self {
        let gauge = make.register(prometheus::GaugeVec::new(
            make.opts(
                "vllm:lora_requests_info",
                "adapters with sequences that wait and that run, as of when",
            ),
            &["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
        ));
        let parked = make.gauge(
            "perilune:adapter_waiting_sequences",
            "sequences that wait for their adapter to have a place",
        );
        let moved = make.counter(
            "perilune:adapters_moved_in_total",
            "adapters that were moved in from the host's memory for a request",
        );
        let max_loras = max_loras.to_string();
        Self { gauge, max_loras, parked, moved }
    }

    pub fn show(&self, used: &AdaptersInUse) {
        // The old one goes first: labels are hashed without a border between them, so that `a` waiting would be found as `a` running.
        self.gauge.reset();
        let labels = [&self.max_loras, &used.waiting.join(","), &used.running.join(",")];
        self.gauge.with_label_values(&labels).set(unix_time() as f64);
        self.parked.set(used.num_parked as i64);
        self.moved.inc_by(used.num_moved);
    }
}
