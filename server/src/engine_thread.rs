//! The only meeting of async and engine. One OS thread owns the engine; channels reach it.
//!
//! ```text
//!   handlers ──Submit──▶ bounded queue ──▶ engine thread: admit, drop the closed, step, publish
//!      ▲                                        │
//!      └──── EventStream, one a sequence ◀──────┘   room for all it can ever be sent, so publishing never waits
//! ```
//! A client that goes away drops its [`EventStream`]; the engine sees the closed channel before its next step and frees the blocks.

use crate::device_share;
use crate::mailbox::{Receiver, Sender, mailbox};
use crate::metrics::{Metrics, SequenceRecord};
use crate::throughput::Throughput;
use scheduler::{
    Batch, Engine, Event, FinishReason, ModelRunner, PooledSum, PromptLogprob, Reject, SampledToken,
    SchedulerConfig, Sequence, SequenceId, StepOutput, StepStats,
};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

#[derive(Debug)]
pub enum SequenceEvent {
    /// Of the next so many tokens of the prompt.
    PromptLogprobs(Vec<PromptLogprob>),
    Pooled(PooledSum),
    Token(SampledToken),
    Finished(FinishReason),
    Rejected(Reject),
    /// The engine stopped before the sequence ended.
    Failed(StopReason),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The server was told to stop and this sequence did not end in time.
    Shutdown,
    Failure(String),
}

/// Where a sequence stands, written by the engine thread and read by whoever answers the client.
#[derive(Debug, Default)]
pub struct Progress {
    vision_us: AtomicU64,
    queue_us: AtomicU64,
    prefill_us: AtomicU64,
    cached_tokens: AtomicUsize,
    draft_tokens: AtomicUsize,
    accepted_tokens: AtomicUsize,
    /// The client has its whole answer although the engine could go on: a stop string was found.
    stopped: AtomicBool,
    each_token: EachToken,
}

/// Written with every token and read at the end: in a cache line of its own, so that the others need not be fetched with every token.
#[derive(Debug, Default)]
#[repr(align(64))]
struct EachToken {
    decode_us: AtomicU64,
    device_us: AtomicU64,
}

/// Times of one sequence. Device time is each step's time shared out among those who were in it: `device_share` says how.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Until its pictures were ready, before it was queued.
    pub vision: Duration,
    pub queue: Duration,
    pub prefill: Duration,
    pub decode: Duration,
    pub device: Duration,
    pub cached_tokens: usize,
    /// Tokens that were guessed for it, and those of them that the model said.
    pub draft_tokens: usize,
    pub accepted_tokens: usize,
}

impl Progress {
    pub fn timings(&self) -> Timings {
        let duration = |us: &AtomicU64| Duration::from_micros(us.load(Relaxed));
        Timings {
            vision: duration(&self.vision_us),
            queue: duration(&self.queue_us),
            prefill: duration(&self.prefill_us),
            decode: duration(&self.each_token.decode_us),
            device: duration(&self.each_token.device_us),
            cached_tokens: self.cached_tokens.load(Relaxed),
            draft_tokens: self.draft_tokens.load(Relaxed),
            accepted_tokens: self.accepted_tokens.load(Relaxed),
        }
    }

    /// Of the prompt, found in memory.
    pub fn cached_tokens(&self) -> usize {
        self.cached_tokens.load(Relaxed)
    }

    /// Known before the sequence is submitted.
    pub fn set_vision(&self, vision: Duration) {
        self.vision_us.store(micros(vision), Relaxed);
    }
}

/// What one client can still be sent. Dropping it cancels the sequence.
#[derive(Debug)]
pub struct EventStream {
    events: Receiver<SequenceEvent>,
    progress: Arc<Progress>,
}

impl EventStream {
    /// `None` when the engine thread ended without a word to this sequence.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<SequenceEvent>> {
        self.events.poll_next(context)
    }

    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// The answer is complete: what the engine still does for it is for nothing.
    pub fn stop(self) {
        self.progress.stopped.store(true, Relaxed);
    }
}

struct Submission {
    sequence: Sequence,
    events: Sender<SequenceEvent>,
    progress: Arc<Progress>,
    submitted: Instant,
}

