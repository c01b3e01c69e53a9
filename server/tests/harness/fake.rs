//! A model for tests of everything around the model: the next token is a hash of all tokens before it, and of the pictures among
//! them, so that a client can check every token, and mixed-up memory shows. Its tokenizer is one token a byte, and a few longer ones.

use models::{
    GenerationDefaults, ImageError, ImageProcessor, ModelFiles, ModelInfo, ProcessedImage, Transparency,
};
use perilune::adapters::{AdapterSupport, Prepared};
use perilune::engine_thread::AdapterHooks;
use perilune::serve::LoadedModel;
use rustix::time::{ClockId, clock_gettime};
use scheduler::{
    AdapterId, Batch, BatchItem, Digest, Failure, ImageInput, ModelRunner, PromptLogprob, PromptResult,
    PromptTask, PromptWork, RowSum, SampleRow, Sampled, SampledToken, SamplingParams, SchedulerConfig,
    SequenceId, StepOutput, TokenId,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Tokens that only the model writes; they come after the bytes, and before the control tokens.
const WORDS: [&str; 8] = ["the", " moon", "é", "日本", "🌒", "\n\ndata: [DONE]\n\n", "\"quoted\\", "  "];
pub const EOS: TokenId = 264;
pub const IM_START: TokenId = 265;
pub const IM_END: TokenId = 266;
pub const IMAGE: TokenId = 267;
pub const VOCAB_SIZE: usize = 268;
/// Rows of the embedding: more than the tokenizer knows, as with real models.
pub const MODEL_VOCAB_SIZE: usize = VOCAB_SIZE + 4;
pub const HIDDEN_SIZE: usize = 8;

/// What tests do to the model while it runs.
#[derive(Default)]
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// As a GPU: what a step says is told while the next one runs.
    pub works_alone: AtomicBool,
    /// And as one that takes the next step while it runs one.
    pub takes_ahead: AtomicBool,
    /// Nobody is deferred, however late a mask is.
    pub waits_for_masks: AtomicBool,
}

/// What the engine did, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// The rows of a step were handed to the device.
    Begin,
    /// And what is drawn of them.
    Draw,
    /// Its results were read.
    Read,
}

#[derive(Default)]
struct State {
    closed: bool,
    permits: usize,
    waiting: bool,
    failure: Option<Fault>,
    batches: Vec<Vec<SequenceId>>,
    doings: Vec<Doing>,
    pace: Option<Duration>,
    model_cpu: Duration,
    images_held: bool,
    images_waiting: usize,
    images_processed: usize,
}

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    Error,
    Panic,
}

impl Control {
    /// From now on each step waits for a permit.
    pub fn close(&self) {
        self.state.lock().expect("no panic under the lock").closed = true;
    }

    pub fn open(&self) {
        self.state.lock().expect("no panic under the lock").closed = false;
        self.changed.notify_all();
    }

    pub fn permit(&self, num_steps: usize) {
        self.state.lock().expect("no panic under the lock").permits += num_steps;
        self.changed.notify_all();
    }

    pub fn fail_next(&self, fault: Fault) {
        self.state.lock().expect("no panic under the lock").failure = Some(fault);
    }

    /// Waits until a step wants a permit and there is none.
    pub fn wait_until_blocked(&self) {
        let state = self.state.lock().expect("no panic under the lock");
        let blocked = |state: &mut State| !(state.waiting && state.permits == 0);
        let (_state, timeout) = self
            .changed
            .wait_timeout_while(state, super::PATIENCE, blocked)
            .expect("no panic under the lock");
        assert!(!timeout.timed_out(), "the engine did not come to its next step");
    }

    /// How long each step takes from now on, at least.
    pub fn pace(&self, step: Option<Duration>) {
        self.state.lock().expect("no panic under the lock").pace = step;
    }

    /// CPU time spent in steps so far.
    pub fn model_cpu(&self) -> Duration {
        self.state.lock().expect("no panic under the lock").model_cpu
    }

