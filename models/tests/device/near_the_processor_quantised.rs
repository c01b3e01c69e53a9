//! Quantised weights on a GPU's code, near what the processor says of the same.

use crate::changed::Changed;
use crate::common::{on_gpu, options};
use crate::world::{Answer, MAX_TOKENS, World, together};
use models::QuantizationChoice::{Auto, Int4, Int8};
use models::{DTypeChoice, LoadOptions, QuantizationChoice};

/// Quantised weights are the same on both; what they are multiplied with is rounded to bf16 on a GPU.
const QUANTISED_TOLERANCE: f32 = 0.05;

fn quantised(name: &str, quantization: QuantizationChoice, options: LoadOptions) -> Vec<Answer> {
    let options = LoadOptions { dtype: DTypeChoice::F32, quantization, ..options };
    together(&mut World::new(name, &options, |_| {}))
}

/// Between log-probabilities of the first token. What follows may follow another token. Of equal chances, either may come first.
fn distance(a: &[Answer], b: &[Answer]) -> f32 {
    let tops = a.iter().zip(b).flat_map(|(a, b)| a.top[0].iter().zip(&b.top[0]));
    tops.map(|(a, b)| (a.1 - b.1).abs()).fold(0.0, f32::max)
}

fn near(name: &str, quantization: QuantizationChoice) {
    let [cpu, gpu] = [options(), on_gpu()].map(|options| quantised(name, quantization, options));
    assert!(gpu.iter().all(|answer| answer.tokens.len() == MAX_TOKENS), "{name}");
    let distance = distance(&gpu, &cpu);
    assert!(distance < QUANTISED_TOLERANCE, "{name}: {distance} from the processor");
}

#[test]
fn at_load() {
    near("kimi_vl", Int4);
    near("llama31", Int8);
    near("qwen3_moe", Int4);
}

/// Each form of weights that a GPU has a layout for, and one that becomes floats.
#[test]
fn published_forms() {
    for form in ["compressed_int4", "compressed_int8", "awq", "gptq_zeros", "fp8"] {
        near(&format!("quantised/{form}"), Auto);
    }
}

/// More patches than go straight into registers, and bf16 in place of levels: what is rounded in the tower is packed, and attention there multiplies in bf16.
#[test]
fn a_larger_picture() {
    let changed = Changed::with_larger_picture("kimi_vl", "text_config", &[("num_experts_per_tok", 8)]);
    let of = |options| together(&mut World::new(changed.path(), &options, |_| {}));
    let cpu = of(LoadOptions { dtype: DTypeChoice::F32, ..options() });
    let gpu = of(LoadOptions { dtype: DTypeChoice::BF16, ..on_gpu() });
    let distance = distance(&gpu, &cpu);
    assert!(distance < QUANTISED_TOLERANCE, "{distance} from the processor");
}

/// Where all experts are taken there is no choice that a rounding could turn.
#[test]
fn all_experts() {
    let all = Changed::new("qwen3_moe", 8, None);
    for quantization in [Int8, Int4] {
        near(all.path(), quantization);
    }
}

/// In int8 a token of the second prompt finds experts 0 and 3 of the first layer all but equal: a router whose row is shorter by one part in 128 turns the
/// processor's choice, and with it the answer. Activations in bf16 turn it as well, and the answer is near one or the other, never between.
#[test]
fn another_expert_is_another_answer() {
    let nudged = Changed::new("qwen3_moe", 3, Some([0, 3]));
    let [one, other] = ["qwen3_moe", nudged.path()].map(|name| quantised(name, Int8, options()));
    assert!(distance(&one, &other) > 0.2, "a choice that decides nothing");
    let gpu = quantised("qwen3_moe", Int8, on_gpu());
    let distances = [&one, &other].map(|cpu| distance(&gpu, cpu));
    assert!(distances.into_iter().any(|distance| distance < QUANTISED_TOLERANCE), "{distances:?}");
}
