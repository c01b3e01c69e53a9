//! The tools of a request, whatever the dialect: what the model may call, what it must, and what its template shows of them.

use crate::chat::parse::grammar::{self, CallRule, TriggeredCalls};
use crate::chat::parse::{ToolFormat, ToolSignature};
use crate::constrain::{GrammarError, Pattern};
use crate::error::ApiError;
use crate::openai::structured::grammar_error;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A function as the model is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    pub name: String,
    /// A JSON schema; an empty object where the function takes nothing.
    pub parameters: Value,
    /// Calls have to fit the schema.
    pub strict: bool,
    /// The function's place in the request, for errors.
    pub path: String,
    /// All of the request's object, which is what templates show.
    pub shown: Map<String, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// At least one call.
    Required,
    /// A call of this function, by its index.
    Named(usize),
}

/// Tools that may be called. Where none may, there is no such value: the model is not told of tools that it must not call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolUse {
    functions: Vec<Function>,
    pub choice: ToolChoice,
    /// More than one call in an answer.
    pub parallel: bool,
}

impl ToolUse {
    pub fn new(functions: Vec<Function>, choice: ToolChoice, parallel: bool) -> Self {
        assert!(!functions.is_empty(), "a request without tools has no use of them");
        if let ToolChoice::Named(index) = choice {
            assert!(index < functions.len(), "a named tool is one of them");
        }
        Self { functions, choice, parallel }
    }

    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Those that an answer can call: all, or the one that is named.
    pub fn callable(&self) -> &[Function] {
        match self.choice {
            ToolChoice::Named(index) => &self.functions[index..=index],
            ToolChoice::Auto | ToolChoice::Required => &self.functions,
        }
    }

    /// The template's variable `tools`: a list in OpenAI's form.
    pub fn shown(&self) -> Value {
        self.functions
            .iter()
            .map(|function| json!({ "type": "function", "function": function.shown }))
            .collect()
    }

    pub fn signatures(&self) -> Arc<[ToolSignature]> {
        self.functions
            .iter()
            .map(|function| ToolSignature::new(&function.name, &function.parameters))
            .collect()
    }

    /// An answer must hold a call.
    pub fn is_forced(&self) -> bool {
        self.choice != ToolChoice::Auto
    }

    /// Calls are held to a grammar.
    pub fn is_held(&self) -> bool {
        self.is_forced() || self.functions.iter().any(|function| function.strict)
    }

    /// The grammar of an answer that is calls and nothing else.
    pub fn forced_grammar(&self, format: ToolFormat) -> Result<Pattern, ApiError> {
        grammar::forced(format, &self.rules(), self.parallel).map_err(|error| self.error(error))
    }

    /// The grammar of a call within an answer that may hold some. `None`: nothing marks one there.
    pub fn call_grammar(&self, format: ToolFormat) -> Result<Option<TriggeredCalls>, ApiError> {
        grammar::triggered(format, &self.rules()).map_err(|error| self.error(error))
    }

    /// The same with less asked of the arguments whose schema, by its name in the request, cannot be enforced. `None` where it has to be.
    pub fn relaxed(&self, part: &str) -> Option<Self> {
        let mut relaxed = self.clone();
        let (function, rest) = relaxed.functions.iter_mut().find_map(|function| {
            let rest = part.strip_prefix(&*function.path)?.strip_prefix(".parameters")?;
            (!function.strict).then_some((function, rest))
        })?;
        match rest.strip_prefix(".properties.") {
            Some(name) => *function.parameters.get_mut("properties")?.get_mut(name)? = json!({}),
            None => function.parameters = json!({ "type": "object" }),
        }
        Some(relaxed)
    }

    fn rules(&self) -> Vec<CallRule> {
        let rule = |function: &Function| CallRule {
            name: function.name.clone(),
            schema: function.parameters.clone(),
            part: format!("{}.parameters", function.path),
            is_strict: function.strict,
        };
        self.callable().iter().map(rule).collect()
    }

    /// A grammar that is too large is so because of all tools together.
    fn error(&self, error: GrammarError) -> ApiError {
        grammar_error(error, "tools")
    }
}
