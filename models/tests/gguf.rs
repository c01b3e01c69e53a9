//! GGUF files that llama.cpp's converter wrote, against the log-probabilities that transformers computed of what they were made from.

mod common;

use common::{fixture, options};
use models::gguf::Gguf;
use models::{Loaded, ModelFiles};
use safetensors::SafeTensors;
use scheduler::{Batch, BatchItem, BlockId, Sample, SamplingParams, SequenceId};
use std::sync::Arc;

fn open(name: &str) -> ModelFiles {
    let gguf = Gguf::open(&fixture("gguf").join(format!("{name}.gguf"))).expect("opens");
    ModelFiles::gguf(gguf, Vec::new()).expect("its metadata is read")
}

fn distribution(loaded: &mut Loaded, tokens: &[u32]) -> Vec<f32> {
    let blocks = tokens.len().div_ceil(loaded.scheduler_config.block_size) as u32;
    let sample = Sample::new(Arc::new(SamplingParams::default()), tokens.len(), 0);
    let item = BatchItem {
        prompt_len: tokens.len(),
        sample: Some(sample),
        ..BatchItem::new(SequenceId(1), tokens.to_vec(), 0, (0..blocks).map(BlockId).collect())
    };
    let batch = Batch { items: vec![item], ..Default::default() };
    loaded.runner.distributions(&batch).pop().expect("one distribution")
}

#[test]
fn converted_models_compute_what_transformers_does() {
    let file = std::fs::read(fixture("gguf").join("log_probs.safetensors")).expect("the fixture");
    let expected = SafeTensors::deserialize(&file).expect("a safetensors file");
    for (name, architecture) in [("llama31", "LlamaForCausalLM"), ("deepseek_v3", "DeepseekV3ForCausalLM")] {
        let loaded = models::load(&open(name), &options(), &mut |_| {});
        let mut loaded = loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(loaded.info.architecture, architecture);
        assert_eq!(loaded.plan.memory.total, loaded.runner.allocated_bytes(), "{name}");
        for length in [1, 7, 50] {
            let tokens: Vec<u32> = (0..length).map(|i| (i * 37 + 11) % 64).collect();
            let found = distribution(&mut loaded, &tokens);
            let place = format!("{name}.{length}");
            let expected = expected.tensor(&place).expect("an array").data().as_chunks::<4>().0;
            assert_eq!(found.len(), expected.len(), "{place}");
            for (token, (found, &expected)) in found.iter().zip(expected).enumerate() {
                let expected = f32::from_le_bytes(expected);
                assert!((found - expected).abs() < 1e-3, "{place}, token {token}: {found}, not {expected}");
            }
        }
    }
}
