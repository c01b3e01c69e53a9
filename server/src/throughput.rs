//! One line about throughput every ten seconds while there is work.

use crate::metrics::kv_usage;
use scheduler::StepStats;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(10);

/// Sums since the last line. Time without work does not count.
pub struct Throughput {
    since: Instant,
    paused: Option<Instant>,
    prompt_tokens: usize,
    generation_tokens: usize,
    prefix_query_tokens: usize,
    prefix_hit_tokens: usize,
}

impl Throughput {
    pub fn new() -> Self {
        Self {
            since: Instant::now(),
            paused: None,
            prompt_tokens: 0,
            generation_tokens: 0,
            prefix_query_tokens: 0,
            prefix_hit_tokens: 0,
        }
    }

    pub fn pause(&mut self) {
        self.paused = Some(Instant::now());
    }

    pub fn resume(&mut self) {
        if let Some(paused) = self.paused.take() {
            self.since += paused.elapsed();
        }
    }

    pub fn add(&mut self, stats: &StepStats, now: Instant) {
        self.generation_tokens += stats.decode_tokens + stats.num_accepted();
        self.prompt_tokens += stats.prefill_tokens;
        self.prefix_query_tokens += stats.prefix_queries;
        self.prefix_hit_tokens += stats.prefix_hits;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < PERIOD {
            return;
        }
        let rate = |count: usize| format!("{:.1}", count as f64 / elapsed.as_secs_f64());
        let percent = |share: f64| format!("{:.1}", 100.0 * share);
        let hit = self.prefix_hit_tokens as f64 / self.prefix_query_tokens.max(1) as f64;
        tracing::info!(
            prompt_tokens_per_s = rate(self.prompt_tokens),
            generation_tokens_per_s = rate(self.generation_tokens),
            running = stats.occupancy.running,
            waiting = stats.occupancy.waiting,
            kv_percent = percent(kv_usage(&stats.occupancy)),
            prefix_hit_percent = percent(hit),
            "throughput"
        );
        *self = Self { since: now, ..Self::new() };
    }
}
