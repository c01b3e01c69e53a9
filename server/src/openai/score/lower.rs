//! The requests for scores and rankings: their fields and what they mean.

use crate::error::ApiError;
use crate::openai::embeddings::lower::lower_pooling;
use crate::openai::fields::request_fields;
use crate::openai::generation::{RequestLimits, lower_salt};
use crate::openai::score::compare::{Comparison, Manner, Method, Reduction};
use crate::reading::ReadOptions;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

request_fields! {
    pub struct ScoreFields {
        text_1: Texts,
        text_2: Texts,
        /// Other names of the same two.
        queries: Texts,
        documents: Texts,
    }
}

request_fields! {
    pub struct RerankFields {
        query: String,
        documents: Vec<Document>,
        top_n: i64,
        return_documents: bool,
    }
}

request_fields! {
    /// What both have in common.
    pub struct MethodFields {
        model: String,
        method: String,
        reduction: String,
        pooling_type: String,
        add_special_tokens: bool,
        priority: i32,
        cache_salt: String,
        request_id: String,
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum Texts {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Document {
    Text(String),
    Object { text: String },
    Parts { content: Vec<TextPart> },
}

/// A part as in a chat message; texts are all that is compared.
#[derive(Debug, JsonSchema)]
#[schemars(tag = "type", rename_all = "lowercase")]
pub enum TextPart {
    Text { text: String },
}

/// By hand: what serde derives for these would also take lists for objects.
impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let document = match Value::deserialize(deserializer)? {
            Value::String(text) => Some(Self::Text(text)),
            Value::Object(object) => Self::from_object(object),
            _ => None,
        };
        document.ok_or_else(|| {
            D::Error::custom(
                "expected a string, an object with a `text`, or one with a `content` of text parts",
            )
        })
    }
}

impl Document {
    fn from_object(mut object: Map<String, Value>) -> Option<Self> {
        if let Some(Value::String(text)) = object.get_mut("text") {
            return Some(Self::Object { text: std::mem::take(text) });
        }
        let Some(Value::Array(content)) = object.get_mut("content") else { return None };
        let part = |part: &mut Value| {
            let is_text = part.get("type")? == "text";
            match part.get_mut("text").filter(|_| is_text)? {
                Value::String(text) => Some(TextPart::Text { text: std::mem::take(text) }),
                _ => None,
            }
        };
        Some(Self::Parts { content: content.iter_mut().map(part).collect::<Option<_>>()? })
    }

    fn into_text(self) -> String {
        match self {
            Document::Text(text) | Document::Object { text } => text,
            Document::Parts { content } => {
                let texts: Vec<_> = content.into_iter().map(|TextPart::Text { text }| text).collect();
                texts.join("\n")
            }
        }
    }
}

pub struct Ranking {
    pub query: String,
    pub documents: Vec<String>,
    /// At most as many as there are documents.
    pub top_n: usize,
    pub return_documents: bool,
}

impl MethodFields {
    pub fn lower(self, param: &'static str) -> Result<Manner, ApiError> {
        let MethodFields {
            model,
            method,
            reduction,
            pooling_type,
            add_special_tokens,
            priority,
            cache_salt,
            request_id,
        } = self;
        let method = match method.as_deref() {
            None | Some("cosine") => {
                if reduction.is_some() {
                    let message = "is only allowed when `method` is `logprob`";
                    return Err(ApiError::invalid("reduction", message));
                }
                Method::Cosine(lower_pooling(pooling_type.as_deref())?)
            }
            Some("logprob") => {
                if pooling_type.is_some() {
                    let message = "is only allowed when `method` is `cosine`";
                    return Err(ApiError::invalid("pooling_type", message));
                }
                Method::Logprob(lower_reduction(reduction.as_deref())?)
            }
            Some(other) => {
                let message = format!("`{other}` is not one of `cosine`, `logprob`");
                return Err(ApiError::invalid("method", message));
            }
        };
        let options = ReadOptions { param, priority: priority.unwrap_or(0), salt: lower_salt(cache_salt)? };
        let add_special_tokens = add_special_tokens.unwrap_or(true);
        Ok(Manner { model, request_id, method, add_special_tokens, options })
    }
}

fn lower_reduction(reduction: Option<&str>) -> Result<Reduction, ApiError> {
    match reduction {
        None | Some("mean") => Ok(Reduction::Mean),
        Some("sum") => Ok(Reduction::Sum),
        Some(other) => Err(ApiError::invalid("reduction", format!("`{other}` is not one of `mean`, `sum`"))),
    }
}

impl ScoreFields {
    /// One text with one, one with each of several, or each of several with its own. With the name of the second ones.
    pub fn lower(self, limits: &RequestLimits) -> Result<(Comparison, &'static str), ApiError> {
        let ScoreFields { text_1, text_2, queries, documents } = self;
        let given = [&text_1, &text_2, &queries, &documents].map(Option::is_some);
        let (names, first, second) = match given {
            [_, _, false, false] => (["text_1", "text_2"], text_1, text_2),
            [false, false, _, _] => (["queries", "documents"], queries, documents),
            _ => {
                let message = "cannot be given together with `text_1` or `text_2`";
                let name = if given[2] { "queries" } else { "documents" };
                return Err(ApiError::invalid(name, message));
            }
        };
        let first = lower_texts(first, names[0], limits)?;
        let second = lower_texts(second, names[1], limits)?;
        if first.len() > 1 && first.len() != second.len() {
            let message = format!(
                "{} texts cannot be compared with {}: one with one, one with many, or as many with as many",
                second.len(),
                first.len()
            );
            return Err(ApiError::invalid(names[1], message));
        }
        let pairs = (0..second.len()).map(|i| (if first.len() == 1 { 0 } else { i }, i)).collect();
        let comparison = Comparison { first, second, pairs };
        // What the engine is asked for: every text at most once.
        if comparison.first.len() + comparison.second.len() > limits.num_inputs_max + 1 {
            return Err(too_many(names[1], comparison.second.len(), limits.num_inputs_max));
        }
        Ok((comparison, names[1]))
    }
}

fn too_many(name: &str, count: usize, limit: usize) -> ApiError {
    ApiError::invalid(name, format!("{count} texts are above the limit of {limit} for a request"))
}

fn lower_texts(texts: Option<Texts>, name: &str, limits: &RequestLimits) -> Result<Vec<String>, ApiError> {
    let texts = match texts {
        None => return Err(ApiError::invalid(name, "is missing")),
        Some(Texts::One(text)) if text.is_empty() => return Err(ApiError::invalid(name, "is empty")),
        Some(Texts::One(text)) => vec![text],
        Some(Texts::Many(texts)) => texts,
    };
    check_texts(&texts, name, limits)?;
    Ok(texts)
}

fn check_texts(texts: &[String], name: &str, limits: &RequestLimits) -> Result<(), ApiError> {
    if texts.is_empty() {
        return Err(ApiError::invalid(name, "is empty"));
    }
    // One place is for the text that all are compared with.
    if texts.len() >= limits.num_inputs_max {
        return Err(too_many(name, texts.len(), limits.num_inputs_max - 1));
    }
    match texts.iter().position(String::is_empty) {
        Some(at) => Err(ApiError::invalid(format!("{name}[{at}]"), "is empty")),
        None => Ok(()),
    }
}

impl RerankFields {
    pub fn lower(self, limits: &RequestLimits) -> Result<Ranking, ApiError> {
        let RerankFields { query, documents, top_n, return_documents } = self;
        let query = query.ok_or_else(|| ApiError::invalid("query", "is missing"))?;
        if query.is_empty() {
            return Err(ApiError::invalid("query", "is empty"));
        }
        let documents = documents.ok_or_else(|| ApiError::invalid("documents", "is missing"))?;
        let documents: Vec<String> = documents.into_iter().map(Document::into_text).collect();
        check_texts(&documents, "documents", limits)?;
        let top_n = match top_n {
            // vLLM's word for all.
            None | Some(0) => documents.len(),
            Some(top_n) => usize::try_from(top_n)
                .map_err(|_| ApiError::invalid("top_n", format!("{top_n} is below 0")))?
                .min(documents.len()),
        };
        Ok(Ranking { query, documents, top_n, return_documents: return_documents.unwrap_or(true) })
    }
}
