//! From a conversation to the model's tokens: content in the form that the template takes, control tokens that users typed kept plain
//! text, placeholders of pictures repeated.

use super::parse::{OutputFormat, ReasoningFormat};
use super::picture::Picture;
use super::special::free_noncharacter;
use super::template::{ChatTemplate, ContentFormat, TemplateError};
use super::tokenizer::{Tokenizer, TokenizerError};
use scheduler::{ImageSpan, TokenId};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// One message of a conversation. All of it but `role` is the user's text.
#[derive(Debug, Clone, Default)]
pub struct Message {
    pub role: String,
    /// Empty: the message has no content, as that of an assistant that calls tools.
    pub content: Vec<Part>,
    pub name: Option<String>,
    /// What else the template may read: `tool_calls`, `tool_call_id`, `reasoning_content`.
    pub fields: Map<String, Value>,
}

#[derive(Debug, Clone)]
pub enum Part {
    Text(String),
    Image(Picture),
}

/// How the prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// With what begins an answer.
    #[default]
    Answer,
    /// With the last message, complete.
    Nothing,
    /// In the last message, which the model goes on writing.
    ContinueLast,
}

#[derive(Debug, Clone, Copy)]
pub struct PromptRequest<'a> {
    pub messages: &'a [Message],
    /// The request's `tools`, as they are.
    pub tools: Option<&'a Value>,
    /// `chat_template_kwargs`: variables of the template.
    pub kwargs: &'a Map<String, Value>,
    pub ending: Ending,
}

#[derive(Debug, Clone, Default)]
pub struct Prompt {
    pub tokens: Vec<TokenId>,
    pub images: Vec<ImageSpan>,
    /// What it took to make its pictures ready, waiting for a place to do so included.
    pub vision: Duration,
    /// The prompt ends inside the model's thinking: the answer goes on with it.
    pub opens_thinking: bool,
}

/// A prompt and its text, in which control tokens that users typed look like the real ones; the tokens tell them apart.
#[derive(Debug, Clone)]
pub struct Rendered {
    pub text: String,
    pub prompt: Prompt,
}

/// Said of the field that `param` names.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error("the model has no chat template; give one with --chat-template, or use completions")]
    NoTemplate,
    #[error("is empty")]
    NoMessages,
    #[error("{role:?} is unknown; known are {}", ROLES.join(", "))]
    UnknownRole { index: usize, role: String },
    #[error("has a picture, but the model takes text only")]
    NoVision { index: usize },
    #[error("has a picture, but the model's chat template takes text only")]
    TemplateWithoutImages { index: usize },
    #[error("chat template made {found} places for {images} pictures")]
    Placeholders { found: usize, images: usize },
    #[error("is not for requests to set")]
    ReservedKwarg { key: String },
    #[error("has no text, which continue_final_message needs")]
    NothingToContinue { index: usize },
    #[error("is not shown by the chat template, so it cannot be continued")]
    NotContinued { index: usize },
    #[error("messages use every one of the characters U+FDD0 to U+FDEF, which are not for interchange")]
    Noncharacters,
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl PromptError {
    /// The request's field that is wrong, in the API's words; `None` where it is not one field's fault.
    pub fn param(&self) -> Option<String> {
        match self {
            PromptError::NoMessages | PromptError::Placeholders { .. } | PromptError::Noncharacters => {
                Some("messages".to_string())
            }
            PromptError::UnknownRole { index, .. } => Some(format!("messages[{index}].role")),
            PromptError::NoVision { index }
            | PromptError::TemplateWithoutImages { index }
            | PromptError::NothingToContinue { index }
            | PromptError::NotContinued { index } => Some(format!("messages[{index}].content")),
            PromptError::ReservedKwarg { key } => Some(format!("chat_template_kwargs.{key}")),
            PromptError::Template(_) => Some("messages".to_string()),
            PromptError::NoTemplate | PromptError::Tokenizer(_) => None,
        }
    }
}

pub const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// Template variables that are ours to set.
const RESERVED: [&str; 9] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
];

