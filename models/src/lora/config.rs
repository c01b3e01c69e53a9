//! `adapter_config.json` of PEFT, as far as it decides what is computed. Keys that only say how an adapter was trained are passed over; those
//! that would change the computation in a way that is not implemented are refused.

use super::error::AdapterError;
use crate::config::json::{Fields, read_object};
use crate::{LoadError, ModelFiles};
use serde_json::{Map, Value};
use std::path::Path;

pub(super) const CONFIG_FILE: &str = "adapter_config.json";
/// What a rank or alpha may be at most: beyond it is a mistake, whatever the options say.
const MAX_RANK: usize = 1 << 16;

/// Ranks and scales, of all modules or of some.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LoraConfig {
    rank: usize,
    alpha: f64,
    /// Scales are `alpha / sqrt(rank)` instead of `alpha / rank`.
    root: bool,
    ranks: Vec<(String, usize)>,
    alphas: Vec<(String, f64)>,
}

/// Of one module.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Low {
    pub rank: usize,
    pub scale: f32,
}

impl LoraConfig {
    pub fn read(folder: &Path) -> Result<Self, AdapterError> {
        let files = ModelFiles::Directory(folder.into());
        let file = files.describe(CONFIG_FILE);
        match read_object(&files, CONFIG_FILE)? {
            Some(object) => Ok(Self::parse(&file, &object)?),
            None => Err(AdapterError::MissingFile { file }),
        }
    }

    fn parse(file: &str, object: &Map<String, Value>) -> Result<Self, LoadError> {
        let fields = Fields::new(file, "", object);
        if fields.get("peft_type").is_none() {
            return Err(fields.fail("peft_type", "is missing, only \"LORA\" is supported"));
        }
        fields.only("peft_type", "LORA")?;
        refuse(&fields)?;
        let rank = fields.usize("r", 1..=MAX_RANK)?;
        let alpha = alpha(&fields, "lora_alpha", fields.get("lora_alpha"))?;
        let root = fields.bool_or("use_rslora", false)?;
        let mut ranks = Vec::new();
        for (module, _) in fields.opt_object("rank_pattern")?.into_iter().flatten() {
            let path = fields.nested_path("rank_pattern");
            let own = fields.nested(&path, fields.opt_object("rank_pattern")?.expect("it is there"));
            ranks.push((pattern(&own, module)?, own.usize(module, 1..=MAX_RANK)?));
        }
        let mut alphas = Vec::new();
        for (module, value) in fields.opt_object("alpha_pattern")?.into_iter().flatten() {
            let path = fields.nested_path("alpha_pattern");
            let own = fields.nested(&path, fields.opt_object("alpha_pattern")?.expect("it is there"));
            alphas.push((pattern(&own, module)?, self::alpha(&own, module, Some(value))?));
        }
        Ok(Self { rank, alpha, root, ranks, alphas })
    }

    /// Of the module with this path, such as `model.layers.0.self_attn.q_proj`: the first pattern that fits decides.
    pub fn of(&self, module: &str) -> Low {
        let rank = find(&self.ranks, module).unwrap_or(self.rank);
        let alpha = find(&self.alphas, module).unwrap_or(self.alpha);
        let by = if self.root { (rank as f64).sqrt() } else { rank as f64 };
        Low { rank, scale: (alpha / by) as f32 }
    }
}

fn alpha(fields: &Fields, key: &str, value: Option<&Value>) -> Result<f64, LoadError> {
    let Some(value) = value else { return Err(fields.fail(key, "is missing")) };
    match value.as_f64() {
        Some(x) if x.abs() <= MAX_RANK as f64 => Ok(x),
        _ => Err(fields.fail(key, format!("expected a number of at most {MAX_RANK}, found {value}"))),
    }
}

