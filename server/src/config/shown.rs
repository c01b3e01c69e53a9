//! What `--print-config` prints.

use super::{Config, media, net, strings};
use crate::adapters::{AdapterModule, Root};
use crate::app::Place;
use crate::http::ListenOn;
use crate::openai::responses::store::StoreLimits;
use crate::web::Origins;
use serde_json::{Value, json};

impl Config {
    /// For `--print-config`. Keys are counted, not shown.
    pub fn to_json(&self) -> Value {
        let Config {
            model,
            listen,
            served_names,
            load,
            scheduling,
            keys,
            limits,
            place,
            web,
            http,
            tls,
            pictures,
            seed,
            log_format,
            chat_template,
            parsers,
            defaults,
            adapters,
            shutdown_timeout,
            data,
            warnings,
        } = self;
        let weights_cache = load.weights_cache.as_ref();
        let StoreLimits { num_responses_max, bytes_max, age_max, num_background_max } = limits.responses;
        let Place { access_log, root_path } = place;
        let (host, port, uds, permissions) = match listen {
            ListenOn::Tcp { host, port } => (Some(host), Some(port), None, None),
            ListenOn::Unix { path, mode } => (None, None, Some(path), Some(format!("{mode:o}"))),
        };
        let entries = [
            ("model", json!(model)),
            ("host", json!(host)),
            ("port", json!(port)),
            ("uds", json!(uds)),
            ("uds_permissions", json!(permissions)),
            ("root_path", json!(root_path)),
            ("served_model_name", json!(served_names)),
            ("load_format", json!(format!("{:?}", load.load_format))),
            ("dtype", json!(format!("{:?}", load.dtype))),
            ("quantization", json!(format!("{:?}", load.quantization))),
            ("max_model_len", json!(load.max_model_len)),
            ("max_num_seqs", json!(load.max_num_seqs)),
            ("max_num_batched_tokens", json!(load.max_num_batched_tokens)),
            ("block_size", json!(load.block_size)),
            ("memory", json!(format!("{:?}", load.memory))),
            ("kv_offloading_size", json!(load.kv_offloading_size)),
            ("threads", json!(load.threads)),
            ("max_waiting", json!(scheduling.max_waiting)),
            ("enable_prefix_caching", json!(scheduling.enable_prefix_caching)),
            ("api_key", json!(format!("{keys:?}"))),
            ("allowed_origins", origins_json(&web.origins)),
            ("allowed_hosts", json!(web.hosts)),
            ("max_n", json!(limits.request.n_max)),
            ("body_len_max", json!(limits.body_len_max)),
            ("max_body_memory", json!(limits.body_memory)),
            ("sse_keep_alive_interval", json!(limits.keep_alive.map_or(0.0, |period| period.as_secs_f64()))),
            ("page", json!(limits.page)),
            ("disable_access_log", json!(access_log.is_off)),
            ("disable_access_log_for_endpoints", json!(access_log.quiet)),
            ("keep_alive_timeout", json!(http.idle_timeout.as_secs_f64())),
            ("tls", net::tls_json(tls.as_ref())),
            ("max_connections", json!(http.max_connections)),
            ("max_image_pixels", json!(pictures.limits.max_pixels)),
            ("image_resize_pixels", json!(load.image_resize_pixels)),
            ("max_images", json!(pictures.max_pictures)),
            ("max_video_frames", json!(pictures.limits.max_frames)),
            ("mm_processor_cache_bytes", json!(pictures.cache_bytes)),
            ("remote_images", json!(media::hosts_json(&pictures.remote.hosts))),
            ("allowed_media_addresses", json!(strings(&pictures.remote.addresses))),
            ("media_authorities", json!(media::authorities_json(&pictures.remote.authorities))),
            ("image_fetch_timeout", json!(pictures.remote.timeout.as_secs_f64())),
            ("seed", json!(seed)),
            ("log_format", json!(format!("{log_format:?}"))),
            ("chat_template", json!(chat_template)),
            ("parsers", json!(format!("{parsers:?}"))),
            ("generation_config", json!(format!("{defaults:?}"))),
            ("shutdown_timeout", json!(shutdown_timeout.as_secs_f64())),
            ("data_dir", json!(data.dir)),
            ("max_file_size", json!(data.files.file_len_max)),
            ("max_data_size", json!(data.files.total_len_max)),
            ("max_batch_lines", json!(data.batches.num_lines_max)),
            ("batch_concurrency", json!(data.batches.concurrency)),
            ("warnings", json!(warnings)),
            ("enable_tokenizer_info_endpoint", json!(limits.tokenizer_info)),
            ("kv_cache_dtype", json!(format!("{:?}", load.kv_cache_dtype))),
            ("mla_expand_from", json!(load.mla_expand_from)),
            ("activations", json!(format!("{:?}", load.activations))),
            ("weight_layout", json!(format!("{:?}", load.weight_layout))),
            ("head_screening", json!(format!("{:?}", load.head_screening))),
            ("threads_bind", json!(load.threads_bind)),
            ("device", json!(format!("{:?}", load.device))),
            ("kernel_cache", json!(load.kernels.cache)),
            ("weights_cache", json!(weights_cache.map(|cache| &cache.folder))),
            ("weights_cache_size", json!(weights_cache.map(|cache| cache.max_bytes))),
            ("speculative_config", json!(scheduling.speculation.to_json())),
            ("async_scheduling", json!(scheduling.async_scheduling)),
            ("graphs", json!(load.graphs)),
            ("nvrtc_dir", json!(load.kernels.nvrtc)),
            ("gpu_matmul", json!(format!("{:?}", load.kernels.matmul))),
            ("max_stored_responses", json!(num_responses_max)),
            ("max_stored_responses_size", json!(bytes_max)),
            ("stored_responses_age", json!(age_max.as_secs_f64())),
            ("max_loras", json!(load.max_loras)),
            ("max_cpu_loras", json!(adapters.max_cpu_loras)),
            ("max_lora_rank", json!(load.max_lora_rank)),
            ("lora_experts", json!(load.lora_experts)),
            ("lora_modules", lora_modules(&adapters.modules)),
            ("lora_root", json!(adapters.root.as_ref().map(Root::path))),
            ("max_background_responses", json!(num_background_max)),
        ];
        entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
    }
}

fn origins_json(origins: &Origins) -> Value {
    match origins {
        Origins::None => json!([]),
        Origins::Any => json!(["*"]),
        Origins::Listed(origins) => json!(origins),
    }
}

/// Names and paths.
fn lora_modules(modules: &[AdapterModule]) -> Value {
    modules.iter().map(|module| (module.name.clone(), json!(module.path))).collect()
}
