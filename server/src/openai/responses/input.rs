//! The items of a request's input, in the one form in which they are kept, listed and given to the model.

use super::item::{Item, new_id};
use crate::error::ApiError;
use crate::openai::chat::compose::object;
use crate::openai::fields::take_string;
use serde_json::{Map, Value, json};

/// An item of the input: itself, or the id of one that is kept.
pub enum Given {
    New(Value),
    Reference(String),
}

pub fn missing(path: &str, field: &str) -> ApiError {
    ApiError::invalid(format!("{path}.{field}"), "is missing")
}

/// `unread` are the names of what was given and has no effect.
pub fn normalize(path: &str, item: Value, unread: &mut Vec<String>) -> Result<Given, ApiError> {
    let mut item = object(path, item)?;
    let kind = take_string(path, &mut item, "type")?;
    // A message may leave out what it is.
    let kind = kind.or_else(|| item.contains_key("role").then(|| "message".to_owned()));
    let kind = kind.ok_or_else(|| missing(path, "type"))?;
    if kind == "item_reference" {
        return Ok(Given::Reference(take_string(path, &mut item, "id")?.ok_or_else(|| missing(path, "id"))?));
    }
    let id = take_string(path, &mut item, "id")?.filter(|id| !id.is_empty());
    let status = take_string(path, &mut item, "status")?.unwrap_or_else(|| "completed".to_owned());
    let mut reader = Reader { path, item, unread };
    let (prefix, mut normal) = match kind.as_str() {
        "message" => ("msg", reader.message()?),
        "reasoning" => ("rs", reader.reasoning()?),
        "function_call" => ("fc", reader.function_call()?),
        "function_call_output" => ("fco", reader.function_call_output()?),
        _ => {
            let message = format!(
                "items of type `{kind}` are not understood; known are message, reasoning, function_call, function_call_output, item_reference"
            );
            return Err(ApiError::unsupported(format!("{path}.type"), message));
        }
    };
    let Reader { item, unread, .. } = reader;
    unread.extend(super::tools::given(item).map(|name| format!("input.{name}")));
    normal["type"] = kind.into();
    normal["id"] = id.unwrap_or_else(|| new_id(prefix)).into();
    normal["status"] = status.into();
    Ok(Given::New(normal))
}

/// A normal item, ready to be kept.
pub fn to_keep(item: &Value) -> Item {
    Item::new(item["id"].as_str().unwrap_or_default().to_owned(), item.to_string())
}

