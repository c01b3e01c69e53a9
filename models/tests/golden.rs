//! Every family against log-probabilities computed by torch and transformers: through paged blocks of odd size that lie in memory
//! in a scattered order, with prompts in chunks of 1, 7 and all.

#[macro_use]
mod common;

use common::{Case, Golden, fixture, load, options};
use models::{DeviceRunner, ImagePlan, LoadOptions, Loaded, ModelFiles, Plan};
use scheduler::{
    Batch, BatchItem, BlockId, ImageEncode, ImageInput, ImageRows, ModelRunner, Sample, SamplingParams,
    SequenceId,
};
use std::sync::Arc;

/// Sums in another order differ by about 1e-5.
const TOLERANCE: f32 = 1e-3;

/// Tokens of one sequence given chunk by chunk, in blocks scattered over the cache.
struct Feed {
    runner: DeviceRunner,
    block_size: usize,
    num_blocks: usize,
    images: Option<ImagePlan>,
}

/// A picture of the prompt, and where its rows are.
struct Picture {
    start: usize,
    input: Arc<ImageInput>,
    rows: Vec<BlockId>,
}

impl Picture {
    /// What tokens `from..to` take of it.
    fn part(&self, from: usize, to: usize) -> Option<ImageRows> {
        let (start, end) = (self.start.max(from), (self.start + self.input.num_tokens).min(to));
        (start < end).then(|| ImageRows {
            first_token: start - from,
            first_row: start - self.start,
            len: end - start,
            position_grid: self.input.position_grid,
            rows: self.rows.clone(),
        })
    }
}

impl Feed {
    fn new(runner: DeviceRunner, plan: &Plan) -> Self {
        Self { runner, block_size: plan.block_size, num_blocks: plan.num_blocks, images: plan.images }
    }

    /// Gives each picture of a prompt its rows, from the last block of the image cache backwards, and encodes it.
    fn encode(&mut self, pictures: Vec<(usize, Arc<ImageInput>)>) -> Vec<Picture> {
        let mut free = self.images.map_or(0, |images| images.num_blocks) as u32;
        let mut place = |(start, input): (usize, Arc<ImageInput>)| {
            let blocks = input.num_tokens.div_ceil(self.images.unwrap().rows_per_block);
            let rows = (0..blocks).map(|_| {
                free -= 1;
                BlockId(free)
            });
            Picture { start, rows: rows.collect(), input }
        };
        let pictures: Vec<Picture> = pictures.into_iter().map(&mut place).collect();
        let encode = |picture: &Picture| ImageEncode {
            image: picture.input.clone(),
            rows: picture.rows.clone(),
            ahead: false,
        };
        let batch = Batch { encodes: pictures.iter().map(encode).collect(), ..Batch::default() };
        assert!(self.runner.distributions(&batch).is_empty());
        // Pictures are charged to those who brought them, so a runner has to tell what they took.
        assert_eq!(self.runner.encode_us() > 0, !batch.encodes.is_empty());
        pictures
    }

    /// The distribution after the last token of `tokens[from..to]`.
    fn chunk(&mut self, tokens: &[u32], pictures: &[Picture], from: usize, to: usize) -> Vec<f32> {
        let blocks = to.div_ceil(self.block_size);
        // A step coprime to the number of blocks visits each of them once.
        let step = (self.num_blocks / 3..).find(|&step| gcd(step, self.num_blocks) == 1).unwrap();
        let before = pictures.iter().filter(|picture| picture.start + picture.input.num_tokens <= from);
        let item = BatchItem {
            prompt_len: to,
            position_shift: before
                .map(|picture| picture.input.num_tokens - picture.input.num_positions())
                .sum(),
            images: pictures.iter().filter_map(|picture| picture.part(from, to)).collect(),
            sample: Some(Sample::new(Arc::new(SamplingParams::default()), to, 0)),
            ..BatchItem::new(
                SequenceId(1),
                tokens[from..to].to_vec(),
                from,
                (0..blocks).map(|i| BlockId(((i + 1) * step % self.num_blocks) as u32)).collect(),
            )
        };
        let batch = Batch { items: vec![item], ..Default::default() };
        self.runner.distributions(&batch).pop().expect("one distribution")
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn argmax(values: &[f32]) -> u32 {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]).then(b.cmp(&a))).unwrap() as u32
}

