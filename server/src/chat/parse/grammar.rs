//! The language of calls in each format: under its grammar an answer is calls that the format's parser reads, and whose arguments fit
//! their schemas, whatever the weights.

use super::detect::ToolFormat;
use super::signature::{ParameterKind, kind};
use crate::constrain::{GrammarError, GrammarFault, Pattern, schema};
use serde_json::{Map, Value, json};

/// A tool, as a grammar wants it.
#[derive(Debug, Clone)]
pub struct CallRule {
    pub name: String,
    /// Of the arguments.
    pub schema: Value,
    /// The schema's name in the request, for errors.
    pub part: String,
    /// What of the schema cannot be enforced is an error. Otherwise as much of it is enforced as can be.
    pub is_strict: bool,
}

/// Calls within free text.
#[derive(Debug, Clone)]
pub struct TriggeredCalls {
    /// What begins a call.
    pub trigger: &'static str,
    /// One call, from there on.
    pub call: Pattern,
}

/// Most calls in one answer.
const NUM_CALLS_MAX: usize = 64;

/// An answer that is nothing but calls: at least one, and one only where they are not to be parallel.
pub fn forced(format: ToolFormat, rules: &[CallRule], parallel: bool) -> Result<Pattern, GrammarError> {
    let calls = |one: &dyn Fn(&CallRule) -> Result<Pattern, GrammarError>| any(rules, one);
    let max = if parallel { NUM_CALLS_MAX } else { 1 };
    Ok(match format {
        ToolFormat::KimiK2 | ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => {
            let (begin, end) = section(format);
            let separator = if format == ToolFormat::DeepSeekV3 { "\n" } else { "" };
            let call = calls(&|rule| Ok(sequence([text(opener(format)), after_opener(format, rule)?])))?;
            sequence([text(begin), list(call, separator, max), text(end)])
        }
        ToolFormat::Hermes
        | ToolFormat::Qwen3Coder
        | ToolFormat::SeedOss
        | ToolFormat::MiniMaxM2
        | ToolFormat::Glm => {
            let call = calls(&|rule| Ok(sequence([text(opener(format)), after_opener(format, rule)?])))?;
            list(call, "\n", max)
        }
        ToolFormat::Mistral => {
            list(calls(&|rule| Ok(sequence([text(opener(format)), after_opener(format, rule)?])))?, "", max)
        }
        ToolFormat::MistralList => {
            let call = calls(&|rule| json_call(rule, "arguments"))?;
            sequence([text("[TOOL_CALLS] ["), list(call, ", ", max), text("]")])
        }
        ToolFormat::Llama3Json => list(calls(&|rule| json_call(rule, "parameters"))?, "; ", max),
        // Who calls ends the turn, so that there is one call.
        ToolFormat::Harmony => {
            let call = calls(&|rule| Ok(sequence([text(opener(format)), after_opener(format, rule)?])))?;
            sequence([next_message(format), call])
        }
        // What follows the last call is a token that ends the turn.
        ToolFormat::SolarOpen => {
            let call = calls(&|rule| Ok(sequence([text(opener(format)), after_opener(format, rule)?])))?;
            sequence([next_message(format), text("<|tool_calls|>"), list(call, "", max)])
        }
        ToolFormat::Pythonic => sequence([text("["), list(calls(&python_call)?, ", ", max), text("]")]),
    })
}

/// For answers that may call: from the opener on, a call is one of these. `None` where the format has no mark that begins a call, and
/// so nothing to begin a grammar at.
pub fn triggered(format: ToolFormat, rules: &[CallRule]) -> Result<Option<TriggeredCalls>, GrammarError> {
    let call = match format {
        ToolFormat::Llama3Json | ToolFormat::Pythonic => return Ok(None),
        ToolFormat::MistralList => {
            let call = any(rules, &|rule| json_call(rule, "arguments"))?;
            sequence([text(" ["), list(call, ", ", NUM_CALLS_MAX), text("]")])
        }
        _ => any(rules, &|rule| after_opener(format, rule))?,
    };
    Ok(Some(TriggeredCalls { trigger: opener(format), call }))
}

/// For formats without such a mark, in which an answer is calls or is text: text that is none. It does not begin as a call does, and has
/// none of the control tokens in it that would mark one.
pub fn unmarked_text(format: ToolFormat) -> Option<Pattern> {
    let opener = match format {
        ToolFormat::Llama3Json => "{",
        ToolFormat::Pythonic => r"\[",
        _ => return None,
    };
    let first = format!(r"([^{opener}<\s]|<[^|])");
    Some(Pattern::Regex(format!(r"\s*({first}([^<]|<[^|])*<?)?")))
}

