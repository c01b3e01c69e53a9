//! What a model needs, before any of its weights is read: every buffer is a closed formula of the configuration and the options,
//! and loading allocates exactly these bytes.
//!
//! ```text
//! limit ─ weights ─ tables ─ buffers of a step ─ pictures = what is left for KV blocks
//! ```

use crate::config::{DecoderConfig, ExpertNames, ModelConfig};
use crate::decoder::Decoder;
use crate::input::{InputLimits, StepInput};
use crate::kv_cache::KvCache;
use crate::lora::{AdapterLimits, AdapterSpec, LoraBuffers, LoraLimits, Loras};
use crate::memory_plan::{Concurrency, IMAGE_ROWS_PER_BLOCK, ImagePlan, MemoryPlan, Plan};
use crate::parts::published_name;
use crate::sampler::DeviceSampler;
use crate::scratch::{Scratch, StepLimits, logit_rows};
use crate::storage::Storage;
use crate::vision::VisionShape;
use crate::vision_parts::VisionSize;
use crate::{KvCacheDTypeChoice, LoadError, LoadFormat, LoadOptions};
use kernels::ops::KvType;
use kernels::{DType, Device, Indices};

/// Beyond these is a mistake: sizes are computed from them before they are compared with the memory that there is.
const MAX_LORAS: usize = 1 << 12;
const MAX_LORA_RANK: usize = 1 << 12;

/// Everything that sizes depend on.
pub(crate) struct Request<'a> {
    pub config: &'a ModelConfig,
    pub vision: Option<&'a VisionShape>,
    /// The processor that encodes pictures, where they are tokens.
    pub host: Option<&'a Device>,
    pub options: &'a LoadOptions,
    pub device: &'a Device,
    /// The memory limit in bytes.
    pub limit: u64,
    pub storage: &'a Storage,
    /// The model's files are in this program.
    pub is_embedded: bool,
}

