//! Whole tiny models on a GPU's code, run by the emulator, or with `PERILUNE_TEST_DEVICE=cuda` on the first GPU: near what the processor
//! says, and equal to themselves in company, in chunks, and from graphs.

mod ahead;
#[macro_use]
mod common;

use common::late::Late;
use common::{fixture, load, on_gpu, options};
use experts::Changed;
use kernels::Device;
use models::{DTypeChoice, DeviceRunner, LoadFormat, LoadOptions, Loaded, QuantizationChoice};
use scheduler::{
    Engine, Event, ImageInput, ImageSpan, SamplingParams, SchedulerConfig, Sequence, SequenceId,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Weights and arithmetic are f32 on both: only the order of sums differs.
const TOLERANCE: f32 = 2e-3;
const MAX_TOKENS: usize = 4;

#[derive(Clone)]
struct Request {
    len: usize,
    /// Where the fixture's picture goes.
    picture_at: Option<usize>,
    params: SamplingParams,
}

/// Tokens, their log-probabilities, and those of the tokens that could have been.
#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    top: Vec<Vec<(u32, f32)>>,
}

impl Answer {
    /// All of it, with numbers as bits.
    fn bits(&self) -> Vec<u32> {
        let top = self.top.iter().flatten().flat_map(|&(token, x)| [token, x.to_bits()]);
        self.tokens.iter().copied().chain(self.logprobs.iter().map(|x| x.to_bits())).chain(top).collect()
    }
}

struct World {
    engine: Engine<DeviceRunner>,
    vocab_size: usize,
    picture: Option<(u32, Arc<ImageInput>)>,
    cached_tokens: usize,
    num_deferred: usize,
}

impl World {
    fn new(family: &str, options: &LoadOptions, change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        let Loaded { runner, info, image_processor, mut scheduler_config, .. } = load(family, options);
        change(&mut scheduler_config);
        scheduler_config.check().unwrap();
        let picture = image_processor.map(|processor| {
            let picture = image::open(fixture(family).join("images/dot.png")).unwrap().to_rgb8();
            let (width, height) = (picture.width() as usize, picture.height() as usize);
            let input = processor.process(&picture, width, height).unwrap();
            (info.image_token_id.unwrap(), Arc::new(input))
        });
        Self {
            engine: Engine::new(scheduler_config, runner),
            vocab_size: info.vocab_size,
            picture,
            cached_tokens: 0,
            num_deferred: 0,
        }
    }

    fn add(&mut self, id: u64, request: &Request) {
        let sequence = self.sequence(id, request);
        self.engine.add(sequence).unwrap();
    }

    fn sequence(&self, id: u64, request: &Request) -> Sequence {
        let mut prompt: Vec<u32> = (0..request.len)
            .map(|i| ((i * 37 + 11 * request.len) % 90.min(self.vocab_size)) as u32)
            .collect();
        let mut spans = Vec::new();
        if let (Some(start), Some((token, image))) = (request.picture_at, &self.picture) {
            prompt.splice(start..start, std::iter::repeat_n(*token, image.num_tokens));
            spans.push(ImageSpan { start, image: image.clone() });
        }
        let params = Arc::new(request.params.clone());
        Sequence::new(SequenceId(id), prompt, spans, params, self.vocab_size).unwrap()
    }

    fn finish(&mut self) -> BTreeMap<u64, Answer> {
        let mut answers: BTreeMap<u64, Answer> = BTreeMap::new();
        while !self.engine.is_idle() {
            let step = self.engine.step().unwrap();
            self.num_deferred += step.stats.deferred_tokens;
            for event in step.events {
                if let Event::Started { cached_tokens, .. } = event {
                    self.cached_tokens += cached_tokens;
                } else if let Event::Token { id, token } = event {
                    let answer = answers.entry(id.0).or_default();
                    answer.tokens.push(token.token);
                    answer.logprobs.extend(token.logprob);
                    answer.top.push(token.top);
                }
            }
        }
        answers
    }
}