pub struct PromptBuilder {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    /// The placeholder of a picture, where the model sees pictures.
    image_token: Option<TokenId>,
    output: OutputFormat,
}

impl PromptBuilder {
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        template: Option<ChatTemplate>,
        image_token: Option<TokenId>,
    ) -> Self {
        let output = template.as_ref().map(ChatTemplate::output).unwrap_or_default();
        Self { tokenizer, template, image_token, output }
    }

    /// With what the operator says of the model's output instead of what its template tells.
    pub fn with_output(self, output: OutputFormat) -> Self {
        Self { output, ..self }
    }

    /// How the model writes thinking and calls.
    pub fn output(&self) -> OutputFormat {
        self.output
    }

    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    pub fn build(&self, request: &PromptRequest) -> Result<Prompt, PromptError> {
        self.render_masked(request).map(|(_, _, prompt)| prompt)
    }

    /// The prompt with the text that the template made of it. A picture is one placeholder in the text.
    pub fn render(&self, request: &PromptRequest) -> Result<Rendered, PromptError> {
        let (text, marks, prompt) = self.render_masked(request)?;
        Ok(Rendered { text: text.replace(marks.mask, ""), prompt })
    }

    fn render_masked(&self, request: &PromptRequest) -> Result<(String, Marks, Prompt), PromptError> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        self.check(request, template)?;
        let marks = Marks::choose(request)?;
        let context = self.context(request, template, marks)?;
        let mut text = template.render(&context)?;
        if request.ending == Ending::ContinueLast {
            cut_at(&mut text, marks.cut, request.messages.len() - 1)?;
        }
        let opens_thinking = self.output.reasoning.is_some_and(|format| match request.ending {
            Ending::Answer => opens_thinking(&text, format),
            Ending::ContinueLast => continues_thinking(request.messages, format),
            Ending::Nothing => false,
        });
        let tokens = self.tokenizer.encode_masked(&text, marks.mask)?;
        let images =
            request.messages.iter().flat_map(|message| &message.content).filter_map(|part| match part {
                Part::Image(image) => Some(image),
                Part::Text(_) => None,
            });
        let prompt = self.place_images(tokens, &images.collect::<Vec<_>>())?;
        Ok((text, marks, Prompt { opens_thinking, ..prompt }))
    }

    fn check(&self, request: &PromptRequest, template: &ChatTemplate) -> Result<(), PromptError> {
        if request.messages.is_empty() {
            return Err(PromptError::NoMessages);
        }
        if let Some(key) = request.kwargs.keys().find(|key| RESERVED.contains(&key.as_str())) {
            return Err(PromptError::ReservedKwarg { key: key.clone() });
        }
        for (index, message) in request.messages.iter().enumerate() {
            if !ROLES.contains(&message.role.as_str()) {
                return Err(PromptError::UnknownRole { index, role: message.role.clone() });
            }
            if message.content.iter().any(|part| matches!(part, Part::Image(_))) {
                if self.image_token.is_none() {
                    return Err(PromptError::NoVision { index });
                }
                if template.content_format() == ContentFormat::String {
                    return Err(PromptError::TemplateWithoutImages { index });
                }
            }
        }
        Ok(())
    }

    fn context(
        &self,
        request: &PromptRequest,
        template: &ChatTemplate,
        marks: Marks,
    ) -> Result<Value, PromptError> {
        let mask = |text: &str| self.tokenizer.vocabulary().control.mask(text, marks.mask).into_owned();
        let last = request.messages.len() - 1;
        let mut messages = Vec::with_capacity(request.messages.len());
        for (index, message) in request.messages.iter().enumerate() {
            let mut content = message.content.clone();
            if index == last && request.ending == Ending::ContinueLast {
                let text = content.iter_mut().rev().find_map(|part| match part {
                    Part::Text(text) => Some(text),
                    Part::Image(_) => None,
                });
                let text = text.ok_or(PromptError::NothingToContinue { index })?;
                text.push(marks.cut);
                text.push_str(TRIM_PROBE);
            }
            let mut fields = Map::new();
            fields.insert("role".to_string(), json!(role(&message.role, template)));
            let mut content = content_value(message, &content, template, &mask);
            if let Some(thought) = thought(message).filter(|_| template.takes_thinking_parts()) {
                let said = match content {
                    Value::Array(parts) => parts,
                    Value::String(text) if !text.is_empty() => vec![json!({ "type": "text", "text": text })],
                    _ => Vec::new(),
                };
                let thought = json!({ "type": "thinking", "thinking": mask(thought) });
                content = std::iter::once(thought).chain(said).collect();
            }
            fields.insert("content".to_string(), content);
            fields.extend(message.name.as_ref().map(|name| ("name".to_string(), json!(mask(name)))));
            let of_message = match template.call_form().arguments_are_text {
                true => message.fields.clone(),
                false => with_parsed_arguments(&message.fields),
            };
            for (key, value) in of_message {
                fields.entry(mask(&key)).or_insert_with(|| map_strings(&value, &mask));
            }
            messages.push(Value::Object(fields));
        }
        let mut context = match map_strings(&Value::Object(request.kwargs.clone()), &mask) {
            Value::Object(context) => context,
            _ => Map::new(),
        };
        let names = self.tokenizer.names();
        let special = [
            ("bos_token", &names.bos),
            ("eos_token", &names.eos),
            ("unk_token", &names.unk),
            ("pad_token", &names.pad),
        ];
        context.extend(
            special.into_iter().filter_map(|(key, name)| Some((key.to_string(), json!(name.as_ref()?)))),
        );
        context.insert("messages".to_string(), Value::Array(messages));
        context.insert(
            "tools".to_string(),
            request.tools.map_or(Value::Null, |tools| map_strings(tools, &mask)),
        );
        context.insert("documents".to_string(), Value::Null);
        context.insert("add_generation_prompt".to_string(), json!(request.ending == Ending::Answer));
        Ok(Value::Object(context))
    }

    /// Repeats each placeholder as often as its picture has embedding rows, or puts the picture's own tokens in its place.
    fn place_images(&self, tokens: Vec<TokenId>, images: &[&Picture]) -> Result<Prompt, PromptError> {
        let Some(image_token) = self.image_token else { return Ok(Prompt { tokens, ..Prompt::default() }) };
        let found = tokens.iter().filter(|&&token| token == image_token).count();
        if found != images.len() {
            return Err(PromptError::Placeholders { found, images: images.len() });
        }
        let mut prompt = Prompt::default();
        let mut images = images.iter().peekable();
        for token in tokens {
            match images.next_if(|_| token == image_token) {
                Some(Picture::Rows(image)) => {
                    prompt.images.push(ImageSpan { start: prompt.tokens.len(), image: Arc::clone(image) });
                    prompt.tokens.extend(std::iter::repeat_n(token, image.num_tokens));
                }
                Some(Picture::Tokens(tokens)) => prompt.tokens.extend_from_slice(tokens),
                None => prompt.tokens.push(token),
            }
        }
        Ok(prompt)
    }
}

