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
use crate::operands::kv::{KvShape, KvTensor};
use crate::{Device, Index, Tensor};

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
