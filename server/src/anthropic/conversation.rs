//! Anthropic's messages as those of a chat: the system prompt goes first, results of tools become messages of their own, and pictures
//! URLs.

use super::places::Places;
use crate::error::ApiError;
use crate::openai::chat::compose::{Composed, Part, object, text};
use crate::openai::fields::take_string;
use serde_json::{Map, Value, json};

/// Where a block stands, its type, and what else is in it.
type Block = (String, String, Map<String, Value>);

#[derive(Debug)]
pub struct Conversation {
    pub messages: Vec<Value>,
    pub places: Places,
    /// The last message is the beginning of the answer.
    pub continues: bool,
    /// Some block asked for a cache; prefixes are cached anyway.
    pub has_cache_control: bool,
}

pub fn lower(system: Option<Value>, messages: Vec<Value>) -> Result<Conversation, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "is empty"));
    }
    let mut lowering = Lowering::default();
    if let Some(system) = system {
        let parts = lowering.parts("system", system, &[])?;
        lowering.composed.add("system", parts, Map::new());
    }
    for (i, message) in messages.into_iter().enumerate() {
        lowering.message(&format!("messages[{i}]"), message)?;
    }
    let last = lowering.composed.messages.last().unwrap_or(&Value::Null);
    let continues = last["role"] == "assistant" && last.get("tool_calls").is_none();
    let Lowering { composed: Composed { messages, places }, has_cache_control } = lowering;
    Ok(Conversation { messages, places: Places(places), continues, has_cache_control })
}

#[derive(Default)]
struct Lowering {
    composed: Composed,
    has_cache_control: bool,
}

fn missing(path: &str, field: &str) -> ApiError {
    ApiError::invalid(format!("{path}.{field}"), "is missing")
}

impl Lowering {
    fn message(&mut self, path: &str, message: Value) -> Result<(), ApiError> {
        let mut message = object(path, message)?;
        let role = take_string(path, &mut message, "role")?.ok_or_else(|| missing(path, "role"))?;
        let content = message.shift_remove("content").filter(|content| !content.is_null());
        let content = content.ok_or_else(|| missing(path, "content"))?;
        let path = format!("{path}.content");
        match role.as_str() {
            "user" => self.user(&path, content),
            "assistant" => self.assistant(&path, content),
            _ => Err(ApiError::invalid(
                format!("{}.role", path.trim_end_matches(".content")),
                format!("`{role}` is neither user nor assistant; instructions go into `system`"),
            )),
        }
    }

    /// Blocks with their places and types; a string is one block of text.
    fn blocks(&mut self, path: &str, content: Value) -> Result<Vec<Block>, ApiError> {
        let blocks = match content {
            Value::String(words) => {
                let block = Map::from_iter([("text".to_owned(), Value::String(words))]);
                return Ok(vec![(path.to_owned(), "text".to_owned(), block)]);
            }
            Value::Array(blocks) => blocks,
            _ => return Err(ApiError::invalid(path, "expected a string or a list of blocks")),
        };
        let mut lowered = Vec::with_capacity(blocks.len());
        for (i, block) in blocks.into_iter().enumerate() {
            let path = format!("{path}[{i}]");
            let mut block = object(&path, block)?;
            let kind = take_string(&path, &mut block, "type")?.ok_or_else(|| missing(&path, "type"))?;
            self.has_cache_control |=
                block.shift_remove("cache_control").is_some_and(|control| !control.is_null());
            lowered.push((path, kind, block));
        }
        Ok(lowered)
    }

    /// Blocks that are parts of a chat's message as they stand; `others` are the types that are known here besides text.
    fn parts(&mut self, path: &str, content: Value, others: &[&str]) -> Result<Vec<Part>, ApiError> {
        let mut parts = Vec::new();
        for (path, kind, block) in self.blocks(path, content)? {
            parts.push(part(path, &kind, block, others)?);
        }
        Ok(parts)
    }

    fn user(&mut self, path: &str, content: Value) -> Result<(), ApiError> {
        let mut parts: Vec<Part> = Vec::new();
        let mut has_results = false;
        for (path, kind, block) in self.blocks(path, content)? {
            if kind != "tool_result" {
                parts.push(part(path, &kind, block, &["image", "tool_result"])?);
                continue;
            }
            has_results = true;
            if !parts.is_empty() {
                self.composed.add("user", std::mem::take(&mut parts), Map::new());
            }
            self.tool_result(&path, block)?;
        }
        if !parts.is_empty() || !has_results {
            self.composed.add("user", parts, Map::new());
        }
        Ok(())
    }

