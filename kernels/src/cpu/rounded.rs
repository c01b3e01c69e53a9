//! Activations as products of low precision take them: rows rounded to bf16, or to whole numbers in groups of 32.
//!
//! ```text
//! bf16:  x[0] x[1], x[2] x[3], …                                         a word of 32 bits for two terms
//! int16: x[0] x[1], x[2] x[3], …  then for each group: scale             a word for two terms, one word a group
//! int8:  x[0] x[1] x[2] x[3], …   then for each group: start scale sum -  a word for four terms, four words a group
//! ```
//! A group's scale is its largest magnitude / 127, or / 8191 of 16 bits, in f32; a row is rounded by itself, so that its bits are its own. `start` is what
//! makes up for weights whose bytes are stored, or multiplied, with an offset: -offset · Σ x. `sum` is Σ x, for weights with zeros.
//! The end of a row is filled up with zeros as weights are.

use super::processor::Cpu;
use super::simd::dot::{Dot, Floats};
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Bf16Dot, integers};
use super::simd::{Isa, Simd, dot_entry};
use crate::panel::{self, GROUP};
use crate::{ActivationType, MatrixBatch, WeightType};

/// Where a group's numbers are in its header.
pub(crate) const START: usize = 0;
pub(crate) const SCALE: usize = 1;
pub(crate) const SUM: usize = 2;
/// Words of a group's header.
pub(crate) const HEADER: usize = 4;

/// Words of 32 bits in a cache line.
const LINE: usize = 16;

/// How rows of K terms lie, for weights of one type.
#[derive(Clone, Copy)]
pub(crate) struct Rounding {
    pub rounded_to: ActivationType,
    weights: WeightType,
    k: usize,
}

impl Rounding {
    /// Not for f32, which needs no copy.
    pub fn new(rounded_to: ActivationType, weights: WeightType, k: usize) -> Self {
        assert_ne!(rounded_to, ActivationType::F32, "f32 is not rounded");
        Self { rounded_to, weights, k }
    }

    /// What the device makes of rows beside these weights; None where they stay f32.
    pub fn beside(cpu: &Cpu, weights: &MatrixBatch) -> Option<Self> {
        match cpu.rounds.beside(weights.stored_as()) {
            ActivationType::F32 => None,
            rounded_to => Some(Self::new(rounded_to, weights.stored_as(), weights.k())),
        }
    }

    pub fn k(&self) -> usize {
        self.k
    }

    /// Where in a row the terms from `k` on begin, a multiple of the group's size.
    pub fn word_of(&self, k: usize) -> usize {
        match self.rounded_to {
            ActivationType::Int8 => k / 4,
            _ => k / 2,
        }
    }

    /// Where in a row the headers of the groups from `k` on begin.
    pub fn header_of(&self, k: usize) -> usize {
        self.headers() + k / GROUP * self.header()
    }

    /// Words of a group's header.
    fn header(&self) -> usize {
        match self.rounded_to {
            ActivationType::Int8 => HEADER,
            ActivationType::Int16 => 1,
            _ => 0,
        }
    }

    /// Words before the headers.
    pub fn headers(&self) -> usize {
        match self.rounded_to {
            ActivationType::Int8 => self.k.div_ceil(GROUP) * GROUP / 4,
            ActivationType::Int16 => self.k.div_ceil(GROUP) * GROUP / 2,
            _ => panel::k_padded(self.k) / 2,
        }
    }

    /// Words from one row to the next: an odd number of cache lines, because rows that are a power of two apart fight for the same
    /// few places of a cache.
    pub fn row(&self) -> usize {
        let headers = self.k.div_ceil(GROUP) * self.header();
        ((self.headers() + headers).div_ceil(LINE) | 1) * LINE
    }

    /// Of the longest row of `k` terms, whatever it is rounded to.
    pub fn most_words(k: usize) -> usize {
        let of = |rounded_to, weights| Self::new(rounded_to, weights, k).row();
        [
            of(ActivationType::BF16, WeightType::BF16),
            of(ActivationType::Int16, WeightType::CompactBf16),
            of(ActivationType::Int8, WeightType::Int8),
        ]
        .into_iter()
        .max()
        .expect("there are three")
    }
}

/// Some terms of some rows, to be rounded.
pub(crate) struct RoundRows {
    pub x: *const f32,
    /// From one row of x to the next.
    pub x_row: usize,
    pub num_rows: usize,
    /// Where in the rounded rows the terms begin; a multiple of the group's size.
    pub first: usize,
    pub terms: usize,
    /// The first rounded row.
    pub out: *mut u32,
}

/// # Safety
/// `terms` of each row of x can be read, and the rounded rows that `rounding` describes be written.
pub(crate) unsafe fn round_rows(isa: Isa, rounding: &Rounding, job: &RoundRows) {
    match rounding.rounded_to {
        ActivationType::BF16 => bf16_rows(rounding, job),
        ActivationType::Int16 => int16_rows(rounding, job),
        ActivationType::Int8 => int8_rows(isa, rounding, job),
        ActivationType::F32 => unreachable!("f32 is not rounded"),
    }
}

#[cfg(target_arch = "x86_64")]
fn bf16_rows(rounding: &Rounding, job: &RoundRows) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn entry(rounding: &Rounding, job: &RoundRows) {
        // SAFETY: this function has the features.
        let dot = unsafe { Bf16Dot::new() };
        let s = dot.simd();
        for row in 0..job.num_rows {
            // SAFETY: the promise of `round_rows`: a vector that begins within the row's terms ends within its padded length.
            unsafe {
                let x = std::slice::from_raw_parts(job.x.add(row * job.x_row), job.terms);
                let out = job.out.add(row * rounding.row() + job.first / 2);
                for i in (0..job.terms).step_by(16) {
                    dot.store_rounded(out.add(i / 2).cast(), s.load_slice(&x[i..]));
                }
            }
        }
    }
    // SAFETY: a device rounds to bf16 only where `Isa::has_bf16_dots`.
    unsafe { entry(rounding, job) }
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_rows(_: &Rounding, _: &RoundRows) {
    unreachable!("no processor of this kind multiplies bf16");
}

