//! The fields that hold an answer to something, in all the spellings that clients know: OpenAI's `response_format`, vLLM's
//! `structured_outputs` and the `guided_*` before it, llama-server's `grammar` and `json_schema`, SGLang's `regex`. At most one of them
//! may be given.

use crate::constrain::{GrammarError, GrammarFault, GrammarSource, Whitespace};
use crate::error::ApiError;
use scheduler::TokenId;
use serde_json::{Map, Value};

/// As they came.
#[derive(Debug, Default)]
pub struct StructuredFields {
    pub response_format: Option<Value>,
    pub structured_outputs: Option<Map<String, Value>>,
    pub guided_json: Option<Value>,
    pub guided_regex: Option<String>,
    pub guided_choice: Option<Vec<String>>,
    pub guided_grammar: Option<String>,
    pub json_schema: Option<Value>,
    pub grammar: Option<String>,
    pub regex: Option<String>,
    pub bad_words: Option<Vec<String>>,
    pub allowed_token_ids: Option<Vec<TokenId>>,
    pub thinking_token_budget: Option<usize>,
    pub reasoning_budget_tokens: Option<i64>,
}

/// What a request holds its answer to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConstraintRequest {
    pub grammar: Option<GrammarRequest>,
    pub thinking_budget: Option<ThinkingBudget>,
    pub bad_words: Vec<String>,
    pub allowed_token_ids: Option<Vec<TokenId>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct GrammarRequest {
    pub source: GrammarSource,
    /// The field that errors name.
    pub param: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinkingBudget {
    pub tokens: usize,
    pub param: &'static str,
}

const NUM_BAD_WORDS_MAX: usize = 1024;
const BAD_WORD_LEN_MAX: usize = 256;

impl StructuredFields {
    /// `vocab_size`: token ids have to be below.
    pub fn lower(self, vocab_size: usize) -> Result<ConstraintRequest, ApiError> {
        let StructuredFields {
            response_format,
            structured_outputs,
            guided_json,
            guided_regex,
            guided_choice,
            guided_grammar,
            json_schema,
            grammar,
            regex,
            bad_words,
            allowed_token_ids,
            thinking_token_budget,
            reasoning_budget_tokens,
        } = self;
        let mut found = Found::default();
        if let Some(format) = response_format {
            found.add("response_format", lower_response_format(format)?)?;
        }
        if let Some(outputs) = structured_outputs {
            found.add("structured_outputs", Some(lower_structured_outputs(outputs)?))?;
        }
        for (name, schema) in [("guided_json", guided_json), ("json_schema", json_schema)] {
            if let Some(schema) = schema {
                found.add(name, Some(request(name, lower_schema(name, schema)?)))?;
            }
        }
        for (name, text) in [("guided_regex", guided_regex), ("regex", regex)] {
            found.add(name, text.map(|text| request(name, GrammarSource::Regex(text))))?;
        }
        found.add(
            "guided_choice",
            guided_choice.map(|c| request("guided_choice", GrammarSource::Choice(c))),
        )?;
        for (name, text) in [("guided_grammar", guided_grammar), ("grammar", grammar)] {
            // llama-server's clients send an empty grammar for none.
            let text = text.filter(|text| !text.is_empty());
            found.add(name, text.map(|text| request(name, GrammarSource::Lark(text))))?;
        }
        let bad_words = check_bad_words(bad_words.unwrap_or_default())?;
        let allowed_token_ids = allowed_token_ids.map(|ids| check_allowed(ids, vocab_size)).transpose()?;
        if let Some(first) = found.name {
            for (name, is_given) in
                [("bad_words", !bad_words.is_empty()), ("allowed_token_ids", allowed_token_ids.is_some())]
            {
                if is_given {
                    return Err(ApiError::invalid(name, format!("cannot be combined with `{first}`")));
                }
            }
        }
        Ok(ConstraintRequest {
            grammar: found.request,
            thinking_budget: lower_budget(thinking_token_budget, reasoning_budget_tokens)?,
            bad_words,
            allowed_token_ids,
        })
    }
}

/// The one constraint of a request, and by which field it came.
#[derive(Default)]
struct Found {
    name: Option<&'static str>,
    request: Option<GrammarRequest>,
}

impl Found {
    fn add(&mut self, name: &'static str, request: Option<GrammarRequest>) -> Result<(), ApiError> {
        let Some(request) = request else { return Ok(()) };
        if let Some(first) = self.name {
            let message = format!("cannot be combined with `{first}`: one constraint holds an answer");
            return Err(ApiError::invalid(name, message));
        }
        self.name = Some(name);
        self.request = Some(request);
        Ok(())
    }
}

fn request(param: &str, source: GrammarSource) -> GrammarRequest {
    GrammarRequest { source, param: param.to_owned() }
}

fn lower_response_format(format: Value) -> Result<Option<GrammarRequest>, ApiError> {
    const FIELD: &str = "response_format";
    let Value::Object(mut format) = format else {
        return Err(ApiError::invalid(FIELD, "is not an object"));
    };
    let kind = format.shift_remove("type");
    let kind = kind.as_ref().and_then(Value::as_str);
    let kind = kind.ok_or_else(|| ApiError::invalid("response_format.type", "is missing or not a string"))?;
    let lowered = match kind {
        "text" => None,
        // With a schema beside it, llama-server's way.
        "json_object" => Some(match format.shift_remove("schema").filter(|schema| !schema.is_null()) {
            None => request(FIELD, GrammarSource::json_object()),
            Some(schema) => {
                let field = "response_format.schema";
                request(field, lower_schema(field, schema)?)
            }
        }),
        "json_schema" => Some(lower_named_schema(&mut format)?),
        _ => {
            let message = format!("`{kind}` is not `text`, `json_object` or `json_schema`");
            return Err(ApiError::unsupported("response_format.type", message));
        }
    };
    nothing_left(FIELD, &format)?;
    Ok(lowered)
}

fn lower_named_schema(format: &mut Map<String, Value>) -> Result<GrammarRequest, ApiError> {
    let named = match format.shift_remove("json_schema") {
        Some(Value::Object(named)) => Some(named),
        Some(_) => return Err(ApiError::invalid("response_format.json_schema", "is not an object")),
        None => None,
    };
    // llama-server takes the schema here, without a name.
    let Some(mut named) = named else {
        let field = "response_format.schema";
        let schema = format.shift_remove("schema");
        let schema = schema.ok_or_else(|| ApiError::invalid("response_format.json_schema", "is missing"))?;
        return Ok(request(field, lower_schema(field, schema)?));
    };
    let field = "response_format.json_schema";
    if is_bare_schema(&named) {
        return Ok(request(field, lower_schema(field, Value::Object(named))?));
    }
    for (name, is_right) in
        [("name", Value::is_string as fn(&Value) -> bool), ("description", Value::is_string)]
    {
        match named.shift_remove(name) {
            Some(value) if !value.is_null() && !is_right(&value) => {
                return Err(ApiError::invalid(format!("{field}.{name}"), "is not a string"));
            }
            _ => {}
        }
    }
    // Strict or not, the schema is enforced.
    if named.shift_remove("strict").is_some_and(|strict| !strict.is_null() && !strict.is_boolean()) {
        return Err(ApiError::invalid(format!("{field}.strict"), "is not a boolean"));
    }
    let schema = named.shift_remove("schema").filter(|schema| !schema.is_null());
    nothing_left(field, &named)?;
    let schema_field = format!("{field}.schema");
    match schema {
        // As in OpenAI's API, where only the name is required.
        None => Ok(request(field, GrammarSource::json_object())),
        Some(schema) => Ok(request(&schema_field, lower_schema(&schema_field, schema)?)),
    }
}

/// A schema that stands where its envelope belongs, as some clients send what their user wrote.
fn is_bare_schema(named: &Map<String, Value>) -> bool {
    const ENVELOPE: [&str; 4] = ["name", "description", "strict", "schema"];
    !named.contains_key("name")
        && !named.contains_key("schema")
        && named.keys().any(|key| !ENVELOPE.contains(&key.as_str()))
}

fn lower_structured_outputs(mut outputs: Map<String, Value>) -> Result<GrammarRequest, ApiError> {
    const FIELD: &str = "structured_outputs";
    outputs.retain(|_, value| !value.is_null());
    let at = |name: &str| format!("{FIELD}.{name}");
    let whitespace = match outputs.shift_remove("disable_any_whitespace") {
        None | Some(Value::Bool(false)) => Whitespace::Some,
        Some(Value::Bool(true)) => Whitespace::None,
        Some(_) => return Err(ApiError::invalid(at("disable_any_whitespace"), "is not a boolean")),
    };
    // There is one engine and nothing to fall back to.
    outputs.shift_remove("disable_fallback");
    outputs.retain(|name, value| !(name == "disable_additional_properties" && *value == Value::Bool(false)));
    let text = |name: &str, value: Value| match value {
        Value::String(text) => Ok(text),
        _ => Err(ApiError::invalid(at(name), "is not a string")),
    };
    let mut found: Option<(&str, GrammarSource)> = None;
    for name in ["json", "regex", "choice", "grammar", "json_object"] {
        let Some(value) = outputs.shift_remove(name) else { continue };
        let source = match name {
            "json" => lower_schema(&at(name), value)?,
            "regex" => GrammarSource::Regex(text(name, value)?),
            "choice" => GrammarSource::Choice(
                serde_json::from_value(value)
                    .map_err(|_| ApiError::invalid(at(name), "is not a list of strings"))?,
            ),
            "grammar" => GrammarSource::Lark(text(name, value)?),
            _ if value == Value::Bool(true) => GrammarSource::json_object(),
            _ if value == Value::Bool(false) => continue,
            _ => return Err(ApiError::invalid(at(name), "is not a boolean")),
        };
        if let Some((first, _)) = found {
            let message =
                format!("cannot be combined with `{FIELD}.{first}`: one constraint holds an answer");
            return Err(ApiError::invalid(at(name), message));
        }
        found = Some((name, source));
    }
    nothing_left(FIELD, &outputs)?;
    let Some((name, source)) = found else {
        return Err(ApiError::invalid(FIELD, "names none of json, regex, choice, grammar, json_object"));
    };
    let source = match source {
        GrammarSource::Schema { schema, .. } => GrammarSource::Schema { schema, whitespace },
        source if whitespace == Whitespace::None => {
            let message = format!("says nothing of `{FIELD}.{name}`");
            drop(source);
            return Err(ApiError::invalid(at("disable_any_whitespace"), message));
        }
        source => source,
    };
    Ok(request(&at(name), source))
}

/// A schema, or its JSON text.
fn lower_schema(field: &str, schema: Value) -> Result<GrammarSource, ApiError> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::invalid(field, format!("is a string that is not JSON: {error}")))?,
        schema => schema,
    };
    if !schema.is_object() && !schema.is_boolean() {
        return Err(ApiError::invalid(field, "is not a JSON schema: neither an object nor a boolean"));
    }
    Ok(GrammarSource::Schema { schema, whitespace: Whitespace::Some })
}

