//! What a GGUF file's metadata says of a model, in the words of config.json: so that one reader checks both, with one set of
//! defaults. Keys: llama.cpp's converter (conversion/*.py) and its loaders (src/models/*.cpp).

use super::Gguf;
use super::experts::{experts, grouped_experts, is_one};
use super::keys::Keys;
use super::metadata::Value as Meta;
use crate::LoadError;
use serde_json::{Map, Value, json};

/// The architectures that are served, by the name in `general.architecture`.
pub const ARCHITECTURES: [&str; 14] = [
    "llama",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "deepseek2",
    "seed_oss",
    "glm4",
    "glm4moe",
    "minimax-m2",
    "olmoe",
    "ernie4_5",
    "ernie4_5-moe",
    "dots1",
];

/// Whether a part of a head may turn.
pub fn may_rotate_part(architecture: &str) -> bool {
    matches!(architecture, "glm4" | "glm4moe" | "minimax-m2")
}

pub fn config_json(gguf: &Gguf) -> Result<Map<String, Value>, LoadError> {
    let keys = Keys::new(gguf)?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| {
        // A key that is not there has a default, but this one, whose null says something.
        if !value.is_null() || key == "q_lora_rank" {
            config.insert(key.into(), value);
        }
    };
    let is_moe = keys.opt_int("expert_count")?.is_some_and(|n| n > 0);
    let architecture = published_name(&keys, is_moe)?;
    set("architectures", json!([architecture]));
    set("model_type", json!(keys.architecture));
    set("vocab_size", json!(vocab_size(gguf)?));
    set("hidden_size", keys.int("embedding_length")?);
    set("num_hidden_layers", keys.layers()?);
    set("num_attention_heads", keys.int("attention.head_count")?);
    set("intermediate_size", keys.int("feed_forward_length")?);
    set("max_position_embeddings", keys.int("context_length")?);
    set("rms_norm_eps", keys.float("attention.layer_norm_rms_epsilon")?);
    set("rope_theta", keys.opt_float("rope.freq_base")?.map_or(json!(1e4), |theta| json!(theta)));
    set("tie_word_embeddings", json!(!gguf.has_tensor("output.weight")));
    set("torch_dtype", json!(gguf.main_float()));
    set("attention_bias", json!(gguf.has_tensor("blk.0.attn_q.bias")));
    set("attention_out_bias", json!(gguf.has_tensor("blk.0.attn_output.bias")));
    set("mlp_bias", json!(gguf.has_tensor("blk.0.ffn_gate.bias")));
    set("num_nextn_predict_layers", json!(0));
    set("rope_scaling", rope_scaling(&keys, gguf)?);
    if keys.architecture == "deepseek2" {
        latent_attention(&keys, gguf, &mut set)?;
        deepseek_experts(&keys, &mut set)?;
    } else {
        set("num_key_value_heads", keys.int("attention.head_count_kv")?);
        set("head_dim", json!(gguf.head_dim()));
        let rotated = keys.opt_int("rope.dimension_count")?;
        if let (Some(rotated), Some(dim)) = (rotated, gguf.head_dim()) {
            if may_rotate_part(&keys.architecture) && (1..=dim as u64).contains(&rotated) {
                set("partial_rotary_factor", json!(rotated as f64 / dim as f64));
            } else if rotated != dim as u64 {
                let message = format!("{rotated} of a head's {dim} values: rotating a part is not supported");
                return Err(keys.fail("rope.dimension_count", message));
            }
        }
        if let Some(window) = window(&keys)? {
            set("sliding_window", json!(window));
            set("use_sliding_window", json!(true));
        }
    }
    if is_one(&keys.architecture) {
        experts(&keys, gguf, &mut set)?;
    } else if is_moe && keys.architecture != "deepseek2" {
        let width =
            if architecture == "MixtralForCausalLM" { "intermediate_size" } else { "moe_intermediate_size" };
        set("num_experts", keys.int("expert_count")?);
        set("num_local_experts", keys.int("expert_count")?);
        set("num_experts_per_tok", keys.int("expert_used_count")?);
        set(width, keys.int_or("expert_feed_forward_length", "feed_forward_length")?);
        // llama.cpp always normalises two of these, and never the third.
        set("norm_topk_prob", json!(keys.architecture != "qwen2moe"));
    }
    if keys.architecture == "qwen2moe" {
        set("shared_expert_intermediate_size", shared_width(&keys, gguf)?);
        set("qkv_bias", json!(gguf.has_tensor("blk.0.attn_q.bias")));
    }
    for (name, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        set(name, json!(end_tokens(gguf, key)?));
    }
    Ok(config)
}

