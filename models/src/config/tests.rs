//! Published configurations, and what is refused.

mod rope;

use super::*;
use crate::decoder::Decoder;
use crate::storage::Storage;
use kernels::ops::{KvType, RopeLayout, RopeSections};
use serde_json::json;

fn parse(json: &Value) -> Result<ModelConfig, LoadError> {
    ModelConfig::parse("config.json", json.as_object().unwrap())
}

fn parameters(json: Value) -> u64 {
    Decoder::size(&parse(&json).unwrap().decoder, &Storage::floats(DType::BF16)).parameters
}

fn moonlight() -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 11264,
        "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
        "kv_lora_rank": 512, "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "moe_layer_freq": 1,
        "first_k_dense_replace": 1, "topk_method": "noaux_tc", "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid",
        "norm_topk_prob": true, "routed_scaling_factor": 2.446, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0, "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "num_nextn_predict_layers": 0,
        "bos_token_id": 163584, "eos_token_id": 163585
    })
}

fn kimi_vl() -> Value {
    let mut text = moonlight();
    text.as_object_mut().unwrap().remove("architectures");
    text["model_type"] = "deepseek_v3".into();
    text["max_position_embeddings"] = 131072.into();
    text["rope_theta"] = 800000.0.into();
    json!({
        "architectures": ["KimiVLForConditionalGeneration"], "media_placeholder_token_id": 163605, "text_config": text,
        "vision_config": {"model_type": "moonvit"}, "torch_dtype": "bfloat16"
    })
}

fn llama() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"})
}

fn with(mut json: Value, changes: &[(&str, Value)]) -> Value {
    for (key, value) in changes {
        json[key] = value.clone();
    }
    json
}

fn llama31(changes: &[(&str, Value)]) -> Value {
    let rope = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 8192});
    let base = [
        ("intermediate_size", json!(14336)),
        ("num_key_value_heads", json!(8)),
        ("vocab_size", json!(128256)),
        ("rope_theta", json!(500000.0)),
        ("rope_scaling", rope),
        ("max_position_embeddings", json!(131072)),
        ("eos_token_id", json!([128001, 128008, 128009])),
    ];
    with(with(llama(), &base), changes)
}

#[test]
fn parameters_of_published_models() {
    // The 26 * 64 correction biases are buffers, which the published counts leave out.
    assert_eq!(parameters(moonlight()), 15_960_108_544 + 26 * 64);
    assert_eq!(parameters(kimi_vl()), 15_960_108_544 + 26 * 64);
    assert_eq!(parameters(llama()), 6_738_415_616);
    assert_eq!(parameters(llama31(&[])), 8_030_261_248);
    let llama2_70b = [
        ("num_hidden_layers", json!(80)),
        ("hidden_size", json!(8192)),
        ("intermediate_size", json!(28672)),
        ("num_attention_heads", json!(64)),
        ("num_key_value_heads", json!(8)),
    ];
    assert_eq!(parameters(with(llama(), &llama2_70b)), 68_976_648_192);
    let seed_oss = json!({"architectures": ["SeedOssForCausalLM"], "hidden_size": 5120});
    assert_eq!(parameters(seed_oss), 36_151_104_512);
    let v2_lite = json!({
        "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "q_lora_rank": null,
        "num_experts_per_tok": 6, "first_k_dense_replace": 1
    });
    assert_eq!(parameters(v2_lite), 15_706_484_224);
}

#[test]
fn bytes_of_the_latent_cache() {
    let config = parse(&kimi_vl()).unwrap();
    assert_eq!(
        crate::kv_cache::KvCache::bytes_per_token(&config.decoder, KvType::Float(DType::BF16)),
        31_104
    );
    let config = parse(&llama31(&[])).unwrap();
    assert_eq!(
        crate::kv_cache::KvCache::bytes_per_token(&config.decoder, KvType::Float(DType::BF16)),
        131_072
    );
}