fn requests() -> Vec<Request> {
    let base = SamplingParams { max_tokens: MAX_TOKENS, logprobs: Some(3), ..Default::default() };
    let greedy = SamplingParams { temperature: 0.0, ..base.clone() };
    let drawn = SamplingParams { temperature: 0.9, seed: 77, top_p: 0.9, ..base };
    vec![
        Request { len: 11, picture_at: Some(5), params: greedy },
        Request { len: 6, picture_at: None, params: drawn },
    ]
}

fn together(world: &mut World) -> Vec<Answer> {
    for (id, request) in requests().iter().enumerate() {
        world.add(id as u64, request);
    }
    world.finish().into_values().collect()
}

fn near_the_processor(family: &str, mla_expand_from: Option<usize>) {
    let [on_cpu, on_gpu] = [options(), on_gpu()].map(|options| {
        let options = LoadOptions { dtype: DTypeChoice::F32, mla_expand_from, ..options };
        together(&mut World::new(family, &options, |_| {}))
    });
    for (gpu, cpu) in on_gpu.iter().zip(&on_cpu) {
        assert_eq!((gpu.tokens.len(), &gpu.tokens), (MAX_TOKENS, &cpu.tokens), "{family}");
        for (gpu, cpu) in gpu.logprobs.iter().zip(&cpu.logprobs) {
            assert!((gpu - cpu).abs() < TOLERANCE, "{family}: {gpu} is not {cpu}");
        }
    }
}

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

fn near_the_processor_quantised(name: &str, quantization: QuantizationChoice) {
    let [cpu, gpu] = [options(), on_gpu()].map(|options| quantised(name, quantization, options));
    assert!(gpu.iter().all(|answer| answer.tokens.len() == MAX_TOKENS), "{name}");
    let distance = distance(&gpu, &cpu);
    assert!(distance < QUANTISED_TOLERANCE, "{name}: {distance} from the processor");
}

/// On tensor cores, in bf16 or as the checkpoint or the options say.
fn equal_to_itself(family: &str, quantization: QuantizationChoice, mla_expand_from: Option<usize>) {
    let options = LoadOptions { dtype: DTypeChoice::BF16, quantization, mla_expand_from, ..on_gpu() };
    let alone: Vec<Answer> = requests()
        .iter()
        .map(|request| {
            let mut world = World::new(family, &LoadOptions { graphs: false, ..options.clone() }, |_| {});
            world.add(7, request);
            let answer = world.finish().remove(&7).unwrap();
            assert_eq!(world.engine.runner().num_replays(), 0);
            answer
        })
        .collect();
    let check = |what: &str, answers: &[Answer]| {
        for (answer, alone) in answers.iter().zip(&alone) {
            assert_eq!(answer.bits(), alone.bits(), "{family} {what}");
        }
    };
    // Two sequences in each decode step after the first: the second such step is captured, the rest are replayed.
    let mut world = World::new(family, &options, |_| {});
    check("together, from graphs", &together(&mut world));
    // What the first time left in memory is found by the second.
    assert_eq!(world.cached_tokens, 0);
    check("again, on a prefix hit", &together(&mut world));
    assert!(world.cached_tokens > 0, "{family}: nothing was found");
    assert!(world.engine.runner().num_replays() > 0, "{family}: no graph was replayed");
    // Five tokens in a step: prompts in pieces, beside a sequence that decodes.
    let mut world = World::new(family, &options, |config| {
        config.max_batched_tokens = 5;
        config.max_running = 2;
    });
    check("in chunks", &together(&mut world));
    // Pictures wait for nobody, unless they are told to.
    let mut world = World::new(family, &options, |config| {
        assert!(config.encode_ahead);
        config.encode_ahead = false;
    });
    check("with pictures in the steps that need them", &together(&mut world));
    // A graph of more rows than there are sequences.
    let mut world = World::new(family, &options, |_| {});
    for id in 2..11 {
        world.add(id, &Request { len: 3, picture_at: None, params: requests()[0].params.clone() });
    }
    check("among others", &together(&mut world));
}

