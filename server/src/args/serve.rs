//! The flags of `serve`, which `plan`, `run-batch` and `bench-engine` take too.

use super::values::{
    ActivationsArg, DTypeArg, GenerationConfigArg, HeadScreeningArg, KvCacheDTypeArg, LoadFormatArg,
    LogFormatArg, MatmulArg, QuantizationArg, WeightLayoutArg,
};
use clap::Args as ClapArgs;
use std::path::PathBuf;

#[derive(Debug, ClapArgs)]
pub struct ServeArgs {
    /// A directory in the Hugging Face format, a GGUF file, or a name on the hub; without one, the small model built into the binary
    #[arg(value_name = "MODEL", env = "PERILUNE_MODEL")]
    pub model: Option<String>,

    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1", env = "PERILUNE_HOST")]
    pub host: String,

    /// Port to listen on; 0 lets the system choose
    // Not from the environment: Kubernetes sets PERILUNE_PORT=tcp://… for a service of that name.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,

    /// Listen on this file instead of address and port, for clients on the same machine (a Unix domain socket)
    #[arg(long, value_name = "PATH", env = "PERILUNE_UDS")]
    pub uds: Option<PathBuf>,

    /// Who may connect to --uds, as permissions to write to a file, in octal
    #[arg(long, value_name = "MODE", default_value = "660", env = "PERILUNE_UDS_PERMISSIONS")]
    pub uds_permissions: String,

    /// The beginning of all paths behind a proxy, such as /models/a; served with and without it
    #[arg(long, value_name = "PATH", env = "PERILUNE_ROOT_PATH")]
    pub root_path: Option<String>,

    /// Names of the model in the API, the first is the canonical one; default: MODEL as given
    #[arg(long, value_name = "NAME", num_args = 1.., env = "PERILUNE_SERVED_MODEL_NAME", value_delimiter = ',')]
    pub served_model_name: Vec<String>,

    /// Where to compute: cpu, cuda, cuda:N for the GPU of that number, or auto for the first GPU if there is one
    #[arg(long, value_name = "DEVICE", default_value = "auto", env = "PERILUNE_DEVICE")]
    pub device: String,

    /// Where a GPU's compiled kernels are kept; default: perilune/kernels in the user's cache folder
    #[arg(long, value_name = "DIR", env = "PERILUNE_KERNEL_CACHE")]
    pub kernel_cache: Option<PathBuf>,

    /// Where packed weights are kept, which the next start maps: a folder, or off. Processor only. Default: perilune/weights in the
    /// user's cache folder, for models of 64 MiB and more
    #[arg(long, value_name = "DIR|off", env = "PERILUNE_WEIGHTS_CACHE")]
    pub weights_cache: Option<PathBuf>,

    /// All packed weights together; the ones that were not used for longest go
    #[arg(long, value_name = "SIZE", default_value = "100GiB", env = "PERILUNE_WEIGHTS_CACHE_SIZE")]
    pub weights_cache_size: String,

    /// Do not capture a GPU's decode steps as graphs: slower, with the same answers
    #[arg(long)]
    pub enforce_eager: bool,

    /// Where libnvrtc is, which compiles kernels, if the system does not find it
    #[arg(long, value_name = "DIR", env = "PERILUNE_NVRTC_DIR")]
    pub nvrtc_dir: Option<PathBuf>,

    /// What multiplies many tokens on a GPU: mma (mma.sync, on every GPU) or wgmma (Hopper alone); auto is mma until wgmma was measured
    #[arg(long, value_enum, default_value = "auto", env = "PERILUNE_GPU_MATMUL")]
    pub gpu_matmul: MatmulArg,

    /// Type of weights that are not quantised
    #[arg(long, value_enum, default_value = "auto", env = "PERILUNE_DTYPE")]
    pub dtype: DTypeArg,

