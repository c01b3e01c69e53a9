//! A loaded model as the handlers see it: prompts in, answers out. Text becomes tokens here, off the async threads; from here on
//! there are sequences.

use crate::adapters::Adapters;
use crate::blocking::Lane;
use crate::chat::effort::Effort;
use crate::chat::parse::{OutputFormat, ParseOptions, Parser, ReasoningMarkers, ToolFormat, grammar};
use crate::chat::{
    Ending, Message, Part, Prompt, PromptBuilder, PromptError, PromptRequest, Rendered, Specials, Tokenizer,
    TokenizerError,
};
use crate::constrain::GrammarSource;
use crate::constrain::{CompilerLimits, Host, SequenceSpec};
use crate::constraining::{Constraining, HeldTools};
use crate::defaults::GenerationDefaults;
use crate::engine_thread::{EngineHandle, EventStream, SubmitError};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::openai::answer::{Answers, Choice, Parsing};
use crate::openai::generation::{Generation, OutputOptions};
use crate::openai::structured::GrammarRequest;
use crate::pictures::{PictureOptions, Pictures};
use crate::raw_prompt::{ChatPrompt, RawPrompt};
pub use crate::unix_time::unix_time;
use models::{ImageProcessor, ModelInfo};
use scheduler::{AdapterId, SamplingParams, Sequence, SequenceId, TokenId};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What a service is made of.
pub struct ServiceParts {
    pub engine: EngineHandle,
    pub tokenizer: Arc<Tokenizer>,
    pub prompts: PromptBuilder,
    pub image_processor: Option<Arc<dyn ImageProcessor>>,
    pub pictures: PictureOptions,
    pub info: ModelInfo,
    /// Where masks of answers are computed.
    pub host: Host,
    pub grammars: CompilerLimits,
    pub metrics: Arc<Metrics>,
    /// Other names than the base's.
    pub adapters: Adapters,
    pub defaults: GenerationDefaults,
    /// The first is the canonical one.
    pub names: Vec<String>,
    /// Where the model came from.
    pub root: String,
    /// Of requests that have none; `None` is a random one.
    pub seed: Option<u64>,
}

/// What a request's `model` names: the base, under one of its names, or an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub adapter: Option<AdapterId>,
    /// Changes when the same request may get another answer: with the model, its adapter, its type, or this program.
    pub fingerprint: String,
}

pub struct Service {
    parts: ServiceParts,
    model_ends: Arc<[TokenId]>,
    /// Markers of thinking and calls that are control tokens of this model, in order.
    controls: Arc<[TokenId]>,
    /// Found when it is first asked for.
    end_of_turn: OnceLock<Option<TokenId>>,
    fingerprint: String,
    created: u64,
    seeds: Seeds,
    /// Bounds the work, and so the memory, of preparing prompts.
    preparations: Lane,
    pictures: Arc<Pictures>,
    constraining: Arc<Constraining>,
}

