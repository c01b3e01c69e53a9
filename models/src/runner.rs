//! Executes the scheduler's batches on a device: pictures, decoder, sampling. Between steps it remembers nothing but the memory
//! that blocks name.

use crate::decoder::Decoder;
use crate::head::{self, HeadRows};
use crate::input::{BlockSizes, ModelInput, StepInput, slot};
use crate::kimi_vl::Vision;
use crate::kv_cache::KvCache;
use crate::sampler::{self, RowResult, Sampler};
use crate::scratch::Scratch;
use kernels::{Device, Error, Indices, Tensor, ops};
use scheduler::{Batch, ImageEncode, ModelRunner, StepOutput};
use std::time::Instant;

pub struct DeviceRunner {
    device: Device,
    decoder: Decoder,
    eyes: Option<Eyes>,
    cache: KvCache,
    scratch: Scratch,
    sizes: BlockSizes,
    input: ModelInput,
    on_device: StepInput,
    sampler: Sampler,
    encode_us: u64,
}

/// What a model with pictures has beside its decoder.
pub(crate) struct Eyes {
    pub vision: Vision,
    /// One picture, as it comes from the projector.
    pub rows: Tensor,
    /// All pictures that a running sequence may still read, row by row.
    pub cache: Tensor,
    pub rows_per_block: usize,
    /// Which row of a picture goes where.
    pub places: [Indices; 2],
}

impl DeviceRunner {
    pub(crate) fn new(
        device: Device,
        decoder: Decoder,
        eyes: Option<Eyes>,
        cache: KvCache,
        scratch: Scratch,
        on_device: StepInput,
    ) -> Self {
        let image_rows = eyes.as_ref().map_or(1, |eyes| eyes.rows_per_block);
        let sizes = BlockSizes { tokens: cache.block_size, image_rows };
        let sampler = Sampler::new(&device, scratch.logits.row_len());
        Self {
            device,
            decoder,
            eyes,
            cache,
            scratch,
            sizes,
            input: ModelInput::default(),
            on_device,
            sampler,
            encode_us: 0,
        }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the model holds on its device: the plan's total.
    pub fn allocated_bytes(&self) -> u64 {
        self.device.held_bytes()
    }

    /// Log-probabilities of the whole vocabulary after each item that asks for a sample, in place of sampling. For tests and tools:
    /// panics when the device has failed.
    pub fn distributions(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        self.forward(batch);
        let mut distributions = Vec::with_capacity(batch.num_samples());
        for rows in self.input.sample_rows.chunks(self.scratch.logit_rows) {
            self.on_device.head_rows.set(rows);
            self.decoder.logits(&self.on_device.head_rows, &mut self.scratch);
            let vocab_size = self.scratch.logits.shape()[1];
            for row in self.scratch.logits.to_f32_vec().chunks_mut(vocab_size) {
                sampler::log_softmax(row);
                distributions.push(row.to_vec());
            }
        }
        distributions
    }

    /// Encodes the pictures and runs the tokens of a step.
    fn forward(&mut self, batch: &Batch) {
        let start = Instant::now();
        for encode in &batch.encodes {
            self.eyes.as_mut().expect("only models with pictures get pictures").encode(encode);
        }
        self.encode_us = if batch.encodes.is_empty() { 0 } else { start.elapsed().as_micros() as u64 };
        self.input.pack(batch, self.sizes);
        if !batch.items.is_empty() {
            let images = self.eyes.as_ref().map(|eyes| &eyes.cache);
            self.on_device.set(&self.input);
            self.decoder.forward(&self.on_device, images, &mut self.cache, &mut self.scratch);
        }
    }

    /// Runs rows through the head, some at a time.
    fn run_head(&mut self, head: &HeadRows) -> Result<Vec<RowResult>, Error> {
        let mut results = Vec::with_capacity(head.rows.len());
        let chunk = self.scratch.logit_rows;
        for (rows, tasks) in head.rows.chunks(chunk).zip(head.tasks.chunks(chunk)) {
            self.on_device.head_rows.set(rows);
            self.decoder.logits(&self.on_device.head_rows, &mut self.scratch);
            results.extend(self.sampler.run(&self.device, &mut self.scratch.logits, tasks)?);
        }
        Ok(results)
    }
}

impl Eyes {
    /// Encodes a picture and writes its rows to their places in the cache.
    fn encode(&mut self, encode: &ImageEncode) {
        let num_tokens = encode.image.num_tokens;
        self.rows.set_rows(num_tokens);
        self.vision.encode(&encode.image, &mut self.rows);
        let from: Vec<u32> = (0..num_tokens as u32).collect();
        let to: Vec<u32> = (0..num_tokens).map(|row| slot(&encode.rows, row, self.rows_per_block)).collect();
        let [places_from, places_to] = &mut self.places;
        places_from.set(&from);
        places_to.set(&to);
        ops::scatter_rows(&self.rows, &*places_from, &mut self.cache, &*places_to);
    }
}

impl ModelRunner for DeviceRunner {
    /// What failed on the device since the step began. The processor cannot fail.
    type Error = Error;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Error> {
        self.forward(batch);
        let results = self.run_head(&HeadRows::of(batch, &self.input))?;
        head::output(batch, &self.input, results, &self.scratch.normed)
    }

    fn encode_us(&self) -> u64 {
        self.encode_us
    }
}
