//! What `quantization_config` may say, whom it concerns, and how it complains.

use super::*;
use serde_json::{Map, Value, json};

fn read(quantization: Value) -> Result<Option<Published>, LoadError> {
    let mut object = Map::new();
    object.insert("quantization_config".into(), quantization);
    Published::read("config.json", &Fields::new("config.json", "", &object))
}

/// As Kimi-K2.5 has it.
fn kimi() -> Value {
    json!({
        "config_groups": {"group_0": {
            "input_activations": null, "output_activations": null, "targets": ["Linear"],
            "weights": {"actorder": null, "block_structure": null, "dynamic": false, "group_size": 32, "num_bits": 4,
                        "observer": "minmax", "observer_kwargs": {}, "strategy": "group", "symmetric": true, "type": "int"}
        }},
        "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
        "kv_cache_scheme": null, "quant_method": "compressed-tensors", "quantization_status": "compressed"
    })
}

fn with(mut value: Value, pointer: &str, change: Value) -> Value {
    *value.pointer_mut(pointer).unwrap() = change;
    value
}

/// As llm-compressor writes its FP8 schemes.
fn small_floats(strategy: &str) -> Value {
    let changes = [("num_bits", json!(8)), ("type", json!("float")), ("strategy", json!(strategy))];
    let config = with(kimi(), "/format", json!("float-quantized"));
    changes
        .into_iter()
        .fold(config, |config, (key, change)| with(config, &format!("{WEIGHTS}/{key}"), change))
}

const WEIGHTS: &str = "/config_groups/group_0/weights";

#[test]
fn compressed_tensors_say_which_modules() {
    let published = read(kimi()).unwrap().unwrap();
    assert_eq!(published.method, "compressed-tensors int4");
    let scheme = Scheme::Packed { bits: 4, group: Some(32), zeros: false, scattered: false };
    let of = |part, module: &str| published.scheme(part, module).copied();
    for prefix in ["", "language_model."] {
        let layer = format!("{prefix}model.layers.3.");
        assert_eq!(of(Part::Linear, &format!("{layer}mlp.experts.7.gate_proj")), Some(scheme));
        for module in ["self_attn.q_proj", "mlp.shared_experts.up_proj", "mlp.down_proj"] {
            assert_eq!(of(Part::Linear, &format!("{layer}{module}")), None, "{module}");
        }
        assert_eq!(of(Part::Head, &format!("{prefix}lm_head")), None);
        assert_eq!(of(Part::Router, &format!("{layer}mlp.gate")), None);
    }
    assert_eq!(scheme.kept_as(), Some(WeightType::Int4));
}

/// As MiniMax-M2 has it.
#[test]
fn experts_in_fp8_under_other_names() {
    let config = json!({
        "activation_scheme": "dynamic", "fmt": "float8_e4m3fn", "quant_method": "fp8", "weight_block_size": [128, 128],
        "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]
    });
    let published = read(config).unwrap().unwrap();
    let scheme = Scheme::Fp8 { cut: Cut::Blocks([128, 128]), scales: "weight_scale_inv" };
    let of = |part, module: &str| published.scheme(part, &format!("model.layers.3.{module}")).copied();
    assert_eq!(of(Part::Linear, "block_sparse_moe.experts.7.w2"), Some(scheme));
    assert_eq!(of(Part::Linear, "self_attn.q_proj"), Some(scheme));
    assert_eq!(of(Part::Router, "block_sparse_moe.gate"), None);
    assert_eq!(published.scheme(Part::Head, "lm_head"), None);
}

#[test]
fn schemes_of_other_settings() {
    let compressed = |changes: &[(&str, Value)]| {
        let all = changes
            .iter()
            .fold(kimi(), |value, (key, change)| with(value, &format!("{WEIGHTS}/{key}"), change.clone()));
        let published = read(all).unwrap().unwrap();
        *published.scheme(Part::Linear, "model.layers.0.mlp.experts.0.up_proj").unwrap()
    };
    let channel = compressed(&[("num_bits", json!(8)), ("strategy", json!("channel"))]);
    assert_eq!(channel, Scheme::Packed { bits: 8, group: None, zeros: false, scattered: false });
    assert_eq!(channel.kept_as(), Some(WeightType::Int8));
    let zeros = compressed(&[("symmetric", json!(false)), ("group_size", json!(128))]);
    assert_eq!(zeros, Scheme::Packed { bits: 4, group: Some(128), zeros: true, scattered: false });
    assert_eq!(zeros.kept_as(), Some(WeightType::Int4Zero));
    let of = |config: Value| {
        let published = read(config).unwrap().unwrap();
        let scheme = published.scheme(Part::Linear, "model.layers.0.mlp.up_proj").copied();
        (published.method, scheme, published.scheme(Part::Head, "lm_head").is_some())
    };
    let awq =
        json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": true});
    assert_eq!(of(awq), ("awq int4", Some(Scheme::Awq { group: 128 }), false));
    let skipped =
        json!({"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": ["mlp.up"]});
    assert_eq!(of(skipped), ("awq int4", None, false));
    let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true});
    let scheme = Scheme::Gptq { bits: 4, group: Some(128), zeros: false, less_one: true, scattered: false };
    assert_eq!((of(gptq), scheme.kept_as()), (("gptq int4", Some(scheme), false), Some(WeightType::Int4)));
    let v2 = json!({
        "quant_method": "gptq", "bits": 4, "group_size": -1, "sym": false, "checkpoint_format": "gptq_v2", "dynamic": {}
    });
    let scheme = Scheme::Gptq { bits: 4, group: None, zeros: true, less_one: false, scattered: false };
    assert_eq!((of(v2), scheme.kept_as()), (("gptq int4", Some(scheme), false), Some(WeightType::Int4Zero)));
    let newer =
        json!({"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": false, "format": "gptq_v2"});
    assert_eq!(of(newer).1, Some(scheme));
    let fp8 = json!({
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]
    });
    let scheme = Scheme::Fp8 { cut: Cut::Blocks([128, 128]), scales: "weight_scale_inv" };
    assert_eq!((of(fp8), scheme.kept_as()), (("fp8", Some(scheme), false), None));
}

