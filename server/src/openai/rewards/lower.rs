//! The request for rewards: its fields and what they mean.

use crate::chat::Ending;
use crate::error::ApiError;
use crate::openai::chat::messages;
use crate::openai::fields::request_fields;
use crate::openai::generation::{RequestLimits, lower_salt};
use crate::raw_prompt::{ChatPrompt, RawPrompt};
use crate::reading::ReadOptions;
use scheduler::TokenId;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

request_fields! {
    pub struct RewardFields {
        /// The policy: the model or an adapter.
        model: String,
        /// What the policy is compared with; by default the base.
        reference: String,
        /// A text or token ids …
        prompt: TextOrTokens,
        /// … or messages as in chat completions, pictures included.
        messages: Vec<Value>,
        /// Answers to the prompt, at least one …
        completions: Vec<TextOrTokens>,
        /// … or these two, in this order.
        chosen: TextOrTokens,
        rejected: TextOrTokens,
        /// Scales the rewards; above 0, by default 0.1.
        beta: f64,
        /// Count the token that ends an answer too: by default after messages, and not after a prompt.
        add_end_token: bool,
        add_special_tokens: bool,
        chat_template_kwargs: Map<String, Value>,
        /// Shown by the template as in chat completions.
        tools: Vec<Value>,
        return_token_ids: bool,
        priority: i32,
        cache_salt: String,
        request_id: String,
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of token ids")]
pub enum TextOrTokens {
    Text(String),
    Tokens(Vec<TokenId>),
}

impl TextOrTokens {
    fn lower(self) -> RawPrompt {
        match self {
            TextOrTokens::Text(text) => RawPrompt::Text(text),
            TextOrTokens::Tokens(tokens) => RawPrompt::Tokens(tokens),
        }
    }
}

pub struct Lowered {
    pub policy: Option<String>,
    /// `None`: the base.
    pub reference: Option<String>,
    pub context: Context,
    pub answers: Answers,
    pub beta: f64,
    pub end: End,
    pub shows_tokens: bool,
    pub request_id: Option<String>,
    pub options: ReadOptions,
}

/// Whether the token that ends an answer counts too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    None,
    IfKnown,
    Needed,
}

/// What the answers answer.
pub enum Context {
    Text { prompt: RawPrompt, add_special_tokens: bool },
    Chat(ChatPrompt),
}

impl Context {
    /// Its name in the request.
    pub fn param(&self) -> &'static str {
        match self {
            Context::Text { .. } => "prompt",
            Context::Chat(_) => "messages",
        }
    }
}

/// The answers, under the names that they have in the request.
pub struct Answers {
    pub texts: Vec<RawPrompt>,
    pub is_pair: bool,
}

impl Answers {
    pub fn param(&self, index: usize) -> String {
        match (self.is_pair, index) {
            (true, 0) => "chosen".to_owned(),
            (true, _) => "rejected".to_owned(),
            (false, index) => format!("completions[{index}]"),
        }
    }
}

/// As in TRL.
const BETA: f64 = 0.1;

impl RewardFields {
    pub fn lower(self, limits: &RequestLimits) -> Result<Lowered, ApiError> {
        let RewardFields {
            model,
            reference,
            prompt,
            messages,
            completions,
            chosen,
            rejected,
            beta,
            add_end_token,
            add_special_tokens,
            chat_template_kwargs,
            tools,
            return_token_ids,
            priority,
            cache_salt,
            request_id,
        } = self;
        let salt = lower_salt(cache_salt)?;
        let answers = lower_answers(completions, chosen, rejected)?;
        // Each is read twice, and the engine takes all of a request or nothing of it.
        let most = limits.n_max.min(limits.num_inputs_max / 2).max(1);
        if answers.texts.len() > most {
            let message = format!("{} are above the limit of {most} for a request", answers.texts.len());
            return Err(ApiError::invalid("completions", message));
        }
        let param = if answers.is_pair { "chosen" } else { "completions" };
        let beta = beta.unwrap_or(BETA);
        if !(beta.is_finite() && beta > 0.0) {
            return Err(ApiError::invalid("beta", format!("{beta} is not a number above 0")));
        }
        let (context, is_chat) = match (prompt, messages) {
            (Some(prompt), None) => {
                if chat_template_kwargs.is_some() || tools.is_some() {
                    let name = if tools.is_some() { "tools" } else { "chat_template_kwargs" };
                    return Err(ApiError::invalid(name, "is only allowed with messages"));
                }
                let add_special_tokens = add_special_tokens.unwrap_or(true);
                (Context::Text { prompt: prompt.lower(), add_special_tokens }, false)
            }
            (None, Some(messages)) => {
                if add_special_tokens == Some(true) {
                    let why = "the chat template writes all special tokens";
                    return Err(ApiError::unsupported("add_special_tokens", why));
                }
                let chat = ChatPrompt {
                    messages: messages::lower(messages)?,
                    tools: tools.filter(|tools| !tools.is_empty()).map(Value::Array),
                    effort: None,
                    kwargs: chat_template_kwargs.unwrap_or_default(),
                    ending: Ending::Answer,
                    salt,
                };
                (Context::Chat(chat), true)
            }
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid("prompt", "cannot be given together with messages"));
            }
            (None, None) => return Err(ApiError::invalid("prompt", "either it or messages is needed")),
        };
        Ok(Lowered {
            policy: model,
            reference,
            context,
            answers,
            beta,
            end: match add_end_token {
                Some(true) => End::Needed,
                Some(false) => End::None,
                None if is_chat => End::IfKnown,
                None => End::None,
            },
            shows_tokens: return_token_ids.unwrap_or(false),
            request_id,
            options: ReadOptions { param, priority: priority.unwrap_or(0), salt },
        })
    }
}

fn lower_answers(
    completions: Option<Vec<TextOrTokens>>,
    chosen: Option<TextOrTokens>,
    rejected: Option<TextOrTokens>,
) -> Result<Answers, ApiError> {
    match (completions, chosen, rejected) {
        (Some(list), None, None) if list.is_empty() => Err(ApiError::invalid("completions", "is empty")),
        (Some(list), None, None) => {
            Ok(Answers { texts: list.into_iter().map(TextOrTokens::lower).collect(), is_pair: false })
        }
        (None, Some(chosen), Some(rejected)) => {
            Ok(Answers { texts: vec![chosen.lower(), rejected.lower()], is_pair: true })
        }
        (Some(_), chosen, _) => {
            let name = if chosen.is_some() { "chosen" } else { "rejected" };
            Err(ApiError::invalid(name, "cannot be given together with completions"))
        }
        (None, Some(_), None) => Err(ApiError::invalid("rejected", "is missing beside chosen")),
        (None, None, Some(_)) => Err(ApiError::invalid("chosen", "is missing beside rejected")),
        (None, None, None) => {
            Err(ApiError::invalid("completions", "either it or chosen and rejected are needed"))
        }
    }
}
