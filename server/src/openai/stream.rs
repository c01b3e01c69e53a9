//! A streamed answer as the body of a response. It is polled by the connection itself: there is no task, and no copy, between the
//! engine's events and the socket. What arrived since the last poll leaves as one chunk for each choice.
//!
//! A stream ends in one way only: [`EventBody::poll_frame`] answers `None` after the dialect wrote its end (OpenAI's is `[DONE]`), which
//! comes after the last `finish_reason` (and the usage) or after an error event. Panics on the way become an error event as well.

use crate::error::ApiError;
use crate::mailbox::WakerId;
use crate::openai::answer::Answers;
use crate::openai::delta::{Delta, Finish, Usage};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::BytesMut;
use http_body::Frame;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// How one dialect writes its events. Each call appends whole events, each closed by an empty line. What only [`Dialect::begin`],
/// [`Dialect::fail`], [`Dialect::end`] and [`Dialect::keep_alive`] write is OpenAI's, unless the dialect has its own.
pub trait Dialect: Send + Unpin + 'static {
    /// Before everything else, in every stream.
    fn begin(&mut self, _out: &mut BytesMut, _usage: Usage) {}
    /// News of a choice: never called with a delta that has nothing to show.
    fn delta(&mut self, out: &mut BytesMut, choice: usize, delta: &Delta, usage: Usage);
    /// The last event of a choice, with what is left of tokens and log-probabilities.
    fn finish(&mut self, out: &mut BytesMut, choice: usize, last: &Delta, finish: &Finish, usage: Usage);
    /// After all choices, where the request asks for it.
    fn usage(&mut self, out: &mut BytesMut, usage: Usage);
    /// What went wrong, wherever the stream is.
    fn fail(&mut self, out: &mut BytesMut, error: &ApiError) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(error.json().as_bytes());
        out.extend_from_slice(b"\n\n");
    }
    /// The last bytes of every stream, also after [`Dialect::fail`].
    fn end(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(DONE);
    }
    /// A sign of life.
    fn keep_alive(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(COMMENT);
    }
}

/// What a response keeps alive while it is being sent, such as the count of requests in flight.
pub type Held = Box<dyn Send + Unpin>;

pub struct EventBody<D> {
    answers: Answers,
    dialect: D,
    out: BytesMut,
    keep_alive: Option<KeepAlive>,
    has_begun: bool,
    has_ended: bool,
    _held: Held,
}

/// Comments after silence, by the wall clock, so that neither a long queue nor a long prefill looks like a dead connection.
struct KeepAlive {
    period: Duration,
    last: Instant,
    sleep: Pin<Box<Sleep>>,
    /// When the timer wakes; it is not looked up before.
    wakes_at: Instant,
    /// Whom the timer wakes.
    registered: WakerId,
}

/// A response of events.
pub fn event_stream(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Of a poll's events. Memory for so few bytes is kept by the allocator for the thread that gave it back last: the buffer of one stream is in the
/// cache still when the next one writes, which a buffer of each stream's own would not be.
const BUFFER: usize = 768;
const DONE: &[u8] = b"data: [DONE]\n\n";
pub const COMMENT: &[u8] = b": keep-alive\n\n";

impl<D: Dialect> EventBody<D> {
    pub fn new(answers: Answers, dialect: D, keep_alive: Option<Duration>, held: Held) -> Self {
        let keep_alive = keep_alive.map(|period| {
            let now = Instant::now();
            let wakes_at = now + period;
            let sleep = Box::pin(sleep_until(wakes_at));
            KeepAlive { period, last: now, sleep, wakes_at, registered: WakerId::default() }
        });
        Self {
            answers,
            dialect,
            out: BytesMut::new(),
            keep_alive,
            has_begun: false,
            has_ended: false,
            _held: held,
        }
    }

    pub fn into_response(self) -> Response {
        event_stream(Body::new(self))
    }

    /// Ends the stream before the answer has ended: what `write` says is its end.
    pub fn stop(&mut self, write: impl FnOnce(&mut D, &mut BytesMut)) -> Bytes {
        self.begin();
        write(&mut self.dialect, &mut self.out);
        self.end();
        std::mem::take(&mut self.out).freeze()
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.dialect.begin(&mut self.out, self.answers.usage());
        }
    }

    /// Writes all news. The deltas may hold some before anything is drained: those that the status was waiting for.
    fn advance(&mut self, context: &mut Context<'_>) -> Result<(), ApiError> {
        let drained = self.answers.drain(context);
        self.begin();
        for choice in 0..self.answers.choices.len() {
            self.write_choice(choice);
        }
        drained?;
        if self.answers.is_complete() {
            self.dialect.usage(&mut self.out, self.answers.usage());
            self.end();
        }
        Ok(())
    }

    fn advance_or_fail(&mut self, context: &mut Context<'_>) {
        self.out = BytesMut::with_capacity(BUFFER);
        match catch_unwind(AssertUnwindSafe(|| self.advance(context))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(&error),
            Err(_) => {
                tracing::error!("a stream panicked");
                self.fail(&ApiError::Internal);
            }
        }
    }

    fn write_choice(&mut self, choice: usize) {
        let delta = &mut self.answers.deltas[choice];
        if !delta.has_news() && delta.finish.is_none() {
            return;
        }
        let finish = delta.finish.take();
        let usage = self.answers.usage();
        let delta = &mut self.answers.deltas[choice];
        if delta.has_news() {
            let before = self.out.len();
            self.dialect.delta(&mut self.out, choice, delta, usage);
            if self.out.len() > before {
                delta.clear();
            } else {
                // Not every dialect tells everything; tokens go with what is told next.
                delta.clear_said();
            }
        }
        if let Some(finish) = finish {
            self.dialect.finish(&mut self.out, choice, delta, &finish, usage);
            delta.clear();
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.dialect.fail(&mut self.out, error);
        self.end();
    }

    fn end(&mut self) {
        self.dialect.end(&mut self.out);
        self.has_ended = true;
        // Whatever still runs has nobody to run for.
        self.answers.choices.clear();
        self.answers.deltas.clear();
    }
}

impl<D: Dialect> http_body::Body for EventBody<D> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        // Two of three times a connection asks there is nothing.
        if !this.has_begun || !this.answers.is_quiet(context) {
            this.advance_or_fail(context);
        }
        if let Some(keep_alive) = &mut this.keep_alive {
            if !this.out.is_empty() {
                keep_alive.last = Instant::now();
            } else if keep_alive.is_due(context) {
                this.dialect.keep_alive(&mut this.out);
            }
        }
        let out = std::mem::take(&mut this.out);
        if out.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Frame::data(out.freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended && self.out.is_empty()
    }
}

impl KeepAlive {
    /// Whether the silence is long enough. The timer is set again only when it fires, not with every event, and asked only then.
    fn is_due(&mut self, context: &mut Context<'_>) -> bool {
        let current = WakerId::of(context);
        if self.registered == current && Instant::now() < self.wakes_at {
            return false;
        }
        self.registered = current;
        while self.sleep.as_mut().poll(context).is_ready() {
            let next = self.last + self.period;
            let now = Instant::now();
            if now >= next {
                self.last = now;
                self.set(now + self.period);
                // Registers the timer for the next comment.
                let _ = self.sleep.as_mut().poll(context);
                return true;
            }
            self.set(next);
        }
        false
    }

    fn set(&mut self, wakes_at: Instant) {
        self.wakes_at = wakes_at;
        self.sleep.as_mut().reset(wakes_at);
    }
}
