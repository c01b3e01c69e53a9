//! The types of a tensor's elements.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    BF16,
    F16,
    I32,
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::U8 => 1,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::BF16 => "bfloat16",
            Self::F16 => "float16",
            Self::I32 => "int32",
            Self::U8 => "uint8",
        }
    }

    /// Bytes of a tensor `shape` of it.
    pub(crate) fn bytes_of(self, shape: &[usize]) -> u64 {
        shape.iter().map(|&d| d as u64).product::<u64>() * self.size() as u64
    }

    /// What kernels call it.
    pub(crate) const fn cpp(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::I32 => "int",
            Self::U8 => "unsigned char",
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::BF16 | Self::F16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