/// The class that transformers calls it.
fn published_name(keys: &Keys, is_moe: bool) -> Result<&'static str, LoadError> {
    Ok(match keys.architecture.as_str() {
        "llama" if is_moe => "MixtralForCausalLM",
        "llama" if window(keys)?.is_some() => "MistralForCausalLM",
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen2moe" => "Qwen2MoeForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        "qwen3moe" => "Qwen3MoeForCausalLM",
        "seed_oss" => "SeedOssForCausalLM",
        "glm4" => "Glm4ForCausalLM",
        "glm4moe" => "Glm4MoeForCausalLM",
        "minimax-m2" => "MiniMaxM2ForCausalLM",
        "olmoe" => "OlmoeForCausalLM",
        "ernie4_5" => "Ernie4_5ForCausalLM",
        "ernie4_5-moe" => "Ernie4_5_MoeForCausalLM",
        "dots1" => "Dots1ForCausalLM",
        "deepseek2" if is_sigmoid(keys)? => "DeepseekV3ForCausalLM",
        "deepseek2" => "DeepseekV2ForCausalLM",
        other => {
            let message = format!("{other:?} is not supported, these are: {}", ARCHITECTURES.join(", "));
            return Err(keys.gguf.fail("general.architecture", message));
        }
    })
}

/// None: zero as well.
fn window(keys: &Keys) -> Result<Option<u64>, LoadError> {
    Ok(keys.opt_int("attention.sliding_window")?.filter(|&window| window > 0))
}

/// A file that does not say it is of the time when only softmax was there.
fn is_sigmoid(keys: &Keys) -> Result<bool, LoadError> {
    match keys.opt_int("expert_gating_func")? {
        None | Some(0 | 1) => Ok(false),
        Some(2) => Ok(true),
        Some(other) => Err(keys.fail(
            "expert_gating_func",
            format!("{other} is not supported, only 1 (softmax) and 2 (sigmoid) are"),
        )),
    }
}

/// Files of the first weeks do not say it, but their matrices do.
fn shared_width(keys: &Keys, gguf: &Gguf) -> Result<Value, LoadError> {
    let matrix = || gguf.tensor_shape("blk.0.ffn_gate_shexp.weight").and_then(|shape| shape.first().copied());
    match (keys.opt_int("expert_shared_feed_forward_length")?, matrix()) {
        (Some(width), _) => Ok(json!(width)),
        (None, Some(width)) => Ok(json!(width)),
        (None, None) => keys.int("expert_shared_feed_forward_length"),
    }
}

fn vocab_size(gguf: &Gguf) -> Result<usize, LoadError> {
    let table = gguf.tensor_shape("token_embd.weight");
    table.and_then(|shape| shape.first().copied()).ok_or_else(|| LoadError::MissingTensor {
        file: gguf.described().into(),
        tensor: "token_embd.weight".into(),
    })
}

/// The token that the tokenizer calls so, and for `eos` the end of a turn.
fn end_tokens(gguf: &Gguf, name: &str) -> Result<Value, LoadError> {
    let mut found = Vec::new();
    let ends: &[&str] = if name == "eos" { &["eos", "eot", "eom"] } else { &[name] };
    for end in ends {
        let key = format!("tokenizer.ggml.{end}_token_id");
        match gguf.metadata(&key) {
            None => {}
            Some(Meta::Int(id)) if (0..1 << 31).contains(id) => {
                let id = json!(*id as u32);
                if !found.contains(&id) {
                    found.push(id);
                }
            }
            Some(_) => return Err(gguf.fail(&key, "is not a token id")),
        }
    }
    Ok(if found.is_empty() { Value::Null } else { Value::Array(found) })
}

