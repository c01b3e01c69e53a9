//! What the server tells this crate before loading, and what it learns about the model after.

use kernels::cuda::Matmul;
use scheduler::{ImageInput, TokenId};
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU, or the processor where there is none.
    Auto,
    Cpu,
    /// A GPU, by the driver's number.
    Cuda(usize),
    /// The GPU's code, run on the processor: for tests, and slow. Needs a C++ compiler.
    CudaEmulated,
}

/// How a GPU's kernels are compiled, and where they are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelOptions {
    /// A folder for compiled kernels, kept from one start to the next.
    pub cache: Option<PathBuf>,
    /// Where libnvrtc is, if the system's loader does not find it.
    pub nvrtc: Option<PathBuf>,
    /// What multiplies many tokens.
    pub matmul: Matmul,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadFormat {
    /// Weights from the model's safetensors files.
    Auto,
    /// Seeded random weights of the configured shape; no weight file is read.
    Dummy,
}

/// The type of weights that are not quantised and, unless it is given, of the KV cache. Sums on the CPU are f32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DTypeChoice {
    /// As the checkpoint says.
    Auto,
    F32,
    BF16,
    F16,
}

/// What weights that the checkpoint holds as floats are kept as; those that it holds quantised stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantizationChoice {
    /// As the checkpoint says: floats stay floats, unless it was written to be loaded otherwise.
    Auto,
    Int8,
    Int4,
}

/// How far activations are rounded before products on a processor; see [`kernels::ActivationChoice`].
pub use kernels::ActivationChoice as ActivationsChoice;

/// The form in which weights of linear layers that are bf16 lie in memory. It changes no bit of any result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayoutChoice {
    /// `Compact` where the device gains by it and the weights allow it.
    Auto,
    /// 16 bits a weight.
    Plain,
    /// 12 bits a weight, on the processor; weights that cannot be kept so are an error.
    Compact,
}

/// Whether an int8 copy of the output head finds the rows that can be among the largest. It changes no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadScreeningChoice {
    /// `On` on a processor that multiplies bytes, for a head in floats with [`crate::Storage::SCREENED_FROM`] weights or more.
    Auto,
    On,
    Off,
}

/// What keys and values are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvCacheDTypeChoice {
    /// As weights that are not quantised.
    Auto,
    F32,
    BF16,
    F16,
    /// Levels of 8 bits, with a scale for each token and head, or for each token and part of a latent.
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemoryLimit {
    Bytes(u64),
    /// Of the device's memory.
    Fraction(f64),
}

/// Where packed weights are kept from one start to the next; on the processor only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightsCache {
    pub folder: PathBuf,
    /// Of all its files together: those that were not used for longest go.
    pub max_bytes: u64,
    /// Models with fewer bytes of packed weights are packed at every start.
    pub min_bytes: u64,
}

/// Everything that decides how much memory is needed. The plan and the loader are computed from the same values.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadOptions {
    pub device: DeviceChoice,
    pub kernels: KernelOptions,
    /// Whether a GPU's decode steps are captured and replayed as graphs; the answers are the same.
    pub graphs: bool,
    pub load_format: LoadFormat,
    pub dtype: DTypeChoice,
    pub quantization: QuantizationChoice,
    /// Of products on a processor; a GPU takes `Auto` alone.
    pub activations: ActivationsChoice,
    /// Of weights of linear layers in bf16.
    pub weight_layout: WeightLayoutChoice,
    /// Of the output head, where only its largest logits are looked at.
    pub head_screening: HeadScreeningChoice,
    pub kv_cache_dtype: KvCacheDTypeChoice,
    /// Rows of prompts at this position and beyond go through latent attention in its expanded form; `None`: in the absorbed form, as
    /// all other rows do.
    pub mla_expand_from: Option<usize>,
    /// Pixels that a picture is resized to at most, where the model's image processor has such a bound; `None`, or more than that: as it says.
    pub image_resize_pixels: Option<usize>,
    /// `None`: what the model allows, or less where the KV memory cannot hold one such sequence.
    pub max_model_len: Option<usize>,
    /// Adapters that may be loaded at a time; 0: none, and no memory is planned for them.
    pub max_loras: usize,
    /// The largest rank of their matrices; memory is planned for `max_loras` adapters of this rank in all modules.
    pub max_lora_rank: usize,
    /// Whether adapters may change single experts: then memory is planned for that as well.
    pub lora_experts: bool,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    /// Tokens per KV block.
    pub block_size: usize,
    /// All that may be allocated: weights, KV, workspaces.
    pub memory: MemoryLimit,
    /// Bytes of the host's memory for KV blocks that lost their places and may be found again; 0: none. Where the processor is the device, of the same
    /// memory as everything.
    pub kv_offloading_size: u64,
    /// Worker threads; `None`: one for each of `threads_bind`, or for each core.
    pub threads: Option<usize>,
    /// The CPUs that they are pinned to, one each; the thread that loads the model, and then runs it, is the first. Empty: none is.
    pub threads_bind: Vec<usize>,
    /// Of dummy weights.
    pub seed: u64,
    /// `None`: every start packs the model's weights.
    pub weights_cache: Option<WeightsCache>,
}

