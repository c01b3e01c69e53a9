//! What a request for a response means, said as a request for a chat completion.

use super::conversation::{self, Placed};
use super::input::{Given, normalize, to_keep};
use super::item::Item;
use super::kept::Kept;
use super::names::Names;
use super::response::{Echo, ReasoningEcho, TextEcho};
use super::store::ResponseStore;
use super::tools;
use super::types::{ResponseFields, ResponseStreamOptions};
use crate::defaults::GenerationDefaults;
use crate::error::ApiError;
use crate::openai::chat::types::{ChatCompletionRequest, ChatFields};
use crate::openai::fields::Ignored;
use crate::openai::fields::take_string;
use crate::openai::generation::GenerationFields;
use crate::openai::metadata::check_metadata;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A request that is understood.
pub struct Lowered {
    pub request: ChatCompletionRequest,
    pub names: Names,
    pub echo: Echo,
    /// All items that are to be answered, from the conversation's first.
    pub context: Vec<Arc<Item>>,
    /// Where the oldest messages may be left out if not all fit.
    pub truncates: bool,
}

pub struct Surroundings<'a> {
    pub store: &'a ResponseStore,
    pub defaults: &'a GenerationDefaults,
}

const LOGPROBS: &str = "message.output_text.logprobs";
/// Known, and without effect: what they ask for is told anyway, or there is no tool that could give it.
const INCLUDABLE: &[&str] = &[
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];

impl ResponseFields {
    /// `ignored`: what of the request was not taken.
    pub fn lower(
        self,
        mut ignored: Vec<String>,
        surroundings: Surroundings<'_>,
    ) -> Result<Lowered, ApiError> {
        let ResponseFields {
            model,
            input,
            instructions,
            previous_response_id,
            store,
            background,
            stream,
            stream_options,
            tools,
            tool_choice,
            parallel_tool_calls,
            text,
            reasoning,
            max_output_tokens,
            temperature,
            top_p,
            top_logprobs,
            include,
            metadata,
            truncation,
            max_tool_calls,
            user,
            safety_identifier,
            prompt_cache_key,
            service_tier,
            conversation,
            prompt,
            context_management,
            background_options,
            image,
            top_k,
            seed,
            stop,
            ignore_eos,
            frequency_penalty,
            presence_penalty,
            priority,
            cache_salt,
            chat_template_kwargs,
            thinking_token_budget,
        } = self;
        let Surroundings { store: kept, defaults } = surroundings;
        for (name, field) in [
            ("conversation", conversation),
            ("prompt", prompt),
            ("context_management", context_management),
            ("background_options", background_options),
        ] {
            if field.is_some() {
                return Err(ApiError::unsupported(name, "it is not implemented"));
            }
        }
        for (name, is_given) in [
            ("max_tool_calls", max_tool_calls.is_some()),
            ("user", user.is_some()),
            ("safety_identifier", safety_identifier.is_some()),
            ("prompt_cache_key", prompt_cache_key.is_some()),
            ("service_tier", service_tier.is_some()),
        ] {
            if is_given {
                ignored.push(name.to_owned());
            }
        }
        lower_image(image)?;
        lower_stream_options(stream_options, stream.unwrap_or(false), &mut ignored)?;
        check_metadata(metadata.as_ref())?;
        let truncates = lower_truncation(truncation.as_deref())?;
        let wants_logprobs = lower_include(include.unwrap_or_default(), &mut ignored)?;
        if !wants_logprobs && top_logprobs.is_some_and(|top| top != 0) {
            return Err(ApiError::invalid(
                "top_logprobs",
                format!("is only allowed when `include` has `{LOGPROBS}`"),
            ));
        }
        let (store, background) = lower_keeping(store, background, kept)?;

        let tools = lower_tools(tools.unwrap_or_default(), &mut ignored)?;
        let format = lower_text(text.unwrap_or_default(), &mut ignored)?;
        let effort = lower_reasoning(reasoning.unwrap_or_default(), &mut ignored)?;
        let (context, items) = lower_input(input, previous_response_id.as_deref(), kept, &mut ignored)?;
        let composed = conversation::lower(instructions.as_deref().filter(|text| !text.is_empty()), items)?;

        let echo = Echo {
            background,
            instructions,
            max_output_tokens,
            max_tool_calls,
            metadata: metadata.unwrap_or_default(),
            parallel_tool_calls: parallel_tool_calls.unwrap_or(true),
            previous_response_id,
            prompt_cache_key,
            reasoning: ReasoningEcho { effort: effort.clone(), summary: None },
            safety_identifier,
            service_tier: "default",
            store,
            temperature: temperature.unwrap_or(defaults.temperature),
            text: TextEcho { format: format.clone() },
            tool_choice: tool_choice.clone().unwrap_or_else(|| "auto".into()),
            tools: tools::echo(&tools),
            top_logprobs: top_logprobs.and_then(|top| usize::try_from(top).ok()).unwrap_or(0),
            top_p: top_p.unwrap_or(defaults.top_p),
            truncation: if truncates { "auto" } else { "disabled" },
            user,
        };
        let chat = ChatFields {
            messages: Some(composed.messages),
            max_tokens: max_output_tokens,
            logprobs: Some(wants_logprobs),
            top_logprobs,
            tools: (!tools.is_empty()).then_some(tools),
            tool_choice: tool_choice.map(tools::lower_choice).transpose()?,
            parallel_tool_calls,
            reasoning_effort: effort,
            chat_template_kwargs,
            ..ChatFields::default()
        };
        let generation = GenerationFields {
            model,
            temperature,
            top_p,
            top_k,
            seed,
            stop,
            ignore_eos,
            frequency_penalty,
            presence_penalty,
            priority,
            cache_salt,
            thinking_token_budget,
            stream,
            response_format: lower_format(format),
            // Random, whatever id the request has: who knows it may read the response.
            request_id: Some(uuid::Uuid::new_v4().simple().to_string()),
            ..GenerationFields::default()
        };
        ignored.sort();
        ignored.dedup();
        let request = ChatCompletionRequest { chat, generation, ignored: Ignored(ignored) };
        Ok(Lowered { request, names: Names(composed.places), echo, context, truncates })
    }
}

