//! `perilune bench`: drives a running server with a bounded number of requests and threads and measures what a client sees.

use super::bench_report::{Measured, Report};
use super::client::{Client, ClientError};
use super::picture;
use crate::say;
use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Failures printed; all of them are in the JSON.
const MAX_SHOWN: usize = 5;

#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Address of the server
    #[arg(long, default_value = "http://127.0.0.1:8000", env = "PERILUNE_URL")]
    pub base_url: String,

    /// Key that the server asks for
    #[arg(long, value_name = "KEY", env = "PERILUNE_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Model to measure; default: the first one that the server lists
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,

    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub num_prompts: u32,

    /// Requests at a time
    #[arg(long, value_name = "N", default_value_t = 8, alias = "max-concurrency", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: u32,

    /// Requests a second on average, that come as a Poisson process as far as --concurrency allows; inf sends them one after the other
    #[arg(long, value_name = "X", default_value = "inf", value_parser = parse_rate)]
    pub request_rate: f64,

    /// Tokens of a prompt; with pictures: words of text beside them
    #[arg(long, value_name = "N", default_value_t = 128, alias = "random-input-len", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub input_len: u32,

    /// Tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 64, alias = "random-output-len", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub output_len: u32,

    /// Ask in chat, with a picture of this size that no other request has
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    pub image: Option<(u32, u32)>,

    /// Prompts are drawn from the token ids below this
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub vocab_size: u32,

    /// Randomness of the answers; 0 is none
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub temperature: f32,

    /// Of prompts and pictures
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// Print JSON to standard output, and the table to standard error
    #[arg(long)]
    pub json: bool,
}

fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    match sides {
        Some((w @ 1..=16384, h @ 1..=16384)) => Ok((w, h)),
        _ => Err(format!("`{text}` is not a size such as 448x448 with sides from 1 to 16384")),
    }
}

pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    let report = measure(&args)?;
    if args.json {
        say::note(report.to_table().trim_end());
        say::result(format_args!("{:#}", report.to_json()))?;
    } else {
        say::result(report.to_table().trim_end())?;
    }
    if !report.failures.is_empty() {
        let shown: Vec<&str> = report.failures.iter().take(MAX_SHOWN).map(String::as_str).collect();
        bail!("{} of {} requests failed: {}", report.failures.len(), args.num_prompts, shown.join("; "));
    }
    Ok(())
}

fn parse_rate(text: &str) -> Result<f64, String> {
    // 0.0001 is one request in three hours.
    let rate = text.parse().ok().filter(|rate| *rate >= 1e-4);
    rate.ok_or_else(|| format!("`{text}` is not a number of requests a second from 0.0001 to inf"))
}

/// When request after request is due, from the beginning on: the first at once, each later one a random time after the one before it, of
/// which the mean is one over the rate.
fn arrivals(args: &BenchArgs) -> Vec<Duration> {
    let mut due = 0.0;
    let mut after = |index: u32| {
        // A random number of its own, apart from those of prompts.
        let uniform = Random::new(args.seed ^ 0xa551, u64::from(index)).next() as f64 / 2f64.powi(64);
        let at = due;
        due -= (1.0 - uniform).max(f64::MIN_POSITIVE).ln() / args.request_rate;
        Duration::from_secs_f64(at)
    };
    (0..args.num_prompts).map(&mut after).collect()
}

fn measure(args: &BenchArgs) -> Result<Report, ClientError> {
    let client = Client::new(&args.base_url, args.api_key.as_deref())?;
    let model = match &args.model {
        Some(name) => name.clone(),
        None => client.default_model()?,
    };
    let num_prompts = args.num_prompts as usize;
    let concurrency = (args.concurrency as usize).min(num_prompts);
    let next = AtomicUsize::new(0);
    let arrivals = arrivals(args);
    let results = Mutex::new(Vec::with_capacity(num_prompts));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..concurrency {
            scope.spawn(|| {
                while let Some(index) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < num_prompts)
                {
                    std::thread::sleep(arrivals[index].saturating_sub(start.elapsed()));
                    let result = one_request(args, &client, &model, index as u64);
                    results.lock().unwrap_or_else(|e| e.into_inner()).push(result);
                }
            });
        }
    });
    let mut report = Report { duration: start.elapsed(), concurrency, ..Report::default() };
    for result in results.into_inner().unwrap_or_else(|e| e.into_inner()) {
        match result {
            Ok(measured) => report.measured.push(measured),
            Err(message) => report.failures.push(message),
        }
    }
    Ok(report)
}

