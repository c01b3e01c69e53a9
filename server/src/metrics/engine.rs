//! What is counted of a model: its sequences, its steps and its caches.

use super::adapters::AdapterGauge;
use super::buckets::{ITERATION, ITL, LATENCY, N, PREEMPTIONS, TTFT, token_buckets};
use super::offload::Offload;
use super::register::{Maker, encode};
use crate::engine_thread::adapters::AdaptersInUse;
use crate::engine_thread::progress::Timings;
use prometheus::{
    Counter, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, Registry, local::LocalHistogram,
};
use scheduler::{MAX_SPECULATIVE_TOKENS, Occupancy, Reject, StepStats};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What one sequence was, when it ended.
pub struct SequenceRecord {
    /// One of [`REASONS`].
    pub reason: &'static str,
    pub timings: Timings,
    /// Whether its prompt was computed to the end; if not it has no prefill time.
    pub has_started: bool,
    pub e2e: Duration,
    pub prompt_tokens: usize,
    pub generation_tokens: usize,
    pub max_tokens: usize,
    pub preemptions: usize,
}

const FETCH_OUTCOMES: [&str; 2] = ["ok", "failed"];

const REASONS: [&str; 5] = ["stop", "length", "abort", "error", "repetition"];

pub struct Metrics {
    registry: Registry,
    model_name: String,
    device_memory: IntGauge,
    device_info: prometheus::IntGaugeVec,
    running: IntGauge,
    waiting: IntGauge,
    kv_usage: Gauge,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    prompt_tokens_cached: IntCounter,
    preemptions: IntCounter,
    deferred_tokens: IntCounter,
    steps_ahead: IntCounter,
    dropped_tokens: IntCounter,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    mm_queries: IntCounter,
    mm_hits: IntCounter,
    embedding_queries: IntCounter,
    embedding_hits: IntCounter,
    processed_bytes: IntGauge,
    media_fetches: [IntCounter; FETCH_OUTCOMES.len()],
    encoded_images: IntCounter,
    device_time: Counter,
    success: [IntCounter; REASONS.len()],
    corrupted: IntCounter,
    rejections: IntCounterVec,
    ttft: Histogram,
    itl: Histogram,
    tpot: Histogram,
    e2e: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    max_generation_tokens: Histogram,
    params_n: Histogram,
    params_max_tokens: Histogram,
    iteration_tokens: Histogram,
    request_preemptions: Histogram,
    drafts: IntCounter,
    draft_tokens: IntCounter,
    accepted_tokens: IntCounter,
    /// By place in the draft.
    accepted_per_pos: Vec<IntCounter>,
    /// Empty where the model takes no adapters.
    adapters: OnceLock<AdapterGauge>,
    /// Empty where blocks that lose their places are lost.
    offload: OnceLock<Offload>,
}

/// What `vllm:cache_config_info` says.
#[derive(Debug, Clone, Copy)]
pub struct CacheInfo {
    pub block_size: usize,
    pub num_blocks: usize,
    pub prefix_caching: bool,
}

