//! What was typed, resolved: every value checked and present, nothing left to ask the environment for.

mod lora;
mod media;
mod net;
mod shown;

use crate::access_log::AccessLog;
use crate::adapters::AdapterOptions;
use crate::app::{AppLimits, Place};
use crate::args::{
    ActivationsArg, DTypeArg, DataArgs, GenerationConfigArg, HeadScreeningArg, KvCacheDTypeArg,
    LoadFormatArg, LogFormatArg, MatmulArg, QuantizationArg, ResponsesArgs, ServeArgs, WeightLayoutArg,
    default_kernel_cache, default_weights_cache,
};
use crate::auth::ApiKeys;
use crate::batch::store::BatchLimits;
use crate::chat::image::ImageLimits;
use crate::chat::image::remote::RemotePolicy;
use crate::chat::parse::{Choice, Parsers, ReasoningFormat, ToolFormat};
use crate::disk::files::FileLimits;
use crate::http::{HttpLimits, ListenOn};
use crate::openai::generation::RequestLimits;
use crate::openai::responses::store::StoreLimits;
use crate::pictures::PictureOptions;
use crate::reload::FileError;
use crate::speculation::Speculation;
use crate::tls::Tls;
use crate::units::{parse_bytes, parse_count, parse_cpus, parse_memory};
use crate::web::{Origins, WebPolicy, parse_hosts};
use models::{
    ActivationsChoice, DTypeChoice, DeviceChoice, HeadScreeningChoice, KernelOptions, KvCacheDTypeChoice,
    LoadFormat, LoadOptions, Matmul, QuantizationChoice, WeightLayoutChoice, WeightsCache,
};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub struct Config {
    /// `None`: the embedded model.
    pub model: Option<String>,
    pub listen: ListenOn,
    /// Empty: the model's own name.
    pub served_names: Vec<String>,
    pub load: LoadOptions,
    pub scheduling: Scheduling,
    pub keys: ApiKeys,
    pub limits: AppLimits,
    pub place: Place,
    pub web: WebPolicy,
    pub http: HttpLimits,
    /// `None`: HTTP in the clear.
    pub tls: Option<Arc<Tls>>,
    pub pictures: PictureOptions,
    pub seed: Option<u64>,
    pub log_format: LogFormat,
    pub chat_template: Option<PathBuf>,
    pub parsers: Parsers,
    pub defaults: DefaultsFrom,
    pub adapters: AdapterOptions,
    pub shutdown_timeout: Duration,
    pub data: DataConfig,
    /// Said once the log is set up.
    pub warnings: Vec<String>,
}

/// What may be kept on disk.
#[derive(Debug, Clone)]
pub struct DataConfig {
    /// `None`: nothing.
    pub dir: Option<PathBuf>,
    pub files: FileLimits,
    pub batches: BatchLimits,
}

/// What the scheduler is told besides what the loader found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduling {
    pub max_waiting: usize,
    pub async_scheduling: bool,
    pub enable_prefix_caching: bool,
    pub speculation: Speculation,
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