/// Mixtral as it was first published in GPTQ has one group a row in the order of the activations, and a list of all but the router;
/// later packers write expressions.
#[test]
fn gptq_says_which_layers() {
    let of = |changes: Value| {
        let mut config = json!({"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": true});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let published = read(config).unwrap().unwrap();
        move |module: &str| published.scheme(Part::Linear, &format!("model.layers.3.{module}")).is_some()
    };
    let mixtral = of(json!({"modules_in_block_to_quantize": [
        ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"],
        ["block_sparse_moe.experts.0.w1", "block_sparse_moe.experts.1.w1"]
    ]}));
    assert!(mixtral("self_attn.q_proj") && mixtral("block_sparse_moe.experts.1.w1"));
    assert!(!mixtral("self_attn.o_proj") && !mixtral("block_sparse_moe.experts.0.w2"));
    let whole = of(json!({"modules_in_block_to_quantize": ["model.layers.3.self_attn.q_proj"]}));
    assert!(whole("self_attn.q_proj") && !whole("self_attn.k_proj"));
    let expressions = of(json!({"dynamic": {
        "-:model\\.layers\\.3\\.mlp\\.down_proj$": {}, "-:lm_head": {}, "lm_head": {}, "-:down_proj": {}
    }}));
    assert!(!expressions("mlp.down_proj"));
    assert!(expressions("mlp.up_proj") && expressions("mlp.experts.0.down_proj"));
}

/// Groups of columns in any order are read as floats; those that are neighbours in spite of an order, in their groups.
#[test]
fn scattered_groups_are_floats() {
    let of = |config: Value| {
        let published = read(config).unwrap().unwrap();
        published.scheme(Part::Linear, "model.layers.3.mlp.up_proj").unwrap().kept_as()
    };
    let gptq = |changes: Value| {
        let mut config = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        of(config)
    };
    assert_eq!(gptq(json!({})), None);
    assert_eq!(gptq(json!({"static_groups": true})), Some(WeightType::Int4));
    assert_eq!(gptq(json!({"group_size": -1})), Some(WeightType::Int4));
    let order = |order: &str| of(with(experts_and_all(), &format!("{WEIGHTS}/actorder"), json!(order)));
    assert_eq!([order("group"), order("weight")], [None, Some(WeightType::Int4)]);
}

/// The same with nothing left out.
fn experts_and_all() -> Value {
    with(kimi(), "/ignore", json!([]))
}

/// One scale for a matrix or for a row of it, in the forms of several packers.
#[test]
fn fp8_without_blocks() {
    let of = |config: Value| {
        let published = read(config).unwrap().unwrap();
        let of = |module: &str| published.scheme(Part::Linear, module).copied();
        (
            of("model.layers.3.mlp.up_proj"),
            of("model.layers.3.mlp.down_proj"),
            published.may_ignore("x.input_scale"),
        )
    };
    let fp8 = |cut| Some(Scheme::Fp8 { cut, scales: "weight_scale" });
    let whole = fp8(Cut::Whole);
    let plain = json!({"quant_method": "fp8", "activation_scheme": "static"});
    assert_eq!(of(plain), (whole, whole, true));
    let named = json!({"quant_method": "fp8", "weight_block_size": null,
                       "ignored_layers": ["lm_head", "model.layers.3.mlp.down_proj"]});
    assert_eq!(of(named), (whole, None, true));
    let matched = json!({"quant_method": "fp8", "ignored_layers": ["re:.*down_proj"]});
    assert_eq!(of(matched), (whole, None, true));
    let rows = json!({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["down_proj"]});
    assert_eq!(of(rows), (fp8(Cut::Rows), None, true));
}

