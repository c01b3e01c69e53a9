//! Grammars, compiled once each: off the async threads, with a limit of time, and kept while there is room.

use super::error::{GrammarError, GrammarFault};
use super::grammar_state::{GrammarState, Setting};
use super::source::GrammarSource;
use super::vocabulary::Vocabulary;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use scheduler::TokenId;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use toktrie::TokEnv;

#[derive(Debug, Clone, Copy)]
pub struct CompilerLimits {
    /// After this the request is refused; the work then ends at the engine's own limits.
    pub compile_time: Duration,
    /// How long the place of an error in a schema is looked for.
    pub locate_time: Duration,
    /// Compilations at once, those given up on included.
    pub num_compiling: usize,
    /// Grammars that are kept.
    pub num_cached: usize,
}

impl Default for CompilerLimits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            compile_time: Duration::from_secs(10),
            locate_time: Duration::from_secs(2),
            num_compiling: cores.max(2),
            num_cached: 128,
        }
    }
}

/// A compiled grammar; cheap to clone.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

struct Compiled {
    /// At the grammar's beginning; never advanced.
    fresh: Mutex<Matcher>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

impl Grammar {
    fn fresh(&self) -> Matcher {
        lock(&self.0.fresh).deep_clone()
    }

    pub fn state(&self, setting: &Setting) -> GrammarState {
        GrammarState::new(self.fresh(), setting.clone())
    }

    /// Whether it is the very same, and not only equal.
    #[cfg(test)]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub fn checker(&self) -> Checker {
        Checker(self.fresh())
    }
}

/// Asks a grammar what it can begin with.
pub struct Checker(Matcher);

impl Checker {
    pub fn can_begin_with(&mut self, tokens: &[TokenId]) -> bool {
        self.0.validate_tokens(tokens).is_ok_and(|valid| valid == tokens.len())
    }
}

pub struct GrammarCompiler {
    make_vocabulary: Box<dyn Fn() -> Vocabulary + Send + Sync>,
    engine: OnceLock<Result<Engine, GrammarError>>,
    limits: CompilerLimits,
    num_compiling: Arc<AtomicUsize>,
    cache: Mutex<Cache>,
}

struct Engine {
    vocabulary: Arc<Vocabulary>,
    factory: Arc<ParserFactory>,
}

impl GrammarCompiler {
    /// `make_vocabulary` is called once, before the first grammar is compiled: a large one takes a second.
    pub fn new(
        make_vocabulary: impl Fn() -> Vocabulary + Send + Sync + 'static,
        limits: CompilerLimits,
    ) -> Self {
        Self {
            make_vocabulary: Box::new(make_vocabulary),
            engine: OnceLock::new(),
            limits,
            num_compiling: Arc::default(),
            cache: Mutex::new(Cache { grammars: HashMap::new(), clock: 0, capacity: limits.num_cached }),
        }
    }

    /// Waits for the vocabulary, which the first call makes.
    pub fn vocabulary(&self) -> Result<Arc<Vocabulary>, GrammarError> {
        Ok(self.engine()?.vocabulary.clone())
    }

    fn engine(&self) -> Result<&Engine, GrammarError> {
        let make = || {
            let vocabulary = Arc::new((self.make_vocabulary)());
            let env: TokEnv = vocabulary.clone();
            let mut factory = ParserFactory::new_simple(&env)
                .map_err(|error| GrammarError::new(GrammarFault::Internal, error.to_string()))?;
            factory.quiet();
            *factory.limits_mut() = engine_limits();
            Ok(Engine { vocabulary, factory: Arc::new(factory) })
        };
        self.engine.get_or_init(make).as_ref().map_err(GrammarError::clone)
    }

