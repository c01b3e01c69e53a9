//! What a request for a message means, said as a request for a chat completion.

use super::conversation::{self, Conversation};
use super::places::Places;
use super::types::MessageFields;
use crate::error::ApiError;
use crate::openai::chat::compose::object;
use crate::openai::chat::types::{ChatCompletionRequest, ChatFields};
use crate::openai::fields::Ignored;
use crate::openai::fields::take_string;
use crate::openai::generation::{GenerationFields, Stop};
use serde_json::{Map, Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Answer,
    /// Of the prompt's tokens.
    Count,
}

#[derive(Debug)]
pub struct Lowered {
    pub request: ChatCompletionRequest,
    pub places: Places,
}

/// The only field of a chat that may turn out to be without effect; here it stands for the switch of thinking.
pub fn name_ignored(Ignored(names): &mut Ignored) {
    for name in names.iter_mut().filter(|name| *name == "reasoning_effort") {
        *name = "thinking".to_owned();
    }
}

impl MessageFields {
    /// `ignored`: what of the request was not taken.
    pub fn lower(self, purpose: Purpose, mut ignored: Vec<String>) -> Result<Lowered, ApiError> {
        let MessageFields {
            model,
            max_tokens,
            messages,
            system,
            stop_sequences,
            temperature,
            top_p,
            top_k,
            stream,
            tools,
            tool_choice,
            thinking,
            output_config,
        } = self;
        if max_tokens.is_none() && purpose == Purpose::Answer {
            return Err(ApiError::invalid("max_tokens", "is missing"));
        }
        let messages = messages.ok_or_else(|| ApiError::invalid("messages", "is missing"))?;
        let Conversation { messages, places, continues, mut has_cache_control } =
            conversation::lower(system, messages)?;
        let mut chat = ChatFields {
            messages: Some(messages),
            max_tokens,
            continue_final_message: continues.then_some(true),
            ..ChatFields::default()
        };
        let mut generation = GenerationFields {
            model,
            temperature,
            top_p,
            top_k,
            stop: stop_sequences.map(Stop::Many),
            stream: stream.filter(|_| purpose == Purpose::Answer),
            ..GenerationFields::default()
        };
        if let Some(tools) = tools.filter(|tools| !tools.is_empty()) {
            let lowered: Result<Vec<Value>, ApiError> = tools
                .into_iter()
                .enumerate()
                .map(|(i, tool)| lower_tool(&format!("tools[{i}]"), tool, &mut has_cache_control))
                .collect();
            chat.tools = Some(lowered?);
        }
        if let Some(choice) = tool_choice {
            lower_choice(choice, &mut chat)?;
        }
        if let Some(thinking) = thinking {
            lower_thinking(thinking, &mut chat, &mut generation)?;
        }
        if let Some(config) = output_config {
            lower_output(config, &mut chat, &mut generation)?;
        }
        if has_cache_control && !ignored.iter().any(|name| name == "cache_control") {
            ignored.push("cache_control".to_owned());
        }
        let request = ChatCompletionRequest { chat, generation, ignored: Ignored(ignored) };
        Ok(Lowered { request, places })
    }
}

fn lower_tool(path: &str, tool: Value, has_cache_control: &mut bool) -> Result<Value, ApiError> {
    let mut tool = object(path, tool)?;
    match take_string(path, &mut tool, "type")?.as_deref() {
        None | Some("custom") => {}
        Some(kind) => {
            let message = format!("tools of type `{kind}` are not understood; known is custom");
            return Err(ApiError::unsupported(format!("{path}.type"), message));
        }
    }
    *has_cache_control |= tool.shift_remove("cache_control").is_some_and(|control| !control.is_null());
    let schema = tool.shift_remove("input_schema").filter(|schema| !schema.is_null());
    let schema = schema.ok_or_else(|| ApiError::invalid(format!("{path}.input_schema"), "is missing"))?;
    let mut function = Map::new();
    for field in ["name", "description", "strict"] {
        function.extend(tool.shift_remove(field).map(|value| (field.to_owned(), value)));
    }
    function.insert("parameters".to_owned(), schema);
    Ok(json!({ "type": "function", "function": function }))
}