    /// What weights of the decoder that the checkpoint holds as floats are quantised to
    #[arg(long, value_enum, default_value = "auto", env = "PERILUNE_QUANTIZATION")]
    pub quantization: QuantizationArg,

    /// What activations are rounded to before products on a processor. auto: bfloat16 beside bfloat16 weights, with AVX2 whole numbers of 14 bits
    /// beside those that are compact, and int8 beside quantised ones, where the processor has instructions for such products
    #[arg(long, value_enum, default_value = "auto", env = "PERILUNE_ACTIVATIONS")]
    pub activations: ActivationsArg,

    /// The form in which bfloat16 weights of linear layers lie in memory. Compact takes a quarter less; the answers are the same to the bit, but
    /// with AVX2 and rounded activations
    #[arg(long, value_enum, default_value = "auto", env = "PERILUNE_WEIGHT_LAYOUT")]
    pub weight_layout: WeightLayoutArg,

    /// Keep an int8 copy of the output head by which the rows are found that can hold one of the largest logits, and compute only those in full
    /// where no more is looked at: greedy decoding, and top-k up to 64. The answers are the same to the bit
    #[arg(long, value_enum, default_value = "auto", env = "PERILUNE_HEAD_SCREENING")]
    pub head_screening: HeadScreeningArg,

    /// Type of keys and values
    #[arg(long, value_enum, default_value = "auto", env = "PERILUNE_KV_CACHE_DTYPE")]
    pub kv_cache_dtype: KvCacheDTypeArg,

    /// Compute rows of prompts at this position and beyond in the expanded form of latent attention (MLA): faster for
    /// long prompts, but what was generated beyond it is computed again when a follow-up sends it; default: in the absorbed form, as all other rows
    #[arg(long, value_name = "POSITION", env = "PERILUNE_MLA_EXPAND_FROM")]
    pub mla_expand_from: Option<usize>,

    /// Most tokens of prompt and answer together, such as 4096, 32k (32,000) or 32K (32,768); default: what model and memory allow
    #[arg(long, value_name = "TOKENS", env = "PERILUNE_MAX_MODEL_LEN", allow_negative_numbers = true)]
    pub max_model_len: Option<String>,

    /// Most sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 256, env = "PERILUNE_MAX_NUM_SEQS")]
    pub max_num_seqs: usize,

    /// Most tokens computed in one step
    #[arg(long, value_name = "N", default_value = "2048", env = "PERILUNE_MAX_NUM_BATCHED_TOKENS")]
    pub max_num_batched_tokens: String,

    /// Tokens in a block of the KV cache
    #[arg(long, value_name = "N", default_value_t = 16, env = "PERILUNE_BLOCK_SIZE")]
    pub block_size: usize,

