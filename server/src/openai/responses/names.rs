//! The names that what is found wrong with a chat has in a request for a response.

use crate::error::ApiError;
use crate::openai::chat::compose::{Places, renamed};

pub struct Names(pub Places);

const NAMES: &[(&str, &str)] = &[
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
    ("logprobs", "include"),
    ("tool_choice.function.name", "tool_choice.name"),
    ("tool_choice.allowed_tools.mode", "tool_choice.mode"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
];

const WHOLE: &[&str] = &["input", "previous_response_id"];

fn is_inside(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('.')
}

impl Names {
    pub fn name(&self, error: ApiError) -> ApiError {
        error.with_param(|param| self.param(param))
    }

    fn param(&self, param: &str) -> String {
        if let Some((place, is_picture)) = self.0.of_part(param) {
            // A string has no parts, and an earlier response none that this request could change.
            if let Some(whole) = WHOLE.iter().find(|whole| place.strip_prefix(**whole).is_some_and(is_inside))
            {
                return (*whole).to_owned();
            }
            return if is_picture { format!("{place}.image_url") } else { place.to_owned() };
        }
        for list in ["tools[", "tool_choice.allowed_tools.tools["] {
            if let Some((index, rest)) =
                param.strip_prefix(list).and_then(|rest| rest.split_once("].function"))
            {
                return format!("{}{index}]{rest}", list.replace("allowed_tools.", ""));
            }
        }
        renamed(param, NAMES)
    }

    /// The same of what turned out to be without effect.
    pub fn rename_ignored(names: &mut [String]) {
        for name in names {
            *name = renamed(name, NAMES);
        }
    }
}
