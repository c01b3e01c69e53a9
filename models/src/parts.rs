//! What a matrix is for, and what may be asked of its storage.

use kernels::DType;

/// What a matrix is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A linear layer of the decoder, or an expert.
    Linear,
    /// The halves of `kv_b_proj` in latent attention, which are not kept as the file has them.
    Absorbed,
    Head,
    Router,
    Vision,
}

/// The form of matrices in bf16, of all that [`Part::may_be_compact`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightLayout {
    #[default]
    Plain,
    Compact,
}

impl WeightLayout {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Compact => "compact",
        }
    }
}

impl Part {
    /// What few rows at a time go through: it waits for memory.
    pub(crate) const fn may_be_compact(self) -> bool {
        matches!(self, Self::Linear | Self::Absorbed | Self::Head)
    }
}

/// What weights that a checkpoint holds as floats are quantised to when they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quantization {
    #[default]
    None,
    Int8,
    Int4,
}

impl Quantization {
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Int8 => Some("int8"),
            Self::Int4 => Some("int4"),
        }
    }
}

/// The name in config.json.
pub(crate) fn published_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::I32 | DType::U8 => unreachable!("weights are floats"),
    }
}