/// What `perilune serve` takes where nothing else is said, on the processor.
impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Cpu,
            kernels: KernelOptions::default(),
            graphs: true,
            load_format: LoadFormat::Auto,
            dtype: DTypeChoice::Auto,
            quantization: QuantizationChoice::Auto,
            activations: ActivationsChoice::Auto,
            weight_layout: WeightLayoutChoice::Auto,
            head_screening: HeadScreeningChoice::Auto,
            kv_cache_dtype: KvCacheDTypeChoice::Auto,
            mla_expand_from: None,
            image_resize_pixels: None,
            max_model_len: None,
            max_loras: 0,
            max_lora_rank: 16,
            lora_experts: false,
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            block_size: 16,
            memory: MemoryLimit::Fraction(0.7),
            kv_offloading_size: 0,
            threads: None,
            threads_bind: Vec::new(),
            seed: 0,
            weights_cache: None,
        }
    }
}

/// What the layers above need to know of a loaded model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// From config.json, such as `KimiVLForConditionalGeneration`.
    pub architecture: String,
    /// Rows of the embedding: every token id must be below. A tokenizer may know more.
    pub vocab_size: usize,
    /// Values of a token's state: of a pooled prompt.
    pub hidden_size: usize,
    /// After `LoadOptions::max_model_len` and memory.
    pub max_model_len: usize,
    /// End tokens named by generation_config.json and config.json.
    pub eos_token_ids: Vec<TokenId>,
    /// Added before a completion's prompt where the tokenizer's configuration asks for it.
    pub bos_token_id: Option<TokenId>,
    /// The placeholder that a picture's rows, or its tokens, replace, where the model sees pictures.
    pub image_token_id: Option<TokenId>,
    /// The placeholder of a video, which no prompt may hold.
    pub video_token_id: Option<TokenId>,
    pub num_parameters: u64,
    /// Such as `bfloat16`.
    pub dtype: &'static str,
    /// Such as `int4`.
    pub quantization: Option<&'static str>,
    /// What activations are rounded to before most products, such as `bfloat16`.
    pub activations: &'static str,
    /// `compact` where weights in bf16 are kept in 12 bits, else `plain`.
    pub weight_layout: &'static str,
    /// Such as `bfloat16`, or `int8`.
    pub kv_cache_dtype: &'static str,
}

/// Turns a decoded picture into what a prompt holds of it: a function of the pixels alone. It may take seconds and all threads.
pub trait ImageProcessor: Send + Sync {
    /// `rgb` is `[height, width, 3]`, row-major, 8 bits a channel.
    fn process(&self, rgb: &[u8], width: usize, height: usize) -> Result<ProcessedImage, ImageError>;

    /// What becomes of a picture's alpha before it is processed.
    fn transparency(&self) -> Transparency;

    /// Tokens of a prompt that a picture takes, where all take as many.
    fn num_tokens(&self) -> Option<usize>;
}

/// A picture as a prompt holds it.
#[derive(Debug, Clone, PartialEq)]
pub enum ProcessedImage {
    /// What the model's vision tower takes: its rows of embedding replace the placeholder's.
    Rows(ImageInput),
    /// Tokens of the vocabulary that take the place of the placeholder.
    Tokens(Vec<TokenId>),
}

impl ProcessedImage {
    /// What a vision tower takes, for tests and tools of models that have one: panics where a picture is tokens.
    pub fn into_rows(self) -> ImageInput {
        match self {
            Self::Rows(image) => image,
            Self::Tokens(_) => panic!("the picture is tokens"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transparency {
    /// The colours are taken as they are stored.
    Dropped,
    /// White shows through.
    OnWhite,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("picture of {width}x{height} pixels is empty")]
    Empty { width: usize, height: usize },
    #[error(
        "picture of {width}x{height} pixels gives {rows}x{columns} patches, above the limit of {limit} in one direction"
    )]
    TooElongated { width: usize, height: usize, rows: usize, columns: usize, limit: usize },
    #[error(
        "picture of {width}x{height} pixels has a side that is more than {limit} times as long as the other"
    )]
    TooUneven { width: usize, height: usize, limit: usize },
    #[error("the model's encoder of pictures gave a value that is not finite")]
    NotFinite,
}
