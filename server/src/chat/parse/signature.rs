//! What parsers need to know of the tools that a request offers.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolSignature {
    pub name: String,
    parameters: Vec<(String, ParameterKind)>,
}

/// How a parameter's value is to be read where a format writes it without quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    Text,
    /// Text, but `null` is null.
    TextOrNull,
    /// JSON where it is valid, else text.
    Json,
}

impl ToolSignature {
    /// `parameters` is the JSON schema of the function's arguments.
    pub fn new(name: &str, parameters: &Value) -> Self {
        let properties = parameters["properties"].as_object().into_iter().flatten();
        let parameters = properties.map(|(name, schema)| (name.clone(), kind(schema))).collect();
        Self { name: name.to_owned(), parameters }
    }

    pub fn parameter(&self, name: &str) -> ParameterKind {
        let found = self.parameters.iter().find(|(parameter, _)| parameter == name);
        found.map_or(ParameterKind::Text, |&(_, kind)| kind)
    }
}

pub(super) fn kind(schema: &Value) -> ParameterKind {
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    match types.as_slice() {
        ["string"] => ParameterKind::Text,
        ["string", "null"] | ["null", "string"] => ParameterKind::TextOrNull,
        [] if is_text_enum(schema) => ParameterKind::Text,
        [] if schema
            .as_object()
            .is_none_or(|schema| schema.keys().all(|key| !DECIDES.contains(&key.as_str()))) =>
        {
            ParameterKind::Text
        }
        _ => ParameterKind::Json,
    }
}

/// Keywords that say what a value is without `type`.
const DECIDES: [&str; 8] = ["anyOf", "oneOf", "allOf", "$ref", "enum", "const", "properties", "items"];

fn is_text_enum(schema: &Value) -> bool {
    match (&schema["enum"], &schema["const"]) {
        (Value::Array(values), _) => values.iter().all(Value::is_string),
        (_, constant) => constant.is_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds_follow_the_schema() {
        let schema = json!({"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["c", "f"]}, "mixed": {"enum": ["c", 1]},
            "note": {"type": ["string", "null"]}, "any": {}, "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        }});
        let tool = ToolSignature::new("f", &schema);
        let kinds = ["city", "days", "unit", "mixed", "note", "any", "either", "unknown"]
            .map(|name| tool.parameter(name));
        use ParameterKind::{Json, Text, TextOrNull};
        assert_eq!(kinds, [Text, Json, Text, Json, TextOrNull, Text, Json, Text]);
        assert_eq!(ToolSignature::new("f", &Value::Null).parameter("x"), Text);
    }
}