/// Characters that occur nowhere in the request: one breaks control tokens, one says where the last message ends.
#[derive(Debug, Clone, Copy)]
struct Marks {
    mask: char,
    cut: char,
}

impl Marks {
    fn choose(request: &PromptRequest) -> Result<Self, PromptError> {
        let mut texts = Vec::new();
        for message in request.messages {
            texts.extend(message.name.as_deref());
            texts.extend(message.content.iter().filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                Part::Image(_) => None,
            }));
            message.fields.iter().for_each(|(key, value)| {
                texts.push(key);
                collect_strings(value, &mut texts);
            });
        }
        request.tools.into_iter().for_each(|tools| collect_strings(tools, &mut texts));
        for (key, value) in request.kwargs {
            texts.push(key);
            collect_strings(value, &mut texts);
        }
        let free = |taken| free_noncharacter(texts.iter().copied(), taken).ok_or(PromptError::Noncharacters);
        let mask = free(None)?;
        Ok(Self { mask, cut: free(Some(mask))? })
    }
}

/// What Seed-OSS's template writes after the start marker when there is to be no thinking; the model then says so, and ends it.
const BUDGET_MARK: &str = "<seed:cot_budget_reflect>";

/// Whether a prompt that ends with the beginning of an answer ends inside its thinking.
fn opens_thinking(text: &str, format: ReasoningFormat) -> bool {
    let text = text.trim_end();
    if text.ends_with(format.end) {
        return false;
    }
    let unmarked = text.strip_suffix(BUDGET_MARK).unwrap_or(text);
    format.is_implied || unmarked.ends_with(format.start)
}

