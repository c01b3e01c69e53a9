//! Where a sequence stands, and what it took: written by the engine's thread, read by whoever answers the client.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// What is known of a sequence beside its events. Nothing here is written with every token: that is [`Spent`].
#[derive(Debug, Default)]
pub struct Progress {
    vision_us: AtomicU64,
    queue_us: AtomicU64,
    prefill_us: AtomicU64,
    cached_tokens: AtomicUsize,
    draft_tokens: AtomicUsize,
    accepted_tokens: AtomicUsize,
    /// The client has its whole answer although the engine could go on: a stop string was found.
    stopped: AtomicBool,
}

/// What grows with every token, and so goes with it from thread to thread. Microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Since the first token.
    pub decode_us: u64,
    /// Of the device, the prompt's part included.
    pub device_us: u64,
}

/// Times of one sequence. Device time is each step's time shared out among those who were in it: `device_share` says how.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Until its pictures were ready, before it was queued.
    pub vision: Duration,
    pub queue: Duration,
    pub prefill: Duration,
    pub decode: Duration,
    pub device: Duration,
    pub cached_tokens: usize,
    /// Tokens that were guessed for it, and those of them that the model said.
    pub draft_tokens: usize,
    pub accepted_tokens: usize,
}

impl Progress {
    /// `spent` is what its last event said.
    pub fn timings(&self, spent: Spent) -> Timings {
        let duration = |us: &AtomicU64| Duration::from_micros(us.load(Relaxed));
        Timings {
            vision: duration(&self.vision_us),
            queue: duration(&self.queue_us),
            prefill: duration(&self.prefill_us),
            decode: Duration::from_micros(spent.decode_us),
            device: Duration::from_micros(spent.device_us),
            cached_tokens: self.cached_tokens.load(Relaxed),
            draft_tokens: self.draft_tokens.load(Relaxed),
            accepted_tokens: self.accepted_tokens.load(Relaxed),
        }
    }

    /// Of the prompt, found in memory.
    pub fn cached_tokens(&self) -> usize {
        self.cached_tokens.load(Relaxed)
    }

    /// Known before the sequence is submitted.
    pub fn set_vision(&self, vision: Duration) {
        self.vision_us.store(micros(vision), Relaxed);
    }

    pub(super) fn start(&self, queue: Duration, cached_tokens: usize) {
        self.queue_us.store(micros(queue), Relaxed);
        self.cached_tokens.store(cached_tokens, Relaxed);
    }

    pub(super) fn set_prefill(&self, prefill: Duration) {
        self.prefill_us.store(micros(prefill), Relaxed);
    }

    pub(super) fn count_draft(&self, num_drafted: usize, num_accepted: usize) {
        self.draft_tokens.fetch_add(num_drafted, Relaxed);
        self.accepted_tokens.fetch_add(num_accepted, Relaxed);
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