/// Steps go on without masks that are late, also those that are replayed from graphs, and no bit changes.
#[test]
fn late_masks() {
    let answers = |most: usize| {
        let mut world = World::new("llama31", &LoadOptions { dtype: DTypeChoice::BF16, ..on_gpu() }, |_| {});
        for (id, request) in requests().iter().enumerate() {
            let mut sequence = world.sequence(id as u64, request);
            sequence.constraint = Some(Box::new(Late::new(id as u64, most)));
            world.engine.add(sequence).unwrap();
            world.add(10 + id as u64, request);
        }
        let answers = world.finish();
        (answers, world.num_deferred, world.engine.runner().num_replays())
    };
    let (expected, none, _) = answers(0);
    let (late, num_deferred, num_replays) = answers(4);
    for (id, answer) in &expected {
        assert_eq!(answer.tokens.len(), MAX_TOKENS);
        assert_eq!(late[id].bits(), answer.bits(), "sequence {id}");
    }
    assert_eq!(none, 0);
    assert!(num_deferred > 3 && num_replays > 0, "{num_deferred} deferred, {num_replays} replays");
}

mod near_the_processor {
    test_families!(|name| super::near_the_processor(name, None));
}

/// Keys and values are made of the latents again, for all rows of prompts or from one on: at the processor the same rows.
#[test]
fn near_the_processor_in_the_expanded_form() {
    for (family, from) in [("moonlight", 0), ("deepseek_v2", 4), ("deepseek_v3", 6), ("kimi_vl", 7)] {
        near_the_processor(family, Some(from));
    }
}

mod near_the_processor_quantised {
    use super::experts::Changed;
    use super::{
        QUANTISED_TOLERANCE, distance, near_the_processor_quantised as near, on_gpu, options, quantised,
    };
    use models::QuantizationChoice::{Auto, Int4, Int8};

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
}

/// Fixtures whose choice of experts is changed, or their sizes.
mod experts {
    use super::fixture;
    use serde_json::Value;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering};

    pub struct Changed {
        folder: PathBuf,
    }

    impl Changed {
        /// With so many experts for each token, and weights of the router of `[layer, expert]` that are smaller by one part in 128.
        pub fn new(name: &str, num_experts: usize, nudged: Option<[usize; 2]>) -> Self {
            let changed = Self::copy(name);
            let mut config: Value = serde_json::from_slice(&changed.read("config.json")).unwrap();
            config["num_experts_per_tok"] = num_experts.into();
            changed.write("config.json", config.to_string().as_bytes());
            if let Some([layer, expert]) = nudged {
                let mut bytes = changed.read("model.safetensors");
                nudge(&mut bytes, &format!("model.layers.{layer}.mlp.gate.weight"), expert);
                changed.write("model.safetensors", &bytes);
            }
            changed
        }

        /// With other sizes of its decoder, for random weights.
        pub fn with(name: &str, sizes: &[(&str, u64)]) -> Self {
            let changed = Self::copy(name);
            let mut config: Value = serde_json::from_slice(&changed.read("config.json")).unwrap();
            for (key, value) in sizes {
                config["text_config"][key] = (*value).into();
            }
            changed.write("config.json", config.to_string().as_bytes());
            changed
        }

        fn copy(name: &str) -> Self {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let folder =
                std::env::temp_dir().join(format!("perilune-{name}-{}-{number}", std::process::id()));
            copy_into(&folder, &fixture(name));
            Self { folder }
        }

        pub fn path(&self) -> &str {
            self.folder.to_str().unwrap()
        }

        fn read(&self, file: &str) -> Vec<u8> {
            std::fs::read(Path::new(&self.folder).join(file)).unwrap()
        }

        fn write(&self, file: &str, bytes: &[u8]) {
            std::fs::write(Path::new(&self.folder).join(file), bytes).unwrap();
        }
    }

    fn copy_into(folder: &Path, from: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for file in std::fs::read_dir(from).unwrap() {
            let path = file.unwrap().path();
            let to = folder.join(path.file_name().unwrap());
            if path.is_dir() {
                copy_into(&to, &path);
            } else {
                std::fs::copy(&path, to).unwrap();
            }
        }
    }

    impl Drop for Changed {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    fn nudge(file: &mut [u8], name: &str, row: usize) {
        let start = 8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&file[8..start]).unwrap();
        let tensor = &header[name];
        assert_eq!(tensor["dtype"], "BF16");
        let [offset, rows, columns] = [&tensor["data_offsets"][0], &tensor["shape"][0], &tensor["shape"][1]]
            .map(|n| n.as_u64().unwrap() as usize);
        assert!(row < rows);
        let first = start + offset + 2 * row * columns;
        for weight in file[first..first + 2 * columns].as_chunks_mut::<2>().0 {
            let value = f32::from_bits(u32::from(u16::from_le_bytes(*weight)) << 16);
            let nudged = (value * (1.0 - 1.0 / 128.0)).to_bits() + 0x8000;
            *weight = ((nudged >> 16) as u16).to_le_bytes();
        }
    }
}