/// Whether the message that is to be continued stops inside its thinking.
fn continues_thinking(messages: &[Message], format: ReasoningFormat) -> bool {
    let texts = messages.last().into_iter().flat_map(|message| &message.content);
    let text: String = texts
        .filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Image(_) => None,
        })
        .collect();
    text.trim_start().starts_with(format.start) && !text.contains(format.end)
}

/// Whitespace after the text to be continued, such as no template writes itself: gone where the template trims.
const TRIM_PROBE: &str = "\t \t";

/// Ends the text where the mark is. A template that took the probe after it would have trimmed the text too.
fn cut_at(text: &mut String, mark: char, index: usize) -> Result<(), PromptError> {
    let at = text.rfind(mark).ok_or(PromptError::NotContinued { index })?;
    let trims = !text[at + mark.len_utf8()..].starts_with(TRIM_PROBE);
    text.truncate(at);
    if trims {
        text.truncate(text.trim_end().len());
    }
    Ok(())
}

/// Templates that know no developer mean the system.
fn role<'a>(role: &'a str, template: &ChatTemplate) -> &'a str {
    if role == "developer" && !template.knows_developer() { "system" } else { role }
}

fn content_value(
    message: &Message,
    content: &[Part],
    template: &ChatTemplate,
    mask: &dyn Fn(&str) -> String,
) -> Value {
    if content.is_empty() {
        let is_none = message.fields.contains_key("tool_calls") && template.call_form().content_is_none;
        return if is_none { Value::Null } else { json!("") };
    }
    let part = |part: &Part| match part {
        Part::Text(text) => json!({ "type": "text", "text": mask(text) }),
        Part::Image(_) => json!({ "type": "image" }),
    };
    match (template.content_format(), content) {
        (ContentFormat::Both | ContentFormat::String, [Part::Text(text)]) => json!(mask(text)),
        (ContentFormat::Both | ContentFormat::Parts, content) => content.iter().map(part).collect(),
        (ContentFormat::String, content) => {
            let texts = content.iter().filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                Part::Image(_) => None,
            });
            json!(mask(&texts.collect::<Vec<_>>().join("\n")))
        }
    }
}

/// What an assistant thought before it said or called what the message tells.
fn thought(message: &Message) -> Option<&str> {
    let thought = message.fields.get("reasoning_content").filter(|_| message.role == "assistant")?;
    thought.as_str().filter(|thought| !thought.is_empty())
}

/// The API writes a call's arguments as a string of JSON, most templates expect the object.
fn with_parsed_arguments(fields: &Map<String, Value>) -> Map<String, Value> {
    let mut fields = fields.clone();
    for call in fields.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        if let Some(parsed) = parsed.filter(Value::is_object) {
            *arguments = parsed;
        }
    }
    fields
}

fn map_strings(value: &Value, map: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(map(text)),
        Value::Array(items) => items.iter().map(|item| map_strings(item, map)).collect(),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(key, value)| (map(key), map_strings(value, map))).collect())
        }
        other => other.clone(),
    }
}

fn collect_strings<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => out.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect_strings(item, out)),
        Value::Object(fields) => {
            for (key, value) in fields {
                out.push(key);
                collect_strings(value, out);
            }
        }
        _ => {}
    }
}
