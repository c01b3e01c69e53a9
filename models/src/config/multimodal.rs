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

/// `None`: all settings are at the top, and there is no tower.
pub(super) fn parse<'a>(
    architecture: &str,
    file: &'a str,
    top: &Fields<'a>,
) -> Result<Option<Multimodal<'a>>, LoadError> {
    match architecture {
        families::KIMI_VL => kimi_vl(file, top).map(Some),
        families::QWEN_2_5_VL => qwen_2_5_vl(file, top).map(Some),
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
    let vision =
        VisionPart { object: required(top, VISION)?.clone(), tower: TowerKind::MoonVit, image_token_id };
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
    let image_token_id = image_token(top, "image_token_id", QWEN_VL_IMAGE_TOKEN, &decoder)?;
    let vision =
        VisionPart { object: required(top, VISION)?.clone(), tower: TowerKind::Qwen25, image_token_id };
    Ok(Multimodal { text, decoder, vision })
}

fn image_token(top: &Fields, key: &str, default: u32, decoder: &DecoderConfig) -> Result<u32, LoadError> {
    match top.opt_token_id(key, decoder.vocab_size)? {
        Some(id) => Ok(id),
        None if (default as usize) < decoder.vocab_size => Ok(default),
        None => Err(top.fail(key, "is missing")),
    }
}