#[test]
fn moonlight_and_its_switches() {
    let config = parse(&moonlight()).unwrap();
    assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(163584), &[163585][..]));
    assert_eq!(config.dtype, DType::BF16);
    let decoder = config.decoder;
    let AttentionConfig::Mla(mla) = &decoder.attention else { panic!("not MLA") };
    assert_eq!((mla.q_lora_rank, mla.row(), mla.query_dim()), (None, 576, 192));
    assert_eq!(mla.scale, (192f64).powf(-0.5) as f32);
    assert_eq!(decoder.rope.layout, RopeLayout::Interleaved);
    let moe = decoder.moe.as_ref().unwrap();
    assert_eq!((moe.layers[0], moe.layers[1], moe.layers.len()), (false, true, 27));
    assert_eq!(
        (moe.shared.unwrap().intermediate_size, moe.correction_bias),
        (2816, Some(CorrectionBias::Gate))
    );
}

#[test]
fn kimi_vl_reads_its_text_part() {
    let config = parse(&kimi_vl()).unwrap();
    assert_eq!(config.decoder.prefix, "language_model.");
    assert_eq!(config.decoder.rope.theta, 800000.0);
    assert_eq!(config.vision.unwrap().image_token_id, 163605);
}

fn qwen_vl() -> Value {
    json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "bos_token_id": 151643, "eos_token_id": 151645,
        "vision_start_token_id": 151652, "vision_end_token_id": 151653, "image_token_id": 151655, "video_token_id": 151656,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 128000,
        "max_window_layers": 70, "model_type": "qwen2_5_vl", "num_attention_heads": 16, "num_hidden_layers": 36,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 151936,
        "vision_config": {"model_type": "qwen2_5_vl", "depth": 32},
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}
    })
}

/// As newer versions of the published code write the same.
fn newer_qwen_vl() -> Value {
    let mut text = qwen_vl();
    let object = text.as_object_mut().unwrap();
    for key in [
        "architectures",
        "vision_config",
        "image_token_id",
        "tie_word_embeddings",
        "rope_theta",
        "rope_scaling",
    ] {
        object.remove(key);
    }
    text["model_type"] = "qwen2_5_vl_text".into();
    text["rope_parameters"] =
        json!({"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]});
    json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "text_config": text, "tie_word_embeddings": true,
        "vision_config": {"model_type": "qwen2_5_vl_vision"}, "dtype": "bfloat16"
    })
}

#[test]
fn qwen_vl_old_and_new() {
    let config = parse(&qwen_vl()).unwrap();
    let decoder = &config.decoder;
    assert_eq!((decoder.prefix, decoder.tied_head, decoder.rope.theta), ("", true, 1e6));
    assert_eq!(decoder.rope.sections, Some(RopeSections::Consecutive([16, 24, 24])));
    assert_eq!((decoder.rope.num_axes(), &decoder.rope.scaling), (3, &RopeScaling::None));
    let vision = config.vision.as_ref().unwrap();
    assert_eq!((vision.image_token_id, vision.tower), (151_655, TowerKind::Qwen25));
    assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(151_643), &[151_645][..]));
    // The 3B model without its tower of 668,684,288.
    assert_eq!(parameters(qwen_vl()), 3_085_938_688);
    let newer = parse(&newer_qwen_vl()).unwrap();
    assert_eq!((&newer.decoder, newer.dtype), (decoder, config.dtype));
    assert_eq!((newer.bos_token_id, &newer.eos_token_ids), (config.bos_token_id, &config.eos_token_ids));
    // With the scaling that the model cards show for long texts.
    let long = json!({"type": "yarn", "mrope_section": [16, 24, 24], "factor": 4,
        "original_max_position_embeddings": 32768});
    let rope = parse(&with(qwen_vl(), &[("rope_scaling", long)])).unwrap().decoder.rope;
    assert_eq!(rope.num_axes(), 3);
    assert!(matches!(rope.scaling, RopeScaling::Yarn(_)));
}

