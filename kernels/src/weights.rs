//! Weights of linear layers, packed for the device that multiplies with them.

use crate::{DType, Device, HostTensor, Tensor};

/// `[N, K]` weights of a linear layer.
#[derive(Debug)]
pub struct Matrix {
    pub(crate) w: Tensor,
}

/// Deterministic normal-like values (sum of uniforms) for dummy weights.
fn random_value(seed: u64, index: u64, std: f32) -> f32 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xd134_2543_de82_ef95);
    let mut sum = 0.0;
    for _ in 0..2 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        sum += (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    }
    sum * std * 6f32.sqrt()
}

impl Matrix {
    /// Parts `[Ni, K]`, stacked along N, stored as `dtype`.
    pub fn pack(device: &Device, dtype: DType, parts: &[HostTensor]) -> Self {
        let k = parts[0].shape[1];
        let n = parts.iter().map(|part| part.shape[0]).sum();
        let mut w = Tensor::zeros(device, dtype, &[n, k]);
        let mut at = 0;
        for part in parts {
            assert_eq!(part.shape[1], k, "parts of different width");
            for index in 0..part.len() {
                w.set(at + index, part.get(index));
            }
            at += part.len();
        }
        Self { w }
    }

    pub fn random(device: &Device, dtype: DType, n: usize, k: usize, std: f32, seed: u64) -> Self {
        let mut w = Tensor::zeros(device, dtype, &[n, k]);
        for index in 0..n * k {
            w.set(index, random_value(seed, index as u64, std));
        }
        Self { w }
    }

    pub fn n(&self) -> usize {
        self.w.shape()[0]
    }

    pub fn k(&self) -> usize {
        self.w.shape()[1]
    }

    pub fn bytes(&self) -> u64 {
        self.w.bytes()
    }

    pub fn packed_bytes(dtype: DType, n: usize, k: usize) -> u64 {
        (n * k * dtype.size()) as u64
    }
}

/// One `[N, K]` matrix for each head.
#[derive(Debug)]
pub struct MatrixBatch {
    pub(crate) heads: Vec<Matrix>,
}

impl MatrixBatch {
    pub fn pack(device: &Device, dtype: DType, heads: &[HostTensor]) -> Self {
        Self {
            heads: heads.iter().map(|head| Matrix::pack(device, dtype, std::slice::from_ref(head))).collect(),
        }
    }

    /// From values by (head, n, k): for sources that are transposed or interleaved.
    pub fn pack_f32(
        device: &Device,
        dtype: DType,
        [heads, n, k]: [usize; 3],
        value: &dyn Fn(usize, usize, usize) -> f32,
    ) -> Self {
        let head = |head| {
            let mut w = Tensor::zeros(device, dtype, &[n, k]);
            for index in 0..n * k {
                w.set(index, value(head, index / k, index % k));
            }
            Matrix { w }
        };
        Self { heads: (0..heads).map(head).collect() }
    }

    pub fn random(device: &Device, dtype: DType, [heads, n, k]: [usize; 3], std: f32, seed: u64) -> Self {
        Self {
            heads: (0..heads)
                .map(|h| Matrix::random(device, dtype, n, k, std, seed ^ (h as u64) << 32))
                .collect(),
        }
    }

    pub fn packed_bytes(dtype: DType, [heads, n, k]: [usize; 3]) -> u64 {
        heads as u64 * Matrix::packed_bytes(dtype, n, k)
    }

    pub fn bytes(&self) -> u64 {
        self.heads.iter().map(Matrix::bytes).sum()
    }
}

/// The three matrices of one expert as a file holds them: gate and up `[I, H]`, down `[H, I]`.
#[derive(Debug, Clone, Copy)]
pub struct ExpertSource<'a> {
    pub gate: HostTensor<'a>,
    pub up: HostTensor<'a>,
    pub down: HostTensor<'a>,
}

/// The routed experts of a layer.
#[derive(Debug)]
pub struct Experts {
    pub(crate) gate_up: Vec<Matrix>,
    pub(crate) down: Vec<Matrix>,
}

impl Experts {
    pub fn pack(device: &Device, dtype: DType, experts: &[ExpertSource]) -> Self {
        Self {
            gate_up: experts.iter().map(|e| Matrix::pack(device, dtype, &[e.gate, e.up])).collect(),
            down: experts.iter().map(|e| Matrix::pack(device, dtype, &[e.down])).collect(),
        }
    }

    /// `experts` of hidden width `h` and inner width `i`.
    pub fn random(device: &Device, dtype: DType, [experts, h, i]: [usize; 3], std: f32, seed: u64) -> Self {
        let key = |e: usize, part: u64| seed ^ (e as u64) << 32 ^ part << 56;
        Self {
            gate_up: (0..experts).map(|e| Matrix::random(device, dtype, 2 * i, h, std, key(e, 1))).collect(),
            down: (0..experts).map(|e| Matrix::random(device, dtype, h, i, std, key(e, 2))).collect(),
        }
    }

    pub fn packed_bytes(dtype: DType, [experts, h, i]: [usize; 3]) -> u64 {
        experts as u64 * (Matrix::packed_bytes(dtype, 2 * i, h) + Matrix::packed_bytes(dtype, h, i))
    }

    pub fn bytes(&self) -> u64 {
        self.gate_up.iter().chain(&self.down).map(Matrix::bytes).sum()
    }

    pub fn len(&self) -> usize {
        self.down.len()
    }

    pub fn is_empty(&self) -> bool {
        self.down.is_empty()
    }
}