fn lower_image(image: Option<Map<String, Value>>) -> Result<(), ApiError> {
    match image.unwrap_or_default().get("context_compression").map(|value| value.as_str()) {
        None | Some(Some("auto" | "disabled")) => Ok(()),
        Some(_) => Err(ApiError::unsupported("image.context_compression", "pictures are never compressed")),
    }
}

fn lower_stream_options(
    options: Option<ResponseStreamOptions>,
    streams: bool,
    ignored: &mut Vec<String>,
) -> Result<(), ApiError> {
    let Some(ResponseStreamOptions { include_obfuscation }) = options else { return Ok(()) };
    if !streams {
        return Err(ApiError::invalid("stream_options", "is only allowed when `stream` is true"));
    }
    if include_obfuscation == Some(true) {
        ignored.push("stream_options.include_obfuscation".to_owned());
    }
    Ok(())
}

fn lower_truncation(truncation: Option<&str>) -> Result<bool, ApiError> {
    match truncation {
        None | Some("disabled") => Ok(false),
        Some("auto") => Ok(true),
        Some(_) => Err(ApiError::invalid("truncation", "expected auto or disabled")),
    }
}

/// Whether log-probabilities are wanted.
fn lower_include(include: Vec<String>, ignored: &mut Vec<String>) -> Result<bool, ApiError> {
    let mut wants_logprobs = false;
    for (i, name) in include.into_iter().enumerate() {
        if name == LOGPROBS {
            wants_logprobs = true;
        } else if INCLUDABLE.contains(&name.as_str()) {
            // The first is told without being asked for.
            if name != INCLUDABLE[0] {
                ignored.push(format!("include.{name}"));
            }
        } else {
            let known = INCLUDABLE.join(", ");
            let message = format!("`{name}` is not known; known are {LOGPROBS}, {known}");
            return Err(ApiError::invalid(format!("include[{i}]"), message));
        }
    }
    Ok(wants_logprobs)
}

/// Whether the response is kept, and whether it is made in the background.
fn lower_keeping(
    store: Option<bool>,
    background: Option<bool>,
    kept: &ResponseStore,
) -> Result<(bool, bool), ApiError> {
    if store == Some(true) && !kept.is_enabled() {
        return Err(ApiError::unsupported("store", "this server keeps no responses"));
    }
    let store = store.unwrap_or(kept.is_enabled());
    let background = background.unwrap_or(false);
    if background && !store {
        let message =
            "nobody could ask for the response: it needs `store`, and a server that keeps responses";
        return Err(ApiError::invalid("background", message));
    }
    Ok((store, background))
}

fn lower_tools(tools: Vec<Value>, ignored: &mut Vec<String>) -> Result<Vec<Value>, ApiError> {
    tools
        .into_iter()
        .enumerate()
        .map(|(i, tool)| tools::lower_tool(&format!("tools[{i}]"), tool, ignored))
        .collect()
}

/// The format as it is repeated.
fn lower_text(mut text: Map<String, Value>, ignored: &mut Vec<String>) -> Result<Value, ApiError> {
    let format = text.shift_remove("format").filter(|format| !format.is_null());
    match take_string("text", &mut text, "verbosity")?.as_deref() {
        None | Some("medium") => {}
        Some("low" | "high") => ignored.push("text.verbosity".to_owned()),
        Some(_) => return Err(ApiError::invalid("text.verbosity", "expected low, medium or high")),
    }
    if let Some(name) = text.keys().next() {
        return Err(ApiError::unsupported(format!("text.{name}"), "it is unknown here"));
    }
    let format = format.unwrap_or_else(|| json!({ "type": "text" }));
    match format["type"].as_str() {
        Some("json_schema") if format.get("schema").is_none_or(Value::is_null) => {
            Err(ApiError::invalid("text.format.schema", "is missing"))
        }
        Some("text" | "json_object" | "json_schema") => Ok(format),
        Some(kind) => {
            let message = format!("`{kind}` is not known; known are text, json_object, json_schema");
            Err(ApiError::unsupported("text.format.type", message))
        }
        None if format.is_object() => Err(ApiError::invalid("text.format.type", "is missing")),
        None => Err(ApiError::invalid("text.format", "expected an object")),
    }
}

