//! The blocks that GGUF files hold: some weights of a row with a scale, and what they stand for. Source: the layouts and
//! `dequantize_row_*` of ggml (ggml-common.h, ggml-quants.c).
//!
//! ```text
//! Q8_0  32: d:f16 | 32 × i8                                            w = d q
//! Q4_0  32: d:f16 | 16 bytes                                           w = d (q - 8)         low halves are 0..16, high ones 16..32
//! Q4_1  32: d, m  | 16 bytes                                           w = d q + m
//! Q5_0  32: d | 32 fifth bits | 16 bytes                               w = d (q - 16)
//! Q5_1  32: d, m | 32 fifth bits | 16 bytes                            w = d q + m
//! Q4_K 256: d, dmin:f16 | 8 × (scale, min of 6 bits) | 128 bytes       w = d s q - dmin m    groups of 32
//! Q5_K 256: d, dmin | the same | 256 fifth bits | 128 bytes            the same
//! Q6_K 256: 128 bytes | 64 bytes of upper bits | 16 × i8 scale | d     w = d s (q - 32)      groups of 16
//! ```

use half::{bf16, f16};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// Values of a group of a K-quant's sub-block with its own minimum.
const SUB_BLOCK: usize = 32;

impl BlockType {
    /// With ggml's number and name.
    const ALL: [(Self, u32, &'static str); 11] = [
        (Self::F32, 0, "F32"),
        (Self::F16, 1, "F16"),
        (Self::Q4_0, 2, "Q4_0"),
        (Self::Q4_1, 3, "Q4_1"),
        (Self::Q5_0, 6, "Q5_0"),
        (Self::Q5_1, 7, "Q5_1"),
        (Self::Q8_0, 8, "Q8_0"),
        (Self::Q4K, 12, "Q4_K"),
        (Self::Q5K, 13, "Q5_K"),
        (Self::Q6K, 14, "Q6_K"),
        (Self::BF16, 30, "BF16"),
    ];

    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, c, _)| *c == code).map(|(block_type, ..)| block_type)
    }

    pub fn names() -> String {
        Self::ALL.map(|(.., name)| name).join(", ")
    }

    /// Weights of a block.
    pub const fn weights(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `len` weights; `None` where blocks would not be whole.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        len.is_multiple_of(self.weights()).then(|| (len / self.weights()).checked_mul(self.bytes())).flatten()
    }

    /// All weights of `blocks`, which are whole.
    pub fn dequantize(self, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(Some(blocks.len()), self.row_bytes(out.len()), "{self}: blocks and values");
        for (block, out) in blocks.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(self.weights())) {
            match self {
                Self::F32 => out[0] = f32::from_le_bytes(block.try_into().expect("four bytes")),
                Self::F16 => out[0] = half_at(block, 0),
                Self::BF16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
                Self::Q4_0 => nibbles(&block[2..], out, half_at(block, 0), -8.0 * half_at(block, 0)),
                Self::Q4_1 => nibbles(&block[4..], out, half_at(block, 0), half_at(block, 2)),
                Self::Q5_0 => five_bits(&block[2..], out, half_at(block, 0), -16.0 * half_at(block, 0)),
                Self::Q5_1 => five_bits(&block[4..], out, half_at(block, 0), half_at(block, 2)),
                Self::Q8_0 => {
                    let d = half_at(block, 0);
                    out.iter_mut().zip(&block[2..]).for_each(|(w, &q)| *w = d * f32::from(q as i8));
                }
                Self::Q4K | Self::Q5K => k_with_minimum(self, block, out),
                Self::Q6K => q6_k(block, out),
            }
        }
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(block_type, ..)| block_type == self).map(|(.., name)| *name);
        f.write_str(name.expect("every type is in the list"))
    }
}

pub fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `w = d q + m`; a product and a sum, as ggml computes them.
fn nibbles(bytes: &[u8], out: &mut [f32], d: f32, m: f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = d * f32::from(byte & 15) + m;
        *high = d * f32::from(byte >> 4) + m;
    }
}

fn five_bits(bytes: &[u8], out: &mut [f32], d: f32, m: f32) {
    let (fifth, bytes) = bytes.split_at(4);
    let fifth = u32::from_le_bytes(fifth.try_into().expect("four bytes"));
    for (j, &byte) in bytes.iter().enumerate() {
        let bit = |at: usize| ((fifth >> at & 1) << 4) as u8;
        out[j] = d * f32::from(byte & 15 | bit(j)) + m;
        out[j + 16] = d * f32::from(byte >> 4 | bit(j + 16)) + m;
    }
}

/// Scale and minimum of a sub-block, six bits each in twelve bytes.
pub fn scale_and_minimum(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        return (packed[j] & 63, packed[j + 4] & 63);
    }
    let low = packed[j + 4];
    (low & 15 | packed[j - 4] >> 6 << 4, low >> 4 | packed[j] >> 6 << 4)
}

fn k_with_minimum(block_type: BlockType, block: &[u8], out: &mut [f32]) {
    let (d, dmin, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    let has_fifth = block_type == BlockType::Q5K;
    let (fifth, bytes) = block[16..].split_at(if has_fifth { SUB_BLOCK } else { 0 });
    for (j, out) in out.chunks_exact_mut(SUB_BLOCK).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, j);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let bytes = &bytes[j / 2 * SUB_BLOCK..][..SUB_BLOCK];
        for (l, (out, &byte)) in out.iter_mut().zip(bytes).enumerate() {
            let half = if j % 2 == 0 { byte & 15 } else { byte >> 4 };
            let bit = if has_fifth { (fifth[l] >> j & 1) << 4 } else { 0 };
            *out = scale * f32::from(half | bit) - minimum;
        }
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (lower, upper, scales, d) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let (lower, upper) = (&lower[64 * half..][..64], &upper[32 * half..][..32]);
        for (i, out) in out.iter_mut().enumerate() {
            let (quarter, l) = (i / 32, i % 32);
            let byte = lower[quarter % 2 * 32 + l];
            let low = if quarter < 2 { byte & 15 } else { byte >> 4 };
            let q = low | (upper[l] >> (2 * quarter) & 3) << 4;
            let scale = f32::from(scales[8 * half + i / 16] as i8);
            *out = d * scale * (f32::from(q) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::{Checkpoint, ModelFiles};
    use std::path::Path;

    /// Random blocks of every type against the values that the gguf package gives them (tools/golden/gguf_files.py).
    #[test]
    fn blocks_stand_for_what_ggml_says() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf"));
        let gguf = Gguf::open(&folder.join("blocks.gguf")).unwrap();
        let expected = std::fs::read(folder.join("blocks.safetensors")).unwrap().leak();
        let files = ModelFiles::Embedded(vec![("model.safetensors", &*expected)].leak());
        let checkpoint = Checkpoint::open(&files).unwrap();
        for (block_type, _, name) in BlockType::ALL {
            let found = gguf.vector(name).unwrap();
            let expected = checkpoint.take(name, &[1, 256]).unwrap().to_f32();
            assert_eq!(gguf.blocks(name).unwrap().info.block_type, block_type);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                // ggml subtracts before it multiplies in some types, and so rounds elsewhere.
                assert!(
                    (found - expected).abs() <= 1e-6 * expected.abs().max(1e-2),
                    "{name}[{i}]: {found} {expected}"
                );
            }
        }
    }
}