    /// All that may be allocated: bytes with a suffix (8GiB, 500MB) or a share of the device's memory (0.7)
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "0.7",
        env = "PERILUNE_MEMORY",
        alias = "gpu-memory-utilization"
    )]
    pub memory: String,

    /// Host memory for KV blocks that lose their places on a GPU, so that a prefix that comes back is copied instead of computed: bytes
    /// with a suffix (64GiB), or a number of GiB; default: none. Where the processor is the device, give --memory more instead
    #[arg(long, value_name = "SIZE", env = "PERILUNE_KV_OFFLOADING_SIZE")]
    pub kv_offloading_size: Option<String>,

    /// Where weights come from
    #[arg(long, value_enum, default_value = "auto", env = "PERILUNE_LOAD_FORMAT")]
    pub load_format: LoadFormatArg,

    /// Keys of which a request must carry one; may be given several times
    #[arg(long, value_name = "KEY", env = "PERILUNE_API_KEY", hide_env_values = true, value_delimiter = ',')]
    pub api_key: Vec<String>,

    /// A file of more such keys, one a line; lines that begin with # are comments. Read again when it changes, and after SIGHUP
    #[arg(long, value_name = "FILE", env = "PERILUNE_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Seed of requests that have none, and of dummy weights; default: a random one
    #[arg(long, value_name = "N", env = "PERILUNE_SEED")]
    pub seed: Option<u64>,

    /// Format of log lines on standard error
    #[arg(long, value_enum, default_value = "text", env = "PERILUNE_LOG_FORMAT")]
    pub log_format: LogFormatArg,

    /// A file of flags: lines `flag-name: value`, or a JSON object; flags on the command line win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// A Jinja file instead of the model's chat template, or alpaca, chameleon, chatml, kimi, llama-2
    #[arg(long, value_name = "FILE", env = "PERILUNE_CHAT_TEMPLATE")]
    pub chat_template: Option<PathBuf>,

    /// How the model writes calls of tools: kimi_k2, hermes, qwen3_coder, seed_oss, minimax_m2, glm45, llama3_json, pythonic, deepseek_v3,
    /// deepseek_v31, mistral, mistral_list, harmony, solar_open; none passes them on as text. Default: told from the chat template
    #[arg(long, value_name = "NAME", env = "PERILUNE_TOOL_CALL_PARSER")]
    pub tool_call_parser: Option<String>,

    /// How the model writes its thinking: kimi, kimi_k2, qwen3, deepseek_v3, deepseek_r1, seed_oss, glm45, minimax_m2, mistral,
    /// harmony, solar_open; none passes it on as text. Default: told from the chat template
    #[arg(long, value_name = "NAME", env = "PERILUNE_REASONING_PARSER")]
    pub reasoning_parser: Option<String>,

    /// Where defaults of sampling parameters come from
    #[arg(long, value_enum, default_value = "auto", env = "PERILUNE_GENERATION_CONFIG")]
    pub generation_config: GenerationConfigArg,

    /// Most sequences that wait to run; more are refused with 429
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1024,
        alias = "max-num-queued",
        alias = "max-num-queued-reqs",
        env = "PERILUNE_MAX_WAITING"
    )]
    pub max_waiting: usize,

    /// What the bodies of all requests may take until their prompts are made, about as parsed; more are refused with 429
    #[arg(long, value_name = "SIZE", default_value = "512MiB", env = "PERILUNE_MAX_BODY_MEMORY")]
    pub max_body_memory: String,

    /// Seconds that running requests have to finish after SIGTERM or Ctrl-C
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30.0,
        allow_negative_numbers = true,
        env = "PERILUNE_SHUTDOWN_TIMEOUT"
    )]
    pub shutdown_timeout: f64,

    /// Seconds of silence after which a stream carries a comment, for proxies; 0 is never
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5.0,
        alias = "sse-ping-interval",
        allow_negative_numbers = true,
        env = "PERILUNE_SSE_KEEP_ALIVE_INTERVAL"
    )]
    pub sse_keep_alive_interval: f64,

    /// Seconds that an idle connection is kept; longer than a proxy in front keeps its own
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 75.0,
        alias = "timeout-keep-alive",
        allow_negative_numbers = true,
        env = "PERILUNE_KEEP_ALIVE_TIMEOUT"
    )]
    pub keep_alive_timeout: f64,

    /// Threads that compute; default: one for each core
    #[arg(long, value_name = "N", env = "PERILUNE_THREADS")]
    pub threads: Option<usize>,

    /// Pin the threads that compute to these CPUs, one each, such as 0-3,8; --threads defaults to their number. Linux only
    #[arg(long, value_name = "CPUS", env = "PERILUNE_THREADS_BIND")]
    pub threads_bind: Option<String>,

    /// Guess the next tokens from earlier text and verify several in one step, for requests that do not say otherwise; JSON such as
    /// {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    #[arg(long, value_name = "JSON", env = "PERILUNE_SPECULATIVE_CONFIG")]
    pub speculative_config: Option<String>,

    /// Schedule and enqueue the next step while a GPU runs one (the default)
    #[arg(long, overrides_with = "no_async_scheduling")]
    pub async_scheduling: bool,

    /// Schedule every step when all is known that the one before it said
    #[arg(long)]
    pub no_async_scheduling: bool,

    /// Find prompts' beginnings in the KV cache (the default)
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,

    /// Compute every prompt from its first token
    #[arg(long)]
    pub no_enable_prefix_caching: bool,

    /// Most pixels of one picture
    #[arg(long, value_name = "N", default_value = "64M", env = "PERILUNE_MAX_IMAGE_PIXELS")]
    pub max_image_pixels: String,

    /// Pixels that pictures are resized to at most, where the model's image processor has such a bound: no more than it says itself
    #[arg(long, value_name = "N", env = "PERILUNE_IMAGE_RESIZE_PIXELS")]
    pub image_resize_pixels: Option<String>,

    /// Most pictures in one request, frames of animations counted
    #[arg(long, value_name = "N", default_value_t = 64, env = "PERILUNE_MAX_IMAGES")]
    pub max_images: usize,

    /// Most frames of an animation that the model is shown, taken evenly
    #[arg(long, value_name = "N", default_value_t = 8, env = "PERILUNE_MAX_VIDEO_FRAMES")]
    pub max_video_frames: usize,

    /// GiB of host memory for pictures that are decoded and resized; 0 keeps none
    #[arg(
        long,
        value_name = "GIB",
        default_value_t = 0.25,
        allow_negative_numbers = true,
        env = "PERILUNE_MM_PROCESSOR_CACHE_GB"
    )]
    pub mm_processor_cache_gb: f64,

    /// Fetch pictures that requests give by http or https address, from any host that is public
    #[arg(long)]
    pub allow_remote_images: bool,

    /// Fetch pictures by address, but only from these hosts, such as example.org or *.example.org
    #[arg(long, value_name = "HOST", num_args = 1.., value_delimiter = ',', env = "PERILUNE_ALLOWED_MEDIA_DOMAINS")]
    pub allowed_media_domains: Vec<String>,

    /// Addresses that are fetched from although they are not public: an address, a range (10.1.2.0/24), or an address with a port
    #[arg(long, value_name = "ADDRESS", num_args = 1.., value_delimiter = ',', env = "PERILUNE_ALLOWED_MEDIA_ADDRESSES")]
    pub allowed_media_addresses: Vec<String>,

    /// A file of certificates in PEM: hosts with https must be vouched for by one of them, and by no public authority
    #[arg(long, value_name = "FILE", env = "PERILUNE_MEDIA_CA_FILE")]
    pub media_ca_file: Option<PathBuf>,

    /// Seconds that a remote picture may take to arrive
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5.0,
        allow_negative_numbers = true,
        env = "PERILUNE_IMAGE_FETCH_TIMEOUT"
    )]
    pub image_fetch_timeout: f64,

    /// Most answers to one prompt
    #[arg(long, value_name = "N", default_value_t = 128, env = "PERILUNE_MAX_N")]
    pub max_n: usize,

    /// Tell at /tokenizer_info what the tokenizer calls its special tokens, and the chat template: evaluation harnesses ask for it
    #[arg(long)]
    pub enable_tokenizer_info_endpoint: bool,

    /// Serve no page at `/`, only the API
    #[arg(long)]
    pub no_page: bool,

    /// No line in the log for each request
    #[arg(long, alias = "disable-uvicorn-access-log")]
    pub disable_access_log: bool,

    /// No line in the log for requests of these paths, besides probes and metrics, such as /v1/models
    #[arg(long, value_name = "PATH", num_args = 1.., value_delimiter = ',', env = "PERILUNE_DISABLE_ACCESS_LOG_FOR_ENDPOINTS")]
    pub disable_access_log_for_endpoints: Vec<String>,

    /// Web pages that may use the API from a browser: origins such as https://chat.example.org, or *. Default: none but the server's own
    #[arg(long, value_name = "ORIGIN", num_args = 1.., value_delimiter = ',', env = "PERILUNE_ALLOWED_ORIGINS")]
    pub allowed_origins: Vec<String>,

    /// Names that requests may call the server by, such as chat.example.org, or *; besides addresses, localhost, *.local and *.internal.
    /// Default: no other on a loopback address without --api-key, any elsewhere
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',', env = "PERILUNE_ALLOWED_HOSTS")]
    pub allowed_hosts: Vec<String>,

    #[command(flatten)]
    pub tls: TlsArgs,

    #[command(flatten)]
    pub lora: LoraArgs,

    #[command(flatten)]
    pub responses: ResponsesArgs,

    #[command(flatten)]
    pub data: DataArgs,

    /// Print what the flags mean, as JSON, and exit
    #[arg(long)]
    pub print_config: bool,

    /// Flags of vLLM that change nothing here, so that copied commands start
    #[command(flatten)]
    pub harmless: HarmlessArgs,
}

