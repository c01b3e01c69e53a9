//! Objects: their names and how many they have. Names of `additionalProperties` can repeat, so only a count of one can be enforced for
//! them; and counts among optional `properties` are enforced where each combination can be written down.

use super::super::error::GrammarError;
use super::fault::{invalid, unsupported};
use serde_json::{Map, Value};
use std::collections::HashSet;

pub(super) fn check_required(value: &Value, pointer: &str) -> Result<Value, GrammarError> {
    let names = value.as_array().filter(|names| names.iter().all(Value::is_string));
    names.ok_or_else(|| invalid(pointer, "required", "is not a list of names"))?;
    Ok(value.clone())
}

/// Drops counts that hold anyway and refuses those that nothing would enforce.
pub(super) fn check_counts(
    map: &Map<String, Value>,
    plain: &mut Map<String, Value>,
    pointer: &str,
) -> Result<(), GrammarError> {
    let count = |plain: &Map<String, Value>, keyword: &str| plain.get(keyword).and_then(Value::as_u64);
    let (min, max) = (count(plain, "minProperties"), count(plain, "maxProperties"));
    let required: HashSet<&str> = map
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let names = map.get("properties").and_then(Value::as_object);
    let num_optional =
        names.into_iter().flat_map(Map::keys).filter(|name| !required.contains(name.as_str())).count() as u64;
    let num_required = required.len() as u64;
    let is_closed = map.get("additionalProperties") == Some(&Value::Bool(false))
        && !map.contains_key("patternProperties");
    if min.is_some_and(|min| min <= num_required) {
        plain.remove("minProperties");
    }
    if is_closed && max.is_some_and(|max| max >= num_required + num_optional) {
        plain.remove("maxProperties");
    }
    let min = count(plain, "minProperties").map_or(0, |min| min - num_required);
    let max = count(plain, "maxProperties").map(|max| max.saturating_sub(num_required));
    if min > 1 {
        return Err(unsupported(
            pointer,
            "minProperties",
            "is enforced up to one more than the `required` names",
        ));
    }
    let is_enumerable = is_closed && max.unwrap_or(1) == 1;
    if num_optional > 0 && !is_enumerable {
        for (keyword, is_open) in [("minProperties", min > 0), ("maxProperties", max.is_some())] {
            if is_open {
                return Err(unsupported(
                    pointer,
                    keyword,
                    "beside optional `properties` is enforced only for one of them, with `additionalProperties: false`",
                ));
            }
        }
    }
    Ok(())
}
