//! What is counted of connections and requests, whatever the model.

use super::engine::Metrics;
use super::register::{Maker, encode};
use prometheus::{HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use std::time::Duration;

/// Counts that exist before a model is loaded and whatever the model is.
pub struct HttpMetrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: prometheus::HistogramVec,
    ignored_params: IntCounter,
    startup: prometheus::GaugeVec,
    pub connections: IntGauge,
    pub body_bytes: IntGauge,
    handshakes: IntCounterVec,
    reloads: prometheus::IntGaugeVec,
}

const HTTP: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];

impl HttpMetrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let make = Maker { registry: &registry, model_name: "" };
        let requests = make.register(IntCounterVec::new(
            Opts::new("http_requests_total", "requests by method, status and handler"),
            &["method", "status", "handler"],
        ));
        let duration = make.register(prometheus::HistogramVec::new(
            HistogramOpts::new(
                "http_request_duration_seconds",
                "from the request's head to the answer's head",
            )
            .buckets(HTTP.to_vec()),
            &["method", "handler"],
        ));
        let ignored_params = make.register(IntCounter::with_opts(Opts::new(
            "perilune:ignored_params_total",
            "request fields without effect",
        )));
        let startup = make.register(prometheus::GaugeVec::new(
            Opts::new("perilune:startup_seconds", "time that each phase of the start took"),
            &["phase"],
        ));
        let connections =
            make.register(IntGauge::with_opts(Opts::new("perilune:http_connections", "open connections")));
        let body_bytes = make.register(IntGauge::with_opts(Opts::new(
            "perilune:http_body_bytes",
            "bodies of requests in memory, as --max-body-memory counts them",
        )));
        let handshakes = make.register(IntCounterVec::new(
            Opts::new("perilune:tls_handshakes_total", "beginnings of connections with TLS, by outcome"),
            &["outcome"],
        ));
        let reloads = make.register(prometheus::IntGaugeVec::new(
            Opts::new(
                "perilune:last_reload_successful",
                "0 where the files as they are now cannot be used, and what was read before is; else 1, without files too",
            ),
            &["what"],
        ));
        // So that an alarm finds the series.
        for what in ["certificate", "api_keys"] {
            reloads.with_label_values(&[what]).set(1);
        }
        #[cfg(target_os = "linux")]
        make.registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("the process collector is registered once");
        Self {
            registry: registry.clone(),
            requests,
            duration,
            ignored_params,
            startup,
            connections,
            body_bytes,
            handshakes,
            reloads,
        }
    }

    /// Makes the series of a route exist before its first request.
    pub fn announce(&self, method: &str, handler: &str) {
        self.requests.with_label_values(&[method, "2xx", handler]);
        self.duration.with_label_values(&[method, handler]);
    }

    /// All three labels are bounded: `handler` is a route's pattern, `method` a standard one, and the status is reduced to its class.
    pub fn request(&self, method: &str, handler: &str, status: u16, duration: Duration) {
        let class = ["1xx", "2xx", "3xx", "4xx", "5xx"][usize::from(status / 100).clamp(1, 5) - 1];
        self.requests.with_label_values(&[method, class, handler]).inc();
        self.duration.with_label_values(&[method, handler]).observe(duration.as_secs_f64());
    }

    pub fn ignored(&self, num_params: usize) {
        self.ignored_params.inc_by(num_params as u64);
    }

    pub fn announce_handshakes(&self, outcomes: &[&str]) {
        for outcome in outcomes {
            self.handshakes.with_label_values(&[outcome]);
        }
    }

    pub fn handshake(&self, outcome: &str) {
        self.handshakes.with_label_values(&[outcome]).inc();
    }

    pub fn reloaded(&self, what: &str, is_good: bool) {
        self.reloads.with_label_values(&[what]).set(i64::from(is_good));
    }

    pub fn startup(&self, phase: &str, duration: Duration) {
        self.startup.with_label_values(&[phase]).set(duration.as_secs_f64());
    }

    /// The exposition of everything there is.
    pub fn exposition(&self, engine: Option<&Metrics>) -> String {
        let mut text = String::new();
        if let Some(engine) = engine {
            engine.encode(&mut text);
        }
        encode(&self.registry, &mut text);
        text
    }
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self::new()
    }
}