fn section(format: ToolFormat) -> (&'static str, &'static str) {
    match format {
        ToolFormat::KimiK2 => ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        _ => ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    }
}

fn opener(format: ToolFormat) -> &'static str {
    match format {
        ToolFormat::KimiK2 => "<|tool_call_begin|>",
        ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => "<｜tool▁call▁begin｜>",
        ToolFormat::Hermes | ToolFormat::Qwen3Coder | ToolFormat::Glm => "<tool_call>",
        ToolFormat::MiniMaxM2 => "<minimax:tool_call>",
        ToolFormat::SeedOss => "<seed:tool_call>",
        ToolFormat::Mistral | ToolFormat::MistralList => "[TOOL_CALLS]",
        ToolFormat::Llama3Json => "{",
        ToolFormat::Pythonic => "[",
        ToolFormat::Harmony => "<|channel|>commentary to=functions.",
        ToolFormat::SolarOpen => "<|tool_call:begin|>",
    }
}

/// Behind thinking another message begins; the prompt ends within the header of the first.
fn next_message(format: ToolFormat) -> Pattern {
    let header = if format == ToolFormat::SolarOpen { "<|begin|>assistant" } else { "<|start|>assistant" };
    Pattern::Any(vec![text(""), text(header)])
}

/// An answer in text of which a grammar is known, as the format has it.
pub fn framed(format: Option<ToolFormat>, answer: Pattern) -> Pattern {
    let (format, frame) = match format {
        Some(format @ ToolFormat::Harmony) => (format, "<|channel|>final<|message|>"),
        Some(format @ ToolFormat::SolarOpen) => (format, "<|content|>"),
        _ => return answer,
    };
    sequence([next_message(format), text(frame), answer])
}

/// What follows the opener of one call, up to its end.
fn after_opener(format: ToolFormat, rule: &CallRule) -> Result<Pattern, GrammarError> {
    let name = &rule.name;
    Ok(match format {
        ToolFormat::KimiK2 => sequence([
            text(&format!("functions.{name}:")),
            Pattern::Regex("0|[1-9][0-9]?".into()),
            text("<|tool_call_argument_begin|>"),
            arguments(rule)?,
            text("<|tool_call_end|>"),
        ]),
        ToolFormat::DeepSeekV3 => sequence([
            text(&format!("function<｜tool▁sep｜>{name}\n```json\n")),
            arguments(rule)?,
            text("\n```<｜tool▁call▁end｜>"),
        ]),
        ToolFormat::DeepSeekV31 => {
            sequence([text(&format!("{name}<｜tool▁sep｜>")), arguments(rule)?, text("<｜tool▁call▁end｜>")])
        }
        ToolFormat::Hermes => sequence([text("\n"), json_call(rule, "arguments")?, text("\n</tool_call>")]),
        ToolFormat::Qwen3Coder => xml_call(rule, &QWEN3_CODER_TEXT)?,
        ToolFormat::SeedOss => xml_call(rule, &SEED_OSS_TEXT)?,
        ToolFormat::MiniMaxM2 => xml_call(rule, &MINIMAX_M2_TEXT)?,
        ToolFormat::Glm => xml_call(rule, &GLM_TEXT)?,
        ToolFormat::Mistral => sequence([text(&format!("{name}[ARGS]")), arguments(rule)?]),
        ToolFormat::Harmony => {
            sequence([text(&format!("{name} <|constrain|>json<|message|>")), arguments(rule)?])
        }
        ToolFormat::SolarOpen => sequence([
            Pattern::Regex("[a-z0-9]{10}".into()),
            text(&format!("<|tool_call:name|>{name}<|tool_call:args|>")),
            arguments(rule)?,
            text("<|tool_call:end|>"),
        ]),
        ToolFormat::MistralList | ToolFormat::Llama3Json | ToolFormat::Pythonic => {
            unreachable!("their calls have no opener of their own")
        }
    })
}

fn json_call(rule: &CallRule, key: &str) -> Result<Pattern, GrammarError> {
    let open = format!("{{\"name\": \"{}\", \"{key}\": ", rule.name);
    Ok(sequence([text(&open), arguments(rule)?, text("}")]))
}

