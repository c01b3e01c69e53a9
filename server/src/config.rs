//! What was typed, resolved: every value checked and present, nothing left to ask the environment for.

use crate::app::AppLimits;
use crate::args::{DTypeArg, DeviceArg, GenerationConfigArg, LoadFormatArg, LogFormatArg, ServeArgs};
use crate::auth::ApiKeys;
use crate::chat::image::ImageLimits;
use crate::chat::parse::{Choice, Parsers, ReasoningFormat, ToolFormat};
use crate::http::HttpLimits;
use crate::openai::generation::RequestLimits;
use crate::units::{parse_count, parse_memory};
use models::{DTypeChoice, LoadFormat, LoadOptions};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug)]
pub struct Config {
    /// `None`: the embedded model.
    pub model: Option<String>,
    pub host: String,
    pub port: u16,
    /// Empty: the model's own name.
    pub served_names: Vec<String>,
    pub load: LoadOptions,
    pub scheduling: Scheduling,
    pub keys: ApiKeys,
    pub limits: AppLimits,
    pub http: HttpLimits,
    pub images: ImageLimits,
    pub seed: Option<u64>,
    pub log_format: LogFormat,
    pub chat_template: Option<PathBuf>,
    pub parsers: Parsers,
    pub defaults: DefaultsFrom,
    pub shutdown_timeout: Duration,
    /// Said once the log is set up.
    pub warnings: Vec<String>,
}

/// What the scheduler is told besides what the loader found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduling {
    pub max_waiting: usize,
    pub enable_prefix_caching: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultsFrom {
    Model,
    Api,
}

/// A flag whose value means nothing, by its name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {message}")]
pub struct ConfigError {
    pub flag: &'static str,
    pub message: String,
}

fn fail(flag: &'static str) -> impl Fn(String) -> ConfigError {
    move |message| ConfigError { flag, message }
}

impl TryFrom<ServeArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: ServeArgs) -> Result<Self, ConfigError> {
        let ServeArgs {
            model,
            host,
            port,
            served_model_name,
            device,
            dtype,
            max_model_len,
            max_num_seqs,
            max_num_batched_tokens,
            block_size,
            memory,
            load_format,
            api_key,
            seed,
            log_format,
            config: _,
            chat_template,
            tool_call_parser,
            reasoning_parser,
            generation_config,
            max_waiting,
            shutdown_timeout,
            sse_keep_alive_interval,
            threads,
            enable_prefix_caching: _,
            no_enable_prefix_caching,
            max_image_pixels,
            max_n,
            print_config: _,
            harmless,
        } = args;
        check_device(device)?;
        for (flag, value) in [
            ("max-num-seqs", max_num_seqs),
            ("block-size", block_size),
            ("max-waiting", max_waiting),
            ("threads", threads.unwrap_or(1)),
            ("max-n", max_n),
        ] {
            if value == 0 {
                return Err(fail(flag)("must be at least 1".into()));
            }
        }
        let max_num_batched_tokens =
            parse_count(&max_num_batched_tokens).map_err(fail("max-num-batched-tokens"))?;
        if max_num_batched_tokens < max_num_seqs {
            let message = format!(
                "{max_num_batched_tokens} is below --max-num-seqs {max_num_seqs}: not all could run in one step"
            );
            return Err(fail("max-num-batched-tokens")(message));
        }
        let mut warnings: Vec<String> =
            harmless.given().into_iter().map(|flag| format!("{flag} has no effect here")).collect();
        if api_key.iter().any(|key| key.trim() != key || key.is_empty()) {
            return Err(fail("api-key")("is empty or has spaces around it".into()));
        }
        let keys = ApiKeys::new(&api_key);
        if keys.is_empty() && !is_loopback(&host) {
            warnings.push(format!("listening on {host} without --api-key: anyone who reaches it may use it"));
        }
        let keep_alive = seconds("sse-keep-alive-interval", sse_keep_alive_interval)?;
        let request = RequestLimits { n_max: max_n, ..RequestLimits::default() };
        let pixels = parse_count(&max_image_pixels).map_err(fail("max-image-pixels"))? as u64;
        Ok(Config {
            model,
            host,
            port,
            served_names: served_model_name,
            load: LoadOptions {
                load_format: match load_format {
                    LoadFormatArg::Auto => LoadFormat::Auto,
                    LoadFormatArg::Dummy => LoadFormat::Dummy,
                },
                dtype: match dtype {
                    DTypeArg::Auto => DTypeChoice::Auto,
                    DTypeArg::Float32 => DTypeChoice::F32,
                    DTypeArg::Bfloat16 => DTypeChoice::BF16,
                    DTypeArg::Float16 => DTypeChoice::F16,
                },
                max_model_len: lower_max_model_len(max_model_len)?,
                max_num_seqs,
                max_num_batched_tokens,
                block_size,
                memory: parse_memory(&memory).map_err(fail("memory"))?,
                threads,
                seed: seed.unwrap_or(0),
            },
            scheduling: Scheduling { max_waiting, enable_prefix_caching: !no_enable_prefix_caching },
            keys,
            limits: AppLimits {
                request,
                keep_alive: (!keep_alive.is_zero()).then_some(keep_alive),
                ..AppLimits::default()
            },
            http: HttpLimits::default(),
            images: ImageLimits { max_pixels: pixels, ..ImageLimits::default() },
            seed,
            log_format: match log_format {
                LogFormatArg::Text => LogFormat::Text,
                LogFormatArg::Json => LogFormat::Json,
            },
            chat_template,
            parsers: lower_parsers(tool_call_parser.as_deref(), reasoning_parser.as_deref())?,
            defaults: match generation_config {
                GenerationConfigArg::Auto => DefaultsFrom::Model,
                GenerationConfigArg::Vllm => DefaultsFrom::Api,
            },
            shutdown_timeout: seconds("shutdown-timeout", shutdown_timeout)?,
            warnings,
        })
    }
}

