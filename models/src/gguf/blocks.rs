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
//! Q2_K 256: 16 × (scale, min of 4 bits) | 64 bytes | d, dmin           w = d s q - dmin m    groups of 16
//! Q3_K 256: 256 third bits | 64 bytes | 16 scales of 6 bits | d        w = d (s - 32) (q - 4)  groups of 16
//! IQ4_NL 32: d | 16 bytes                                              w = d t[q]            t: sixteen numbers
//! IQ4_XS 256: d | 8 scales of 6 bits | 128 bytes                       w = d (s - 32) t[q]   groups of 32
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
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}

/// What the halves of bytes of the IQ4 types stand for.
pub const IQ4_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Values of a group of a K-quant's sub-block with its own minimum.
const SUB_BLOCK: usize = 32;

impl BlockType {
    /// With ggml's number and name.
    const ALL: [(Self, u32, &'static str); 15] = [
        (Self::F32, 0, "F32"),
        (Self::F16, 1, "F16"),
        (Self::Q4_0, 2, "Q4_0"),
        (Self::Q4_1, 3, "Q4_1"),
        (Self::Q5_0, 6, "Q5_0"),
        (Self::Q5_1, 7, "Q5_1"),
        (Self::Q8_0, 8, "Q8_0"),
        (Self::Q2K, 10, "Q2_K"),
        (Self::Q3K, 11, "Q3_K"),
        (Self::Q4K, 12, "Q4_K"),
        (Self::Q5K, 13, "Q5_K"),
        (Self::Q6K, 14, "Q6_K"),
        (Self::Iq4Nl, 20, "IQ4_NL"),
        (Self::Iq4Xs, 23, "IQ4_XS"),
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
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Iq4Xs => 136,
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
                Self::Q2K => q2_k(block, out),
                Self::Q3K => {
                    let d = half_at(block, 108);
                    out.iter_mut().enumerate().for_each(|(i, w)| *w = d * f32::from(q3_k_level(block, i)));
                }
                Self::Iq4Nl => iq4(&block[2..], out, half_at(block, 0)),
                Self::Iq4Xs => {
                    let groups = out.chunks_exact_mut(SUB_BLOCK).zip(block[8..].chunks_exact(16));
                    for (j, (out, bytes)) in groups.enumerate() {
                        iq4(bytes, out, iq4_xs_scale(block, j));
                    }
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

fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, bytes, d, dmin) = (&block[..16], &block[16..80], half_at(block, 80), half_at(block, 82));
    for (i, out) in out.iter_mut().enumerate() {
        let both = scales[i / 16];
        let q = bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        *out = d * f32::from(both & 15) * f32::from(q) - dmin * f32::from(both >> 4);
    }
}

/// `(s - 32) (q - 4)` of a weight, -124 ..= 128. The third bit is missing where four are taken away.
pub fn q3_k_level(block: &[u8], i: usize) -> i16 {
    let (third, bytes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let (group, quarter) = (i / 16, i / 32 % 4);
    let low = if group < 8 { scales[group] & 15 } else { scales[group - 8] >> 4 };
    let scale = low | (scales[8 + group % 4] >> (group / 4 * 2) & 3) << 4;
    let q = bytes[i / 128 * 32 + i % 32] >> (2 * quarter) & 3;
    let has_third = third[i % 32] >> (i / 128 * 4 + quarter) & 1 == 1;
    (i16::from(scale) - 32) * (i16::from(q) - if has_third { 0 } else { 4 })
}

/// `d (s - 32)` of a group.
pub fn iq4_xs_scale(block: &[u8], group: usize) -> f32 {
    let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * group) & 3;
    let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
    half_at(block, 0) * (f32::from(high << 4 | u16::from(low)) - 32.0)
}

fn iq4(bytes: &[u8], out: &mut [f32], d: f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = d * f32::from(IQ4_LEVELS[usize::from(byte & 15)]);
        *high = d * f32::from(IQ4_LEVELS[usize::from(byte >> 4)]);
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
    use BlockType::{Iq4Nl, Iq4Xs, Q2K, Q3K};
    use kernels::{GroupedRow, WeightType};
    use std::path::Path;

    /// Random blocks of every type against the values that the gguf package gives them (tools/golden/gguf_files.py).
    #[test]
    fn blocks_stand_for_what_ggml_says() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf"));
        let gguf = Gguf::open(&folder.join("blocks.gguf")).unwrap();
        let expected = std::fs::read(folder.join("blocks.safetensors")).unwrap().leak();
        let files = ModelFiles::Embedded(vec![("model.safetensors", &*expected)].leak());
        let checkpoint = Checkpoint::open(&files).unwrap();
        let others = |name: &str| MADE.iter().all(|(made, ..)| made.to_string() != name);
        for (block_type, _, name) in BlockType::ALL.into_iter().filter(|(.., name)| others(name)) {
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

    /// Types whose blocks are made here: where d, and dmin, is in a block, eight weights of 256, and the sum of all weights, each times its place
    /// counted from 1, that the gguf package computes (0.19.0).
    const MADE: [(BlockType, &[usize], [f32; 8], f64); 4] = [
        (Q2K, &[80, 82], [1.1875, 1.625, 2.125, -0.9375, 3.4375, -0.5, 1.875, -0.5], 29461.5),
        (Q3K, &[108], [-0.125, -1.125, 0.0, 6.375, 0.0, 4.25, -3.125, 10.5], -1609.75),
        (Iq4Nl, &[0], [0.125, -2.75, -14.625, 10.78125, -1.875, -9.953125, -14.21875, 5.859375], -62325.25),
        (Iq4Xs, &[0], [57.75, 333.375, -127.0, 41.5, 55.0, 95.25, -217.875, 195.0], -389388.125),
    ];

    /// 256 weights: bytes of a formula, and scales that are small numbers.
    fn made(block_type: BlockType, halves: &[usize]) -> Vec<u8> {
        let name = block_type.to_string();
        let seed =
            name.bytes().fold(0x811c_9dc5, |hash: u32, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193));
        let byte = |i: usize| {
            let n = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed);
            let n = (n ^ (n >> 15)).wrapping_mul(2_246_822_519);
            ((n ^ (n >> 13)) >> 24) as u8
        };
        let mut bytes: Vec<u8> = (0..block_type.row_bytes(256).unwrap()).map(byte).collect();
        for (index, block) in bytes.chunks_exact_mut(block_type.bytes()).enumerate() {
            for (i, &at) in halves.iter().enumerate() {
                let value = (0.125 + index as f32 / 64.0) / (1 + i) as f32;
                block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn made_blocks_stand_for_what_ggml_says() {
        for (block_type, halves, expected, sum) in MADE {
            let mut found = [0.0; 256];
            block_type.dequantize(&made(block_type, halves), &mut found);
            let at = [0, 17, 47, 90, 133, 170, 211, 255].map(|i: usize| found[i]);
            assert_eq!(at, expected, "{block_type}");
            let places = found.iter().zip(1u32..).map(|(&w, place)| f64::from(w) * f64::from(place));
            assert_eq!(places.sum::<f64>(), sum, "{block_type}");
        }
    }

    /// As groups: of the types that lose nothing, the same numbers; IQ4_XS within what f16 rounds of a scale.
    #[test]
    fn made_blocks_as_groups() {
        for (block_type, halves, ..) in MADE {
            let (mut blocks, mut groups) = (made(block_type, halves), GroupedRow::new(256));
            let int8 = WeightType::Int8;
            assert_eq!(block_type.kept_as(), Some(int8), "{block_type}");
            if block_type == Q2K {
                assert!(!block_type.read_groups(&blocks, int8, &mut groups), "it has minimums");
                continue;
            }
            assert!(!block_type.read_groups(&blocks, WeightType::Int4, &mut groups), "{block_type}");
            assert!(block_type.read_groups(&blocks, int8, &mut groups), "{block_type}");
            let mut expected = [0.0; 256];
            block_type.dequantize(&blocks, &mut expected);
            for (i, &expected) in expected.iter().enumerate() {
                let found = groups.scales[i / 32].to_f32() * f32::from(groups.levels[i]);
                let most = if block_type == Iq4Xs { expected.abs() / 2048.0 } else { 0.0 };
                assert!((found - expected).abs() <= most, "{block_type}[{i}]: {found} {expected}");
            }
            if block_type == Q3K {
                // The first group's scale is -32 and its weights -4: 128 is no level.
                (blocks[96], blocks[104]) = (blocks[96] & 0xf0, blocks[104] & !3);
                blocks[..16].fill(0);
                blocks[32..48].fill(0);
                assert!(!block_type.read_groups(&blocks, int8, &mut groups));
            }
        }
    }
}
