//! The configuration of compressed-tensors, as far as weights are concerned: activations here are f32 whatever it says of them.

use super::others::block;
use super::pattern::Pattern;
use super::{Cut, Rules, Scheme, Target, group_size, names};
use crate::LoadError;
use crate::config::json::Fields;
use serde_json::{Map, Value};

pub(super) fn read(q: &Fields) -> Result<(&'static str, Rules), LoadError> {
    for key in ["kv_cache_scheme", "sparsity_config", "transform_config"] {
        if let Some(value) = q.get(key).filter(|value| !value.as_object().is_some_and(Map::is_empty)) {
            let dense = value.get("format").and_then(Value::as_str) == Some("dense");
            if !dense {
                return Err(q.fail(key, "is not supported"));
            }
        }
    }
    let object = q.opt_object("config_groups")?.ok_or_else(|| q.fail("config_groups", "is missing"))?;
    let path = q.nested_path("config_groups");
    let listed = q.nested(&path, object);
    let mut groups = Vec::new();
    for key in object.keys() {
        let group = listed.opt_object(key)?.ok_or_else(|| listed.fail(key, "is null"))?;
        let path = listed.nested_path(key);
        groups.push(target(q, &listed.nested(&path, group))?);
    }
    let Some(Target { scheme, .. }) = groups.first() else {
        return Err(q.fail("config_groups", "is empty"));
    };
    let method = match scheme {
        Scheme::Packed { bits: 4, .. } => "compressed-tensors int4",
        Scheme::Fp8 { .. } => "compressed-tensors fp8",
        _ => "compressed-tensors int8",
    };
    let ignore = patterns(q, "ignore")?;
    Ok((method, Rules::Targets { groups, ignore }))
}

fn target(q: &Fields, group: &Fields) -> Result<Target, LoadError> {
    let object = group.opt_object("weights")?.ok_or_else(|| group.fail("weights", "is missing"))?;
    let path = group.nested_path("weights");
    let weights = group.nested(&path, object);
    if weights.opt_str("type")? == Some("float") {
        return Ok(Target { patterns: targets(group)?, scheme: small_floats(q, group, &weights)? });
    }
    weights.only("type", "int")?;
    let bits = match weights.usize("num_bits", 1..=64)? {
        bits @ (4 | 8) => bits as u32,
        other => return Err(weights.fail("num_bits", format!("{other} is not supported, 4 and 8 are"))),
    };
    let scattered = match weights.get("actorder") {
        None | Some(Value::Bool(false)) => false,
        // Columns that were ordered while scales were chosen are back in their places.
        Some(Value::String(order)) if matches!(order.as_str(), "weight" | "static") => false,
        Some(Value::String(order)) if matches!(order.as_str(), "group" | "dynamic") => true,
        Some(Value::Bool(true)) => true,
        Some(order) => return Err(weights.fail("actorder", format!("{order} is not supported"))),
    };
    let size = match weights.opt_str("strategy")? {
        Some("channel") => None,
        Some("group") => group_size(&weights, "group_size")?,
        other => {
            let other = other.unwrap_or("none");
            return Err(
                weights.fail("strategy", format!("{other:?} is not supported, group and channel are"))
            );
        }
    };
    let zeros = !weights.bool_or("symmetric", true)?;
    if zeros && bits == 8 {
        return Err(weights.fail("symmetric", "false is not supported with 8 bits"));
    }
    // One group for a whole row has nothing to scatter.
    let scattered = scattered && size.is_some();
    let (format, said_by) = format(q, group)?;
    let scheme = match format {
        "pack-quantized" => Scheme::Packed { bits, group: size, zeros, scattered },
        "int-quantized" if bits == 8 && scattered => {
            return Err(weights.fail("actorder", "group is not supported with int-quantized"));
        }
        "int-quantized" if bits == 8 => Scheme::Bytes { group: size },
        other => {
            let message =
                format!("{other:?} with {bits} bits is not supported, pack-quantized and int-quantized are");
            return Err(said_by.fail("format", message));
        }
    };
    Ok(Target { patterns: targets(group)?, scheme })
}

/// Of a group, or of all of them; and who said it.
fn format<'a, 'f>(q: &'f Fields<'a>, group: &'f Fields<'a>) -> Result<(&'a str, &'f Fields<'a>), LoadError> {
    match group.opt_str("format")? {
        Some(format) => Ok((format, group)),
        None => Ok((q.opt_str("format")?.ok_or_else(|| q.fail("format", "is missing"))?, q)),
    }
}

/// Weights in e4m3.
fn small_floats(q: &Fields, group: &Fields, weights: &Fields) -> Result<Scheme, LoadError> {
    match weights.usize("num_bits", 1..=64)? {
        8 => {}
        other => {
            return Err(weights.fail("num_bits", format!("{other} is not supported for floats, only 8 is")));
        }
    }
    if !weights.bool_or("symmetric", true)? {
        return Err(weights.fail("symmetric", "false is not supported for floats"));
    }
    let (format, said_by) = format(q, group)?;
    if !matches!(format, "float-quantized" | "naive-quantized") {
        return Err(
            said_by.fail("format", format!("{format:?} is not supported for floats, float-quantized is"))
        );
    }
    let cut = match weights.opt_str("strategy")? {
        Some("tensor") => Cut::Whole,
        Some("channel") => Cut::Rows,
        Some("block") => Cut::Blocks(block(weights, "block_structure")?),
        other => {
            let message = format!(
                "{:?} is not supported for floats: tensor, channel and block are",
                other.unwrap_or("none")
            );
            return Err(weights.fail("strategy", message));
        }
    };
    Ok(Scheme::Fp8 { cut, scales: "weight_scale" })
}

fn targets(group: &Fields) -> Result<Vec<Pattern>, LoadError> {
    let patterns = patterns(group, "targets")?;
    match patterns.is_empty() {
        true => Err(group.fail("targets", "is empty")),
        false => Ok(patterns),
    }
}

fn patterns(fields: &Fields, key: &str) -> Result<Vec<Pattern>, LoadError> {
    let parse = |name: &String| Pattern::parse(name).map_err(|message| fields.fail(key, message));
    names(fields, key)?.iter().map(parse).collect()
}
