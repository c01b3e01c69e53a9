//! From what a request asks its answers to be held to, to a constraint for each of its sequences.

use crate::blocking::Lane;
use crate::chat::Tokenizer;
use crate::chat::parse::grammar::TriggeredCalls;
use crate::chat::parse::{ReasoningMarkers, ToolFormat};
use crate::constrain::{
    AfterCall, BodyPart, CompilerLimits, ConstraintParts, ConstraintSpec, Ends, GrammarCompiler,
    GrammarSource, MaskPool, Pattern, SequenceSpec, Setting, ThinkingPart, TokenFilter, TokenizerEncoder,
    Vocabulary, Words,
};
use crate::error::ApiError;
use crate::openai::structured::{ConstraintRequest, GrammarRequest, grammar_error};
use crate::openai::tools::ToolUse;
use models::ModelInfo;
use scheduler::TokenId;
use std::sync::Arc;

/// Of one model.
pub struct Constraining {
    grammars: GrammarCompiler,
    masks: Arc<MaskPool>,
    tokenizer: Arc<Tokenizer>,
    model_ends: Arc<[TokenId]>,
    /// Tokens that the model can sample.
    num_rows: usize,
    /// Bounds how many requests wait for grammars at once, apart from those that prepare prompts.
    lane: Lane,
}

/// Tools whose calls are held to a grammar, or that a grammar of the text must leave room for.
#[derive(Debug, Clone)]
pub struct HeldTools {
    pub tools: Arc<ToolUse>,
    /// `None`: nobody knows how the model writes calls.
    pub format: Option<ToolFormat>,
}

