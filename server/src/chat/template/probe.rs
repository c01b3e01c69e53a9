//! What form of messages a template takes, found by trying.

use super::{CallForm, ChatTemplate, ContentFormat};
use serde_json::{Value, json};

/// Renders a conversation with everything that templates read.
fn render(template: &ChatTemplate, messages: Value, tools: Value) -> Option<String> {
    let context = json!({
        "messages": messages, "tools": tools, "documents": null, "add_generation_prompt": true,
        "bos_token": "", "eos_token": "", "unk_token": "", "pad_token": "",
    });
    template.render(&context).ok()
}

/// Tries a word as a string and as a list of parts: the forms in which it comes out as itself are those that the template takes.
pub(super) fn content_format(template: &ChatTemplate) -> ContentFormat {
    const WORD: &str = "perilune probe";
    let takes = |content: Value| {
        // A list that is printed as a list shows its keys.
        render(template, json!([{ "role": "user", "content": content }]), Value::Null)
            .is_some_and(|text| text.contains(WORD) && !text.contains("'text'") && !text.contains("\"text\""))
    };
    match (takes(json!(WORD)), takes(json!([{ "type": "text", "text": WORD }]))) {
        (true, true) => ContentFormat::Both,
        (false, true) => ContentFormat::Parts,
        // Neither: the probe is not what the template wants to see; real messages will tell.
        (_, false) => ContentFormat::String,
    }
}

/// A name that no template has.
const TOOL: &str = "perilune_probe_tool";

fn tools() -> Value {
    json!([{ "type": "function", "function": {
        "name": TOOL, "description": "a",
        "parameters": { "type": "object", "properties": { "a": { "type": "string", "description": "a" } }, "required": ["a"] },
    } }])
}

/// A user's message; the content format is known.
fn user(template: &ChatTemplate) -> Value {
    let content = match template.content_format() {
        ContentFormat::Parts => json!([{ "type": "text", "text": "a" }]),
        _ => json!("a"),
    };
    json!({ "role": "user", "content": content })
}

/// Offers a tool, and looks whether the model would read it.
pub(super) fn shows_tools(template: &ChatTemplate) -> bool {
    render(template, json!([user(template)]), tools()).is_some_and(|text| text.contains(TOOL))
}

/// Tries an assistant's call: in the form that is taken its name and its argument come out. Where more than one is, an empty text is better than
/// `none`, which some templates print as a word and others cannot search.
pub(super) fn call_form(template: &ChatTemplate) -> CallForm {
    const WORD: &str = "perilune_probe_argument";
    // Mistral's templates insist on nine letters or digits.
    const ID: &str = "probe0000";
    let takes = |form: &CallForm| {
        let content = if form.content_is_none { Value::Null } else { json!("") };
        let arguments = json!({ "a": WORD });
        let arguments = if form.arguments_are_text { json!(arguments.to_string()) } else { arguments };
        let call =
            json!({ "id": ID, "type": "function", "function": { "name": TOOL, "arguments": arguments } });
        let messages = json!([
            user(template),
            { "role": "assistant", "content": content, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": ID, "name": TOOL, "content": "a" },
        ]);
        // A template may want no tools beside calls, or not tell of calls without them.
        [tools(), Value::Null].into_iter().any(|tools| {
            let without = render(template, json!([user(template)]), tools.clone()).unwrap_or_default();
            let count = |text: &str| text.matches(TOOL).count();
            render(template, messages.clone(), tools)
                .is_some_and(|text| text.contains(WORD) && count(&text) > count(&without))
        })
    };
    let forms = [false, true].into_iter().flat_map(|arguments_are_text| {
        [false, true].map(|content_is_none| CallForm { content_is_none, arguments_are_text })
    });
    forms.into_iter().find(takes).unwrap_or_default()
}

/// Whether the template reads an earlier answer's thinking among the parts of its content, and nowhere else: Mistral's do.
pub(super) fn takes_thinking_parts(template: &ChatTemplate) -> bool {
    const WORD: &str = "perilune_probe_thought";
    let shows = |answer: Value| {
        render(template, json!([user(template), answer, user(template)]), Value::Null).is_some_and(|text| {
            text.contains(WORD) && !text.contains("'thinking'") && !text.contains("\"thinking\"")
        })
    };
    let field = json!({ "role": "assistant", "content": "a", "reasoning_content": WORD, "reasoning": WORD });
    let parts = json!([{ "type": "thinking", "thinking": WORD }, { "type": "text", "text": "a" }]);
    !shows(field) && shows(json!({ "role": "assistant", "content": parts }))
}
