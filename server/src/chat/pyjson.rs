//! JSON as Python's `json.dumps` writes it: chat templates were written and trained with its spaces, its escapes and its floats.

use super::special::{FIRST_NONCHARACTER, LAST_NONCHARACTER};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

#[derive(Debug, Clone)]
pub(super) struct JsonStyle {
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub ensure_ascii: bool,
    pub sort_keys: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self {
            indent: None,
            item_separator: ", ".to_string(),
            key_separator: ": ".to_string(),
            ensure_ascii: false,
            sort_keys: false,
        }
    }
}

pub(super) fn to_json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_value(value, style, 0, &mut out)?;
    Ok(out)
}

/// Deeper values are somebody's attack on the stack.
const MAX_DEPTH: usize = 128;

fn write_value(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Result<(), Error> {
    let fail = |message: String| Err(Error::new(ErrorKind::InvalidOperation, message));
    if depth > MAX_DEPTH {
        return fail("value is nested too deeply for JSON".to_string());
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(value, out),
        ValueKind::String => write_string(value.as_str().unwrap_or_default(), style.ensure_ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_items(('[', ']'), &items, style, depth, out, |item, out| {
                write_value(item, style, depth + 1, out)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            write_items(('{', '}'), &keys, style, depth, out, |key, out| {
                write_string(&key_text(key)?, style.ensure_ascii, out);
                out.push_str(&style.key_separator);
                write_value(&value.get_item(key)?, style, depth + 1, out)
            })?;
        }
        other => return fail(format!("object of type {other} is not JSON serializable")),
    }
    Ok(())
}

fn write_items(
    (open, close): (char, char),
    items: &[Value],
    style: &JsonStyle,
    depth: usize,
    out: &mut String,
    write: impl Fn(&Value, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |depth: usize, out: &mut String| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(depth + 1, out);
        write(item, out)?;
    }
    if !items.is_empty() {
        new_line(depth, out);
    }
    out.push(close);
    Ok(())
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_string()),
        ValueKind::None => Ok("null".to_string()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_string()),
        ValueKind::Number => {
            let mut text = String::new();
            write_number(key, &mut text);
            Ok(text)
        }
        other => Err(Error::new(ErrorKind::InvalidOperation, format!("keys must be strings, not {other}"))),
    }
}

fn write_number(value: &Value, out: &mut String) {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => out.push_str(&json_float(number)),
        _ => out.push_str(&value.to_string()),
    }
}

fn json_float(number: f64) -> String {
    match python_float(number) {
        text if number.is_finite() => text,
        text => text.replace("nan", "NaN").replace("inf", "Infinity"),
    }
}

/// Shortest digits that read back as the same number, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn python_float(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn write_string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            // Marks in control tokens that a user typed: they are taken out after rendering, so they must stay what they are.
            FIRST_NONCHARACTER..=LAST_NONCHARACTER => out.push(c),
            c if ensure_ascii && !c.is_ascii() => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;
    use serde_json::json;

    fn check(value: serde_json::Value, style: &JsonStyle, expected: &str) {
        assert_eq!(to_json(&Value::from(Serde(&value)), style).expect("serializable"), expected);
    }

    #[test]
    fn is_what_python_writes() {
        let plain = JsonStyle::default();
        check(json!({"b": [1, 2.5, true, null], "a": {}}), &plain, r#"{"b": [1, 2.5, true, null], "a": {}}"#);
        check(
            json!([1e-7, 0.0001, 1e16, 1.5e300, 1e15, -0.0, 3.0]),
            &plain,
            "[1e-07, 0.0001, 1e+16, 1.5e+300, 1000000000000000.0, -0.0, 3.0]",
        );
        check(json!("<é'&\u{1}\u{7f}\"\\\n😀>"), &plain, "\"<é'&\\u0001\u{7f}\\\"\\\\\\n😀>\"");
        check(json!([u64::MAX, i64::MIN]), &plain, "[18446744073709551615, -9223372036854775808]");
        let ascii = JsonStyle { ensure_ascii: true, sort_keys: true, ..plain.clone() };
        check(
            json!({"é": "😀\u{FDD0}", "a": 1}),
            &ascii,
            "{\"a\": 1, \"\\u00e9\": \"\\ud83d\\ude00\u{FDD0}\"}",
        );
        let pretty = JsonStyle { indent: Some("  ".into()), item_separator: ",".into(), ..plain };
        check(json!({"a": [1, {}], "b": []}), &pretty, "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}");
    }

    #[test]
    fn what_json_has_no_word_for_is_an_error() {
        assert!(to_json(&Value::UNDEFINED, &JsonStyle::default()).is_err());
        let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
        assert!(to_json(&Value::from(Serde(&deep)), &JsonStyle::default()).is_err());
    }
}
