//! Those whom the engine's thread works for: what a step was for each of them, and what it says to them.
//!
//! A step is noted for everybody before anything of it is told, so that whoever has a token finds it in the metrics.

use super::adapters::{AdapterRoom, Adapters};
use super::event::{SequenceEvent, StopReason};
use super::progress::{Progress, Spent, micros};
use crate::device_share;
use crate::mailbox::{Departures, Sender};
use crate::metrics::{Metrics, SequenceRecord, TokenCounts};
use scheduler::{AdapterId, Event, Failure, FinishReason, Reject, Sequence, SequenceId, Step};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub struct Client {
    pub(super) events: Sender<SequenceEvent>,
    last_token: Instant,
    /// Or the end of a prompt that is only read.
    first_token: Option<Instant>,
    device: Duration,
    num_tokens: usize,
    progress: Arc<Progress>,
    adapter: Option<AdapterId>,
    submitted: Instant,
    scheduled: Option<Instant>,
    prompt_tokens: usize,
    max_tokens: usize,
    preemptions: usize,
}

/// When a step began and ended, how long the device took, and how long of that for pictures.
pub struct StepTimes {
    pub start: Instant,
    pub end: Instant,
    pub device: Duration,
    pub encoding: Duration,
}

pub struct Clients {
    by_id: BTreeMap<SequenceId, Client>,
    pub adapters: Adapters,
    departures: Departures,
    /// What they were when everybody was last asked; `None`: somebody is new, who may have gone before.
    asked_at: Option<u64>,
}

impl Clients {
    pub fn new(departures: Departures, room: AdapterRoom) -> Self {
        Self { by_id: BTreeMap::new(), adapters: Adapters::new(room), departures, asked_at: None }
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn insert(&mut self, id: SequenceId, client: Client) {
        self.adapters.begin_waiting(client.adapter);
        self.by_id.insert(id, client);
        self.asked_at = None;
    }

    pub fn remove(&mut self, id: SequenceId) -> Option<Client> {
        let client = self.by_id.remove(&id)?;
        client.leave(&mut self.adapters);
        Some(client)
    }

    /// Lets go of those who have gone, each of whom `gone` is told of.
    pub fn drop_closed(&mut self, mut gone: impl FnMut(SequenceId, SequenceRecord)) {
        let departures = self.departures.count();
        if self.asked_at == Some(departures) {
            return;
        }
        self.asked_at = Some(departures);
        let Self { by_id, adapters, .. } = self;
        by_id.retain(|&id, client| {
            let is_gone = client.events.is_closed();
            if is_gone {
                client.leave(adapters);
                gone(id, client.record(if client.progress.is_stopped() { "stop" } else { "abort" }));
            }
            !is_gone
        });
    }

    /// Reads what a step's news need of everybody, for the reason that `scheduler::Scheduler::commit` has for the same.
    fn fetch(&self) {
        let read = self.by_id.values().map(|client| {
            usize::from(client.events.is_closed()) ^ client.num_tokens ^ client.device.subsec_nanos() as usize
        });
        std::hint::black_box(read.fold(0, |all, read| all ^ read));
    }

    /// What a step was for those who are still there.
    pub fn note(&mut self, step: &Step, times: &StepTimes, counts: &mut TokenCounts) {
        self.fetch();
        let shares = device_share::of_step(times.device, times.encoding, &step.stats.shares);
        each(&mut self.by_id, shares, |client, share| client.device += share);
        for draft in &step.stats.drafts {
            if let Some(client) = self.by_id.get(&draft.id) {
                client.progress.count_draft(draft.num_drafted, draft.num_accepted);
            }
        }
        let events = step.events.iter().map(|event| (event.id(), event));
        let Self { by_id, adapters, .. } = self;
        each(by_id, events, |client, event| {
            if let Event::Started { .. } = event {
                adapters.begin_running(client.adapter);
            }
            client.note(event, times, counts);
        });
    }

    /// To those who are still there: they may have gone since the step.
    pub fn tell(&mut self, events: Vec<Event>, metrics: &Metrics) {
        let mut ended = Vec::new();
        let events = events.into_iter().map(|event| (event.id(), event));
        each(&mut self.by_id, events, |client, event| {
            if let Event::Finished { id, .. } = event {
                ended.push(id);
            }
            client.tell(event, metrics);
        });
        for id in ended {
            self.remove(id);
        }
    }

    /// Ends them all.
    pub fn fail(&mut self, reason: StopReason, metrics: &Metrics) {
        for mut client in std::mem::take(&mut self.by_id).into_values() {
            client.leave(&mut self.adapters);
            metrics.sequence_ended(&client.record("error"));
            client.events.send(SequenceEvent::Failed(reason.clone()));
        }
    }
}

/// Calls `f` with each thing and its client, where that one is there. Things mostly come in the order of their ids, as in a batch: a run of
/// them costs one look-up and a walk.
fn each<T>(
    clients: &mut BTreeMap<SequenceId, Client>,
    things: impl IntoIterator<Item = (SequenceId, T)>,
    mut f: impl FnMut(&mut Client, T),
) {
    let mut things = things.into_iter().peekable();
    while let Some(&(first, _)) = things.peek() {
        let mut last = first;
        let mut walk = clients.range_mut(first..);
        let mut client = walk.next();
        while let Some((id, thing)) = things.next_if(|&(id, _)| id >= last) {
            last = id;
            while client.as_ref().is_some_and(|&(&other, _)| other < id) {
                client = walk.next();
            }
            if let Some((_, client)) = client.as_mut().filter(|(other, _)| **other == id) {
                f(client, thing);
            }
        }
    }
}

impl Client {
    pub fn new(
        sequence: &Sequence,
        events: Sender<SequenceEvent>,
        progress: Arc<Progress>,
        submitted: Instant,
    ) -> Self {
        Self {
            events,
            progress,
            adapter: sequence.adapter,
            submitted,
            scheduled: None,
            first_token: None,
            last_token: submitted,
            num_tokens: 0,
            prompt_tokens: sequence.prompt_len(),
            max_tokens: sequence.params.max_tokens,
            device: Duration::ZERO,
            preemptions: 0,
        }
    }