/// HTTPS.
#[derive(Debug, ClapArgs)]
pub struct TlsArgs {
    /// Serve HTTPS with this certificate: a file in PEM, with the certificates behind it that lead to an authority. All these files are read again
    /// when they change, and after SIGHUP
    #[arg(long, value_name = "FILE", visible_alias = "ssl-cert-file", env = "PERILUNE_SSL_CERTFILE")]
    pub ssl_certfile: Option<PathBuf>,

    /// The certificate's private key, in PEM (PKCS #8, PKCS #1 or SEC 1), not encrypted; default: in the file of the certificate
    #[arg(long, value_name = "FILE", visible_alias = "ssl-key-file", env = "PERILUNE_SSL_KEYFILE")]
    pub ssl_keyfile: Option<PathBuf>,

    /// Serve only clients that show a certificate of one of these authorities: a file in PEM
    #[arg(long, value_name = "FILE", env = "PERILUNE_SSL_CA_CERTS")]
    pub ssl_ca_certs: Option<PathBuf>,

    /// Whether clients show a certificate: 0 no, 1 if they like, 2 they must; default: 2 with --ssl-ca-certs, else 0
    #[arg(long, value_name = "N", env = "PERILUNE_SSL_CERT_REQS")]
    pub ssl_cert_reqs: Option<u8>,
}

