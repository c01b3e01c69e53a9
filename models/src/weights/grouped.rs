//! Weights as whole numbers in groups along K, in the layouts of compressed-tensors, AWQ and GPTQ.
//!
//! ```text
//! compressed-tensors   weight_packed [N, K·bits/32]   weight_scale [N, G]   weight_zero_point [N·bits/32, G]
//!   words along K, the first in the lowest bits, each 2^(bits-1) more than it stands for; zeros likewise, in words along N
//! AWQ                  qweight [K, N/8]               scales [G, N]         qzeros [G, N/8]
//!   words along N; the nibbles of a word, from the lowest, are its columns 0 2 4 6 1 3 5 7
//! GPTQ                 qweight [K·bits/32, N]         scales [G, N]         qzeros [G, N·bits/32]
//!   words along K, zeros in words along N, the first in the lowest bits; zeros of most files are stored less one
//! weight = scale · (level - zero)
//! Column i is of group i / size, or of the group that g_idx [K] says where columns were ordered by what they matter (weight_g_idx in
//! compressed-tensors): such groups are no neighbours, and are read as floats.
//! ```
//! Scales are rounded to f16 where they are not numbers of it: f16 scales never, bf16 scales only below 2^-17.

use super::host::HostWeights;
use kernels::{GROUP, GroupedRow, WeightType};
use std::borrow::Cow;

/// 32-bit words, little endian.
pub(super) struct Words<'a>(pub Cow<'a, [u8]>);

impl Words<'_> {
    pub fn get(&self, index: usize) -> u32 {
        let bytes = &self.0[4 * index..4 * index + 4];
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    /// The number at place `index` of a row of words that holds numbers of `bits` bits.
    fn number(&self, row_start: usize, index: usize, bits: u32) -> u32 {
        let per_word = 32 / bits as usize;
        self.get(row_start + index / per_word) >> (index % per_word * bits as usize) & ((1 << bits) - 1)
    }
}

/// Where the levels are.
pub(super) enum Levels<'a> {
    /// Words along K, a row after the other.
    Rows { words: Words<'a>, words_per_row: usize },
    /// A byte each, row by row.
    Bytes(Cow<'a, [u8]>),
    /// Words along K, `[K / per word, N]`.
    Columns { words: Words<'a> },
    /// `[K, N / 8]`, interleaved.
    Awq { words: Words<'a> },
}

/// Where the zeros are; without any they are in the middle of the range.
pub(super) enum Zeros<'a> {
    Middle,
    /// Words along N, `[N / per word, G]`.
    Rows(Words<'a>),
    /// Words along N, `[G, N / per word]`; `add` is 1 where they are stored less one.
    Columns {
        words: Words<'a>,
        add: u32,
    },
    /// As the levels.
    Awq(Words<'a>),
}

pub struct Grouped<'a> {
    pub(super) shape: [usize; 2],
    pub(super) bits: u32,
    /// Of neighbours along K that share a scale.
    pub(super) group: usize,
    /// The group of each column, where they are not neighbours; each is one that there is.
    pub(super) columns: Option<Words<'a>>,
    pub(super) levels: Levels<'a>,
    pub(super) scales: HostWeights<'a>,
    /// `[G, N]`, not `[N, G]`.
    pub(super) scales_by_group: bool,
    pub(super) zeros: Zeros<'a>,
    /// None: floats.
    pub(super) kept_as: Option<WeightType>,
}

/// Where the nibble of each of eight columns is in a word of AWQ.
const AWQ_PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

fn awq_nibble(words: &Words, row: usize, n: usize, column: usize) -> u32 {
    words.get(row * (n / 8) + column / 8) >> (4 * AWQ_PLACE[column % 8]) & 0xf
}

impl Grouped<'_> {
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn num_groups(&self) -> usize {
        self.shape[1].div_ceil(self.group)
    }

    /// Half the range: what levels and zeros of this file are counted from.
    fn middle(&self) -> i32 {
        1 << (self.bits - 1)
    }

    fn level(&self, row: usize, k: usize) -> i8 {
        let n = self.shape[0];
        let stored = match &self.levels {
            Levels::Bytes(bytes) => return bytes[row * self.shape[1] + k].cast_signed(),
            Levels::Rows { words, words_per_row } => words.number(row * words_per_row, k, self.bits),
            Levels::Columns { words } => {
                let per_word = 32 / self.bits as usize;
                let shift = k % per_word * self.bits as usize;
                words.get(k / per_word * n + row) >> shift & ((1 << self.bits) - 1)
            }
            Levels::Awq { words } => awq_nibble(words, k, n, row),
        };
        (stored.cast_signed() - self.middle()) as i8
    }

    fn scale(&self, row: usize, group: usize) -> f32 {
        let index = match self.scales_by_group {
            true => group * self.shape[0] + row,
            false => row * self.num_groups() + group,
        };
        self.scales.view().get(index)
    }

    /// Counted as levels are.
    fn zero(&self, row: usize, group: usize) -> i32 {
        let n = self.shape[0];
        let per_word = 32 / self.bits as usize;
        let stored = match &self.zeros {
            Zeros::Middle => return 0,
            Zeros::Rows(words) => {
                let shift = row % per_word * self.bits as usize;
                words.get(row / per_word * self.num_groups() + group) >> shift & ((1 << self.bits) - 1)
            }
            Zeros::Columns { words, add } => {
                words.number(group * n.div_ceil(per_word), row, self.bits).wrapping_add(*add)
            }
            Zeros::Awq(words) => awq_nibble(words, group, n, row),
        };
        stored.cast_signed() - self.middle()
    }

    pub fn read_f32(&self, row: usize, out: &mut [f32]) {
        if let Some(columns) = &self.columns {
            for (k, out) in out.iter_mut().enumerate() {
                let group = columns.get(k) as usize;
                let level = i32::from(self.level(row, k)) - self.zero(row, group);
                *out = self.scale(row, group) * level as f32;
            }
            return;
        }
        for (group, out) in out.chunks_mut(self.group).enumerate() {
            let (scale, zero) = (self.scale(row, group), self.zero(row, group));
            for (i, out) in out.iter_mut().enumerate() {
                *out = scale * (i32::from(self.level(row, group * self.group + i)) - zero) as f32;
            }
        }
    }

    pub fn read_groups(&self, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        if Some(stored_as) != self.kept_as {
            return false;
        }
        for (k, level) in out.levels.iter_mut().enumerate() {
            *level = self.level(row, k);
        }
        for (group, (scale, zero)) in out.scales.iter_mut().zip(&mut out.zeros).enumerate() {
            let theirs = group * GROUP / self.group;
            *scale = half::f16::from_f32(self.scale(row, theirs));
            *zero = half::f16::from_f32(self.zero(row, theirs) as f32);
        }
        true
    }
}
