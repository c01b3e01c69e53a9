//! The fields of a request's JSON object, taken one by one with their types checked. Whatever is left at the end was asked for in
//! vain: it is refused where it would constrain the answer, and reported as ignored where it would not.

use crate::error::ApiError;
use crate::openai::strict::Strict;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

/// What the parser says, and what it means where its words do not say it: clients that cut a text in the middle of an emoji send half of one.
fn told(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let hint = match text.contains("hex escape") {
        true => "; a \\u escape of half of a character (a lone surrogate) is no text",
        false => "",
    };
    text + hint
}

pub struct Fields(Map<String, Value>);

impl Fields {
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        // Some systems begin every text with a byte order mark.
        let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => Err(ApiError::InvalidJson(format!("expected an object, got {}", kind(&other)))),
            Err(error) => Err(ApiError::InvalidJson(told(&error))),
        }
    }

    /// Fields that did not come as one JSON object.
    pub fn of(map: Map<String, Value>) -> Self {
        Self(map)
    }

    /// `null` is the same as absent, as in OpenAI's API, and `3.0` where a whole number is expected is 3: JSON does not tell them apart, and
    /// some languages write all their numbers so.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let value = match self.0.shift_remove(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let with_whole = has_whole_float(&value).then(|| with_whole_numbers(&value));
        let read = serde_path_to_error::deserialize(Strict(value));
        let read = match (read, with_whole) {
            (Err(_), Some(value)) => serde_path_to_error::deserialize(Strict(value)),
            (read, _) => read,
        };
        read.map(Some).map_err(|error| {
            let path = error.path().to_string();
            let param = match path.as_str() {
                "." => name.to_owned(),
                path if path.starts_with('[') => format!("{name}{path}"),
                path => format!("{name}.{path}"),
            };
            ApiError::invalid(param, in_terms_of_json(&error.into_inner().to_string()))
        })
    }

    /// The names of the fields that were not taken. Fails where one of them would have constrained the answer.
    pub fn into_ignored(self) -> Result<Ignored, ApiError> {
        let mut names = Vec::new();
        for (name, value) in &self.0 {
            if value.is_null() {
                continue;
            }
            if let Some(refused) = REFUSED.iter().find(|refused| refused.name == name) {
                if !(refused.is_harmless)(value) {
                    return Err(ApiError::unsupported(name.clone(), refused.why));
                }
                continue;
            }
            if !HARMLESS.contains(&name.as_str()) && looks_like_a_constraint(name) {
                return Err(ApiError::unsupported(
                    name.clone(),
                    "it is unknown here and looks like a constraint on the answer",
                ));
            }
            names.push(name.clone());
        }
        Ok(Ignored(names))
    }
}

pub const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The whole number that a float is, where it is one that both can say.
fn whole(number: &Number) -> Option<Number> {
    const EXACT: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;
    let float =
        number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT)?;
    Some(Number::from(float as i64))
}

fn has_whole_float(value: &Value) -> bool {
    match value {
        Value::Number(number) => whole(number).is_some(),
        Value::Array(items) => items.iter().any(has_whole_float),
        Value::Object(map) => map.values().any(has_whole_float),
        _ => false,
    }
}

fn with_whole_numbers(value: &Value) -> Value {
    match value {
        Value::Number(number) => Value::Number(whole(number).unwrap_or_else(|| number.clone())),
        Value::Array(items) => items.iter().map(with_whole_numbers).collect(),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(name, value)| (name.clone(), with_whole_numbers(value))).collect())
        }
        other => other.clone(),
    }
}

/// What serde says of a wrong type, without Rust's names of types.
fn in_terms_of_json(message: &str) -> String {
    const UNSIGNED: &str = "a whole number of 0 or more";
    const EXPECTED: &[(&str, &str)] = &[
        ("usize", UNSIGNED),
        ("u64", UNSIGNED),
        ("u32", UNSIGNED),
        ("i64", "a whole number of 64 bits"),
        ("i32", "a whole number of 32 bits"),
        ("f32", "a number"),
        ("f64", "a number"),
        ("a sequence", "a list"),
        ("a map", "an object"),
    ];
    let (found, expected) = message.rsplit_once(", expected ").unwrap_or((message, ""));
    let found = found
        .replace("invalid type: sequence", "invalid type: list")
        .replace("invalid type: map", "invalid type: object")
        .replace("invalid type: floating point `", "invalid type: number `");
    let expected =
        EXPECTED.iter().find(|(name, _)| *name == expected).map_or(expected, |(_, in_json)| in_json);
    match expected {
        "" => found,
        expected => format!("{found}, expected {expected}"),
    }
}

