//! What is planned is what is allocated, what does not fit is refused with its numbers, and loading complains about everything
//! that a user can get wrong.

mod common;

use common::{FAMILIES, emulated, files, fixture, load, options};
use models::{
    ActivationsChoice, DTypeChoice, DeviceChoice, KvCacheDTypeChoice, LoadError, LoadFormat, LoadOptions,
    Loaded, MemoryLimit, ModelFiles, Plan, QuantizationChoice, WeightLayoutChoice,
};
use serde_json::{Value, json};

fn check_bytes(what: &str, loaded: &Loaded) {
    let plan = &loaded.plan;
    assert_eq!(loaded.runner.device().allocated_bytes(), plan.memory.total, "{what}");
    assert!(plan.memory.total <= plan.memory.limit, "{what}");
    assert_eq!(plan.memory.kv_cache, (plan.num_blocks * plan.block_size) as u64 * plan.kv_bytes_per_token);
}

#[test]
fn planned_bytes_are_allocated_bytes_in_every_family() {
    for &family in FAMILIES {
        use ActivationsChoice as A;
        for (dtype, quantization, activations) in [
            (DTypeChoice::Auto, QuantizationChoice::Auto, A::F32),
            (DTypeChoice::Auto, QuantizationChoice::Auto, A::Auto),
            (DTypeChoice::F32, QuantizationChoice::Auto, A::Auto),
            (DTypeChoice::F16, QuantizationChoice::Auto, A::F32),
            (DTypeChoice::Auto, QuantizationChoice::Int8, A::Int8),
            (DTypeChoice::F16, QuantizationChoice::Int4, A::Int8),
        ] {
            let max_num_batched_tokens = 47;
            let options =
                LoadOptions { dtype, quantization, activations, max_num_batched_tokens, ..options() };
            let planned = models::plan(&files(family), &options).unwrap();
            let loaded = load(family, &options);
            assert_eq!(loaded.plan, planned, "{family}");
            check_bytes(&format!("{family} in {dtype:?}, {quantization:?}"), &loaded);
        }
    }
}

/// A window does not end sequences.
#[test]
fn sequences_are_longer_than_the_window() {
    let plan = |max_model_len| models::plan(&files("mistral"), &LoadOptions { max_model_len, ..options() });
    let longest = plan(None).unwrap().max_model_len;
    assert!(longest > 300, "{longest}");
    assert_eq!(plan(Some(longest)).unwrap().max_model_len, longest);
    let message = plan(Some(longest + 1)).unwrap_err().to_string();
    assert!(message.contains("max_model_len") && message.contains("positions"), "{message}");
}

/// Keys and values in another type than weights, and buffers of the expanded form.
#[test]
fn planned_bytes_are_allocated_bytes_with_other_forms_of_attention() {
    for family in ["llama31", "kimi_vl", "deepseek_v3"] {
        let is_latent = family != "llama31";
        let mut per_token = Vec::new();
        for kv_cache_dtype in [
            KvCacheDTypeChoice::F32,
            KvCacheDTypeChoice::BF16,
            KvCacheDTypeChoice::F16,
            KvCacheDTypeChoice::Int8,
        ] {
            let mla_expand_from = is_latent.then_some(100);
            let options =
                LoadOptions { kv_cache_dtype, mla_expand_from, max_num_batched_tokens: 130, ..options() };
            let planned = models::plan(&files(family), &options).unwrap();
            let loaded = load(family, &options);
            assert_eq!(loaded.plan, planned, "{family}");
            check_bytes(&format!("{family} with {kv_cache_dtype:?}"), &loaded);
            per_token.push(planned.kv_bytes_per_token);
        }
        assert_eq!([per_token[0], per_token[2]], [2 * per_token[1], per_token[1]], "{family}");
        assert!(2 * per_token[3] > per_token[1] && per_token[3] < per_token[1], "{family}: {per_token:?}");
    }
}

#[test]
fn forms_of_attention_that_a_device_or_model_has_not_are_refused() {
    let refused = |family: &str, options: &LoadOptions| {
        let planned = models::plan(&files(family), options).unwrap_err().to_string();
        let loaded = models::load(&files(family), options, &mut |_| {}).err().expect("refused").to_string();
        assert_eq!(planned, loaded);
        planned
    };
    let int8 = LoadOptions { kv_cache_dtype: KvCacheDTypeChoice::Int8, ..emulated() };
    let message = refused("llama", &int8);
    assert!(message.starts_with("kv_cache_dtype: a KV cache in int8"), "{message}");
    let message = refused("llama", &LoadOptions { mla_expand_from: Some(0), ..options() });
    assert!(message.starts_with("mla_expand_from: the model has no latent attention"), "{message}");
}