impl Constraining {
    pub fn new(tokenizer: Arc<Tokenizer>, info: &ModelInfo) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (ends, num_rows) = (info.eos_token_ids.clone(), info.vocab_size);
        // Made when the first grammar asks for it.
        let vocabulary = {
            let (tokenizer, ends) = (tokenizer.clone(), ends.clone());
            move || {
                let encoder = Arc::new(TokenizerEncoder(tokenizer.clone()));
                Vocabulary::new(Words::of(&tokenizer, num_rows, &ends), Some(encoder))
            }
        };
        Self {
            grammars: GrammarCompiler::new(vocabulary, CompilerLimits::default()),
            masks: Arc::new(MaskPool::for_this_machine()),
            tokenizer,
            model_ends: ends.into(),
            num_rows,
            lane: Lane::new(cores.max(2)),
        }
    }

    /// Compiles grammars off the async threads. `stops` are the tokens that end the request's answers; `thinking` says how the model
    /// marks its thinking, which grammars leave free and budgets end.
    pub async fn constrain(
        self: &Arc<Self>,
        asked: &ConstraintRequest,
        tools: Option<HeldTools>,
        stops: &[TokenId],
        thinking: Option<ReasoningMarkers>,
    ) -> Result<Option<SequenceSpec>, ApiError> {
        if *asked == ConstraintRequest::default() && tools.is_none() {
            return Ok(None);
        }
        let (asked, stops, this) = (asked.clone(), Arc::from(stops), self.clone());
        self.lane.run(move |_| this.build(asked, tools, stops, thinking)).await?
    }

    fn build(
        &self,
        asked: ConstraintRequest,
        tools: Option<HeldTools>,
        stops: Arc<[TokenId]>,
        thinking: Option<ReasoningMarkers>,
    ) -> Result<Option<SequenceSpec>, ApiError> {
        let ConstraintRequest { grammar, thinking_budget, bad_words, allowed_token_ids } = asked;
        if !bad_words.is_empty() || allowed_token_ids.is_some() {
            if let Some(budget) = thinking_budget {
                let message = "cannot be combined with `bad_words` or `allowed_token_ids`";
                return Err(ApiError::invalid(budget.param, message));
            }
            if tools.is_some() {
                let message = "cannot be combined with tools that must be called or are strict";
                let param = if bad_words.is_empty() { "allowed_token_ids" } else { "bad_words" };
                return Err(ApiError::invalid(param, message));
            }
            let forbidden = self.bad_word_tokens(&bad_words)?;
            return Ok(Some(TokenFilter::new(allowed_token_ids.as_deref(), forbidden, self.num_rows).into()));
        }
        if let (Some(budget), None) = (thinking_budget, &thinking) {
            return Err(ApiError::unsupported(
                budget.param,
                "nothing marks thinking in this model's answers",
            ));
        }
        let body = match (tools, grammar) {
            (Some(tools), grammar) => self.tool_body(&tools, grammar)?,
            (None, None) => BodyPart::Free,
            (None, Some(GrammarRequest { source, param })) => BodyPart::Grammar(
                self.grammars.compile(&source).map_err(|error| grammar_error(error, &param))?,
            ),
        };
        let budget = thinking_budget.map(|budget| budget.tokens);
        let thinking = thinking.map(|markers| ThinkingPart { markers, budget });
        self.assemble(ConstraintParts { thinking, body }, stops)
    }

    /// Where a call is forced there is no text, and so nothing for the text's grammar to hold.
    fn tool_body(&self, held: &HeldTools, text: Option<GrammarRequest>) -> Result<BodyPart, ApiError> {
        let HeldTools { tools, format } = held;
        let format = format.ok_or_else(|| {
            let message = "how the model writes calls is not known, so that none can be held to a grammar";
            ApiError::unsupported("tools", message)
        })?;
        let compile = |pattern: Pattern| {
            let source = GrammarSource::Pattern(pattern);
            self.grammars.compile(&source).map_err(|error| grammar_error(error, "tools"))
        };
        if tools.is_forced() {
            return Ok(BodyPart::Grammar(compile(tools.forced_grammar(format)?)?));
        }
        if let Some(GrammarRequest { source, param }) = text {
            let Some(text) = source.into_pattern(&param) else {
                let message =
                    "a grammar in Lark cannot be combined with tools that the model may call or not";
                return Err(ApiError::unsupported(param, message));
            };
            let either = Pattern::Any(vec![text, tools.forced_grammar(format)?]);
            return Ok(BodyPart::Grammar(compile(either)?));
        }
        let TriggeredCalls { trigger, call } = tools.call_grammar(format)?;
        let after = if tools.parallel { AfterCall::Watch } else { AfterCall::End };
        Ok(BodyPart::Triggered { triggers: vec![trigger.to_owned()], grammar: compile(call)?, after })
    }

    /// A constraint of any parts, as calls of tools need. Not for an async thread.
    pub fn assemble(
        &self,
        parts: ConstraintParts,
        stops: Arc<[TokenId]>,
    ) -> Result<Option<SequenceSpec>, ApiError> {
        let vocabulary = self.grammars.vocabulary().map_err(|error| grammar_error(error, ""))?;
        if !matches!(parts.body, BodyPart::Free) {
            self.check_stops(&stops, &vocabulary)?;
        }
        let ends = Ends { stops, model: self.model_ends.clone() };
        let setting = Setting { vocabulary, pool: self.masks.clone(), ends };
        Ok(ConstraintSpec::new(parts, setting, self.num_rows).map(SequenceSpec::from))
    }

    pub fn grammars(&self) -> &GrammarCompiler {
        &self.grammars
    }

    /// Where this kind of work is done.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// A grammar allows what ends an answer only where it may end itself. Text that ends an answer is text that it may need elsewhere.
    fn check_stops(&self, stops: &[TokenId], vocabulary: &Vocabulary) -> Result<(), ApiError> {
        let is_text = |stop: &&TokenId| {
            !self.model_ends.contains(stop)
                && !vocabulary.is_control(**stop)
                && !vocabulary.bytes(**stop).is_empty()
        };
        match stops.iter().find(is_text) {
            None => Ok(()),
            Some(stop) => Err(ApiError::invalid(
                "stop_token_ids",
                format!(
                    "token {stop} is text, which a grammar may need inside of the answer; `stop` takes strings"
                ),
            )),
        }
    }

    /// Each word as it begins a text and as it follows a space.
    fn bad_word_tokens(&self, words: &[String]) -> Result<Vec<Vec<TokenId>>, ApiError> {
        let mut runs = Vec::with_capacity(2 * words.len());
        for word in words {
            let word = word.trim_start();
            for text in [word.to_owned(), format!(" {word}")] {
                runs.push(self.tokenizer.encode_inside(&text).map_err(|error| {
                    tracing::error!(%error, "failed to tokenize");
                    ApiError::Internal
                })?);
            }
        }
        runs.sort_unstable();
        runs.dedup();
        Ok(runs)
    }
}