/// Fields without effect on this server, in the order of the request.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ignored(pub Vec<String>);

impl Ignored {
    /// The value of the `x-ignored-params` header: at most 32 names, with anything that has no place in a header replaced.
    pub fn header(&self) -> Option<String> {
        let clean = |name: &String| -> String {
            let safe = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '?' };
            name.chars().take(64).map(safe).collect()
        };
        let names: Vec<String> = self.0.iter().take(32).map(clean).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

struct Refused {
    name: &'static str,
    /// Values that ask for what happens anyway.
    is_harmless: fn(&Value) -> bool,
    why: &'static str,
}

const fn refused(name: &'static str, is_harmless: fn(&Value) -> bool, why: &'static str) -> Refused {
    Refused { name, is_harmless, why }
}

fn never(_: &Value) -> bool {
    false
}
fn off(value: &Value) -> bool {
    *value == Value::Bool(false)
}
fn is_none(value: &Value) -> bool {
    value == "none"
}
fn empty(value: &Value) -> bool {
    value.as_str().is_some_and(str::is_empty)
}
fn no_items(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}
fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}
fn text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.len() == 1 && list[0] == "text")
}

const NO_TOOLS: &str = "tools are for chat completions";
const NO_SEARCH: &str = "beam search is not implemented";
const NO_TEMPLATE: &str = "the chat template is the server's choice";

#[rustfmt::skip]
const REFUSED: &[Refused] = &[
    refused("tools", never, NO_TOOLS),
    refused("tool_choice", is_none, NO_TOOLS),
    refused("functions", never, NO_TOOLS),
    refused("function_call", is_none, NO_TOOLS),
    refused("structural_tag", never, "it is not implemented; `structured_outputs` is"),
    refused("ebnf", never, "grammars are taken in Lark syntax, as `structured_outputs.grammar`"),
    refused("stop_regex", never, "stops are strings"),
    refused("guided_whitespace_pattern", never, "whitespace in JSON is the server's choice"),
    refused("logprob_token_ids", never, "only the most probable tokens can be reported"),
    refused("best_of", one, "use `n`; there is no ranking of answers"),
    refused("suffix", empty, "insertion is not implemented"),
    refused("use_beam_search", off, NO_SEARCH),
    refused("length_penalty", one, NO_SEARCH),
    refused("early_stopping", off, NO_SEARCH),
    refused("chat_template", never, NO_TEMPLATE),
    refused("documents", never, NO_TEMPLATE),
    refused("audio", never, "the model answers with text"),
    refused("modalities", text_only, "the model answers with text"),
    refused("moderation", never, "there is no moderation"),
    refused("mm_processor_kwargs", never, "the image processor's settings are the model's"),
    refused("media_io_kwargs", never, "the image processor's settings are the model's"),
    refused("prompt_embeds", never, "prompts are text or token ids"),
    refused("truncate_prompt_tokens", never, "prompts are never truncated"),
    refused("logits_processors", no_items, "code of requests is not run; `logit_bias`, `bad_words` and grammars are there"),
    refused("repetition_detection", never, "it is not implemented"),
    refused("kv_transfer_params", never, "there is no transfer of KV blocks"),
];

/// Known, without effect, and not to be taken for a constraint by their names.
const HARMLESS: &[&str] = &[
    "guided_decoding_backend",
    "reasoning_format",
    "parallel_tool_calls",
    "prompt_cache_options",
    "web_search_options",
];

