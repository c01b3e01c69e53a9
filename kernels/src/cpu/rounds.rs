//! What activations are rounded to on a processor.

use super::simd::Isa;
use crate::activation_type::{ActivationChoice, ActivationType};
use crate::dtype::DType;
use crate::error::Error;
use crate::weight_type::WeightType;

/// Which products of a device round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rounds {
    bf16: bool,
    /// Beside compact bf16.
    int16: bool,
    int8: bool,
}

impl Rounds {
    /// An error where the processor lacks what was asked for by name.
    pub fn new(choice: ActivationChoice, isa: Isa) -> Result<Self, Error> {
        let (bf16, int8) = (isa.has_bf16_dots(), isa.has_int8_dots());
        let none = Self { bf16: false, int16: false, int8: false };
        match choice {
            // Without instructions of its own int8 saves nothing.
            ActivationChoice::Auto => {
                Ok(Self { bf16, int16: isa == Isa::Avx2, int8: int8 && isa != Isa::Portable })
            }
            ActivationChoice::F32 => Ok(none),
            ActivationChoice::BF16 if bf16 => Ok(Self { bf16, ..none }),
            ActivationChoice::Int8 if int8 => Ok(Self { bf16, int8, ..none }),
            ActivationChoice::BF16 => Err(Error::NoProducts(ActivationType::BF16, isa)),
            ActivationChoice::Int8 => Err(Error::NoProducts(ActivationType::Int8, isa)),
        }
    }

    pub fn any(self) -> bool {
        self.bf16 || self.int16 || self.int8
    }

    /// What activations are beside weights of this type.
    pub fn beside(self, weights: WeightType) -> ActivationType {
        match weights {
            WeightType::BF16 | WeightType::CompactBf16 if self.bf16 => ActivationType::BF16,
            WeightType::CompactBf16 if self.int16 => ActivationType::Int16,
            WeightType::Int8 | WeightType::Int4 | WeightType::Int4Zero if self.int8 => ActivationType::Int8,
            _ => ActivationType::F32,
        }
    }

    /// What queries, and the weights that a softmax gives to values, are beside a cache that has elements of this type.
    pub fn beside_cache(self, cache: DType) -> ActivationType {
        match cache {
            DType::BF16 => self.beside(WeightType::BF16),
            _ => ActivationType::F32,
        }
    }
}
