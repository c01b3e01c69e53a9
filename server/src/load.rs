//! From a model's files to a [`LoadedModel`], with a line in the log for each tenth of the weights.

use crate::adapters::{AdapterSupport, Prepare, Prepared};
use crate::engine_thread::AdapterHooks;
use crate::exit_code::{EXIT_LOAD, EXIT_MEMORY, EXIT_USAGE};
use crate::serve::LoadedModel;
use models::lora::{Adapter, AdapterSpec};
use models::{CacheUse, DeviceRunner, LoadError, LoadOptions, Loaded, ModelFiles, PendingWrite, Progress};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// When newly packed weights are written for the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteCache {
    /// Before anything else: the process may be gone soon.
    Now,
    /// While the model is served.
    Beside,
}

pub fn load(
    files: &ModelFiles,
    options: &LoadOptions,
    write: WriteCache,
) -> Result<LoadedModel<DeviceRunner>, LoadError> {
    let start = Instant::now();
    let mut tenths = 0;
    let mut report = |Progress { bytes_done, bytes_total }: Progress| {
        let now = bytes_done.saturating_mul(10) / bytes_total.max(1);
        if now > tenths && bytes_total >= WORTH_A_LINE {
            tenths = now;
            tracing::info!(percent = now * 10, gib = gib(bytes_done), "loading weights");
        }
    };
    let loaded = models::load(files, options, &mut report)?;
    let Loaded {
        runner,
        adapters,
        info,
        image_processor,
        scheduler_config,
        plan,
        generation_defaults,
        cache_use,
        num_mtp_tensors,
        not_compact,
    } = loaded;
    if let Some(reason) = not_compact {
        tracing::warn!(%reason, "weights are plain, and were read twice; --weight-layout plain reads them once");
    }
    tracing::info!(
        device = ?runner.device(),
        architecture = info.architecture,
        dtype = info.dtype,
        quantization = info.quantization,
        activations = info.activations,
        weight_layout = info.weight_layout,
        parameters = info.num_parameters,
        weights_gib = gib(plan.memory.weights + plan.memory.vision_weights),
        total_gib = gib(plan.memory.total),
        seconds = format!("{:.2}", start.elapsed().as_secs_f64()),
        "loaded the model"
    );
    if num_mtp_tensors > 0 {
        tracing::info!(
            tensors = num_mtp_tensors,
            "left out the layers that predict more than one token (MTP), which are not used"
        );
    }
    let full_len = scheduler_config.max_model_len.div_ceil(scheduler_config.block_size);
    tracing::info!(
        kv_gib = gib(plan.memory.kv_cache),
        blocks = scheduler_config.num_blocks,
        block_size = scheduler_config.block_size,
        max_model_len = scheduler_config.max_model_len,
        full_length_sequences = format!("{:.1}", scheduler_config.num_blocks as f64 / full_len.max(1) as f64),
        "allocated the KV cache"
    );
    if plan.num_host_blocks > 0 {
        tracing::info!(
            gib = gib(plan.kv_offload_bytes),
            blocks = plan.num_host_blocks,
            "host memory for KV blocks that lose their places"
        );
    }
    if plan.memory.kv_offload > 0 {
        tracing::warn!(
            "--kv-offloading-size on the processor takes memory from the KV cache, which is faster: give --memory more instead"
        );
    }
    keep(cache_use, write);
    let device_bytes = runner.allocated_bytes();
    Ok(LoadedModel {
        kv_block_bytes: plan.kv_bytes_per_token * plan.block_size as u64,
        device: format!(
            "{:?}, activations in {}, {} weights",
            runner.device(),
            info.activations,
            info.weight_layout
        ),
        device_bytes,
        runner,
        adapters: adapters.map(adapter_support),
        info,
        image_processor,
        scheduler_config,
        generation: generation_defaults,
    })
}

fn adapter_support(spec: Arc<AdapterSpec>) -> AdapterSupport<DeviceRunner> {
    let prepare: Prepare = Arc::new(move |folder| prepare_adapter(folder, &spec));
    let hooks = AdapterHooks {
        add: |runner: &mut DeviceRunner, id, content| {
            let adapter = content.downcast_ref::<Adapter>().expect("what was prepared for this model");
            runner.add_adapter(id, adapter).map_err(|error| error.to_string())
        },
        remove: DeviceRunner::remove_adapter,
    };
    AdapterSupport { prepare, hooks }
}

fn prepare_adapter(folder: &Path, spec: &AdapterSpec) -> Result<Prepared, String> {
    let adapter = Adapter::read(folder, spec).map_err(|error| error.to_string())?;
    let (rank, bytes) = (adapter.rank(), adapter.bytes());
    Ok(Prepared { content: Box::new(adapter), rank, bytes, digest: digest(folder)? })
}

/// Of the two files that an adapter is.
fn digest(folder: &Path) -> Result<[u8; 32], String> {
    let mut hasher = blake3::Hasher::new();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let path = folder.join(name);
        let bytes = std::fs::read(&path);
        hasher.update(&bytes.map_err(|error| format!("failed to read {}: {error}", path.display()))?);
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Says what the cache of packed weights was good for, and has it written. A cache that cannot be written costs the next start time and
/// nothing else: one warning.
pub fn keep(cache_use: CacheUse, when: WriteCache) {
    match cache_use {
        CacheUse::None => {}
        CacheUse::Mapped { path, bytes } => {
            tracing::info!(path = ?path, gib = gib(bytes), "mapped packed weights");
        }
        CacheUse::Packed { write, rejected } => {
            if let Some(reason) = rejected {
                tracing::warn!(reason, "packed weights on disk were not used; they are written anew");
            }
            match when {
                WriteCache::Now => write_cache(write),
                WriteCache::Beside => {
                    let thread = std::thread::Builder::new().name("weights-cache".into());
                    if let Err(error) = thread.spawn(move || write_cache(write)) {
                        tracing::warn!(%error, "failed to keep packed weights");
                    }
                }
            }
        }
    }
}

fn write_cache(write: PendingWrite) {
    let start = Instant::now();
    match write.run() {
        Ok(written) => tracing::info!(
            path = ?written.path,
            gib = gib(written.bytes),
            removed = written.removed,
            seconds = format!("{:.2}", start.elapsed().as_secs_f64()),
            "kept packed weights for the next start"
        ),
        Err(error) => {
            tracing::warn!(%error, "failed to keep packed weights; the next start packs them again");
        }
    }
}

/// Smaller models are there before anyone could read the line.
const WORTH_A_LINE: u64 = 256 << 20;

fn gib(bytes: u64) -> String {
    format!("{:.3}", bytes as f64 / (1u64 << 30) as f64)
}

/// What kind of failure a supervisor is told of.
pub fn exit_code(error: &LoadError) -> u8 {
    match error {
        LoadError::DoesNotFit(_) | LoadError::Refused { .. } => EXIT_MEMORY,
        LoadError::Option { .. } => EXIT_USAGE,
        _ => EXIT_LOAD,
    }
}