/// On a GPU everything lies in one block of memory, which is as large as planned.
#[test]
fn the_arena_of_a_gpu_is_as_planned() {
    for &family in FAMILIES {
        let is_latent = ["moonlight", "deepseek", "kimi"].iter().any(|name| family.starts_with(name));
        for (dtype, quantization, is_expanded) in [
            (DTypeChoice::F32, QuantizationChoice::Auto, false),
            (DTypeChoice::BF16, QuantizationChoice::Auto, true),
            (DTypeChoice::BF16, QuantizationChoice::Int8, false),
            (DTypeChoice::F32, QuantizationChoice::Int4, true),
        ] {
            let mla_expand_from = (is_expanded && is_latent).then_some(7);
            let options = LoadOptions { dtype, quantization, mla_expand_from, ..emulated() };
            let planned = models::plan(&files(family), &options).unwrap();
            let loaded = load(family, &options);
            assert_eq!(loaded.plan, planned, "{family}");
            let (device, memory) = (loaded.runner.device(), planned.memory);
            assert_eq!(device.held_bytes(), memory.total, "{family}");
            assert_eq!(device.allocated_bytes(), memory.total - memory.padding, "{family}");
            assert!(memory.total <= memory.limit && memory.padding > 0, "{family}");
        }
    }
}

/// Blocks that lose their places are in the limit where it is of the host's memory, and beside it with a GPU.
#[test]
fn blocks_on_the_host_are_planned() {
    for family in ["llama31", "kimi_vl"] {
        for on_device in [options(), emulated()] {
            let without = models::plan(&files(family), &on_device).unwrap();
            let block = without.kv_bytes_per_token * without.block_size as u64;
            let options = LoadOptions { kv_offloading_size: 5 * block + block / 2, ..on_device.clone() };
            let plan = models::plan(&files(family), &options).unwrap();
            assert_eq!((plan.num_host_blocks, plan.kv_offload_bytes), (5, 5 * block), "{family}");
            let is_cpu = on_device.device == DeviceChoice::Cpu;
            assert_eq!(plan.memory.kv_offload, if is_cpu { 5 * block } else { 0 }, "{family}");
            let others = plan.memory.total - plan.memory.kv_offload - plan.memory.kv_cache;
            assert_eq!(others, without.memory.total - without.memory.kv_cache, "{family}");
            let line = if is_cpu { "KV offload " } else { "on the host: KV" };
            assert!(plan.to_string().contains(line) && !without.to_string().contains(line), "{plan}");
            assert!(plan.to_string().contains("  5 more in the host's memory, 25 tokens"), "{plan}");
            let loaded = load(family, &options);
            assert_eq!(loaded.scheduler_config.num_host_blocks, 5);
            let memory = plan.memory;
            assert_eq!(loaded.runner.device().allocated_bytes(), memory.total - memory.padding, "{family}");
            let small = LoadOptions { kv_offloading_size: block - 1, ..on_device };
            let message = models::plan(&files(family), &small).unwrap_err().to_string();
            assert!(message.starts_with("kv_offloading_size: "), "{message}");
        }
    }
}

/// From the same formulas, for a GPU that is not there: with more multiprocessors than the emulated one, so with larger buffers.
#[test]
fn a_plan_needs_no_gpu() {
    if models::has_nvidia_driver() {
        return;
    }
    for &family in FAMILIES {
        let [paper, emulated] = [DeviceChoice::Cuda(0), DeviceChoice::CudaEmulated].map(|device| {
            let options = LoadOptions { device, memory: MemoryLimit::Bytes(1 << 30), ..emulated() };
            models::plan(&files(family), &options).unwrap().memory
        });
        assert_eq!((paper.weights, paper.padding), (emulated.weights, emulated.padding), "{family}");
        assert!(paper.activations >= emulated.activations, "{family}");
    }
    let share =
        LoadOptions { device: DeviceChoice::Cuda(0), memory: MemoryLimit::Fraction(0.5), ..emulated() };
    let message = models::plan(&files("llama"), &share).unwrap_err().to_string();
    assert!(message.starts_with("memory: it is not known"), "{message}");
}

/// Moonlight with so many layers: weights are made up or not needed, so config.json is all.
fn moonlight(num_layers: usize) -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 11264,
        "moe_intermediate_size": 1408, "num_hidden_layers": num_layers, "num_attention_heads": 16,
        "num_key_value_heads": 16, "kv_lora_rank": 512, "q_lora_rank": null, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64, "num_experts_per_tok": 6,
        "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": true,
        "routed_scaling_factor": 2.446, "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16", "num_nextn_predict_layers": 0
    })
}

fn embedded(config: &Value) -> ModelFiles {
    let content: &'static [u8] = config.to_string().leak().as_bytes();
    ModelFiles::Embedded(vec![("config.json", content)].leak())
}