/// One sequence goes on in every step while the other one's picture is being encoded.
#[test]
fn a_picture_is_encoded_beside_the_steps() {
    let mut world = World::new("kimi_vl", &on_gpu(), |_| {});
    let params = SamplingParams { max_tokens: 12, ..requests()[0].params.clone() };
    world.add(0, &Request { len: 4, picture_at: None, params });
    world.engine.step().unwrap();
    world.add(1, &requests()[0]);
    let mut steps = Vec::new();
    while !world.engine.is_idle() {
        let step = world.engine.step().unwrap();
        let tokens =
            |id| step.stats.shares.iter().find(|share| share.id.0 == id).map(|share| share.num_tokens);
        steps.push((tokens(0), tokens(1), step.stats.encoded_images));
    }
    let whole = requests()[0].len + world.picture.as_ref().unwrap().1.num_tokens;
    // The step that was begun before it came; the text before the picture; steps without it; the rest.
    assert_eq!(steps[0], (Some(1), None, 0));
    assert_eq!(steps[1], (Some(1), Some(5), 1));
    assert_eq!(steps[2], (Some(1), None, 0));
    let rest = steps.iter().position(|step| step.1 == Some(whole - 5)).expect("the picture lands");
    assert!(steps[..rest].iter().all(|step| step.0 == Some(1)), "{steps:?}");
}

/// Kernels that are launched in each of the first decode steps: as it is, into a graph, and beside its replay. Written down, so that they do not
/// creep up. A layer of experts with latent attention has 13 where no pair is sorted: two norms of the stream, six of attention (queries and
/// latents, both made ready, three products and the attention itself), two of the router, three of the experts with the one that all tokens take;
/// and one more in a graph, which adds up ranges of a context that is cut.
#[test]
fn a_decode_step_has_so_many_launches() {
    let launches = |family: &str, format: LoadFormat| -> Vec<u64> {
        // Of random weights, longer contexts than one range has.
        let max_model_len = Some(if format == LoadFormat::Dummy { 1000 } else { 100 });
        let options =
            LoadOptions { dtype: DTypeChoice::BF16, load_format: format, max_model_len, ..on_gpu() };
        let mut world = World::new(family, &options, |config| config.async_scheduling = false);
        let Device::Cuda(cuda) = world.engine.runner().device().clone() else { panic!("not a GPU") };
        let params = SamplingParams { max_tokens: 9, ..requests()[0].params.clone() };
        for id in 0..3 {
            world.add(id, &Request { len: 3, picture_at: None, params: params.clone() });
        }
        world.engine.step().unwrap();
        let step = |_| {
            let before = cuda.num_launches();
            let step = world.engine.step().unwrap();
            assert_eq!(step.stats.shares.len(), 3, "{family}: all of them decode");
            cuda.num_launches() - before
        };
        (0..3).map(step).collect()
    };
    // Heads and latents as those of Kimi-VL, so that they have its kernels.
    let published = |num_layers: u64| {
        let heads =
            [("kv_lora_rank", 512), ("qk_nope_head_dim", 128), ("qk_rope_head_dim", 64), ("v_head_dim", 128)];
        let sizes = [("num_hidden_layers", num_layers), ("moe_intermediate_size", 32)];
        let changed = Changed::with("kimi_vl", &[&heads[..], &sizes].concat());
        launches(changed.path(), LoadFormat::Dummy)
    };
    assert_eq!([1, 2, 3].map(published), [[16, 17, 3], [29, 31, 3], [42, 45, 3]]);
    let of = |family| launches(family, LoadFormat::Auto);
    let [deepseek, qwen, llama] = [[56, 56, 3], [54, 54, 3], [44, 44, 3]];
    assert_eq!(["deepseek_v3", "qwen3_moe", "llama31"].map(of), [deepseek, qwen, llama]);
}

