//! What activations are rounded to before a product with weights, and the choice of it.

use std::fmt;

/// The type in which activations enter a product. What comes out is f32, summed in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationType {
    /// As they are.
    F32,
    /// Rounded to nearest even.
    BF16,
    /// Whole numbers up to 8191 in groups of 32 along K, with a scale in f32 for each: its largest magnitude / 8191. Weights of compact bf16
    /// beside them are whole numbers of as many bits, with a scale for each of their rows and 256 terms (`cpu/compact_integers.rs`).
    Int16,
    /// Whole numbers of eight bits in groups of 32 along K, with a scale in f32 for each: its largest magnitude / 127.
    Int8,
}

impl ActivationType {
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::BF16 => "bfloat16",
            Self::Int16 => "int16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for ActivationType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far activations may be rounded on a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationChoice {
    /// To what the processor has instructions for: bf16 beside weights of bf16, or with AVX2 whole numbers of 16 bits beside those that are
    /// compact; int8 beside quantised ones.
    #[default]
    Auto,
    /// Not at all.
    F32,
    /// To bf16 beside weights of bf16.
    BF16,
    /// To int8 beside quantised weights, and to bf16 beside weights of bf16 where there are instructions for that.
    Int8,
}