#[test]
fn planned_bytes_are_allocated_bytes_for_a_dummy_moonlight() {
    let options = LoadOptions {
        load_format: LoadFormat::Dummy,
        dtype: DTypeChoice::Auto,
        max_model_len: Some(777),
        max_num_seqs: 3,
        max_num_batched_tokens: 129,
        memory: MemoryLimit::Bytes(4 << 30),
        ..options()
    };
    let mut reported = Vec::new();
    // Real widths; fewer rows and experts, so that making them up takes no time.
    let mut config = moonlight(3);
    config["vocab_size"] = 1031.into();
    config["n_routed_experts"] = 7.into();
    for quantization in [QuantizationChoice::Auto, QuantizationChoice::Int8, QuantizationChoice::Int4] {
        let options = LoadOptions { quantization, ..options.clone() };
        let loaded = models::load(&embedded(&config), &options, &mut |_| {}).unwrap();
        check_bytes(&format!("moonlight, {quantization:?}"), &loaded);
    }
    let loaded = models::load(&embedded(&config), &options, &mut |p| reported.push(p)).unwrap();
    assert_eq!(loaded.info.num_parameters, loaded.plan.num_parameters);
    assert!(reported.is_sorted_by_key(|p| p.bytes_done));
    let last = reported.last().unwrap();
    assert_eq!(last.bytes_done, last.bytes_total);
}

fn plan(options: &LoadOptions) -> Result<Plan, LoadError> {
    models::plan(&embedded(&moonlight(27)), options)
}

/// Of the full model, which no test could load.
#[test]
fn plan_of_the_whole_moonlight() {
    let options = LoadOptions {
        dtype: DTypeChoice::Auto,
        max_model_len: None,
        max_num_seqs: 16,
        max_num_batched_tokens: 512,
        block_size: 16,
        memory: MemoryLimit::Bytes(40 << 30),
        // On any processor.
        weight_layout: WeightLayoutChoice::Plain,
        ..options()
    };
    let fitting = plan(&options).unwrap();
    assert_eq!(fitting.num_parameters, 15_960_108_544 + 26 * 64);
    assert_eq!((fitting.max_model_len, fitting.kv_bytes_per_token), (8192, 31_104));
    // Enough for all sequences at their longest: no more is taken.
    assert_eq!(fitting.num_blocks, 16 * 8192 / 16);
    let text = fitting.to_string();
    assert!(
        text.starts_with("DeepseekV3ForCausalLM, 15.960 B parameters, bfloat16, activations in float32\n"),
        "{text}"
    );
    let json = serde_json::to_value(&fitting).unwrap();
    assert_eq!(json["memory"]["total"], fitting.memory.total);
    // A little more than the weights: the context shrinks to what fits, and the limit is used up to less than a block.
    let base = fitting.memory.total - fitting.memory.kv_cache;
    let tight = LoadOptions { memory: MemoryLimit::Bytes(base + (50 << 20)), ..options.clone() };
    let shrunk = plan(&tight).unwrap();
    assert!((1000..2000).contains(&shrunk.max_model_len), "{}", shrunk.max_model_len);
    assert!(shrunk.memory.total <= shrunk.memory.limit);
    assert!(shrunk.memory.limit - shrunk.memory.total < 2 * 16 * 31_104);
    assert!(shrunk.num_blocks * 16 >= shrunk.max_model_len);
    // Asked for, it is refused, with the numbers.
    let asked = plan(&LoadOptions { max_model_len: Some(8192), ..tight });
    let Err(LoadError::DoesNotFit(numbers)) = asked else { panic!("{asked:?}") };
    assert_eq!(numbers.kv_cache, 8192 * 31_104);
    assert!(numbers.needed > numbers.limit);
    let none = plan(&LoadOptions { memory: MemoryLimit::Bytes(1 << 30), ..options });
    assert!(matches!(none, Err(LoadError::DoesNotFit(_))), "{none:?}");
}