#[test]
fn sections_that_do_not_fit_are_named() {
    let sections = |sections: Value| {
        let scaling = json!({"type": "mrope", "mrope_section": sections});
        parse(&with(qwen_vl(), &[("rope_scaling", scaling)])).unwrap_err().to_string()
    };
    for (found, expected) in [
        (json!([16, 24, 23]), "has 63 pairs of dimensions, and heads have 64"),
        (json!([16, 24]), "expected three whole numbers"),
        (json!([16, 24, -1]), "expected three whole numbers"),
        (json!([16, 24, "24"]), "expected three whole numbers"),
    ] {
        let message = sections(found);
        assert!(
            message.starts_with(&format!("config.json: rope_scaling.mrope_section: {expected}")),
            "{message}"
        );
    }
    let of = |changes: &[(&str, Value)]| parse(&with(qwen_vl(), changes)).unwrap_err().to_string();
    assert!(of(&[("model_type", json!("qwen2_vl"))]).starts_with("config.json: model_type: "));
    assert!(of(&[("vision_config", Value::Null)]).starts_with("config.json: vision_config: is missing"));
    // A family without sections has none.
    let scaling = json!({"type": "mrope", "mrope_section": [16, 24, 24]});
    let message = parse(&with(llama(), &[("rope_scaling", scaling)])).unwrap_err().to_string();
    assert!(
        message.starts_with("config.json: rope_scaling.rope_type: \"mrope\" is not supported"),
        "{message}"
    );
}

#[test]
fn biases_and_norms_of_the_dense_families() {
    let gqa = |json: Value| match parse(&json).unwrap().decoder.attention {
        AttentionConfig::Gqa(gqa) => (gqa.qkv_bias, gqa.out_bias, gqa.qk_norm, gqa.head_dim),
        AttentionConfig::Mla(_) => panic!("not GQA"),
    };
    assert_eq!(gqa(llama()), (false, false, QkNorm::None, 128));
    assert_eq!(gqa(with(llama(), &[("attention_bias", json!(true))])), (true, true, QkNorm::None, 128));
    assert_eq!(gqa(json!({"architectures": ["Qwen2ForCausalLM"]})), (true, false, QkNorm::None, 128));
    let qwen3 = json!({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "num_attention_heads": 16,
                       "num_key_value_heads": 8});
    assert_eq!(gqa(qwen3), (false, false, QkNorm::Rms, 128));
    assert_eq!(gqa(json!({"architectures": ["SeedOssForCausalLM"]})), (true, false, QkNorm::None, 128));
    assert_eq!(gqa(json!({"architectures": ["MixtralForCausalLM"]})), (false, false, QkNorm::None, 128));
    assert_eq!(gqa(chameleon(&[])), (false, false, QkNorm::LayerPerHead, 128));
    assert_eq!(gqa(chameleon(&[("attention_bias", json!(true))])), (true, true, QkNorm::LayerPerHead, 128));
}

/// With the defaults of its class, as the published file leaves out what is one.
fn chameleon(changes: &[(&str, Value)]) -> Value {
    let names = json!({"IMGIMGAZ": 9, "IMGIMGBZ": 4, "<image>": 20});
    with(json!({"architectures": ["ChameleonForConditionalGeneration"], "vocabulary_map": names}), changes)
}

#[test]
fn chameleon_has_norms_in_one_of_two_places_and_tokens_that_are_never_drawn() {
    let config = parse(&chameleon(&[])).unwrap();
    assert_eq!((config.decoder.vocab_size, config.decoder.max_position_embeddings), (65_536, 4096));
    assert_eq!((config.decoder.rms_norm_eps, config.decoder.norms), (1e-5, NormPlace::Before));
    assert_eq!(config.decoder.never_drawn, [4, 9]);
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(1), vec![2]));
    let swin = parse(&chameleon(&[("swin_norm", json!(true))])).unwrap();
    assert_eq!(swin.decoder.norms, NormPlace::After);
    for (key, value) in [("swin_norm", json!(1)), ("vocabulary_map", Value::Null)] {
        let message = parse(&chameleon(&[(key, value)])).unwrap_err().to_string();
        assert!(message.starts_with(&format!("config.json: {key}: ")), "{message}");
    }
}

