//! From what a request asks its answers to be held to, to a constraint for each of its sequences.

use crate::blocking::Lane;
use crate::chat::Tokenizer;
use crate::chat::parse::grammar::{TriggeredCalls, unmarked_text};
use crate::chat::parse::{ReasoningMarkers, ToolFormat};
use crate::constrain::{
    AfterCall, BodyPart, CallsPart, CompilerLimits, ConstraintParts, ConstraintSpec, Ends, Grammar,
    GrammarCompiler, GrammarSource, Host, MaskPool, Pattern, SequenceSpec, Setting, ThinkingPart,
    TokenFilter, TokenizerEncoder, Vocabulary, Words,
};
use crate::error::ApiError;
use crate::openai::structured::{ConstraintRequest, GrammarRequest, grammar_error};
use crate::openai::tools::ToolUse;
use models::ModelInfo;
use scheduler::TokenId;
use std::borrow::Cow;
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

/// Schemas of one request that are relaxed; each costs a compilation.
const RELAXED_MAX: usize = 8;

impl HeldTools {
    fn format(&self) -> Result<ToolFormat, ApiError> {
        self.format.ok_or_else(|| {
            let message = "how the model writes calls is not known, so that none can be held to a grammar";
            ApiError::unsupported("tools", message)
        })
    }
}

impl Constraining {
    pub fn new(tokenizer: Arc<Tokenizer>, info: &ModelInfo, host: Host, grammars: CompilerLimits) -> Self {
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
            grammars: GrammarCompiler::new(vocabulary, grammars),
            masks: Arc::new(MaskPool::for_this_machine(host)),
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
        let tools = tools.as_ref();
        let body = match (tools, grammar) {
            (Some(tools), grammar) => self.tool_body(tools, grammar)?,
            (None, None) => BodyPart::Free,
            (None, Some(GrammarRequest { source, param })) => BodyPart::Grammar(
                self.grammars.compile(&source).map_err(|error| grammar_error(error, &param))?,
            ),
        };
        let budget = thinking_budget.map(|budget| budget.tokens);
        let thinking = match thinking {
            None => None,
            Some(markers) => {
                Some(ThinkingPart { markers, budget, calls: self.calls_in_thinking(tools, &body)? })
            }
        };
        self.assemble(ConstraintParts { thinking, body }, stops)
    }

    /// Where a call is forced there is no text, and so nothing for the text's grammar to hold.
    fn tool_body(&self, held: &HeldTools, text: Option<GrammarRequest>) -> Result<BodyPart, ApiError> {
        let HeldTools { tools, .. } = held;
        let format = held.format()?;
        if tools.is_forced() {
            let calls = |tools: &ToolUse| tools.forced_grammar(format);
            return Ok(BodyPart::Grammar(self.compile_calls(tools, calls)?));
        }
        let text = match text {
            Some(GrammarRequest { source, param }) => Some(source.into_pattern(&param).ok_or_else(|| {
                let message =
                    "a grammar in Lark cannot be combined with tools that the model may call or not";
                ApiError::unsupported(param, message)
            })?),
            None => unmarked_text(format),
        };
        match text {
            Some(text) => {
                let either =
                    |tools: &ToolUse| Ok(Pattern::Any(vec![text.clone(), tools.forced_grammar(format)?]));
                Ok(BodyPart::Grammar(self.compile_calls(tools, either)?))
            }
            None => {
                let after = if tools.parallel { AfterCall::Watch } else { AfterCall::End };
                let calls = self.calls_in_text(held, after)?;
                Ok(calls.map_or(BodyPart::Free, BodyPart::Triggered))
            }
        }
    }

    /// An answer that is held as a whole may still call before the thinking has ended: then that call is the answer.
    fn calls_in_thinking(
        &self,
        held: Option<&HeldTools>,
        body: &BodyPart,
    ) -> Result<Option<CallsPart>, ApiError> {
        match (held, body) {
            (Some(held), BodyPart::Grammar(_)) => self.calls_in_text(held, AfterCall::End),
            _ => Ok(None),
        }
    }

    /// `None` for formats in which nothing marks a call within text, so that there is none.
    fn calls_in_text(&self, held: &HeldTools, after: AfterCall) -> Result<Option<CallsPart>, ApiError> {
        let format = held.format()?;
        let Some(TriggeredCalls { trigger, .. }) = held.tools.call_grammar(format)? else { return Ok(None) };
        let none = || Pattern::Any(Vec::new());
        let calls = |tools: &ToolUse| Ok(tools.call_grammar(format)?.map_or_else(none, |calls| calls.call));
        let grammar = self.compile_calls(&held.tools, calls)?;
        Ok(Some(CallsPart { triggers: vec![trigger.to_owned()], grammar, after }))
    }

    /// Where a tool is not strict, what of its schema only the compiler finds cannot be enforced is left out.
    fn compile_calls(
        &self,
        tools: &ToolUse,
        pattern: impl Fn(&ToolUse) -> Result<Pattern, ApiError>,
    ) -> Result<Grammar, ApiError> {
        let mut tools = Cow::Borrowed(tools);
        let mut num_relaxed = 0;
        loop {
            let error = match self.grammars.compile(&GrammarSource::Pattern(pattern(&tools)?)) {
                Ok(grammar) => return Ok(grammar),
                Err(error) => error,
            };
            let relaxed = error.part.as_deref().and_then(|part| tools.relaxed(part));
            num_relaxed += 1;
            match relaxed.filter(|_| num_relaxed <= RELAXED_MAX) {
                Some(relaxed) => tools = Cow::Owned(relaxed),
                None => return Err(grammar_error(error, "tools")),
            }
        }
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
