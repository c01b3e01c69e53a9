//! One response that is kept, from when it is known to when it is forgotten. A background response is known from its beginning: who
//! asks for it sees how far it is, who follows it gets its events, and it can be told to stop.

use super::item::Item;
use super::response::{Outline, State, Status};
use crate::openai::stream::COMMENT;
use axum::body::Bytes;
use bytes::BytesMut;
use futures::Stream;
use futures::stream::unfold;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How a response ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: Status,
    /// The whole response.
    pub json: String,
    /// Its output, for the conversation that goes on.
    pub output: Vec<Arc<Item>>,
}

pub struct Kept {
    pub outline: Arc<Outline>,
    /// All items that it answers, from the conversation's first.
    pub context: Vec<Arc<Item>>,
    outcome: OnceLock<Outcome>,
    /// `None` for a response that was there only when it had ended.
    background: Option<Background>,
}

struct Background {
    progress: watch::Sender<Progress>,
    /// Whole events, each at its own number; `None` where nobody may follow.
    events: Option<Mutex<Vec<Bytes>>>,
    stop: Notify,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    has_begun: bool,
    has_ended: bool,
    num_events: usize,
}

impl Kept {
    /// A response that has ended.
    pub fn ended(outline: Arc<Outline>, context: Vec<Arc<Item>>, outcome: Outcome) -> Self {
        Self { outline, context, outcome: OnceLock::from(outcome), background: None }
    }

    /// A response that is being made in the background.
    pub fn running(outline: Arc<Outline>, context: Vec<Arc<Item>>, is_followed: bool) -> Self {
        let background = Background {
            progress: watch::Sender::new(Progress::default()),
            events: is_followed.then(Mutex::default),
            stop: Notify::new(),
        };
        Self { outline, context, outcome: OnceLock::new(), background: Some(background) }
    }

    pub fn id(&self) -> &str {
        &self.outline.head.id
    }

    /// `None` while it runs.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    pub fn is_background(&self) -> bool {
        self.background.is_some()
    }

    /// The response as it is now.
    pub fn json(&self) -> String {
        if let Some(outcome) = self.outcome() {
            return outcome.json.clone();
        }
        let has_begun = self.background.as_ref().is_some_and(|b| b.progress.borrow().has_begun);
        let state = if has_begun { State::InProgress } else { State::Queued };
        serde_json::to_string(&self.outline.object(state, &[], None)).expect("responses serialise")
    }

    /// Bytes of memory, without the items.
    pub fn num_bytes(&self) -> u64 {
        let events = self.background.as_ref().and_then(|background| background.events.as_ref());
        let events: usize = events
            .map_or(0, |events| lock(events).iter().map(|event| event.len() + size_of::<Bytes>()).sum());
        let json = self.outcome().map_or(0, |outcome| outcome.json.len());
        let echo = self.outline.echo.num_bytes();
        (events + json + echo + size_of::<Self>() + self.context.len() * size_of::<Arc<Item>>()) as u64
    }

    /// The model said something.
    pub fn begin(&self) {
        if let Some(background) = &self.background {
            background
                .progress
                .send_if_modified(|progress| !std::mem::replace(&mut progress.has_begun, true));
        }
    }

    /// Only the first outcome counts.
    pub fn end(&self, outcome: Outcome) {
        let _ = self.outcome.set(outcome);
    }

    /// Asks a running response to stop; its outcome tells when it did.
    pub fn stop(&self) {
        if let Some(background) = &self.background {
            background.stop.notify_one();
        }
    }

    pub async fn stopped(&self) {
        match &self.background {
            Some(background) => background.stop.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Keeps events for those who follow: whole ones, each closed by an empty line.
    pub fn tell(&self, mut frame: Bytes) {
        let Some(Background { progress, events: Some(events), .. }) = &self.background else { return };
        let mut events = lock(events);
        while let Some(end) = frame.windows(2).position(|pair| pair == b"\n\n") {
            // A copy, so that a short event does not hold the buffer of many.
            events.push(Bytes::copy_from_slice(&frame.split_to(end + 2)));
        }
        let num_events = events.len();
        drop(events);
        progress.send_modify(|progress| progress.num_events = num_events);
    }

    /// After the last event.
    pub fn close(&self) {
        if let Some(background) = &self.background {
            background.progress.send_modify(|progress| progress.has_ended = true);
        }
    }

    /// Waits until all is said.
    pub async fn closed(&self) {
        if let Some(background) = &self.background {
            let mut progress = background.progress.subscribe();
            let _ = progress.wait_for(|progress| progress.has_ended).await;
        }
    }

    pub fn can_be_followed(&self) -> bool {
        self.background.as_ref().is_some_and(|background| background.events.is_some())
    }

    /// The events from number `first` on, until the last; comments where nothing comes for `keep_alive`.
    pub fn follow(
        self: Arc<Self>,
        first: usize,
        keep_alive: Option<Duration>,
    ) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        let progress = self.background.as_ref().map(|background| background.progress.subscribe());
        unfold((self, progress, first), move |(kept, mut progress, next)| async move {
            let changes = progress.as_mut()?;
            loop {
                let has_ended = changes.borrow_and_update().has_ended;
                let (bytes, after) = kept.events_from(next);
                if !bytes.is_empty() {
                    return Some((Ok(bytes), (kept, progress, after)));
                }
                if has_ended {
                    return None;
                }
                let changed = match keep_alive {
                    Some(period) => tokio::time::timeout(period, changes.changed()).await.is_ok(),
                    None => changes.changed().await.is_ok(),
                };
                if !changed {
                    return Some((Ok(Bytes::from_static(COMMENT)), (kept, progress, next)));
                }
            }
        })
    }

    /// All that are there, and the number of the next.
    fn events_from(&self, first: usize) -> (Bytes, usize) {
        let Some(Background { events: Some(events), .. }) = &self.background else {
            return (Bytes::new(), first);
        };
        let events = lock(events);
        let mut bytes = BytesMut::new();
        for event in events.iter().skip(first) {
            bytes.extend_from_slice(event);
        }
        (bytes.freeze(), first.max(events.len()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
