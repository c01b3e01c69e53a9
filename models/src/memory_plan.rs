//! What fits into memory, as it is told and as the scheduler takes it.

use crate::DoesNotFit;
use crate::bytes::Bytes;
use crate::parts::WeightLayout;
use scheduler::SchedulerConfig;
use serde::Serialize;
use std::fmt;

/// Rows of embeddings in a block of the image cache.
pub(crate) const IMAGE_ROWS_PER_BLOCK: usize = 16;
/// Sequences that may wait, unless the caller sets another number.
const MAX_WAITING: usize = 8192;

/// What fits, and where the memory goes. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub architecture: String,
    /// Of weights that are not quantised.
    pub dtype: &'static str,
    /// What most weights are quantised to, such as `int4`.
    pub quantization: Option<&'static str>,
    /// What activations are rounded to before products with most weights, such as `int8`.
    pub activations: &'static str,
    /// `compact` where weights in bf16 are kept in 12 bits, else `plain`.
    pub weight_layout: &'static str,
    /// Whether an int8 copy of the output head is kept, by which it is screened.
    pub head_screening: bool,
    pub kv_cache_dtype: &'static str,
    pub num_parameters: u64,
    pub memory: MemoryPlan,
    /// Of packed weights that are kept on disk for the next start, beside a header; 0: none are.
    pub weights_cache_bytes: u64,
    pub kv_bytes_per_token: u64,
    pub max_model_len: usize,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub block_size: usize,
    pub num_blocks: usize,
    /// Blocks in the host's memory for those that lost their places, and their bytes.
    pub num_host_blocks: usize,
    pub kv_offload_bytes: u64,
    /// Rows of prompts from this position on go through latent attention in its expanded form.
    pub mla_expand_from: Option<usize>,
    pub images: Option<ImagePlan>,
    /// How many sequences of a length run at the same time.
    pub concurrency: Vec<Concurrency>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// All that may be allocated.
    pub limit: u64,
    pub weights: u64,
    pub vision_weights: u64,
    pub position_tables: u64,
    pub activations: u64,
    pub logits: u64,
    pub vision_buffers: u64,
    /// Adapters, each as large as they may be, and the buffers of a step's.
    pub adapters: u64,
    pub image_cache: u64,
    /// Weights and buffers of what makes pictures tokens, where the limit is of the host's memory. Beside a GPU it is in that as well, and not counted.
    pub picture_encoder: u64,
    pub kv_cache: u64,
    /// Blocks that lost their places, where the limit is of the host's memory. Beside a GPU they are in that as well ([`Plan::kv_offload_bytes`]), and not
    /// counted.
    pub kv_offload: u64,
    /// Between tensors in a GPU's memory, at most.
    pub padding: u64,
    /// The sum of all these but the limit.
    pub total: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ImagePlan {
    /// Of the largest picture that the image processor makes.
    pub max_patches: usize,
    pub max_tokens: usize,
    pub rows_per_block: usize,
    pub num_blocks: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Concurrency {
    pub context_len: usize,
    pub sequences: usize,
}

impl ImagePlan {
    /// Of the image cache.
    pub(crate) fn cache_rows(&self) -> usize {
        self.num_blocks * self.rows_per_block
    }
}

impl MemoryPlan {
    pub(crate) fn with_kv_cache(self, kv_cache: u64) -> Self {
        let total = self.weights
            + self.vision_weights
            + self.position_tables
            + self.activations
            + self.logits
            + self.vision_buffers
            + self.adapters
            + self.image_cache
            + self.picture_encoder
            + self.kv_offload
            + self.padding
            + kv_cache;
        Self { kv_cache, total, ..self }
    }

    pub(crate) fn does_not_fit(&self, max_model_len: usize) -> DoesNotFit {
        let weights = self.weights + self.vision_weights;
        DoesNotFit {
            limit: self.limit,
            needed: self.total,
            weights,
            workspace: self.total - weights - self.kv_cache,
            kv_cache: self.kv_cache,
            max_model_len,
        }
    }
}

impl Plan {
    /// What the scheduler has to keep. The caller may change what costs no memory: `max_waiting`, `async_scheduling`,
    /// `enable_prefix_caching`.
    pub fn scheduler_config(&self) -> SchedulerConfig {
        let images = self.images;
        SchedulerConfig {
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            num_host_blocks: self.num_host_blocks,
            max_model_len: self.max_model_len,
            max_batched_tokens: self.max_num_batched_tokens,
            max_running: self.max_num_seqs,
            max_waiting: MAX_WAITING,
            image_rows_per_block: IMAGE_ROWS_PER_BLOCK,
            num_image_blocks: images.map_or(0, |images| images.num_blocks),
            max_encode_patches: images.map_or(0, |images| images.max_patches),
            // For a device that works by itself to turn on.
            encode_ahead: false,
            async_scheduling: true,
            enable_prefix_caching: true,
            // Where every row has one form of attention, a generated block equals a prompt's.
            share_decoded_below: self.mla_expand_from.unwrap_or(usize::MAX),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters = self.num_parameters as f64 / 1e9;
        write!(f, "{}, {parameters:.3} B parameters, {}", self.architecture, self.dtype)?;
        if let Some(quantization) = self.quantization {
            write!(f, ", {quantization}")?;
        }
        write!(f, ", activations in {}", self.activations)?;
        if self.weight_layout != WeightLayout::Plain.name() {
            write!(f, ", {} weights", self.weight_layout)?;
        }
        if self.head_screening {
            write!(f, ", screened head")?;
        }
        writeln!(f)?;
        let m = &self.memory;
        let rows = [
            ("weights", m.weights),
            ("vision weights", m.vision_weights),
            ("position tables", m.position_tables),
            ("activations", m.activations),
            ("logits", m.logits),
            ("vision buffers", m.vision_buffers),
            ("adapters", m.adapters),
            ("image cache", m.image_cache),
            ("picture encoder", m.picture_encoder),
            ("KV cache", m.kv_cache),
            ("KV offload", m.kv_offload),
            ("padding", m.padding),
            ("total", m.total),
            ("limit", m.limit),
        ];
        for (name, bytes) in rows.into_iter().filter(|(_, bytes)| *bytes > 0) {
            writeln!(f, "  {name:<18}{:>12}{bytes:>18} bytes", Bytes(bytes).to_string())?;
        }
        if self.weights_cache_bytes > 0 {
            let bytes = self.weights_cache_bytes;
            let name = "on disk: weights";
            writeln!(f, "  {name:<18}{:>12}{bytes:>18} bytes", Bytes(bytes).to_string())?;
        }
        if self.kv_offload_bytes > m.kv_offload {
            let bytes = self.kv_offload_bytes;
            let name = "on the host: KV";
            writeln!(f, "  {name:<18}{:>12}{bytes:>18} bytes", Bytes(bytes).to_string())?;
        }
        writeln!(
            f,
            "  {} KV blocks of {} tokens in {}: {} bytes a token, {} a block; contexts up to {} tokens",
            self.num_blocks,
            self.block_size,
            self.kv_cache_dtype,
            self.kv_bytes_per_token,
            self.kv_bytes_per_token * self.block_size as u64,
            self.max_model_len
        )?;
        if self.num_host_blocks > 0 {
            let tokens = self.num_host_blocks * self.block_size;
            writeln!(
                f,
                "  {} more in the host's memory, {tokens} tokens, for what loses its place",
                self.num_host_blocks
            )?;
        }
        writeln!(f, "  sequences at the same time:")?;
        for Concurrency { context_len, sequences } in &self.concurrency {
            writeln!(f, "  {context_len:>10} tokens each {sequences:>8}")?;
        }
        Ok(())
    }
}
