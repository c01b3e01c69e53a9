//! Rows of a KV cache: floats, or levels of 8 bits with a scale for each part of a row.
//!
//! store_kv: cache[slots[t], :] = rounded(src[t, :])    src [T, W] f32 · cache [S, W] f32 | bf16 | f16, to nearest even, or int8;
//!           a row whose slot is `NOWHERE` is not stored
//!
//! int8: a part of a row (the key or the value of a head; of a latent row the latent, and what is rotated) is `scale · level`. The scale, f32, is
//! the part's largest magnitude / 127; levels are rounded to nearest even. A part of numbers below 1e-30 becomes 0, one with a number
//! that is not finite becomes NaN, so that it shows. A row depends on nothing but itself.
//! moves (4 + 1)·T·W bytes in int8

use super::NOWHERE;
use super::rows::{check_slots, store_rows};
use crate::{DType, Device, Index, Tensor};

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

    const fn num_parts(self) -> usize {
        match self {
            Self::Heads { count, .. } => count,
            Self::Latent { .. } => 2,
        }
    }
}

/// The cache of one layer, or half of it: a row for each slot.
#[derive(Debug)]
pub struct KvTensor {
    rows: Tensor,
    /// `[S, parts]`
    scales: Option<Tensor>,
    shape: KvShape,
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

    pub fn as_rows(&self) -> KvRows<'_> {
        KvRows { rows: &self.rows, scales: self.scales.as_ref() }
    }

    /// Of a GPU's cache, which has no levels.
    pub(super) fn floats(&self) -> &Tensor {
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

pub fn store_kv<'a>(src: &Tensor, cache: &mut KvTensor, slots: impl Into<Index<'a>>) {
    let KvTensor { rows, scales, shape } = cache;
    let Some(scales) = scales else { return store_rows(src, rows, slots) };
    let index = slots.into();
    let slots = index.as_slice();
    assert!(matches!(rows.device(), Device::Cpu(_)), "store_kv: an int8 cache on a GPU");
    assert_eq!(src.rows(), slots.len(), "store_kv: rows");
    assert_eq!(src.row_len(), rows.row_len(), "store_kv: width");
    check_slots("store_kv", slots, rows.rows());
    let (width, parts) = (shape.row_len(), shape.num_parts());
    let (levels, scales) = (rows.as_u8_mut(), scales.as_f32_mut());
    let stored = src.as_f32().chunks_exact(width).zip(slots).filter(|&(_, &slot)| slot != NOWHERE);
    for (row, &slot) in stored {
        let slot = slot as usize;
        let (levels, scales) = (&mut levels[slot * width..][..width], &mut scales[slot * parts..][..parts]);
        match *shape {
            KvShape::Heads { dim, .. } => {
                let heads = row.chunks_exact(dim).zip(levels.chunks_exact_mut(dim));
                heads.zip(scales).for_each(|((head, levels), scale)| *scale = quantize(head, levels));
            }
            KvShape::Latent { rank, .. } => {
                let ((latent, rotated), (low, high)) = (row.split_at(rank), levels.split_at_mut(rank));
                scales[0] = quantize(latent, low);
                scales[1] = quantize(rotated, high);
            }
        }
    }
}

/// Fills levels, as signed bytes, and returns their scale.
fn quantize(values: &[f32], levels: &mut [u8]) -> f32 {
    // Magnitudes are ordered as their bits are, and what is not finite is above all others.
    let max = f32::from_bits(values.iter().fold(0, |max, value| max.max(value.to_bits() & 0x7fff_ffff)));
    let scale = if max < 1e-30 { 0.0 } else { max / 127.0 };
    if scale == 0.0 || !max.is_finite() {
        levels.fill(0);
        return if max.is_finite() { 0.0 } else { f32::NAN };
    }
    let inverse = 1.0 / scale;
    for (level, value) in levels.iter_mut().zip(values) {
        // Added and subtracted again, it leaves the nearest whole number.
        const ROUND: f32 = 12_582_912.0;
        let nearest = (value * inverse + ROUND) - ROUND;
        *level = (nearest.clamp(-127.0, 127.0) as i8).cast_unsigned();
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_scales() {
        let check = |values: &[f32], scale: f32, expected: &[i8]| {
            let mut levels = vec![0; values.len()];
            let found = quantize(values, &mut levels);
            assert_eq!(found.to_bits(), scale.to_bits(), "{values:?}: {found}");
            let levels: Vec<i8> = levels.into_iter().map(u8::cast_signed).collect();
            assert_eq!(levels, expected, "{values:?}");
        };
        check(&[], 0.0, &[]);
        check(&[0.0, -0.0], 0.0, &[0, 0]);
        check(&[1e-31, -1e-40], 0.0, &[0, 0]);
        check(&[127.0, -127.0, 0.5, 1.5, -2.5, 63.4], 1.0, &[127, -127, 0, 2, -2, 63]);
        check(&[0.0, -2.54, 1.27], 0.02, &[0, -127, 64]);
        check(&[f32::MAX, -f32::MAX], f32::MAX / 127.0, &[127, -127]);
        check(&[1.0, f32::NAN, 2.0], f32::NAN, &[0, 0, 0]);
        check(&[1.0, f32::NEG_INFINITY], f32::NAN, &[0, 0]);
    }
}
