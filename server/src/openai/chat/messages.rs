//! The messages of a chat request, from JSON to roles and parts. Pictures stay URLs here.

use crate::chat::Message;
use crate::error::ApiError;
use crate::openai::fields::take_string;
use crate::raw_prompt::{RawMessage, RawPart};
use serde_json::{Map, Value};

mod calls;

use calls::CallIds;

pub fn lower(messages: Vec<Value>) -> Result<Vec<RawMessage>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "is empty"));
    }
    let mut ids = CallIds::default();
    messages
        .into_iter()
        .enumerate()
        .map(|(i, message)| lower_message(&format!("messages[{i}]"), message, &mut ids))
        .collect()
}

fn lower_message(path: &str, message: Value, ids: &mut CallIds) -> Result<RawMessage, ApiError> {
    let Value::Object(mut message) = message else {
        return Err(ApiError::invalid(path, "expected an object"));
    };
    let mut role = take_string(path, &mut message, "role")?
        .ok_or_else(|| ApiError::invalid(format!("{path}.role"), "is missing"))?;
    let name = take_string(path, &mut message, "name")?;
    let content = message.shift_remove("content").unwrap_or_default();
    let Content { parts, thoughts } = lower_content(&format!("{path}.content"), content, &role)?;
    // Only an assistant may have said nothing: it called tools.
    if parts.is_empty() && role != "assistant" {
        return Err(ApiError::invalid(format!("{path}.content"), "is missing"));
    }
    let mut fields = Map::new();
    match role.as_str() {
        "assistant" => {
            let reasoning = take_reasoning(path, &mut message)?.or(thoughts);
            let calls = calls::take(path, &mut message, ids)?;
            let is_said = parts.iter().any(|part| !matches!(part, RawPart::Text(text) if text.is_empty()));
            // Most templates read the first name, gpt-oss's the last; beside a call that one takes thinking or text, not both.
            let names = match calls.is_some() && is_said {
                true => &["reasoning_content", "reasoning"][..],
                false => &["reasoning_content", "reasoning", "thinking"],
            };
            if let Some(reasoning) = reasoning {
                fields.extend(names.iter().map(|name| (name.to_string(), reasoning.as_str().into())));
            }
            fields.extend(calls.map(|calls| ("tool_calls".to_owned(), calls)));
        }
        "tool" => {
            let id = take_string(path, &mut message, "tool_call_id")?;
            let id = id.ok_or_else(|| ApiError::invalid(format!("{path}.tool_call_id"), "is missing"))?;
            fields.insert("tool_call_id".to_owned(), id.into());
        }
        // What tools were called before: templates know the new name only.
        "function" => {
            let name =
                name.as_deref().ok_or_else(|| ApiError::invalid(format!("{path}.name"), "is missing"))?;
            fields.insert("tool_call_id".to_owned(), ids.of_result(name).into());
            role = "tool".to_owned();
        }
        _ => {}
    }
    Ok(RawMessage { message: Message { role, content: Vec::new(), name, fields }, parts })
}

/// The thinking of an earlier answer, under either of its names.
fn take_reasoning(path: &str, message: &mut Map<String, Value>) -> Result<Option<String>, ApiError> {
    let (first, second) =
        (take_string(path, message, "reasoning_content")?, take_string(path, message, "reasoning")?);
    Ok(first.or(second))
}

struct Content {
    parts: Vec<RawPart>,
    /// Of an assistant: what lay between the parts.
    thoughts: Option<String>,
}

fn lower_content(path: &str, content: Value, role: &str) -> Result<Content, ApiError> {
    let mut lowered = Content { parts: Vec::new(), thoughts: None };
    let parts = match content {
        Value::Null => Vec::new(),
        text @ Value::String(_) => vec![text],
        Value::Array(parts) => parts,
        _ => return Err(ApiError::invalid(path, "expected a string or a list of parts")),
    };
    for (i, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        match part {
            Value::Object(part) if role == "assistant" && part.get("type") == Some(&"thinking".into()) => {
                lowered.thoughts.get_or_insert_default().push_str(&lower_thought(&path, part)?);
            }
            part => lowered.parts.push(lower_part(&path, part)?),
        }
    }
    Ok(lowered)
}

/// As in Anthropic's messages; what else such a part has, such as a signature, is theirs.
fn lower_thought(path: &str, mut part: Map<String, Value>) -> Result<String, ApiError> {
    let thought = take_string(path, &mut part, "thinking")?;
    thought.ok_or_else(|| ApiError::invalid(format!("{path}.thinking"), "is missing"))
}

fn lower_part(path: &str, part: Value) -> Result<RawPart, ApiError> {
    let missing = |field: &str| ApiError::invalid(format!("{path}.{field}"), "is missing");
    let mut part = match part {
        Value::Object(part) => part,
        // vLLM takes a bare string for a text part.
        Value::String(text) => return Ok(RawPart::Text(text)),
        _ => return Err(ApiError::invalid(path, "expected an object")),
    };
    let kind = take_string(path, &mut part, "type")?.ok_or_else(|| missing("type"))?;
    match kind.as_str() {
        "text" | "refusal" => {
            take_string(path, &mut part, &kind)?.map(RawPart::Text).ok_or_else(|| missing(&kind))
        }
        // The second is the Responses API's spelling, which vLLM takes here too.
        "image_url" | "input_image" => take_url(path, &mut part, "image_url").map(RawPart::ImageUrl),
        "video_url" => take_url(path, &mut part, "video_url").map(RawPart::VideoUrl),
        other => Err(ApiError::unsupported(
            format!("{path}.type"),
            format!("parts of type `{other}` are not understood; known are text, image_url and video_url"),
        )),
    }
}

/// A URL as itself or as `{"url": …}`.
fn take_url(path: &str, part: &mut Map<String, Value>, field: &str) -> Result<String, ApiError> {
    let path = format!("{path}.{field}");
    match part.shift_remove(field) {
        Some(Value::String(url)) => Ok(url),
        Some(Value::Object(mut media)) => take_string(&path, &mut media, "url")?
            .ok_or_else(|| ApiError::invalid(format!("{path}.url"), "is missing")),
        None | Some(Value::Null) => Err(ApiError::invalid(path, "is missing")),
        Some(_) => Err(ApiError::invalid(path, "expected an object with a `url`")),
    }
}
