//! Chat templates: where a checkpoint keeps its own, the built-in ones for checkpoints without, and rendering.

mod probe;

use super::jinja::{Raised, environment, with_line_feeds, without_generation_tags};
use super::parse::OutputFormat;
use super::tokenizer::TOKENIZER_CONFIG;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use models::{FileError, ModelFiles};
use std::collections::HashSet;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error(transparent)]
    Read(#[from] FileError),
    #[error("failed to load chat template {origin}: {message}")]
    Invalid { origin: String, message: String },
    #[error("no chat template file or built-in template {name:?}; built in are {}", BUILT_IN.map(|(name, _)| name).join(", "))]
    Unknown { name: String },
    /// The template's own words.
    #[error("chat template refuses the conversation: {0}")]
    Raised(String),
    #[error("chat template takes too long for this conversation")]
    OutOfFuel,
    #[error("failed to render chat template: {0}")]
    Render(String),
}

/// In which form the template takes a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentFormat {
    /// A string only.
    String,
    /// A list of parts only.
    Parts,
    Both,
}

/// In which form the template takes calls that an assistant made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallForm {
    /// By `none` it tells that an assistant only calls tools; an empty text would hide the calls.
    pub content_is_none: bool,
    /// Their arguments as text of JSON; else the object.
    pub arguments_are_text: bool,
}

pub struct ChatTemplate {
    env: Environment<'static>,
    format: ContentFormat,
    /// A second template for requests with tools.
    has_tool_template: bool,
    knows_developer: bool,
    output: OutputFormat,
    /// What the templates read that a request may set, such as `enable_thinking`.
    variables: HashSet<String>,
    shows_tools: bool,
    calls: CallForm,
    takes_thinking_parts: bool,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
const CHAMELEON: &str = "chameleon";

impl ChatTemplate {
    /// The checkpoint's own: chat_template.jinja, chat_template.json, tokenizer_config.json, the first that is there. Chameleon was published
    /// without one, and its processor has a convention in code: it gets the built-in template.
    pub fn load(files: &ModelFiles) -> Result<Option<Self>, TemplateError> {
        const JINJA: &str = "chat_template.jinja";
        if let Some(content) = files.read(JINJA)? {
            let origin = files.describe(JINJA);
            let source = String::from_utf8(content).map_err(|_| TemplateError::Invalid {
                origin: origin.clone(),
                message: "is not UTF-8".to_string(),
            })?;
            return Self::parse(&[(DEFAULT, &source)], &origin).map(Some);
        }
        for name in ["chat_template.json", TOKENIZER_CONFIG] {
            let Some(content) = files.read(name)? else { continue };
            let origin = files.describe(name);
            let invalid = |message: String| TemplateError::Invalid { origin: origin.clone(), message };
            let config: serde_json::Value =
                serde_json::from_slice(&content).map_err(|error| invalid(error.to_string()))?;
            match &config["chat_template"] {
                serde_json::Value::Null => {}
                serde_json::Value::String(source) => {
                    return Self::parse(&[(DEFAULT, source)], &origin).map(Some);
                }
                serde_json::Value::Array(named) => {
                    let named: Option<Vec<(&str, &str)>> = named
                        .iter()
                        .map(|one| Some((one["name"].as_str()?, one["template"].as_str()?)))
                        .collect();
                    let named = named.ok_or_else(|| {
                        invalid("chat_template is a list of other things than templates".into())
                    })?;
                    return Self::parse(&named, &origin).map(Some);
                }
                _ => return Err(invalid("chat_template is neither a string nor a list".to_string())),
            }
        }
        match is_chameleon(files)? {
            true => Self::named(CHAMELEON).map(Some),
            false => Ok(None),
        }
    }

    /// What `--chat-template` names: a built-in template or a file.
    pub fn named(name: &str) -> Result<Self, TemplateError> {
        if let Some((_, source)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Self::parse(&[(DEFAULT, source)], name);
        }
        match std::fs::read_to_string(Path::new(name)) {
            Ok(source) => Self::parse(&[(DEFAULT, &source)], name),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(TemplateError::Unknown { name: name.to_string() })
            }
            Err(reason) => Err(FileError { path: name.to_string(), reason }.into()),
        }
    }

    /// The template's text: of several, the one for requests without tools.
    pub fn source(&self) -> Option<String> {
        self.env.get_template(DEFAULT).ok().map(|template| template.source().to_string())
    }

    /// One template, for tests and tools.
    pub fn from_source(source: &str) -> Result<Self, TemplateError> {
        Self::parse(&[(DEFAULT, source)], "chat template")
    }

