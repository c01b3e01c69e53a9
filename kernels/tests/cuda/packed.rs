//! Attention inside packed segments: rows of any width in f32, and on tensor cores.

use crate::attention::{SCALE, floats};
use crate::common::*;
use crate::device::{SEEDS, emulated};
use crate::naive;
use kernels::ops::*;
use kernels::*;
use std::ops::Range;

/// Rows and segments of `[T, 3, H, D]`.
pub struct Packed {
    pub heads: usize,
    pub d: usize,
    pub cu_seqlens: Vec<u32>,
    pub multiply_as: DType,
}

impl Packed {
    pub fn qkv(&self) -> Host {
        let t = *self.cu_seqlens.last().expect("offsets") as usize;
        Host::random(DType::F32, &[t, 3, self.heads, self.d], 1)
    }

    pub fn run(&self, device: &Device, qkv: &Host, segments: Range<usize>) -> Result<Vec<u8>, Error> {
        let cu_seqlens = &self.cu_seqlens[segments.start..=segments.end];
        let (start, end) = (cu_seqlens[0], cu_seqlens[cu_seqlens.len() - 1]);
        let t = (end - start) as usize;
        let row = 3 * self.heads * self.d;
        let values: Vec<f32> =
            qkv.values[start as usize * row..end as usize * row].iter().map(|&v| v as f32).collect();
        let qkv = Tensor::from_f32(device, &[t, 3, self.heads, self.d], &values);
        let sizes = AttentionSizes {
            heads: self.heads,
            kv_heads: self.heads,
            key_dim: self.d,
            value_dim: self.d,
            max_context: 0,
            max_tokens: t,
        };
        let mut scratch = AttentionScratch::new(device, sizes).multiplying_as(self.multiply_as);
        let mut out = Tensor::unwritten(device, DType::F32, &[t, self.heads, self.d]);
        let from_zero: Vec<u32> = cu_seqlens.iter().map(|at| at - start).collect();
        packed_attention(&qkv, &from_zero, SCALE, &mut scratch, &mut out);
        out.read()
    }

    fn twin(&self, qkv: &Host) -> Vec<f64> {
        let Self { heads, d, .. } = *self;
        let values: Vec<f32> = qkv.values.iter().map(|&v| v as f32).collect();
        let qkv = Host::new(self.multiply_as, &qkv.shape, &values);
        let at = |token: usize, part: usize, head: usize| {
            &qkv.values[((token * 3 + part) * heads + head) * d..][..d]
        };
        let mut out = Vec::new();
        for segment in self.cu_seqlens.windows(2) {
            let tokens = segment[0] as usize..segment[1] as usize;
            for (token, head) in tokens.clone().flat_map(|t| (0..heads).map(move |h| (t, h))) {
                let part = |part| -> Vec<&[f64]> { tokens.clone().map(|p| at(p, part, head)).collect() };
                out.extend(naive::attend(at(token, 0, head), &part(1), &part(2), f64::from(SCALE)));
            }
        }
        out
    }

    fn check(&self, device: &Device, tolerance: f64) {
        let qkv = self.qkv();
        let found = self.run(device, &qkv, 0..self.cu_seqlens.len() - 1).expect("a result");
        assert_close(&floats(&found), &self.twin(&qkv), tolerance, "packed segments");
        let (row, other) = (self.heads * self.d * 4, emulated(SEEDS[1]));
        for (i, segment) in self.cu_seqlens.windows(2).enumerate().filter(|(_, s)| s[0] < s[1]) {
            let alone = self.run(&other, &qkv, i..i + 1).expect("a result");
            assert!(alone == found[segment[0] as usize * row..segment[1] as usize * row], "segment {i}");
        }
    }
}

#[test]
fn packed_segments_in_f32() {
    let device = emulated(SEEDS[0]);
    Packed { heads: 3, d: 9, cu_seqlens: vec![0, 1, 1, 66, 99], multiply_as: DType::F32 }
        .check(&device, 3e-6);
    Packed { heads: 2, d: 72, cu_seqlens: vec![0, 37], multiply_as: DType::F32 }.check(&device, 3e-6);
}

#[test]
fn packed_segments_on_tensor_cores() {
    let device = emulated(SEEDS[0]);
    let cu_seqlens = vec![0, 1, 1, 66, 196];
    Packed { heads: 2, d: 72, cu_seqlens, multiply_as: DType::BF16 }.check(&device, 4e-3);
    Packed { heads: 1, d: 10, cu_seqlens: vec![0, 70], multiply_as: DType::F16 }.check(&device, 1e-3);
}
