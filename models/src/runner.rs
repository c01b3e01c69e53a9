//! Executes the scheduler's batches on a device: pictures, decoder, sampling. Between steps it remembers nothing but the memory
//! that blocks name.

use crate::decoder::Decoder;
use crate::input::{BlockSizes, ModelInput};
use crate::kv_cache::KvCache;
use crate::sampler::{self, Workspace};
use crate::scratch::Scratch;
use kernels::Device;
use scheduler::{Batch, ModelRunner, Sample, Sampled, StepOutput};
use std::convert::Infallible;

pub struct DeviceRunner {
    device: Device,
    decoder: Decoder,
    cache: KvCache,
    scratch: Scratch,
    sizes: BlockSizes,
    input: ModelInput,
    workspace: Workspace,
}

impl DeviceRunner {
    pub(crate) fn new(device: Device, decoder: Decoder, cache: KvCache, scratch: Scratch) -> Self {
        let sizes = BlockSizes { tokens: cache.block_size, image_rows: 1 };
        Self {
            device,
            decoder,
            cache,
            scratch,
            sizes,
            input: ModelInput::default(),
            workspace: Workspace::default(),
        }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Log-probabilities of the whole vocabulary after each item that asks for a sample, in place of sampling.
    pub fn distributions(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        self.forward(batch);
        let mut distributions = Vec::with_capacity(batch.num_samples());
        for rows in self.input.sample_rows.chunks(self.scratch.logit_rows) {
            self.decoder.logits(rows, &mut self.scratch);
            let vocab_size = self.scratch.logits.shape()[1];
            for row in self.scratch.logits.as_f32_mut().chunks_mut(vocab_size) {
                sampler::log_softmax(row);
                distributions.push(row.to_vec());
            }
        }
        distributions
    }

    /// Encodes the pictures and runs the tokens of a step.
    fn forward(&mut self, batch: &Batch) {
        assert!(batch.encodes.is_empty(), "only models with pictures get pictures");
        self.input.pack(batch, self.sizes);
        if !batch.items.is_empty() {
            self.decoder.forward(&self.input, None, &mut self.cache, &mut self.scratch);
        }
    }

    /// One row of logits for each sample, some rows at a time.
    fn sample(&mut self, samples: &[&Sample]) -> Vec<Sampled> {
        let mut sampled = Vec::with_capacity(samples.len());
        let chunk = self.scratch.logit_rows;
        for (rows, samples) in self.input.sample_rows.chunks(chunk).zip(samples.chunks(chunk)) {
            self.decoder.logits(rows, &mut self.scratch);
            let vocab_size = self.scratch.logits.shape()[1];
            let logits = self.scratch.logits.as_f32_mut().chunks_mut(vocab_size);
            sampled.extend(logits.zip(samples).map(|(row, s)| sampler::sample(row, s, &mut self.workspace)));
        }
        sampled
    }
}

impl ModelRunner for DeviceRunner {
    /// The CPU cannot be lost. A device that can will have an error here.
    type Error = Infallible;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Infallible> {
        self.forward(batch);
        let samples: Vec<&Sample> = batch.items.iter().filter_map(|item| item.sample.as_ref()).collect();
        Ok(StepOutput { sampled: self.sample(&samples) })
    }
}
