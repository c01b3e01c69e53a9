//! Published configurations of families with experts over heads, and what of them is refused.

use crate::config::{AttentionConfig, CorrectionBias, ModelConfig, NormPlace, QkNorm};
use crate::decoder::Decoder;
use crate::storage::Storage;
use kernels::DType;
use kernels::ops::{RopeLayout, Scoring};
use serde_json::{Value, json};

fn parse(json: &Value) -> Result<ModelConfig, String> {
    ModelConfig::parse("config.json", json.as_object().unwrap()).map_err(|error| error.to_string())
}

fn parameters(json: &Value) -> u64 {
    Decoder::size(&parse(json).unwrap().decoder, &Storage::floats(DType::BF16)).parameters
}

fn with(json: &Value, key: &str, value: Value) -> Value {
    let mut json = json.clone();
    json[key] = value;
    json
}

fn glm_45_air() -> Value {
    json!({
        "architectures": ["Glm4MoeForCausalLM"], "attention_bias": true, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "partial_rotary_factor": 0.5, "intermediate_size": 10944, "max_position_embeddings": 131072,
        "moe_intermediate_size": 1408, "norm_topk_prob": true, "num_attention_heads": 96, "n_group": 1, "topk_group": 1,
        "n_routed_experts": 128, "n_shared_experts": 1, "routed_scaling_factor": 1.0, "num_experts_per_tok": 8,
        "first_k_dense_replace": 1, "num_hidden_layers": 46, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "rope_scaling": null, "rope_theta": 1000000, "num_nextn_predict_layers": 1, "tie_word_embeddings": false,
        "use_qk_norm": false, "vocab_size": 151552, "eos_token_id": [151329, 151336, 151338]
    })
}

fn minimax_m2() -> Value {
    json!({
        "architectures": ["MiniMaxM2ForCausalLM"], "attn_type_list": vec![1; 62], "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 3072, "intermediate_size": 1536, "max_position_embeddings": 196608, "mtp_transformer_layers": 1,
        "num_attention_heads": 48, "num_experts_per_tok": 8, "num_hidden_layers": 62, "num_key_value_heads": 8,
        "num_local_experts": 256, "num_mtp_modules": 3, "qk_norm_type": "per_layer", "rms_norm_eps": 1e-6,
        "rope_theta": 5000000, "rotary_dim": 64, "scoring_func": "sigmoid", "shared_intermediate_size": 0,
        "tie_word_embeddings": false, "use_mtp": true, "use_qk_norm": true, "use_routing_bias": true, "vocab_size": 200064
    })
}

fn kimi_k2() -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2", "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 64, "num_key_value_heads": 64,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 384, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true,
        "routed_scaling_factor": 2.827, "rms_norm_eps": 1e-6, "rope_theta": 50000.0, "max_position_embeddings": 131072,
        "rope_scaling": {"type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0,
                         "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
        "num_nextn_predict_layers": 0, "tie_word_embeddings": false, "vocab_size": 163840
    })
}

fn olmoe() -> Value {
    json!({"architectures": ["OlmoeForCausalLM"], "intermediate_size": 1024, "num_key_value_heads": 16, "clip_qkv": null})
}

#[test]
fn parameters_of_published_models() {
    let ernie = json!({"architectures": ["Ernie4_5_MoeForCausalLM"]});
    let dots = json!({
        "architectures": ["Dots1ForCausalLM"], "hidden_size": 4096, "head_dim": 128, "num_attention_heads": 32,
        "n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "sliding_window": null
    });
    let billions = [&glm_45_air(), &minimax_m2(), &kimi_k2(), &olmoe(), &ernie, &dots]
        .map(|config| (parameters(config) as f64 / 1e8).round() / 10.0);
    assert_eq!(billions, [106.9, 228.7, 1026.4, 6.9, 21.8, 142.8]);
    assert_eq!(parameters(&olmoe()), 6_919_161_856);
}

