//! The only meeting of async and engine. One OS thread owns the engine; channels reach it.
//!
//! ```text
//!   handlers ──Message──▶ bounded queue ──▶ engine thread: admit, drop the closed, step, publish
//!      ▲                                         │
//!      └──── EventStream, one a sequence ◀───────┘   room for all it can ever be sent, so publishing never waits
//! ```
//! A client that goes away drops its [`EventStream`]; the engine sees the closed channel before its next step and frees the blocks.

pub mod adapters;
mod clients;
mod event;
pub mod progress;
mod submission;
mod timed;

pub use adapters::{AdapterContent, AdapterHooks, AdapterRoom, AdaptersInUse, NewAdapter};
pub use event::{AddError, SequenceEvent, StopReason};
pub use progress::{Progress, Spent, Timings};

use crate::mailbox::{Departures, Receiver, mailbox};
use crate::metrics::{Metrics, TokenCounts};
use crate::throughput::Throughput;
use adapters::{Adding, Asked};
use clients::{Client, Clients, StepTimes};
use scheduler::{AdapterId, Engine, Event, ModelRunner, Reject, SchedulerConfig, Sequence, SequenceId};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use submission::Submission;
use timed::Timed;
use tokio::sync::{mpsc, oneshot};

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

    /// Whether there is nothing, and the task will be woken when there is.
    pub fn is_quiet(&self, context: &Context<'_>) -> bool {
        self.events.is_quiet(context)
    }

    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// The answer is complete: what the engine still does for it is for nothing.
    pub fn stop(self) {
        self.progress.stop();
    }
}

enum Message {
    /// Answers to one prompt are admitted together or not at all.
    Submit(Vec<Submission>),
    AddAdapter(Adding),
    RemoveAdapter(AdapterId, oneshot::Sender<()>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubmitError {
    Full { waiting: usize },
    Stopped,
}

#[derive(Clone)]
pub struct EngineHandle {
    messages: mpsc::Sender<Message>,
    stopping: Arc<AtomicBool>,
    departures: Departures,
}

impl EngineHandle {
    /// Never waits. Ids are given by the engine thread, in the order in which sequences reach it.
    pub fn submit(&self, sequences: Vec<Sequence>) -> Result<Vec<EventStream>, SubmitError> {
        let submitted = Instant::now();
        let mut streams = Vec::with_capacity(sequences.len());
        let mut submissions = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let (sender, events) = mailbox(sequence.num_events_max(), &self.departures);
            let progress = Arc::new(Progress::default());
            streams.push(EventStream { events, progress: progress.clone() });
            submissions.push(Submission { sequence, events: sender, progress, submitted });
        }
        match self.messages.try_send(Message::Submit(submissions)) {
            Ok(()) => Ok(streams),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(SubmitError::Full { waiting: self.messages.max_capacity() })
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SubmitError::Stopped),
        }
    }

    /// Resolves when sequences may use the adapter: between two steps.
    pub async fn add_adapter(&self, adapter: NewAdapter) -> Result<(), AddError> {
        let (done, added) = oneshot::channel();
        let message = Message::AddAdapter(Adding { adapter, done });
        self.messages.send(message).await.map_err(|_| AddError::Stopped)?;
        added.await.unwrap_or(Err(AddError::Stopped))
    }

    /// From now on no sequence of it is taken. Resolves when the last one has ended and the runner has let go of it; or the engine has ended.
    pub async fn remove_adapter(&self, id: AdapterId) {
        let (done, removed) = oneshot::channel();
        if self.messages.send(Message::RemoveAdapter(id, done)).await.is_ok() {
            let _ = removed.await;
        }
    }

    /// Ends every sequence with [`StopReason::Shutdown`] before the next step, and then the thread.
    pub fn stop(&self) {
        self.stopping.store(true, Relaxed);
        // Wakes an idle engine; a busy one, which may have a full queue, looks at the flag by itself.
        let _ = self.messages.try_send(Message::Submit(Vec::new()));
    }

