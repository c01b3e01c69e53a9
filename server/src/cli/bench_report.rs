//! What a benchmark run says: counts, rates and the spread of latencies, under vLLM's names so that results compare.

use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::time::Duration;

/// One request that was answered completely.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    /// From sending to the first event that carries output.
    pub first_token: Duration,
    /// Between events that carry output.
    pub gaps: Vec<Duration>,
    /// From sending to the end of the stream.
    pub total: Duration,
}

#[derive(Debug, Default, PartialEq)]
pub struct Report {
    pub measured: Vec<Measured>,
    /// What the other requests ended with.
    pub failures: Vec<String>,
    pub duration: Duration,
    pub concurrency: usize,
}

/// Milliseconds.
#[derive(Debug, PartialEq)]
struct Spread {
    mean: f64,
    median: f64,
    std: f64,
    p90: f64,
    p99: f64,
}

impl Spread {
    /// All zero for no values.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let n = values.len().max(1) as f64;
        // The sum of nothing is -0.0.
        let mean = (values.iter().sum::<f64>() + 0.0) / n;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
        let [median, p90, p99] = [50.0, 90.0, 99.0].map(|percent| percentile(&values, percent));
        Self { mean, median, std: variance.sqrt(), p90, p99 }
    }
}

/// Between the two nearest of sorted values, as numpy does it.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = percent / 100.0 * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Report {
    /// Short name, title and values of each latency.
    fn latencies(&self) -> [(&'static str, &'static str, Spread); 4] {
        let each = |value: fn(&Measured) -> f64| Spread::of(self.measured.iter().map(value).collect());
        let per_token = |m: &Measured| {
            milliseconds(m.total.saturating_sub(m.first_token)) / (m.output_tokens.max(2) - 1) as f64
        };
        // A single token has no time per further token.
        let several = self.measured.iter().filter(|m| m.output_tokens > 1);
        let gaps = self.measured.iter().flat_map(|m| m.gaps.iter().map(|&gap| milliseconds(gap)));
        [
            ("ttft", "Time to First Token", each(|m| milliseconds(m.first_token))),
            ("tpot", "Time per Output Token (excl. 1st token)", Spread::of(several.map(per_token).collect())),
            ("itl", "Inter-token Latency", Spread::of(gaps.collect())),
            ("e2el", "End-to-end Latency", each(|m| milliseconds(m.total))),
        ]
    }

    fn tokens(&self) -> (u64, u64) {
        let sum = |value: fn(&Measured) -> u64| self.measured.iter().map(value).sum();
        (sum(|m| m.prompt_tokens), sum(|m| m.output_tokens))
    }

    fn rate(&self, count: u64) -> f64 {
        count as f64 / self.duration.as_secs_f64().max(1e-9)
    }

    pub fn to_json(&self) -> Value {
        let (input, output) = self.tokens();
        let completed = self.measured.len();
        let mut json = Map::new();
        let mut put = |name: &str, value: Value| json.insert(name.into(), value);
        put("duration", self.duration.as_secs_f64().into());
        put("completed", completed.into());
        put("failed", self.failures.len().into());
        put("max_concurrency", self.concurrency.into());
        put("total_input_tokens", input.into());
        put("total_output_tokens", output.into());
        put("request_throughput", self.rate(completed as u64).into());
        put("output_throughput", self.rate(output).into());
        put("total_token_throughput", self.rate(input + output).into());
        for (short, _, Spread { mean, median, std, p90, p99 }) in self.latencies() {
            for (what, value) in
                [("mean", mean), ("median", median), ("std", std), ("p90", p90), ("p99", p99)]
            {
                put(&format!("{what}_{short}_ms"), value.into());
            }
        }
        put("errors", json!(self.failures));
        json.into()
    }

    pub fn to_table(&self) -> String {
        let (input, output) = self.tokens();
        let completed = self.measured.len() as u64;
        let mut table = format!("{:=^50}\n", " Serving Benchmark Result ");
        let mut line = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(table, "{name:<40}{value:>10}");
        };
        line("Successful requests:", completed.to_string());
        line("Failed requests:", self.failures.len().to_string());
        line("Maximum request concurrency:", self.concurrency.to_string());
        line("Benchmark duration (s):", format!("{:.2}", self.duration.as_secs_f64()));
        line("Total input tokens:", input.to_string());
        line("Total generated tokens:", output.to_string());
        line("Request throughput (req/s):", format!("{:.2}", self.rate(completed)));
        line("Output token throughput (tok/s):", format!("{:.2}", self.rate(output)));
        line("Total token throughput (tok/s):", format!("{:.2}", self.rate(input + output)));
        for (short, title, Spread { mean, median, std: _, p90, p99 }) in self.latencies() {
            let _ = writeln!(table, "{title:-^50}");
            let short = short.to_uppercase();
            for (what, value) in [("Mean", mean), ("Median", median), ("P90", p90), ("P99", p99)] {
                let _ = writeln!(table, "{:<40}{value:>10.2}", format!("{what} {short} (ms):"));
            }
        }
        table + &"=".repeat(50) + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let ms = Duration::from_millis;
        let measured = |first: u64, gaps: &[u64], output_tokens: u64| Measured {
            prompt_tokens: 10,
            output_tokens,
            first_token: ms(first),
            gaps: gaps.iter().map(|&gap| ms(gap)).collect(),
            total: ms(first + gaps.iter().sum::<u64>()),
        };
        Report {
            measured: vec![measured(10, &[2, 4], 3), measured(30, &[], 1), measured(20, &[6], 2)],
            failures: vec!["refused".into()],
            duration: ms(500),
            concurrency: 2,
        }
    }

    #[test]
    fn numbers_under_vllms_names() {
        let json = report().to_json();
        for (name, value) in [
            ("completed", 3.0),
            ("failed", 1.0),
            ("duration", 0.5),
            ("total_input_tokens", 30.0),
            ("total_output_tokens", 6.0),
            ("request_throughput", 6.0),
            ("output_throughput", 12.0),
            ("total_token_throughput", 72.0),
            ("mean_ttft_ms", 20.0),
            ("median_ttft_ms", 20.0),
            ("p90_ttft_ms", 28.0),
            ("p99_ttft_ms", 29.8),
            ("std_ttft_ms", (200.0f64 / 3.0).sqrt()),
            ("mean_tpot_ms", 4.5),
            ("mean_itl_ms", 4.0),
            ("median_itl_ms", 4.0),
            ("mean_e2el_ms", 24.0),
        ] {
            let got = json[name].as_f64().unwrap_or_else(|| panic!("{name} is missing"));
            assert!((got - value).abs() < 1e-9, "{name}: {got}, expected {value}");
        }
        assert_eq!(json["errors"], json!(["refused"]));
    }

    #[test]
    fn the_table_has_its_columns_under_each_other() {
        let table = report().to_table();
        assert!(table.contains("Successful requests:                             3\n"), "{table}");
        assert!(table.contains("P99 TTFT (ms):                               29.80\n"), "{table}");
        assert!(table.lines().all(|line| line.len() == 50), "{table}");
    }

    #[test]
    fn nothing_measured_is_zero_and_not_a_number() {
        let json = Report::default().to_json();
        let numbers = json.as_object().unwrap().values().filter(|value| !value.is_array());
        assert!(numbers.into_iter().all(|value| value.as_f64() == Some(0.0)), "{json}");
        assert!(!Report::default().to_table().contains("-0.00"));
    }
}