/// The largest level of 16 bits: 32 products with levels of weights, up to 8160, fit 32 bits.
pub(crate) const LARGEST_INT16: f32 = 8191.0;

#[cfg(target_arch = "x86_64")]
fn int16_rows(rounding: &Rounding, job: &RoundRows) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn entry(rounding: &Rounding, job: &RoundRows) {
        // SAFETY: this function has the features.
        let s = unsafe { Avx2::new() };
        for row in 0..job.num_rows {
            // SAFETY: the promise of `round_rows`.
            let x = unsafe { std::slice::from_raw_parts(job.x.add(row * job.x_row), job.terms) };
            let out = job.out.wrapping_add(row * rounding.row());
            let (mut words, mut scales) = (
                out.wrapping_add(job.first / 2),
                out.wrapping_add(rounding.header_of(job.first)).cast::<f32>(),
            );
            let (groups, rest) = x.as_chunks::<GROUP>();
            let mut padded = [0.0; GROUP];
            padded[..rest.len()].copy_from_slice(rest);
            for group in groups.iter().chain((!rest.is_empty()).then_some(&padded)) {
                // SAFETY: as above: whole groups, and a word for each, have room.
                unsafe {
                    scales.write(integers::round_group(s, group, [LARGEST_INT16, SMALLEST], words.cast()))
                };
                (words, scales) = (words.wrapping_add(GROUP / 2), scales.wrapping_add(1));
            }
        }
    }
    // SAFETY: a device rounds to 16 bits only with AVX2.
    unsafe { entry(rounding, job) }
}

#[cfg(not(target_arch = "x86_64"))]
fn int16_rows(_: &Rounding, _: &RoundRows) {
    unreachable!("no processor of this kind rounds to 16 bits");
}

dot_entry! {
    fn int8_rows(rounding: &Rounding, job: &RoundRows) = int8_rows_body
}

#[inline(always)]
fn int8_rows_body<D: Dot>(d: D, rounding: &Rounding, job: &RoundRows) {
    let (row_words, headers) = (rounding.row(), rounding.headers());
    let offset = match rounding.weights {
        WeightType::Int8 => D::BYTE_OFFSET,
        _ => crate::cpu::pack::NIBBLE_OFFSET,
    };
    for row in 0..job.num_rows {
        // SAFETY: the promise of `round_rows`.
        let (x, out) = unsafe {
            let x = std::slice::from_raw_parts(job.x.add(row * job.x_row), job.terms);
            (x, job.out.add(row * row_words))
        };
        let (groups, rest) = x.as_chunks::<GROUP>();
        let first = job.first / GROUP;
        for (index, x) in groups.iter().enumerate() {
            // SAFETY: as above: whole groups have room.
            unsafe { round_group(d, x, [out, out.wrapping_add(headers)], first + index, offset) };
        }
        if !rest.is_empty() {
            let mut padded = [0.0; GROUP];
            padded[..rest.len()].copy_from_slice(rest);
            let last = first + groups.len();
            // SAFETY: as above.
            unsafe { round_group(d, &padded, [out, out.wrapping_add(headers)], last, offset) };
        }
    }
}

/// Magnitudes below it count as zero: their scale would have no inverse.
pub(super) const SMALLEST: f32 = 1e-30;

/// Writes the levels of a row's group, and its header; `offset` as said above. The scale is NaN if a value is not finite.
///
/// # Safety
/// The words of the group, and those of its header, can be written.
#[inline(always)]
unsafe fn round_group<D: Dot>(
    d: D,
    x: &[f32; GROUP],
    [words, headers]: [*mut u32; 2],
    group: usize,
    offset: i32,
) {
    let s = d.simd();
    let lanes = D::S::LANES;
    // As many as the narrowest vectors need.
    let mut values: [Floats<D>; GROUP / 8] = [s.zero(); GROUP / 8];
    let mut largest = d.splat(0);
    for (i, value) in values.iter_mut().enumerate().take(GROUP / lanes) {
        // SAFETY: whole vectors of the group.
        *value = unsafe { s.load(x.as_ptr().wrapping_add(i * lanes)) };
        largest = d.max(largest, d.magnitude_bits(*value));
    }
    let largest = f32::from_bits(d.largest(largest).cast_unsigned());
    let (scale, by) = match largest {
        _ if !largest.is_finite() => (f32::NAN, 0.0),
        _ if largest < SMALLEST => (0.0, 0.0),
        _ => (largest * (1.0 / 127.0), 127.0 / largest),
    };
    let (mut sum, by) = (d.splat(0), s.splat(by));
    let to = words.wrapping_add(group * GROUP / 4).cast::<u8>();
    for (i, &value) in values.iter().enumerate().take(GROUP / lanes) {
        // What is not finite becomes any byte, and the scale says so.
        let level = d.round(s.mul(value, by));
        sum = d.add(sum, level);
        // SAFETY: the caller's promise.
        unsafe { d.store_bytes(to.wrapping_add(i * lanes), level) };
    }
    let sum = if scale.is_nan() { 0 } else { d.sum(sum) };
    let header = headers.wrapping_add(group * HEADER);
    // SAFETY: the caller's promise.
    unsafe {
        header.add(START).write((-offset * sum).cast_unsigned());
        header.add(SCALE).write(scale.to_bits());
        header.add(SUM).write((sum as f32).to_bits());
    }
}
