//! A response's tools and the choice among them, as a chat completion has them.

use crate::error::ApiError;
use crate::openai::chat::compose::object;
use crate::openai::fields::take_string;
use serde_json::{Map, Value, json};

const FUNCTION: &[&str] = &["name", "description", "parameters", "strict"];

/// `unread` are the names of what was given and has no effect.
pub fn lower_tool(path: &str, tool: Value, unread: &mut Vec<String>) -> Result<Value, ApiError> {
    let mut tool = object(path, tool)?;
    match take_string(path, &mut tool, "type")?.as_deref() {
        Some("function") => {}
        None => return Err(ApiError::invalid(format!("{path}.type"), "is missing")),
        Some(kind) => {
            let message = format!("there are no tools of type `{kind}` here; known is function");
            return Err(ApiError::unsupported(format!("{path}.type"), message));
        }
    }
    let mut function = Map::new();
    for field in FUNCTION {
        let value = tool.shift_remove(*field).filter(|value| !value.is_null());
        function.extend(value.map(|value| ((*field).to_owned(), value)));
    }
    unread.extend(given(tool).map(|name| format!("tools.{name}")));
    Ok(json!({ "type": "function", "function": function }))
}

/// The names of what asks for something.
pub fn given(map: Map<String, Value>) -> impl Iterator<Item = String> {
    map.into_iter()
        .filter(|(_, value)| !matches!(value, Value::Null | Value::Bool(false)))
        .map(|(name, _)| name)
}

pub fn lower_choice(choice: Value) -> Result<Value, ApiError> {
    const PATH: &str = "tool_choice";
    let Value::Object(mut choice) = choice else { return Ok(choice) };
    match take_string(PATH, &mut choice, "type")?.as_deref() {
        Some("function") => {
            let name = take_string(PATH, &mut choice, "name")?;
            let name = name.ok_or_else(|| ApiError::invalid("tool_choice.name", "is missing"))?;
            Ok(json!({ "type": "function", "function": { "name": name } }))
        }
        Some("allowed_tools") => {
            let mode = choice.shift_remove("mode").unwrap_or_default();
            let Some(Value::Array(tools)) = choice.shift_remove("tools") else {
                return Err(ApiError::invalid("tool_choice.tools", "is missing or not a list"));
            };
            let mut allowed = Vec::with_capacity(tools.len());
            for (i, tool) in tools.into_iter().enumerate() {
                let path = format!("tool_choice.tools[{i}]");
                let mut tool = object(&path, tool)?;
                if take_string(&path, &mut tool, "type")?.as_deref() != Some("function") {
                    return Err(ApiError::unsupported(format!("{path}.type"), "known is function"));
                }
                let name = tool.shift_remove("name").unwrap_or_default();
                allowed.push(json!({ "type": "function", "function": { "name": name } }));
            }
            Ok(json!({ "type": "allowed_tools", "allowed_tools": { "mode": mode, "tools": allowed } }))
        }
        kind => {
            let message =
                format!("`{}` is not known; known are function and allowed_tools", kind.unwrap_or_default());
            Err(ApiError::unsupported("tool_choice.type", message))
        }
    }
}

/// Functions as they are repeated: with all that OpenAI's have.
pub fn echo(lowered: &[Value]) -> Vec<Value> {
    let echo_one = |tool: &Value| {
        let function = &tool["function"];
        let or_null = |field: &str| function.get(field).cloned().unwrap_or_default();
        json!({
            "type": "function", "name": function["name"], "description": or_null("description"),
            "parameters": or_null("parameters"), "strict": function.get("strict").cloned().unwrap_or(false.into()),
        })
    };
    lowered.iter().map(echo_one).collect()
}
