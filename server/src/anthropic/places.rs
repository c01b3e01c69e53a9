//! Where in a request for a message something is that was found wrong with the chat it became.

use crate::error::ApiError;
use crate::openai::chat::compose;

/// The names that what is found wrong with a chat has here.
#[derive(Debug, Default)]
pub struct Places(pub compose::Places);

impl Places {
    pub fn name(&self, error: ApiError) -> ApiError {
        error.with_param(|param| self.param(param))
    }

    fn param(&self, param: &str) -> String {
        if let Some((place, is_picture)) = self.0.of_part(param) {
            return if is_picture { format!("{place}.source") } else { place.to_owned() };
        }
        if let Some((index, rest)) =
            param.strip_prefix("tools[").and_then(|rest| rest.split_once("].function"))
        {
            let rest = match rest.strip_prefix(".parameters") {
                Some(inside) => format!(".input_schema{inside}"),
                None => rest.to_owned(),
            };
            return format!("tools[{index}]{rest}");
        }
        compose::renamed(param, &NAMES)
    }
}

/// A chat's fields under the names that they have here.
const NAMES: [(&str, &str); 6] = [
    ("stop", "stop_sequences"),
    ("tool_choice.function.name", "tool_choice.name"),
    ("thinking_token_budget", "thinking.budget_tokens"),
    ("response_format.json_schema", "output_config.format"),
    ("response_format", "output_config.format"),
    ("reasoning_effort", "output_config.effort"),
];
