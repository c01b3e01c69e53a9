//! What a configuration says of rotation: old and new keys, scalings, and their part in the softmax.

use super::*;

#[test]
fn old_and_new_rope_keys_agree() {
    let old = parse(&llama31(&[])).unwrap().decoder.rope;
    let mut new = llama31(&[("rope_theta", Value::Null)]);
    let mut parameters = new["rope_scaling"].take();
    parameters["rope_theta"] = 500000.0.into();
    new["rope_parameters"] = parameters;
    assert_eq!(parse(&new).unwrap().decoder.rope, old);
    assert!(matches!(old.scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
}

/// A file in the new style to which the old one's scaling was added, as model cards say.
#[test]
fn old_scaling_goes_before_new_parameters() {
    let both = |scaling: Value, changes: &[(&str, Value)]| {
        let json = with(llama(), &[("rope_parameters", json!({"rope_type": "default", "rope_theta": 5e5}))]);
        parse(&with(with(json, &[("rope_scaling", scaling)]), changes)).map(|config| config.decoder.rope)
    };
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    let rope = both(linear.clone(), &[("rope_theta", json!(1e4))]).unwrap();
    assert_eq!((rope.theta, rope.scaling), (1e4, RopeScaling::Linear { factor: 2.0 }));
    let message = both(linear, &[]).unwrap_err().to_string();
    assert!(message.starts_with("config.json: rope_scaling.rope_theta: is missing"), "{message}");
    for nothing in [Value::Null, json!({})] {
        let rope = both(nothing, &[]).unwrap();
        assert_eq!((rope.theta, rope.scaling), (5e5, RopeScaling::None));
    }
}

#[test]
fn yarn_scales_the_softmax_of_deepseek_only() {
    let yarn = json!({"type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                      "original_max_position_embeddings": 4096});
    let config = parse(&with(moonlight(), &[("rope_scaling", yarn)])).unwrap().decoder;
    let AttentionConfig::Mla(mla) = &config.attention else { panic!("not MLA") };
    let mscale = 0.1 * 0.707 * 40f64.ln() + 1.0;
    assert_eq!(mla.scale, (192f64.powf(-0.5) * mscale * mscale) as f32);
    let RopeScaling::Yarn(yarn) = config.rope.scaling else { panic!("not YaRN") };
    assert_eq!((yarn.attention_factor, yarn.beta_fast, yarn.beta_slow), (1.0, 32.0, 1.0));
    let qwen = json!({"architectures": ["Qwen2ForCausalLM"],
                      "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}});
    let config = parse(&qwen).unwrap().decoder;
    let AttentionConfig::Gqa(gqa) = &config.attention else { panic!("not GQA") };
    assert_eq!(gqa.scale, 128f64.powf(-0.5) as f32);
    let RopeScaling::Yarn(yarn) = config.rope.scaling else { panic!("not YaRN") };
    assert_eq!(yarn.attention_factor, 0.1 * 4f64.ln() + 1.0);
    // As DeepSeek-R1-0528-Qwen3-8B has it: the inverse of the inferred factor.
    let distilled = json!({"architectures": ["Qwen3ForCausalLM"], "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                           "original_max_position_embeddings": 32768, "attn_factor": 0.8782488562869419}});
    let RopeScaling::Yarn(yarn) = parse(&distilled).unwrap().decoder.rope.scaling else { panic!("not YaRN") };
    assert!((yarn.attention_factor - 1.0).abs() < 1e-12, "{}", yarn.attention_factor);
    let extrapolated = with(
        distilled,
        &[("rope_scaling", json!({"type": "yarn", "factor": 4.0, "extrapolation_factor": 0.5}))],
    );
    let message = parse(&extrapolated).unwrap_err().to_string();
    assert!(message.starts_with("config.json: rope_scaling.extrapolation_factor: "), "{message}");
}

/// As the published code has it: in DeepSeek's attention the key counts with every kind of scaling.
#[test]
fn mscale_scales_the_softmax_of_other_scalings() {
    let scale = |scaling: Value| match parse(&with(moonlight(), &[("rope_scaling", scaling)]))
        .unwrap()
        .decoder
        .attention
    {
        AttentionConfig::Mla(mla) => mla.scale,
        AttentionConfig::Gqa(_) => panic!("not MLA"),
    };
    let plain = 192f64.powf(-0.5);
    let mscale = 0.1 * 0.5 * 4f64.ln() + 1.0;
    let linear = json!({"type": "linear", "factor": 4.0, "mscale_all_dim": 0.5});
    assert_eq!(scale(linear), (plain * mscale * mscale) as f32);
    assert_eq!(scale(json!({"type": "linear", "factor": 4.0})), plain as f32);
    assert_eq!(scale(json!({"type": "default", "mscale_all_dim": 0.5})), plain as f32);
}

#[test]
fn only_deepseek_v3_may_rotate_halves() {
    let layout = |architecture: &str| {
        let json =
            with(moonlight(), &[("rope_interleave", json!(false)), ("architectures", json!([architecture]))]);
        let json = with(
            json,
            &[("scoring_func", Value::Null), ("topk_method", Value::Null), ("norm_topk_prob", json!(false))],
        );
        parse(&json).unwrap().decoder.rope.layout
    };
    assert_eq!(layout("DeepseekV3ForCausalLM"), RopeLayout::Half);
    assert_eq!(layout("DeepseekV2ForCausalLM"), RopeLayout::Interleaved);
}
