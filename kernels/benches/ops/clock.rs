//! What benches time with: the clock, and the processor time that this thread got, which is fair on a shared machine.
#![allow(dead_code, reason = "every bench uses its part")]

use rustix::time::{ClockId, clock_gettime};
use std::time::Instant;

/// Seconds.
pub fn wall_clock() -> f64 {
    seconds(ClockId::Monotonic)
}

/// Seconds that this thread ran.
pub fn thread_clock() -> f64 {
    seconds(ClockId::ThreadCPUTime)
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The best of some runs in seconds: at least five after an untimed one, then as many as fit half a second.
pub fn best_time(clock: fn() -> f64, run: &mut dyn FnMut()) -> f64 {
    run();
    let start = Instant::now();
    let mut best = f64::MAX;
    let mut runs = 0;
    while runs < 5 || (start.elapsed().as_secs_f64() < 0.5 && runs < 2000) {
        let from = clock();
        run();
        best = best.min(clock() - from);
        runs += 1;
    }
    best
}