/// The expert of all tokens is computed beside the others in small steps and after them in large ones.
#[test]
fn a_shared_expert_says_the_same_in_steps_of_any_size() {
    let changed = Changed::with("kimi_vl", &[("moe_intermediate_size", 32)]);
    for quantization in [QuantizationChoice::Auto, QuantizationChoice::Int4] {
        let options = LoadOptions {
            dtype: DTypeChoice::BF16,
            load_format: LoadFormat::Dummy,
            quantization,
            ..on_gpu()
        };
        let [whole, in_chunks] = [64, 7].map(|max_batched_tokens| {
            let mut world = World::new(changed.path(), &options, |config| {
                config.max_batched_tokens = max_batched_tokens;
                config.max_running = 2;
            });
            world.add(0, &Request { len: 45, picture_at: None, ..requests()[0].clone() });
            world.finish().remove(&0).unwrap()
        });
        assert_eq!(whole.tokens.len(), MAX_TOKENS);
        assert_eq!(whole.bits(), in_chunks.bits(), "{quantization:?}");
    }
}

mod equal_to_itself {
    use super::equal_to_itself;
    use models::QuantizationChoice::{Auto, Int4, Int8};

    #[test]
    fn pictures_latents_and_experts() {
        equal_to_itself("kimi_vl", Auto, None);
    }

    #[test]
    fn grouped_queries() {
        equal_to_itself("llama31", Auto, None);
    }

    #[test]
    fn softmax_experts() {
        equal_to_itself("qwen3_moe", Auto, None);
    }

    /// Chunks and steps that hold rows of both forms, and pictures that lie on both sides.
    #[test]
    fn in_the_expanded_form() {
        equal_to_itself("kimi_vl", Auto, Some(7));
        equal_to_itself("moonlight", Int8, Some(0));
    }

    #[test]
    fn in_int8() {
        equal_to_itself("moonlight", Int8, None);
    }

    #[test]
    fn in_int4() {
        equal_to_itself("kimi_vl", Int4, None);
    }

    #[test]
    fn in_int4_with_zeros() {
        equal_to_itself("quantised/awq", Auto, None);
    }
}

mod sampling {
    use super::common::bare_gpu;
    use kernels::{Device, Tensor};
    use models::sampler::{RowResult, RowTask, Sampler};
    use scheduler::{History, Sample, Sampled, SamplingParams, TokenMask};
    use std::sync::Arc;

    const VOCAB: usize = 131;

    #[derive(Debug)]
    struct Mask(Option<Vec<u32>>);

    impl TokenMask for Mask {
        fn allowed(&self) -> Option<&[u32]> {
            self.0.as_deref()
        }
    }

    fn logits(seed: u32) -> Vec<f32> {
        let value = |i: u32| (i ^ seed).wrapping_mul(2_654_435_761) >> 8;
        (0..VOCAB as u32).map(|i| value(i) as f32 / (1 << 22) as f32 - 2.0).collect()
    }

    fn sample(params: SamplingParams, mask: Option<Mask>) -> Sample {
        let tokens = vec![3, 7, 7, 90, 3, 12, 12, 12];
        Sample {
            history: Some(History { tokens, prompt_len: 5 }),
            mask: mask.map(|mask| Arc::new(mask) as Arc<dyn TokenMask>),
            ..Sample::new(Arc::new(params), 8, 3)
        }
    }