fn lower_choice(choice: Value, chat: &mut ChatFields) -> Result<(), ApiError> {
    const PATH: &str = "tool_choice";
    let mut choice = object(PATH, choice)?;
    let kind = take_string(PATH, &mut choice, "type")?;
    let lowered = match kind.as_deref() {
        Some("auto") => json!("auto"),
        Some("any") => json!("required"),
        Some("none") => json!("none"),
        Some("tool") => {
            let name = take_string(PATH, &mut choice, "name")?;
            let name = name.ok_or_else(|| ApiError::invalid("tool_choice.name", "is missing"))?;
            json!({ "type": "function", "function": { "name": name } })
        }
        _ => return Err(ApiError::invalid("tool_choice.type", "expected auto, any, tool or none")),
    };
    chat.tool_choice = Some(lowered);
    match choice.get("disable_parallel_tool_use") {
        None | Some(Value::Null) => {}
        Some(Value::Bool(disable)) => chat.parallel_tool_calls = Some(!disable),
        Some(_) => {
            return Err(ApiError::invalid("tool_choice.disable_parallel_tool_use", "expected a boolean"));
        }
    }
    Ok(())
}

/// What templates call the switch of thinking.
const SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];

fn lower_thinking(
    thinking: Value,
    chat: &mut ChatFields,
    generation: &mut GenerationFields,
) -> Result<(), ApiError> {
    const PATH: &str = "thinking";
    let mut thinking = object(PATH, thinking)?;
    match take_string(PATH, &mut thinking, "type")?.as_deref() {
        Some("enabled") => {
            let budget = thinking.get("budget_tokens").filter(|budget| !budget.is_null());
            let budget = budget.ok_or_else(|| ApiError::invalid("thinking.budget_tokens", "is missing"))?;
            let budget = budget.as_u64().and_then(|budget| usize::try_from(budget).ok());
            let budget = budget
                .ok_or_else(|| ApiError::invalid("thinking.budget_tokens", "expected a number of tokens"))?;
            generation.thinking_token_budget = Some(budget);
            let on = SWITCHES.map(|switch| (switch.to_owned(), Value::Bool(true)));
            chat.chat_template_kwargs = Some(on.into_iter().collect());
        }
        Some("disabled") => chat.reasoning_effort = Some("none".to_owned()),
        Some("adaptive") => {}
        _ => return Err(ApiError::invalid("thinking.type", "expected enabled, disabled or adaptive")),
    }
    Ok(())
}

fn lower_output(
    config: Value,
    chat: &mut ChatFields,
    generation: &mut GenerationFields,
) -> Result<(), ApiError> {
    const PATH: &str = "output_config";
    let mut config = object(PATH, config)?;
    if let Some(effort) = take_string(PATH, &mut config, "effort")? {
        // Thinking that is switched off stays off.
        chat.reasoning_effort.get_or_insert(effort);
    }
    if let Some(format) = config.shift_remove("format").filter(|format| !format.is_null()) {
        let path = "output_config.format";
        let mut format = object(path, format)?;
        if take_string(path, &mut format, "type")?.as_deref() != Some("json_schema") {
            return Err(ApiError::unsupported("output_config.format.type", "known is json_schema"));
        }
        let schema = format.shift_remove("schema").filter(|schema| !schema.is_null());
        let schema = schema.ok_or_else(|| ApiError::invalid("output_config.format.schema", "is missing"))?;
        generation.response_format =
            Some(json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": schema } }));
    }
    match config.keys().next() {
        Some(other) => Err(ApiError::unsupported(format!("{PATH}.{other}"), "it is unknown here")),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "lower/tests.rs"]
mod tests;