impl Metrics {
    pub fn new(model_name: &str, max_model_len: usize, cache: CacheInfo) -> Self {
        let registry = Registry::new();
        let make = Maker { registry: &registry, model_name };
        let tokens = token_buckets(max_model_len);
        let cache_info = make.register(IntGauge::with_opts(
            make.opts("vllm:cache_config_info", "configuration of the KV cache")
                .const_label("block_size", cache.block_size.to_string())
                .const_label("num_gpu_blocks", cache.num_blocks.to_string())
                .const_label("enable_prefix_caching", if cache.prefix_caching { "True" } else { "False" }),
        ));
        cache_info.set(1);
        let success = make.register(IntCounterVec::new(
            make.opts("vllm:request_success_total", "sequences that ended, by how"),
            &["finished_reason"],
        ));
        let media_fetches = make.register(IntCounterVec::new(
            make.opts("perilune:media_fetches_total", "remote pictures asked for, by outcome"),
            &["outcome"],
        ));
        let rejections = make.register(IntCounterVec::new(
            make.opts("vllm:admission_rejections_total", "requests refused because the queue was full"),
            &["reason"],
        ));
        rejections.with_label_values(&["max_num_queued_reqs"]);
        let accepted_per_pos = make.register(IntCounterVec::new(
            make.opts(
                "vllm:spec_decode_num_accepted_tokens_per_pos_total",
                "guesses that were right, by place in the draft",
            ),
            &["position"],
        ));
        let accepted_at = |position: usize| accepted_per_pos.with_label_values(&[&position.to_string()]);
        #[rustfmt::skip]
        let metrics = Self {
            device_memory: make.gauge("perilune:device_memory_allocated_bytes", "weights, KV cache and workspaces, as planned"),
            device_info: make.register(prometheus::IntGaugeVec::new(
                make.opts("perilune:device_info", "what the model runs on"), &["device"],
            )),
            running: make.gauge("vllm:num_requests_running", "sequences that have blocks"),
            waiting: make.gauge("vllm:num_requests_waiting", "sequences that wait for blocks or budget"),
            kv_usage: make.register(Gauge::with_opts(make.opts("vllm:kv_cache_usage_perc", "share of KV blocks in use, 1 is all"))),
            prompt_tokens: make.counter("vllm:prompt_tokens_total", "prompt tokens, computed or found in the cache"),
            generation_tokens: make.counter("vllm:generation_tokens_total", "tokens generated"),
            prompt_tokens_cached: make.counter("vllm:prompt_tokens_cached_total", "prompt tokens found in the cache"),
            preemptions: make.counter("vllm:num_preemptions_total", "sequences that lost their blocks and wait again"),
            deferred_tokens: make.counter("perilune:deferred_tokens_total", "tokens computed again because the mask of the next one was late"),
            steps_ahead: make.counter("perilune:steps_ahead_total", "steps that were begun while the one before them ran"),
            dropped_tokens: make.counter("perilune:dropped_tokens_total", "tokens computed for sequences that had ended by then: in such steps, or behind a token that completed a grammar"),
            prefix_queries: make.counter("vllm:prefix_cache_queries_total", "tokens looked up in the prefix cache"),
            prefix_hits: make.counter("vllm:prefix_cache_hits_total", "tokens found in the prefix cache"),
            mm_queries: make.counter("vllm:mm_cache_queries_total", "pictures looked up among those that are ready for the model"),
            mm_hits: make.counter("vllm:mm_cache_hits_total", "pictures found ready for the model, neither decoded nor resized again"),
            processed_bytes: make.gauge("perilune:image_cache_bytes", "pictures that are kept ready for the model"),
            embedding_queries: make.counter("perilune:embedding_cache_queries_total", "pictures looked up among the embeddings on the device"),
            embedding_hits: make.counter("perilune:embedding_cache_hits_total", "pictures found among the embeddings on the device"),
            media_fetches: FETCH_OUTCOMES.map(|outcome| media_fetches.with_label_values(&[outcome])),
            encoded_images: make.counter("perilune:encoded_images_total", "pictures run through the vision tower"),
            device_time: make.register(Counter::with_opts(make.opts("perilune:device_seconds_total", "time in which the device worked"))),
            success: REASONS.map(|reason| success.with_label_values(&[reason])),
            corrupted: make.counter("vllm:corrupted_requests_total", "sequences that ended because logits were not finite"),
            rejections,
            ttft: make.histogram("vllm:time_to_first_token_seconds", "from arrival to the first token", TTFT),
            itl: make.histogram("vllm:inter_token_latency_seconds", "between two tokens of a sequence", ITL),
            tpot: make.histogram("vllm:request_time_per_output_token_seconds", "mean time between the tokens of a sequence", ITL),
            e2e: make.histogram("vllm:e2e_request_latency_seconds", "from arrival to the end", LATENCY),
            queue: make.histogram("vllm:request_queue_time_seconds", "from arrival to the first step", LATENCY),
            prefill: make.histogram("vllm:request_prefill_time_seconds", "from the first step to the first token", LATENCY),
            decode: make.histogram("vllm:request_decode_time_seconds", "from the first token to the last", LATENCY),
            inference: make.histogram("vllm:request_inference_time_seconds", "from the first step to the last token", LATENCY),
            request_prompt_tokens: make.histogram("vllm:request_prompt_tokens", "prompt tokens of a sequence", &tokens),
            request_generation_tokens: make.histogram("vllm:request_generation_tokens", "generated tokens of a sequence", &tokens),
            max_generation_tokens: make.histogram("vllm:request_max_num_generation_tokens", "most tokens generated for a request", &tokens),
            params_n: make.histogram("vllm:request_params_n", "answers asked for", N),
            params_max_tokens: make.histogram("vllm:request_params_max_tokens", "max_tokens asked for", &tokens),
            iteration_tokens: make.histogram("vllm:iteration_tokens_total", "tokens computed in a step", ITERATION),
            request_preemptions: make.histogram("vllm:request_num_preemptions", "how often a sequence lost its blocks", PREEMPTIONS),
            drafts: make.counter("vllm:spec_decode_num_drafts_total", "drafts that were verified"),
            draft_tokens: make.counter("vllm:spec_decode_num_draft_tokens_total", "tokens that were guessed"),
            accepted_tokens: make.counter("vllm:spec_decode_num_accepted_tokens_total", "guesses that were right"),
            accepted_per_pos: (0..MAX_SPECULATIVE_TOKENS).map(accepted_at).collect(),
            adapters: OnceLock::new(),
            offload: OnceLock::new(),
            model_name: model_name.to_owned(),
            registry: registry.clone(),
        };
        metrics
    }