/// Misspelt or future fields of this kind must not be dropped in silence: the client would trust an answer that nothing enforced.
fn looks_like_a_constraint(name: &str) -> bool {
    const SIGNS: &[&str] = &[
        "guided",
        "schema",
        "grammar",
        "regex",
        "constrain",
        "structur",
        "allowed",
        "banned",
        "bad_words",
        "budget",
        "format",
        "json",
    ];
    let name = name.to_ascii_lowercase();
    SIGNS.iter().any(|sign| name.contains(sign))
}

/// Declares the fields of a request: each is `Some` where it was given and not `null`. The comments above the fields are what the
/// API's document (`/openapi.json`) says of them; a field's type needs `#[derive(schemars::JsonSchema)]` for that.
macro_rules! request_fields {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default, schemars::JsonSchema)]
        pub struct $name { $($(#[$field_meta])* pub $field: Option<$type>,)* }

        impl $name {
            pub fn take(fields: &mut $crate::openai::fields::Fields) -> Result<Self, $crate::error::ApiError> {
                Ok(Self { $($field: fields.take(stringify!($field))?,)* })
            }
        }
    };
}
pub(crate) use request_fields;

/// A string of an object, taken out of it; null counts as absent.
pub fn take_string(
    path: &str,
    map: &mut Map<String, Value>,
    field: &str,
) -> Result<Option<String>, ApiError> {
    match map.shift_remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ApiError::invalid(format!("{path}.{field}"), "expected a string")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn take<T: DeserializeOwned>(body: &str) -> Result<Option<T>, String> {
        let mut fields = Fields::parse(body.as_bytes()).expect("an object");
        fields.take("x").map_err(|error| match error {
            ApiError::InvalidParam { param, message } => format!("{param}: {message}"),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn whole_floats_are_whole_numbers() {
        assert_eq!(take::<usize>(r#"{"x": 1000.0}"#), Ok(Some(1000)));
        assert_eq!(take::<usize>(r#"{"x": 1e3}"#), Ok(Some(1000)));
        assert_eq!(take::<i64>(r#"{"x": -1.0}"#), Ok(Some(-1)));
        assert_eq!(take::<usize>(r#"{"x": -0.0}"#), Ok(Some(0)));
        assert_eq!(take::<Vec<u32>>(r#"{"x": [1.0, 2]}"#), Ok(Some(vec![1, 2])));
        assert_eq!(take::<f32>(r#"{"x": 1.0}"#), Ok(Some(1.0)));
        let bias = take::<BTreeMap<String, f32>>(r#"{"x": {"5": 1.0}}"#);
        assert_eq!(bias, Ok(Some(BTreeMap::from([("5".to_owned(), 1.0)]))));
        // What is taken as it is stays as it is.
        assert_eq!(take::<Value>(r#"{"x": {"const": 1.0}}"#), Ok(Some(serde_json::json!({"const": 1.0}))));
        for wrong in ["1.5", "1e20", "-1.0", "9007199254740994.0"] {
            let wrong = take::<usize>(&format!("{{\"x\": {wrong}}}"));
            assert!(wrong.is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn wrong_types_are_told_in_terms_of_json() {
        let said = |result: Result<Option<usize>, String>| result.expect_err("is wrong");
        assert_eq!(
            said(take(r#"{"x": "4"}"#)),
            "x: invalid type: string \"4\", expected a whole number of 0 or more"
        );
        assert_eq!(
            said(take(r#"{"x": -1}"#)),
            "x: invalid value: integer `-1`, expected a whole number of 0 or more"
        );
        assert_eq!(
            said(take(r#"{"x": 1.5}"#)),
            "x: invalid type: number `1.5`, expected a whole number of 0 or more"
        );
        assert_eq!(said(take(r#"{"x": []}"#)), "x: invalid type: list, expected a whole number of 0 or more");
        let list = take::<Vec<f32>>(r#"{"x": {"a": 1}}"#).expect_err("is wrong");
        assert_eq!(list, "x: invalid type: object, expected a list");
        let number = take::<Vec<f32>>(r#"{"x": [1, "b, expected c"]}"#).expect_err("is wrong");
        assert_eq!(number, "x[1]: invalid type: string \"b, expected c\", expected a number");
    }
}