fn lower_parsers(tools: Option<&str>, reasoning: Option<&str>) -> Result<Parsers, ConfigError> {
    let unknown = |flag: &'static str, name: Option<&str>, known: Vec<&str>| {
        let message = format!("unknown name `{}`; known are {}, none", name.unwrap_or(""), known.join(", "));
        fail(flag)(message)
    };
    Ok(Parsers {
        tools: Choice::named(tools, ToolFormat::named)
            .ok_or_else(|| unknown("tool-call-parser", tools, ToolFormat::names().collect()))?,
        reasoning: Choice::named(reasoning, ReasoningFormat::named)
            .ok_or_else(|| unknown("reasoning-parser", reasoning, ReasoningFormat::names().collect()))?,
    })
}

impl Config {
    /// For `--print-config`. Keys are counted, not shown.
    pub fn to_json(&self) -> Value {
        let Config {
            model,
            host,
            port,
            served_names,
            load,
            scheduling,
            keys,
            limits,
            http,
            images,
            seed,
            log_format,
            chat_template,
            parsers,
            defaults,
            shutdown_timeout,
            warnings,
        } = self;
        json!({
            "model": model,
            "host": host,
            "port": port,
            "served_model_name": served_names,
            "load_format": format!("{:?}", load.load_format),
            "dtype": format!("{:?}", load.dtype),
            "max_model_len": load.max_model_len,
            "max_num_seqs": load.max_num_seqs,
            "max_num_batched_tokens": load.max_num_batched_tokens,
            "block_size": load.block_size,
            "memory": format!("{:?}", load.memory),
            "threads": load.threads,
            "max_waiting": scheduling.max_waiting,
            "enable_prefix_caching": scheduling.enable_prefix_caching,
            "api_key": format!("{keys:?}"),
            "max_n": limits.request.n_max,
            "body_len_max": limits.body_len_max,
            "sse_keep_alive_interval": limits.keep_alive.map_or(0.0, |period| period.as_secs_f64()),
            "max_connections": http.max_connections,
            "max_image_pixels": images.max_pixels,
            "seed": seed,
            "log_format": format!("{log_format:?}"),
            "chat_template": chat_template,
            "parsers": format!("{parsers:?}"),
            "generation_config": format!("{defaults:?}"),
            "shutdown_timeout": shutdown_timeout.as_secs_f64(),
            "warnings": warnings,
        })
    }
}

fn check_device(device: DeviceArg) -> Result<(), ConfigError> {
    match device {
        DeviceArg::Auto | DeviceArg::Cpu => Ok(()),
        DeviceArg::Cuda => {
            Err(fail("device")("this version computes on the CPU only; use --device cpu".into()))
        }
    }
}

/// `auto` and -1 are as if it was not given, as in vLLM.
fn lower_max_model_len(text: Option<String>) -> Result<Option<usize>, ConfigError> {
    match text.as_deref() {
        None | Some("auto" | "-1") => Ok(None),
        Some(text) => parse_count(text).map(Some).map_err(fail("max-model-len")),
    }
}

fn seconds(flag: &'static str, value: f64) -> Result<Duration, ConfigError> {
    Duration::try_from_secs_f64(value)
        .ok()
        .filter(|duration| *duration <= Duration::from_secs(1 << 32))
        .ok_or_else(|| fail(flag)(format!("{value} is not a number of seconds")))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
