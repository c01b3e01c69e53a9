//! `vq_config` of Chameleon's config.json: the network that turns a picture into entries of a codebook, read under the published names and checked.

use crate::LoadError;
use crate::config::json::Fields;
use serde_json::{Map, Value};

/// Red, green, blue.
pub(super) const CHANNELS: usize = 3;
/// Of every group norm in the network.
pub(super) const GROUPS: usize = 32;
const MAX_WIDTH: usize = 1 << 14;
const MAX_SIDE: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VqConfig {
    /// Pixels of a side of the picture, which is a square.
    pub resolution: usize,
    /// Channels at each resolution; each next one has half the side.
    pub channels: Vec<usize>,
    /// Residual blocks at each resolution.
    pub num_res_blocks: usize,
    /// Channels before the first block.
    pub base_channels: usize,
    /// Channels of what the encoder makes, and of an entry of the codebook.
    pub latent_channels: usize,
    pub embed_dim: usize,
    /// Entries of the codebook.
    pub num_embeddings: usize,
}

impl VqConfig {
    /// `object` is `vq_config` of `file`. What it leaves out is as in the published class.
    pub fn read(file: &str, object: &Map<String, Value>) -> Result<Self, LoadError> {
        let fields = Fields::new(file, "vq_config", object);
        let base_channels = fields.usize_or("base_channels", 128, 1..=MAX_WIDTH)?;
        let multipliers = multipliers(&fields)?;
        let config = Self {
            resolution: fields.usize_or("resolution", 512, 1..=MAX_SIDE)?,
            channels: multipliers.iter().map(|m| m * base_channels).collect(),
            num_res_blocks: fields.usize_or("num_res_blocks", 2, 1..=64)?,
            base_channels,
            latent_channels: fields.usize_or("latent_channels", 256, 1..=MAX_WIDTH)?,
            embed_dim: fields.usize_or("embed_dim", 256, 1..=MAX_WIDTH)?,
            num_embeddings: fields.usize_or("num_embeddings", 8192, 1..=1 << 20)?,
        };
        if !base_channels.is_multiple_of(GROUPS) {
            return Err(
                fields.fail("base_channels", format!("{base_channels} is not a multiple of {GROUPS}"))
            );
        }
        if fields.usize_or("in_channels", CHANNELS, 1..=MAX_WIDTH)? != CHANNELS {
            return Err(fields.fail("in_channels", format!("only {CHANNELS} is supported")));
        }
        let halvings = config.channels.len() - 1;
        if !config.resolution.is_multiple_of(1 << halvings) {
            let message = format!("{} cannot be halved {halvings} times", config.resolution);
            return Err(fields.fail("resolution", message));
        }
        if fields.bool_or("double_latent", false)? {
            return Err(fields.fail("double_latent", "true is not supported"));
        }
        if fields.opt_array("attn_resolutions")?.is_some_and(|list| !list.is_empty()) {
            return Err(fields.fail("attn_resolutions", "attention outside the middle is not supported"));
        }
        if fields.has("attn_type") && fields.opt_str("attn_type")? != Some("vanilla") {
            return Err(fields.fail("attn_type", "only \"vanilla\" is supported"));
        }
        Ok(config)
    }

    /// Rows, and columns, of what the picture becomes.
    pub fn side(&self) -> usize {
        self.resolution >> (self.channels.len() - 1)
    }

    /// Tokens of a picture.
    pub fn num_tokens(&self) -> usize {
        self.side() * self.side()
    }

    /// Channels in the middle of the network, where it has most of them or as many.
    pub fn middle(&self) -> usize {
        self.channels[self.channels.len() - 1]
    }
}

fn multipliers(fields: &Fields) -> Result<Vec<usize>, LoadError> {
    let key = "channel_multiplier";
    let Some(list) = fields.opt_array(key)? else { return Ok(vec![1, 1, 2, 2, 4]) };
    let numbers: Option<Vec<usize>> = list.iter().map(|n| n.as_u64().map(|n| n as usize)).collect();
    match numbers {
        Some(numbers)
            if (1..=12).contains(&numbers.len()) && numbers.iter().all(|n| (1..=64).contains(n)) =>
        {
            Ok(numbers)
        }
        _ => Err(fields.fail(key, "expected 1 to 12 whole numbers from 1 to 64")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(json: &Value) -> Result<VqConfig, String> {
        VqConfig::read("config.json", json.as_object().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_published_class_has_defaults() {
        let config = read(&json!({})).unwrap();
        assert_eq!(config.channels, [128, 128, 256, 256, 512]);
        assert_eq!((config.side(), config.num_tokens(), config.middle()), (32, 1024, 512));
        assert_eq!((config.num_embeddings, config.embed_dim, config.latent_channels), (8192, 256, 256));
        let small = json!({"resolution": 16, "base_channels": 32, "channel_multiplier": [1, 2], "attn_resolutions": null,
                           "attn_type": "vanilla"});
        assert_eq!(read(&small).unwrap().num_tokens(), 64);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (key, value) in [
            ("base_channels", json!(48)),
            ("in_channels", json!(1)),
            ("resolution", json!(100)),
            ("resolution", json!(0)),
            ("double_latent", json!(true)),
            ("attn_resolutions", json!([16])),
            ("attn_type", json!("linear")),
            ("attn_type", Value::Null),
            ("channel_multiplier", json!([])),
            ("channel_multiplier", json!([1, 0])),
            ("channel_multiplier", json!(2)),
            ("num_res_blocks", json!(-1)),
            ("num_embeddings", json!("8192")),
        ] {
            let message = read(&json!({ key: value })).unwrap_err();
            assert!(message.starts_with(&format!("config.json: vq_config.{key}: ")), "{message}");
        }
    }
}