impl Service {
    pub fn new(parts: ServiceParts) -> Self {
        let ServiceParts { info, host, grammars, names, pictures, image_processor, metrics, .. } = &parts;
        assert!(!names.is_empty(), "a model has a name");
        // What cannot fit is refused before it is processed.
        let of_each = image_processor.as_ref().and_then(|processor| processor.num_tokens());
        let fitting = of_each.map_or(usize::MAX, |tokens| info.max_model_len / tokens);
        let pictures =
            PictureOptions { max_pictures: pictures.max_pictures.min(fitting), ..pictures.clone() };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            model_ends: info.eos_token_ids.clone().into(),
            controls: marker_tokens(&parts),
            end_of_turn: OnceLock::new(),
            fingerprint: fingerprint(info, &names[0]),
            created: unix_time(),
            seeds: Seeds::new(parts.seed),
            preparations: Lane::new(2 * cores),
            pictures: Arc::new(Pictures::new(pictures, image_processor.clone(), metrics.clone())),
            constraining: Arc::new(Constraining::new(parts.tokenizer.clone(), info, *host, *grammars)),
            parts,
        }
    }

    /// What grammars and other constraints of answers are made with.
    pub fn constraining(&self) -> &Arc<Constraining> {
        &self.constraining
    }

    /// Makes what the answers are asked to be held to. `thinking` says how the model marks its thinking in them.
    pub async fn constrain(
        &self,
        generation: &mut Generation,
        thinking: Option<ReasoningMarkers>,
    ) -> Result<(), ApiError> {
        let format = self.tool_format();
        // A grammar of the text must not keep the model from calling instead.
        let has_grammar = generation.asked.grammar.is_some() && format.is_some();
        let tools = generation.output.tools.clone().filter(|tools| tools.is_held() || has_grammar);
        let tools = tools.map(|tools| HeldTools { tools, format });
        let OutputOptions { is_framed, continues, .. } = generation.output;
        if is_framed && !continues && format.is_some_and(ToolFormat::frames_all) {
            let grammar = generation.asked.grammar.take();
            generation.asked.grammar = grammar.map(|grammar| framed(grammar, format)).transpose()?;
        }
        let stops = &generation.params.stop_token_ids;
        generation.constraint =
            self.constraining.constrain(&generation.asked, tools, stops, thinking).await?;
        Ok(())
    }

    pub fn info(&self) -> &ModelInfo {
        &self.parts.info
    }

    pub fn names(&self) -> &[String] {
        &self.parts.names
    }

    pub fn root(&self) -> &str {
        &self.parts.root
    }

    pub fn created(&self) -> u64 {
        self.created
    }

    pub fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.parts.tokenizer
    }

    pub fn defaults(&self) -> &GenerationDefaults {
        &self.parts.defaults
    }

    pub fn prompts(&self) -> &PromptBuilder {
        &self.parts.prompts
    }

    /// How the model writes calls; `None` where it is not known.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        self.parts.prompts.output().tools
    }

    pub fn adapters(&self) -> &Adapters {
        &self.parts.adapters
    }

    /// A request that names no model means the base. The answer repeats the name that was asked for.
    pub fn find_model(&self, asked: Option<&str>) -> Result<Found, ApiError> {
        let names = &self.parts.names;
        let name = asked.unwrap_or(&names[0]).to_owned();
        let base = &self.fingerprint;
        if names.contains(&name) {
            return Ok(Found { name, adapter: None, fingerprint: base.clone() });
        }
        match self.adapters().find(&name) {
            Some(adapter) => {
                let fingerprint = short_hash(&[base.as_bytes(), &adapter.digest].concat());
                Ok(Found { name, adapter: Some(adapter.id), fingerprint })
            }
            None => Err(ApiError::ModelNotFound { param: "model".into(), model: name }),
        }
    }

    /// Runs work that may take long on the blocking pool; few at a time.
    async fn prepare<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Service) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let service = self.clone();
        self.preparations.run(move |_| work(&service)).await?
    }

    pub async fn chat_prompt(self: &Arc<Self>, chat: ChatPrompt) -> Result<Prompt, ApiError> {
        let (prompt, vision) = self.build_chat(chat, PromptBuilder::build).await?;
        Ok(Prompt { vision, ..prompt })
    }

    /// The prompt with its text, for those who want to see it.
    pub async fn render_chat(self: &Arc<Self>, chat: ChatPrompt) -> Result<Rendered, ApiError> {
        self.build_chat(chat, PromptBuilder::render).await.map(|(rendered, _)| rendered)
    }

    /// What is built, and how long its pictures took.
    async fn build_chat<T: Send + 'static>(
        self: &Arc<Self>,
        chat: ChatPrompt,
        build: fn(&PromptBuilder, &PromptRequest) -> Result<T, PromptError>,
    ) -> Result<(T, Duration), ApiError> {
        let ChatPrompt { messages, tools, effort, mut kwargs, ending, salt } = chat;
        if tools.is_some() {
            self.check_tools()?;
        }
        if let (Some(effort), Some(template)) = (effort, self.parts.prompts.template()) {
            effort.apply(template, &mut kwargs);
        }
        let (messages, vision) = self.pictures.see(messages, salt).await?;
        let built = self.prepare(move |service| {
            let request =
                PromptRequest { messages: &messages, tools: tools.as_ref(), kwargs: &kwargs, ending };
            build(&service.parts.prompts, &request).map_err(prompt_error)
        });
        Ok((built.await?, vision))
    }

    /// The token that the chat template puts behind an answer, if it is one at which the model stops.
    pub async fn end_of_turn(self: &Arc<Self>) -> Result<Option<TokenId>, ApiError> {
        self.prepare(|service| Ok(*service.end_of_turn.get_or_init(|| find_end_of_turn(&service.parts))))
            .await
    }

    /// Tools that the model cannot read of, or whose calls nobody would understand, are refused.
    fn check_tools(&self) -> Result<(), ApiError> {
        let prompts = &self.parts.prompts;
        if prompts.template().is_some_and(|template| !template.shows_tools()) {
            let message = "the model's chat template does not show tools to the model";
            return Err(ApiError::unsupported("tools", message));
        }
        let OutputFormat { tools, tools_are_text, .. } = prompts.output();
        if prompts.template().is_some() && tools.is_none() && !tools_are_text {
            let message =
                "the chat template does not tell how the model writes calls; start with --tool-call-parser";
            return Err(ApiError::unsupported("tools", message));
        }
        Ok(())
    }

    /// Whether anything in the template follows `reasoning_effort`.
    pub fn follows_effort(&self, effort: Effort) -> bool {
        self.parts.prompts.template().is_some_and(|template| effort.is_followed_by(template))
    }

    /// Tokens of completion prompts. Control tokens in a text mean themselves, as in vLLM: whoever writes a raw prompt writes all of it.
    pub async fn completion_prompts(
        self: &Arc<Self>,
        prompts: Vec<RawPrompt>,
        add_special_tokens: bool,
    ) -> Result<Vec<Vec<TokenId>>, ApiError> {
        self.prepare(move |service| {
            prompts.into_iter().map(|prompt| service.encode(prompt, add_special_tokens)).collect()
        })
        .await
    }

    fn encode(&self, prompt: RawPrompt, add_special_tokens: bool) -> Result<Vec<TokenId>, ApiError> {
        let tokenizer = &self.parts.tokenizer;
        match prompt {
            RawPrompt::Tokens(tokens) => Ok(tokens),
            RawPrompt::Text(text) if add_special_tokens => {
                tokenizer.encode_with_added(&text).map_err(tokenizer_error)
            }
            RawPrompt::Text(text) => tokenizer.encode(&text, Specials::Allowed).map_err(tokenizer_error),
        }
    }

    /// The token that stands for a picture's rows needs a picture behind it: without one the model would see an embedding that it was
    /// never trained on. That of a video has never anything behind it.
    pub(crate) fn check_placeholders(&self, prompt: &Prompt, param: &'static str) -> Result<(), ApiError> {
        let Some(placeholder) = self.parts.info.image_token_id else { return Ok(()) };
        if let Some(video) = self.parts.info.video_token_id
            && let Some(position) = prompt.tokens.iter().position(|&token| token == video)
        {
            let name = self.tokenizer().token_text(video).unwrap_or_default();
            let message = format!(
                "token {position} is `{name}`, the place of a video, and the model is not served videos: send frames as pictures"
            );
            return Err(ApiError::invalid(param, message));
        }
        let mut spans = prompt.images.iter().peekable();
        for (position, &token) in prompt.tokens.iter().enumerate() {
            while spans.next_if(|span| span.end() <= position).is_some() {}
            let is_covered = spans.peek().is_some_and(|span| span.start <= position);
            if token == placeholder && !is_covered {
                let name = self.tokenizer().token_text(placeholder).unwrap_or_default();
                let message = format!(
                    "token {position} is `{name}`, the place of a picture, and has no picture behind it"
                );
                return Err(ApiError::invalid(param, message));
            }
        }
        Ok(())
    }

    /// A prompt as a sequence, checked against the model. `param` is the prompt's name in the request.
    pub(crate) fn sequence(
        &self,
        prompt: &Prompt,
        params: Arc<SamplingParams>,
        param: &'static str,
    ) -> Result<Sequence, ApiError> {
        let (tokens, images) = (prompt.tokens.clone(), prompt.images.clone());
        let vocab_size = self.parts.info.vocab_size;
        Sequence::new(SequenceId(0), tokens, images, params, vocab_size).map_err(|error| match error.param {
            "prompt" => ApiError::invalid(param, error.message),
            _ => error.into(),
        })
    }

    pub fn engine_has_failed(&self) -> bool {
        self.parts.engine.has_failed()
    }

    /// Hands sequences to the engine, which admits all of them or none.
    pub(crate) fn submit(&self, sequences: Vec<Sequence>) -> Result<Vec<EventStream>, ApiError> {
        self.parts.engine.submit(sequences).map_err(|error| match error {
            SubmitError::Full { waiting } => ApiError::QueueFull { waiting },
            SubmitError::Stopped => ApiError::Draining,
        })
    }

    /// Starts the answers to prompts: `n` for each, admitted together. `param` is the prompt's name in the request.
    pub fn start(
        &self,
        prompts: &[Prompt],
        generation: &Generation,
        param: &'static str,
    ) -> Result<Answers, ApiError> {
        let info = &self.parts.info;
        check_prompt_report(prompts, generation)?;
        let adapter = self.find_model(generation.model.as_deref())?.adapter;
        let mut sequences = Vec::with_capacity(prompts.len() * generation.n);
        for prompt in prompts {
            self.check_placeholders(prompt, param)?;
            let max_tokens =
                fit_max_tokens(prompt.tokens.len(), generation.max_tokens, info.max_model_len, param)?;
            let seed = generation.seed.unwrap_or_else(|| self.seeds.next());
            for index in 0..generation.n {
                let params = Arc::new(generation.params_of(index, seed, max_tokens));
                let mut sequence = self.sequence(prompt, params, param)?;
                if let Some(output) = generation.prompt_output(index) {
                    sequence = sequence.wanting(output)?;
                }
                if let Some(config) = generation.speculation {
                    sequence = sequence.speculating(config)?;
                }
                sequence.priority = generation.priority;
                sequence.salt = generation.salt;
                sequence.adapter = adapter;
                sequence.constraint = generation.constraint.as_ref().map(SequenceSpec::begin);
                sequences.push(sequence);
            }
        }
        let params: Vec<_> = sequences.iter().map(|sequence| sequence.params.clone()).collect();
        let streams = self.submit(sequences)?;
        for (stream, prompt) in
            streams.iter().zip(prompts.iter().flat_map(|p| std::iter::repeat_n(p, generation.n)))
        {
            stream.progress().set_vision(prompt.vision);
        }
        self.parts.metrics.request_arrived(generation.n);
        let prompt_of = |choice: usize| &prompts[choice / generation.n];
        let choices = streams
            .into_iter()
            .zip(params)
            .enumerate()
            .map(|(index, (events, params))| {
                let parsing = self.parsing(prompt_of(index), generation);
                Choice::new(events, params, self.tokenizer(), &self.model_ends, generation, parsing)
            })
            .collect();
        let prompt_tokens = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        Ok(Answers::new(choices, generation.n, prompt_tokens))
    }

    /// Of the model's thinking after this prompt; `None` where nothing tells it from text.
    pub fn reasoning_markers(&self, prompt: &Prompt) -> Option<ReasoningMarkers> {
        self.parts.prompts.output().reasoning.map(|format| ReasoningMarkers {
            start: format.start.to_owned(),
            end: format.end.to_owned(),
            open_in_prompt: prompt.opens_thinking,
        })
    }

    fn parsing(&self, prompt: &Prompt, generation: &Generation) -> Parsing {
        let OutputOptions { is_framed, splits_reasoning, hides_reasoning, tools, .. } = &generation.output;
        let format = self.tool_format();
        let signatures = match (tools, format) {
            (Some(tools), _) => Some(tools.signatures()),
            (None, Some(format)) if *is_framed && format.frames_all() => Some(Arc::default()),
            (None, _) => None,
        };
        let options = ParseOptions {
            reasoning: if *splits_reasoning { self.reasoning_markers(prompt) } else { None },
            tools: format.zip(signatures),
            id_stem: uuid::Uuid::new_v4().simple().to_string().into(),
        };
        let is_read = options.reasoning.is_some() || options.tools.is_some();
        Parsing {
            parser: Parser::new(options),
            controls: if is_read { self.controls.clone() } else { Arc::default() },
            one_call: tools.as_ref().is_some_and(|tools| !tools.parallel),
            hides_reasoning: *hides_reasoning,
        }
    }
}