#[test]
fn switches_of_attention() {
    let config = parse(&glm_45_air()).unwrap();
    assert_eq!(config.eos_token_ids, [151_329, 151_336, 151_338]);
    let decoder = config.decoder;
    let AttentionConfig::Gqa(a) = &decoder.attention else { panic!("heads") };
    assert_eq!((a.qkv_bias, a.out_bias, a.qk_norm), (true, false, QkNorm::None));
    assert_eq!((decoder.rope.dim, decoder.rope.layout, decoder.num_mtp_layers), (64, RopeLayout::Half, 1));
    let decoder = parse(&with(&glm_45_air(), "use_qk_norm", json!(true))).unwrap().decoder;
    let AttentionConfig::Gqa(a) = &decoder.attention else { panic!("heads") };
    assert_eq!(a.qk_norm, QkNorm::Rms);

    let decoder = parse(&minimax_m2()).unwrap().decoder;
    let AttentionConfig::Gqa(a) = &decoder.attention else { panic!("heads") };
    assert_eq!((a.qk_norm, decoder.rope.dim, decoder.num_mtp_layers), (QkNorm::RmsOfAll, 64, 3));
    let moe = decoder.moe.unwrap();
    assert_eq!((moe.router.scoring, moe.router.normalize), (Scoring::Sigmoid, true));
    assert_eq!((moe.correction_bias, moe.module()), (Some(CorrectionBias::Module), "block_sparse_moe"));

    let glm4 = json!({"architectures": ["Glm4ForCausalLM"], "attention_bias": false});
    let config = parse(&glm4).unwrap();
    assert_eq!(config.eos_token_ids, [151_329, 151_336, 151_338]);
    let decoder = config.decoder;
    assert_eq!((decoder.norms, decoder.fused_gate_up), (NormPlace::Both, true));
    assert_eq!((decoder.rope.dim, decoder.rope.layout), (64, RopeLayout::Interleaved));
    // What stands beside the scaling goes before what stands at the top.
    let rope = json!({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25});
    let both = with(&with(&glm4, "rope_parameters", rope), "partial_rotary_factor", json!(1.0));
    assert_eq!(parse(&both).unwrap().decoder.rope.dim, 32);
}

#[test]
fn layers_with_experts() {
    let layers = |config: &Value| parse(config).unwrap().decoder.moe.unwrap().layers;
    let ernie = json!({
        "architectures": ["Ernie4_5_MoeForCausalLM"], "num_hidden_layers": 6, "moe_layer_start_index": 1,
        "moe_layer_end_index": 4, "moe_layer_interval": 2
    });
    assert_eq!(layers(&ernie), [false, true, false, true, false, false]);
    let last = with(&ernie, "moe_layer_end_index", json!(-1));
    assert_eq!(layers(&last), [false, true, false, true, false, true]);
    let lite = json!({"architectures": ["Glm4MoeLiteForCausalLM"], "num_hidden_layers": 3});
    assert_eq!(layers(&lite), [false, true, true]);
    let listed = with(&lite, "mlp_layer_types", json!(["sparse", "dense", "sparse"]));
    assert_eq!(layers(&listed), [true, false, true]);
}

#[test]
fn what_is_not_supported_is_named() {
    let ernie = json!({"architectures": ["Ernie4_5_MoeForCausalLM"]});
    let lite = json!({"architectures": ["Glm4MoeLiteForCausalLM"], "num_hidden_layers": 2});
    let dots = json!({"architectures": ["Dots1ForCausalLM"], "num_experts_per_tok": 6});
    let llama = json!({"architectures": ["LlamaForCausalLM"]});
    for (config, key, value) in [
        (&olmoe(), "clip_qkv", json!(8.0)),
        (&minimax_m2(), "scoring_func", json!("softmax")),
        (&minimax_m2(), "use_qk_norm", json!(false)),
        (&minimax_m2(), "shared_intermediate_size", json!(16)),
        (&minimax_m2(), "attn_type_list", json!([1, 0])),
        (&minimax_m2(), "rotary_dim", json!(130)),
        (&glm_45_air(), "partial_rotary_factor", json!(0.0)),
        (&glm_45_air(), "partial_rotary_factor", json!(1.5)),
        (&llama, "partial_rotary_factor", json!(0.5)),
        (&ernie, "use_bias", json!(true)),
        (&ernie, "moe_num_experts", json!([64, 64])),
        (&lite, "mlp_layer_types", json!(["sparse"])),
        (&dots, "n_routed_experts", json!(null)),
        (&dots, "scoring_func", json!("softmax")),
    ] {
        let error = parse(&with(config, key, value.clone())).expect_err("refused");
        assert!(error.contains(key), "{key} = {value}: {error}");
    }
}