/// The arguments as one JSON object.
fn arguments(rule: &CallRule) -> Result<Pattern, GrammarError> {
    let schema = object_schema(&rule.schema);
    match schema::lower(&schema, &schema::SchemaLimits::default()) {
        Ok(_) => Ok(Pattern::Json { schema, part: rule.part.clone() }),
        Err(error) if rule.is_strict => Err(error.in_part(&rule.part)),
        Err(_) => Ok(Pattern::Json { schema: json!({"type": "object"}), part: rule.part.clone() }),
    }
}

/// Arguments are an object, whether the schema says so or not; no schema is no arguments.
fn object_schema(schema: &Value) -> Value {
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    if schema.is_empty() {
        return json!({"type": "object", "properties": {}, "additionalProperties": false});
    }
    schema.entry("type").or_insert_with(|| "object".into());
    Value::Object(schema)
}

/// One argument, where a format writes them one by one.
struct Parameter {
    name: String,
    schema: Value,
    is_required: bool,
}

/// Keywords of an object that say more than which arguments there are. Where arguments are written one by one, they are not enforced.
const BEYOND_PROPERTIES: [&str; 16] = [
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "enum",
    "const",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependentRequired",
    "dependentSchemas",
];

fn parameters(rule: &CallRule) -> Result<Vec<Parameter>, GrammarError> {
    let none = Map::new();
    let schema = rule.schema.as_object().unwrap_or(&none);
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .map_or_else(Vec::new, |names| names.iter().filter_map(Value::as_str).collect());
    if rule.is_strict {
        if let Some(keyword) = BEYOND_PROPERTIES.iter().find(|keyword| schema.contains_key(**keyword)) {
            return Err(beyond(rule, &format!("`{keyword}` beside the properties")));
        }
        if let Some(name) = required.iter().find(|name| !properties.contains_key(**name)) {
            return Err(beyond(rule, &format!("the required property `{name}`, which has no schema")));
        }
    }
    let definitions: Vec<(&str, &Value)> =
        ["$defs", "definitions"].into_iter().filter_map(|key| Some((key, schema.get(key)?))).collect();
    let parameter = |(name, schema): (&'_ String, &Value)| -> Result<Value, GrammarError> {
        let mut schema = match schema {
            Value::Object(schema) => schema.clone(),
            _ => Map::new(),
        };
        for (key, definition) in &definitions {
            schema.entry(*key).or_insert_with(|| (*definition).clone());
        }
        let schema = Value::Object(schema);
        match schema::lower(&schema, &schema::SchemaLimits::default()) {
            Ok(_) => Ok(schema),
            Err(error) if rule.is_strict => Err(error.in_part(&format!("{}.properties.{name}", rule.part))),
            Err(_) => Ok(Value::Object(Map::new())),
        }
    };
    let mut found = Vec::with_capacity(properties.len());
    for (name, schema) in properties {
        found.push(Parameter {
            name: name.clone(),
            schema: parameter((name, schema))?,
            is_required: required.contains(&name.as_str()),
        });
    }
    Ok(found)
}

fn beyond(rule: &CallRule, what: &str) -> GrammarError {
    let message =
        format!("{what} cannot be enforced in this model's format of calls, which has arguments one by one");
    GrammarError::new(GrammarFault::Unsupported, message).in_part(&rule.part)
}

