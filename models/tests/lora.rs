//! Adapters beside the model's weights: what merged weights give, the same bits in any company, and nothing for rows without one.

mod common;

use common::adapters::{
    EXPERT_TARGETS, HEAD, Random, TARGETS, folder, has_experts, id, in_f32, is_of, modules, tensors,
    write_adapter,
};
use common::{files, load, options};
use models::lora::{Adapter, AdapterSpec, Merged, merge};
use models::{DTypeChoice, DeviceRunner, LoadOptions, Loaded, ModelFiles};
use scheduler::{
    AdapterId, Batch, BatchItem, BlockId, Engine, Event, NgramConfig, Sample, SamplingParams,
    SchedulerConfig, Sequence, SequenceId,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Sums in another order differ by about 1e-5.
const TOLERANCE: f32 = 1e-3;

/// Every form of attention and of MLP, with and without a shared expert.
const FAMILIES: &[&str] = &[
    "llama",
    "llama31",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "mistral",
    "mixtral",
    "seed_oss",
    "glm4",
    "glm4_moe",
    "minimax_m2",
    "moonlight",
    "deepseek_v3",
    "deepseek_v2_lite",
    "deepseek_v2",
    "kimi_vl",
    "qwen2_5_vl",
];

fn lora_options(family: &str) -> LoadOptions {
    LoadOptions { max_loras: 3, max_lora_rank: 8, lora_experts: has_experts(family), ..options() }
}

fn read(folder: &std::path::Path, loaded: &Loaded) -> Adapter {
    Adapter::read(folder, loaded.adapters.as_ref().expect("there is room for adapters")).unwrap()
}

/// An adapter of the modules that end so, or have this in their names.
fn adapter_of(family: &str, part: &str, name: &str, random: Random) -> PathBuf {
    let mut modules = modules(family);
    modules.retain(|module, _| module.contains(part) || is_of(module, part));
    assert!(!modules.is_empty(), "{family} has no {part}");
    let folder = folder(name);
    write_adapter(&folder, random.rank, &tensors(&modules, random));
    folder
}

const TOKENS: u32 = 23;

fn item(number: u64, adapter: Option<AdapterId>, block_size: usize) -> BatchItem {
    let tokens: Vec<u32> = (0..TOKENS).map(|i| (i * 37 + 11 + number as u32) % 64).collect();
    let blocks = tokens.len().div_ceil(block_size) as u32;
    let first = number as u32 * blocks;
    BatchItem {
        adapter,
        sample: Some(Sample::new(Arc::new(SamplingParams::default()), tokens.len(), 0)),
        ..BatchItem::new(SequenceId(number), tokens, 0, (first..first + blocks).map(BlockId).collect())
    }
}

fn distribution(loaded: &mut Loaded, adapter: Option<AdapterId>) -> Vec<f32> {
    let item = item(0, adapter, loaded.plan.block_size);
    let batch = Batch { items: vec![item], ..Default::default() };
    loaded.runner.distributions(&batch).pop().expect("one distribution")
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Each module by itself, and all of them, against a model into which the adapter was merged.
#[test]
fn outputs_are_those_of_merged_weights() {
    for &family in FAMILIES {
        let base = folder(&format!("merged-{family}"));
        in_f32(family, &base);
        let base = ModelFiles::Directory(base);
        let mut loaded = models::load(&base, &lora_options(family), &mut |_| {}).unwrap();
        let plain = distribution(&mut loaded, None);
        let names = modules(family);
        let targets = TARGETS.iter().chain(EXPERT_TARGETS).chain([&HEAD]);
        let ends = targets.filter(|target| names.keys().any(|name| is_of(name, target)));
        for (number, part) in (1..).zip(ends.copied().chain([""])) {
            let random = Random { seed: number, rank: 3 + number as usize % 6, b: 0.3 };
            let adapter = adapter_of(family, part, &format!("merged-{family}-adapter"), random);
            let output = folder(&format!("merged-{family}-output"));
            let merged = merge(&base, &adapter, &output, &mut |_, _| {}).unwrap();
            let Merged { changed, copied, bytes_written } = merged;
            assert!(changed > 0 && copied > 0 && bytes_written > 0);
            let without = LoadOptions { max_loras: 0, lora_experts: false, ..lora_options(family) };
            let mut other = models::load(&ModelFiles::Directory(output), &without, &mut |_| {}).unwrap();
            let expected = distribution(&mut other, None);
            let adapter = read(&adapter, &loaded);
            assert_eq!(adapter.rank(), random.rank);
            loaded.runner.add_adapter(id(number), adapter).unwrap();
            let found = distribution(&mut loaded, Some(id(number)));
            loaded.runner.remove_adapter(id(number));
            let (wrong, moved) = (farthest(&found, &expected), farthest(&plain, &expected));
            assert!(moved > 10.0 * TOLERANCE, "{family}, {part}: it changes {moved}");
            assert!(wrong < TOLERANCE, "{family}, {part}: {wrong} from merged, of {moved}");
        }
        assert_eq!(bits(&distribution(&mut loaded, None)), bits(&plain), "{family}: back to the base");
    }
}

/// Against what PEFT wrote, and what torch computes with it.
#[test]
fn adapters_of_peft() {
    for family in ["llama", "deepseek_v3"] {
        let folder = common::fixture("adapters").join(family);
        let golden: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let prompt = golden["prompt_token_ids"].as_array().unwrap();
        let prompt: Vec<u32> = prompt.iter().map(|token| token.as_u64().unwrap() as u32).collect();
        let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let arrays = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let array = |name: &str| -> Vec<f32> {
            let data = arrays.tensor(name).unwrap().data().to_vec();
            data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let mut loaded = load(family, &lora_options(family));
        let adapter = read(&folder, &loaded);
        loaded.runner.add_adapter(id(1), adapter).unwrap();
        for (adapter, name) in [(None, "base_log_probs"), (Some(id(1)), "log_probs")] {
            let sample = Sample::new(Arc::new(SamplingParams::default()), prompt.len(), 0);
            let item = BatchItem {
                adapter,
                sample: Some(sample),
                ..BatchItem::new(SequenceId(1), prompt.clone(), 0, (0..3).map(BlockId).collect())
            };
            let found = loaded.runner.distributions(&Batch { items: vec![item], ..Default::default() });
            let wrong = farthest(&found[0], &array(name));
            assert!(wrong < TOLERANCE, "{family}, {name}: {wrong}");
        }
        assert!(farthest(&array("log_probs"), &array("base_log_probs")) > 0.1, "{family}: it changes little");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Zeros add nothing: every op beside the model's own must leave its bits as they are.
#[test]
fn an_adapter_of_zeros_gives_the_bits_of_the_base() {
    for &family in FAMILIES {
        let options = LoadOptions { dtype: DTypeChoice::Auto, ..lora_options(family) };
        let mut loaded = load(family, &options);
        let mut without = load(family, &LoadOptions { max_loras: 0, lora_experts: false, ..options });
        let adapter = adapter_of(family, "", &format!("zeros-{family}"), Random { seed: 1, rank: 8, b: 0.0 });
        let adapter = read(&adapter, &loaded);
        loaded.runner.add_adapter(id(1), adapter).unwrap();
        let expected = bits(&distribution(&mut without, None));
        assert_eq!(bits(&distribution(&mut loaded, None)), expected, "{family}");
        assert_eq!(bits(&distribution(&mut loaded, Some(id(1)))), expected, "{family}, zeros");
    }
}

/// What newer versions of the published code call the decoder in an adapter, though not in a checkpoint.
#[test]
fn names_of_newer_versions_are_the_same_modules() {
    let family = "qwen2_5_vl";
    let mut loaded = load(family, &lora_options(family));
    let random = Random { seed: 9, rank: 4, b: 0.3 };
    let as_published = tensors(&modules(family), random);
    let newer = |name: &String| name.replace(".model.model.layers.", ".model.model.language_model.layers.");
    let as_newer: BTreeMap<_, _> =
        as_published.iter().map(|(name, tensor)| (newer(name), tensor.clone())).collect();
    assert_ne!(as_newer, as_published);
    let mut said = Vec::new();
    for (number, tensors) in (1..).zip([&as_published, &as_newer]) {
        let folder = folder(&format!("newer-{number}"));
        write_adapter(&folder, random.rank, tensors);
        loaded.runner.add_adapter(id(number), read(&folder, &loaded)).unwrap();
        said.push(bits(&distribution(&mut loaded, Some(id(number)))));
    }
    assert_eq!(said[0], said[1]);
    assert_ne!(said[0], bits(&distribution(&mut loaded, None)));
    // One adapter has one of the two; other models have no second name.
    let mut mixed = as_newer;
    mixed.extend(as_published.into_iter().filter(|(name, _)| name.contains("layers.0.self_attn.q_proj")));
    let folder = folder("newer-mixed");
    write_adapter(&folder, random.rank, &mixed);
    let message = Adapter::read(&folder, loaded.adapters.as_ref().unwrap()).unwrap_err().to_string();
    assert!(message.contains("names are base_model.model.model.language_model.layers.N.MODULE"), "{message}");
}

/// Slots are used again, and nothing of who was there before is left.
#[test]
fn slots_are_used_again() {
    let mut loaded = load("moonlight", &lora_options("moonlight"));
    let of = |part: &str, rank: usize| {
        let random = Random { seed: rank as u64, rank, b: 0.3 };
        adapter_of("moonlight", part, &format!("slots-{rank}"), random)
    };
    let folders = [of("", 8), of("o_proj", 2), of(".experts.", 7), of("layers", 3), of("kv_b_proj", 5)];
    let mut expected = Vec::new();
    for folder in &folders {
        let mut fresh = load("moonlight", &lora_options("moonlight"));
        let adapter = read(folder, &fresh);
        fresh.runner.add_adapter(id(1), adapter).unwrap();
        expected.push(bits(&distribution(&mut fresh, Some(id(1)))));
    }
    let mut next = 1;
    for round in 0..3 {
        for (folder, expected) in folders.iter().zip(&expected) {
            let adapter = read(folder, &loaded);
            loaded.runner.add_adapter(id(next), adapter).unwrap();
            assert_eq!(&bits(&distribution(&mut loaded, Some(id(next)))), expected, "round {round}");
            // Three slots: the one of two adapters ago is given back.
            if next >= 3 {
                loaded.runner.remove_adapter(id(next - 2));
            }
            next += 1;
        }
    }
}

/// Base and two adapters, each as alone: prompts and then tokens in one batch.
#[test]
fn rows_of_a_batch_do_not_know_each_other() {
    for &family in FAMILIES {
        let options = LoadOptions { dtype: DTypeChoice::Auto, ..lora_options(family) };
        let mut loaded = load(family, &options);
        let mut without = load(family, &LoadOptions { max_loras: 0, lora_experts: false, ..options });
        for (number, part, rank) in [(1, "", 8), (2, "self_attn", 3), (3, "mlp.", 5)] {
            let has_mlp = modules(family).keys().any(|name| name.contains(part));
            let part = if has_mlp { part } else { "layers" };
            let random = Random { seed: number, rank, b: 0.3 };
            let folder = adapter_of(family, part, &format!("batch-{family}-{number}"), random);
            let adapter = read(&folder, &loaded);
            loaded.runner.add_adapter(id(number), adapter).unwrap();
        }
        let block_size = loaded.plan.block_size;
        let who = [None, Some(1), Some(2), None, Some(1), Some(3)];
        let items = || (0..).zip(who).map(|(i, who)| item(i, who.map(id), block_size));
        let alone: Vec<Vec<u32>> = items()
            .map(|item| {
                let runner = if item.adapter.is_none() { &mut without.runner } else { &mut loaded.runner };
                bits(&runner.distributions(&Batch { items: vec![item], ..Default::default() })[0])
            })
            .collect();
        let batch = Batch { items: items().collect(), ..Default::default() };
        let together: Vec<Vec<u32>> = loaded.runner.distributions(&batch).iter().map(|d| bits(d)).collect();
        assert_eq!(together, alone, "{family}");
        assert!(alone[1] != alone[4], "prompts differ");
    }
}

/// One token alone is looked up, so that many guesses are wrong.
const EAGER: NgramConfig =
    NgramConfig { num_speculative_tokens: 5, prompt_lookup_max: 3, prompt_lookup_min: 1 };

struct World {
    engine: Engine<DeviceRunner>,
    vocab_size: usize,
    answers: BTreeMap<u64, Answer>,
    num_accepted: usize,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    tokens: Vec<(u32, u32)>,
    cached_tokens: usize,
    preemptions: usize,
}

#[derive(Clone, Copy)]
struct Request {
    adapter: Option<AdapterId>,
    temperature: f32,
    len: usize,
}

const REQUESTS: [(Option<u64>, f32, usize); 6] = [
    (None, 0.0, 71),
    (Some(1), 0.0, 64),
    (Some(2), 0.9, 83),
    (None, 0.9, 40),
    (Some(1), 0.8, 40),
    (Some(2), 0.0, 40),
];

fn requests() -> impl Iterator<Item = Request> {
    REQUESTS.into_iter().map(|(adapter, temperature, len)| Request {
        adapter: adapter.map(id),
        temperature,
        len,
    })
}

impl World {
    fn new(family: &str, change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        let options = LoadOptions { dtype: DTypeChoice::Auto, ..lora_options(family) };
        let mut loaded = load(family, &options);
        for number in [1, 2] {
            let random = Random { seed: number, rank: 2 + 3 * number as usize, b: 0.3 };
            let folder = adapter_of(
                family,
                "",
                &format!("world-{family}-{number}-{:?}", std::thread::current().id()),
                random,
            );
            let adapter = read(&folder, &loaded);
            loaded.runner.add_adapter(id(number), adapter).unwrap();
        }
        let Loaded { runner, info, mut scheduler_config, .. } = loaded;
        change(&mut scheduler_config);
        scheduler_config.check().unwrap();
        let engine = Engine::new(scheduler_config, runner);
        Self { engine, vocab_size: info.vocab_size, answers: BTreeMap::new(), num_accepted: 0 }
    }

    /// Prompts of one length are the same, whatever the adapter.
    fn sequence(&self, number: u64, request: Request) -> Sequence {
        let prompt: Vec<u32> = (0..request.len).map(|i| ((i % 13) * 7 + request.len) as u32 % 64).collect();
        let params = SamplingParams {
            max_tokens: 17,
            temperature: request.temperature,
            seed: 5,
            logprobs: Some(0),
            ..Default::default()
        };
        let id = SequenceId(number);
        let mut sequence = Sequence::new(id, prompt, Vec::new(), Arc::new(params), self.vocab_size).unwrap();
        sequence.adapter = request.adapter;
        sequence
    }

    fn add(&mut self, number: u64, request: Request) {
        self.engine.add(self.sequence(number, request)).unwrap();
    }

    fn finish(&mut self) {
        while !self.engine.is_idle() {
            let step = self.engine.step().unwrap();
            self.num_accepted += step.stats.drafts.iter().map(|draft| draft.num_accepted).sum::<usize>();
            for event in step.events {
                let answer = self.answers.entry(event.id().0).or_default();
                match event {
                    Event::Started { cached_tokens, .. } => answer.cached_tokens = cached_tokens,
                    Event::Token { token, .. } => {
                        answer.tokens.push((token.token, token.logprob.unwrap().to_bits()))
                    }
                    Event::Finished { preemptions, .. } => answer.preemptions = preemptions,
                    other => panic!("nobody asked for {other:?}"),
                }
            }
        }
    }

    fn check(&self, what: &str, first: u64, expected: &[Answer]) {
        for (number, expected) in (first..).zip(expected) {
            assert_eq!(self.answers[&number].tokens, expected.tokens, "{what}: request {number}");
        }
    }
}

fn alone(family: &str) -> Vec<Answer> {
    let answer = |request| {
        let mut world = World::new(family, |_| {});
        world.add(1, request);
        world.finish();
        world.answers.remove(&1).unwrap()
    };
    let answers: Vec<Answer> = requests().map(answer).collect();
    assert!(answers.iter().all(|answer| answer.tokens.len() == 17));
    answers
}

fn in_any_company(family: &str) {
    let expected = alone(family);
    let all = |world: &mut World, first: u64| {
        (first..).zip(requests()).for_each(|(number, request)| world.add(number, request));
        world.finish();
    };
    let mut world = World::new(family, |_| {});
    all(&mut world, 0);
    world.check("together", 0, &expected);
    all(&mut world, 10);
    world.check("from the cache", 10, &expected);
    assert!((10..16).all(|number| world.answers[&number].cached_tokens >= 35), "nothing was cached");

    // Three with one prompt: no one finds what another adapter wrote.
    let mut world = World::new(family, |_| {});
    for (number, request) in (0..).zip(requests()).skip(3) {
        world.add(number, request);
        world.finish();
        assert_eq!(world.answers[&number].cached_tokens, 0, "another adapter's keys");
    }
    world.check("one after another", 3, &expected[3..]);

    let mut world = World::new(family, |config| {
        config.max_batched_tokens = 7;
        config.max_running = 4;
    });
    all(&mut world, 0);
    world.check("in chunks", 0, &expected);

    let mut world = World::new(family, |config| config.num_blocks = 340 / config.block_size + 6);
    all(&mut world, 0);
    world.check("preempted", 0, &expected);
    assert!(world.answers.values().any(|answer| answer.preemptions > 0), "nobody was preempted");

    let mut world = World::new(family, |_| {});
    for (number, request) in (0..).zip(requests()) {
        let sequence = world.sequence(number, request).speculating(EAGER).unwrap();
        world.engine.add(sequence).unwrap();
    }
    world.finish();
    world.check("with guesses", 0, &expected);
    assert!(world.num_accepted > 0, "no guess was right");
}

#[test]
fn grouped_queries_in_any_company() {
    in_any_company("qwen3_moe");
}

#[test]
fn latent_attention_in_any_company() {
    in_any_company("moonlight");
}

#[test]
fn queries_in_two_steps_in_any_company() {
    in_any_company("deepseek_v2");
}

/// A step of more rows of one adapter than are computed at a time.
#[test]
fn many_rows_of_one_adapter() {
    many_rows("llama31");
    many_rows("qwen3_moe");
}

fn many_rows(family: &str) {
    let name = format!("many-{family}");
    let adapter = adapter_of(family, "", &name, Random { seed: 9, rank: 4, b: 0.3 });
    let mut answers = Vec::new();
    for max_num_batched_tokens in [331, 40] {
        let mut loaded = load(family, &LoadOptions { max_num_batched_tokens, ..lora_options(family) });
        let adapter = read(&adapter, &loaded);
        loaded.runner.add_adapter(id(4), adapter).unwrap();
        let Loaded { runner, info, scheduler_config, .. } = loaded;
        let engine = Engine::new(scheduler_config, runner);
        let mut world =
            World { engine, vocab_size: info.vocab_size, answers: BTreeMap::new(), num_accepted: 0 };
        world.add(1, Request { adapter: Some(id(4)), temperature: 0.0, len: 280 });
        world.finish();
        answers.push(world.answers.remove(&1).unwrap());
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn planned_bytes_are_allocated_bytes_with_adapters() {
    for family in ["llama", "qwen3_moe", "deepseek_v2", "kimi_vl"] {
        let mut totals = Vec::new();
        for (max_loras, max_lora_rank) in [(0, 8), (1, 8), (3, 8), (3, 33)] {
            let options = LoadOptions { max_loras, max_lora_rank, ..options() };
            let planned = models::plan(&files(family), &options).unwrap();
            let loaded = load(family, &options);
            assert_eq!(loaded.plan, planned, "{family}");
            assert_eq!(loaded.runner.device().allocated_bytes(), planned.memory.total, "{family}");
            assert_eq!(loaded.adapters.is_some(), max_loras > 0);
            totals.push(planned.memory.adapters);
        }
        assert!(totals[0] == 0 && totals.is_sorted_by(|a, b| a < b), "{family}: {totals:?}");
        let lora_experts = has_experts(family);
        for max_num_batched_tokens in
            [lora_experts.then_some(300), lora_experts.then_some(77)].into_iter().flatten()
        {
            let options = LoadOptions {
                max_loras: 3,
                max_lora_rank: 33,
                max_num_batched_tokens,
                lora_experts,
                ..options()
            };
            let loaded = load(family, &options);
            assert_eq!(
                loaded.runner.device().allocated_bytes(),
                loaded.plan.memory.total,
                "{family}, experts"
            );
            assert!(loaded.plan.memory.adapters > totals[3], "{family}: experts take memory");
        }
        let on_gpu = LoadOptions { max_loras: 2, max_lora_rank: 8, lora_experts, ..common::emulated() };
        let loaded = load(family, &on_gpu);
        let (device, memory) = (loaded.runner.device(), loaded.plan.memory);
        assert_eq!(device.held_bytes(), memory.total, "{family}");
        assert_eq!(device.allocated_bytes(), memory.total - memory.padding, "{family}");
    }
    for (max_loras, max_lora_rank, expected) in [
        (4097, 8, "max_loras: 4097 is not in 0..=4096"),
        (1, 0, "max_lora_rank: 0 is not in 1..=4096"),
        (1, 4097, "max_lora_rank: 4097 is not in 1..=4096"),
    ] {
        let options = LoadOptions { max_loras, max_lora_rank, ..options() };
        assert_eq!(models::plan(&files("llama"), &options).unwrap_err().to_string(), expected);
    }
    let options = LoadOptions { max_loras: 1, lora_experts: true, ..options() };
    assert_eq!(
        models::plan(&files("llama"), &options).unwrap_err().to_string(),
        "lora_experts: the model has no experts"
    );
}

/// Experts that the adapter leaves out, and layers, are the base's: with zeros for them the bits are the same.
#[test]
fn an_adapter_of_some_experts_leaves_the_others_alone() {
    for family in ["qwen3_moe", "mixtral", "moonlight"] {
        let random = Random { seed: 4, rank: 5, b: 0.3 };
        let all = tensors(&modules(family), random);
        let chosen =
            |name: &String| name.contains(".experts.1.") || name.contains("layers.1.mlp.experts.4.down");
        let mut loaded = load(family, &lora_options(family));
        let plain = distribution(&mut loaded, None);
        let mut found = Vec::new();
        for (number, some) in [(1, true), (2, false)] {
            let mut own = all.clone();
            if some {
                own.retain(|name, _| chosen(name));
            } else {
                let others = own.iter_mut().filter(|(name, _)| !chosen(name) && name.contains("lora_B"));
                others.for_each(|(_, (_, _, data))| data.fill(0));
            }
            let folder = folder(&format!("some-{family}-{number}"));
            write_adapter(&folder, random.rank, &own);
            let adapter = read(&folder, &loaded);
            loaded.runner.add_adapter(id(number), adapter).unwrap();
            found.push(bits(&distribution(&mut loaded, Some(id(number)))));
        }
        assert_eq!(found[0], found[1], "{family}");
        assert!(found[0] != bits(&plain), "{family}: it changes nothing");
    }
}

/// What a tool that has no model loaded reads an adapter against.
#[test]
fn a_spec_needs_the_configuration_only() {
    let spec = AdapterSpec::of_model(&files("kimi_vl"), 8).unwrap();
    assert_eq!(spec.max_rank(), 8);
    let random = Random { seed: 1, rank: 8, b: 0.3 };
    let folder = adapter_of("kimi_vl", "", "spec", random);
    let adapter = Adapter::read(&folder, &spec).unwrap();
    let bytes: usize = tensors(&modules("kimi_vl"), random).values().map(|(_, _, data)| data.len()).sum();
    assert_eq!((adapter.rank(), adapter.bytes()), (8, bytes as u64));
}