fn of_file(error: FileError) -> ConfigError {
    let FileError { flag, message } = error;
    ConfigError { flag, message }
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
            uds,
            uds_permissions,
            root_path,
            served_model_name,
            device,
            kernel_cache,
            weights_cache,
            weights_cache_size,
            enforce_eager,
            nvrtc_dir,
            gpu_matmul,
            dtype,
            quantization,
            activations,
            weight_layout,
            head_screening,
            kv_cache_dtype,
            mla_expand_from,
            max_model_len,
            max_num_seqs,
            max_num_batched_tokens,
            block_size,
            memory,
            kv_offloading_size,
            load_format,
            api_key,
            api_key_file,
            seed,
            log_format,
            config: _,
            chat_template,
            tool_call_parser,
            reasoning_parser,
            generation_config,
            max_waiting,
            max_body_memory,
            shutdown_timeout,
            sse_keep_alive_interval,
            keep_alive_timeout,
            threads,
            threads_bind,
            speculative_config,
            async_scheduling: _,
            no_async_scheduling,
            enable_prefix_caching: _,
            no_enable_prefix_caching,
            max_image_pixels,
            image_resize_pixels,
            max_images,
            max_video_frames,
            mm_processor_cache_gb,
            allow_remote_images,
            allowed_media_domains,
            allowed_media_addresses,
            media_ca_file,
            image_fetch_timeout,
            max_n,
            enable_tokenizer_info_endpoint,
            no_page,
            disable_access_log,
            disable_access_log_for_endpoints,
            allowed_origins,
            allowed_hosts,
            tls,
            lora,
            responses,
            data,
            print_config: _,
            harmless,
        } = args;
        for (flag, value) in [
            ("max-num-seqs", max_num_seqs),
            ("block-size", block_size),
            ("max-waiting", max_waiting),
            ("threads", threads.unwrap_or(1)),
            ("max-n", max_n),
            ("max-images", max_images),
            ("max-video-frames", max_video_frames),
        ] {
            if value == 0 {
                return Err(fail(flag)("must be at least 1".into()));
            }
        }
        if let Some(threads) = threads.filter(|threads| *threads > NUM_THREADS_MAX) {
            return Err(fail("threads")(format!("{threads} is above {NUM_THREADS_MAX}")));
        }
        if served_model_name.iter().any(|name| name.trim().is_empty()) {
            return Err(fail("served-model-name")("is empty".into()));
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
        let keys = match api_key_file {
            Some(path) => ApiKeys::with_file(&api_key, path).map_err(of_file)?,
            None => ApiKeys::new(&api_key),
        };
        let listen = net::listen_on(listened_on(host).map_err(fail("host"))?, port, uds, &uds_permissions)?;
        // Of a file that is connected to no page knows, and who may is said by its permissions.
        let (is_exposed, own_names) = match &listen {
            ListenOn::Tcp { host, .. } if net::is_loopback(host) => (false, Some(net::own_names(host))),
            ListenOn::Tcp { .. } => (true, None),
            ListenOn::Unix { .. } => (false, None),
        };
        if keys.is_empty() && is_exposed {
            warnings
                .push(format!("listening on {listen} without --api-key: anyone who reaches it may use it"));
        }
        // With a key a page from elsewhere could do nothing; an address that others reach has names of its own.
        let hosts = match allowed_hosts.is_empty() {
            true => own_names.filter(|_| keys.is_empty()),
            false => parse_hosts(&allowed_hosts).map_err(fail("allowed-hosts"))?,
        };
        let origins = Origins::parse(&allowed_origins).map_err(fail("allowed-origins"))?;
        let keep_alive = seconds("sse-keep-alive-interval", sse_keep_alive_interval)?;
        let request = RequestLimits { n_max: max_n, ..RequestLimits::default() };
        let max_pixels = parse_count(&max_image_pixels).map_err(fail("max-image-pixels"))? as u64;
        let image_resize_pixels = image_resize_pixels.as_deref().map(parse_count).transpose();
        let image_resize_pixels = image_resize_pixels.map_err(fail("image-resize-pixels"))?;
        let pictures = PictureOptions {
            limits: ImageLimits {
                max_pixels,
                // A few pictures' worth: frames are small where there are many.
                max_animation_pixels: max_pixels.saturating_mul(4),
                max_frames: max_video_frames,
                ..ImageLimits::default()
            },
            remote: RemotePolicy {
                hosts: media::hosts(allow_remote_images, &allowed_media_domains)?,
                addresses: parse_all("allowed-media-addresses", &allowed_media_addresses)?,
                timeout: above_zero("image-fetch-timeout", image_fetch_timeout)?,
                authorities: media::authorities(media_ca_file.as_deref())?,
                ..RemotePolicy::default()
            },
            cache_bytes: lower_gib("mm-processor-cache-gb", mm_processor_cache_gb)?,
            max_pictures: max_images,
        };
        let lora::Lora { adapters, experts: lora_experts, max_rank } = lora::lower(lora)?;
        Ok(Config {
            model,
            listen,
            served_names: served_model_name,
            load: LoadOptions {
                device: lower_device(&device)?,
                kernels: KernelOptions {
                    cache: kernel_cache.or_else(default_kernel_cache),
                    nvrtc: nvrtc_dir,
                    matmul: match gpu_matmul {
                        MatmulArg::Auto => Matmul::Auto,
                        MatmulArg::Mma => Matmul::Mma,
                        MatmulArg::Wgmma => Matmul::Wgmma,
                    },
                },
                graphs: !enforce_eager,
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
                quantization: match quantization {
                    QuantizationArg::Auto => QuantizationChoice::Auto,
                    QuantizationArg::Int8 => QuantizationChoice::Int8,
                    QuantizationArg::Int4 => QuantizationChoice::Int4,
                },
                activations: match activations {
                    ActivationsArg::Auto => ActivationsChoice::Auto,
                    ActivationsArg::Float32 => ActivationsChoice::F32,
                    ActivationsArg::Bfloat16 => ActivationsChoice::BF16,
                    ActivationsArg::Int8 => ActivationsChoice::Int8,
                },
                weight_layout: match weight_layout {
                    WeightLayoutArg::Auto => WeightLayoutChoice::Auto,
                    WeightLayoutArg::Plain => WeightLayoutChoice::Plain,
                    WeightLayoutArg::Compact => WeightLayoutChoice::Compact,
                },
                head_screening: match head_screening {
                    HeadScreeningArg::Auto => HeadScreeningChoice::Auto,
                    HeadScreeningArg::On => HeadScreeningChoice::On,
                    HeadScreeningArg::Off => HeadScreeningChoice::Off,
                },
                kv_cache_dtype: match kv_cache_dtype {
                    KvCacheDTypeArg::Auto => KvCacheDTypeChoice::Auto,
                    KvCacheDTypeArg::Float32 => KvCacheDTypeChoice::F32,
                    KvCacheDTypeArg::Bfloat16 => KvCacheDTypeChoice::BF16,
                    KvCacheDTypeArg::Float16 => KvCacheDTypeChoice::F16,
                    KvCacheDTypeArg::Int8 => KvCacheDTypeChoice::Int8,
                },
                mla_expand_from,
                image_resize_pixels,
                max_loras: adapters.max_loras,
                max_lora_rank: max_rank,
                lora_experts,
                max_model_len: lower_max_model_len(max_model_len)?,
                max_num_seqs,
                max_num_batched_tokens,
                block_size,
                memory: parse_memory(&memory).map_err(fail("memory"))?,
                kv_offloading_size: lower_kv_offloading(kv_offloading_size, no_enable_prefix_caching)?,
                threads,
                threads_bind: match threads_bind {
                    Some(list) => parse_cpus(&list).map_err(fail("threads-bind"))?,
                    None => Vec::new(),
                },
                seed: seed.unwrap_or(0),
                weights_cache: lower_weights_cache(weights_cache, &weights_cache_size)?,
            },
            scheduling: Scheduling {
                max_waiting,
                async_scheduling: !no_async_scheduling,
                enable_prefix_caching: !no_enable_prefix_caching,
                speculation: lower_speculation(speculative_config.as_deref())?,
            },
            keys,
            limits: AppLimits {
                request,
                keep_alive: (!keep_alive.is_zero()).then_some(keep_alive),
                page: !no_page,
                tokenizer_info: enable_tokenizer_info_endpoint,
                responses: lower_responses(responses)?,
                body_memory: lower_body_memory(&max_body_memory)?,
                ..AppLimits::default()
            },
            place: Place {
                access_log: AccessLog::new(disable_access_log, disable_access_log_for_endpoints)
                    .map_err(fail("disable-access-log-for-endpoints"))?,
                root_path: net::root_path(root_path)?,
            },
            web: WebPolicy { hosts, origins },
            http: HttpLimits {
                idle_timeout: above_zero("keep-alive-timeout", keep_alive_timeout)?,
                ..HttpLimits::default()
            },
            tls: net::tls(tls)?,
            pictures,
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
            adapters,
            shutdown_timeout: seconds("shutdown-timeout", shutdown_timeout)?,
            data: lower_data(data, max_num_seqs)?,
            warnings,
        })
    }
}