/// How calls are written that have their arguments one by one, between what begins and what ends a call.
struct XmlText {
    /// Around the function's name.
    name: [&'static str; 2],
    /// Around a parameter's name, and after its value.
    parameter: [&'static str; 3],
    end: &'static str,
}

const QWEN3_CODER_TEXT: XmlText = XmlText {
    name: ["\n<function=", ">\n"],
    parameter: ["<parameter=", ">\n", "\n</parameter>\n"],
    end: "</function>\n</tool_call>",
};
const SEED_OSS_TEXT: XmlText = XmlText { end: "</function>\n</seed:tool_call>", ..QWEN3_CODER_TEXT };
const MINIMAX_M2_TEXT: XmlText = XmlText {
    name: ["\n<invoke name=\"", "\">\n"],
    parameter: ["<parameter name=\"", "\">", "</parameter>\n"],
    end: "</invoke>\n</minimax:tool_call>",
};
const GLM_TEXT: XmlText = XmlText {
    name: ["", "\n"],
    parameter: ["<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"],
    end: "</tool_call>",
};

fn xml_call(rule: &CallRule, xml: &XmlText) -> Result<Pattern, GrammarError> {
    let mut parts = vec![text(&format!("{}{}{}", xml.name[0], rule.name, xml.name[1]))];
    for parameter in parameters(rule)? {
        let [before, after, end] = xml.parameter;
        if parameter.name.contains(['>', '\n']) || parameter.name.contains(&after[..1]) {
            return Err(beyond(rule, &format!("the name `{}`", parameter.name)));
        }
        let one = sequence([
            text(&format!("{before}{}{after}", parameter.name)),
            xml_value(rule, &parameter)?,
            text(end),
        ]);
        let min = usize::from(parameter.is_required);
        parts.push(Pattern::Repeat { pattern: Box::new(one), min, max: Some(1) });
    }
    parts.push(text(xml.end));
    Ok(Pattern::Sequence(parts))
}

/// Any text in which no tag ends the value. `<` may stand before anything but a slash or another `<`.
const XML_TEXT: &str = r"([^<]|<[^/<])*";

fn xml_value(rule: &CallRule, parameter: &Parameter) -> Result<Pattern, GrammarError> {
    let Parameter { name, schema, .. } = parameter;
    let choices = match (&schema["enum"], &schema["const"]) {
        (Value::Array(values), _) => Some(values.as_slice()),
        (_, Value::Null) => None,
        (_, value) => Some(std::slice::from_ref(value)),
    };
    let kind = kind(schema);
    if kind == ParameterKind::Json {
        // Inside JSON a tag would end the value all the same.
        return Ok(Pattern::Json {
            schema: schema.clone(),
            part: format!("{}.properties.{name}", rule.part),
        });
    }
    if let Some(choices) = choices {
        let texts = choices.iter().map(|choice| text(choice.as_str().unwrap_or("null")));
        return Ok(Pattern::Any(texts.collect()));
    }
    let keyword =
        ["pattern", "format", "minLength", "maxLength"].into_iter().find(|key| !schema[key].is_null());
    match keyword.filter(|_| rule.is_strict) {
        Some(keyword) => Err(beyond(rule, &format!("`{keyword}` of `{name}`"))),
        None => Ok(Pattern::Regex(XML_TEXT.into())),
    }
}

/// Values are JSON, whose words for true, false and null the parser takes beside Python's.
fn python_call(rule: &CallRule) -> Result<Pattern, GrammarError> {
    let parameters = parameters(rule)?;
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    if let Some(odd) = parameters.iter().find(|parameter| !is_name(&parameter.name)) {
        return Err(beyond(rule, &format!("the name `{}`", odd.name)));
    }
    let keyword = |parameter: &Parameter| {
        let part = format!("{}.properties.{}", rule.part, parameter.name);
        sequence([
            text(&format!("{}=", parameter.name)),
            Pattern::Json { schema: parameter.schema.clone(), part },
        ])
    };
    let (required, optional): (Vec<_>, Vec<_>) =
        parameters.iter().partition(|parameter| parameter.is_required);
    let rest = |from: usize| {
        optional[from..].iter().map(|parameter| {
            let one = sequence([text(", "), keyword(parameter)]);
            Pattern::Repeat { pattern: Box::new(one), min: 0, max: Some(1) }
        })
    };
    let mut inside = Vec::new();
    for (i, parameter) in required.iter().enumerate() {
        inside.extend((i > 0).then(|| text(", ")));
        inside.push(keyword(parameter));
    }
    if required.is_empty() {
        // Whichever comes first has no comma before it.
        let mut ways = vec![text("")];
        for (i, first) in optional.iter().enumerate() {
            ways.push(Pattern::Sequence(std::iter::once(keyword(first)).chain(rest(i + 1)).collect()));
        }
        inside.push(Pattern::Any(ways));
    } else {
        inside.extend(rest(0));
    }
    Ok(sequence([text(&format!("{}(", rule.name)), Pattern::Sequence(inside), text(")")]))
}

fn any(
    rules: &[CallRule],
    one: &dyn Fn(&CallRule) -> Result<Pattern, GrammarError>,
) -> Result<Pattern, GrammarError> {
    Ok(Pattern::Any(rules.iter().map(one).collect::<Result<_, _>>()?))
}

/// One, or several with a separator between them.
fn list(one: Pattern, separator: &str, max: usize) -> Pattern {
    if max == 1 {
        return one;
    }
    let more = sequence([text(separator), one.clone()]);
    sequence([one, Pattern::Repeat { pattern: Box::new(more), min: 0, max: Some(max - 1) }])
}

fn text(text: &str) -> Pattern {
    Pattern::Text(text.to_owned())
}

fn sequence<const N: usize>(parts: [Pattern; N]) -> Pattern {
    Pattern::Sequence(parts.into())
}
