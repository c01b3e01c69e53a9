//! The configurations of AWQ, GPTQ and block-scaled fp8. All three quantise the linear layers of the decoder's layers, and
//! neither the head nor anything that sees pictures.

use super::{Rules, Scheme, group_size, names};
use crate::LoadError;
use crate::config::json::Fields;

pub(super) fn awq(q: &Fields) -> Result<(&'static str, Rules), LoadError> {
    let bits = q.opt_usize("bits", 1..=64)?.or(q.opt_usize("w_bit", 1..=64)?);
    if bits != Some(4) {
        return Err(q.fail("bits", format!("{} is not supported, only 4 is", bits.unwrap_or(0))));
    }
    // `gemv` lies the other way round.
    let version = q.opt_str("version")?.unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(q.fail("version", format!("{version:?} is not supported, only gemm is")));
    }
    if !q.bool_or("zero_point", true)? {
        return Err(q.fail("zero_point", "false is not supported"));
    }
    let key = if q.has("q_group_size") { "q_group_size" } else { "group_size" };
    let group = group_size(q, key)?.ok_or_else(|| q.fail(key, "-1 is not supported"))?;
    let rules =
        Rules::Layers { scheme: Scheme::Awq { group }, not_converted: names(q, "modules_to_not_convert")? };
    Ok(("awq int4", rules))
}

pub(super) fn gptq(q: &Fields) -> Result<(&'static str, Rules), LoadError> {
    let (bits, method) = match q.usize("bits", 1..=64)? {
        4 => (4, "gptq int4"),
        8 => (8, "gptq int8"),
        other => return Err(q.fail("bits", format!("{other} is not supported, 4 and 8 are"))),
    };
    if q.bool_or("desc_act", false)? {
        return Err(q.fail("desc_act", "true is not supported: groups would be of scattered columns"));
    }
    if q.bool_or("lm_head", false)? {
        return Err(q.fail("lm_head", "true is not supported"));
    }
    for key in ["dynamic", "modules_in_block_to_quantize"] {
        if q.get(key).is_some_and(|value| !matches!(value, serde_json::Value::Object(map) if map.is_empty()))
        {
            return Err(q.fail(key, "is not supported"));
        }
    }
    let format = q.opt_str("checkpoint_format")?.unwrap_or("gptq");
    let less_one = match format {
        "gptq" => true,
        "gptq_v2" => false,
        other => {
            let message = format!("{other:?} is not supported, gptq and gptq_v2 are");
            return Err(q.fail("checkpoint_format", message));
        }
    };
    let zeros = !q.bool_or("sym", true)?;
    if zeros && bits == 8 {
        return Err(q.fail("sym", "false is not supported with 8 bits"));
    }
    let scheme = Scheme::Gptq { bits, group: group_size(q, "group_size")?, zeros, less_one };
    Ok((method, Rules::Layers { scheme, not_converted: names(q, "modules_to_not_convert")? }))
}

pub(super) fn fp8(q: &Fields) -> Result<(&'static str, Rules), LoadError> {
    q.only("fmt", "e4m3")?;
    let list = q.opt_array("weight_block_size")?.ok_or_else(|| q.fail("weight_block_size", "is missing"))?;
    let size =
        |value: &serde_json::Value| value.as_u64().filter(|n| (1..=1 << 20).contains(n)).map(|n| n as usize);
    let [Some(rows), Some(columns)] = list.iter().map(size).collect::<Vec<_>>()[..] else {
        return Err(q.fail("weight_block_size", "expected two numbers, of rows and of columns"));
    };
    let scheme = Scheme::Fp8 { block: [rows, columns] };
    Ok(("fp8", Rules::Layers { scheme, not_converted: names(q, "modules_to_not_convert")? }))
}
