//! Where models with a vision tower have the settings of their decoder, of their tower, and the token that stands for a picture.

use super::json::Fields;
use super::{DecoderConfig, TowerKind, VisionPart, families};
use crate::LoadError;
use serde_json::{Map, Value};

/// The parts of a configuration that has more than a decoder.
pub(super) struct Multimodal<'a> {
    /// The object with the decoder's settings.
    pub text: Fields<'a>,
    pub decoder: DecoderConfig,
    pub vision: VisionPart,
}

const TEXT: &str = "text_config";
const VISION: &str = "vision_config";

/// What Kimi-VL has where the file does not say it.
const KIMI_VL_IMAGE_TOKEN: u32 = 163_605;
const QWEN_VL_IMAGE_TOKEN: u32 = 151_655;
const QWEN_VL_VIDEO_TOKEN: u32 = 151_656;

/// `None`: all settings are at the top, and there is no tower.
pub(super) fn parse<'a>(
    architecture: &str,
    file: &'a str,
    top: &Fields<'a>,
) -> Result<Option<Multimodal<'a>>, LoadError> {
    match architecture {
        families::KIMI_VL => kimi_vl(file, top).map(Some),
        families::QWEN_2_5_VL => qwen_2_5_vl(file, top).map(Some),
        families::QWEN_3_VL | families::QWEN_3_VL_MOE => qwen_3_vl(architecture, file, top).map(Some),
        _ => Ok(None),
    }
}

fn required<'a>(top: &Fields<'a>, key: &str) -> Result<&'a Map<String, Value>, LoadError> {
    top.opt_object(key)?.ok_or_else(|| top.fail(key, "is missing"))
}

fn kimi_vl<'a>(file: &'a str, top: &Fields<'a>) -> Result<Multimodal<'a>, LoadError> {
    let object = required(top, TEXT)?;
    match object.get("model_type").and_then(Value::as_str) {
        None | Some("deepseek_v3" | "kimi_vl") => {}
        Some(other) => {
            return Err(top.fail(
                "text_config.model_type",
                format!("{other:?} is not supported, only \"deepseek_v3\" is"),
            ));
        }
    }
    let text = Fields::new(file, TEXT, object);
    let decoder = families::decoder("DeepseekV3ForCausalLM", &text, "language_model.")?;
    let key = "media_placeholder_token_id";
    let image_token_id = image_token(top, key, KIMI_VL_IMAGE_TOKEN, &decoder)?;
    let vision = VisionPart {
        object: required(top, VISION)?.clone(),
        tower: TowerKind::MoonVit,
        image_token_id,
        video_token_id: None,
    };
    Ok(Multimodal { text, decoder, vision })
}

/// The decoder's settings are at the top in files of before 2026, and in an object of their own in newer ones.
fn qwen_2_5_vl<'a>(file: &'a str, top: &Fields<'a>) -> Result<Multimodal<'a>, LoadError> {
    let text = match top.opt_object(TEXT)? {
        Some(object) => Fields::new(file, TEXT, object),
        None => *top,
    };
    text.only("model_type", if text.is_same(top) { "qwen2_5_vl" } else { "qwen2_5_vl_text" })?;
    let mut decoder = families::decoder(families::QWEN_2_5_VL, &text, "")?;
    decoder.tied_head |= top.bool_or("tie_word_embeddings", false)?;
    decoder.newer_prefix = Some("model.language_model.");
    let vision = qwen_vision(top, TowerKind::Qwen25, &decoder)?;
    Ok(Multimodal { text, decoder, vision })
}

fn qwen_3_vl<'a>(architecture: &str, file: &'a str, top: &Fields<'a>) -> Result<Multimodal<'a>, LoadError> {
    let text = Fields::new(file, TEXT, required(top, TEXT)?);
    let model_type = if architecture == families::QWEN_3_VL { "qwen3_vl_text" } else { "qwen3_vl_moe_text" };
    text.only("model_type", model_type)?;
    let mut decoder = families::decoder(architecture, &text, "")?;
    decoder.body = "model.language_model.";
    decoder.tied_head = top.bool_or("tie_word_embeddings", decoder.tied_head)?;
    let vision = qwen_vision(top, TowerKind::Qwen3, &decoder)?;
    Ok(Multimodal { text, decoder, vision })
}

fn qwen_vision(top: &Fields, tower: TowerKind, decoder: &DecoderConfig) -> Result<VisionPart, LoadError> {
    let image_token_id = image_token(top, "image_token_id", QWEN_VL_IMAGE_TOKEN, decoder)?;
    let video = top.opt_token_id("video_token_id", decoder.vocab_size)?.unwrap_or(QWEN_VL_VIDEO_TOKEN);
    Ok(VisionPart {
        object: required(top, VISION)?.clone(),
        tower,
        image_token_id,
        video_token_id: ((video as usize) < decoder.vocab_size).then_some(video),
    })
}