impl Request<'_> {
    /// Of the KV cache.
    pub fn kv_type(&self) -> KvType {
        match self.options.kv_cache_dtype {
            KvCacheDTypeChoice::Auto => KvType::Float(self.storage.float),
            KvCacheDTypeChoice::F32 => KvType::Float(DType::F32),
            KvCacheDTypeChoice::BF16 => KvType::Float(DType::BF16),
            KvCacheDTypeChoice::F16 => KvType::Float(DType::F16),
            KvCacheDTypeChoice::Int8 => KvType::Int8,
        }
    }

    pub fn limits(&self, max_model_len: usize) -> StepLimits {
        StepLimits {
            num_tokens: self.options.max_num_batched_tokens,
            context_len: max_model_len,
            cache: self.storage.float,
        }
    }

    pub fn input_limits(&self, max_model_len: usize) -> InputLimits {
        InputLimits {
            num_tokens: self.options.max_num_batched_tokens,
            num_axes: self.config.decoder.rope.num_axes(),
            num_items: self.options.max_num_seqs * self.segments_per_item(),
            num_blocks: self.blocks(max_model_len),
            head_rows: logit_rows(&self.config.decoder, self.options.max_num_batched_tokens),
        }
    }

    /// Where rows have two forms, an item has up to three parts: before the first expanded row, those, and what was generated.
    fn segments_per_item(&self) -> usize {
        if self.config.decoder.expand_from().is_some() { 3 } else { 1 }
    }

    /// All but the KV cache.
    fn fixed(&self, max_model_len: usize) -> MemoryPlan {
        let decoder = &self.config.decoder;
        let limits = self.limits(max_model_len);
        let vision = self.vision_size();
        let num_levels = self.vision.map_or(0, |vision| vision.num_levels);
        let images = self.images();
        let images =
            images.map_or(0, |images| image_bytes(self.device, &images, num_levels * decoder.hidden_size));
        let weights = Decoder::size(decoder, self.storage);
        let tensors = weights.tensors + vision.tensors + KvCache::num_tensors(decoder) + Scratch::NUM_TENSORS;
        // Of what pictures are kept in, `Scratch` counts the first level.
        let tensors = tensors + 2 * num_levels.saturating_sub(1) as u64;
        let (adapters, adapter_tensors) = self.adapter_size();
        let tensors = tensors + adapter_tensors;
        let plan = MemoryPlan {
            limit: self.limit,
            weights: weights.bytes,
            vision_weights: vision.weight_bytes,
            position_tables: Decoder::rope_bytes(decoder, max_model_len),
            activations: Scratch::activation_bytes(self.device, decoder, &limits)
                + StepInput::bytes(self.device, &self.input_limits(max_model_len))
                + self.device.scratch_bytes(),
            logits: Scratch::logits_bytes(decoder, &limits)
                + Decoder::screen_bytes(decoder, self.storage)
                + DeviceSampler::bytes(
                    self.device,
                    logit_rows(decoder, limits.num_tokens),
                    decoder.vocab_size,
                ),
            vision_buffers: vision.buffer_bytes,
            adapters,
            image_cache: images,
            picture_encoder: self.picture_encoder(),
            kv_cache: 0,
            kv_offload: match self.device {
                Device::Cpu(_) => self.kv_offload_bytes(),
                Device::Cuda(_) => 0,
            },
            padding: self.device.padding_bytes(tensors),
            total: 0,
        };
        plan.with_kv_cache(0)
    }

    /// What adapters may be, where there is room for some.
    pub fn adapter_spec(&self) -> Option<AdapterSpec> {
        let LoadOptions { max_loras, max_lora_rank: max_rank, lora_experts: experts, .. } = *self.options;
        (max_loras > 0).then(|| AdapterSpec::new(&self.config.decoder, AdapterLimits { max_rank, experts }))
    }

    pub fn lora_limits(&self) -> LoraLimits {
        let LoadOptions { max_loras, max_num_batched_tokens, .. } = *self.options;
        let logit_rows = logit_rows(&self.config.decoder, max_num_batched_tokens);
        LoraLimits { max_loras, num_tokens: max_num_batched_tokens, logit_rows }
    }

    /// Bytes and tensors.
    fn adapter_size(&self) -> (u64, u64) {
        let Some(spec) = self.adapter_spec() else { return (0, 0) };
        let (limits, buffers) = (self.lora_limits(), LoraBuffers::NUM_TENSORS);
        let slots = Loras::size(self.device, &spec, limits);
        (slots.bytes + LoraBuffers::bytes(&spec, limits), slots.tensors + buffers)
    }

    fn picture_encoder(&self) -> u64 {
        match (&self.config.codes, self.host, self.device) {
            (Some(codes), Some(host), Device::Cpu(_)) => codes.vq.bytes(host),
            _ => 0,
        }
    }

    fn vision_size(&self) -> VisionSize {
        self.vision.map(|vision| vision.size(self.device, self.storage)).unwrap_or_default()
    }

    fn images(&self) -> Option<ImagePlan> {
        let VisionShape { max_patches, max_tokens, .. } = *self.vision?;
        // Room for the largest picture twice, so that one can be encoded while the other is read, and for a step of small ones.
        let rows = (2 * max_tokens).max(self.options.max_num_batched_tokens);
        let num_blocks = rows.div_ceil(IMAGE_ROWS_PER_BLOCK);
        Some(ImagePlan { max_patches, max_tokens, rows_per_block: IMAGE_ROWS_PER_BLOCK, num_blocks })
    }

    fn block_bytes(&self) -> u64 {
        KvCache::bytes_per_token(&self.config.decoder, self.kv_type()) * self.options.block_size as u64
    }

    /// Whole blocks in what is given of the host's memory. Their numbers have 32 bits.
    fn num_host_blocks(&self) -> usize {
        let blocks = self.options.kv_offloading_size / self.block_bytes();
        usize::try_from(blocks).unwrap_or(usize::MAX).min(u32::MAX as usize)
    }

    fn kv_offload_bytes(&self) -> u64 {
        self.num_host_blocks() as u64 * self.block_bytes()
    }

    fn check_kv_offload(&self) -> Result<(), LoadError> {
        let (size, block) = (self.options.kv_offloading_size, self.block_bytes());
        if size == 0 || size >= block {
            return Ok(());
        }
        let message = format!("{size} bytes have no room for one KV block, which has {block}");
        Err(LoadError::Option { option: "kv_offloading_size", message })
    }

    /// Blocks of a sequence of this length.
    fn blocks(&self, len: usize) -> usize {
        len.div_ceil(self.options.block_size)
    }

    /// For one sequence that is as long as allowed.
    fn needed(&self, max_model_len: usize) -> MemoryPlan {
        let kv_cache = self.blocks(max_model_len) as u64 * self.block_bytes();
        self.fixed(max_model_len).with_kv_cache(kv_cache)
    }

    fn fits(&self, max_model_len: usize) -> bool {
        self.needed(max_model_len).total <= self.limit
    }

    /// As asked for; else what the model allows, or what fits of it.
    fn max_model_len(&self) -> Result<usize, LoadError> {
        let most = self.config.decoder.max_position_embeddings;
        let does_not_fit = |len| LoadError::DoesNotFit(Box::new(self.needed(len).does_not_fit(len)));
        if let Some(len) = self.options.max_model_len {
            return if self.fits(len) { Ok(len) } else { Err(does_not_fit(len)) };
        }
        if self.fits(most) {
            return Ok(most);
        }
        // The longest that fits, in whole blocks: what is needed only grows with the length.
        let (mut fitting, mut too_long) = (0, self.blocks(most));
        while too_long - fitting > 1 {
            let middle = fitting + (too_long - fitting) / 2;
            match self.fits(middle * self.options.block_size) {
                true => fitting = middle,
                false => too_long = middle,
            }
        }
        match fitting {
            0 => Err(does_not_fit(self.options.block_size.min(most))),
            blocks => Ok(blocks * self.options.block_size),
        }
    }

    pub fn plan(&self) -> Result<Plan, LoadError> {
        let Self { config, options, .. } = *self;
        check_options(options, &config.decoder)?;
        self.check_kv_type()?;
        self.check_kv_offload()?;
        let max_model_len = self.max_model_len()?;
        let fixed = self.fixed(max_model_len);
        let affordable =
            usize::try_from((self.limit - fixed.total) / self.block_bytes()).unwrap_or(usize::MAX);
        // More than all sequences at their longest could ever use is not taken; block ids have 32 bits.
        let usable = options.max_num_seqs.saturating_mul(self.blocks(max_model_len));
        let slots = u32::MAX as usize / options.block_size;
        let num_blocks = affordable.min(usable).min(slots);
        Ok(Plan {
            architecture: config.architecture.clone(),
            dtype: published_name(self.storage.float),
            quantization: self.storage.describe(),
            activations: self.storage.activations(self.device),
            weight_layout: self.storage.layout.name(),
            head_screening: self.storage.screens_head,
            kv_cache_dtype: self.kv_type().name(),
            num_parameters: Decoder::size(&config.decoder, self.storage).parameters
                + self.vision_size().parameters
                + config.codes.as_ref().map_or(0, |codes| codes.vq.parameters()),
            memory: fixed.with_kv_cache(num_blocks as u64 * self.block_bytes()),
            weights_cache_bytes: self.weights_cache_bytes(fixed.weights + fixed.vision_weights),
            kv_bytes_per_token: KvCache::bytes_per_token(&config.decoder, self.kv_type()),
            max_model_len,
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: options.max_num_batched_tokens,
            block_size: options.block_size,
            num_blocks,
            num_host_blocks: self.num_host_blocks(),
            kv_offload_bytes: self.kv_offload_bytes(),
            mla_expand_from: config.decoder.expand_from(),
            images: self.images(),
            concurrency: self.concurrency(max_model_len, num_blocks),
        })
    }

    /// Of a model's packed weights, what is kept on disk: all or nothing.
    fn weights_cache_bytes(&self, packed: u64) -> u64 {
        let kept = match (&self.options.weights_cache, self.device, self.options.load_format) {
            (Some(cache), Device::Cpu(_), LoadFormat::Auto) => {
                !self.is_embedded && (cache.min_bytes..=cache.max_bytes).contains(&packed)
            }
            _ => false,
        };
        if kept { packed } else { 0 }
    }

    /// A GPU's kernels are compiled for one type.
    fn check_kv_type(&self) -> Result<(), LoadError> {
        let (kv_type, float) = (self.kv_type(), self.storage.float);
        if !matches!(self.device, Device::Cuda(_)) || kv_type == KvType::Float(float) {
            return Ok(());
        }
        let message = format!(
            "a KV cache in {} beside weights in {float} is computed with on the processor only: use auto, or --device cpu",
            kv_type.name()
        );
        Err(LoadError::Option { option: "kv_cache_dtype", message })
    }

    fn concurrency(&self, max_model_len: usize, num_blocks: usize) -> Vec<Concurrency> {
        let shorter = (0..).map(|i| 1024usize << (2 * i)).take_while(|&len| len < max_model_len);
        shorter
            .chain([max_model_len])
            .map(|context_len| {
                let sequences = (num_blocks / self.blocks(context_len)).min(self.options.max_num_seqs);
                Concurrency { context_len, sequences }
            })
            .collect()
    }
}

