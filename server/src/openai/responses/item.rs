//! Items: what a conversation is made of, as they come in requests, go out in answers and are kept between them.

use crate::openai::report::ChatLogprob;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// An item that may be kept: shared by all responses whose conversations have it.
#[derive(Debug)]
pub struct Item {
    /// Different for every item of this process, also where clients give the same id twice.
    pub key: u64,
    pub id: String,
    /// Text takes less memory than a tree.
    pub json: String,
}

impl Item {
    pub fn new(id: String, json: String) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { key: NEXT.fetch_add(1, Relaxed), id, json }
    }

    pub fn value(&self) -> Value {
        serde_json::from_str(&self.json).expect("was written as JSON")
    }

    /// Bytes of memory, roughly.
    pub fn num_bytes(&self) -> u64 {
        (self.json.len() + self.id.len() + size_of::<Self>() + 64) as u64
    }
}

/// OpenAI's form: a prefix that tells the kind, and what nobody can guess.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    InProgress,
    Completed,
    /// Cut off.
    Incomplete,
}

/// What a model said.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    Reasoning {
        id: String,
        status: ItemStatus,
        /// Always empty: thinking is told as it is.
        summary: [SummaryText; 0],
        content: Vec<Content>,
    },
    Message {
        id: String,
        status: ItemStatus,
        role: &'static str,
        content: Vec<Content>,
    },
    FunctionCall {
        id: String,
        status: ItemStatus,
        call_id: String,
        name: String,
        arguments: String,
    },
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct SummaryText {
    r#type: &'static str,
    text: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponseContent")]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    ReasoningText {
        text: String,
    },
    OutputText {
        text: String,
        annotations: [Annotation; 0],
        /// Empty, unless the request includes `message.output_text.logprobs`.
        logprobs: Vec<ChatLogprob>,
    },
}

/// There are none: no tool of this server cites anything.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Annotation {
    r#type: &'static str,
}

impl OutputItem {
    pub fn reasoning() -> Self {
        let content = vec![Content::ReasoningText { text: String::new() }];
        Self::Reasoning { id: new_id("rs"), status: ItemStatus::InProgress, summary: [], content }
    }

    pub fn message() -> Self {
        let content =
            vec![Content::OutputText { text: String::new(), annotations: [], logprobs: Vec::new() }];
        Self::Message { id: new_id("msg"), status: ItemStatus::InProgress, role: "assistant", content }
    }

    pub fn function_call(call_id: String, name: String) -> Self {
        let (id, status) = (new_id("fc"), ItemStatus::InProgress);
        Self::FunctionCall { id, status, call_id, name, arguments: String::new() }
    }

    pub fn id(&self) -> &str {
        match self {
            Self::Reasoning { id, .. } | Self::Message { id, .. } | Self::FunctionCall { id, .. } => id,
        }
    }

    pub fn status(&self) -> ItemStatus {
        match self {
            Self::Reasoning { status, .. }
            | Self::Message { status, .. }
            | Self::FunctionCall { status, .. } => *status,
        }
    }

    pub fn end(&mut self, ended: ItemStatus) {
        match self {
            Self::Reasoning { status, .. }
            | Self::Message { status, .. }
            | Self::FunctionCall { status, .. } => *status = ended,
        }
    }

    /// Its text, or its arguments.
    pub fn text(&self) -> &str {
        match self {
            Self::Reasoning { content, .. } | Self::Message { content, .. } => content[0].text(),
            Self::FunctionCall { arguments, .. } => arguments,
        }
    }

    /// A reasoning item's or a message's only part.
    pub fn part(&self) -> Option<&Content> {
        match self {
            Self::Reasoning { content, .. } | Self::Message { content, .. } => content.first(),
            Self::FunctionCall { .. } => None,
        }
    }

    pub fn push(&mut self, more: &str, more_logprobs: Vec<ChatLogprob>) {
        match self {
            Self::Reasoning { content, .. } | Self::Message { content, .. } => match &mut content[0] {
                Content::ReasoningText { text } => text.push_str(more),
                Content::OutputText { text, logprobs, .. } => {
                    text.push_str(more);
                    logprobs.extend(more_logprobs);
                }
            },
            Self::FunctionCall { arguments, .. } => arguments.push_str(more),
        }
    }

    /// For the conversation that goes on: a call that was cut off is no part of it, for nobody can answer it.
    pub fn to_keep(&self) -> Option<Item> {
        let is_cut_call =
            matches!(self, Self::FunctionCall { status, .. } if *status != ItemStatus::Completed);
        let json = serde_json::to_string(self).expect("items serialise");
        (!is_cut_call).then(|| Item::new(self.id().to_owned(), json))
    }
}

impl Content {
    pub fn text(&self) -> &str {
        match self {
            Self::ReasoningText { text } | Self::OutputText { text, .. } => text,
        }
    }
}