    /// What the model runs on, and what it holds there.
    pub fn device(&self, name: &str, bytes: u64) {
        self.device_info.with_label_values(&[name]).set(1);
        self.device_memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Blocks of so many bytes that lose their places go to the host. Called once.
    pub fn offload(&self, block_bytes: u64) {
        let make = Maker { registry: &self.registry, model_name: &self.model_name };
        assert!(self.offload.set(Offload::new(&make, block_bytes)).is_ok(), "there is one second tier");
    }

    /// The model takes so many adapters. Called once.
    pub fn take_adapters(&self, max_loras: usize) {
        let make = Maker { registry: &self.registry, model_name: &self.model_name };
        let gauge = self.adapters.get_or_init(|| AdapterGauge::new(&make, max_loras));
        gauge.show(&AdaptersInUse::default());
    }

    /// Told when it has changed.
    pub fn adapters(&self, used: &AdaptersInUse) {
        if let Some(gauge) = self.adapters.get() {
            gauge.show(used);
        }
    }

    pub fn request_arrived(&self, n: usize) {
        self.params_n.observe(n as f64);
    }

    /// `bytes` is what the cache of processed pictures holds now.
    pub fn picture_looked_up(&self, is_hit: bool, bytes: usize) {
        self.mm_queries.inc();
        self.mm_hits.inc_by(u64::from(is_hit));
        self.processed_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub fn media_fetched(&self, is_ok: bool) {
        self.media_fetches[usize::from(!is_ok)].inc();
    }

    pub fn device_time(&self, step: Duration) {
        self.device_time.inc_by(step.as_secs_f64());
    }

    pub fn step(&self, stats: &StepStats) {
        self.preemptions.inc_by(stats.preempted.len() as u64);
        self.deferred_tokens.inc_by(stats.deferred_tokens as u64);
        self.steps_ahead.inc_by(u64::from(stats.is_ahead));
        self.dropped_tokens.inc_by(stats.dropped_tokens as u64);
        self.prefix_queries.inc_by(stats.prefix_queries as u64);
        self.prefix_hits.inc_by((stats.prefix_hits - stats.host_hits) as u64);
        self.prompt_tokens_cached.inc_by(stats.prefix_hits as u64);
        self.embedding_queries.inc_by(stats.image_queries as u64);
        self.embedding_hits.inc_by(stats.image_hits as u64);
        self.encoded_images.inc_by(stats.encoded_images as u64);
        let num_tokens = stats.num_useful_tokens() + stats.deferred_tokens + stats.dropped_tokens;
        self.iteration_tokens.observe(num_tokens as f64);
        self.step_drafts(stats);
        self.occupancy(&stats.occupancy);
    }

    /// What went to the host and came back; `copy_us` is the device's time for stores and loads.
    pub fn copies(&self, stats: &StepStats, copy_us: [u64; 2]) {
        if let Some(offload) = self.offload.get() {
            offload.copies(stats, copy_us);
        }
    }

    fn step_drafts(&self, stats: &StepStats) {
        self.drafts.inc_by(stats.drafts.len() as u64);
        for draft in &stats.drafts {
            self.draft_tokens.inc_by(draft.num_drafted as u64);
            self.accepted_tokens.inc_by(draft.num_accepted as u64);
            self.accepted_per_pos[..draft.num_accepted].iter().for_each(IntCounter::inc);
        }
    }

    /// Cached blocks that no sequence holds count as free.
    pub fn occupancy(&self, occupancy: &Occupancy) {
        self.running.set(occupancy.running as i64);
        self.waiting.set(occupancy.waiting as i64);
        self.kv_usage.set(kv_usage(occupancy));
    }

    pub fn rejected(&self, reject: &Reject) {
        if let Reject::QueueFull { .. } = reject {
            self.rejections.with_label_values(&["max_num_queued_reqs"]).inc();
        }
    }

    /// A prompt counts when it is computed to its end. This one has no answer.
    pub fn prompt_read(&self, prompt_tokens: usize) {
        self.prompt_tokens.inc_by(prompt_tokens as u64);
    }

    /// This one has.
    pub fn first_token(&self, since_arrival: Duration, prompt_tokens: usize) {
        self.prompt_tokens.inc_by(prompt_tokens as u64);
        self.ttft.observe(since_arrival.as_secs_f64());
        self.generation_tokens.inc();
    }

    pub fn token_counts(self: &Arc<Self>) -> TokenCounts {
        TokenCounts { metrics: self.clone(), itl: self.itl.local(), num_tokens: 0 }
    }

    pub fn sequence_ended(&self, record: &SequenceRecord) {
        let SequenceRecord {
            reason,
            timings,
            has_started,
            e2e,
            prompt_tokens,
            generation_tokens,
            max_tokens,
            preemptions,
        } = record;
        let index = REASONS.iter().position(|r| r == reason).expect("a known reason");
        self.success[index].inc();
        self.e2e.observe(e2e.as_secs_f64());
        self.request_generation_tokens.observe(*generation_tokens as f64);
        self.max_generation_tokens.observe(*generation_tokens as f64);
        self.params_max_tokens.observe(*max_tokens as f64);
        self.request_preemptions.observe(*preemptions as f64);
        if !has_started {
            return;
        }
        self.request_prompt_tokens.observe(*prompt_tokens as f64);
        self.queue.observe(timings.queue.as_secs_f64());
        self.prefill.observe(timings.prefill.as_secs_f64());
        self.decode.observe(timings.decode.as_secs_f64());
        self.inference.observe((timings.prefill + timings.decode).as_secs_f64());
        if *generation_tokens > 1 {
            self.tpot.observe(timings.decode.as_secs_f64() / (*generation_tokens - 1) as f64);
        }
    }

    pub fn numerical_error(&self) {
        self.corrupted.inc();
    }

    pub(super) fn encode(&self, text: &mut String) {
        encode(&self.registry, text);
    }
}

/// What is counted of every token, by one thread: added to the metrics once a step.
pub struct TokenCounts {
    pub metrics: Arc<Metrics>,
    itl: LocalHistogram,
    num_tokens: u64,
}

impl TokenCounts {
    /// `None` for a token of the same step as the last one.
    pub fn next_token(&mut self, since_last: Option<Duration>) {
        if let Some(since_last) = since_last {
            self.itl.observe(since_last.as_secs_f64());
        }
        self.num_tokens += 1;
    }

    pub fn flush(&mut self) {
        self.itl.flush();
        self.metrics.generation_tokens.inc_by(std::mem::take(&mut self.num_tokens));
    }
}

pub fn kv_usage(occupancy: &Occupancy) -> f64 {
    occupancy.blocks_used as f64 / occupancy.blocks_total.max(1) as f64
}