    /// One of each way to sample, each with a row of its own.
    fn samples() -> Vec<Sample> {
        let base = SamplingParams { logprobs: Some(4), seed: 9, ..SamplingParams::default() };
        let greedy = SamplingParams { temperature: 0.0, ..base.clone() };
        let some = || Some(Mask(Some(vec![0x0f0f_0000, 0, 0x8000_0001])));
        let penalised = SamplingParams {
            repetition_penalty: 1.3,
            frequency_penalty: 0.4,
            presence_penalty: -0.2,
            ..base.clone()
        };
        vec![
            sample(greedy.clone(), None),
            sample(SamplingParams { logprobs: None, ..base.clone() }, None),
            sample(SamplingParams { top_k: 5, temperature: 1.7, ..base.clone() }, None),
            sample(SamplingParams { top_p: 0.7, min_p: 0.02, ..base.clone() }, None),
            sample(penalised, None),
            sample(SamplingParams { logit_bias: vec![(77, 9.0), (3, -4.0)], ..greedy.clone() }, None),
            sample(SamplingParams { min_tokens: 9, stop_token_ids: vec![1, 2, 30], ..greedy.clone() }, None),
            sample(SamplingParams { temperature: 0.6, ..base.clone() }, some()),
            // Nothing is left, there is no mask, and logits that are none.
            sample(greedy.clone(), Some(Mask(Some(vec![0])))),
            sample(greedy.clone(), Some(Mask(None))),
            sample(greedy, None),
        ]
    }

    fn run(device: &Device, samples: &[Sample]) -> Vec<RowResult> {
        let mut tasks: Vec<RowTask> = samples.iter().map(|sample| RowTask::Sample(sample.row(0))).collect();
        tasks.extend([RowTask::Score { target: 44, top: 3 }, RowTask::Score { target: 0, top: 0 }]);
        tasks.extend([RowTask::Defer, RowTask::Defer]);
        let mut values: Vec<f32> = (0..tasks.len() as u32).flat_map(|row| logits(row * 7919)).collect();
        for row in [samples.len() - 1, tasks.len() - 1] {
            values[row * VOCAB + 5] = f32::NAN;
        }
        let mut logits = Tensor::from_f32(device, &[tasks.len(), VOCAB], &values);
        Sampler::new(device, tasks.len(), VOCAB).unwrap().run(device, &mut logits, &tasks).unwrap()
    }

    fn assert_close(a: &[(u32, f32)], b: &[(u32, f32)]) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert_eq!(a.0, b.0);
            assert!((a.1 - b.1).abs() < 1e-5, "{a:?} is not {b:?}");
        }
    }

    #[test]
    fn a_gpu_samples_what_the_processor_samples() {
        let samples = samples();
        let [on_gpu, on_cpu] = [bare_gpu(), Device::cpu(Some(2))].map(|device| run(&device, &samples));
        for (row, results) in on_gpu.iter().zip(&on_cpu).enumerate() {
            match results {
                (RowResult::Sampled(Sampled::Token(gpu)), RowResult::Sampled(Sampled::Token(cpu))) => {
                    assert_eq!(gpu.token, cpu.token, "row {row}");
                    let chosen = |x: Option<f32>| x.map(|x| (0, x)).into_iter().collect::<Vec<_>>();
                    assert_close(&chosen(gpu.logprob), &chosen(cpu.logprob));
                    assert_close(&gpu.top, &cpu.top);
                }
                (RowResult::Scored(Ok(gpu)), RowResult::Scored(Ok(cpu))) => {
                    assert_eq!((gpu.token, gpu.rank), (cpu.token, cpu.rank), "row {row}");
                    assert_close(&[(0, gpu.logprob)], &[(0, cpu.logprob)]);
                    assert_close(&gpu.top, &cpu.top);
                }
                // Failures, and rows that were deferred.
                (gpu, cpu) => assert_eq!(gpu, cpu, "row {row}"),
            }
        }
    }
}