fn one_request(args: &BenchArgs, client: &Client, model: &str, index: u64) -> Result<Measured, String> {
    let (path, request) = request(args, model, index)?;
    let start = Instant::now();
    let mut last = None;
    let mut first_token = None;
    let mut gaps = Vec::with_capacity(args.output_len as usize);
    let mut usage = Value::Null;
    for event in client.stream(path, &request).map_err(|error| error.to_string())? {
        let mut event = event.map_err(|error| error.to_string())?;
        if carries_output(&event) {
            let now = Instant::now();
            match last.replace(now) {
                Some(before) => gaps.push(now.duration_since(before)),
                None => first_token = Some(now.duration_since(start)),
            }
        }
        if event["usage"].is_object() {
            usage = event["usage"].take();
        }
    }
    let total = start.elapsed();
    let count = |name: &str| usage[name].as_u64().ok_or(format!("the stream says nothing of {name}"));
    let first_token = first_token.ok_or("the stream carries no output")?;
    Ok(Measured {
        prompt_tokens: count("prompt_tokens")?,
        output_tokens: count("completion_tokens")?,
        first_token,
        gaps,
        total,
    })
}

/// Text, or a token whose text is still to come. The first event of a chat, which only names the role, does not count.
fn carries_output(event: &Value) -> bool {
    let choice = &event["choices"][0];
    let texts = [&choice["text"], &choice["delta"]["content"], &choice["delta"]["reasoning_content"]];
    texts.iter().any(|text| text.as_str().is_some_and(|text| !text.is_empty()))
        || choice["token_ids"].as_array().is_some_and(|ids| !ids.is_empty())
}

