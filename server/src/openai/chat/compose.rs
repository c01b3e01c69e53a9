//! Messages of a chat put together from the parts of another dialect's request, with the places where those parts stood: what is found
//! wrong with a message later is told under the request's own names.

use crate::error::ApiError;
use serde_json::{Map, Value, json};

/// A part of a chat's message, and the place in the request that it came from.
pub type Part = (String, Value);

pub fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

pub fn object(path: &str, value: Value) -> Result<Map<String, Value>, ApiError> {
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(ApiError::invalid(path, "expected an object")),
    }
}

#[derive(Debug, Default)]
pub struct Composed {
    pub messages: Vec<Value>,
    pub places: Places,
}

impl Composed {
    pub fn add(&mut self, role: &str, parts: Vec<Part>, mut fields: Map<String, Value>) {
        let (places, parts): (Vec<String>, Vec<Value>) = parts.into_iter().unzip();
        // Templates join texts in different ways; one text is what it is.
        let content = match &parts[..] {
            [] if role == "assistant" => Value::Null,
            [] => json!(""),
            [part] if part["type"] == "text" => part["text"].clone(),
            _ => Value::Array(parts),
        };
        fields.insert("role".to_owned(), role.into());
        fields.insert("content".to_owned(), content);
        self.messages.push(Value::Object(fields));
        self.places.0.push(places);
    }
}

/// For each message the places of its parts.
#[derive(Debug, Default)]
pub struct Places(pub Vec<Vec<String>>);

impl Places {
    /// The place of the part that `messages[1].content[2].image_url` is of, and whether it is its picture.
    pub fn of_part(&self, param: &str) -> Option<(&str, bool)> {
        let (message, rest) = param.strip_prefix("messages[")?.split_once(']')?;
        let parts = self.0.get(message.parse::<usize>().ok()?)?;
        let part =
            rest.strip_prefix(".content[").and_then(|rest| rest.split_once(']')?.0.parse::<usize>().ok());
        let place = parts.get(part.unwrap_or(0)).or(parts.first())?;
        Some((place, rest.ends_with(".image_url")))
    }
}

/// A chat's field under the name that the dialect has for it: pairs of theirs and ours, the longer before the shorter.
pub fn renamed(param: &str, names: &[(&str, &str)]) -> String {
    for (theirs, ours) in names {
        if let Some(rest) = param
            .strip_prefix(theirs)
            .filter(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        {
            return format!("{ours}{rest}");
        }
    }
    param.to_owned()
}