/// Adapters that are served beside the model.
#[derive(Debug, ClapArgs)]
pub struct LoraArgs {
    /// Take LoRA adapters: memory is set aside for them
    #[arg(long)]
    pub enable_lora: bool,

    /// Adapters that are served from the start: NAME=PATH, or {"name": …, "path": …, "base_model_name": …}
    #[arg(long, value_name = "NAME=PATH", num_args = 1..)]
    pub lora_modules: Vec<String>,

    /// Most adapters that may be in one step; default: as many as --lora-modules, and at least 1
    #[arg(long, value_name = "N", env = "PERILUNE_MAX_LORAS")]
    pub max_loras: Option<usize>,

    /// Most adapters that requests may name: those that are not among --max-loras stay in the host's memory until they are asked for;
    /// default: as many as --max-loras
    #[arg(long, value_name = "N", env = "PERILUNE_MAX_CPU_LORAS")]
    pub max_cpu_loras: Option<usize>,

    /// Largest rank of an adapter; default: 16
    #[arg(long, value_name = "R", env = "PERILUNE_MAX_LORA_RANK")]
    pub max_lora_rank: Option<usize>,

    /// Take adapters of single experts as well: memory is set aside for them, much for a model of many experts
    #[arg(long)]
    pub lora_experts: bool,

    /// Let requests load and unload adapters; needs --lora-root
    #[arg(long)]
    pub enable_runtime_lora_updating: bool,

    /// The folder in which adapters lie that requests may load
    #[arg(long, value_name = "DIR", env = "PERILUNE_LORA_ROOT")]
    pub lora_root: Option<PathBuf>,
}

