//! Where the histograms have their bounds: vLLM's, and more of them.

// vLLM's buckets, with finer ones below 10 ms added: a small mixture of experts has token latencies there.
pub(super) const TTFT: &[f64] = &[
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
pub(super) const ITL: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4,
    0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
pub(super) const LATENCY: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0,
    30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
pub(super) const ITERATION: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
pub(super) const N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
pub(super) const PREEMPTIONS: &[f64] = &[0.0, 1.0, 2.0, 4.0, 8.0, 16.0];

/// 1, 2, 5, 10, 20, … up to the longest sequence.
pub(super) fn token_buckets(max: usize) -> Vec<f64> {
    let mut buckets = Vec::new();
    let mut decade = 1.0;
    loop {
        for step in [1.0, 2.0, 5.0] {
            let bound: f64 = decade * step;
            if bound > max as f64 && !buckets.is_empty() {
                return buckets;
            }
            buckets.push(bound);
        }
        decade *= 10.0;
    }
}
