//! A conversation without its beginning, where all of it does not fit the context.

use crate::chat::Prompt;
use crate::error::ApiError;
use crate::raw_prompt::{ChatPrompt, RawMessage};
use crate::service::Service;
use std::sync::Arc;

/// The prompt of as much of the conversation's end as leaves room for `max_tokens`. System messages at its beginning and its last
/// message stay; where these alone are too long, so is the prompt.
pub async fn prompt_that_fits(
    service: &Arc<Service>,
    mut chat: ChatPrompt,
    max_tokens: usize,
) -> Result<Prompt, ApiError> {
    let limit = service.info().max_model_len;
    loop {
        let prompt = service.chat_prompt(chat.clone()).await?;
        let needed = prompt.tokens.len().saturating_add(max_tokens);
        if needed <= limit {
            return Ok(prompt);
        }
        // As many as the excess is in messages of the average length, but not more than are surely needed.
        let average = prompt.tokens.len().div_ceil(chat.messages.len());
        let wanted = ((needed - limit) / (2 * average.max(1))).max(1);
        if !drop_oldest(&mut chat.messages, wanted) {
            return Ok(prompt);
        }
    }
}

/// Says whether there was anything to drop. The result of a call does not stay without the call.
fn drop_oldest(messages: &mut Vec<RawMessage>, wanted: usize) -> bool {
    let role = |message: &RawMessage| message.message.role.clone();
    let first = messages.iter().take_while(|message| role(message) == "system").count();
    let last = messages.len().saturating_sub(1);
    let mut end = (first + wanted).min(last);
    while end < last && end > first && role(&messages[end]) == "tool" {
        end += 1;
    }
    if end <= first {
        return false;
    }
    messages.drain(first..end);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Message;
    use serde_json::Map;

    #[test]
    fn the_beginning_goes_and_system_messages_stay() {
        for (roles, wanted, expected) in [
            ("suauau", 1, "sauau"),
            ("suauau", 2, "suau"),
            ("suauau", 9, "su"),
            ("sssu", 1, "sssu"),
            ("uattau", 1, "attau"),
            ("uattau", 2, "au"),
            ("uatt", 2, "t"),
            ("u", 1, "u"),
            ("", 1, ""),
        ] {
            let name = |c: char| match c {
                's' => "system",
                'u' => "user",
                'a' => "assistant",
                _ => "tool",
            };
            let message = |role: &str| RawMessage {
                message: Message { role: role.into(), content: Vec::new(), name: None, fields: Map::new() },
                parts: Vec::new(),
            };
            let mut messages: Vec<_> = roles.chars().map(|c| message(name(c))).collect();
            let dropped = drop_oldest(&mut messages, wanted);
            let left: String = messages.iter().map(|message| &message.message.role[..1]).collect();
            assert_eq!((left.as_str(), dropped), (expected, roles != expected), "{roles} {wanted}");
        }
    }
}