/// What is kept in memory of /v1/responses, the oldest out first.
#[derive(Debug, ClapArgs)]
pub struct ResponsesArgs {
    /// Most responses that are kept; 0 keeps none
    #[arg(long, value_name = "N", default_value_t = 1024, env = "PERILUNE_MAX_STORED_RESPONSES")]
    pub max_stored_responses: usize,

    /// All responses that are kept together, with what they answer
    #[arg(long, value_name = "SIZE", default_value = "256MiB", env = "PERILUNE_MAX_STORED_RESPONSES_SIZE")]
    pub max_stored_responses_size: String,

    /// Seconds that a response is kept
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 86400.0,
        allow_negative_numbers = true,
        env = "PERILUNE_STORED_RESPONSES_AGE"
    )]
    pub stored_responses_age: f64,

    /// Most responses that are made in the background at once; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 64, env = "PERILUNE_MAX_BACKGROUND_RESPONSES")]
    pub max_background_responses: usize,
}

/// What is kept on disk.
#[derive(Debug, ClapArgs)]
pub struct DataArgs {
    /// A folder for files and batches; without one, /v1/files and /v1/batches say so
    #[arg(long, value_name = "DIR", env = "PERILUNE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,

    /// Largest file that may be uploaded
    #[arg(long, value_name = "SIZE", default_value = "200MiB", env = "PERILUNE_MAX_FILE_SIZE")]
    pub max_file_size: String,

    /// All files together
    #[arg(long, value_name = "SIZE", default_value = "10GiB", env = "PERILUNE_MAX_DATA_SIZE")]
    pub max_data_size: String,

    /// Most lines of a batch
    #[arg(long, value_name = "N", default_value_t = 50_000, env = "PERILUNE_MAX_BATCH_LINES")]
    pub max_batch_lines: usize,

    /// Lines of batches that run at once; default: half of --max-num-seqs
    #[arg(long, value_name = "N", env = "PERILUNE_BATCH_CONCURRENCY")]
    pub batch_concurrency: Option<usize>,
}

#[derive(Debug, ClapArgs)]
pub struct HarmlessArgs {
    #[arg(long, hide = true)]
    pub trust_remote_code: bool,
    #[arg(long, hide = true)]
    pub disable_log_requests: bool,
    #[arg(long, hide = true)]
    pub no_enable_log_requests: bool,
    #[arg(long, hide = true)]
    pub disable_log_stats: bool,
    #[arg(long, hide = true)]
    pub enable_chunked_prefill: bool,
    #[arg(long, hide = true)]
    pub disable_frontend_multiprocessing: bool,
    #[arg(long, hide = true)]
    pub enable_auto_tool_choice: bool,
    #[arg(long, hide = true)]
    pub enable_ssl_refresh: bool,
}

impl HarmlessArgs {
    pub fn given(&self) -> Vec<&'static str> {
        let HarmlessArgs {
            trust_remote_code,
            disable_log_requests,
            no_enable_log_requests,
            disable_log_stats,
            enable_chunked_prefill,
            disable_frontend_multiprocessing,
            enable_auto_tool_choice,
            enable_ssl_refresh,
        } = self;
        let flags = [
            (*trust_remote_code, "--trust-remote-code"),
            (*disable_log_requests, "--disable-log-requests"),
            (*no_enable_log_requests, "--no-enable-log-requests"),
            (*disable_log_stats, "--disable-log-stats"),
            (*enable_chunked_prefill, "--enable-chunked-prefill"),
            (*disable_frontend_multiprocessing, "--disable-frontend-multiprocessing"),
            (*enable_auto_tool_choice, "--enable-auto-tool-choice"),
            (*enable_ssl_refresh, "--enable-ssl-refresh"),
        ];
        flags.into_iter().filter(|(given, _)| *given).map(|(_, name)| name).collect()
    }
}