#[test]
fn parts_of_names_are_not_looked_for_inside_experts() {
    let awq = |listed: &str| {
        let config =
            json!({"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": [listed]});
        let published = read(config).unwrap().unwrap();
        move |module: &str| published.scheme(Part::Linear, &format!("model.layers.3.{module}")).is_some()
    };
    // Routers, as they are listed for Mixtral and for Qwen3-MoE.
    for router in ["gate", "mlp.gate"] {
        assert!(awq(router)("mlp.experts.7.gate_proj"), "{router}");
    }
    assert!(!awq("experts.7.")("mlp.experts.7.gate_proj"));
    assert!(!awq("model.layers.3.")("mlp.experts.7.gate_proj"));
    assert!(!awq("mlp")("mlp.experts.7.gate_proj"));
    assert!(!awq("self_attn")("self_attn.q_proj"));
}

#[test]
fn compressed_tensors_may_be_small_floats() {
    let block = with(small_floats("block"), &format!("{WEIGHTS}/block_structure"), json!([128, 64]));
    for (config, cut) in [
        (small_floats("channel"), Cut::Rows),
        (small_floats("tensor"), Cut::Whole),
        (block, Cut::Blocks([128, 64])),
    ] {
        let published = read(config).unwrap().unwrap();
        let scheme = Scheme::Fp8 { cut, scales: "weight_scale" };
        assert_eq!(published.method, "compressed-tensors fp8");
        assert_eq!(published.scheme(Part::Linear, "model.layers.0.mlp.experts.0.up_proj"), Some(&scheme));
        assert!(!published.is_kept());
    }
}

#[test]
fn what_is_not_understood_is_named() {
    let weights = |key: &str| format!("{WEIGHTS}/{key}");
    let cases = [
        (json!({"quant_method": "bitsandbytes"}), "quant_method"),
        (json!({}), "quant_method"),
        (with(kimi(), "/format", json!("marlin-24")), "format"),
        (with(kimi(), "/kv_cache_scheme", json!({"num_bits": 8})), "kv_cache_scheme"),
        (with(kimi(), "/config_groups", json!({})), "config_groups"),
        (with(kimi(), "/ignore", json!(["re:(?<!x)y"])), "ignore"),
        (with(kimi(), "/ignore", json!([7])), "ignore"),
        (with(kimi(), "/config_groups/group_0/targets", json!([])), "config_groups.group_0.targets"),
        (with(kimi(), &weights("num_bits"), json!(3)), "config_groups.group_0.weights.num_bits"),
        (with(kimi(), &weights("type"), json!("string")), "config_groups.group_0.weights.type"),
        (with(kimi(), &weights("type"), json!("float")), "config_groups.group_0.weights.num_bits"),
        (with(small_floats("channel"), "/format", json!("pack-quantized")), "format"),
        (small_floats("group"), "config_groups.group_0.weights.strategy"),
        (small_floats("block"), "config_groups.group_0.weights.block_structure"),
        (
            with(small_floats("tensor"), &weights("symmetric"), json!(false)),
            "config_groups.group_0.weights.symmetric",
        ),
        (with(kimi(), &weights("strategy"), json!("tensor")), "config_groups.group_0.weights.strategy"),
        (with(kimi(), &weights("group_size"), json!(48)), "config_groups.group_0.weights.group_size"),
        (with(kimi(), &weights("actorder"), json!("other")), "config_groups.group_0.weights.actorder"),
        (json!({"quant_method": "awq", "bits": 8, "group_size": 128}), "bits"),
        (json!({"quant_method": "awq", "bits": 4, "group_size": 16}), "group_size"),
        (json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}), "version"),
        (json!({"quant_method": "awq", "bits": 4, "group_size": 128, "format": "gemv_fast"}), "format"),
        (json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": false}), "zero_point"),
        (json!({"quant_method": "gptq", "bits": 3, "group_size": 128}), "bits"),
        (json!({"quant_method": "gptq", "bits": 8, "group_size": 128, "sym": false}), "sym"),
        (
            json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"x": {"bits": 8}}}),
            "dynamic",
        ),
        (
            json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:(?!x)": {}}}),
            "dynamic",
        ),
        (
            json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "modules_in_block_to_quantize": [[7]]}),
            "modules_in_block_to_quantize",
        ),
        (
            json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"}),
            "checkpoint_format",
        ),
        (json!({"quant_method": "fp8", "kv_cache_scheme": "static"}), "kv_cache_scheme"),
        (json!({"quant_method": "fp8", "ignored_layers": ["re:("]}), "ignored_layers"),
        (json!({"quant_method": "fp8", "weight_block_size": 128}), "weight_block_size"),
        (json!({"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}), "fmt"),
        (json!({"quant_method": "fp8", "weight_block_size": [128, 0]}), "weight_block_size"),
    ];
    for (config, key) in cases {
        let message = read(config.clone()).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("config.json: quantization_config.{key}: ")),
            "{config}: {message}"
        );
    }
}