    fn leave(&self, adapters: &mut Adapters) {
        adapters.end(self.adapter, self.scheduled.is_some());
    }

    pub fn reject(&mut self, reject: Reject) {
        self.events.send(SequenceEvent::Rejected(reject));
    }

    fn note(&mut self, event: &Event, times: &StepTimes, counts: &mut TokenCounts) {
        match *event {
            Event::Started { cached_tokens, .. } => {
                self.scheduled = Some(times.start);
                let queue = times.start.saturating_duration_since(self.submitted);
                self.progress.start(queue, cached_tokens);
            }
            Event::Token { .. } => self.note_token(times.end, counts),
            // It ends without an answer, which nobody wanted.
            Event::Finished { reason: FinishReason::Length, .. } if self.num_tokens == 0 => {
                self.prompt_ends(times.end);
                counts.metrics.prompt_read(self.prompt_tokens);
            }
            Event::Finished { .. } | Event::PromptLogprobs { .. } | Event::Pooled { .. } => {}
        }
    }

    fn note_token(&mut self, now: Instant, counts: &mut TokenCounts) {
        match self.first_token {
            None => {
                self.prompt_ends(now);
                counts.metrics.first_token(now - self.submitted, self.prompt_tokens);
            }
            Some(_) => {
                // Tokens of one step come at once: the time between them is that between steps, told once, as in vLLM.
                let since_last = now - self.last_token;
                counts.next_token((now > self.last_token).then_some(since_last));
            }
        }
        self.last_token = now;
        self.num_tokens += 1;
    }

    fn prompt_ends(&mut self, now: Instant) {
        self.first_token = Some(now);
        let scheduled = self.scheduled.unwrap_or(self.submitted);
        self.progress.set_prefill(now - scheduled);
    }

    fn spent(&self) -> Spent {
        let decode = self.first_token.map_or(Duration::ZERO, |first| self.last_token.duration_since(first));
        Spent { decode_us: micros(decode), device_us: micros(self.device) }
    }

    fn tell(&mut self, event: Event, metrics: &Metrics) {
        let event = match event {
            Event::Started { .. } => return,
            Event::PromptLogprobs { logprobs, .. } => SequenceEvent::PromptLogprobs(logprobs),
            Event::Pooled { pooled, .. } => SequenceEvent::Pooled(pooled),
            Event::Token { token, .. } => SequenceEvent::Token(token, self.spent()),
            Event::Finished { reason, preemptions, .. } => {
                self.preemptions = preemptions;
                let name = match reason {
                    FinishReason::Stop | FinishReason::Complete => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Failed(failure) => {
                        if failure == Failure::NonFiniteLogits {
                            metrics.numerical_error();
                        }
                        "error"
                    }
                };
                // Who reads the metrics after its answer finds it counted.
                metrics.sequence_ended(&self.record(name));
                SequenceEvent::Finished(reason, self.spent())
            }
        };
        self.events.send(event);
    }

    pub fn record(&self, reason: &'static str) -> SequenceRecord {
        SequenceRecord {
            reason,
            timings: self.progress.timings(self.spent()),
            has_started: self.first_token.is_some(),
            e2e: self.submitted.elapsed(),
            prompt_tokens: self.prompt_tokens,
            generation_tokens: self.num_tokens,
            max_tokens: self.max_tokens,
            preemptions: self.preemptions,
        }
    }
}