/// The path and body of request `index`. Every one has other contents, so that no prefix is found in a cache.
fn request(args: &BenchArgs, model: &str, index: u64) -> Result<(&'static str, Value), String> {
    let mut random = Random::new(args.seed, index);
    let mut request = json!({
        "model": model,
        "max_tokens": args.output_len,
        "ignore_eos": true,
        // So that a token whose text is still to come has an event of its own.
        "return_token_ids": true,
        "temperature": args.temperature,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    let Some((width, height)) = args.image else {
        let ids = (0..args.input_len).map(|_| random.below(args.vocab_size));
        request["prompt"] = ids.collect();
        return Ok(("/v1/completions", request));
    };
    let url = picture::noise(width, height, || random.next())?;
    let words: Vec<String> = (0..args.input_len).map(|_| random.below(10).to_string()).collect();
    request["messages"] = json!([{ "role": "user", "content": [
        { "type": "image_url", "image_url": { "url": url } },
        { "type": "text", "text": words.join(" ") },
    ] }]);
    Ok(("/v1/chat/completions", request))
}

/// SplitMix64, a stream of its own for each request.
struct Random(u64);

impl Random {
    fn new(seed: u64, index: u64) -> Self {
        let mut mixed = Self(seed);
        Self(mixed.next() ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::super::stand_in::{Answer, StandIn};
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn args(server: &str, more: &[&str]) -> BenchArgs {
        let line = ["bench", "--base-url", server, "--model", "m", "--input-len", "5", "--output-len", "2"];
        Line::parse_from(line.iter().chain(more)).args
    }

    #[test]
    fn requests_come_at_their_rate() {
        let all_at_once = arrivals(&args("", &["--num-prompts", "9"]));
        assert_eq!(all_at_once, [Duration::ZERO; 9]);
        let slow = args("", &["--num-prompts", "10000", "--request-rate", "0.5"]);
        let due = arrivals(&slow);
        assert!(due[0].is_zero() && due.is_sorted());
        // Of a Poisson process: as even as it is on average, and with gaps as spread as they are long.
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let spread = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean - 2.0).abs() < 0.1 && (spread - 2.0).abs() < 0.2, "{mean} {spread}");
        assert_eq!(due, arrivals(&slow));
        for bad in ["0", "-1", "nan", "1e-9", "x", ""] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        assert_eq!((parse_rate("inf"), parse_rate("2.5")), (Ok(f64::INFINITY), Ok(2.5)));
    }

    fn stream(chunks: &[Value]) -> Answer {
        let usage = json!({ "choices": [], "usage": { "prompt_tokens": 5, "completion_tokens": 2 } });
        let events: String =
            chunks.iter().chain([&usage]).map(|event| format!("data: {event}\n\n")).collect();
        Answer::stream(events + "data: [DONE]\n\n")
    }

    fn completion() -> Answer {
        let text = |text: &str| json!({ "choices": [{ "text": text, "finish_reason": null }] });
        // The first token is half a character; the last event only ends the answer.
        stream(&[json!({ "choices": [{ "text": "", "token_ids": [7] }] }), text("é"), text("")])
    }

    #[test]
    fn counts_come_from_usage_and_every_prompt_differs() {
        let server = StandIn::start(vec![completion(); 6]);
        let args = args(&server.url(), &["--num-prompts", "6", "--concurrency", "2", "--seed", "3"]);
        let report = measure(&args).unwrap();
        assert_eq!((report.measured.len(), report.failures.len(), report.concurrency), (6, 0, 2));
        for measured in &report.measured {
            assert_eq!((measured.prompt_tokens, measured.output_tokens, measured.gaps.len()), (5, 2, 1));
            assert!(measured.first_token <= measured.total);
        }
        let mut prompts: Vec<String> = Vec::new();
        for request in server.finish() {
            let body = request.json();
            assert_eq!(request.line, "POST /v1/completions HTTP/1.1");
            assert_eq!(body["ignore_eos"], true);
            assert_eq!(body["max_tokens"], 2);
            assert_eq!(body["stream_options"]["include_usage"], true);
            let prompt = body["prompt"].as_array().unwrap();
            assert_eq!(prompt.len(), 5);
            assert!(prompt.iter().all(|id| id.as_u64().unwrap() < 100));
            prompts.push(body["prompt"].to_string());
        }
        prompts.sort();
        prompts.dedup();
        assert_eq!(prompts.len(), 6);
    }

    #[test]
    fn failures_are_counted_and_do_not_stop_the_run() {
        let refusal = Answer::json(429, json!({ "error": { "message": "full" } }));
        let no_usage = Answer::stream("data: {\"choices\":[{\"text\":\"x\"}]}\n\ndata: [DONE]\n\n".into());
        let server = StandIn::start(vec![refusal, completion(), no_usage, stream(&[])]);
        let report = measure(&args(&server.url(), &["--num-prompts", "4", "--concurrency", "1"])).unwrap();
        assert_eq!(report.measured.len(), 1);
        let expected = [
            format!("429 from {}/v1/completions: full", server.url()),
            "the stream says nothing of prompt_tokens".into(),
            "the stream carries no output".into(),
        ];
        assert_eq!(report.failures, expected);
        server.finish();
    }

    #[test]
    fn pictures_go_through_chat() {
        let delta = |delta: Value| json!({ "choices": [{ "delta": delta }] });
        let role = delta(json!({ "role": "assistant", "content": "" }));
        let chunks = [role, delta(json!({ "content": "x" })), delta(json!({ "reasoning_content": "y" }))];
        let server = StandIn::start(vec![stream(&chunks), stream(&chunks)]);
        let args = args(&server.url(), &["--num-prompts", "2", "--concurrency", "1", "--image", "30x20"]);
        let report = measure(&args).unwrap();
        assert!(report.measured.iter().all(|measured| measured.gaps.len() == 1));
        let requests = server.finish();
        let picture = |index: usize| {
            let body = requests[index].json();
            body["messages"][0]["content"][0]["image_url"]["url"].as_str().unwrap().to_owned()
        };
        assert_eq!(requests[0].line, "POST /v1/chat/completions HTTP/1.1");
        assert!(picture(0).starts_with("data:image/png;base64,"));
        assert_ne!(picture(0), picture(1));
    }

    #[test]
    fn an_unreachable_server_is_one_clear_error() {
        // A port that was free a moment ago may be another test's by now; this one is nobody's.
        let url = "http://127.0.0.1:1";
        let mut args = args(url, &[]);
        args.model = None;
        let message = measure(&args).unwrap_err().to_string();
        assert!(message.starts_with(&format!("failed to reach {url}/v1/models: ")), "{message}");
    }

    #[test]
    fn sizes_and_counts_are_checked() {
        assert_eq!(parse_size("448x224"), Ok((448, 224)));
        for text in ["", "448", "0x5", "5x0", "x", "448x", "-1x5", "99999x5", "4x4x4"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for more in
            [["--num-prompts", "0"], ["--concurrency", "0"], ["--output-len", "0"], ["--vocab-size", "0"]]
        {
            assert!(Line::try_parse_from(["bench"].iter().chain(&more)).is_err(), "{more:?}");
        }
    }
}
