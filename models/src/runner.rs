//! Executes the scheduler's batches on a device: pictures, decoder, sampling. Between steps it remembers nothing but the memory
//! that blocks name.

use crate::decode_graphs::DecodeGraphs;
use crate::decoder::{Decoder, Sources};
use crate::head::{self, HeadRows};
use crate::input::{BlockSizes, ModelInput, StepInput, slot};
use crate::kv_cache::KvCache;
use crate::lora::{Adapter, AdapterError, Loras};
use crate::sampler::{self, Drawing, RowResult, RowTask, Sampler};
use crate::scratch::Scratch;
use crate::screening::ScreenCounts;
use crate::vision::Vision;
use kernels::{
    Beside, BlockMove, CopyTimes, Device, Error, HostBlocks, Indices, Milestone, Stopwatch, Tensor, Ticket,
    ops,
};
use scheduler::{AdapterId, Batch, BlockCopy, Digest, ImageEncode, ModelRunner, StepOutput};
use std::borrow::Borrow;
use std::collections::VecDeque;
use std::time::Duration;

/// Between two looks at masks that are being computed, which takes milliseconds at most.
const MASK_PAUSE: Duration = Duration::from_micros(20);

pub struct DeviceRunner {
    device: Device,
    decoder: Decoder,
    eyes: Option<Eyes>,
    /// Where there is room for adapters.
    loras: Option<Loras>,
    cache: KvCache,
    /// Where there is a second tier of blocks.
    host_blocks: Option<HostBlocks>,
    copy_times: CopyTimes,
    scratch: Scratch,
    sizes: BlockSizes,
    input: ModelInput,
    on_device: StepInput,
    graphs: Option<DecodeGraphs>,
    sampler: Sampler,
    encoding: Stopwatch,
    encode_us: u64,
    beside: Beside,
    /// Pictures that are encoded beside the steps, in order.
    under_way: VecDeque<(Digest, Ticket)>,
    /// Steps whose work was enqueued before their results were asked for, in order.
    flights: VecDeque<Flight>,
    /// The logits of the last of them.
    logits_are_there: Milestone,
}

/// A step that was launched.
struct Flight {
    /// The first row of each item.
    first_rows: Vec<u32>,
    /// Whether nothing but what it samples is left of it in the memory of a step.
    keeps_nothing: bool,
    /// What it samples, once all of it is enqueued. Otherwise its results are computed when they are asked for.
    drawn: Option<Drawn>,
}

struct Drawn {
    drawing: Drawing,
    /// Of each row that samples; empty where nobody is deferred.
    deferred: Vec<bool>,
}

impl Flight {
    /// Whether another step may be launched before the results of this one are asked for: nothing of it is left in the memory of a step, and
    /// it is known of all who go on.
    fn can_be_followed(&self) -> bool {
        self.keeps_nothing && self.drawn.as_ref().is_some_and(|drawn| drawn.deferred.is_empty())
    }
}

/// What a runner is made of.
pub(crate) struct Parts {
    pub device: Device,
    pub decoder: Decoder,
    pub eyes: Option<Eyes>,
    pub loras: Option<Loras>,
    pub cache: KvCache,
    pub host_blocks: Option<HostBlocks>,
    pub scratch: Scratch,
    pub input: StepInput,
    /// Rows of prompts from this position on are attended to in the expanded form.
    pub expand_from: Option<usize>,
    /// Rotary positions of a token.
    pub num_axes: usize,
    /// Decode steps are captured and replayed, up to so many sequences; 0: never.
    pub max_graph_rows: usize,
}

/// What a model with pictures has beside its decoder.
pub(crate) struct Eyes {
    pub vision: Vision,
    /// One picture, as it comes from the tower: its embedding, and what is added after each of the decoder's first layers.
    pub rows: Vec<Tensor>,
    /// All pictures that a running sequence may still read, row by row; as many as `rows`.
    pub cache: Vec<Tensor>,
    pub rows_per_block: usize,
    /// Which row of a picture goes where.
    pub places: [Indices; 2],
}

