//! The configurations of AWQ, GPTQ, fp8 and MXFP4. The first three quantise the linear layers of the decoder's layers, and
//! neither the head nor anything that sees pictures; the last the experts of a layer, which are one tensor.

use super::pattern::Pattern;
use super::{Cut, Rules, Scheme, Which, group_size, names};
use crate::LoadError;
use crate::config::json::Fields;
use serde_json::{Map, Value};

pub(super) fn awq(q: &Fields) -> Result<(&'static str, Rules), LoadError> {
    let bits = q.opt_usize("bits", 1..=64)?.or(q.opt_usize("w_bit", 1..=64)?);
    if bits != Some(4) {
        return Err(q.fail("bits", format!("{} is not supported, only 4 is", bits.unwrap_or(0))));
    }
    // `gemv` lies the other way round.
    let key = if q.get("version").is_some() { "version" } else { "format" };
    let version = q.opt_str(key)?.unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(q.fail(key, format!("{version:?} is not supported, only gemm is")));
    }
    if !q.bool_or("zero_point", true)? {
        return Err(q.fail("zero_point", "false is not supported"));
    }
    let key = if q.has("q_group_size") { "q_group_size" } else { "group_size" };
    let group = group_size(q, key)?.ok_or_else(|| q.fail(key, "-1 is not supported"))?;
    let which = Which { not_converted: names(q, "modules_to_not_convert")?, ..Which::default() };
    Ok(("awq int4", Rules::Layers { scheme: Scheme::Awq { group }, which }))
}

pub(super) fn gptq(q: &Fields) -> Result<(&'static str, Rules), LoadError> {
    let (bits, method) = match q.usize("bits", 1..=64)? {
        4 => (4, "gptq int4"),
        8 => (8, "gptq int8"),
        other => return Err(q.fail("bits", format!("{other} is not supported, 4 and 8 are"))),
    };
    if q.bool_or("lm_head", false)? {
        return Err(q.fail("lm_head", "true is not supported"));
    }
    let key = if q.get("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
    let format = q.opt_str(key)?.unwrap_or("gptq");
    let less_one = match format {
        "gptq" => true,
        "gptq_v2" => false,
        other => {
            let message = format!("{other:?} is not supported, gptq and gptq_v2 are");
            return Err(q.fail(key, message));
        }
    };
    let zeros = !q.bool_or("sym", true)?;
    if zeros && bits == 8 {
        return Err(q.fail("sym", "false is not supported with 8 bits"));
    }
    let group = group_size(q, "group_size")?;
    // One group for a whole row, or groups that were fixed before columns were ordered, are of neighbours in any order.
    let scattered = q.bool_or("desc_act", false)? && group.is_some() && !q.bool_or("static_groups", false)?;
    let which = Which {
        only: inside_layers(q)?,
        not_converted: names(q, "modules_to_not_convert")?,
        skipped: skipped(q)?,
    };
    Ok((method, Rules::Layers { scheme: Scheme::Gptq { bits, group, zeros, less_one, scattered }, which }))
}

/// `modules_in_block_to_quantize`: lists of names inside a layer, one for each round of the quantiser.
fn inside_layers(q: &Fields) -> Result<Option<Vec<String>>, LoadError> {
    let key = "modules_in_block_to_quantize";
    let Some(rounds) = q.opt_array(key)? else { return Ok(None) };
    let mut all = Vec::new();
    for round in rounds {
        let names = match round {
            Value::Array(names) => names.as_slice(),
            name => std::slice::from_ref(name),
        };
        for name in names {
            let name = name.as_str().ok_or_else(|| q.fail(key, format!("{name} is not a string")))?;
            all.push(name.to_string());
        }
    }
    Ok(Some(all))
}

/// `dynamic`: expressions that a module's name must match from its beginning. `-:` before one leaves the modules as they are; of others
/// only those are understood that change nothing.
fn skipped(q: &Fields) -> Result<Vec<Pattern>, LoadError> {
    let Some(rules) = q.opt_object("dynamic")? else { return Ok(Vec::new()) };
    let mut skipped = Vec::new();
    for (rule, changes) in rules {
        match rule.strip_prefix("-:") {
            Some(expression) => {
                let pattern = Pattern::parse(&format!("re:{expression}"));
                skipped.push(pattern.map_err(|message| q.fail("dynamic", message))?);
            }
            None if changes.as_object().is_some_and(Map::is_empty) => {}
            None => {
                return Err(q.fail("dynamic", format!("{rule:?} is not supported, only those with -: are")));
            }
        }
    }
    Ok(skipped)
}

pub(super) fn fp8(q: &Fields) -> Result<(&'static str, Rules), LoadError> {
    if !matches!(q.opt_str("fmt")?, None | Some("e4m3" | "float8_e4m3fn")) {
        return Err(q.fail("fmt", "only \"e4m3\" is supported"));
    }
    if q.get("kv_cache_scheme").is_some() {
        return Err(q.fail("kv_cache_scheme", "is not supported"));
    }
    let (cut, scales) = match q.get("weight_block_size") {
        Some(_) => (Cut::Blocks(block(q, "weight_block_size")?), "weight_scale_inv"),
        None => (Cut::Whole, "weight_scale"),
    };
    Ok(("fp8", Rules::Layers { scheme: Scheme::Fp8 { cut, scales }, which: floats_of(q)? }))
}

/// `modules_to_not_convert` lists all that has weights beside the experts.
pub(super) fn mxfp4(q: &Fields) -> Result<(&'static str, Rules), LoadError> {
    let experts = "mlp.experts";
    if names(q, "modules_to_not_convert")?.iter().any(|name| name.ends_with(experts)) {
        return Err(
            q.fail("modules_to_not_convert", "experts that are floats beside MXFP4 are not supported")
        );
    }
    let which = Which { only: Some(vec![experts.into()]), ..Which::default() };
    Ok(("mxfp4", Rules::Layers { scheme: Scheme::Mxfp4, which }))
}

/// A scale for each row, as some of LLaMA 3.1 are published.
pub(super) fn fp8_rows(q: &Fields) -> Result<(&'static str, Rules), LoadError> {
    let scheme = Scheme::Fp8 { cut: Cut::Rows, scales: "weight_scale" };
    Ok(("fp8", Rules::Layers { scheme, which: floats_of(q)? }))
}

/// Layers that stay floats: parts of names in one list, whole names and expressions in the other.
fn floats_of(q: &Fields) -> Result<Which, LoadError> {
    let pattern = |name: &String| Pattern::parse(name).map_err(|message| q.fail("ignored_layers", message));
    Ok(Which {
        not_converted: names(q, "modules_to_not_convert")?,
        skipped: names(q, "ignored_layers")?.iter().map(pattern).collect::<Result<_, _>>()?,
        only: None,
    })
}

/// Rows and columns of a block.
pub(super) fn block(fields: &Fields, key: &str) -> Result<[usize; 2], LoadError> {
    let list = fields.opt_array(key)?.ok_or_else(|| fields.fail(key, "is missing"))?;
    let size = |value: &Value| value.as_u64().filter(|n| (1..=1 << 20).contains(n)).map(|n| n as usize);
    match list.iter().map(size).collect::<Vec<_>>()[..] {
        [Some(rows), Some(columns)] => Ok([rows, columns]),
        _ => Err(fields.fail(key, "expected two numbers, of rows and of columns")),
    }
}
