//! The types that weights of linear layers are stored in: floats, and whole numbers in groups along K with a scale for each.

use crate::compact;
use crate::dtype::DType;
use crate::panel::{GROUP, PANEL, k_padded};
use std::fmt;

/// How the weights of a linear layer are stored. Sums are f32 whatever it is; what activations are is [`crate::ActivationType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    F32,
    BF16,
    /// The bits of bf16 in 12 bits a weight (compact.rs); on the processor alone.
    CompactBf16,
    F16,
    /// `scale · level`, level a whole number of 8 bits, a scale in f16 for each group: 8.5 bits a weight.
    Int8,
    /// `scale · level`, level in -8 ..= 7, a scale in f16 for each group: 4.5 bits a weight.
    Int4,
    /// `scale · (level - zero)`, level in -8 ..= 7, scale and zero in f16 for each group: 5 bits a weight. The group's minimum
    /// is `-scale · (8 + zero)`; a zero is exact for the whole numbers that files have, and the product often is not.
    Int4Zero,
}

impl WeightType {
    pub const ALL: [Self; 7] =
        [Self::F32, Self::BF16, Self::CompactBf16, Self::F16, Self::Int8, Self::Int4, Self::Int4Zero];
    /// Those that a GPU has kernels for.
    pub const ON_GPU: [Self; 6] = [Self::F32, Self::BF16, Self::F16, Self::Int8, Self::Int4, Self::Int4Zero];

    /// The type of floats that it is; `None` where weights are quantised.
    pub const fn float(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::BF16 | Self::CompactBf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
            Self::Int8 | Self::Int4 | Self::Int4Zero => None,
        }
    }

    pub const fn is_quantised(self) -> bool {
        self.float().is_none()
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => DType::F32.name(),
            Self::BF16 => DType::BF16.name(),
            Self::CompactBf16 => "compact bf16",
            Self::F16 => DType::F16.name(),
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Int4Zero => "int4 with zeros",
        }
    }

    /// As CUDA kernels name it (cuda/gemm.cuh).
    pub(crate) const fn cpp(self) -> &'static str {
        match self {
            Self::F32 => DType::F32.cpp(),
            Self::BF16 => DType::BF16.cpp(),
            Self::CompactBf16 => panic!("a GPU has no kernels for compact bf16"),
            Self::F16 => DType::F16.cpp(),
            Self::Int8 => "q8",
            Self::Int4 => "q4",
            Self::Int4Zero => "q4z",
        }
    }

    /// Bytes that the 32 weights of one k in a panel take.
    pub(crate) const fn line_bytes(self) -> usize {
        match self {
            Self::F32 => 4 * PANEL,
            Self::BF16 | Self::F16 => 2 * PANEL,
            Self::CompactBf16 => 3 * PANEL / 2,
            Self::Int8 => PANEL,
            Self::Int4 | Self::Int4Zero => PANEL / 2,
        }
    }

    /// Bytes before the lines of a group of a panel: its scales, then its zeros.
    pub(crate) const fn header_bytes(self) -> usize {
        match self {
            Self::Int4Zero => 4 * PANEL,
            _ => 2 * PANEL,
        }
    }

    /// Bytes of a group of a panel.
    pub(crate) const fn group_bytes(self) -> usize {
        self.header_bytes() + GROUP * self.line_bytes()
    }

    /// Bytes of a panel of 32 rows.
    pub(crate) const fn panel_bytes(self, k: usize) -> usize {
        if self.is_quantised() {
            k.div_ceil(GROUP) * self.group_bytes()
        } else if matches!(self, Self::CompactBf16) {
            compact::panel_bytes(k_padded(k))
        } else {
            k_padded(k) * self.line_bytes()
        }
    }

    /// Bytes behind so many panels.
    pub(crate) const fn spill_bytes(self, num_panels: usize, k: usize) -> usize {
        match self {
            Self::CompactBf16 => compact::spill_bytes(num_panels, k_padded(k)),
            _ => 0,
        }
    }
}

impl From<DType> for WeightType {
    /// Panics for types that are not floats.
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::BF16 => Self::BF16,
            DType::F16 => Self::F16,
            DType::I32 | DType::U8 => panic!("weights of {dtype}"),
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
