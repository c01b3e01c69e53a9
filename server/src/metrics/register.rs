//! How series come to be, and to be told: names, help, labels, registries.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry, TextEncoder};

/// Makes metrics and registers them with the labels that all of them have.
pub(super) struct Maker<'a> {
    pub registry: &'a Registry,
    pub model_name: &'a str,
}

impl Maker<'_> {
    pub fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_label("model_name", self.model_name).const_label("engine", "0")
    }

    pub fn register<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        collector: prometheus::Result<C>,
    ) -> C {
        let collector = collector.expect("metric names and labels are constants");
        self.registry.register(Box::new(collector.clone())).expect("metric names are unique");
        collector
    }

    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.opts(name, help)))
    }

    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(self.opts(name, help)))
    }

    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let common_opts = self.opts(name, help);
        self.register(Histogram::with_opts(HistogramOpts { common_opts, buckets: buckets.to_vec() }))
    }
}

pub(super) fn encode(registry: &Registry, text: &mut String) {
    TextEncoder::new().encode_utf8(&registry.gather(), text).expect("metrics encode");
}