#[test]
fn which_layers_have_experts() {
    let layers = |json: Value| parse(&json).unwrap().decoder.moe.map(|moe| moe.layers);
    let qwen = json!({"architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 6, "decoder_sparse_step": 2,
                      "mlp_only_layers": [3]});
    assert_eq!(layers(qwen), Some(vec![false, true, false, false, false, true]));
    let deepseek =
        [("num_hidden_layers", json!(6)), ("first_k_dense_replace", json!(1)), ("moe_layer_freq", json!(2))];
    assert_eq!(layers(with(moonlight(), &deepseek)), Some(vec![false, false, true, false, true, false]));
    assert_eq!(layers(with(moonlight(), &[("first_k_dense_replace", json!(27))])), None);
}

/// The configuration classes take two names for one number, and newer versions write the one that older files do not have.
#[test]
fn experts_are_counted_under_both_names() {
    let experts = |json: &Value| parse(json).unwrap().decoder.moe.unwrap().num_experts;
    let renamed = |mut json: Value, [from, to]: [&str; 2]| {
        let number = json.as_object_mut().unwrap().remove(from).unwrap();
        with(json, &[(to, number)])
    };
    let of = |architecture: &str, key: &str| json!({"architectures": [architecture], "num_experts_per_tok": 2, key: 16});
    for (architecture, names) in [
        ("Qwen3MoeForCausalLM", ["num_experts", "num_local_experts"]),
        ("MixtralForCausalLM", ["num_local_experts", "num_experts"]),
        ("DeepseekV2ForCausalLM", ["n_routed_experts", "num_experts"]),
        ("DeepseekV3ForCausalLM", ["n_routed_experts", "num_local_experts"]),
    ] {
        let json = of(architecture, names[0]);
        assert_eq!(experts(&json), 16, "{architecture} {}", names[0]);
        assert_eq!(experts(&renamed(json, names)), 16, "{architecture} {}", names[1]);
        let message =
            parse(&with(of(architecture, names[1]), &[(names[1], json!(0))])).unwrap_err().to_string();
        assert!(message.starts_with(&format!("config.json: {}: ", names[1])), "{message}");
    }
    let mtp = renamed(
        with(moonlight(), &[("num_nextn_predict_layers", json!(2))]),
        ["num_nextn_predict_layers", "num_mtp_layers"],
    );
    assert_eq!(parse(&mtp).unwrap().decoder.num_mtp_layers, 2);
}

#[test]
fn dtype_is_found_under_both_names() {
    let dtype = |changes: &[(&str, Value)]| parse(&with(llama(), changes)).unwrap().dtype;
    assert_eq!(dtype(&[]), DType::F32);
    assert_eq!(dtype(&[("torch_dtype", json!("float16"))]), DType::F16);
    assert_eq!(dtype(&[("dtype", json!("bfloat16"))]), DType::BF16);
    let mut text = kimi_vl();
    text.as_object_mut().unwrap().remove("torch_dtype");
    assert_eq!(parse(&text).unwrap().dtype, DType::BF16);
}

/// Defaults of the classes are the sizes of the first models.
#[test]
fn first_models_of_their_families() {
    let of = |name: &str| json!({ "architectures": [name] });
    let published = with(of("MistralForCausalLM"), &[("max_position_embeddings", json!(32_768))]);
    assert_eq!(parameters(published.clone()), 7_241_732_096);
    let mistral = parse(&published).unwrap();
    assert_eq!((mistral.bos_token_id, mistral.eos_token_ids), (Some(1), vec![2]));
    assert_eq!(parameters(of("Qwen2MoeForCausalLM")), 14_315_784_192);
    let moe = |changes: &[(&str, Value)]| {
        parse(&with(of("Qwen2MoeForCausalLM"), changes)).unwrap().decoder.moe.unwrap()
    };
    let moe_of_first = moe(&[]);
    assert_eq!(moe_of_first.shared, Some(SharedConfig { intermediate_size: 5632, is_gated: true }));
    assert!(!moe_of_first.router.normalize && moe_of_first.layers.iter().all(|&is_moe| is_moe));
    let some = moe(&[
        ("num_hidden_layers", json!(7)),
        ("decoder_sparse_step", json!(3)),
        ("mlp_only_layers", json!([5])),
        ("norm_topk_prob", json!(true)),
    ]);
    let layers: Vec<usize> = (0..7).filter(|&layer| some.layers[layer]).collect();
    assert_eq!((layers, some.router.normalize), (vec![2], true));
}

