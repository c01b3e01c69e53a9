//! The configuration file: flag names with values. Either a JSON object, or lines `name: value` with lists as `[a, b]` or as `- item`
//! lines, which is the part of YAML that such files use.

use serde_json::Value;

/// Flag names and their values, in the order of the file.
pub fn parse(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    // Some systems begin every text with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let entries = match text.trim_start().starts_with('{') {
        true => parse_json(text)?,
        false => parse_lines(text)?,
    };
    for (i, (name, _)) in entries.iter().enumerate() {
        if entries[..i].iter().any(|(earlier, _)| earlier == name) {
            return Err(format!("`{name}` is given twice"));
        }
    }
    Ok(entries)
}

fn parse_json(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    let map: serde_json::Map<String, Value> =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    let scalar = |name: &str, value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        _ => Err(format!("`{name}` is not a string, number or boolean")),
    };
    let mut entries = Vec::new();
    for (name, value) in &map {
        let values = match value {
            Value::Array(items) => items.iter().map(|item| scalar(name, item)).collect::<Result<_, _>>()?,
            value => vec![scalar(name, value)?],
        };
        entries.push((normal_name(name), values));
    }
    Ok(entries)
}

fn parse_lines(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    let mut entries: Vec<(String, Vec<String>)> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = without_comment(line);
        let content = line.trim();
        if content.is_empty() || content == "---" {
            continue;
        }
        let at = |message: &str| format!("line {}: {message}", i + 1);
        if let Some(item) = content.strip_prefix("- ") {
            let (_, values) = entries.last_mut().ok_or_else(|| at("a list item without a name above it"))?;
            values.push(unquoted(item));
            continue;
        }
        if line.starts_with([' ', '\t']) {
            return Err(at("nested values are not supported"));
        }
        let (name, value) = content.split_once(':').ok_or_else(|| at("expected `name: value`"))?;
        let value = value.trim();
        let values = match value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(items) => items.split(',').map(unquoted).filter(|item| !item.is_empty()).collect(),
            None if value.is_empty() => Vec::new(),
            None => vec![unquoted(value)],
        };
        entries.push((normal_name(name.trim()), values));
    }
    Ok(entries)
}

/// Names may be written with underscores or dashes.
fn normal_name(name: &str) -> String {
    unquoted(name).replace('_', "-")
}

/// A `#` begins a comment at the start of a line or after a space, unless it is quoted.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut previous = ' ';
    for (at, c) in line.char_indices() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c == '#' && previous.is_whitespace() => return &line[..at],
            None => {}
        }
        previous = c;
    }
    line
}

fn unquoted(value: &str) -> String {
    let value = value.trim();
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner.to_owned();
        }
    }
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &[&str])]) {
        let parsed = parse(text).expect("parses");
        let parsed: Vec<(&str, Vec<&str>)> = parsed
            .iter()
            .map(|(name, values)| (name.as_str(), values.iter().map(String::as_str).collect()))
            .collect();
        let expected: Vec<(&str, Vec<&str>)> =
            expected.iter().map(|(name, values)| (*name, values.to_vec())).collect();
        assert_eq!(parsed, expected);
    }

    #[test]
    fn lines() {
        check(
            "# a comment\nport: 8001 # another\nserved_model_name: [a, \"b c\"]\napi-key:\n  - '#1'\n  - two\nhost: 'x # y'\n",
            &[
                ("port", &["8001"]),
                ("served-model-name", &["a", "b c"]),
                ("api-key", &["#1", "two"]),
                ("host", &["x # y"]),
            ],
        );
    }

    #[test]
    fn json() {
        check(
            r#"{"port": 1, "enable-prefix-caching": false, "served_model_name": ["a", "b"]}"#,
            &[("port", &["1"]), ("enable-prefix-caching", &["false"]), ("served-model-name", &["a", "b"])],
        );
    }

    #[test]
    fn mistakes() {
        for text in ["port 1", "- a", "a:\n  b: 1", "{\"a\": {}}", "{", "a: 1\na: 2"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
