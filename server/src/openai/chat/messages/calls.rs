//! The calls of an earlier answer: `tool_calls`, or the deprecated `function_call`, in the form that templates read.

use crate::error::ApiError;
use crate::openai::fields::take_string;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;

/// Ids for the deprecated form, which has none: a result belongs to the first call of its name that has no result yet.
#[derive(Debug, Default)]
pub struct CallIds {
    count: usize,
    open: VecDeque<(String, String)>,
}

impl CallIds {
    fn of_call(&mut self, name: &str) -> String {
        let id = format!("functions.{name}:{}", self.count);
        self.count += 1;
        self.open.push_back((name.to_owned(), id.clone()));
        id
    }

    pub fn of_result(&mut self, name: &str) -> String {
        match self.open.iter().position(|(other, _)| other == name).and_then(|at| self.open.remove(at)) {
            Some((_, id)) => id,
            None => {
                let id = self.of_call(name);
                self.open.pop_back();
                id
            }
        }
    }
}

/// The message's calls, if it has any.
pub fn take(
    path: &str,
    message: &mut Map<String, Value>,
    ids: &mut CallIds,
) -> Result<Option<Value>, ApiError> {
    let calls = match message.shift_remove("tool_calls") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(calls)) => calls,
        Some(_) => return Err(ApiError::invalid(format!("{path}.tool_calls"), "expected a list")),
    };
    let mut lowered = Vec::with_capacity(calls.len());
    for (i, call) in calls.into_iter().enumerate() {
        lowered.push(lower_call(&format!("{path}.tool_calls[{i}]"), call)?);
    }
    match message.shift_remove("function_call") {
        None | Some(Value::Null) => {}
        Some(_) if !lowered.is_empty() => {
            return Err(ApiError::invalid(
                format!("{path}.function_call"),
                "cannot be given together with tool_calls",
            ));
        }
        Some(function) => {
            let function = lower_function(&format!("{path}.function_call"), function)?;
            let id = ids.of_call(function["name"].as_str().unwrap_or_default());
            lowered.push(json!({ "id": id, "type": "function", "function": function }));
        }
    }
    Ok((!lowered.is_empty()).then_some(Value::Array(lowered)))
}

fn lower_call(path: &str, call: Value) -> Result<Value, ApiError> {
    let Value::Object(mut call) = call else {
        return Err(ApiError::invalid(path, "expected an object"));
    };
    let id = take_string(path, &mut call, "id")?;
    let id = id.ok_or_else(|| ApiError::invalid(format!("{path}.id"), "is missing"))?;
    match take_string(path, &mut call, "type")?.as_deref() {
        None | Some("function") => {}
        Some(kind) => {
            let message = format!("calls of type `{kind}` are not understood; known is function");
            return Err(ApiError::unsupported(format!("{path}.type"), message));
        }
    }
    let path = format!("{path}.function");
    let function = call.shift_remove("function").ok_or_else(|| ApiError::invalid(&path, "is missing"))?;
    Ok(json!({ "id": id, "type": "function", "function": lower_function(&path, function)? }))
}

/// Arguments are a string of JSON; some clients send the object itself.
fn lower_function(path: &str, function: Value) -> Result<Value, ApiError> {
    let Value::Object(mut function) = function else {
        return Err(ApiError::invalid(path, "expected an object"));
    };
    let name = take_string(path, &mut function, "name")?;
    let name = name.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::invalid(format!("{path}.name"), "is missing"))?;
    let arguments = match function.shift_remove("arguments") {
        None | Some(Value::Null) => Value::Object(Map::new()),
        // No arguments are an empty object to templates.
        Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
        Some(arguments @ (Value::String(_) | Value::Object(_))) => arguments,
        Some(_) => return Err(ApiError::invalid(format!("{path}.arguments"), "expected a string of JSON")),
    };
    Ok(json!({ "name": name, "arguments": arguments }))
}