/// Every complaint names its key.
#[test]
fn what_is_wrong_is_named() {
    let window = json!({"architectures": ["MixtralForCausalLM"], "sliding_window": 0});
    let check = |json: Value, key: &str| {
        let message = parse(&json).unwrap_err().to_string();
        assert!(message.starts_with(&format!("config.json: {key}: ")), "{message}");
    };
    for (key, value) in [
        ("architectures", json!(["GPT2LMHeadModel"])),
        ("architectures", json!([])),
        ("architectures", Value::Null),
        ("architectures", json!("LlamaForCausalLM")),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-4)),
        ("hidden_size", json!(2.5)),
        ("hidden_size", json!("4096")),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(100_000_000)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(7)),
        ("num_key_value_heads", json!(5)),
        ("head_dim", json!(3)),
        ("vocab_size", json!(1u64 << 60)),
        ("rms_norm_eps", json!(0.0)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rope_theta", json!(0.0)),
        ("hidden_act", json!("gelu")),
        ("tie_word_embeddings", json!("yes")),
        ("torch_dtype", json!("float8_e4m3fn")),
        ("compression_config", json!({"format": "pack-quantized"})),
        ("partial_rotary_factor", json!(0.5)),
        ("eos_token_id", json!(32000)),
        ("eos_token_id", json!([1, "two"])),
        ("bos_token_id", json!(-1)),
    ] {
        check(with(llama(), &[(key, value)]), key);
    }
    for (key, value) in [
        ("n_group", json!(3)),
        ("n_group", json!(64)),
        ("topk_group", json!(2)),
        ("num_experts_per_tok", json!(65)),
        ("scoring_func", json!("softmax")),
        ("topk_method", json!("greedy")),
        ("n_routed_experts", json!(0)),
        ("routed_scaling_factor", json!(0)),
        ("kv_lora_rank", json!(0)),
        ("qk_rope_head_dim", json!(0)),
    ] {
        check(with(moonlight(), &[(key, value)]), key);
    }
    for (key, value) in [
        ("rope_type", json!("longrope")),
        ("rope_type", json!(3)),
        ("factor", json!(0)),
        ("factor", Value::Null),
        ("high_freq_factor", json!(0.5)),
        ("original_max_position_embeddings", json!(0)),
    ] {
        let mut json = llama31(&[]);
        json["rope_scaling"][key] = value;
        check(json, &format!("rope_scaling.{key}"));
    }
    for key in ["mlp_bias", "norm_topk_prob"] {
        let v2 = json!({"architectures": ["DeepseekV2ForCausalLM"], "num_experts_per_tok": 2, key: true});
        check(v2, key);
    }
    check(window, "sliding_window");
    let typed = json!({"architectures": ["MinistralForCausalLM"], "layer_types": ["chunked_attention"]});
    check(typed, "layer_types");
    // A model with pictures, whose decoder would be one that is read.
    check(json!({"architectures": ["Mistral3ForConditionalGeneration"], "text_config": {}}), "architectures");
    let last = json!({"architectures": ["Qwen2MoeForCausalLM"], "mlp_only_layers": [24]});
    check(last, "mlp_only_layers");
    let too_many = json!({"architectures": ["Qwen2MoeForCausalLM"], "num_experts": 3});
    check(too_many, "num_experts_per_tok");
    check(with(kimi_vl(), &[("text_config", Value::Null)]), "text_config");
    check(with(kimi_vl(), &[("vision_config", json!([]))]), "vision_config");
    let mut nested = kimi_vl();
    nested["text_config"]["v_head_dim"] = json!("128");
    check(nested, "text_config.v_head_dim");
    let per_layer = json!({"full_attention": {"rope_type": "default"}});
    check(with(llama(), &[("rope_parameters", per_layer)]), "rope_parameters.full_attention");
}