/// More than any machine has processors; each has a stack.
const NUM_THREADS_MAX: usize = 4096;

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

/// Smaller models are packed in no time.
const WORTH_CACHING: u64 = 64 << 20;

fn lower_weights_cache(folder: Option<PathBuf>, size: &str) -> Result<Option<WeightsCache>, ConfigError> {
    let max_bytes = parse_bytes(size).map_err(fail("weights-cache-size"))?;
    let (folder, min_bytes) = match folder {
        Some(folder) if folder.as_os_str().is_empty() => {
            return Err(fail("weights-cache")("is empty: give a folder, or off".into()));
        }
        Some(folder) if folder.as_os_str() == "off" => (None, 0),
        Some(folder) => (Some(folder), 0),
        None => (default_weights_cache(), WORTH_CACHING),
    };
    Ok(folder.map(|folder| WeightsCache { folder, max_bytes, min_bytes }))
}

fn lower_kv_offloading(size: Option<String>, no_prefix_cache: bool) -> Result<u64, ConfigError> {
    let flag = "kv-offloading-size";
    let bytes = match size.as_deref().map(|size| (size, size.trim().parse::<f64>())) {
        None => 0,
        // As in vLLM.
        Some((_, Ok(gib))) => lower_gib(flag, gib)? as u64,
        Some((size, Err(_))) => parse_bytes(size).map_err(fail(flag))?,
    };
    if bytes > 0 && no_prefix_cache {
        return Err(fail(flag)("nothing is found there with --no-enable-prefix-caching".into()));
    }
    Ok(bytes)
}