    fn tool_result(&mut self, path: &str, mut block: Map<String, Value>) -> Result<(), ApiError> {
        let id = take_string(path, &mut block, "tool_use_id")?.ok_or_else(|| missing(path, "tool_use_id"))?;
        let mut parts = match block.shift_remove("content").filter(|content| !content.is_null()) {
            Some(content) => self.parts(&format!("{path}.content"), content, &["image"])?,
            None => Vec::new(),
        };
        match block.get("is_error") {
            None | Some(Value::Null | Value::Bool(false)) => {}
            // Chat templates have no other way to tell the model.
            Some(Value::Bool(true)) => match parts.first_mut() {
                Some((_, part)) if part["type"] == "text" => {
                    part["text"] = format!("Error: {}", part["text"].as_str().unwrap_or_default()).into();
                }
                _ => parts.insert(0, (path.to_owned(), text("Error"))),
            },
            Some(_) => return Err(ApiError::invalid(format!("{path}.is_error"), "expected a boolean")),
        }
        self.composed.add("tool", parts, Map::from_iter([("tool_call_id".to_owned(), id.into())]));
        Ok(())
    }

    fn assistant(&mut self, path: &str, content: Value) -> Result<(), ApiError> {
        let (mut parts, mut calls, mut thinking) = (Vec::new(), Vec::new(), String::new());
        for (path, kind, mut block) in self.blocks(path, content)? {
            match kind.as_str() {
                "thinking" => {
                    let thought = take_string(&path, &mut block, "thinking")?;
                    thinking.push_str(&thought.ok_or_else(|| missing(&path, "thinking"))?);
                }
                // Nobody here could read it, and this server writes none.
                "redacted_thinking" => {}
                "tool_use" => calls.push(tool_use(&path, block)?),
                _ => parts.push(part(path, &kind, block, &["thinking", "tool_use"])?),
            }
        }
        let mut fields = Map::new();
        if !thinking.is_empty() {
            fields.insert("reasoning_content".to_owned(), thinking.into());
        }
        if !calls.is_empty() {
            fields.insert("tool_calls".to_owned(), calls.into());
        }
        self.composed.add("assistant", parts, fields);
        Ok(())
    }
}

fn tool_use(path: &str, mut block: Map<String, Value>) -> Result<Value, ApiError> {
    let id = take_string(path, &mut block, "id")?.ok_or_else(|| missing(path, "id"))?;
    let name = take_string(path, &mut block, "name")?.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| missing(path, "name"))?;
    let input = match block.shift_remove("input") {
        Some(input @ Value::Object(_)) => input,
        None | Some(Value::Null) => return Err(missing(path, "input")),
        Some(_) => return Err(ApiError::invalid(format!("{path}.input"), "expected an object")),
    };
    Ok(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": input } }))
}

fn part(path: String, kind: &str, mut block: Map<String, Value>, others: &[&str]) -> Result<Part, ApiError> {
    match kind {
        "text" => {
            let words = take_string(&path, &mut block, "text")?.ok_or_else(|| missing(&path, "text"))?;
            Ok((path, text(&words)))
        }
        "image" if others.contains(&"image") => {
            let source = block.shift_remove("source").ok_or_else(|| missing(&path, "source"))?;
            let url = image_url(&format!("{path}.source"), source)?;
            Ok((path, json!({ "type": "image_url", "image_url": { "url": url } })))
        }
        _ => {
            let known: String = others.iter().map(|other| format!(", {other}")).collect();
            let message = format!("blocks of type `{kind}` are not understood here; known are text{known}");
            Err(ApiError::unsupported(format!("{path}.type"), message))
        }
    }
}

fn image_url(path: &str, source: Value) -> Result<String, ApiError> {
    let mut source = object(path, source)?;
    match take_string(path, &mut source, "type")?.as_deref() {
        Some("base64") => {
            let kind =
                take_string(path, &mut source, "media_type")?.ok_or_else(|| missing(path, "media_type"))?;
            let data = take_string(path, &mut source, "data")?.ok_or_else(|| missing(path, "data"))?;
            Ok(format!("data:{kind};base64,{data}"))
        }
        Some("url") => take_string(path, &mut source, "url")?.ok_or_else(|| missing(path, "url")),
        _ => Err(ApiError::unsupported(format!("{path}.type"), "known are base64 and url")),
    }
}