    /// Who was in each step so far.
    pub fn batches(&self) -> Vec<Vec<SequenceId>> {
        self.state.lock().expect("no panic under the lock").batches.clone()
    }

    /// What was done so far by a device that works alone.
    pub fn doings(&self) -> Vec<Doing> {
        self.state.lock().expect("no panic under the lock").doings.clone()
    }

    fn does(&self, doing: Doing) {
        self.state.lock().expect("no panic under the lock").doings.push(doing);
    }

    /// From now on the image processor waits, or goes on.
    pub fn hold_images(&self, held: bool) {
        self.state.lock().expect("no panic under the lock").images_held = held;
        self.changed.notify_all();
    }

    /// Waits until so many pictures are being processed.
    pub fn wait_for_images(&self, num_waiting: usize) {
        let state = self.state.lock().expect("no panic under the lock");
        let fewer = |state: &mut State| state.images_waiting < num_waiting;
        let (_state, timeout) =
            self.changed.wait_timeout_while(state, super::PATIENCE, fewer).expect("no panic under the lock");
        assert!(!timeout.timed_out(), "the pictures were not processed");
    }

    /// How often the image processor ran.
    pub fn images_processed(&self) -> usize {
        self.state.lock().expect("no panic under the lock").images_processed
    }

    fn process_image(&self) {
        let mut state = self.state.lock().expect("no panic under the lock");
        state.images_processed += 1;
        state.images_waiting += 1;
        self.changed.notify_all();
        while state.images_held {
            state = self.changed.wait(state).expect("no panic under the lock");
        }
        state.images_waiting -= 1;
    }

    fn enter(&self, batch: &Batch) -> Option<Fault> {
        let mut state = self.state.lock().expect("no panic under the lock");
        state.batches.push(batch.items.iter().map(|item| item.id).collect());
        while state.closed && state.permits == 0 {
            state.waiting = true;
            self.changed.notify_all();
            state = self.changed.wait(state).expect("no panic under the lock");
        }
        state.waiting = false;
        state.permits = state.permits.saturating_sub(1);
        state.failure.take()
    }
}

/// An adapter of this model: a folder with a file `seed`, with which the hash of a prompt begins. Reading one waits as processing a picture does.
pub fn adapters(control: Arc<Control>) -> AdapterSupport<FakeRunner> {
    let prepare = move |folder: &Path| {
        control.process_image();
        let path = folder.join("seed");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let seed: u64 = text.trim().parse().map_err(|error| format!("{}: {error}", path.display()))?;
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&seed.to_le_bytes());
        Ok(Prepared { content: Box::new(seed), rank: 1, bytes: 8, digest })
    };
    let hooks = AdapterHooks {
        add: |runner: &mut FakeRunner, id, content| match *content.downcast_ref::<u64>().expect("a seed") {
            REFUSED_SEED => Err("the runner has no room".into()),
            seed => {
                assert_eq!(runner.adapters.insert(id, seed), None, "a number was used twice");
                Ok(())
            }
        },
        remove: |runner, id| assert!(runner.adapters.remove(&id).is_some(), "it was never there"),
    };
    AdapterSupport { prepare: Arc::new(prepare), hooks }
}

/// Of an adapter that can be read and that the runner refuses.
pub const REFUSED_SEED: u64 = 404;

pub struct FakeRunner {
    /// The hash of all tokens up to each slot.
    prefixes: Vec<u64>,
    block_size: usize,
    adapters: BTreeMap<AdapterId, u64>,
    images: Vec<u64>,
    image_rows: usize,
    control: Arc<Control>,
    encode_us: u64,
    /// By row of the step before: the token, or 0.
    sampled: Vec<TokenId>,
}

const BLOCK_SIZE: usize = 7;
const IMAGE_ROWS: usize = 5;