fn image_token(top: &Fields, key: &str, default: u32, decoder: &DecoderConfig) -> Result<u32, LoadError> {
    match top.opt_token_id(key, decoder.vocab_size)? {
        Some(id) => Ok(id),
        None if (default as usize) < decoder.vocab_size => Ok(default),
        None => Err(top.fail(key, "is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ModelConfig, QkNorm};
    use super::*;
    use crate::config::{AttentionConfig, GqaConfig};
    use kernels::ops::RopeSections;
    use serde_json::json;

    /// Qwen3-VL-4B as it was published.
    fn qwen3_vl() -> Value {
        json!({
            "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151655, "model_type": "qwen3_vl",
            "text_config": {
                "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643, "dtype": "bfloat16",
                "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
                "initializer_range": 0.02, "intermediate_size": 9728, "max_position_embeddings": 262144,
                "model_type": "qwen3_vl_text", "num_attention_heads": 32, "num_hidden_layers": 36,
                "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
                "rope_scaling": {"mrope_interleaved": true, "mrope_section": [24, 20, 20], "rope_type": "default"},
                "rope_theta": 5000000, "tie_word_embeddings": true, "use_cache": true, "vocab_size": 151936
            },
            "tie_word_embeddings": true, "transformers_version": "4.57.0.dev0", "video_token_id": 151656,
            "vision_config": {
                "deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1024,
                "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 4096, "model_type": "qwen3_vl",
                "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 2560, "patch_size": 16,
                "spatial_merge_size": 2, "temporal_patch_size": 2
            },
            "vision_end_token_id": 151653, "vision_start_token_id": 151652
        })
    }

    fn parse(json: &Value) -> Result<ModelConfig, String> {
        ModelConfig::parse("config.json", json.as_object().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn qwen3_vl_is_read_as_published() {
        let config = parse(&qwen3_vl()).unwrap();
        let decoder = &config.decoder;
        let AttentionConfig::Gqa(GqaConfig { qk_norm, qkv_bias, head_dim, .. }) = &decoder.attention else {
            panic!("grouped queries")
        };
        assert_eq!((*qk_norm, *qkv_bias, *head_dim), (QkNorm::Rms, false, 128));
        assert_eq!(decoder.rope.sections, Some(RopeSections::Interleaved([24, 20, 20])));
        assert_eq!((decoder.rope.theta, decoder.body), (5e6, "model.language_model."));
        assert!(decoder.tied_head);
        let vision = config.vision.unwrap();
        assert_eq!((vision.image_token_id, vision.tower), (151_655, TowerKind::Qwen3));
        assert_eq!(vision.video_token_id, Some(151_656));
        assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(151_643), vec![151_645]));
        // As newer versions write it.
        let mut newer = qwen3_vl();
        let text = newer["text_config"].as_object_mut().unwrap();
        let mut rope = text.remove("rope_scaling").unwrap();
        rope["rope_theta"] = text.remove("rope_theta").unwrap();
        text.insert("rope_parameters".into(), rope);
        assert_eq!(parse(&newer).unwrap().decoder, config.decoder);
    }

    #[test]
    fn what_the_whole_says_of_a_tied_head_goes_before_what_the_decoder_says() {
        let mut json = qwen3_vl();
        json["tie_word_embeddings"] = false.into();
        assert!(!parse(&json).unwrap().decoder.tied_head);
        json.as_object_mut().unwrap().remove("tie_word_embeddings");
        assert!(parse(&json).unwrap().decoder.tied_head);
    }

    #[test]
    fn what_is_wrong_with_qwen3_vl_is_named() {
        for (part, key, value, field) in [
            ("text_config", "model_type", json!("qwen3"), "text_config.model_type"),
            ("text_config", "num_key_value_heads", json!(5), "text_config.num_key_value_heads"),
            (
                "text_config",
                "rope_scaling",
                json!({"mrope_section": [24, 20]}),
                "text_config.rope_scaling.mrope_section",
            ),
            (
                "text_config",
                "rope_scaling",
                json!({"mrope_section": [24, 20, 21]}),
                "text_config.rope_scaling.mrope_section",
            ),
            (
                "text_config",
                "rope_scaling",
                json!({"mrope_interleaved": false}),
                "text_config.rope_scaling.mrope_interleaved",
            ),
        ] {
            let mut json = qwen3_vl();
            json[part][key] = value;
            let message = parse(&json).unwrap_err();
            assert!(message.starts_with(&format!("config.json: {field}: ")), "{field}: {message}");
        }
        for part in ["text_config", "vision_config"] {
            let mut json = qwen3_vl();
            json.as_object_mut().unwrap().remove(part);
            assert_eq!(parse(&json).unwrap_err(), format!("config.json: {part}: is missing"));
        }
    }
}