/// The grammar of an answer's text, in a model's frame of answers.
fn framed(grammar: GrammarRequest, format: Option<ToolFormat>) -> Result<GrammarRequest, ApiError> {
    let GrammarRequest { source, param } = grammar;
    let Some(answer) = source.into_pattern(&param) else {
        let message = "a grammar in Lark cannot be put into the frame that this model has around answers";
        return Err(ApiError::unsupported(param, message));
    };
    Ok(GrammarRequest { source: GrammarSource::Pattern(grammar::framed(format, answer)), param })
}

/// Markers that the tokenizer calls special, and so does not show, have to reach the parser all the same.
fn marker_tokens(parts: &ServiceParts) -> Arc<[TokenId]> {
    let markers = parts.prompts.output().markers();
    let tokens = markers.iter().filter_map(|marker| parts.tokenizer.token_id(marker));
    let mut tokens: Vec<TokenId> = tokens.filter(|&token| parts.tokenizer.is_special(token)).collect();
    tokens.sort_unstable();
    tokens.into()
}

/// What comes last of an answer's tokens in a conversation that was answered. White space may follow it.
fn find_end_of_turn(parts: &ServiceParts) -> Option<TokenId> {
    let message = |role: &str, text: &str| Message {
        role: role.to_owned(),
        content: vec![Part::Text(text.to_owned())],
        ..Message::default()
    };
    let conversation = [message("user", "a"), message("assistant", "b")];
    let kwargs = serde_json::Map::new();
    let tokens = |messages: &[Message]| {
        let request = PromptRequest { messages, tools: None, kwargs: &kwargs, ending: Ending::Nothing };
        parts.prompts.build(&request).ok().map(|prompt| prompt.tokens)
    };
    let (asked, answered) = (tokens(&conversation[..1])?, tokens(&conversation)?);
    let num_same = asked.iter().zip(&answered).take_while(|(a, b)| a == b).count();
    answered[num_same..].iter().copied().rfind(|token| parts.info.eos_token_ids.contains(token))
}