/// The largest difference, with where it is.
fn compare(found: &[f32], expected: &[f32], place: &str) {
    assert_eq!(found.len(), expected.len(), "{place}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < TOLERANCE, "{place}, entry {i}: {found} is not {expected}");
    }
}

fn check_case(feed: &mut Feed, golden: &Golden, case: &Case, pictures: &[Picture], chunk: usize) {
    let place = |what: &str| format!("{} in chunks of {chunk}, {what}", case.name);
    let mut tokens = case.prompt.clone();
    let mut last = Vec::new();
    for from in (0..tokens.len()).step_by(chunk) {
        let to = (from + chunk).min(tokens.len());
        last = feed.chunk(&tokens, pictures, from, to);
        let vocab_size = last.len();
        if let Some(all) = golden.array(case, "logprobs") {
            compare(
                &last,
                &all[(to - 1) * vocab_size..to * vocab_size],
                &place(&format!("after {to} tokens")),
            );
        }
        if let (Some(all), Some(&next)) = (golden.array(case, "prompt_logprobs"), tokens.get(to)) {
            compare(&[last[next as usize]], &[all[to - 1]], &place(&format!("prompt token {to}")));
        }
    }
    if let Some(all) = golden.array(case, "last_logprobs") {
        compare(&last, all, &place("last"));
    }
    let greedy = golden.array(case, "greedy_logprobs").expect("greedy_logprobs");
    for (i, &token) in case.greedy.iter().enumerate() {
        assert_eq!(argmax(&last), token, "{}", place(&format!("greedy token {i}")));
        compare(&[last[token as usize]], &[greedy[i]], &place(&format!("greedy token {i}")));
        tokens.push(token);
        last = feed.chunk(&tokens, pictures, tokens.len() - 1, tokens.len());
    }
}

fn check_family(name: &str, options: &LoadOptions) {
    let golden = Golden::read(name);
    let Loaded { runner, plan, image_processor, .. } = load(name, options);
    assert!(!golden.cases.is_empty());
    let mut feed = Feed::new(runner, &plan);
    let process = |file: &str| {
        let picture = image::open(fixture(name).join(file)).unwrap().to_rgb8();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Arc::new(image_processor.as_ref().unwrap().process(&picture, width, height).unwrap().into_rows())
    };
    for case in &golden.cases {
        let pictures = case.images.iter().map(|(file, offset)| (*offset, process(file))).collect();
        let pictures = feed.encode(pictures);
        for chunk in [1, 7, 1000] {
            check_case(&mut feed, &golden, case, &pictures, chunk);
        }
    }
}

/// The same numbers from keys and values that are made of the latents again, for all rows or from one on.
#[test]
fn latent_attention_in_its_expanded_form() {
    for (name, from) in
        [("moonlight", 0), ("deepseek_v3", 5), ("deepseek_v2", 0), ("deepseek_v2_lite", 3), ("kimi_vl", 1)]
    {
        check_family(name, &LoadOptions { mla_expand_from: Some(from), ..options() });
    }
}

/// The same weights in the other arrangement of norms: its folder has no weights of its own.
#[test]
fn chameleon_with_norms_after_its_layers() {
    let read = |folder: &str, name: &str| &*std::fs::read(fixture(folder).join(name)).unwrap().leak();
    let files = vec![
        ("config.json", read("chameleon_swin", "config.json")),
        ("model.safetensors", read("chameleon", "model.safetensors")),
    ];
    let loaded = models::load(&ModelFiles::Embedded(files.leak()), &options(), &mut |_| {}).unwrap();
    let mut feed = Feed::new(loaded.runner, &loaded.plan);
    let golden = Golden::read("chameleon_swin");
    for case in &golden.cases {
        for chunk in [1, 3, 1000] {
            check_case(&mut feed, &golden, case, &[], chunk);
        }
    }
}

/// Layers that only predict more tokens are counted, not loaded, and no error.
#[test]
fn layers_that_predict_more_tokens_are_left_out() {
    for (name, expected) in
        [("glm4_moe", 1), ("glm4_moe_lite", 1), ("minimax_m2", 1), ("ernie4_5_moe", 1), ("olmoe", 0)]
    {
        assert_eq!(load(name, &options()).num_mtp_tensors, expected, "{name}");
    }
    assert!(load("deepseek_v3", &options()).num_mtp_tensors > 0);
}

test_families!(|name| check_family(name, &options()));