/// Answers to one prompt are admitted together or not at all.
struct Submit(Vec<Submission>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubmitError {
    Full { waiting: usize },
    Stopped,
}

#[derive(Clone)]
pub struct EngineHandle {
    submits: mpsc::Sender<Submit>,
    stopping: Arc<AtomicBool>,
}

impl EngineHandle {
    /// Never waits. Ids are given by the engine thread, in the order in which sequences reach it.
    pub fn submit(&self, sequences: Vec<Sequence>) -> Result<Vec<EventStream>, SubmitError> {
        let submitted = Instant::now();
        let mut streams = Vec::with_capacity(sequences.len());
        let mut submissions = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let (sender, events) = mailbox(sequence.num_events_max());
            let progress = Arc::new(Progress::default());
            streams.push(EventStream { events, progress: progress.clone() });
            submissions.push(Submission { sequence, events: sender, progress, submitted });
        }
        match self.submits.try_send(Submit(submissions)) {
            Ok(()) => Ok(streams),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(SubmitError::Full { waiting: self.submits.max_capacity() })
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SubmitError::Stopped),
        }
    }

    /// Ends every sequence with [`StopReason::Shutdown`] before the next step, and then the thread.
    pub fn stop(&self) {
        self.stopping.store(true, Relaxed);
        // Wakes an idle engine; a busy one, which may have a full queue, looks at the flag by itself.
        let _ = self.submits.try_send(Submit(Vec::new()));
    }

    /// Whether the thread ended without being told to.
    pub fn has_failed(&self) -> bool {
        self.submits.is_closed() && !self.is_stopping()
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }
}

/// How the thread ended: `Err` is a failed or panicking step, after which the process should end too.
pub type Ended = Result<(), String>;

pub struct EngineThread<T> {
    pub handle: EngineHandle,
    /// What `build` made besides the engine.
    pub loaded: T,
    /// Resolves when the thread ends.
    pub ended: oneshot::Receiver<Ended>,
}

/// Times the runner: the scheduler knows no clock. A device does one step after the other, so a step takes from when it was begun, or from the
/// end of the one before if that is later, to its end.
struct Timed<R> {
    runner: R,
    /// When the steps were begun that are not executed, in order.
    begun: VecDeque<Instant>,
    /// When the last step started, and when it ended.
    start: Instant,
    end: Instant,
}

impl<R> Timed<R> {
    fn new(runner: R) -> Self {
        let now = Instant::now();
        Self { runner, begun: VecDeque::new(), start: now, end: now }
    }

    /// Of the last step.
    fn elapsed(&self) -> Duration {
        self.end - self.start
    }
}

impl<R: ModelRunner> ModelRunner for Timed<R> {
    type Error = R::Error;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, R::Error> {
        let begun = self.begun.pop_front().unwrap_or_else(Instant::now);
        self.start = begun.max(self.end);
        let output = self.runner.execute(batch);
        self.end = Instant::now();
        output
    }

    fn begin(&mut self, batch: &Batch) {
        if self.runner.works_alone() {
            self.begun.push_back(Instant::now());
            self.runner.begin(batch);
        }
    }

    fn takes_ahead(&self) -> bool {
        self.runner.takes_ahead()
    }

    fn works_alone(&self) -> bool {
        self.runner.works_alone()
    }
}

/// What `build` hands over: the parts of an engine, and what the server wants to know of them.
pub struct Parts<R, T> {
    pub runner: R,
    pub config: SchedulerConfig,
    pub metrics: Arc<Metrics>,
    pub loaded: T,
}

/// Starts the engine on its own thread, where `build` also runs: a runner need not be `Send`. Returns when `build` has.
/// `max_pending` bounds the requests that wait for the current step to end.
pub fn spawn<R, T, E>(
    max_pending: usize,
    build: impl FnOnce() -> Result<Parts<R, T>, E> + Send + 'static,
) -> Result<EngineThread<T>, E>
where
    R: ModelRunner,
    R::Error: std::fmt::Display,
    T: Send + 'static,
    E: Send + 'static,
{
    let (submits, receiver) = mpsc::channel(max_pending.max(1));
    let stopping = Arc::new(AtomicBool::new(false));
    let handle = EngineHandle { submits, stopping: stopping.clone() };
    let (built_sender, built) = std::sync::mpsc::channel();
    let (ended_sender, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            let Parts { runner, config, metrics, loaded } = match build() {
                Ok(parts) => parts,
                Err(error) => {
                    let _ = built_sender.send(Err(error));
                    return;
                }
            };
            let engine = Engine::new(config, Timed::new(runner));
            let _ = built_sender.send(Ok(loaded));
            let engine = EngineLoop {
                engine,
                metrics,
                stopping,
                clients: BTreeMap::new(),
                next_id: 0,
                throughput: Throughput::new(),
                untold: None,
            };
            let _ = ended_sender.send(engine.run(receiver));
        })
        .expect("the engine thread starts");
    let loaded = built.recv().unwrap_or_else(|_| panic!("the model's loader panicked"))?;
    Ok(EngineThread { handle, loaded, ended })
}

