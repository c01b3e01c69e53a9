//! A prompt that is given chunk by chunk, in blocks that lie scattered, and a few numbers that are expected after some of its tokens.

use models::{DeviceRunner, LoadOptions, Loaded, ModelFiles};
use safetensors::tensor::Dtype;
use scheduler::{Batch, BatchItem, BlockId, Sample, SamplingParams, SequenceId};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const PROMPT: usize = 90;
/// After which numbers were computed, and of which tokens.
const POSITIONS: [usize; 3] = [20, 60, 89];
const TOKENS: [usize; 4] = [0, 31, 64, 127];
const BLOCK: usize = 5;

/// As tools/golden prints them.
pub type Numbers = [[f32; 4]; 3];

pub struct Feed {
    pub runner: DeviceRunner,
    num_blocks: usize,
}

fn prompt() -> Vec<u32> {
    (0..PROMPT as u32).map(|i| (7 * i * i + 3 * i + 11) % 128).collect()
}

impl Feed {
    /// A model that is in no folder: it is written for this, under a name of its own.
    pub fn of(
        name: &str,
        config: &Value,
        tensors: &BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
        options: &LoadOptions,
    ) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = super::scratch().join(format!("{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        super::adapters::write(&folder.join("model.safetensors"), tensors);
        let files = ModelFiles::Directory(folder.clone());
        let planned = models::plan(&files, options).unwrap();
        let Loaded { runner, plan, .. } = models::load(&files, options, &mut |_| {}).unwrap();
        // Weights in bf16 may turn out not to be compact.
        assert!(plan == planned || plan.weight_layout != planned.weight_layout, "{name}: {plan:?}");
        std::fs::remove_dir_all(&folder).unwrap();
        Self { runner, num_blocks: plan.num_blocks }
    }

    /// A chunk of the prompt, in blocks of its own.
    pub fn item(&self, sequence: usize, from: usize, to: usize) -> BatchItem {
        let blocks = PROMPT.div_ceil(BLOCK);
        // A step that is coprime to the number of blocks.
        let step = [7, 11, 13].into_iter().find(|step| !self.num_blocks.is_multiple_of(*step)).unwrap();
        let block = |i: usize| BlockId(((sequence * blocks + i) * step % self.num_blocks) as u32);
        assert!(2 * blocks <= self.num_blocks);
        let tokens = prompt()[from..to].to_vec();
        BatchItem {
            prompt_len: to,
            sample: Some(Sample::new(Arc::new(SamplingParams::default()), to, 0)),
            ..BatchItem::new(
                SequenceId(sequence as u64),
                tokens,
                from,
                (0..to.div_ceil(BLOCK)).map(block).collect(),
            )
        }
    }

    /// The distributions after each token of which they are known.
    pub fn run(&mut self, chunk: usize) -> Vec<Vec<f32>> {
        let mut found = Vec::new();
        let (mut from, mut ends) = (0, POSITIONS.map(|position| position + 1).to_vec());
        ends.reverse();
        while let Some(&end) = ends.last() {
            let to = end.min(from + chunk);
            let batch = Batch { items: vec![self.item(0, from, to)], ..Default::default() };
            let last = self.runner.distributions(&batch).pop().unwrap();
            if to == end {
                found.push(last);
                ends.pop();
            }
            from = to;
        }
        found
    }

    /// The last token in a step of its own, and beside a prompt that begins, has the bits of `whole`.
    pub fn check_company(&mut self, whole: &[f32], what: &str) {
        assert!(self.run(29).pop().unwrap() == whole, "{what} in other chunks");
        let items = vec![self.item(1, 0, 31), self.item(0, PROMPT - 1, PROMPT)];
        let found = self.runner.distributions(&Batch { items, ..Default::default() });
        assert!(found[1] == whole, "{what} in company");
    }
}

pub fn is_near(found: &[Vec<f32>], expected: &Numbers, tolerance: f32) -> [bool; 3] {
    std::array::from_fn(|i| {
        TOKENS.iter().zip(expected[i]).all(|(&token, number)| (found[i][token] - number).abs() < tolerance)
    })
}

pub fn check(found: &[Vec<f32>], expected: &Numbers, tolerance: f32, what: &str) {
    for (i, is_near) in is_near(found, expected, tolerance).into_iter().enumerate() {
        let (found, expected) = (TOKENS.map(|token| found[i][token]), expected[i]);
        assert!(is_near, "{what} after {}: {found:?} is not {expected:?}", POSITIONS[i]);
    }
}