/// Log-probabilities of prompts in one response: more would be hundreds of megabytes of JSON.
const PROMPT_LOGPROBS_MAX: usize = 1 << 20;

fn check_prompt_report(prompts: &[Prompt], generation: &Generation) -> Result<(), ApiError> {
    let Some(top) = generation.prompt_top else { return Ok(()) };
    let num_tokens: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    let reported = num_tokens.saturating_mul(top + 1).saturating_mul(generation.n);
    if reported <= PROMPT_LOGPROBS_MAX {
        return Ok(());
    }
    let param = if generation.report.prompt_logprobs.is_some() { "prompt_logprobs" } else { "logprobs" };
    let message = format!(
        "{num_tokens} prompt tokens with {top} alternatives in {} answers are {reported} log-probabilities, above {PROMPT_LOGPROBS_MAX}",
        generation.n
    );
    Err(ApiError::invalid(param, message))
}

/// What the request asks for, or what the context leaves.
pub(crate) fn fit_max_tokens(
    prompt_tokens: usize,
    asked: Option<usize>,
    limit: usize,
    param: &'static str,
) -> Result<usize, ApiError> {
    let room = limit.saturating_sub(prompt_tokens);
    let max_tokens = asked.unwrap_or(room.max(1));
    if prompt_tokens.saturating_add(max_tokens) > limit {
        return Err(ApiError::TooLong { param: param.into(), prompt_tokens, max_tokens, limit });
    }
    Ok(max_tokens)
}