    /// Whether the thread ended without being told to.
    pub fn has_failed(&self) -> bool {
        self.messages.is_closed() && !self.is_stopping()
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Requests and changes that were handed over since the engine last took some in, which it does between steps.
    pub fn num_pending(&self) -> usize {
        self.messages.max_capacity() - self.messages.capacity()
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

/// What `build` hands over: the parts of an engine, and what the server wants to know of them.
pub struct Parts<R, T> {
    pub runner: R,
    /// `None`: it takes none.
    pub adapters: Option<AdapterHooks<R>>,
    pub adapter_room: AdapterRoom,
    pub config: SchedulerConfig,
    pub metrics: Arc<Metrics>,
    pub loaded: T,
}

/// Starts the engine on its own thread, where `build` also runs: a runner need not be `Send`. Returns when `build` has.
/// `max_pending` bounds the requests that wait for the current step to end. The outer error is the system's, which gave no thread.
pub fn spawn<R, T, E>(
    max_pending: usize,
    build: impl FnOnce() -> Result<Parts<R, T>, E> + Send + 'static,
) -> std::io::Result<Result<EngineThread<T>, E>>
where
    R: ModelRunner,
    R::Error: std::fmt::Display,
    T: Send + 'static,
    E: Send + 'static,
{
    let (messages, receiver) = mpsc::channel(max_pending.max(1));
    let stopping = Arc::new(AtomicBool::new(false));
    let departures = Departures::default();
    let handle = EngineHandle { messages, stopping: stopping.clone(), departures: departures.clone() };
    let (built_sender, built) = std::sync::mpsc::channel();
    let (ended_sender, ended) = oneshot::channel();
    std::thread::Builder::new().name("engine".into()).spawn(move || {
        let Parts { runner, adapters, adapter_room, config, metrics, loaded } = match build() {
            Ok(parts) => parts,
            Err(error) => {
                let _ = built_sender.send(Err(error));
                return;
            }
        };
        let max_waiting = config.max_waiting;
        let engine = Engine::new(config, Timed::new(runner));
        let _ = built_sender.send(Ok(loaded));
        let engine = EngineLoop {
            engine,
            hooks: adapters,
            counts: metrics.token_counts(),
            metrics,
            stopping,
            clients: Clients::new(departures, adapter_room),
            max_waiting,
            next_id: 0,
            throughput: Throughput::new(),
            untold: Vec::new(),
        };
        let _ = ended_sender.send(engine.run(receiver));
    })?;
    let loaded = built.recv().unwrap_or_else(|_| panic!("the model's loader panicked"));
    Ok(loaded.map(|loaded| EngineThread { handle, loaded, ended }))
}

struct EngineLoop<R: ModelRunner> {
    engine: Engine<Timed<R>>,
    hooks: Option<AdapterHooks<R>>,
    metrics: Arc<Metrics>,
    stopping: Arc<AtomicBool>,
    clients: Clients,
    /// As the scheduler's: those that wait for an adapter wait as well.
    max_waiting: usize,
    /// Of the tokens of a step.
    counts: TokenCounts,
    next_id: u64,
    throughput: Throughput,
    /// What the last step said, if it is told while the next one runs.
    untold: Vec<Event>,
}

impl<R: ModelRunner> EngineLoop<R>
where
    R::Error: std::fmt::Display,
{
    fn run(mut self, mut messages: mpsc::Receiver<Message>) -> Ended {
        loop {
            if let Err(message) = self.change_adapters() {
                return self.give_up(messages, message);
            }
            // A step that runs for nobody any more is finished like any other.
            if self.clients.is_empty() && !self.engine.has_begun() {
                self.throughput.pause();
                let Some(message) = messages.blocking_recv() else { return Ok(()) };
                self.throughput.resume();
                self.take(message);
            }
            while let Ok(message) = messages.try_recv() {
                self.take(message);
            }
            if self.stopping.load(Relaxed) {
                self.tell();
                if let Err(message) = self.finish_accepting() {
                    tracing::error!(error = message, "failed to take in the last tokens");
                }
                self.take_last(&mut messages);
                self.fail(StopReason::Shutdown);
                return Ok(());
            }
            self.drop_closed();
            if self.clients.is_empty() && !self.engine.has_begun() {
                self.untold.clear();
                // Blocks of aborted sequences are free again: show it, although there is no step to run.
                self.metrics.occupancy(&self.engine.occupancy());
                continue;
            }
            self.show_adapters();
            if let Err(message) = self.step() {
                return self.give_up(messages, message);
            }
        }
    }

    fn give_up(&mut self, mut messages: mpsc::Receiver<Message>, message: String) -> Ended {
        self.tell();
        self.take_last(&mut messages);
        tracing::error!(error = message, sequences = self.clients.len(), "the engine failed");
        self.fail(StopReason::Failure(message.clone()));
        Err(message)
    }

    /// What was sent before anybody could know that nothing is taken any more.
    fn take_last(&mut self, messages: &mut mpsc::Receiver<Message>) {
        messages.close();
        while let Some(message) = messages.blocking_recv() {
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit(submissions) => self.admit(submissions),
            Message::AddAdapter(adding) => self.clients.adapters.add(adding),
            Message::RemoveAdapter(id, done) => self.clients.adapters.remove(id, done),
        }
    }

    /// Lets adapters come and go where no step has begun.
    fn change_adapters(&mut self) -> Result<(), String> {
        if !self.engine.has_begun() && self.clients.adapters.need_quiet() {
            let Self { engine, hooks: Some(hooks), clients, .. } = self else { return Ok(()) };
            let runner = &mut engine.runner_mut().runner;
            let refused = catch_unwind(AssertUnwindSafe(|| clients.adapters.change(runner, hooks)));
            for (submission, message) in refused.map_err(panicked)? {
                self.end_parked(submission, "error", Some(StopReason::Failure(message)));
            }
        }
        for submissions in self.clients.adapters.unpark() {
            self.begin(submissions);
        }
        self.show_adapters();
        Ok(())
    }

    fn show_adapters(&mut self) {
        if let Some(used) = self.clients.adapters.news() {
            self.metrics.adapters(&used);
        }
    }

    /// Starts the step behind the one that was begun, unless an adapter waits for there to be none.
    fn begin_ahead(&mut self) {
        if !self.clients.adapters.need_quiet() {
            self.engine.begin_ahead();
        }
    }

    /// A request that was parked ends before it has begun.
    fn end_parked(&mut self, submission: Submission, how: &'static str, told: Option<StopReason>) {
        let Submission { sequence, mut events, progress, submitted } = submission;
        if let Some(reason) = told {
            events.send(SequenceEvent::Failed(reason));
        }
        self.metrics.sequence_ended(&Client::new(&sequence, events, progress, submitted).record(how));
    }

    fn admit(&mut self, submissions: Vec<Submission>) {
        // All of a request have one.
        let Some(id) = submissions.first().and_then(|submission| submission.sequence.adapter) else {
            return self.begin(submissions);
        };
        let adapters = &mut self.clients.adapters;
        let tell_all = |submissions: Vec<Submission>, event: &dyn Fn() -> SequenceEvent| {
            for mut submission in submissions {
                submission.events.send(event());
            }
        };
        match adapters.ask(id) {
            Asked::Ready => self.begin(submissions),
            Asked::Gone => tell_all(submissions, &|| SequenceEvent::Failed(StopReason::AdapterGone)),
            Asked::Parked => {
                let waiting = self.engine.occupancy().waiting + adapters.num_parked();
                if waiting + submissions.len() <= self.max_waiting {
                    return adapters.park(id, submissions);
                }
                let reject = Reject::QueueFull { waiting };
                self.metrics.rejected(&reject);
                tell_all(submissions, &|| SequenceEvent::Rejected(reject.clone()));
            }
        }
    }

    /// Takes them in, all or none.
    fn begin(&mut self, submissions: Vec<Submission>) {
        let mut admitted = Vec::with_capacity(submissions.len());
        let mut submissions = submissions.into_iter();
        for Submission { mut sequence, events, progress, submitted } in submissions.by_ref() {
            let id = SequenceId(self.next_id);
            self.next_id += 1;
            sequence.id = id;
            let mut client = Client::new(&sequence, events, progress, submitted);
            match self.engine.add(sequence) {
                Ok(()) => {
                    self.clients.insert(id, client);
                    admitted.push(id);
                }
                Err(reject) => {
                    self.metrics.rejected(&reject);
                    for id in admitted.drain(..) {
                        self.engine.abort(id);
                        let mut sibling = self.clients.remove(id).expect("was just admitted");
                        sibling.reject(reject.clone());
                    }
                    for mut sibling in submissions {
                        sibling.events.send(SequenceEvent::Rejected(reject.clone()));
                    }
                    client.reject(reject);
                    return;
                }
            }
        }
    }

    fn drop_closed(&mut self) {
        let Self { engine, clients, metrics, .. } = self;
        clients.drop_closed(|id, record| {
            engine.abort(id);
            metrics.sequence_ended(&record);
        });
        let are_gone = |group: &[Submission]| group.iter().all(|submission| submission.events.is_closed());
        for submission in self.clients.adapters.drop_parked(are_gone) {
            let how = if submission.progress.is_stopped() { "stop" } else { "abort" };
            self.end_parked(submission, how, None);
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let begin = || {
            self.engine.begin();
            self.begin_ahead();
        };
        catch_unwind(AssertUnwindSafe(begin)).map_err(panicked)?;
        // A device that works alone has begun: clients are told of the step before this one meanwhile, and grammars take its tokens in.
        self.tell();
        self.finish_accepting()?;
        if !self.engine.has_begun() {
            return Ok(());
        }
        // Where grammars hold somebody, it is known now what may be drawn of the rows that the device computes, and who goes on behind them.
        let draw = || {
            self.engine.draw();
            self.begin_ahead();
        };
        catch_unwind(AssertUnwindSafe(draw)).map_err(panicked)?;
        let engine = &mut self.engine;
        let step = catch_unwind(AssertUnwindSafe(|| engine.finish())).map_err(panicked)?;
        let step = step.map_err(|error| error.to_string())?;
        let runner = self.engine.runner();
        let times = StepTimes {
            start: runner.start,
            end: Instant::now(),
            device: runner.elapsed(),
            encoding: Duration::from_micros(runner.runner.encode_us()),
        };
        self.metrics.device_time(times.device);
        self.clients.note(&step, &times, &mut self.counts);
        self.counts.flush();
        self.metrics.step(&step.stats);
        self.metrics.copies(&step.stats, self.engine.runner().runner.copy_us());
        self.throughput.add(&step.stats, times.end);
        self.untold = step.events;
        if !self.engine.runner().works_alone() {
            self.tell();
        }
        Ok(())
    }

    /// Ends those of whom their constraints say so now, after all that was told of them.
    fn finish_accepting(&mut self) -> Result<(), String> {
        let engine = &mut self.engine;
        let ended = catch_unwind(AssertUnwindSafe(|| engine.finish_accepting())).map_err(panicked)?;
        self.clients.tell(ended, &self.metrics);
        Ok(())
    }

    fn tell(&mut self) {
        self.clients.tell(std::mem::take(&mut self.untold), &self.metrics);
    }

    fn fail(&mut self, reason: StopReason) {
        for submission in self.clients.adapters.drop_parked(|_| true) {
            self.end_parked(submission, "error", Some(reason.clone()));
        }
        self.clients.fail(reason, &self.metrics);
    }
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
