//! Random weights of any shape: enough to measure speed and memory without a checkpoint. Norms are ones and biases zeros, so
//! that activations neither vanish nor overflow however deep the model is.

use super::host::HostWeights;
use kernels::DType;
use std::borrow::Cow;

/// The spread that keeps a linear layer's output as large as its input.
pub(super) fn std(fan_in: usize) -> f32 {
    1.0 / (fan_in.max(1) as f32).sqrt()
}

/// A seed for each tensor, so that its values do not depend on which were made before it (FNV-1a over the name).
pub(super) fn seed(name: &str, seed: u64) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    name.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

pub(super) fn weights(name: &str, shape: &[usize], base_seed: u64) -> HostWeights<'static> {
    let count: usize = shape.iter().product();
    let values: Vec<half::bf16> = match shape.len() {
        _ if name.ends_with("bias") => vec![half::bf16::ZERO; count],
        // Some norms have a vector for each head.
        _ if name.ends_with("norm.weight") => vec![half::bf16::ONE; count],
        0 | 1 => vec![half::bf16::ONE; count],
        _ => {
            let std = std(count / shape[0].max(1));
            let mut state = seed(name, base_seed);
            (0..count).map(|_| half::bf16::from_f32(normal(&mut state) * std)).collect()
        }
    };
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    HostWeights { dtype: DType::BF16, shape: shape.to_vec(), data: Cow::Owned(data), map: None }
}

/// About normal: a sum of four uniform numbers, centred, with variance 1.
fn normal(state: &mut u64) -> f32 {
    let bits = split_mix(state);
    let sum: f32 = (0..4).map(|i| ((bits >> (16 * i)) & 0xffff) as f32 / 65536.0 + 0.5 / 65536.0).sum();
    (sum - 2.0) * 3f32.sqrt()
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