/// 16 billion weights in this machine's memory: 4.5 bits for nearly all, and what keeps its precision.
#[test]
fn plan_of_the_whole_moonlight_quantised() {
    let of = |quantization| {
        let weight_layout = WeightLayoutChoice::Plain;
        let options = LoadOptions { dtype: DTypeChoice::Auto, quantization, weight_layout, ..options() };
        plan(&LoadOptions { memory: MemoryLimit::Bytes(40 << 30), ..options }).unwrap()
    };
    let [float, int8, int4] =
        [QuantizationChoice::Auto, QuantizationChoice::Int8, QuantizationChoice::Int4].map(of);
    assert_eq!(
        [float.quantization, int8.quantization, int4.quantization],
        [None, Some("int8"), Some("int4")]
    );
    assert!(
        int4.to_string().starts_with(
            "DeepseekV3ForCausalLM, 15.960 B parameters, bfloat16, int4, activations in float32\n"
        )
    );
    // Embedding and head, vectors, and the router of each of 26 layers.
    let table = 163_840 * 2048;
    let absorbed = 27 * 16 * 256 * 512;
    let router = 26 * 64 * 2048;
    let linear = 15_960_108_544 - 2 * table - absorbed - router;
    let vectors = (2 * 27 + 1) * 2048 + 27 * 512 + 26 * 64;
    let linear = linear - (2 * 27 + 1) * 2048 - 27 * 512;
    assert_eq!(float.memory.weights, 2 * (2 * table + linear + absorbed) + 4 * (router + vectors));
    let bits = |n: u64, eighths: u64| n * eighths / 64;
    let rest = 4 * (router + vectors);
    assert_eq!(int8.memory.weights, 4 * table + bits(linear + absorbed, 68) + rest);
    assert_eq!(int4.memory.weights, 2 * table + bits(linear, 36) + bits(absorbed + table, 68) + rest);
    assert!(int4.memory.weights < 10 << 30);
}

#[test]
fn concurrency_follows_the_blocks() {
    let options = LoadOptions {
        dtype: DTypeChoice::Auto,
        max_model_len: None,
        max_num_seqs: 100,
        max_num_batched_tokens: 512,
        memory: MemoryLimit::Bytes(36 << 30),
        ..options()
    };
    let plan = plan(&options).unwrap();
    let lens: Vec<usize> = plan.concurrency.iter().map(|c| c.context_len).collect();
    assert_eq!(lens, [1024, 4096, 8192]);
    for c in &plan.concurrency {
        let blocks = c.context_len.div_ceil(plan.block_size);
        assert!(c.sequences * blocks <= plan.num_blocks);
        assert!(c.sequences == 100 || (c.sequences + 1) * blocks > plan.num_blocks);
    }
}

#[test]
fn options_are_checked_by_name() {
    let check = |option: &str, options: LoadOptions| {
        let message = plan(&options).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{option}: ")), "{message}");
    };
    let good = options();
    check("max_num_seqs", LoadOptions { max_num_seqs: 0, ..good.clone() });
    check("block_size", LoadOptions { block_size: 0, ..good.clone() });
    check("max_model_len", LoadOptions { max_model_len: Some(8193), ..good.clone() });
    check("max_model_len", LoadOptions { max_model_len: Some(0), ..good.clone() });
    check("max_num_batched_tokens", LoadOptions { max_num_batched_tokens: 39, ..good.clone() });
    check("memory", LoadOptions { memory: MemoryLimit::Fraction(1.5), ..good });
}

/// The fixture `llama` with one file changed.
fn changed(name: &'static str, content: &[u8]) -> ModelFiles {
    let list = ["config.json", "generation_config.json", "model.safetensors"].map(|file| {
        let bytes = match file == name {
            true => content.to_vec(),
            false => std::fs::read(fixture("llama").join(file)).unwrap(),
        };
        (file, &*bytes.leak())
    });
    ModelFiles::Embedded(list.to_vec().leak())
}

#[test]
fn what_is_wrong_with_a_checkpoint_is_said_in_one_line() {
    let config: Value =
        serde_json::from_slice(&std::fs::read(fixture("llama").join("config.json")).unwrap()).unwrap();
    let weights = std::fs::read(fixture("llama").join("model.safetensors")).unwrap();
    let check = |files: ModelFiles, expected: &str| {
        let message = models::load(&files, &options(), &mut |_| {}).err().expect(expected).to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{message}");
    };
    let with = |key: &str, value: Value| {
        let mut config = config.clone();
        config[key] = value;
        changed("config.json", config.to_string().as_bytes())
    };
    check(
        with("vocab_size", json!(129)),
        "tensor model.embed_tokens.weight: expected shape [129, 40], found [128, 40]",
    );
    check(with("num_hidden_layers", json!(3)), "tensor model.layers.2.input_layernorm.weight is missing");
    check(with("num_hidden_layers", json!(1)), "tensors belong to no part of the model: model.layers.1.");
    check(with("intermediate_size", json!(96)), "expected shape [96, 40], found [104, 40]");
    check(with("attention_bias", json!(true)), "tensor model.layers.0.self_attn.q_proj.bias is missing");
    check(changed("model.safetensors", &weights[..weights.len() - 1]), "is not a valid safetensors file");
    check(changed("config.json", b"{}"), "config.json: architectures: is missing");
    check(ModelFiles::Directory(fixture("no such model")), "config.json is missing");
    // The head of a tied model may be stored; nothing else becomes superfluous by the tie.
    models::load(&with("tie_word_embeddings", json!(true)), &options(), &mut |_| {}).unwrap();
}