/// What is left of an object that constrains the answer was meant to do something.
fn nothing_left(field: &str, rest: &Map<String, Value>) -> Result<(), ApiError> {
    match rest.iter().find(|(_, value)| !value.is_null()) {
        None => Ok(()),
        Some((name, _)) => Err(ApiError::unsupported(format!("{field}.{name}"), "it is not known here")),
    }
}

fn lower_budget(vllm: Option<usize>, llama: Option<i64>) -> Result<Option<ThinkingBudget>, ApiError> {
    const LLAMA: &str = "reasoning_budget_tokens";
    if vllm.is_some() && llama.is_some() {
        return Err(ApiError::invalid(LLAMA, "cannot be combined with `thinking_token_budget`"));
    }
    if let Some(tokens) = vllm {
        return Ok(Some(ThinkingBudget { tokens, param: "thinking_token_budget" }));
    }
    match llama {
        None | Some(-1) => Ok(None),
        Some(tokens) => match usize::try_from(tokens) {
            Ok(tokens) => Ok(Some(ThinkingBudget { tokens, param: LLAMA })),
            Err(_) => Err(ApiError::invalid(LLAMA, format!("{tokens} is below -1"))),
        },
    }
}

fn check_bad_words(words: Vec<String>) -> Result<Vec<String>, ApiError> {
    if words.len() > NUM_BAD_WORDS_MAX {
        return Err(ApiError::invalid(
            "bad_words",
            format!("{} words are above {NUM_BAD_WORDS_MAX}", words.len()),
        ));
    }
    match words.iter().position(|word| word.trim_start().is_empty() || word.len() > BAD_WORD_LEN_MAX) {
        None => Ok(words),
        Some(i) => Err(ApiError::invalid(
            format!("bad_words[{i}]"),
            format!("is blank or longer than {BAD_WORD_LEN_MAX} bytes"),
        )),
    }
}

fn check_allowed(ids: Vec<TokenId>, vocab_size: usize) -> Result<Vec<TokenId>, ApiError> {
    if ids.is_empty() {
        return Err(ApiError::invalid("allowed_token_ids", "is empty"));
    }
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        None => Ok(ids),
        Some(id) => Err(ApiError::invalid(
            "allowed_token_ids",
            format!("token {id} is not below the vocabulary size {vocab_size}"),
        )),
    }
}

/// In the words of the API. `param` is the field that the grammar came by.
pub fn grammar_error(error: GrammarError, param: &str) -> ApiError {
    let message = error.to_string();
    let param = error.part.as_deref().unwrap_or(param);
    match error.fault {
        GrammarFault::Invalid | GrammarFault::TooComplex => ApiError::invalid(param, message),
        GrammarFault::Unsupported => ApiError::unsupported(param, message),
        GrammarFault::Busy => ApiError::QueueFull { waiting: 0 },
        GrammarFault::Internal => {
            tracing::error!(param, error = message, "failed to compile a grammar");
            ApiError::Internal
        }
    }
}