struct Client {
    events: Sender<SequenceEvent>,
    progress: Arc<Progress>,
    submitted: Instant,
    scheduled: Option<Instant>,
    /// Or the end of a prompt that is only read.
    first_token: Option<Instant>,
    last_token: Instant,
    num_tokens: usize,
    prompt_tokens: usize,
    max_tokens: usize,
    device: Duration,
    preemptions: usize,
}

struct EngineLoop<R: ModelRunner> {
    engine: Engine<Timed<R>>,
    metrics: Arc<Metrics>,
    stopping: Arc<AtomicBool>,
    clients: BTreeMap<SequenceId, Client>,
    next_id: u64,
    throughput: Throughput,
    /// What the last step said, if it is told while the next one runs.
    untold: Option<Told>,
}

/// The events of a step, and when it began and ended.
struct Told {
    events: Vec<Event>,
    start: Instant,
    end: Instant,
}

impl<R: ModelRunner> EngineLoop<R>
where
    R::Error: std::fmt::Display,
{
    fn run(mut self, mut submits: mpsc::Receiver<Submit>) -> Ended {
        loop {
            // A step that runs for nobody any more is finished like any other.
            if self.clients.is_empty() && !self.engine.has_begun() {
                self.throughput.pause();
                let Some(submit) = submits.blocking_recv() else { return Ok(()) };
                self.throughput.resume();
                self.admit(submit);
            }
            while let Ok(submit) = submits.try_recv() {
                self.admit(submit);
            }
            if self.stopping.load(Relaxed) {
                self.tell();
                submits.close();
                while let Some(submit) = submits.blocking_recv() {
                    self.admit(submit);
                }
                self.fail(StopReason::Shutdown);
                return Ok(());
            }
            self.drop_closed();
            if self.clients.is_empty() && !self.engine.has_begun() {
                self.untold = None;
                // Blocks of aborted sequences are free again: show it, although there is no step to run.
                self.metrics.occupancy(&self.engine.occupancy());
                continue;
            }
            if let Err(message) = self.step() {
                self.tell();
                submits.close();
                while let Some(submit) = submits.blocking_recv() {
                    self.admit(submit);
                }
                tracing::error!(error = message, sequences = self.clients.len(), "the engine failed");
                self.fail(StopReason::Failure(message.clone()));
                return Err(message);
            }
        }
    }

    fn admit(&mut self, Submit(submissions): Submit) {
        let mut admitted = Vec::with_capacity(submissions.len());
        let mut submissions = submissions.into_iter();
        for Submission { mut sequence, events, progress, submitted } in submissions.by_ref() {
            let id = SequenceId(self.next_id);
            self.next_id += 1;
            sequence.id = id;
            let mut client = Client {
                events,
                progress,
                submitted,
                scheduled: None,
                first_token: None,
                last_token: submitted,
                num_tokens: 0,
                prompt_tokens: sequence.prompt_len(),
                max_tokens: sequence.params.max_tokens,
                device: Duration::ZERO,
                preemptions: 0,
            };
            match self.engine.add(sequence) {
                Ok(()) => {
                    self.clients.insert(id, client);
                    admitted.push(id);
                }
                Err(reject) => {
                    self.metrics.rejected(&reject);
                    for id in admitted.drain(..) {
                        self.engine.abort(id);
                        let mut sibling = self.clients.remove(&id).expect("was just admitted");
                        sibling.events.send(SequenceEvent::Rejected(reject.clone()));
                    }
                    for mut sibling in submissions {
                        sibling.events.send(SequenceEvent::Rejected(reject.clone()));
                    }
                    client.events.send(SequenceEvent::Rejected(reject));
                    return;
                }
            }
        }
    }

    fn drop_closed(&mut self) {
        let Self { engine, clients, metrics, .. } = self;
        clients.retain(|&id, client| {
            let gone = client.events.is_closed();
            if gone {
                engine.abort(id);
                let reason = if client.progress.stopped.load(Relaxed) { "stop" } else { "abort" };
                metrics.sequence_ended(&client.record(reason));
            }
            !gone
        });
    }

    fn step(&mut self) -> Result<(), String> {
        let engine = &mut self.engine;
        let begin = || {
            engine.begin();
            engine.begin_ahead();
        };
        catch_unwind(AssertUnwindSafe(begin)).map_err(panicked)?;
        // A device that works alone has begun: clients are told of the step before this one meanwhile.
        self.tell();
        if !self.engine.has_begun() {
            return Ok(());
        }
        let engine = &mut self.engine;
        let step = catch_unwind(AssertUnwindSafe(|| engine.finish())).map_err(panicked)?;
        let step = step.map_err(|error| error.to_string())?;
        let end = Instant::now();
        self.share_device_time(&step.stats);
        self.count_drafts(&step.stats);
        self.metrics.step(&step.stats);
        self.throughput.add(&step.stats, end);
        let start = self.engine.runner().start;
        self.untold = Some(Told { events: step.events, start, end });
        if !self.engine.runner().works_alone() {
            self.tell();
        }
        Ok(())
    }

    fn tell(&mut self) {
        let Some(Told { events, start, end }) = self.untold.take() else { return };
        for event in events {
            self.publish(event, start, end);
        }
    }

    fn share_device_time(&mut self, stats: &StepStats) {
        let runner = self.engine.runner();
        let encoding = Duration::from_micros(runner.runner.encode_us());
        self.metrics.device_time(runner.elapsed());
        for (id, share) in device_share::of_step(runner.elapsed(), encoding, &stats.shares) {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            client.device += share;
            client.progress.each_token.device_us.store(micros(client.device), Relaxed);
        }
    }

    fn count_drafts(&mut self, stats: &StepStats) {
        for draft in &stats.drafts {
            let Some(client) = self.clients.get(&draft.id) else { continue };
            client.progress.draft_tokens.fetch_add(draft.num_drafted, Relaxed);
            client.progress.accepted_tokens.fetch_add(draft.num_accepted, Relaxed);
        }
    }

    /// Of a client that is still there: it may have gone since the step.
    fn publish(&mut self, event: Event, step_start: Instant, now: Instant) {
        let Some(client) = self.clients.get_mut(&event.id()) else { return };
        match event {
            Event::Started { cached_tokens, .. } => {
                client.scheduled = Some(step_start);
                let queue = step_start.saturating_duration_since(client.submitted);
                client.progress.queue_us.store(micros(queue), Relaxed);
                client.progress.cached_tokens.store(cached_tokens, Relaxed);
            }
            Event::PromptLogprobs { logprobs, .. } => {
                client.events.send(SequenceEvent::PromptLogprobs(logprobs))
            }
            Event::Pooled { pooled, .. } => client.events.send(SequenceEvent::Pooled(pooled)),
            Event::Token { token, .. } => {
                client.token(now, &self.metrics);
                client.events.send(SequenceEvent::Token(token));
            }
            Event::Finished { id, reason, preemptions } => {
                let Some(mut client) = self.clients.remove(&id) else { return };
                client.preemptions = preemptions;
                if reason == FinishReason::Length && client.num_tokens == 0 {
                    client.prompt_read(now, &self.metrics);
                }
                client.events.send(SequenceEvent::Finished(reason));
                let reason = match reason {
                    FinishReason::Stop | FinishReason::Complete => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Failed(_) => {
                        self.metrics.numerical_error();
                        "error"
                    }
                };
                self.metrics.sequence_ended(&client.record(reason));
            }
        }
    }

    fn fail(&mut self, reason: StopReason) {
        for mut client in std::mem::take(&mut self.clients).into_values() {
            client.events.send(SequenceEvent::Failed(reason.clone()));
            self.metrics.sequence_ended(&client.record("error"));
        }
    }
}

