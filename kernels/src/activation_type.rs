//! What activations are rounded to before a product with weights, and the choice of it.

use crate::cpu::simd::Isa;
use crate::ops::KvRows;
use crate::{DType, Error, WeightType};
use std::fmt;

/// The type in which activations enter a product. What comes out is f32, summed in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationType {
    /// As they are.
    F32,
    /// Rounded to nearest even.
    BF16,
    /// Whole numbers of eight bits in groups of 32 along K, with a scale in f32 for each: its largest magnitude / 127.
    Int8,
}

impl ActivationType {
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::BF16 => "bfloat16",
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
    /// To what the processor has instructions for: bf16 beside weights of bf16, int8 beside quantised ones.
    #[default]
    Auto,
    /// Not at all.
    F32,
    /// To bf16 beside weights of bf16.
    BF16,
    /// To int8 beside quantised weights, and to bf16 beside weights of bf16 where there are instructions for that.
    Int8,
}

/// Which products of a device round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rounds {
    bf16: bool,
    int8: bool,
}

impl Rounds {
    /// An error where the processor lacks what was asked for by name.
    pub fn new(choice: ActivationChoice, isa: Isa) -> Result<Self, Error> {
        let (bf16, int8) = (isa.has_bf16_dots(), isa.has_int8_dots());
        match choice {
            // Without instructions of its own int8 saves nothing.
            ActivationChoice::Auto => Ok(Self { bf16, int8: int8 && isa != Isa::Portable }),
            ActivationChoice::F32 => Ok(Self { bf16: false, int8: false }),
            ActivationChoice::BF16 if bf16 => Ok(Self { bf16, int8: false }),
            ActivationChoice::Int8 if int8 => Ok(Self { bf16, int8 }),
            ActivationChoice::BF16 => Err(Error::NoProducts(ActivationType::BF16, isa)),
            ActivationChoice::Int8 => Err(Error::NoProducts(ActivationType::Int8, isa)),
        }
    }

    pub fn any(self) -> bool {
        self.bf16 || self.int8
    }

    /// What activations are beside weights of this type.
    pub fn beside(self, weights: WeightType) -> ActivationType {
        match weights {
            WeightType::BF16 | WeightType::CompactBf16 if self.bf16 => ActivationType::BF16,
            WeightType::Int8 | WeightType::Int4 | WeightType::Int4Zero if self.int8 => ActivationType::Int8,
            _ => ActivationType::F32,
        }
    }

    /// What queries, and the weights that a softmax gives to values, are beside a cache.
    pub fn beside_cache(self, cache: &KvRows) -> ActivationType {
        match (cache.rows.dtype(), cache.scales) {
            (DType::BF16, None) => self.beside(WeightType::BF16),
            _ => ActivationType::F32,
        }
    }
}