fn latent_attention(keys: &Keys, gguf: &Gguf, set: &mut dyn FnMut(&str, Value)) -> Result<(), LoadError> {
    let rope = keys.need_int("rope.dimension_count")?;
    // Files of before the latent cache have the lengths of a whole head under the plain names.
    let length = |mla: &str, plain: &str| match keys.opt_int(mla)? {
        Some(n) => Ok(n),
        None => keys.need_int(plain),
    };
    let key = length("attention.key_length_mla", "attention.key_length")?;
    let value = length("attention.value_length_mla", "attention.value_length")?;
    if key <= rope {
        return Err(keys
            .fail("attention.key_length_mla", format!("{key} is not above rope.dimension_count = {rope}")));
    }
    set("qk_rope_head_dim", json!(rope));
    set("qk_nope_head_dim", json!(key - rope));
    set("v_head_dim", json!(value));
    set("kv_lora_rank", keys.int("attention.kv_lora_rank")?);
    // Null means one step, and a file writes nothing or zero then. The tensors are sure.
    let two_steps = gguf.has_tensor("blk.0.attn_q_a.weight");
    let rank = if two_steps { keys.int("attention.q_lora_rank")? } else { Value::Null };
    set("q_lora_rank", rank);
    set("rope_interleave", json!(true));
    Ok(())
}

fn deepseek_experts(keys: &Keys, set: &mut dyn FnMut(&str, Value)) -> Result<(), LoadError> {
    let groups = grouped_experts(keys, set)?;
    let sigmoid = is_sigmoid(keys)?;
    set("scoring_func", json!(if sigmoid { "sigmoid" } else { "softmax" }));
    set(
        "topk_method",
        json!(match (sigmoid, groups) {
            (true, _) => "noaux_tc",
            (false, 1) => "greedy",
            (false, _) => "group_limited_greedy",
        }),
    );
    Ok(())
}

fn rope_scaling(keys: &Keys, gguf: &Gguf) -> Result<Value, LoadError> {
    if gguf.has_tensor("rope_freqs.weight") {
        return llama3(keys, gguf);
    }
    let factor = || keys.need_float("rope.scaling.factor");
    match keys.opt_text("rope.scaling.type")? {
        None | Some("none") => Ok(Value::Null),
        Some("linear") => Ok(json!({ "rope_type": "linear", "factor": factor()? })),
        Some("yarn") => yarn(keys, factor()?),
        Some(other) => {
            Err(keys
                .fail("rope.scaling.type", format!("{other:?} is not supported, only linear and yarn are")))
        }
    }
}

fn yarn(keys: &Keys, factor: f64) -> Result<Value, LoadError> {
    let mut scaling = Map::new();
    scaling.insert("rope_type".into(), json!("yarn"));
    scaling.insert("factor".into(), json!(factor));
    let optional = [
        ("original_max_position_embeddings", "rope.scaling.original_context_length"),
        ("beta_fast", "rope.scaling.yarn_beta_fast"),
        ("beta_slow", "rope.scaling.yarn_beta_slow"),
    ];
    for (name, key) in optional {
        if let Some(number) = keys.opt_float(key)? {
            scaling.insert(name.into(), json!(number));
        }
    }
    // Less than zero is how llama.cpp says that it is not given.
    if let Some(number) = keys.opt_float("rope.scaling.yarn_ext_factor")?.filter(|number| *number >= 0.0) {
        scaling.insert("extrapolation_factor".into(), json!(number));
    }
    // Both multiply the factor that follows from the scaling, in llama.cpp as in the YaRN authors' code.
    let factors =
        ["rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor"].map(|key| keys.opt_float(key));
    let [yarn, other] = factors;
    let attn_factor = yarn?.unwrap_or(1.0) * other?.unwrap_or(1.0);
    if attn_factor != 1.0 {
        scaling.insert("attn_factor".into(), json!(attn_factor));
    }
    // The converter writes a tenth of DeepSeek's mscale_all_dim; mscale equals it in every published file.
    if let Some(tenth) = keys.opt_float("rope.scaling.yarn_log_multiplier")?.filter(|n| *n != 0.0) {
        let mscale = (tenth / 0.1 * 1e6).round() / 1e6;
        scaling.insert("mscale".into(), json!(mscale));
        scaling.insert("mscale_all_dim".into(), json!(mscale));
    }
    Ok(Value::Object(scaling))
}

