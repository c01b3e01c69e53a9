//! Values as Python's `str` and `repr` write them: templates print the arguments of calls, which may be lists and objects, as they are.

use super::pyjson::python_float;
use super::special::{FIRST_NONCHARACTER, LAST_NONCHARACTER};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// `str(value)`; nothing for what is undefined, as Jinja has it.
pub(super) fn python_str(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => out.push_str(value.as_str().unwrap_or_default()),
        _ => write_repr(value, 0, &mut out)?,
    }
    Ok(out)
}

/// Deeper values are somebody's attack on the stack.
const MAX_DEPTH: usize = 128;

fn write_repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "value is nested too deeply to be printed"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(number) if !value.is_integer() => out.push_str(&python_float(number)),
            _ => out.push_str(&value.to_string()),
        },
        ValueKind::String => write_string(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            let is_tuple = value.is_tuple();
            out.push(if is_tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()? {
                out.push_str(if count > 0 { ", " } else { "" });
                write_repr(&item, depth + 1, out)?;
                count += 1;
            }
            match (is_tuple, count) {
                (true, 1) => out.push_str(",)"),
                (true, _) => out.push(')'),
                (false, _) => out.push(']'),
            }
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(&key, depth + 1, out)?;
                out.push_str(": ");
                write_repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn write_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            // Marks in control tokens that a user typed: they are taken out after rendering, so they must stay what they are.
            FIRST_NONCHARACTER..=LAST_NONCHARACTER => out.push(c),
            c if is_printable(c) => out.push(c),
            c => match u32::from(c) {
                code @ ..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ ..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
}

/// Python and Rust leave the same characters as they are: but for those that join the one before, which Rust escapes at the start of a text.
fn is_printable(c: char) -> bool {
    let mut text = String::from("a");
    text.push(c);
    text.escape_debug().nth(1) == Some(c) || c == '"' || c == '\''
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;
    use serde_json::json;

    fn text(value: serde_json::Value) -> String {
        python_str(&Value::from(Serde(&value))).expect("can be printed")
    }

    #[test]
    fn is_what_python_writes() {
        assert_eq!(text(json!("it's \"x\"\n")), "it's \"x\"\n");
        assert_eq!(text(json!(null)), "None");
        assert_eq!(text(json!([true, false, null])), "[True, False, None]");
        assert_eq!(
            text(json!([1e-7, -0.0, 3.0, 1e22, u64::MAX, -3])),
            "[1e-07, -0.0, 3.0, 1e+22, 18446744073709551615, -3]"
        );
        assert_eq!(text(json!(1e-7)), "1e-07");
        assert_eq!(
            text(json!({"a": {}, "b": [], "c": {"d": ["e"]}})),
            "{'a': {}, 'b': [], 'c': {'d': ['e']}}"
        );
        assert_eq!(python_str(&Value::UNDEFINED).expect("can be printed"), "");
    }

    #[test]
    fn strings_have_the_quotes_that_need_no_escape() {
        assert_eq!(text(json!(["a", "it's", "\"x\"", "it's \"x\""])), r#"['a', "it's", '"x"', 'it\'s "x"']"#);
    }

    #[test]
    fn what_cannot_be_seen_is_escaped() {
        assert_eq!(
            text(json!([
                "\\\n\r\t\u{7}\u{7f}\u{a0}\u{ad}",
                "é 🙂 e\u{301}",
                "\u{200b}\u{2028}\u{e000}\u{10ffff}"
            ])),
            "['\\\\\\n\\r\\t\\x07\\x7f\\xa0\\xad', 'é 🙂 e\u{301}', '\\u200b\\u2028\\ue000\\U0010ffff']"
        );
        assert_eq!(text(json!(["\u{301}", "\u{FDD0}"])), "['\u{301}', '\u{FDD0}']");
    }

    #[test]
    fn too_deep_is_an_error() {
        let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
        assert!(python_str(&Value::from(Serde(&deep))).is_err());
    }
}
