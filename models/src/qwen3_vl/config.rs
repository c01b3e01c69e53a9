//! The vision part of Qwen3-VL's config.json, read under the published names and checked. Defaults are those of the published class.

use crate::LoadError;
use crate::config::json::Fields;
use crate::qwen_vl::{PatchShape, axial_theta, check_out};
use crate::vision_parts::{MERGE, check_heads};
use crate::vision_scratch::TowerSizes;
use serde_json::{Map, Value};

const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 16;

#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    pub patch_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    /// Rows, and columns, of the learned position table.
    pub table_side: usize,
    /// Blocks after which a picture's rows are told to the decoder as well, for its first layers; ascending.
    pub taps: Vec<usize>,
    /// The base of the rotation's frequencies.
    pub rope_theta: f64,
    /// Width of the decoder that the mergers' rows go to.
    pub text_hidden_size: usize,
}

impl VisionConfig {
    /// `object` is `vision_config` of `file`.
    pub fn read(file: &str, object: &Map<String, Value>, text_hidden_size: usize) -> Result<Self, LoadError> {
        let fields = Fields::new(file, "vision_config", object);
        if !matches!(fields.opt_str("model_type")?, Some("qwen3_vl" | "qwen3_vl_moe" | "qwen3_vl_moe_vision"))
        {
            fields.only("model_type", "qwen3_vl_vision")?;
        }
        fields.only("hidden_act", "gelu_pytorch_tanh")?;
        PatchShape::check(&fields)?;
        let num_layers = fields.usize_or("depth", 27, 1..=MAX_LAYERS)?;
        let num_positions = fields.usize_or("num_position_embeddings", 2304, 1..=1 << 24)?;
        let table_side = num_positions.isqrt();
        if table_side * table_side != num_positions {
            let message = format!("{num_positions} is no square: the positions of a table with equal sides");
            return Err(fields.fail("num_position_embeddings", message));
        }
        let config = Self {
            patch_size: fields.usize_or("patch_size", 16, 1..=1024)?,
            hidden_size: fields.usize_or("hidden_size", 1152, 1..=MAX_WIDTH)?,
            intermediate_size: fields.usize_or("intermediate_size", 4304, 1..=MAX_WIDTH)?,
            num_layers,
            num_heads: fields.usize_or("num_heads", 16, 1..=MAX_WIDTH)?,
            table_side,
            taps: taps(&fields, num_layers)?,
            rope_theta: axial_theta(&fields)?,
            text_hidden_size,
        };
        check_out(&fields, text_hidden_size)?;
        check_heads(&fields, "num_heads", config.hidden_size, config.num_heads)?;
        Ok(config)
    }

    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    pub(crate) fn sizes(&self) -> TowerSizes {
        TowerSizes {
            patch_len: self.patch().values(),
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_heads,
        }
    }

    pub(crate) fn patch(&self) -> PatchShape {
        PatchShape { hidden_size: self.hidden_size, patch_size: self.patch_size, has_bias: true }
    }

    /// Width of the patches of one token side by side.
    pub fn merged_size(&self) -> usize {
        MERGE * MERGE * self.hidden_size
    }

    /// Rows of a token: its embedding, and what is added after the decoder's first layers.
    pub fn num_levels(&self) -> usize {
        1 + self.taps.len()
    }
}

fn taps(fields: &Fields, num_layers: usize) -> Result<Vec<usize>, LoadError> {
    let key = "deepstack_visual_indexes";
    let Some(items) = fields.opt_array(key)? else {
        return Ok([8, 16, 24].into_iter().filter(|&block| block < num_layers).collect());
    };
    let mut taps: Vec<usize> = Vec::with_capacity(items.len());
    for item in items {
        let block = item.as_u64().and_then(|block| usize::try_from(block).ok());
        match block.filter(|&block| block < num_layers && taps.last().is_none_or(|&last| last < block)) {
            Some(block) => taps.push(block),
            None => {
                let message = format!("{item} is not a block of {num_layers} behind those before it");
                return Err(fields.fail(key, message));
            }
        }
    }
    Ok(taps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn published() -> Value {
        json!({
            "deepstack_visual_indexes": [8, 16, 24], "depth": 27, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1152,
            "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 4304, "model_type": "qwen3_vl",
            "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 4096, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2
        })
    }

    fn read(json: &Value) -> Result<VisionConfig, LoadError> {
        VisionConfig::read("config.json", json.as_object().unwrap(), 4096)
    }

    #[test]
    fn reads_the_published_names() {
        let config = read(&published()).unwrap();
        assert_eq!((config.head_dim(), config.merged_size(), config.table_side), (72, 4608, 48));
        assert_eq!((&config.taps[..], config.num_levels()), (&[8, 16, 24][..], 4));
        assert_eq!(
            read(&json!({ "out_hidden_size": 4096 , "model_type": "qwen3_vl_vision" })).unwrap(),
            config
        );
    }

    #[test]
    fn wrong_values_are_named() {
        let cases = [
            ("model_type", json!("qwen2_5_vl")),
            ("hidden_act", json!("silu")),
            ("patch_size", json!(0)),
            ("depth", json!("27")),
            ("num_heads", json!(5)),
            ("in_channels", json!(1)),
            ("temporal_patch_size", json!(1)),
            ("num_position_embeddings", json!(2300)),
            ("deepstack_visual_indexes", json!([27])),
            ("deepstack_visual_indexes", json!([8, 8])),
            ("deepstack_visual_indexes", json!([16, 8])),
            ("out_hidden_size", json!(3584)),
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