    fn parse(named: &[(&str, &str)], origin: &str) -> Result<Self, TemplateError> {
        let invalid = |message: String| TemplateError::Invalid { origin: origin.to_string(), message };
        let mut env = environment().map_err(|error| invalid(error.to_string()))?;
        if !named.iter().any(|(name, _)| *name == DEFAULT) {
            return Err(invalid("has no template named default".to_string()));
        }
        for (name, source) in named {
            env.add_template_owned(name.to_string(), without_generation_tags(&with_line_feeds(source)))
                .map_err(|error| invalid(format!("{error:#}")))?;
        }
        let has_tool_template = named.iter().any(|(name, _)| *name == TOOL_USE);
        let knows_developer = named.iter().any(|(_, source)| source.contains("developer"));
        let sources: String = named.iter().map(|(_, source)| *source).collect();
        let variables = named
            .iter()
            .filter_map(|(name, _)| env.get_template(name).ok())
            .flat_map(|template| {
                let mut variables = template.undeclared_variables(false);
                variables.extend(own_defaults(&env, template.source()));
                variables
            })
            .collect();
        let mut template = Self {
            env,
            format: ContentFormat::String,
            has_tool_template,
            knows_developer,
            output: OutputFormat::detect(&sources),
            variables,
            shows_tools: false,
            calls: CallForm::default(),
            takes_thinking_parts: false,
        };
        template.format = probe::content_format(&template);
        template.shows_tools = probe::shows_tools(&template);
        template.calls = probe::call_form(&template);
        template.takes_thinking_parts = probe::takes_thinking_parts(&template);
        Ok(template)
    }

    /// How models with this template write thinking and calls.
    pub fn output(&self) -> OutputFormat {
        self.output
    }

    /// Whether the model gets to read the tools of a request.
    pub fn shows_tools(&self) -> bool {
        self.shows_tools
    }

    /// Whether the template asks for a variable of this name.
    pub fn reads(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    pub fn content_format(&self) -> ContentFormat {
        self.format
    }

    pub fn call_form(&self) -> CallForm {
        self.calls
    }

    /// Whether an earlier answer's thinking belongs among the parts of its content.
    pub fn takes_thinking_parts(&self) -> bool {
        self.takes_thinking_parts
    }

    /// Whether the template has its own word for the role `developer`; if not, it is `system` by another name.
    pub fn knows_developer(&self) -> bool {
        self.knows_developer
    }

    /// `context` is the object of the template's variables.
    pub fn render(&self, context: &serde_json::Value) -> Result<String, TemplateError> {
        let with_tools =
            self.has_tool_template && context["tools"].as_array().is_some_and(|tools| !tools.is_empty());
        let name = if with_tools { TOOL_USE } else { DEFAULT };
        let template =
            self.env.get_template(name).map_err(|error| TemplateError::Render(error.to_string()))?;
        template.render(Value::from(Serde(context))).map_err(render_error)
    }
}

/// Variables that a template gives a default under their own name, `{% set x = x if x is defined else 1 %}`: minijinja takes them for the
/// template's, from the beginning of the statement on. The first statement that sets one decides.
fn own_defaults(env: &Environment, source: &str) -> HashSet<String> {
    let mut set = HashSet::new();
    let mut found = HashSet::new();
    for statement in source.split("{%").skip(1) {
        let statement = statement.split("%}").next().unwrap_or(statement).trim_matches(['-', '+']);
        let assignment = statement.trim_start().strip_prefix("set").and_then(|rest| rest.split_once('='));
        let Some((name, value)) = assignment.map(|(name, value)| (name.trim(), value)) else { continue };
        let is_first = set.insert(name);
        if is_first
            && env
                .compile_expression(value)
                .is_ok_and(|value| value.undeclared_variables(false).contains(name))
        {
            found.insert(name.to_owned());
        }
    }
    found
}

/// Whether config.json is Chameleon's. What is wrong with the file is told by who loads the model.
fn is_chameleon(files: &ModelFiles) -> Result<bool, FileError> {
    let config = files
        .read("config.json")?
        .and_then(|content| serde_json::from_slice::<serde_json::Value>(&content).ok());
    Ok(config.is_some_and(|config| config["model_type"] == CHAMELEON))
}

fn render_error(error: minijinja::Error) -> TemplateError {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(one) = cause {
        if let Some(Raised(message)) = one.downcast_ref() {
            return TemplateError::Raised(message.clone());
        }
        if one.downcast_ref::<minijinja::Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::OutOfFuel;
        }
        cause = one.source();
    }
    TemplateError::Render(error.to_string())
}

/// For checkpoints that come without a template. `alpaca` is the text of the Stanford Alpaca training data; the others are the public
/// conventions of their model families.
const BUILT_IN: [(&str, &str); 5] = [
    ("alpaca", include_str!("templates/alpaca.jinja")),
    (CHAMELEON, include_str!("templates/chameleon.jinja")),
    ("chatml", include_str!("templates/chatml.jinja")),
    ("kimi", include_str!("templates/kimi.jinja")),
    ("llama-2", include_str!("templates/llama-2.jinja")),
];

#[cfg(test)]
mod tests;
