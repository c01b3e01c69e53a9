//! Adapters on a GPU's code: near what the processor says, and each row as alone, in steps that are replayed and in steps that are not.

use crate::TOLERANCE;
use crate::common::adapters::{Random, folder, id, modules, tensors, write_adapter};
use crate::common::{on_gpu, options};
use crate::world::{Answer, Request, World, requests};
use models::lora::{Adapter, AdapterSpec};
use models::{DTypeChoice, LoadOptions};
use scheduler::SchedulerConfig;

const WHO: [Option<u64>; 4] = [Some(1), None, Some(2), None];

/// With two adapters, of all that may have one.
fn world(family: &str, options: &LoadOptions, change: impl FnOnce(&mut SchedulerConfig)) -> World {
    let options = LoadOptions { max_loras: 2, max_lora_rank: 6, lora_experts: true, ..options.clone() };
    let mut world = World::new(family, &options, change);
    let spec = AdapterSpec::of_model(&crate::common::files(family), 6).unwrap();
    for number in [1, 2] {
        let folder = folder(&format!("device-{family}-{number}-{:?}", std::thread::current().id()));
        let random = Random { seed: number, rank: 2 * number as usize + 2, b: 0.3 };
        write_adapter(&folder, random.rank, &tensors(&modules(family), random));
        let adapter = Adapter::read(&folder, &spec).unwrap();
        world.engine.runner_mut().add_adapter(id(number), adapter).unwrap();
    }
    world
}

fn all() -> Vec<(Request, Option<u64>)> {
    requests().into_iter().cycle().zip(WHO).collect()
}

fn add(world: &mut World, number: u64, (request, adapter): &(Request, Option<u64>)) {
    let mut sequence = world.sequence(number, request);
    sequence.adapter = adapter.map(id);
    world.engine.add(sequence).unwrap();
}

fn together(world: &mut World) -> Vec<Answer> {
    for (number, request) in (0..).zip(&all()) {
        add(world, number, request);
    }
    world.finish().into_values().collect()
}

fn near_the_processor(family: &str) {
    let [on_cpu, on_gpu] = [options(), on_gpu()].map(|options| {
        let options = LoadOptions { dtype: DTypeChoice::F32, ..options };
        together(&mut world(family, &options, |_| {}))
    });
    for (gpu, cpu) in on_gpu.iter().zip(&on_cpu) {
        assert_eq!(gpu.tokens, cpu.tokens, "{family}");
        for (gpu, cpu) in gpu.logprobs.iter().zip(&cpu.logprobs) {
            assert!((gpu - cpu).abs() < TOLERANCE, "{family}: {gpu} is not {cpu}");
        }
    }
}

fn equal_to_itself(family: &str) {
    let options = LoadOptions { dtype: DTypeChoice::BF16, ..on_gpu() };
    let alone: Vec<Answer> = all()
        .iter()
        .map(|request| {
            let mut world = match request.1 {
                Some(_) => world(family, &options, |_| {}),
                // Without room for adapters at all.
                None => World::new(family, &options, |_| {}),
            };
            add(&mut world, 7, request);
            world.finish().remove(&7).unwrap()
        })
        .collect();
    let check = |what: &str, answers: &[Answer]| {
        for (answer, alone) in answers.iter().zip(&alone) {
            assert_eq!(answer.bits(), alone.bits(), "{family} {what}");
        }
    };
    let mut world_of_all = world(family, &options, |_| {});
    check("together", &together(&mut world_of_all));
    check("again", &together(&mut world_of_all));
    assert!(world_of_all.cached_tokens > 0, "{family}: nothing was found");
    let mut in_chunks = world(family, &options, |config| {
        config.max_batched_tokens = 5;
        config.max_running = 3;
    });
    check("in chunks", &together(&mut in_chunks));
}

#[test]
fn grouped_queries() {
    near_the_processor("qwen3_moe");
    equal_to_itself("qwen3_moe");
}

#[test]
fn latent_attention() {
    near_the_processor("moonlight");
    equal_to_itself("moonlight");
}

/// More rows than go straight into registers: norms leave them rounded for the model's own layers, and adapters read what is beside it.
#[test]
fn steps_of_many_rows() {
    let options = LoadOptions { dtype: DTypeChoice::BF16, ..on_gpu() };
    for family in ["qwen3_moe", "deepseek_v3", "kimi_vl"] {
        let request = |len, adapter| (Request { len, picture_at: None, ..requests()[0].clone() }, adapter);
        let all = [request(45, Some(1)), request(38, None), request(41, Some(2))];
        let run = |mut world: World, which: &[usize]| {
            which.iter().for_each(|&index| add(&mut world, index as u64, &all[index]));
            world.finish()
        };
        let together = run(world(family, &options, |_| {}), &[0, 1, 2]);
        let in_chunks = |config: &mut SchedulerConfig| config.max_batched_tokens = 16;
        for (index, (_, adapter)) in all.iter().enumerate() {
            let alone = match adapter {
                Some(_) => world(family, &options, in_chunks),
                None => World::new(family, &options, in_chunks),
            };
            assert_eq!(
                run(alone, &[index])[&(index as u64)].bits(),
                together[&(index as u64)].bits(),
                "{family} {index}"
            );
        }
    }
}