/// A key of a pattern is the end of a module's path, after a dot or whole. PEFT reads it as a regular expression; the plain form, and one in
/// which a `^` stands for the beginning and dots are escaped, are all that its tools write.
fn pattern(fields: &Fields, key: &str) -> Result<String, LoadError> {
    let plain = key.replace(r"\.", ".");
    let rest = plain.strip_prefix('^').unwrap_or(&plain);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    match !rest.is_empty() && rest.chars().all(is_plain) {
        true => Ok(plain),
        false => Err(fields.fail(key, "is not supported, only the path of a module or the end of one is")),
    }
}

fn find<T: Copy>(patterns: &[(String, T)], module: &str) -> Option<T> {
    let fits = |pattern: &str| match pattern.strip_prefix('^') {
        Some(whole) => module == whole,
        None => module.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    };
    patterns.iter().find(|(pattern, _)| fits(pattern)).map(|(_, value)| *value)
}

/// What changes the computation.
fn refuse(fields: &Fields) -> Result<(), LoadError> {
    for (key, what) in [
        ("use_dora", "DoRA"),
        ("lora_bias", "a bias of the low-rank matrices"),
        ("fan_in_fan_out", "transposed weights"),
        ("use_qalora", "QA-LoRA"),
        ("use_bdlora", "BD-LoRA"),
    ] {
        // Some of these may be objects where they are used.
        if !matches!(fields.get(key), None | Some(Value::Bool(false))) {
            return Err(fields.fail(key, format!("{what} is not supported, only false is")));
        }
    }
    fields.only("bias", "none")?;
    for (key, what) in [
        ("modules_to_save", "whole modules beside the low-rank matrices"),
        ("layer_replication", "repeated layers"),
        ("target_parameters", "adapters of parameters that are not linear layers"),
        ("trainable_token_indices", "trained tokens"),
        ("alora_invocation_tokens", "an adapter that is invoked by tokens"),
        ("kasa_config", "KaSA"),
        ("monteclora_config", "MonteCLoRA"),
        ("arrow_config", "Arrow"),
    ] {
        let is_empty = match fields.get(key) {
            None => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(items)) => items.is_empty(),
            Some(_) => false,
        };
        if !is_empty {
            return Err(fields.fail(key, format!("{what}: not supported, only null is")));
        }
    }
    // These begin with other weights than the model's.
    let changes = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    match fields.get("init_lora_weights") {
        Some(Value::String(init)) if changes.iter().any(|name| init.to_lowercase().starts_with(name)) => {
            let message = format!("{init:?} changes the model's own weights: convert it to plain LoRA first");
            Err(fields.fail("init_lora_weights", message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<LoraConfig, String> {
        let Value::Object(object) = value else { unreachable!("objects") };
        LoraConfig::parse("a.json", &object).map_err(|error| error.to_string())
    }

    #[test]
    fn scales() {
        let base = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "revision": 7});
        let plain = parse(base.clone()).unwrap();
        assert_eq!(plain.of("model.layers.0.self_attn.q_proj"), Low { rank: 8, scale: 2.0 });
        let mut object = base;
        object["use_rslora"] = json!(true);
        object["rank_pattern"] =
            json!({"layers.1.self_attn.q_proj": 4, "^model\\.layers\\.2\\.mlp\\.up_proj": 2});
        object["alpha_pattern"] = json!({"o_proj": 3.5});
        let rooted = parse(object).unwrap();
        for (module, rank, scale) in [
            ("model.layers.0.self_attn.q_proj", 8, 16.0 / 8f64.sqrt()),
            ("model.layers.1.self_attn.q_proj", 4, 8.0),
            // Not at a dot.
            ("model.mylayers.1.self_attn.q_proj", 8, 16.0 / 8f64.sqrt()),
            ("model.layers.2.mlp.up_proj", 2, 16.0 / 2f64.sqrt()),
            ("x.model.layers.2.mlp.up_proj", 8, 16.0 / 8f64.sqrt()),
            ("model.layers.2.self_attn.o_proj", 8, 3.5 / 8f64.sqrt()),
        ] {
            assert_eq!(rooted.of(module), Low { rank, scale: scale as f32 }, "{module}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (key, value, expected) in [
            ("peft_type", json!("IA3"), "a.json: peft_type: \"IA3\" is not supported, only \"LORA\" is"),
            ("peft_type", json!(null), "a.json: peft_type: is missing, only \"LORA\" is supported"),
            ("r", json!(0), "a.json: r: 0 is not in 1..=65536"),
            ("r", json!(null), "a.json: r: is missing"),
            ("r", json!("8"), "a.json: r: expected a whole number that is not negative, found \"8\""),
            ("lora_alpha", json!(null), "a.json: lora_alpha: is missing"),
            ("lora_alpha", json!("x"), "a.json: lora_alpha: expected a number of at most 65536, found \"x\""),
            ("use_dora", json!(true), "a.json: use_dora: DoRA is not supported, only false is"),
            (
                "lora_bias",
                json!(true),
                "a.json: lora_bias: a bias of the low-rank matrices is not supported, only false is",
            ),
            (
                "fan_in_fan_out",
                json!(true),
                "a.json: fan_in_fan_out: transposed weights is not supported, only false is",
            ),
            ("use_qalora", json!(true), "a.json: use_qalora: QA-LoRA is not supported, only false is"),
            ("use_bdlora", json!({"x": 1}), "a.json: use_bdlora: BD-LoRA is not supported, only false is"),
            ("bias", json!("all"), "a.json: bias: \"all\" is not supported, only \"none\" is"),
            (
                "modules_to_save",
                json!(["lm_head"]),
                "a.json: modules_to_save: whole modules beside the low-rank matrices: not supported, only null is",
            ),
            (
                "layer_replication",
                json!([[0, 2]]),
                "a.json: layer_replication: repeated layers: not supported, only null is",
            ),
            (
                "target_parameters",
                json!(["x"]),
                "a.json: target_parameters: adapters of parameters that are not linear layers: not supported, only null is",
            ),
            (
                "trainable_token_indices",
                json!([1]),
                "a.json: trainable_token_indices: trained tokens: not supported, only null is",
            ),
            (
                "alora_invocation_tokens",
                json!([1]),
                "a.json: alora_invocation_tokens: an adapter that is invoked by tokens: not supported, only null is",
            ),
            ("kasa_config", json!({"x": 1}), "a.json: kasa_config: KaSA: not supported, only null is"),
            (
                "init_lora_weights",
                json!("pissa_niter_4"),
                "a.json: init_lora_weights: \"pissa_niter_4\" changes the model's own weights: convert it to plain LoRA first",
            ),
            ("use_rslora", json!(1), "a.json: use_rslora: expected true or false, found 1"),
            ("rank_pattern", json!({"q_proj": 0}), "a.json: rank_pattern.q_proj: 0 is not in 1..=65536"),
            (
                "rank_pattern",
                json!({"(q|k)_proj": 4}),
                "a.json: rank_pattern.(q|k)_proj: is not supported, only the path of a module or the end of one is",
            ),
            (
                "alpha_pattern",
                json!({"q_proj": null}),
                "a.json: alpha_pattern.q_proj: expected a number of at most 65536, found null",
            ),
            ("alpha_pattern", json!([1]), "a.json: alpha_pattern: expected an object, found [1]"),
        ] {
            let mut object = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16});
            object[key] = value;
            assert_eq!(parse(object), Err(expected.to_string()));
        }
        for (key, value) in [
            ("use_dora", json!(false)),
            ("bias", json!("none")),
            ("modules_to_save", json!([])),
            ("init_lora_weights", json!(true)),
            ("init_lora_weights", json!("gaussian")),
            ("rank_pattern", json!({})),
            ("target_modules", json!("all-linear")),
            ("exclude_modules", json!(["x"])),
            ("lora_dropout", json!(0.1)),
            ("a key of tomorrow", json!({"x": []})),
        ] {
            let mut object = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16});
            object[key] = value;
            assert!(parse(object).is_ok(), "{key}");
        }
    }
}
