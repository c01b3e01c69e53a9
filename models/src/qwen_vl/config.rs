//! The vision part of Qwen2.5-VL's config.json, read under the published names and checked. Defaults are those of the published class.

use super::patch_embed::PatchShape;
use crate::LoadError;
use crate::config::json::Fields;
use crate::vision_parts::{MERGE, check_heads};
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
    /// Tokens in each direction of a window, beyond which most blocks do not look.
    pub window: usize,
    /// Of each block whether it looks at the whole picture.
    pub sees_all: Vec<bool>,
    /// The base of the rotation's frequencies.
    pub rope_theta: f64,
    /// Width of the decoder that the merger's rows go to.
    pub text_hidden_size: usize,
}

impl VisionConfig {
    /// `object` is `vision_config` of `file`.
    pub fn read(file: &str, object: &Map<String, Value>, text_hidden_size: usize) -> Result<Self, LoadError> {
        let fields = Fields::new(file, "vision_config", object);
        if fields.opt_str("model_type")? != Some("qwen2_5_vl") {
            fields.only("model_type", "qwen2_5_vl_vision")?;
        }
        fields.only("hidden_act", "silu")?;
        PatchShape::check(&fields)?;
        let patch_size = fields.usize_or("patch_size", 14, 1..=1024)?;
        let num_layers = fields.usize_or("depth", 32, 1..=MAX_LAYERS)?;
        let window_size = fields.usize_or("window_size", 112, 1..=1 << 20)?;
        let config = Self {
            patch_size,
            hidden_size: fields.usize_or("hidden_size", 3584, 1..=MAX_WIDTH)?,
            intermediate_size: fields.usize_or("intermediate_size", 3420, 1..=MAX_WIDTH)?,
            num_layers,
            num_heads: fields.usize_or("num_heads", 16, 1..=MAX_WIDTH)?,
            window: window_size / MERGE / patch_size,
            sees_all: sees_all(&fields, num_layers)?,
            rope_theta: axial_theta(&fields)?,
            text_hidden_size,
        };
        if config.window == 0 {
            return Err(fields.fail("window_size", format!("{window_size} pixels are less than a token's")));
        }
        check_out(&fields, text_hidden_size)?;
        check_heads(&fields, "num_heads", config.hidden_size, config.num_heads)?;
        Ok(config)
    }

    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    pub(crate) fn patch(&self) -> PatchShape {
        PatchShape { hidden_size: self.hidden_size, patch_size: self.patch_size, has_bias: false }
    }

    /// Values of one frame of one patch.
    pub fn patch_len(&self) -> usize {
        self.patch().values()
    }

    /// Width of the patches of one token side by side.
    pub fn merged_size(&self) -> usize {
        MERGE * MERGE * self.hidden_size
    }
}

/// That rows are as wide as the decoder's.
pub(crate) fn check_out(fields: &Fields, text_hidden_size: usize) -> Result<(), LoadError> {
    match fields.usize_or("out_hidden_size", 3584, 1..=usize::MAX)? {
        out if out == text_hidden_size => Ok(()),
        out => {
            let message = format!("{out} is not hidden_size = {text_hidden_size} of the decoder");
            Err(fields.fail("out_hidden_size", message))
        }
    }
}

fn sees_all(fields: &Fields, num_layers: usize) -> Result<Vec<bool>, LoadError> {
    let key = "fullatt_block_indexes";
    let mut sees_all = vec![false; num_layers];
    let Some(items) = fields.opt_array(key)? else {
        [7, 15, 23, 31]
            .into_iter()
            .filter(|&block| block < num_layers)
            .for_each(|block| sees_all[block] = true);
        return Ok(sees_all);
    };
    for item in items {
        let block = item.as_u64().and_then(|block| sees_all.get_mut(usize::try_from(block).ok()?));
        *block.ok_or_else(|| fields.fail(key, format!("{item} is not a block of {num_layers}")))? = true;
    }
    Ok(sees_all)
}

/// The base of a rotation by rows and columns.
pub(crate) fn axial_theta(fields: &Fields) -> Result<f64, LoadError> {
    let default = 10_000.0;
    let Some(object) = fields.opt_object("rope_parameters")? else { return Ok(default) };
    let path = fields.nested_path("rope_parameters");
    let inner = fields.nested(&path, object);
    inner.only("rope_type", "axial")?;
    inner.f64_in("rope_theta", Some(default), 1.000001..=1e18)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn published() -> Value {
        json!({
            "model_type": "qwen2_5_vl", "depth": 32, "hidden_act": "silu", "hidden_size": 1280,
            "intermediate_size": 3420, "num_heads": 16, "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14,
            "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2
        })
    }

    fn read(json: &Value) -> Result<VisionConfig, LoadError> {
        VisionConfig::read("config.json", json.as_object().unwrap(), 2048)
    }

    #[test]
    fn reads_the_published_names() {
        let config = read(&published()).unwrap();
        assert_eq!((config.head_dim(), config.patch_len(), config.merged_size()), (80, 588, 5120));
        assert_eq!((config.num_layers, config.intermediate_size, config.window), (32, 3420, 4));
        let blocks: Vec<usize> = (0..32).filter(|&block| config.sees_all[block]).collect();
        assert_eq!(blocks, [7, 15, 23, 31]);
        let newer = json!({ "model_type": "qwen2_5_vl_vision", "hidden_size": 1280, "out_hidden_size": 2048,
            "rope_parameters": { "rope_theta": 10000.0, "rope_type": "axial" } });
        assert_eq!(read(&newer).unwrap(), config);
    }

    #[test]
    fn wrong_values_are_named() {
        let cases = [
            ("model_type", json!("moonvit")),
            ("hidden_act", json!("gelu")),
            ("patch_size", json!(0)),
            ("hidden_size", json!("1280")),
            ("depth", json!(0)),
            ("num_heads", json!(7)),
            ("num_heads", json!(640)),
            ("in_channels", json!(1)),
            ("temporal_patch_size", json!(1)),
            ("spatial_merge_size", json!(3)),
            ("window_size", json!(27)),
            ("fullatt_block_indexes", json!([32])),
            ("fullatt_block_indexes", json!(["7"])),
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
