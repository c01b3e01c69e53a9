//! Numbers: the engine computes with 64-bit floats, so whole numbers beyond 2⁵³ are not told apart.

use super::super::error::{GrammarError, GrammarFault};
use super::fault::{invalid, unsupported};
use serde_json::{Map, Number, Value};

/// Whole numbers up to here are exact.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

pub(super) fn lower(
    map: &Map<String, Value>,
    plain: &mut Map<String, Value>,
    pointer: &str,
) -> Result<(), GrammarError> {
    for (bound, exclusive, sign) in
        [("minimum", "exclusiveMinimum", -1.0), ("maximum", "exclusiveMaximum", 1.0)]
    {
        let mut own = number(map, bound, pointer)?;
        // Draft 4: a flag that makes the other one exclusive.
        let strict = match map.get(exclusive) {
            Some(Value::Bool(true)) => own.take(),
            Some(Value::Bool(false)) => None,
            _ => number(map, exclusive, pointer)?,
        };
        for (keyword, value) in [(bound, own), (exclusive, strict)] {
            let Some(value) = value else { continue };
            let bound = match keyword == exclusive && plain.get("type") != Some(&"integer".into()) {
                true => inside(keyword, value, sign, pointer)?,
                false => clamp(keyword, value, sign, pointer)?,
            };
            plain.insert(keyword.into(), bound);
        }
    }
    if let Some(value) = number(map, "multipleOf", pointer)? {
        let digits = value.to_string();
        if value <= 0.0 {
            return Err(invalid(pointer, "multipleOf", "is not above 0"));
        }
        if value > 1e9 || digits.len() > 11 {
            return Err(unsupported(pointer, "multipleOf", "has too many digits"));
        }
        plain.insert("multipleOf".into(), map["multipleOf"].clone());
    }
    Ok(())
}

fn number(map: &Map<String, Value>, keyword: &str, pointer: &str) -> Result<Option<f64>, GrammarError> {
    match map.get(keyword) {
        None => Ok(None),
        Some(value) => match value.as_f64().filter(|x| x.is_finite()) {
            Some(x) => Ok(Some(x)),
            None => Err(invalid(pointer, keyword, "is not a number")),
        },
    }
}

/// A bound further out than what is exact moves in, which allows less and nothing wrong; one that leaves only inexact numbers is refused.
fn clamp(keyword: &str, value: f64, sign: f64, pointer: &str) -> Result<Value, GrammarError> {
    if value.abs() < EXACT_MAX {
        // Whole bounds stay whole.
        return Ok(if value.fract() == 0.0 { Value::from(value as i64) } else { Value::from(value) });
    }
    if value * sign > 0.0 {
        return Ok(Value::from((EXACT_MAX * sign) as i64));
    }
    Err(unsupported(pointer, keyword, "is beyond 2^53, where whole numbers are not exact"))
}

/// The engine lets a whole exclusive bound itself through where the other bound is less than 1 away. A bound a little further in is none
/// of those; whole numbers are the same beyond both.
fn inside(keyword: &str, value: f64, sign: f64, pointer: &str) -> Result<Value, GrammarError> {
    if value.fract() != 0.0 {
        return Ok(Value::from(value));
    }
    match value.abs() {
        x if x < 1e5 => Ok(Value::from(value - sign * 1e-9)),
        x if x < 1e12 => Ok(Value::from(value - sign * 1e-3)),
        _ => Err(unsupported(pointer, keyword, "beyond 10^12 is enforced only with `\"type\": \"integer\"`")),
    }
}

/// Constants that come out as they went in.
pub(super) fn check_exact(number: &Number, pointer: &str) -> Result<(), GrammarError> {
    let is_exact = match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(whole), _, _) => whole.unsigned_abs() <= EXACT_MAX as u64,
        (None, Some(_), _) => false,
        (None, None, Some(x)) => x.is_finite() && x.abs() < EXACT_MAX && (x == 0.0 || x.abs() >= 1e-9),
        _ => false,
    };
    match is_exact {
        true => Ok(()),
        false => {
            let message = format!("{number} is beyond what is exact here: 2^53, or below 1e-9");
            Err(GrammarError::new(GrammarFault::Unsupported, message).at(pointer))
        }
    }
}
