//! A tiny Qwen3-VL and a tiny Qwen3-VL-MoE: configurations, weights from the integer formula of tools/golden/qwen_vl.py, and what the published models
//! answer, which that tool writes beside this file.
#![allow(dead_code, reason = "every test file uses its part")]

use super::formula::{NO_TENSORS, Stored, joined, words};
use serde_json::{Value, json};

pub const DENSE: &str = "qwen3_vl";
pub const MOE: &str = "qwen3_vl_moe";

pub fn is_one(name: &str) -> bool {
    [DENSE, MOE].contains(&name)
}

pub fn config(name: &str) -> Value {
    let mut text = json!({
        "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 124, "dtype": "float32", "eos_token_id": 125,
        "head_dim": 16, "hidden_act": "silu", "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 72,
        "max_position_embeddings": 1024, "model_type": "qwen3_vl_text", "num_attention_heads": 4, "num_hidden_layers": 3,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 5_000_000,
        "rope_scaling": {"mrope_interleaved": true, "mrope_section": [4, 2, 2], "rope_type": "default"},
        "use_cache": true, "vocab_size": 130
    });
    let mut vision = json!({
        "deepstack_visual_indexes": [0, 2], "depth": 3, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 24,
        "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 20, "model_type": "qwen3_vl", "num_heads": 2,
        "num_position_embeddings": 25, "out_hidden_size": 48, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2
    });
    if name == MOE {
        text["model_type"] = "qwen3_vl_moe_text".into();
        for (key, value) in [
            ("decoder_sparse_step", json!(1)),
            ("mlp_only_layers", json!([1])),
            ("moe_intermediate_size", json!(20)),
            ("norm_topk_prob", json!(true)),
            ("num_experts", json!(6)),
            ("num_experts_per_tok", json!(2)),
        ] {
            text[key] = value;
        }
        vision["model_type"] = "qwen3_vl_moe".into();
    }
    let architecture =
        if name == MOE { "Qwen3VLMoeForConditionalGeneration" } else { "Qwen3VLForConditionalGeneration" };
    json!({
        "architectures": [architecture], "image_token_id": 120, "model_type": name, "text_config": text,
        "tie_word_embeddings": false, "transformers_version": "4.57.0.dev0", "video_token_id": 121,
        "vision_config": vision, "vision_end_token_id": 119, "vision_start_token_id": 118
    })
}

/// The name of the file with the settings of pictures, and these: the experts' are as newer versions of the published code write them.
pub fn processor(name: &str) -> (&'static str, Value) {
    let settings = json!({
        "size": {"longest_edge": 40960, "shortest_edge": 8192}, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast"
    });
    match name {
        MOE => ("processor_config.json", json!({ "image_processor": settings })),
        _ => ("preprocessor_config.json", settings),
    }
}

/// What the published models answer.
fn golden(name: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("qwen3_vl.json")).expect("JSON");
    all[name].clone()
}

/// Of a picture, so many rows of each level of it.
pub fn levels(name: &str) -> Vec<(String, Vec<Vec<f32>>)> {
    let level = |level: &Value| numbers(level).map(|number| number as f32).collect();
    let picture = |image: &Value| {
        let levels = image["levels"].as_array().expect("levels").iter().map(level).collect();
        (image["file"].as_str().expect("a name").to_string(), levels)
    };
    golden(name)["images"].as_array().expect("pictures").iter().map(picture).collect()
}

fn numbers(list: &Value) -> impl Iterator<Item = f64> {
    list.as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number"))
}

/// All files of a model but its pictures, with golden numbers in the form of the other fixtures.
pub fn files(name: &str) -> Vec<(String, Vec<u8>)> {
    let (config, golden) = (config(name), golden(name));
    let arrays = golden["cases"].as_array().expect("cases").iter().flat_map(|case| {
        let kinds = ["last_logprobs", "greedy_logprobs", "prompt_logprobs"];
        kinds.map(|kind| {
            let name = format!("{}.{kind}", case["name"].as_str().expect("a name"));
            let values: Vec<u8> = numbers(&case[kind]).flat_map(|x| (x as f32).to_le_bytes()).collect();
            (name, "F32", vec![values.len() / 4], values)
        })
    });
    let (processor_file, processor) = processor(name);
    vec![
        ("model.safetensors".into(), joined(NO_TENSORS, tensors(&config))),
        ("golden.safetensors".into(), joined(NO_TENSORS, arrays.collect())),
        ("config.json".into(), config.to_string().into_bytes()),
        ("golden.json".into(), golden.to_string().into_bytes()),
        (processor_file.into(), processor.to_string().into_bytes()),
    ]
}

/// All tensors of a model with this configuration, in f32. Experts lie together, `[experts, inputs, outputs]`.
pub fn tensors(config: &Value) -> Vec<Stored> {
    let stored = |(name, shape): (String, Vec<usize>)| {
        let data = values(&name, &shape).iter().flat_map(|value| value.to_le_bytes()).collect();
        (name, "F32", shape, data)
    };
    shapes(config).into_iter().map(stored).collect()
}

fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let inputs = match name.contains(".experts.") {
        true => shape[1],
        false => shape[1..].iter().product(),
    };
    // Rounded to f32 before they are scaled, as the tool does it.
    let value = |u: f64| match shape.len() {
        _ if name.ends_with("embed_tokens.weight") => f64::from(u as f32) / 4.0,
        _ if name.ends_with("pos_embed.weight") => u,
        1 if name.ends_with(".bias") => f64::from((u / 10.0) as f32 * 2.5),
        1 => 1.0 + u / 4.0,
        _ => f64::from(u as f32) * (2.0 * (3.0 / inputs as f64).sqrt()),
    };
    let units =
        words(name, shape.iter().product()).map(|word| f64::from(word >> 8) / f64::from(1 << 23) - 1.0);
    units.map(|u| value(u) as f32).collect()
}

fn shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let mut shapes = decoder_shapes(&config["text_config"]);
    tower_shapes(&config["vision_config"], &mut shapes);
    shapes
}

fn sizes<const N: usize>(object: &Value, keys: [&str; N]) -> [usize; N] {
    keys.map(|key| object[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize)
}

fn decoder_shapes(text: &Value) -> Vec<(String, Vec<usize>)> {
    let [vocab, d, i, heads, kv_heads, head_dim, num_layers] = sizes(
        text,
        [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "num_hidden_layers",
        ],
    );
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let mut shapes = vec![("lm_head.weight".to_string(), vec![vocab, d])];
    let mut add = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
    let body = "model.language_model";
    add(format!("{body}.embed_tokens.weight"), &[vocab, d]);
    add(format!("{body}.norm.weight"), &[d]);
    for layer in 0..num_layers {
        let layer_name = format!("{body}.layers.{layer}");
        for (name, shape) in [
            ("self_attn.q_proj", &[q, d][..]),
            ("self_attn.k_proj", &[kv, d]),
            ("self_attn.v_proj", &[kv, d]),
            ("self_attn.o_proj", &[d, q]),
            ("self_attn.q_norm", &[head_dim]),
            ("self_attn.k_norm", &[head_dim]),
            ("input_layernorm", &[d]),
            ("post_attention_layernorm", &[d]),
        ] {
            add(format!("{layer_name}.{name}.weight"), shape);
        }
        let is_dense = text["mlp_only_layers"].as_array().is_none_or(|dense| dense.contains(&layer.into()));
        if is_dense {
            for (name, shape) in [("gate_proj", [i, d]), ("up_proj", [i, d]), ("down_proj", [d, i])] {
                add(format!("{layer_name}.mlp.{name}.weight"), &shape);
            }
        } else {
            let [experts, width] = sizes(text, ["num_experts", "moe_intermediate_size"]);
            add(format!("{layer_name}.mlp.gate.weight"), &[experts, d]);
            add(format!("{layer_name}.mlp.experts.gate_up_proj"), &[experts, d, 2 * width]);
            add(format!("{layer_name}.mlp.experts.down_proj"), &[experts, width, d]);
        }
    }
    shapes
}

fn tower_shapes(vision: &Value, shapes: &mut Vec<(String, Vec<usize>)>) {
    let [h, w, p, depth, out, positions] = sizes(
        vision,
        [
            "hidden_size",
            "intermediate_size",
            "patch_size",
            "depth",
            "out_hidden_size",
            "num_position_embeddings",
        ],
    );
    shapes.push(("model.visual.pos_embed.weight".into(), vec![positions, h]));
    let mut add = |name: String, shape: &[usize]| {
        shapes.push((format!("model.visual.{name}.weight"), shape.to_vec()));
        shapes.push((format!("model.visual.{name}.bias"), shape[..1].to_vec()));
    };
    add("patch_embed.proj".into(), &[h, 3, 2, p, p]);
    for block in 0..depth {
        for (name, shape) in [
            ("attn.qkv", &[3 * h, h][..]),
            ("attn.proj", &[h, h]),
            ("mlp.linear_fc1", &[w, h]),
            ("mlp.linear_fc2", &[h, w]),
            ("norm1", &[h]),
            ("norm2", &[h]),
        ] {
            add(format!("blocks.{block}.{name}"), shape);
        }
    }
    let num_taps = vision["deepstack_visual_indexes"].as_array().expect("a list").len();
    let taps = (0..num_taps).map(|tap| (format!("deepstack_merger_list.{tap}"), 4 * h));
    for (name, normed) in std::iter::once(("merger".to_string(), h)).chain(taps) {
        add(format!("{name}.norm"), &[normed]);
        add(format!("{name}.linear_fc1"), &[4 * h, 4 * h]);
        add(format!("{name}.linear_fc2"), &[out, 4 * h]);
    }
}
