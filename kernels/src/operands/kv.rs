//! A KV cache as ops see it: rows of floats, or of levels with scales.

use crate::{DType, Device, Tensor};

/// What a cache is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// f32, bf16 or f16.
    Float(DType),
    Int8,
}

impl KvType {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float(dtype) => dtype.name(),
            Self::Int8 => "int8",
        }
    }
}

/// What a row of a cache is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvShape {
    /// Keys, or values, of some heads.
    Heads { count: usize, dim: usize },
    /// What all heads share: a latent and a rotated part.
    Latent { rank: usize, rotated: usize },
}

impl KvShape {
    pub const fn row_len(self) -> usize {
        match self {
            Self::Heads { count, dim } => count * dim,
            Self::Latent { rank, rotated } => rank + rotated,
        }
    }

    pub(crate) const fn num_parts(self) -> usize {
        match self {
            Self::Heads { count, .. } => count,
            Self::Latent { .. } => 2,
        }
    }
}

/// The cache of one layer, or half of it: a row for each slot.
#[derive(Debug)]
pub struct KvTensor {
    pub(crate) rows: Tensor,
    /// `[S, parts]`
    pub(crate) scales: Option<Tensor>,
    pub(crate) shape: KvShape,
}

impl KvTensor {
    pub fn zeros(device: &Device, stored_as: KvType, slots: usize, shape: KvShape) -> Self {
        let dims = match shape {
            KvShape::Heads { count, dim } => vec![slots, count, dim],
            KvShape::Latent { .. } => vec![slots, shape.row_len()],
        };
        let (dtype, scales) = match stored_as {
            KvType::Float(dtype) => (dtype, None),
            KvType::Int8 => (DType::U8, Some(Tensor::zeros(device, DType::F32, &[slots, shape.num_parts()]))),
        };
        Self { rows: Tensor::zeros(device, dtype, &dims), scales, shape }
    }

    /// What `zeros` allocates for a slot.
    pub fn bytes_per_slot(stored_as: KvType, shape: KvShape) -> u64 {
        match stored_as {
            KvType::Float(dtype) => Tensor::bytes_of(dtype, &[shape.row_len()]),
            KvType::Int8 => {
                Tensor::bytes_of(DType::U8, &[shape.row_len()])
                    + Tensor::bytes_of(DType::F32, &[shape.num_parts()])
            }
        }
    }

    /// All that a slot's row is made of.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        std::iter::once(&mut self.rows).chain(&mut self.scales)
    }

    pub fn as_rows(&self) -> KvRows<'_> {
        KvRows { rows: &self.rows, scales: self.scales.as_ref() }
    }

    /// Of a GPU's cache, which has no levels.
    pub(crate) fn floats(&self) -> &Tensor {
        assert!(self.scales.is_none(), "an int8 cache on a GPU");
        &self.rows
    }
}

/// A cache for an op to read: rows, and the scales of rows of levels.
#[derive(Clone, Copy, Debug)]
pub struct KvRows<'a> {
    /// `[S, heads, D]`, or `[S, R + P]`; levels are signed bytes.
    pub rows: &'a Tensor,
    /// `[S, heads]`, or `[S, 2]`.
    pub scales: Option<&'a Tensor>,
}

impl<'a> From<&'a Tensor> for KvRows<'a> {
    fn from(rows: &'a Tensor) -> Self {
        Self { rows, scales: None }
    }
}

impl<'a> From<&'a KvTensor> for KvRows<'a> {
    fn from(cache: &'a KvTensor) -> Self {
        cache.as_rows()
    }
}

impl KvRows<'_> {
    pub(crate) fn check(&self, op: &str, num_parts: usize) {
        match self.scales {
            None => assert!(self.rows.dtype().is_float(), "{op}: a cache of {}", self.rows.dtype()),
            Some(scales) => {
                assert_eq!(self.rows.dtype(), DType::U8, "{op}: levels of a cache");
                assert_eq!(scales.shape(), [self.rows.rows(), num_parts], "{op}: scales of a cache");
                assert!(matches!(self.rows.device(), Device::Cpu(_)), "{op}: an int8 cache on a GPU");
            }
        }
    }
}
