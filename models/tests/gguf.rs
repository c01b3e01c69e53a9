//! GGUF files that llama.cpp's converter wrote of the fixtures, against the fixtures themselves: the same numbers under other names, so
//! the same bits come out.

mod common;

use common::{fixture, load, options};
use models::gguf::Gguf;
use models::{Loaded, ModelFiles};
use scheduler::{Batch, BatchItem, BlockId, Sample, SamplingParams, SequenceId};
use std::sync::Arc;

const MODELS: [&str; 2] = ["llama31", "deepseek_v3"];

fn open(name: &str) -> ModelFiles {
    let gguf = Gguf::open(&fixture("gguf").join(format!("{name}.gguf"))).expect("opens");
    ModelFiles::gguf(gguf, Vec::new()).expect("its metadata is read")
}

fn distribution(loaded: &mut Loaded, tokens: &[u32]) -> Vec<f32> {
    let blocks = tokens.len().div_ceil(loaded.scheduler_config.block_size) as u32;
    let sample = Sample {
        params: Arc::new(SamplingParams::default()),
        position: tokens.len(),
        num_generated: 0,
        history: None,
        mask: None,
    };
    let item = BatchItem {
        id: SequenceId(1),
        tokens: tokens.to_vec(),
        context_len: 0,
        blocks: (0..blocks).map(BlockId).collect(),
        images: Vec::new(),
        prompt: None,
        sample: Some(sample),
    };
    let batch = Batch { items: vec![item], ..Default::default() };
    loaded.runner.distributions(&batch).pop().expect("one distribution")
}

#[test]
fn converted_models_compute_the_same_bits() {
    let tokens: Vec<u32> = (0..70).map(|i| (i * 37 + 11) % 128).collect();
    for name in MODELS {
        let found = models::load(&open(name), &options(), &mut |_| {});
        let mut found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut expected = load(name, &options());
        assert_eq!(found.info.architecture, expected.info.architecture, "{name}");
        assert_eq!(found.info.num_parameters, expected.info.num_parameters, "{name}");
        assert_eq!(found.plan.memory.total, found.runner.allocated_bytes(), "{name}");
        let [found, expected] = [&mut found, &mut expected].map(|loaded| distribution(loaded, &tokens));
        assert_eq!(found, expected, "{name}");
    }
}