#[test]
fn windows_that_hide_nothing_are_fine() {
    for changes in [
        json!({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": false, "sliding_window": 16}),
        json!({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": true, "sliding_window": 32768}),
        json!({"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": true, "max_window_layers": 32}),
        json!({"architectures": ["MixtralForCausalLM"], "sliding_window": null}),
        // The class's 28 layers before the first with a window.
        json!({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": true, "num_hidden_layers": 28}),
        // What layers are of goes before a number of layers.
        json!({"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": true, "max_window_layers": 0,
               "num_hidden_layers": 1, "layer_types": ["full_attention"]}),
        json!({"architectures": ["Qwen3MoeForCausalLM"], "use_sliding_window": false, "sliding_window": 16}),
    ] {
        assert_eq!(parse(&changes).unwrap().decoder.sliding, None, "{changes}");
    }
}

#[test]
fn windows_that_hide_tokens() {
    let qwen = |changes: &[(&str, Value)]| {
        with(json!({"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": true}), changes)
    };
    let layers = |kind: &str| ("layer_types", json!(["full_attention", kind]));
    let two = ("num_hidden_layers", json!(2));
    let refused = parse(&qwen(&[layers("linear_attention"), two.clone()])).unwrap_err().to_string();
    assert!(refused.starts_with("config.json: layer_types: "), "{refused}");
    let refused = parse(&qwen(&[layers("sliding_attention")])).unwrap_err().to_string();
    assert!(refused.contains("layer_types: has 2 entries, not one for each of 32 layers"), "{refused}");
    let mistral = |name: &str| json!({ "architectures": [name] });
    let ministral = |kind| {
        let changes = [layers(kind), two.clone(), ("sliding_window", json!(64))];
        with(mistral("MinistralForCausalLM"), &changes)
    };
    for (json, width, first) in [
        (qwen(&[]), Some(4096), 28),
        (qwen(&[layers("sliding_attention"), two.clone(), ("max_window_layers", json!(64))]), Some(4096), 1),
        (json!({"architectures": ["MixtralForCausalLM"], "sliding_window": 512}), Some(512), 0),
        (json!({"architectures": ["Qwen2MoeForCausalLM"], "use_sliding_window": true}), Some(4096), 0),
        // The class has a window where the file says nothing; null is none.
        (mistral("MistralForCausalLM"), Some(4096), 0),
        (with(mistral("MistralForCausalLM"), &[("sliding_window", Value::Null)]), None, 0),
        (with(mistral("MistralForCausalLM"), &[("sliding_window", json!(1 << 17))]), None, 0),
        (mistral("MinistralForCausalLM"), Some(4096), 0),
        (ministral("sliding_attention"), Some(64), 1),
        (ministral("full_attention"), None, 0),
        // This family's window is of all layers, whatever other keys say.
        (
            qwen(&[("architectures", json!(["Qwen3MoeForCausalLM"])), ("max_window_layers", json!(64))]),
            Some(4096),
            0,
        ),
        // Wide enough for the original length, not for what it is stretched to.
        (
            qwen(&[
                ("sliding_window", json!(32768)),
                ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
            ]),
            Some(32_768),
            28,
        ),
    ] {
        let decoder = parse(&json).unwrap().decoder;
        let windows: Vec<_> = (0..decoder.num_layers).map(|layer| decoder.window(layer)).collect();
        let expected: Vec<_> =
            (0..decoder.num_layers).map(|layer| width.filter(|_| layer >= first)).collect();
        assert_eq!(windows, expected, "{json}");
        assert!(width.is_none_or(|width| decoder.max_position_embeddings > width), "{json}");
    }
}

/// Qwen's model cards add YaRN to a file whose `max_position_embeddings` stays that of the training.
#[test]
fn yarn_stretches_the_longest_sequence() {
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    let positions = |changes: &[(&str, Value)]| {
        let qwen = json!({"architectures": ["Qwen2ForCausalLM"], "rope_scaling": yarn});
        parse(&with(qwen, changes)).unwrap().decoder.max_position_embeddings
    };
    assert_eq!(positions(&[]), 131_072);
    assert_eq!(positions(&[("max_position_embeddings", json!(131_072))]), 131_072);
    assert_eq!(positions(&[("max_position_embeddings", json!(200_000))]), 200_000);
    assert_eq!(positions(&[("rope_scaling", json!({"type": "linear", "factor": 4.0}))]), 32_768);
}

#[test]
fn null_and_absent_keys_of_experts_differ() {
    let shared = |changes: &[(&str, Value)]| {
        parse(&with(moonlight(), changes))
            .unwrap()
            .decoder
            .moe
            .unwrap()
            .shared
            .map(|shared| shared.intermediate_size)
    };
    assert_eq!(shared(&[]), Some(2816));
    assert_eq!(shared(&[("n_shared_experts", Value::Null)]), None);
    let mut absent = moonlight();
    absent.as_object_mut().unwrap().remove("n_shared_experts");
    assert_eq!(parse(&absent).unwrap().decoder.moe.unwrap().shared.unwrap().intermediate_size, 1408);
    let keys = ["n_group", "topk_group", "norm_topk_prob"];
    let router = |json: &Value| {
        let router = parse(json).unwrap().decoder.moe.unwrap().router;
        (router.num_groups, router.top_groups, router.normalize)
    };
    assert_eq!(router(&with(moonlight(), &keys.map(|key| (key, Value::Null)))), (1, 1, false));
    keys.iter().for_each(|key| _ = absent.as_object_mut().unwrap().remove(*key));
    assert_eq!(router(&absent), (8, 4, true));
}

fn embedded(config: &str, generation: &'static str) -> ModelFiles {
    let config: &'static [u8] = config.to_string().leak().as_bytes();
    let files: Vec<(&'static str, &'static [u8])> =
        vec![("config.json", config), ("generation_config.json", generation.as_bytes())];
    ModelFiles::Embedded(files.leak())
}

#[test]
fn generation_config_adds_end_tokens_and_defaults() {
    let config = with(llama(), &[("eos_token_id", json!([2, 7]))]).to_string();
    let files =
        embedded(&config, r#"{"eos_token_id": [9, 7], "temperature": 0.6, "top_k": 20, "do_sample": true}"#);
    let config = ModelConfig::read(&files).unwrap();
    assert_eq!(config.eos_token_ids, [9, 7, 2]);
    let expected = GenerationDefaults { temperature: Some(0.6), top_k: Some(20), ..Default::default() };
    assert_eq!(config.generation, expected);
    let all = ModelConfig::read(&embedded(&llama().to_string(), r#"{"top_k": -1}"#)).unwrap();
    assert_eq!(all.generation.top_k, Some(0));
}

#[test]
fn broken_files_are_named() {
    let check = |config: &str, generation: &'static str, start: &str| {
        let message = ModelConfig::read(&embedded(config, generation)).unwrap_err().to_string();
        assert!(message.starts_with(start), "{message}");
    };
    let good = llama().to_string();
    check("{", "{}", "embedded config.json is not valid JSON: ");
    check("[]", "{}", "embedded config.json is not valid JSON: not an object");
    check(&good, "{\"top_p\": 0}", "embedded generation_config.json: top_p: ");
    check(&good, "{\"temperature\": NaN}", "embedded generation_config.json is not valid JSON: ");
    let missing = ModelConfig::read(&ModelFiles::Embedded(&[])).unwrap_err().to_string();
    assert_eq!(missing, "embedded config.json is missing");
}