struct Reader<'a> {
    path: &'a str,
    item: Map<String, Value>,
    unread: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn string(&mut self, field: &str) -> Result<String, ApiError> {
        take_string(self.path, &mut self.item, field)?.ok_or_else(|| missing(self.path, field))
    }

    fn value(&mut self, field: &str) -> Result<Value, ApiError> {
        let value = self.item.shift_remove(field).filter(|value| !value.is_null());
        value.ok_or_else(|| missing(self.path, field))
    }

    fn message(&mut self) -> Result<Value, ApiError> {
        let role = self.string("role")?;
        let (text_type, pictures) = match role.as_str() {
            "user" | "system" | "developer" => ("input_text", role == "user"),
            "assistant" => ("output_text", false),
            _ => {
                let message = format!("`{role}` is not one of user, assistant, system, developer");
                return Err(ApiError::invalid(format!("{}.role", self.path), message));
            }
        };
        let content = match self.value("content")? {
            Value::String(text) => vec![json!({ "type": text_type, "text": text })],
            content => self.parts("content", content, pictures)?,
        };
        Ok(json!({ "role": role, "content": content }))
    }

    fn reasoning(&mut self) -> Result<Value, ApiError> {
        let summary = self.texts("summary", "summary_text")?;
        let content = self.texts("content", "reasoning_text")?;
        // Written by another server, which alone can read it.
        if let Some(Value::String(_)) = self.item.shift_remove("encrypted_content") {
            self.unread.push("input.encrypted_content".to_owned());
        }
        Ok(json!({ "summary": summary, "content": content }))
    }

    fn function_call(&mut self) -> Result<Value, ApiError> {
        let (call_id, name) = (self.string("call_id")?, self.string("name")?);
        let arguments = self.string("arguments")?;
        if name.is_empty() {
            return Err(missing(self.path, "name"));
        }
        Ok(json!({ "call_id": call_id, "name": name, "arguments": arguments }))
    }

    fn function_call_output(&mut self) -> Result<Value, ApiError> {
        let call_id = self.string("call_id")?;
        let output = match self.value("output")? {
            output @ Value::String(_) => output,
            parts => self.parts("output", parts, true)?.into(),
        };
        Ok(json!({ "call_id": call_id, "output": output }))
    }

    /// Texts of one type, of which there may be none.
    fn texts(&mut self, field: &str, kind: &str) -> Result<Vec<Value>, ApiError> {
        let path = format!("{}.{field}", self.path);
        let parts = match self.item.shift_remove(field) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(parts)) => parts,
            Some(_) => return Err(ApiError::invalid(path, "expected a list")),
        };
        let mut texts = Vec::with_capacity(parts.len());
        for (i, part) in parts.into_iter().enumerate() {
            let path = format!("{path}[{i}]");
            let mut part = object(&path, part)?;
            if take_string(&path, &mut part, "type")?.as_deref() != Some(kind) {
                return Err(ApiError::unsupported(format!("{path}.type"), format!("known is {kind}")));
            }
            let text = take_string(&path, &mut part, "text")?.ok_or_else(|| missing(&path, "text"))?;
            texts.push(json!({ "type": kind, "text": text }));
        }
        Ok(texts)
    }

    fn parts(&mut self, field: &str, parts: Value, pictures: bool) -> Result<Vec<Value>, ApiError> {
        let path = format!("{}.{field}", self.path);
        let Value::Array(parts) = parts else {
            return Err(ApiError::invalid(path, "expected a string or a list of parts"));
        };
        if parts.is_empty() {
            return Err(ApiError::invalid(path, "is empty"));
        }
        parts
            .into_iter()
            .enumerate()
            .map(|(i, part)| self.part(&format!("{path}[{i}]"), part, pictures))
            .collect()
    }

    fn part(&mut self, path: &str, part: Value, pictures: bool) -> Result<Value, ApiError> {
        let mut part = object(path, part)?;
        let kind = take_string(path, &mut part, "type")?.ok_or_else(|| missing(path, "type"))?;
        let normal = match kind.as_str() {
            "input_text" | "output_text" => {
                let text = take_string(path, &mut part, "text")?.ok_or_else(|| missing(path, "text"))?;
                let annotations = part.shift_remove("annotations");
                part.shift_remove("logprobs");
                match kind.as_str() {
                    "input_text" => json!({ "type": kind, "text": text }),
                    _ => {
                        json!({ "type": kind, "text": text, "annotations": annotations.unwrap_or(json!([])) })
                    }
                }
            }
            "refusal" => {
                let refusal = take_string(path, &mut part, "refusal")?;
                json!({ "type": kind, "refusal": refusal.ok_or_else(|| missing(path, "refusal"))? })
            }
            "input_image" if pictures => {
                if part.get("file_id").is_some_and(|id| !id.is_null()) {
                    let message = "pictures are given as `image_url`: an address or a data URL";
                    return Err(ApiError::unsupported(format!("{path}.file_id"), message));
                }
                part.shift_remove("file_id");
                let url = take_string(path, &mut part, "image_url")?;
                let url = url.ok_or_else(|| missing(path, "image_url"))?;
                let detail = take_string(path, &mut part, "detail")?.unwrap_or_else(|| "auto".to_owned());
                if detail != "auto" {
                    self.unread.push("input.detail".to_owned());
                }
                json!({ "type": kind, "image_url": url, "detail": detail })
            }
            _ => {
                let pictures = if pictures { ", input_image" } else { "" };
                let message = format!(
                    "parts of type `{kind}` are not understood here; known are input_text, output_text, refusal{pictures}"
                );
                return Err(ApiError::unsupported(format!("{path}.type"), message));
            }
        };
        self.unread.extend(super::tools::given(part).map(|name| format!("input.{name}")));
        Ok(normal)
    }
}