fn prompt_error(error: PromptError) -> ApiError {
    match error {
        PromptError::Tokenizer(error) => tokenizer_error(error),
        error => ApiError::invalid(error.param().unwrap_or_else(|| "messages".into()), error.to_string()),
    }
}

fn tokenizer_error(error: TokenizerError) -> ApiError {
    tracing::error!(%error, "failed to tokenize");
    ApiError::Internal
}

/// Seeds for requests without one.
struct Seeds {
    first: u64,
    count: AtomicU64,
}

impl Seeds {
    fn new(seed: Option<u64>) -> Self {
        let first = seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        Self { first, count: AtomicU64::new(0) }
    }

    fn next(&self) -> u64 {
        let count = self.count.fetch_add(1, Relaxed);
        self.first.wrapping_add(count.wrapping_mul(0xD134_2543_DE82_EF95))
    }
}

fn fingerprint(info: &ModelInfo, name: &str) -> String {
    let ModelInfo {
        architecture,
        vocab_size,
        num_parameters,
        dtype,
        quantization,
        activations,
        kv_cache_dtype,
        ..
    } = info;
    let version = env!("CARGO_PKG_VERSION");
    let quantization = quantization.unwrap_or_default();
    let identity = format!(
        "{version} {name} {architecture} {vocab_size} {num_parameters} {dtype} {quantization} {activations} {kv_cache_dtype}"
    );
    short_hash(identity.as_bytes())
}

fn short_hash(bytes: &[u8]) -> String {
    format!("fp_{}", &blake3::hash(bytes).to_hex()[..12])
}
