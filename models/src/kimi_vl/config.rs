//! The vision part of Kimi-VL's config.json, read under the published names and checked.

use crate::LoadError;
use crate::config::json::Fields;
use crate::vision_parts::{CHANNELS, MERGE, check_heads};
use crate::vision_scratch::TowerSizes;
use serde_json::{Map, Value};

const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisionConfig {
    pub patch_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    /// Rows and columns of the learned position table.
    pub table: [usize; 2],
    /// Width of the decoder that the projector's rows go to.
    pub text_hidden_size: usize,
}

impl VisionConfig {
    /// `object` is `vision_config` of `file`.
    pub fn read(file: &str, object: &Map<String, Value>, text_hidden_size: usize) -> Result<Self, LoadError> {
        let fields = Fields::new(file, "vision_config", object);
        fields.only("model_type", "moonvit")?;
        let merge = fields.get("merge_kernel_size");
        if merge != Some(&Value::from(vec![MERGE, MERGE])) {
            let found = merge.map_or("nothing".into(), Value::to_string);
            return Err(
                fields.fail("merge_kernel_size", format!("expected [{MERGE}, {MERGE}], found {found}"))
            );
        }
        let config = Self {
            patch_size: fields.usize("patch_size", 1..=1024)?,
            hidden_size: fields.usize("hidden_size", 1..=MAX_WIDTH)?,
            intermediate_size: fields.usize("intermediate_size", 1..=MAX_WIDTH)?,
            num_layers: fields.usize("num_hidden_layers", 1..=MAX_LAYERS)?,
            num_heads: fields.usize("num_attention_heads", 1..=MAX_WIDTH)?,
            table: [
                fields.usize("init_pos_emb_height", 1..=4096)?,
                fields.usize("init_pos_emb_width", 1..=4096)?,
            ],
            text_hidden_size,
        };
        check_heads(&fields, "num_attention_heads", config.hidden_size, config.num_heads)?;
        Ok(config)
    }

    pub(crate) fn sizes(&self) -> TowerSizes {
        TowerSizes {
            patch_len: self.patch_len(),
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_heads,
        }
    }

    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Values of one patch.
    pub fn patch_len(&self) -> usize {
        CHANNELS * self.patch_size * self.patch_size
    }

    /// Rows of embedding that so many patches become.
    pub fn num_tokens(&self, num_patches: usize) -> usize {
        num_patches / (MERGE * MERGE)
    }

    /// Width of the projector's rows before the last layer: the patches of one token side by side.
    pub fn merged_size(&self) -> usize {
        MERGE * MERGE * self.hidden_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn published() -> Value {
        json!({
            "model_type": "moonvit", "patch_size": 14, "num_hidden_layers": 27, "num_attention_heads": 16,
            "hidden_size": 1152, "intermediate_size": 4304, "init_pos_emb_height": 64, "init_pos_emb_width": 60,
            "merge_kernel_size": [2, 2], "torch_dtype": "bfloat16"
        })
    }

    fn read(json: &Value) -> Result<VisionConfig, LoadError> {
        VisionConfig::read("config.json", json.as_object().unwrap(), 2048)
    }

    #[test]
    fn reads_the_published_names() {
        let config = read(&published()).unwrap();
        assert_eq!(config.table, [64, 60]);
        assert_eq!((config.head_dim(), config.patch_len(), config.merged_size()), (72, 588, 4608));
        assert_eq!((config.num_layers, config.intermediate_size, config.text_hidden_size), (27, 4304, 2048));
    }

    #[test]
    fn wrong_values_are_named() {
        let cases = [
            ("model_type", json!("siglip")),
            ("patch_size", json!(0)),
            ("hidden_size", Value::Null),
            ("num_hidden_layers", json!("27")),
            ("num_attention_heads", json!(5)),
            ("num_attention_heads", json!(576)),
            ("intermediate_size", json!(-1)),
            ("init_pos_emb_height", json!(0)),
            ("init_pos_emb_width", json!(1e9)),
            ("merge_kernel_size", json!([2, 3])),
            ("merge_kernel_size", Value::Null),
        ];
        for (key, value) in cases {
            let mut json = published();
            json[key] = value.clone();
            let message = read(&json).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("config.json: vision_config.{key}: ")),
                "{key} {value}: {message}"
            );
        }
    }
}