pub fn config(num_blocks: usize) -> SchedulerConfig {
    SchedulerConfig {
        block_size: BLOCK_SIZE,
        num_blocks,
        num_host_blocks: 0,
        max_model_len: 1000,
        max_batched_tokens: 512,
        max_running: 300,
        max_waiting: 1024,
        image_rows_per_block: IMAGE_ROWS,
        num_image_blocks: 40,
        max_encode_patches: 64,
        encode_ahead: false,
        async_scheduling: true,
        enable_prefix_caching: true,
        share_decoded_below: usize::MAX,
    }
}

pub fn info() -> ModelInfo {
    ModelInfo {
        architecture: "FakeForTests".into(),
        vocab_size: MODEL_VOCAB_SIZE,
        hidden_size: HIDDEN_SIZE,
        max_model_len: 1000,
        eos_token_ids: vec![EOS, IM_END],
        bos_token_id: None,
        image_token_id: Some(IMAGE),
        video_token_id: None,
        num_parameters: 0,
        dtype: "float32",
        quantization: None,
        activations: "float32",
        weight_layout: "plain",
        kv_cache_dtype: "float32",
    }
}

pub fn model(
    control: Arc<Control>,
    config: SchedulerConfig,
    generation: GenerationDefaults,
) -> LoadedModel<FakeRunner> {
    let runner = FakeRunner {
        prefixes: vec![0; config.num_blocks * config.block_size],
        block_size: config.block_size,
        adapters: BTreeMap::new(),
        images: vec![0; config.num_image_blocks],
        image_rows: config.image_rows_per_block,
        control: control.clone(),
        encode_us: 0,
        sampled: Vec::new(),
    };
    LoadedModel {
        device: "fake".into(),
        kv_block_bytes: 64,
        device_bytes: 0,
        runner,
        adapters: None,
        info: ModelInfo { max_model_len: config.max_model_len, ..info() },
        image_processor: Some(Arc::new(FakeImages { control })),
        scheduler_config: config,
        generation,
    }
}

/// One token for each 16 pixels of height, whatever the width.
struct FakeImages {
    control: Arc<Control>,
}

impl ImageProcessor for FakeImages {
    fn process(&self, rgb: &[u8], width: usize, height: usize) -> Result<ProcessedImage, ImageError> {
        self.control.process_image();
        if width * height == 0 {
            return Err(ImageError::Empty { width, height });
        }
        let num_tokens = height.div_ceil(16);
        let hash = rgb.iter().fold(width as u64, |hash, &byte| mix(hash, u64::from(byte)));
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&hash.to_le_bytes());
        // What is seen is in the pixels, whatever the picture is called.
        let mut patches = vec![0.0; num_tokens];
        patches[0] = f32::from_bits((hash ^ (hash >> 32)) as u32);
        let image = ImageInput {
            digest: Digest(digest),
            grid: [num_tokens, 1],
            num_tokens,
            position_grid: None,
            patches,
        };
        Ok(ProcessedImage::Rows(image))
    }

    fn transparency(&self) -> Transparency {
        Transparency::Dropped
    }

    fn num_tokens(&self) -> Option<usize> {
        None
    }
}

fn mix(hash: u64, value: u64) -> u64 {
    let mut x = hash.rotate_left(5) ^ value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 29)
}

impl ModelRunner for FakeRunner {
    type Error = String;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, String> {
        let (start, before) = (Instant::now(), thread_cpu());
        let output = self.compute(batch);
        let pace = self.control.state.lock().expect("no panic under the lock").pace;
        if let Some(rest) = pace.and_then(|pace| pace.checked_sub(start.elapsed())) {
            std::thread::sleep(rest);
        }
        self.control.state.lock().expect("no panic under the lock").model_cpu += thread_cpu() - before;
        // Pictures take half of every step that has some.
        self.encode_us = if batch.encodes.is_empty() { 0 } else { start.elapsed().as_micros() as u64 / 2 };
        if self.works_alone() {
            self.control.does(Doing::Read);
        }
        output
    }

    fn begin(&mut self, _: &Batch) {
        if self.works_alone() {
            self.control.does(Doing::Begin);
        }
    }