const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;

/// In GGUF this scaling is a table of divisors, one for each pair. The published models differ in the factor and the original length,
/// which are told from the table; the table made from them must be the file's.
fn llama3(keys: &Keys, gguf: &Gguf) -> Result<Value, LoadError> {
    let table: Vec<f64> = gguf.vector("rope_freqs.weight")?.into_iter().map(f64::from).collect();
    let factor = table.iter().copied().fold(1.0, f64::max);
    let theta = keys.opt_float("rope.freq_base")?.unwrap_or(1e4);
    let wavelength = |pair: usize| std::f64::consts::TAU * theta.powf(pair as f64 / table.len() as f64);
    let pairs = || table.iter().copied().enumerate();
    let is_whole = |divisor: f64| divisor < 1.001;
    let is_divided = |divisor: f64| divisor > 0.999 * factor;
    // A pair between both ends says where it is between them. Without one, all lengths between the ends give this table.
    let between = pairs().find(|&(_, divisor)| !is_whole(divisor) && !is_divided(divisor));
    let original = match between {
        Some((pair, divisor)) => {
            let smooth = (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor);
            (wavelength(pair) * (LOW + smooth * (HIGH - LOW))).round()
        }
        None => {
            let least = pairs().filter(|&(_, d)| is_whole(d)).map(|(pair, _)| HIGH * wavelength(pair));
            let most = pairs().filter(|&(_, d)| !is_whole(d)).map(|(pair, _)| LOW * wavelength(pair));
            8192f64.min(most.fold(f64::MAX, f64::min)).max(least.fold(1.0, f64::max))
        }
    };
    for (pair, &divisor) in table.iter().enumerate() {
        let smooth = ((original / wavelength(pair) - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
        if (divisor - expected).abs() > 1e-3 * expected {
            let message = format!(
                "entry {pair} is {divisor}, and Llama 3's scaling by {factor} from {original} tokens has {expected}: not supported"
            );
            return Err(gguf.fail("tensor rope_freqs.weight", message));
        }
    }
    Ok(json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
               "original_max_position_embeddings": original }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A file of no tensors with YaRN by 4, and other keys.
    fn yarn_with(others: &[(&str, f64)]) -> Value {
        let text = |key: &str, text: &str| (key.to_string(), Meta::Text(text.into()));
        let mut metadata: BTreeMap<String, Meta> =
            [text("general.architecture", "qwen3"), text("qwen3.rope.scaling.type", "yarn")].into();
        for (key, value) in [("factor", 4.0)].iter().chain(others) {
            metadata.insert(format!("qwen3.rope.scaling.{key}"), Meta::Float(*value));
        }
        let gguf = Gguf { described: String::new(), parts: Vec::new(), metadata, tensors: BTreeMap::new() };
        rope_scaling(&Keys::new(&gguf).unwrap(), &gguf).unwrap()
    }

    #[test]
    fn factors_of_yarn_multiply_the_inferred_one() {
        let plain = json!({ "rope_type": "yarn", "factor": 4.0 });
        assert_eq!(yarn_with(&[]), plain);
        // What llama.cpp takes where a file says nothing.
        let unset = [("yarn_attn_factor", 1.0), ("yarn_ext_factor", -1.0)];
        assert_eq!(yarn_with(&unset), plain);
        let multiplied =
            yarn_with(&[("yarn_attn_factor", 0.875), ("attn_factor", 0.5), ("yarn_ext_factor", 1.0)]);
        let expected =
            json!({ "rope_type": "yarn", "factor": 4.0, "extrapolation_factor": 1.0, "attn_factor": 0.4375 });
        assert_eq!(multiplied, expected);
    }
}
