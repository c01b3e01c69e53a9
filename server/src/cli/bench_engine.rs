//! `perilune bench-engine`: the speed of the engine alone, without scheduler, HTTP or other requests, as llama-bench has it. It takes the
//! flags of `serve`.
//!
//! ```text
//! prefill:512       a prompt of 512 tokens from nothing, in chunks of --max-num-batched-tokens; its last row samples
//! decode:8@1024     8 sequences, each after 1024 tokens, one token for each in every step
//! encode:896        a picture of 896 x 896 pixels through the vision tower and the projector; its tokens are counted
//! logprobs:256      log-probabilities of a prompt's tokens, to compare the numbers of two engines before their speed
//! peaks             what the processor can do at best with these threads: reads of memory, and products of each kind
//! ```
//! Prompts are the tokens `(7919 i + 13) mod vocabulary`. Answers are greedy. Every job runs once untimed.

use crate::args::ServeArgs;
use crate::cli::engine_jobs::{Engine, Job, PEAKS};
use crate::config::Config;
use crate::exit_code::{EXIT_FAILURE, EXIT_LOAD, EXIT_USAGE};
use crate::load::{WriteCache, exit_code, keep};
use crate::say::{self, fail};
use crate::source::{self, HubSettings, Needed};
use clap::Args as ClapArgs;
use models::LoadFormat;
use serde_json::{Value, json};
use std::fmt::Display;
use std::io::BufRead;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Debug, ClapArgs)]
pub struct BenchEngineArgs {
    #[command(flatten)]
    pub serve: ServeArgs,

    /// What to measure: prefill:TOKENS, decode:SEQUENCES@CONTEXT, logprobs:TOKENS; or - to read jobs from standard input
    #[arg(
        long = "job",
        value_name = "JOB",
        value_delimiter = ',',
        default_value = "prefill:512,decode:1@128,decode:8@128"
    )]
    pub jobs: Vec<String>,

    /// Each job is repeated for at least so long
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub seconds: f64,

    /// One line of JSON for the model and for each job
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n| (0.0..=3600.0).contains(n));
    number.ok_or_else(|| format!("`{text}` is not a number of seconds from 0 to 3600"))
}

pub fn run(args: BenchEngineArgs) -> ExitCode {
    let BenchEngineArgs { serve, jobs, seconds, json } = args;
    let config = match Config::try_from(serve) {
        Ok(config) => config,
        Err(error) => return fail(error, EXIT_USAGE),
    };
    // A job that is none is told before a model is loaded, which may take minutes.
    if let Some(error) = jobs
        .iter()
        .filter(|job| !["-", PEAKS].contains(&job.as_str()))
        .find_map(|job| job.parse::<Job>().err())
    {
        return fail(error, EXIT_USAGE);
    }
    let needed = match config.load.load_format {
        LoadFormat::Auto => Needed::All,
        LoadFormat::Dummy => Needed::WithoutWeights,
    };
    let found = match source::find(config.model.as_deref(), needed, &HubSettings::from_env()) {
        Ok(found) => found,
        Err(error) => return fail(error, EXIT_LOAD),
    };
    let start = Instant::now();
    let mut loaded = match models::load(&found.files, &config.load, &mut |_| {}) {
        Ok(loaded) => loaded,
        Err(error) => return fail(&error, exit_code(&error)),
    };
    let load_seconds = start.elapsed().as_secs_f64();
    loaded.scheduler_config.async_scheduling = config.scheduling.async_scheduling;
    let cache_use = std::mem::replace(&mut loaded.cache_use, models::CacheUse::None);
    let is_mapped = matches!(cache_use, models::CacheUse::Mapped { .. });
    keep(cache_use, WriteCache::Now);
    let plan = &loaded.plan.memory;
    let about = json!({
        "model": found.name,
        "architecture": loaded.info.architecture,
        "dtype": loaded.info.dtype,
        "weight_layout": loaded.info.weight_layout,
        "head_screening": loaded.plan.head_screening,
        "parameters": loaded.info.num_parameters,
        "weights_bytes": plan.weights + plan.vision_weights,
        "load_seconds": load_seconds,
        "mapped": is_mapped,
    });
    let mut session =
        Session { engine: Engine::new(loaded), seconds: Duration::from_secs_f64(seconds), json };
    match session.run(&about, &jobs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(message, EXIT_FAILURE),
    }
}

struct Session {
    engine: Engine,
    /// A job is repeated for at least so long.
    seconds: Duration,
    json: bool,
}

impl Session {
    fn run(&mut self, about: &Value, jobs: &[String]) -> Result<(), String> {
        if self.json {
            tell(about)?;
        } else {
            let [model, dtype] = ["model", "dtype"].map(|name| about[name].as_str().unwrap_or_default());
            let seconds = about["load_seconds"].as_f64().unwrap_or_default();
            tell(format_args!("{model} {dtype}, loaded in {seconds:.2} s"))?;
            tell(format_args!("{:<20} {:>12} {:>16} {:>12}", "job", "tokens/s", "CPU-ms a token", "runs"))?;
        }
        if jobs != ["-"] {
            return jobs.iter().try_for_each(|job| self.one(job));
        }
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|error| format!("standard input: {error}"))?;
            if !line.trim().is_empty() {
                self.one(line.trim())?;
            }
        }
        Ok(())
    }

    fn one(&mut self, text: &str) -> Result<(), String> {
        if text == PEAKS {
            let peaks = self.engine.peaks()?;
            return tell(peaks);
        }
        let job: Job = text.parse()?;
        let result = self.engine.measure(job, self.seconds)?;
        if self.json {
            return tell(result.to_json(text));
        }
        let tokens_per_s = result.tokens_per_s();
        let (cpu_ms, runs) = (result.cpu_ms_per_token(), result.runs.len());
        tell(format_args!("{text:<20} {tokens_per_s:>12.2} {cpu_ms:>16.3} {runs:>12}"))
    }
}

/// One line, at once: a program that reads jobs' results waits for it.
fn tell(line: impl Display) -> Result<(), String> {
    say::result(line).map_err(|error| error.to_string())
}
