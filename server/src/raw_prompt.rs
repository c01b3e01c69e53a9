//! Prompts as requests have them: pictures are still URLs, and text is not tokens yet.

use crate::chat::effort::Effort;
use crate::chat::{Ending, Message};
use scheduler::{Digest, TokenId};
use serde_json::{Map, Value};

/// A message whose pictures are still URLs.
#[derive(Debug, Clone)]
pub struct RawMessage {
    pub message: Message,
    pub parts: Vec<RawPart>,
}

#[derive(Debug, Clone)]
pub enum RawPart {
    Text(String),
    ImageUrl(String),
    VideoUrl(String),
}

#[derive(Debug, Clone)]
pub struct ChatPrompt {
    pub messages: Vec<RawMessage>,
    /// What the template shows of the request's tools.
    pub tools: Option<Value>,
    pub effort: Option<Effort>,
    pub kwargs: Map<String, Value>,
    pub ending: Ending,
    /// Cached pictures are shared with requests of the same salt only.
    pub salt: Digest,
}

/// A completion's prompt.
#[derive(Debug, Clone)]
pub enum RawPrompt {
    Text(String),
    Tokens(Vec<TokenId>),
}