    /// Compiles, or finds what was compiled before. Takes up to the time limit: not for an async thread.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        let key = source.key();
        if let Some(grammar) = self.cache().get(&key) {
            return Ok(grammar);
        }
        let engine = self.engine()?;
        let lowered = source.lower(&engine.vocabulary)?;
        let factory = engine.factory.clone();
        let time = self.limits.compile_time;
        let grammar = match self.within_limits(time, move || compile(&factory, lowered))? {
            Ok(grammar) => grammar,
            Err(error) => return Err(self.located(source, error, engine)),
        };
        self.cache().put(key, grammar.clone());
        Ok(grammar)
    }

    /// The engine's error with its place in a schema, if that can be found soon.
    fn located(&self, source: &GrammarSource, error: GrammarError, engine: &Engine) -> GrammarError {
        if !matches!(error.fault, GrammarFault::Invalid | GrammarFault::TooComplex) {
            return error;
        }
        let (source, factory, vocabulary) =
            (source.clone(), engine.factory.clone(), engine.vocabulary.clone());
        let fault = error.clone();
        let time = self.limits.locate_time;
        let until = Instant::now() + time;
        let work = move || {
            let mut is_refused = |schema: &Value, whitespace| {
                let source = GrammarSource::Schema { schema: schema.clone(), whitespace };
                source.lower(&vocabulary).is_ok_and(|lowered| compile(&factory, lowered).is_err())
            };
            source.locate(fault, &mut is_refused, &|| Instant::now() < until)
        };
        self.within_limits(time, work).unwrap_or(error)
    }

    /// Runs `work` on a thread with room for deep recursion. After `time` it is not waited for any more.
    fn within_limits<T: Send + 'static>(
        &self,
        time: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, GrammarError> {
        let permit = Permit::take(&self.num_compiling, self.limits.num_compiling)?;
        let (done, result) = sync_channel(1);
        let work = move || {
            let made = work();
            drop(permit);
            let _ = done.send(made);
        };
        std::thread::Builder::new()
            .name("grammar".into())
            .stack_size(STACK_LEN)
            .spawn(work)
            .map_err(|error| GrammarError::new(GrammarFault::Internal, error.to_string()))?;
        result.recv_timeout(time).map_err(|error| match error {
            RecvTimeoutError::Timeout => GrammarError::new(
                GrammarFault::TooComplex,
                format!("it takes longer to compile than {} s", time.as_secs_f64()),
            ),
            RecvTimeoutError::Disconnected => {
                GrammarError::new(GrammarFault::Internal, "the compiler panicked")
            }
        })
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        lock(&self.cache)
    }
}

/// Deep schemas are compiled recursively. Only what is used of it is ever backed by memory.
const STACK_LEN: usize = 256 << 20;

/// The engine's defaults, except where one sequence could take hundreds of megabytes.
fn engine_limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 50_000, verbose_errors: false, ..ParserLimits::default() }
}

fn compile(factory: &ParserFactory, lowered: TopLevelGrammar) -> Result<Grammar, GrammarError> {
    let mut matcher = Matcher::new(factory.create_parser(lowered));
    // The first mask shows whether anything satisfies the grammar, and each sequence starts with what it made.
    match matcher.compute_mask_or_eos() {
        Ok(mask) if !mask.is_zero() => Ok(Grammar(Arc::new(Compiled { fresh: Mutex::new(matcher) }))),
        Ok(_) => Err(GrammarError::invalid("nothing satisfies it")),
        Err(error) => Err(engine_error(&error.to_string())),
    }
}

fn engine_error(message: &str) -> GrammarError {
    let message = message.split("<non-verbose/>").next().unwrap_or_default();
    let message = message.split("\n<backtrace>").next().unwrap_or_default().trim();
    let is_limit = ["too complex", "too large", "fuel", "limit", "TooComplex", "stack level"];
    let fault = match message {
        message if message.starts_with("panic:") => GrammarFault::Internal,
        message if is_limit.iter().any(|sign| message.contains(sign)) => GrammarFault::TooComplex,
        _ => GrammarFault::Invalid,
    };
    let mut end = message.len().min(MESSAGE_LEN_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    GrammarError::new(fault, &message[..end])
}

const MESSAGE_LEN_MAX: usize = 500;

/// One of the compilations that may run at once.
struct Permit(Arc<AtomicUsize>);

impl Permit {
    fn take(count: &Arc<AtomicUsize>, max: usize) -> Result<Self, GrammarError> {
        let taken = count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < max).then_some(count + 1));
        match taken {
            Ok(_) => Ok(Self(count.clone())),
            Err(num_compiling) => Err(GrammarError::new(
                GrammarFault::Busy,
                format!("{num_compiling} grammars are being compiled"),
            )),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The grammars used last.
struct Cache {
    grammars: HashMap<[u8; 32], (u64, Grammar)>,
    clock: u64,
    capacity: usize,
}

impl Cache {
    fn get(&mut self, key: &[u8; 32]) -> Option<Grammar> {
        self.clock += 1;
        let (used, grammar) = self.grammars.get_mut(key)?;
        *used = self.clock;
        Some(grammar.clone())
    }

    fn put(&mut self, key: [u8; 32], grammar: Grammar) {
        self.clock += 1;
        self.grammars.insert(key, (self.clock, grammar));
        while self.grammars.len() > self.capacity {
            let oldest = self.grammars.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            let Some(oldest) = oldest else { break };
            self.grammars.remove(&oldest);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
