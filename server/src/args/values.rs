//! What flags with a fixed set of words may say.

use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MatmulArg {
    Auto,
    Mma,
    Wgmma,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DTypeArg {
    Auto,
    #[value(alias = "float", alias = "f32")]
    Float32,
    #[value(alias = "bf16")]
    Bfloat16,
    #[value(alias = "half", alias = "f16")]
    Float16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantizationArg {
    /// As the checkpoint says: floats stay floats
    Auto,
    /// 8 bits in groups of 32: 8.5 bits a weight
    Int8,
    /// 4 bits in groups of 32: 4.5 bits a weight
    Int4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActivationsArg {
    Auto,
    /// Not rounded
    #[value(alias = "float", alias = "f32")]
    Float32,
    /// bfloat16 beside bfloat16 weights
    #[value(alias = "bf16")]
    Bfloat16,
    /// int8 in groups of 32 beside quantised weights; bfloat16 beside bfloat16 ones if there are instructions for it
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightLayoutArg {
    /// compact where that is as fast as plain or faster, and the weights allow it
    Auto,
    /// 16 bits a weight
    Plain,
    /// 12 bits a weight, on the processor; the same answers
    Compact,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HeadScreeningArg {
    /// on for a head of floats with 16,777,216 weights or more, where the processor multiplies bytes
    Auto,
    /// An int8 copy of the head beside it, on the processor
    On,
    /// All of the head for every token
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvCacheDTypeArg {
    /// The type of weights that are not quantised
    Auto,
    #[value(alias = "float", alias = "f32")]
    Float32,
    #[value(alias = "bf16")]
    Bfloat16,
    #[value(alias = "half", alias = "f16")]
    Float16,
    /// 8 bits with a scale for each token and head; on the processor
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoadFormatArg {
    #[value(alias = "safetensors")]
    Auto,
    /// Random weights of the configured shape; no weight file is read
    Dummy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormatArg {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GenerationConfigArg {
    /// Defaults of temperature and the like from the model's generation_config.json
    Auto,
    /// The API's own defaults
    Vllm,
}