impl Client {
    /// It ends without an answer, which nobody wanted.
    fn prompt_read(&mut self, now: Instant, metrics: &Metrics) {
        self.first_token = Some(now);
        let scheduled = self.scheduled.unwrap_or(self.submitted);
        self.progress.prefill_us.store(micros(now - scheduled), Relaxed);
        metrics.prompt_read(self.prompt_tokens);
    }

    fn token(&mut self, now: Instant, metrics: &Metrics) {
        match self.first_token {
            None => {
                self.first_token = Some(now);
                let scheduled = self.scheduled.unwrap_or(self.submitted);
                self.progress.prefill_us.store(micros(now - scheduled), Relaxed);
                metrics.first_token(now - self.submitted, self.prompt_tokens);
            }
            Some(first) => {
                self.progress.each_token.decode_us.store(micros(now - first), Relaxed);
                // Tokens of one step come at once: the time between them is that between steps, told once, as in vLLM.
                let since_last = now - self.last_token;
                metrics.next_token((now > self.last_token).then_some(since_last));
            }
        }
        self.last_token = now;
        self.num_tokens += 1;
    }

    fn record(&self, reason: &'static str) -> SequenceRecord {
        SequenceRecord {
            reason,
            timings: self.progress.timings(),
            has_started: self.first_token.is_some(),
            e2e: self.submitted.elapsed(),
            prompt_tokens: self.prompt_tokens,
            generation_tokens: self.num_tokens,
            max_tokens: self.max_tokens,
            preemptions: self.preemptions,
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> String {
    format!("the engine panicked: {}", panic_message(&*panic))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