    /// Waits for masks where another step is to follow, so that who is in which step does not depend on how fast they are.
    fn draw(&mut self, batch: &Batch) {
        if self.control.takes_ahead.load(Relaxed) || self.control.waits_for_masks.load(Relaxed) {
            for mask in batch.samples().filter_map(|sample| sample.mask.as_ref()) {
                mask.allowed();
            }
        }
        if self.works_alone() {
            self.control.does(Doing::Draw);
        }
    }

    fn takes_ahead(&self) -> bool {
        self.control.takes_ahead.load(Relaxed)
    }

    fn works_alone(&self) -> bool {
        self.control.works_alone.load(Relaxed)
    }

    fn encode_us(&self) -> u64 {
        self.encode_us
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl FakeRunner {
    fn compute(&mut self, batch: &Batch) -> Result<StepOutput, String> {
        match self.control.clone().enter(batch) {
            Some(Fault::Error) => return Err("a planted failure".into()),
            Some(Fault::Panic) => panic!("a planted panic"),
            None => {}
        }
        for encode in &batch.encodes {
            for block in &encode.rows {
                self.images[block.0 as usize] = u64::from(encode.image.patches[0].to_bits());
            }
        }
        let (mut prompts, mut sampled) = (Vec::new(), Vec::with_capacity(batch.num_samples()));
        let mut hashes = Vec::with_capacity(batch.num_samples());
        for item in &batch.items {
            self.run(item);
            prompts.extend(item.prompt.as_ref().map(|work| self.tell(item, work)));
            let rows = item.sample.iter().flat_map(|sample| sample.rows());
            hashes.extend(rows.map(|row| (self.prefixes[self.slot(item, row.position() - 1)], row)));
        }
        for ((hash, row), deferred) in hashes.into_iter().zip(batch.choose_deferred()) {
            sampled.push(if deferred { Sampled::Deferred } else { sample_token(hash, row) });
        }
        let token = |sampled: &Sampled| match sampled {
            Sampled::Token(token) => token.token,
            Sampled::Deferred | Sampled::Failed(_) => 0,
        };
        self.sampled = sampled.iter().map(token).collect();
        Ok(StepOutput { prompts, sampled, ..StepOutput::default() })
    }

    /// What is wanted of rows that were just run.
    fn tell(&self, item: &BatchItem, work: &PromptWork) -> PromptResult {
        let hash = |row: usize| self.prefixes[self.slot(item, item.context_len + row)];
        match &work.task {
            PromptTask::Logprobs { targets, top } => {
                let rows = work.rows.clone().zip(targets);
                PromptResult::Logprobs(
                    rows.map(|(row, &target)| score_token(hash(row), target, *top)).collect(),
                )
            }
            PromptTask::Sum(sum) => {
                let mut sum = sum.0.clone();
                sum.resize(HIDDEN_SIZE, 0.0);
                for row in work.rows.clone() {
                    for (x, byte) in sum.iter_mut().zip(hash(row).to_le_bytes()) {
                        *x += (f64::from(byte) - 127.5) * 0.37;
                    }
                }
                PromptResult::Sum(RowSum(sum))
            }
        }
    }

    fn slot(&self, item: &BatchItem, position: usize) -> usize {
        item.blocks[position / self.block_size].0 as usize * self.block_size + position % self.block_size
    }

    /// Writes the item's prefixes.
    fn run(&mut self, item: &BatchItem) {
        let mut hash = match item.context_len.checked_sub(1) {
            Some(position) => self.prefixes[self.slot(item, position)],
            None => item.adapter.map_or(0, |id| self.adapters[&id]),
        };
        for (i, &token) in item.tokens.iter().enumerate() {
            let token = item.placeholder_for.map_or(token, |row| self.sampled[row]);
            hash = mix(hash, u64::from(token));
            if let Some(rows) =
                item.images.iter().find(|rows| (rows.first_token..rows.first_token + rows.len).contains(&i))
            {
                let row = rows.first_row + i - rows.first_token;
                hash = mix(hash, self.images[rows.rows[row / self.image_rows].0 as usize]);
            }
            let slot = self.slot(item, item.context_len + i);
            self.prefixes[slot] = hash;
        }
    }
}

/// Greedy is the hash alone; a temperature adds the seed. A mask leaves its tokens equally likely.
fn sample_token(hash: u64, row: SampleRow) -> Sampled {
    let SamplingParams { temperature, seed, min_tokens, stop_token_ids, logprobs, .. } = row.params();
    let hash = if *temperature > 0.0 { mix(hash, *seed ^ row.position() as u64) } else { hash };
    let may_end = row.num_generated() >= *min_tokens;
    let allowed = |token: TokenId| may_end || stop_token_ids.binary_search(&token).is_err();
    let candidates: Vec<TokenId> =
        candidates(hash).filter(|&token| allowed(token)).take(logprobs.unwrap_or(0) + 1).collect();
    let mut token = candidates[0];
    if let Some(mask) = &row.sample.mask {
        let Some(words) = mask.allowed() else { return Sampled::Failed(Failure::Constraint) };
        let in_mask =
            |token: TokenId| words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1);
        let left: Vec<TokenId> =
            (0..VOCAB_SIZE as TokenId).filter(|&token| in_mask(token) && allowed(token)).collect();
        if left.is_empty() {
            return Sampled::Failed(Failure::NothingToSample);
        }
        token = left[(mix(hash, 0) % left.len() as u64) as usize];
    }
    Sampled::Token(SampledToken {
        token,
        logprob: logprobs.map(|_| logprob(0)),
        top: (0..logprobs.unwrap_or(0)).map(|rank| (candidates[rank], logprob(rank))).collect(),
    })
}

/// What may follow, most probable first.
fn candidates(hash: u64) -> impl Iterator<Item = TokenId> {
    let mut seen = Vec::with_capacity(1);
    let pick = move |rank: u64| (mix(hash, rank) % VOCAB_SIZE as u64) as TokenId;
    (0..).map(pick).filter(move |token| {
        let is_new = ![IM_START, IMAGE].contains(token) && !seen.contains(token);
        seen.push(*token);
        is_new
    })
}

fn logprob(rank: usize) -> f32 {
    -0.5 - rank as f32 * 0.37
}

/// The same candidates for a token that is read; those that never follow are far behind.
fn score_token(hash: u64, target: TokenId, top: usize) -> PromptLogprob {
    let place = candidates(hash).take(100).position(|token| token == target).unwrap_or(100);
    let top = candidates(hash).take(top).enumerate().map(|(rank, token)| (token, logprob(rank))).collect();
    PromptLogprob { token: target, logprob: logprob(place), rank: place + 1, top }
}

const TEMPLATE: &str = "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}\
{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% else %}<|image|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n\
{%- endfor -%}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The model's files: a byte-level tokenizer and a template.
pub fn files() -> ModelFiles {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocab.insert(byte_char(byte).to_string(), u32::from(byte).into());
    }
    for (i, word) in WORDS.iter().enumerate() {
        vocab.insert(word.bytes().map(byte_char).collect(), (256 + i).into());
    }
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                           "normalized": false, "special": true})
    };
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [special(EOS, "<|eos|>"), special(IM_START, "<|im_start|>"), special(IM_END, "<|im_end|>"), special(IMAGE, "<|image|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": []},
    });
    let config = serde_json::json!({"chat_template": TEMPLATE, "eos_token": "<|im_end|>"});
    let leak = |text: String| -> &'static [u8] { text.leak().as_bytes() };
    let files = vec![
        ("tokenizer.json", leak(tokenizer.to_string())),
        ("tokenizer_config.json", leak(config.to_string())),
    ];
    ModelFiles::Embedded(files.leak())
}

/// GPT-2's printable character for a byte.
pub fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(256 + before).expect("a character")
}
