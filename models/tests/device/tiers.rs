//! Blocks that lose their places go to the host and come back: answers are those of a cache that is large enough, bit for bit, on the processor
//! and on a GPU's code.

use crate::common::{on_gpu, options};
use crate::world::{Answer, Request, World};
use models::{DTypeChoice, KvCacheDTypeChoice, LoadOptions};
use scheduler::SamplingParams;

/// Prompts of several blocks, each of its own.
fn requests(max_tokens: usize) -> Vec<Request> {
    let params =
        |seed| SamplingParams { max_tokens, seed, temperature: 0.8, logprobs: Some(2), ..Default::default() };
    let request =
        |i: usize| Request { len: 17 + i, picture_at: (i == 0).then_some(3), params: params(i as u64) };
    (0..4).map(request).collect()
}

fn bits(answers: impl IntoIterator<Item = Answer>) -> Vec<Vec<u32>> {
    answers.into_iter().map(|answer| answer.bits()).collect()
}

fn tiers_change_nothing(family: &str, options: &LoadOptions) {
    let requests = requests(3);
    let mut large = World::new(family, options, |_| {});
    let mut id = 0..;
    let mut one_by_one = |world: &mut World, requests: &[Request]| {
        let answer = |request: &Request| {
            let id = id.next().unwrap();
            world.add(id, request);
            world.finish().remove(&id).unwrap()
        };
        bits(requests.iter().map(answer).collect::<Vec<_>>())
    };
    let expected = one_by_one(&mut large, &requests);
    let long: Vec<Request> = self::requests(24);
    let expected_long = one_by_one(&mut large, &long);
    assert_eq!(large.stored_blocks, 0, "a tier that is not there");

    let with_tier = LoadOptions { kv_offloading_size: 1 << 20, ..options.clone() };
    let num_blocks = (17usize + 24 + 4).div_ceil(options.block_size) + 2;
    let mut small = World::new(family, &with_tier, |config| {
        assert!(config.num_host_blocks >= 40, "{} blocks on the host", config.num_host_blocks);
        (config.num_blocks, config.num_host_blocks) = (num_blocks, 40);
    });
    for round in 0..3 {
        assert_eq!(one_by_one(&mut small, &requests), expected, "{family}, round {round}");
        assert_eq!(small.loaded_blocks > 0, round > 0, "{family}, round {round}");
    }
    // All at once: some wait for a prefix while others go on, and lose their places.
    let mut preempted = 0;
    for round in 0..2 {
        for (i, request) in long.iter().enumerate() {
            small.add(1000 + 10 * round + i as u64, request);
        }
        let loaded = small.loaded_blocks;
        let answers = small.finish();
        assert_eq!(bits(answers.into_values()), expected_long, "{family}, together, round {round}");
        assert!(small.loaded_blocks > loaded, "{family}: nothing was loaded");
        preempted += small.preempted;
    }
    assert!(preempted > 0, "{family}: nobody lost its place");
}

#[test]
fn on_a_gpu_with_latents_and_pictures() {
    tiers_change_nothing("kimi_vl", &LoadOptions { dtype: DTypeChoice::BF16, ..on_gpu() });
}

#[test]
fn on_a_gpu_with_grouped_queries() {
    tiers_change_nothing("llama31", &LoadOptions { dtype: DTypeChoice::BF16, ..on_gpu() });
}

#[test]
fn on_the_processor() {
    for kv_cache_dtype in [KvCacheDTypeChoice::F32, KvCacheDTypeChoice::Int8] {
        for family in ["kimi_vl", "llama31"] {
            tiers_change_nothing(family, &LoadOptions { kv_cache_dtype, ..options() });
        }
    }
}

/// Somebody hangs up while the prefix comes back, and its blocks are given to others at once.
#[test]
fn beside_one_that_has_gone() {
    let options = LoadOptions { dtype: DTypeChoice::BF16, ..on_gpu() };
    let requests = requests(6);
    let mut large = World::new("llama31", &options, |_| {});
    let mut expected = Vec::new();
    for (id, request) in requests.iter().enumerate() {
        large.add(id as u64, request);
        expected.extend(bits(large.finish().into_values()));
    }
    let with_tier = LoadOptions { kv_offloading_size: 1 << 20, ..options };
    let num_blocks = 26usize.div_ceil(with_tier.block_size) + 4;
    let mut small = World::new("llama31", &with_tier, |config| {
        (config.num_blocks, config.num_host_blocks) = (num_blocks, 40);
    });
    for (id, request) in requests.iter().enumerate() {
        small.add(id as u64, request);
        small.finish();
    }
    for (i, request) in requests.iter().enumerate() {
        let id = 100 + 10 * i as u64;
        small.add(id, request);
        small.engine.begin();
        assert!(small.engine.abort(scheduler::SequenceId(id)));
        // Of another prompt, which gets blocks that are being loaded.
        let other = (i + 1) % requests.len();
        small.add(id + 1, &requests[other]);
        let answers = small.finish();
        assert_eq!(bits(answers.into_values()), [expected[other].clone()], "beside {i}");
    }
    assert!(small.loaded_blocks > 0);
}