impl DeviceRunner {
    pub(crate) fn new(parts: Parts) -> Result<Self, Error> {
        let Parts {
            device,
            decoder,
            eyes,
            loras,
            cache,
            host_blocks,
            scratch,
            input,
            expand_from,
            num_axes,
            max_graph_rows,
        } = parts;
        let image_rows = eyes.as_ref().map_or(1, |eyes| eyes.rows_per_block);
        let sizes = BlockSizes { tokens: cache.block_size, image_rows, expand_from, num_axes };
        let sampler = Sampler::new(&device, scratch.logit_rows, scratch.logits.row_len())?;
        let has_graphs = matches!(device, Device::Cuda(_)) && max_graph_rows > 0;
        Ok(Self {
            encoding: Stopwatch::new(&device)?,
            beside: Beside::new(&device)?,
            logits_are_there: Milestone::new(&device)?,
            under_way: VecDeque::new(),
            graphs: has_graphs.then(|| DecodeGraphs::new(max_graph_rows)),
            device,
            decoder,
            eyes,
            loras,
            cache,
            host_blocks,
            copy_times: CopyTimes::default(),
            scratch,
            sizes,
            input: ModelInput::default(),
            on_device: input,
            sampler,
            encode_us: 0,
            flights: VecDeque::new(),
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Makes an adapter ready for the next steps, under a number that no other had.
    pub fn add_adapter(&mut self, id: AdapterId, adapter: impl Borrow<Adapter>) -> Result<(), AdapterError> {
        self.loras.as_mut().ok_or(AdapterError::Off)?.add(id, adapter.borrow())
    }

    /// Gives an adapter's room to others, if it was loaded. No sequence of it may be running.
    pub fn remove_adapter(&mut self, id: AdapterId) {
        if let Some(loras) = &mut self.loras {
            loras.remove(id);
        }
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
        let sample_rows = self.input.sample_rows.clone();
        for rows in sample_rows.chunks(self.scratch.logit_rows) {
            self.head(rows, None);
            let vocab_size = self.scratch.logits.shape()[1];
            for row in self.scratch.logits.to_f32_vec().chunks_mut(vocab_size) {
                sampler::log_softmax(row);
                distributions.push(row.to_vec());
            }
        }
        self.encode_us = self.encoding_time(batch).expect("the device works");
        distributions
    }

    /// What became of products with the output head, where it is screened.
    pub fn screen_counts(&self) -> ScreenCounts {
        self.decoder.screen_counts()
    }

    /// How often a decode step was replayed from a graph.
    pub fn num_replays(&self) -> u64 {
        self.graphs.as_ref().map_or(0, DecodeGraphs::num_replays)
    }

    /// Encodes the pictures and runs the tokens of a step.
    fn forward(&mut self, batch: &Batch) {
        let mut encodes = batch.encodes.iter().filter(|encode| !encode.ahead).peekable();
        if encodes.peek().is_some() {
            self.encoding.start();
            for encode in encodes {
                self.eyes.as_mut().expect("only models with pictures get pictures").encode(encode);
            }
            self.encoding.stop();
        }
        self.input.pack(batch, self.sizes);
        self.decoder.begin(self.input.sample_rows.len());
        match &mut self.loras {
            Some(loras) => loras.set(&self.input.adapters, self.input.tokens.len()),
            None => assert!(self.input.adapters.is_empty(), "adapters without room for them"),
        }
        let rows = self.graphs.as_ref().and_then(|graphs| graphs.rows_for(&self.input));
        if let Some(rows) = rows {
            self.input.pad(rows, self.sizes.num_axes);
        }
        self.on_device.set(&self.input);
        if !self.input.placeholder_rows.is_empty() {
            let StepInput { placeholder_rows, placeholder_tokens, tokens, .. } = &mut self.on_device;
            self.sampler.place(placeholder_rows, placeholder_tokens, tokens);
        }
        let Self { decoder, on_device, eyes, loras, cache, scratch, .. } = self;
        if rows.is_some() {
            decoder.plan(on_device, cache, scratch);
        }
        let mut run = || {
            let images = eyes.as_ref().map_or(&[][..], |eyes| &eyes.cache);
            let loras = loras.as_ref().filter(|loras| loras.is_in_step());
            decoder.forward(on_device, Sources { images, loras }, cache, scratch);
        };
        match (rows, &mut self.graphs, &self.device) {
            (Some(rows), Some(graphs), Device::Cuda(cuda)) => graphs.run(cuda, rows, &mut run),
            _ if batch.items.is_empty() => {}
            _ => run(),
        }
    }

    /// Enqueues a step up to the logits that come first, and beside it the pictures that it need not wait for.
    fn launch(&mut self, batch: &Batch) -> Flight {
        self.beside.mark();
        self.copy_blocks(batch);
        self.forward(batch);
        let first_rows = self.input.first_rows.clone();
        let head = HeadRows::of(batch, &first_rows);
        if let Some(rows) = head.rows.chunks(self.scratch.logit_rows).next() {
            self.logits(rows, &head.tasks[..rows.len()]);
        }
        self.logits_are_there.set();
        for encode in batch.encodes.iter().filter(|encode| encode.ahead) {
            let eyes = self.eyes.as_mut().expect("only models with pictures get pictures");
            let ticket = self.beside.run(|| eyes.encode(encode));
            self.under_way.push_back((encode.image.digest, ticket));
        }
        let keeps_nothing = batch.items.iter().all(|item| item.prompt.is_none())
            && batch.encodes.iter().all(|encode| encode.ahead);
        Flight { first_rows, keeps_nothing, drawn: None }
    }

    /// Enqueues the copies of a step: its rows come behind the stores, the loads behind these and the steps before.
    fn copy_blocks(&mut self, batch: &Batch) {
        let Batch { stores, loads, waits_for_loads, .. } = batch;
        let Some(host) = &mut self.host_blocks else {
            assert!(stores.is_empty() && loads.is_empty(), "copies to a tier that is not there");
            return;
        };
        if *waits_for_loads {
            host.join();
        }
        let moves = |copies: &[BlockCopy]| -> Vec<BlockMove> {
            let number =
                |copy: &BlockCopy| BlockMove { block: copy.block.0 as usize, place: copy.host.0 as usize };
            copies.iter().map(number).collect()
        };
        host.store(self.cache.tensors_mut(), &moves(stores));
        if !loads.is_empty() {
            host.mark();
        }
        for load in loads {
            host.load(self.cache.tensors_mut(), &moves(&load.copies));
        }
    }

    /// How many more loads are there now; where there was nothing else to do, one is waited for.
    fn loaded(&mut self, is_waiting: bool) -> usize {
        let Some(host) = &mut self.host_blocks else { return 0 };
        let num_loaded = host.landed(is_waiting);
        self.copy_times = host.take_times();
        num_loaded
    }

    /// Enqueues what a step samples behind its logits, if that is all and they are one piece. Masks that are being computed are waited for until
    /// the device has the logits: then it would wait as well.
    fn draw_behind(&mut self, batch: &Batch, first_rows: &[u32]) -> Option<Drawn> {
        let mut head = HeadRows::of(batch, first_rows);
        if head.rows.len() > self.scratch.logit_rows || !self.sampler.can_begin(&head.tasks) {
            return None;
        }
        while !batch.can_be_drawn() && !self.logits_are_there.is_reached() {
            std::thread::sleep(MASK_PAUSE);
        }
        let mut deferred = Vec::new();
        if batch.has_late_masks() {
            deferred = batch.choose_deferred();
            head.defer(&deferred);
        }
        if !deferred.contains(&true) {
            deferred.clear();
        }
        Some(Drawn { drawing: self.sampler.begin(&self.scratch.logits, &head.tasks), deferred })
    }

    /// Pictures that are there now; where there was nothing else to do, one is waited for.
    fn landed(&mut self, is_waiting: bool) -> Vec<Digest> {
        let mut landed = Vec::new();
        if is_waiting && let Some((digest, ticket)) = self.under_way.pop_front() {
            self.beside.wait(ticket);
            landed.push(digest);
        }
        while let Some((digest, ticket)) = self.under_way.front_mut()
            && self.beside.is_done(ticket)
        {
            landed.push(*digest);
            self.under_way.pop_front();
        }
        landed
    }

    fn logits(&mut self, rows: &[u32], tasks: &[RowTask]) {
        // What is screened are the model's own logits.
        let is_changed = self.loras.as_ref().is_some_and(Loras::changes_head);
        let screens = self.decoder.screens_head() && !is_changed;
        let tops = if screens { sampler::tops(tasks) } else { None };
        self.head(rows, tops.as_deref());
    }

    /// Logits of some rows of the step, with what adapters make of them.
    fn head(&mut self, rows: &[u32], tops: Option<&[usize]>) {
        self.on_device.head_rows.set(rows);
        self.decoder.logits(&self.on_device.head_rows, tops, &mut self.scratch);
        let loras = self.loras.as_mut().filter(|loras| loras.changes_head());
        let Scratch { sampled, logits, lora, .. } = &mut self.scratch;
        if let (Some(loras), Some(lora)) = (loras, lora) {
            loras.add_logits(rows, sampled, logits, lora);
        }
    }

    /// Takes the results of a step that was launched, and runs what else goes through the head, some rows at a time.
    fn collect(&mut self, batch: &Batch, flight: Flight) -> Result<StepOutput, Error> {
        let Flight { first_rows, drawn, .. } = flight;
        let mut head = HeadRows::of(batch, &first_rows);
        let results = match drawn {
            Some(Drawn { drawing, deferred }) => {
                head.defer(&deferred);
                self.sampler.finish(drawing, &head.tasks)?
            }
            None => self.sample(batch, &mut head)?,
        };
        // Without rows a step waits for a load, or else for a picture.
        let is_waiting = batch.items.is_empty();
        let num_loaded = self.loaded(is_waiting);
        let encoded = self.landed(is_waiting && num_loaded == 0);
        let output = head::output(batch, &first_rows, results, &self.scratch.normed)?;
        self.encode_us = self.encoding_time(batch)?;
        Ok(StepOutput { encoded, num_loaded, ..output })
    }

    fn sample(&mut self, batch: &Batch, head: &mut HeadRows) -> Result<Vec<RowResult>, Error> {
        if batch.has_late_masks() {
            // They have the time that the device needs, and no more.
            self.device.synchronize()?;
            head.defer(&batch.choose_deferred());
        }
        let mut results = Vec::with_capacity(head.rows.len());
        let chunk = self.scratch.logit_rows;
        for (i, (rows, tasks)) in head.rows.chunks(chunk).zip(head.tasks.chunks(chunk)).enumerate() {
            if i > 0 {
                self.logits(rows, tasks);
            }
            results.extend(self.sampler.run(&self.device, &mut self.scratch.logits, tasks)?);
        }
        if head.rows.is_empty() {
            // What fails in a step is told in it, and its time is not the next one's.
            self.device.synchronize()?;
        }
        Ok(results)
    }

    fn encoding_time(&self, batch: &Batch) -> Result<u64, Error> {
        if batch.encodes.iter().any(|encode| !encode.ahead) { self.encoding.micros() } else { Ok(0) }
    }
}

impl Eyes {
    /// Encodes a picture and writes its rows to their places in the cache.
    fn encode(&mut self, encode: &ImageEncode) {
        let num_tokens = encode.image.num_tokens;
        self.rows.iter_mut().for_each(|rows| rows.set_rows(num_tokens));
        self.vision.encode(&encode.image, &mut self.rows);
        let from: Vec<u32> = (0..num_tokens as u32).collect();
        let to: Vec<u32> = (0..num_tokens).map(|row| slot(&encode.rows, row, self.rows_per_block)).collect();
        let [places_from, places_to] = &mut self.places;
        places_from.set(&from);
        places_to.set(&to);
        for (rows, cache) in self.rows.iter().zip(&mut self.cache) {
            ops::scatter_rows(rows, &*places_from, cache, &*places_to);
        }
    }
}

impl ModelRunner for DeviceRunner {
    /// What failed on the device since the step began. The processor cannot fail.
    type Error = Error;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Error> {
        let begun = self.flights.pop_front();
        let flight = begun.unwrap_or_else(|| self.launch(batch));
        self.collect(batch, flight)
    }

    fn begin(&mut self, batch: &Batch) {
        if self.works_alone() {
            let flight = self.launch(batch);
            self.flights.push_back(flight);
        }
    }

    fn draw(&mut self, batch: &Batch) {
        if let Some(flight) = self.flights.pop_back() {
            assert!(flight.drawn.is_none(), "what a step samples is drawn once");
            let drawn = self.draw_behind(batch, &flight.first_rows);
            self.flights.push_back(Flight { drawn, ..flight });
        }
    }

    fn takes_ahead(&self) -> bool {
        self.flights.len() == 1 && self.flights[0].can_be_followed()
    }

    fn works_alone(&self) -> bool {
        matches!(self.device, Device::Cuda(_))
    }

    fn encode_us(&self) -> u64 {
        self.encode_us
    }

    fn copy_us(&self) -> [u64; 2] {
        [self.copy_times.store_us, self.copy_times.load_us]
    }
}