/// What pictures take after they were encoded, so many numbers a token, and the places that they go to.
fn image_bytes(device: &Device, images: &ImagePlan, width: usize) -> u64 {
    let rows = images.cache_rows() + images.max_tokens;
    4 * (rows * width) as u64 + 2 * Indices::bytes(device, images.max_tokens)
}

fn check_options(options: &LoadOptions, decoder: &DecoderConfig) -> Result<(), LoadError> {
    let LoadOptions { max_model_len, max_num_seqs, max_num_batched_tokens, block_size, .. } = *options;
    let fail = |option, message: String| Err(LoadError::Option { option, message });
    for (option, value) in [
        ("max_num_seqs", max_num_seqs),
        ("max_num_batched_tokens", max_num_batched_tokens),
        ("block_size", block_size),
        ("max_model_len", max_model_len.unwrap_or(1)),
    ] {
        if value == 0 || value > 1 << 28 {
            return fail(option, format!("{value} is not in 1..={}", 1 << 28));
        }
    }
    let max_positions = decoder.max_position_embeddings;
    if let Some(len) = max_model_len.filter(|&len| len > max_positions) {
        let message =
            format!("{len} is above the {max_positions} positions that the model's config.json allows");
        return fail("max_model_len", message);
    }
    for (option, value, most) in
        [("max_loras", options.max_loras, MAX_LORAS), ("max_lora_rank", options.max_lora_rank, MAX_LORA_RANK)]
    {
        let least = usize::from(option == "max_lora_rank");
        if !(least..=most).contains(&value) {
            return fail(option, format!("{value} is not in {least}..={most}"));
        }
    }
    match &decoder.moe {
        None if options.lora_experts => return fail("lora_experts", "the model has no experts".into()),
        Some(moe) if options.lora_experts && moe.names == ExpertNames::Fused => {
            return fail(
                "lora_experts",
                "the model's experts are no modules that an adapter could change".into(),
            );
        }
        _ => {}
    }
    if max_num_batched_tokens < max_num_seqs {
        let message = format!("{max_num_batched_tokens} is below max_num_seqs = {max_num_seqs}");
        return fail("max_num_batched_tokens", message);
    }
    Ok(())
}