/// As a chat completion has it.
fn lower_format(format: Value) -> Option<Value> {
    match format["type"].as_str() {
        Some("text") => None,
        Some("json_schema") => {
            let mut inside = format.as_object().cloned().unwrap_or_default();
            inside.shift_remove("type");
            Some(json!({ "type": "json_schema", "json_schema": inside }))
        }
        _ => Some(format),
    }
}

/// The effort.
fn lower_reasoning(
    mut reasoning: Map<String, Value>,
    ignored: &mut Vec<String>,
) -> Result<Option<String>, ApiError> {
    const PATH: &str = "reasoning";
    let effort = take_string(PATH, &mut reasoning, "effort")?;
    // There is nobody to summarise: thinking is told as it is.
    for field in ["summary", "generate_summary"] {
        match take_string(PATH, &mut reasoning, field)?.as_deref() {
            None => {}
            Some("auto" | "concise" | "detailed") => ignored.push(format!("{PATH}.{field}")),
            Some(_) => {
                return Err(ApiError::invalid(
                    format!("{PATH}.{field}"),
                    "expected auto, concise or detailed",
                ));
            }
        }
    }
    // Which thinking of earlier turns the model reads is the template's choice.
    match take_string(PATH, &mut reasoning, "context")?.as_deref() {
        None | Some("auto") => {}
        Some(_) => ignored.push("reasoning.context".to_owned()),
    }
    match take_string(PATH, &mut reasoning, "mode")?.as_deref() {
        None | Some("standard") => {}
        Some(_) => return Err(ApiError::unsupported("reasoning.mode", "known is standard")),
    }
    match reasoning.keys().next() {
        Some(name) => Err(ApiError::unsupported(format!("{PATH}.{name}"), "it is unknown here")),
        None => Ok(effort),
    }
}

/// The items that are to be answered, to be kept and to be read.
type Input = (Vec<Arc<Item>>, Vec<Placed>);

fn lower_input(
    input: Option<Value>,
    previous: Option<&str>,
    store: &ResponseStore,
    ignored: &mut Vec<String>,
) -> Result<Input, ApiError> {
    let mut context = match previous {
        Some(id) => conversation_of(&*previous_response(id, store)?),
        None => Vec::new(),
    };
    let place = |item: &Arc<Item>| ("previous_response_id".to_owned(), item.value());
    let mut items: Vec<Placed> = context.iter().map(place).collect();
    let (given, is_text) = match input {
        None if items.is_empty() => return Err(ApiError::invalid("input", "is missing")),
        None => (Vec::new(), false),
        Some(Value::String(text)) => (vec![json!({ "role": "user", "content": text })], true),
        Some(Value::Array(given)) => (given, false),
        Some(_) => return Err(ApiError::invalid("input", "expected a string or a list of items")),
    };
    if given.is_empty() && items.is_empty() {
        return Err(ApiError::invalid("input", "is empty"));
    }
    for (i, item) in given.into_iter().enumerate() {
        let path = if is_text { "input".to_owned() } else { format!("input[{i}]") };
        let (item, value) = match normalize(&path, item, ignored)? {
            Given::New(value) => (Arc::new(to_keep(&value)), value),
            Given::Reference(id) => {
                let item = store.item(&id).ok_or_else(|| {
                    let id: String = id.chars().take(64).collect();
                    ApiError::invalid(format!("{path}.id"), format!("no item `{id}` is kept here"))
                })?;
                let value = item.value();
                (item, value)
            }
        };
        context.push(item);
        items.push((path, value));
    }
    Ok((context, items))
}

fn previous_response(id: &str, store: &ResponseStore) -> Result<Arc<Kept>, ApiError> {
    const PARAM: &str = "previous_response_id";
    let previous = store.get(id).map_err(|error| match error {
        ApiError::ResponseNotFound { message, .. } => ApiError::ResponseNotFound { param: PARAM, message },
        error => error,
    })?;
    if previous.outcome().is_none() {
        return Err(ApiError::invalid(PARAM, "the response has not ended yet"));
    }
    Ok(previous)
}

/// Everything that was said, in order.
fn conversation_of(previous: &Kept) -> Vec<Arc<Item>> {
    let output = previous.outcome().map_or(&[][..], |outcome| &outcome.output);
    previous.context.iter().chain(output).cloned().collect()
}

#[cfg(test)]
#[path = "lower/tests.rs"]
mod tests;
