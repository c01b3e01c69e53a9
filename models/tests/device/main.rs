//! Whole tiny models on a GPU's code, run by the emulator, or with `PERILUNE_TEST_DEVICE=cuda` on the first GPU: near what the processor
//! says, and equal to themselves in company, in chunks, and from graphs.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;
mod adapters;
mod ahead;
mod changed;
mod near_the_processor_quantised;
mod sampling;
mod tiers;
mod world;

use changed::Changed;
use common::late::Late;
use common::{on_gpu, options};
use kernels::Device;
use models::{DTypeChoice, KernelOptions, LoadFormat, LoadOptions, Matmul, MemoryLimit, QuantizationChoice};
use scheduler::SamplingParams;
use world::{Answer, MAX_TOKENS, Request, World, requests, together};

/// Weights and arithmetic are f32 on both: only the order of sums differs.
const TOLERANCE: f32 = 2e-3;

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
    let (late, num_deferred, num_replays) = answers(12);
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

/// Random weights, with heads and latents as those of Kimi-VL, so that they have its kernels.
fn published(num_layers: u64) -> Changed {
    let heads =
        [("kv_lora_rank", 512), ("qk_nope_head_dim", 128), ("qk_rope_head_dim", 64), ("v_head_dim", 128)];
    let sizes = [("num_hidden_layers", num_layers), ("moe_intermediate_size", 32)];
    Changed::with("kimi_vl", &[&heads[..], &sizes].concat())
}

/// Kernels that are launched in each of the first decode steps: as it is, into a graph, and beside its replay. Written down, so that they do not
/// creep up. A layer of experts with latent attention has 12 where no pair is sorted: a norm of the stream, six of attention (queries and
/// latents, both made ready, three products and the attention itself), two of the router, three of the experts with the one that all tokens take and the norm for the next layer;
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
    let published = |num_layers| launches(published(num_layers).path(), LoadFormat::Dummy);
    assert_eq!([1, 2, 3].map(published), [[16, 17, 3], [28, 30, 3], [40, 43, 3]]);
    let of = |family| launches(family, LoadFormat::Auto);
    let [deepseek, qwen, llama] = [[56, 56, 3], [52, 52, 3], [44, 44, 3]];
    assert_eq!(["deepseek_v3", "qwen3_moe", "llama31"].map(of), [deepseek, qwen, llama]);
}

/// Kernels that a layer launches for a prompt of more rows than go straight into registers: seven for attention (queries and latents; both made
/// ready; queries on the latents' side; attention; values, which are rounded as the output takes them; the output), the norm before the experts, two of
/// the router, five of the experts (pairs sorted, rounded in their order, up, down, sums), three of the one that all tokens take, which adds to the sums
/// itself, and the norm for the next layer. What norms and attention make is rounded by none.
#[test]
fn a_layer_of_a_prompt_has_so_many_launches() {
    let launches = |num_layers: u64| {
        let changed = published(num_layers);
        let options = LoadOptions { dtype: DTypeChoice::BF16, load_format: LoadFormat::Dummy, ..on_gpu() };
        let mut world = World::new(changed.path(), &options, |config| config.async_scheduling = false);
        let Device::Cuda(cuda) = world.engine.runner().device().clone() else { panic!("not a GPU") };
        world.add(0, &Request { len: 45, picture_at: None, ..requests()[0].clone() });
        let before = cuda.num_launches();
        world.engine.step().unwrap();
        cuda.num_launches() - before
    };
    assert_eq!(launches(3) - launches(2), 19);
}

/// Kernels that a block of the tower launches for a picture of more than 32 patches: two norms, which round what they make; four layers, of which two
/// add to the stream themselves; what is rounded for attention, turned on the way; attention, which packs its result for the layer after it.
#[test]
fn a_block_of_the_tower_has_so_many_launches() {
    let launches = |num_layers: u64| {
        let changed =
            Changed::with_larger_picture("kimi_vl", "vision_config", &[("num_hidden_layers", num_layers)]);
        let options = LoadOptions { dtype: DTypeChoice::BF16, load_format: LoadFormat::Dummy, ..on_gpu() };
        let mut world = World::new(changed.path(), &options, |config| config.async_scheduling = false);
        let patches = world.picture.as_ref().unwrap().1.grid.iter().product::<usize>();
        let Device::Cuda(cuda) = world.engine.runner().device().clone() else { panic!("not a GPU") };
        let before = cuda.num_launches();
        world.add(0, &requests()[0]);
        world.finish();
        (patches, cuda.num_launches() - before)
    };
    let ((patches, one), (_, three)) = (launches(1), launches(3));
    assert!(patches > 32, "{patches} patches");
    assert_eq!(three - one, 2 * 8);
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

/// Prompts that fill blocks of wgmma, in layers, in experts where each token takes all, and beside a prompt that does not: no bit is another than
/// mma.sync's.
#[test]
fn wgmma_says_the_same() {
    let all = Changed::new("qwen3_moe", 8, None);
    for family in ["kimi_vl", all.path()] {
        let [mma, wgmma] = [Matmul::Mma, Matmul::Wgmma].map(|matmul| {
            let base = on_gpu();
            let options = LoadOptions {
                dtype: DTypeChoice::BF16,
                max_model_len: Some(320),
                max_num_batched_tokens: 280,
                memory: MemoryLimit::Bytes(64 << 20),
                kernels: KernelOptions { matmul, ..base.kernels.clone() },
                ..base
            };
            let mut world = World::new(family, &options, |_| {});
            for (id, len) in [(0, 230), (1, 7)] {
                world.add(id, &Request { len, picture_at: None, params: requests()[0].params.clone() });
            }
            world.finish()
        });
        for (id, answer) in &mma {
            assert_eq!(answer.tokens.len(), MAX_TOKENS);
            assert_eq!(answer.bits(), wgmma[id].bits(), "{family}, sequence {id}");
        }
    }
}

mod equal_to_itself {
    use super::{Changed, equal_to_itself};
    use models::QuantizationChoice::{Auto, Int4, Int8};

    /// Rows of pictures in the first layers, from the same places of several caches.
    #[test]
    fn pictures_for_several_layers() {
        equal_to_itself("qwen3_vl", Auto, None);
        equal_to_itself("qwen3_vl_moe", Auto, None);
    }

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

    #[test]
    fn a_gated_expert_of_all_tokens() {
        equal_to_itself("qwen2_moe", Auto, None);
        equal_to_itself("qwen2_moe", Int4, None);
    }

    #[test]
    fn norms_on_both_sides_and_pairs_side_by_side() {
        equal_to_itself("glm4", Auto, None);
    }

    #[test]
    fn a_norm_of_all_heads() {
        equal_to_itself("minimax_m2", Auto, None);
    }

    /// Chunks and steps that hold rows of both forms, and pictures that lie on both sides.
    #[test]
    fn in_the_expanded_form() {
        equal_to_itself("kimi_vl", Auto, Some(7));
        equal_to_itself("moonlight", Int8, Some(0));
    }

    /// More patches than go straight into registers: what is rounded in the tower is packed.
    #[test]
    fn a_larger_picture() {
        let changed = Changed::with_larger_picture("kimi_vl", "text_config", &[]);
        equal_to_itself(changed.path(), Auto, None);
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