fn lower_body_memory(size: &str) -> Result<usize, ConfigError> {
    let flag = "max-body-memory";
    let bytes = usize::try_from(parse_bytes(size).map_err(fail(flag))?).unwrap_or(usize::MAX);
    // The largest body, twice: it grows by doubling, and short ones have an eighth.
    let least = 2 * AppLimits::default().body_len_max;
    if bytes < least {
        return Err(fail(flag)(format!(
            "must be at least {} MiB, or large requests would never fit",
            least >> 20
        )));
    }
    Ok(bytes)
}

fn lower_responses(args: ResponsesArgs) -> Result<StoreLimits, ConfigError> {
    let ResponsesArgs {
        max_stored_responses,
        max_stored_responses_size,
        stored_responses_age,
        max_background_responses,
    } = args;
    // What a semaphore can count.
    let num_background_max = max_background_responses.min(usize::MAX >> 3);
    Ok(StoreLimits {
        num_responses_max: max_stored_responses,
        bytes_max: parse_bytes(&max_stored_responses_size).map_err(fail("max-stored-responses-size"))?,
        age_max: seconds("stored-responses-age", stored_responses_age)?,
        num_background_max,
    })
}

fn lower_data(args: DataArgs, max_num_seqs: usize) -> Result<DataConfig, ConfigError> {
    let DataArgs { data_dir, max_file_size, max_data_size, max_batch_lines, batch_concurrency } = args;
    let concurrency = batch_concurrency.unwrap_or_else(|| (max_num_seqs / 2).max(1));
    for (flag, value) in [("max-batch-lines", max_batch_lines), ("batch-concurrency", concurrency)] {
        if value == 0 {
            return Err(fail(flag)("must be at least 1".into()));
        }
    }
    Ok(DataConfig {
        dir: data_dir,
        files: FileLimits {
            file_len_max: parse_bytes(&max_file_size).map_err(fail("max-file-size"))?,
            total_len_max: parse_bytes(&max_data_size).map_err(fail("max-data-size"))?,
            ..FileLimits::default()
        },
        batches: BatchLimits { concurrency, num_lines_max: max_batch_lines, ..BatchLimits::default() },
    })
}

fn lower_speculation(text: Option<&str>) -> Result<Speculation, ConfigError> {
    text.map_or(Ok(Speculation::default()), |text| {
        Speculation::parse(text).map_err(fail("speculative-config"))
    })
}

/// `cuda-emulated` is for tests, and in no help.
fn lower_device(text: &str) -> Result<DeviceChoice, ConfigError> {
    let unknown = || fail("device")(format!("`{text}` is none of auto, cpu, cuda, cuda:N"));
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "cuda" => Ok(DeviceChoice::Cuda(0)),
        "cuda-emulated" => Ok(DeviceChoice::CudaEmulated),
        _ => {
            let number = text.strip_prefix("cuda:").ok_or_else(unknown)?;
            number.parse().map(DeviceChoice::Cuda).map_err(|_| unknown())
        }
    }
}

fn parse_all<T: FromStr<Err = String>>(flag: &'static str, texts: &[String]) -> Result<Vec<T>, ConfigError> {
    texts.iter().map(|text| text.trim().parse().map_err(fail(flag))).collect()
}

fn strings(rules: &[impl ToString]) -> Vec<String> {
    rules.iter().map(ToString::to_string).collect()
}

fn lower_gib(flag: &'static str, value: f64) -> Result<usize, ConfigError> {
    let bytes = value * f64::from(1u32 << 30);
    if !(0.0..9e15).contains(&bytes) {
        return Err(fail(flag)(format!("{value} is not a number of GiB")));
    }
    Ok(bytes as usize)
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

fn above_zero(flag: &'static str, value: f64) -> Result<Duration, ConfigError> {
    let duration = seconds(flag, value)?;
    match duration.is_zero() {
        true => Err(fail(flag)("must be above 0".into())),
        false => Ok(duration),
    }
}

/// An address, with or without the brackets that it has in a URL, or a name.
fn listened_on(host: String) -> Result<String, String> {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match inner.filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()) {
        Some(address) => Ok(address.to_owned()),
        None if host.trim().is_empty() => Err("is empty; 0.0.0.0 or :: is every address".into()),
        None => Ok(host),
    }
}
