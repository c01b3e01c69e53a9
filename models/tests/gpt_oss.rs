//! gpt-oss in miniature: windows in turns, sinks, biases everywhere, YaRN whose borders are not rounded, and experts in one tensor with a clamped function,
//! in bf16 and in MXFP4, against log-probabilities by transformers (tools/golden/gpt_oss.py).

mod common;

use common::feed::{Feed, Numbers, check, is_near};
use common::formula::words;
use common::{adapters, made};
use models::{ActivationsChoice, DTypeChoice, LoadFormat, LoadOptions, ModelFiles, QuantizationChoice};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const TOLERANCE: f32 = 1e-3;
const BF16: Numbers = [
    [-6.58857, -5.711, -6.80688, -7.30468],
    [-3.27717, -4.66913, -7.74438, -8.52097],
    [-5.31927, -5.03238, -8.17609, -7.12205],
];
const MXFP4: Numbers = [
    [-6.52594, -4.38214, -7.53618, -6.57044],
    [-3.9936, -4.61108, -8.0352, -8.66107],
    [-4.98918, -5.73911, -8.39807, -7.70779],
];

fn options() -> LoadOptions {
    LoadOptions { max_model_len: Some(200), ..common::options() }
}

/// As published, without a type of floats.
fn config(is_mxfp4: bool) -> Value {
    let mut config = json!({
        "architectures": ["GptOssForCausalLM"], "attention_bias": true, "eos_token_id": 2, "experts_per_token": 2,
        "head_dim": 64, "hidden_act": "silu", "hidden_size": 64, "initial_context_length": 32, "intermediate_size": 96,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "max_position_embeddings": 256,
        "model_type": "gpt_oss", "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 3,
        "num_key_value_heads": 2, "num_local_experts": 5, "rms_norm_eps": 1e-5, "rope_theta": 150000,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0, "original_max_position_embeddings": 32,
            "rope_type": "yarn", "truncate": false,
        },
        "sliding_window": 13, "swiglu_limit": 0.5, "tie_word_embeddings": false, "vocab_size": 128,
    });
    if is_mxfp4 {
        let floats =
            ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"];
        config["quantization_config"] = json!({"modules_to_not_convert": floats, "quant_method": "mxfp4"});
    }
    config
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(is_mxfp4: bool) -> Tensors {
    let (hidden, width, experts, vocab, heads, kv, dim) = (64, 96, 5, 128, 4, 2, 64);
    let mut all = BTreeMap::new();
    let mut put = |name: String, shape: &[usize], kind: &str| {
        let count = shape.iter().product();
        let byte = |word: u32| (word >> 24) as u8;
        let (dtype, data) = match kind {
            "blocks" => (Dtype::U8, words(&name, count).map(byte).collect()),
            "scales" => (Dtype::U8, words(&name, count).map(|word| 118 + byte(word) % 6).collect()),
            _ => (Dtype::BF16, made::values(&name, count, kind)),
        };
        all.insert(name, (dtype, shape.to_vec(), data));
    };
    put("model.embed_tokens.weight".into(), &[vocab, hidden], "embed");
    put("model.norm.weight".into(), &[hidden], "norm");
    put("lm_head.weight".into(), &[vocab, hidden], "head");
    for index in 0..3 {
        let layer = format!("model.layers.{index}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            put(format!("{layer}.{norm}.weight"), &[hidden], "norm");
        }
        for (name, n, k) in [
            ("q", heads * dim, hidden),
            ("k", kv * dim, hidden),
            ("v", kv * dim, hidden),
            ("o", hidden, heads * dim),
        ] {
            put(format!("{layer}.self_attn.{name}_proj.weight"), &[n, k], "linear");
            put(format!("{layer}.self_attn.{name}_proj.bias"), &[n], "bias");
        }
        put(format!("{layer}.self_attn.sinks"), &[heads], "sink");
        put(format!("{layer}.mlp.router.weight"), &[experts, hidden], "router");
        put(format!("{layer}.mlp.router.bias"), &[experts], "bias");
        for (name, n, k) in [("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)] {
            let name = format!("{layer}.mlp.experts.{name}");
            put(format!("{name}_bias"), &[experts, n], "bias");
            if is_mxfp4 {
                put(format!("{name}_blocks"), &[experts, n, k / 32, 16], "blocks");
                put(format!("{name}_scales"), &[experts, n, k / 32], "scales");
            } else {
                put(name, &[experts, k, n], "linear");
            }
        }
    }
    all
}

fn feed(is_mxfp4: bool, options: &LoadOptions) -> Feed {
    let form = if is_mxfp4 { "mxfp4" } else { "bf16" };
    Feed::of(&format!("gpt-oss-{form}"), &config(is_mxfp4), &tensors(is_mxfp4), options)
}

#[test]
fn numbers_of_transformers() {
    for (is_mxfp4, numbers) in [(false, BF16), (true, MXFP4)] {
        let mut feed = feed(is_mxfp4, &options());
        for chunk in [1, 7, 1000] {
            check(&feed.run(chunk), &numbers, TOLERANCE, &format!("MXFP4 {is_mxfp4} in chunks of {chunk}"));
        }
    }
}

/// Each of these moves the numbers: they hold what they are meant to hold.
#[test]
fn every_part_counts() {
    let without = |change: &dyn Fn(&mut Value, &mut Tensors)| {
        let (mut config, mut tensors) = (config(false), tensors(false));
        change(&mut config, &mut tensors);
        let found = Feed::of("gpt-oss-changed", &config, &tensors, &options()).run(1000);
        assert_eq!(is_near(&found, &BF16, TOLERANCE), [false; 3]);
    };
    without(&|config, _| config["rope_scaling"]["truncate"] = true.into());
    without(&|config, _| config["swiglu_limit"] = 0.6.into());
    without(&|config, _| config["swiglu_alpha"] = 1.6.into());
    for part in ["sinks", "router.bias", "gate_up_proj_bias", "down_proj_bias", "o_proj.bias"] {
        without(&|_, tensors| {
            let name = tensors.keys().find(|name| name.ends_with(part)).unwrap().clone();
            tensors.get_mut(&name).unwrap().2.fill(0);
        });
    }
}

#[test]
fn company_changes_no_bit() {
    for (is_mxfp4, activations) in
        [(false, ActivationsChoice::Auto), (true, ActivationsChoice::Auto), (true, ActivationsChoice::F32)]
    {
        let options = LoadOptions { dtype: DTypeChoice::Auto, activations, ..options() };
        let mut feed = feed(is_mxfp4, &options);
        let whole = feed.run(1000).pop().unwrap();
        feed.check_company(&whole, "gpt-oss");
    }
}

#[test]
fn on_a_gpu() {
    for (is_mxfp4, numbers) in [(false, BF16), (true, MXFP4)] {
        // Tensor cores multiply bf16, and what is rounded to it may choose another expert.
        let rounded = 1.0;
        let of_floats = if is_mxfp4 { rounded } else { 0.05 };
        for (dtype, tolerance) in [(DTypeChoice::F32, of_floats), (DTypeChoice::BF16, rounded)] {
            let mut feed = feed(is_mxfp4, &LoadOptions { dtype, ..common::on_gpu() });
            let whole = feed.run(64);
            check(&whole, &numbers, tolerance, &format!("MXFP4 {is_mxfp4}"));
            assert!(feed.run(3).pop() == whole.last().cloned(), "MXFP4 {is_mxfp4}");
        }
    }
}

#[test]
fn what_is_not_read_is_named() {
    let refused = |change: &dyn Fn(&mut Value, &mut Tensors), options: &LoadOptions, words: &str| {
        let (mut config, mut tensors) = (config(true), tensors(true));
        change(&mut config, &mut tensors);
        let folder = common::scratch().join(format!("gpt-oss-refused-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        adapters::write(&folder.join("model.safetensors"), &tensors);
        let files = ModelFiles::Directory(folder.clone());
        let message = models::load(&files, options, &mut |_| {}).err().expect("refused").to_string();
        assert!(message.contains(words), "{message}");
    };
    let options = options();
    let scales = "model.layers.1.mlp.experts.down_proj_scales";
    refused(&|_, tensors| tensors.get_mut(scales).unwrap().2[3] = 200, &options, "exponent 200");
    refused(&|config, _| config["rope_scaling"] = Value::Null, &options, "rope_scaling: is missing");
    refused(
        &|config, _| config["quantization_config"]["quant_method"] = "awq".into(),
        &options,
        "quantization_config",
    );
    let with_experts = LoadOptions { max_loras: 1, lora_experts: true, ..options.clone() };
    refused(&|_, _| {}, &with_experts, "lora_experts");
}

/// Random weights, and experts that are quantised here.
#[test]
fn other_weights() {
    let int4 = LoadOptions { quantization: QuantizationChoice::Int4, ..options() };
    assert_eq!(feed(false, &int4).run(1000).len(), 3);
    let dummy = LoadOptions { load_format: LoadFormat::Dummy, ..options() };
    assert_eq!(feed(true, &dummy).run(1000).len(), 3);
}
