//! A response as events, each with a type that it says twice and a number that counts from 0.
//!
//! `response.created`, `response.in_progress`; for each item `response.output_item.added`, its parts and their pieces, and
//! `response.output_item.done`; then exactly one of `response.completed`, `response.incomplete` and `response.failed`.

use super::assembly::{Assembly, News};
use super::item::{Item, ItemStatus, OutputItem};
use super::kept::{Kept, Outcome};
use super::response::{Outline, State, Status};
use super::store::ResponseStore;
use crate::error::ApiError;
use crate::openai::delta::{Delta, Finish, Usage};
use crate::openai::json;
use crate::openai::stream::Dialect;
use bytes::BytesMut;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// A response that is being made.
pub struct Making {
    pub outline: Arc<Outline>,
    pub assembly: Assembly,
    pub keeping: Keeping,
    usage: Option<Usage>,
}

/// Where a response goes when it has ended.
pub enum Keeping {
    Nowhere,
    /// Into the store, with the items that it answers.
    Later(Arc<ResponseStore>, Vec<Arc<Item>>),
    /// It is in the store already.
    Already(Arc<ResponseStore>, Arc<Kept>),
}

impl Making {
    pub fn new(outline: Arc<Outline>, assembly: Assembly, keeping: Keeping) -> Self {
        Self { outline, assembly, keeping, usage: None }
    }

    /// The whole answer at once.
    pub fn take_all(&mut self, delta: &Delta, usage: Usage) -> State<'static> {
        let nobody: &mut dyn FnMut(usize, News<'_>) = &mut |_, _| {};
        self.assembly.take(delta, nobody);
        let state = delta.finish.as_ref().map_or(State::Completed, State::of);
        self.assembly.finish(cut(state), nobody);
        self.usage = Some(usage);
        state
    }

    /// The response's JSON at its end, which is kept where it is to be.
    pub fn end(&mut self, state: State<'_>) -> String {
        let items = self.assembly.items();
        let object = self.outline.object(state, items, self.usage);
        let json = serde_json::to_string(&object).expect("responses serialise");
        let outcome = |json| Outcome {
            status: state.status(),
            json,
            output: items.iter().filter_map(OutputItem::to_keep).map(Arc::new).collect(),
        };
        match std::mem::replace(&mut self.keeping, Keeping::Nowhere) {
            Keeping::Nowhere => {}
            Keeping::Later(store, context) => {
                let kept = Kept::ended(self.outline.clone(), context, outcome(json.clone()));
                store.insert(Arc::new(kept));
            }
            Keeping::Already(store, kept) => store.settle(&kept, outcome(json.clone())),
        }
        json
    }
}

/// What an item becomes that is open when the response ends.
fn cut(state: State<'_>) -> ItemStatus {
    if state.status() == Status::Completed { ItemStatus::Completed } else { ItemStatus::Incomplete }
}

pub struct ResponseEvents {
    making: Making,
    num_events: usize,
    has_begun: bool,
    has_ended: bool,
}

/// The number of an event, and then the rest of its fields.
fn event(out: &mut BytesMut, number: &mut usize, kind: &str, fields: impl FnOnce(&mut BytesMut)) {
    json::raw(out, "event: ");
    json::raw(out, kind);
    json::raw(out, "\ndata: {\"type\":\"");
    json::raw(out, kind);
    json::raw(out, "\",\"sequence_number\":");
    json::value(out, &*number);
    fields(out);
    json::raw(out, "}\n\n");
    *number += 1;
}

fn field<T: Serialize + ?Sized>(out: &mut BytesMut, name: &str, value: &T) {
    json::raw(out, ",\"");
    json::raw(out, name);
    json::raw(out, "\":");
    json::value(out, value);
}

/// What events of one part have in common.
fn place(out: &mut BytesMut, index: usize, item: &OutputItem) {
    field(out, "item_id", item.id());
    field(out, "output_index", &index);
    if item.part().is_some() {
        field(out, "content_index", &0);
    }
}

/// The prefix of the events that tell an item's text.
fn text_kind(item: &OutputItem) -> &'static str {
    match item {
        OutputItem::Reasoning { .. } => "response.reasoning_text",
        OutputItem::Message { .. } => "response.output_text",
        OutputItem::FunctionCall { .. } => "response.function_call_arguments",
    }
}

fn tell(out: &mut BytesMut, number: &mut usize, index: usize, news: News<'_>) {
    match news {
        News::Begun(item) => begun(out, number, index, item),
        News::More { item, text, logprobs } => {
            event(out, number, &format!("{}.delta", text_kind(item)), |out| {
                place(out, index, item);
                field(out, "delta", text);
                if matches!(item, OutputItem::Message { .. }) {
                    field(out, "logprobs", logprobs);
                }
            });
        }
        News::Ended(item) => ended(out, number, index, item),
    }
}

fn begun(out: &mut BytesMut, number: &mut usize, index: usize, item: &OutputItem) {
    let mut empty = serde_json::to_value(item).expect("items serialise");
    if item.part().is_some() {
        empty["content"] = Value::Array(Vec::new());
    }
    event(out, number, "response.output_item.added", |out| {
        field(out, "output_index", &index);
        field(out, "item", &empty);
    });
    if let Some(part) = item.part() {
        event(out, number, "response.content_part.added", |out| {
            place(out, index, item);
            field(out, "part", part);
        });
    }
}

fn ended(out: &mut BytesMut, number: &mut usize, index: usize, item: &OutputItem) {
    event(out, number, &format!("{}.done", text_kind(item)), |out| {
        place(out, index, item);
        match item {
            OutputItem::FunctionCall { name, arguments, .. } => {
                field(out, "name", name);
                field(out, "arguments", arguments);
            }
            _ => field(out, "text", item.text()),
        }
        if let Some(super::item::Content::OutputText { logprobs, .. }) = item.part() {
            field(out, "logprobs", logprobs);
        }
    });
    if let Some(part) = item.part() {
        event(out, number, "response.content_part.done", |out| {
            place(out, index, item);
            field(out, "part", part);
        });
    }
    event(out, number, "response.output_item.done", |out| {
        field(out, "output_index", &index);
        field(out, "item", item);
    });
}

impl ResponseEvents {
    pub fn new(making: Making) -> Self {
        Self { making, num_events: 0, has_begun: false, has_ended: false }
    }

    /// The response as it is at the beginning.
    fn lifecycle(&mut self, out: &mut BytesMut, kind: &str, state: State<'_>) {
        let object = self.making.outline.object(state, &[], None);
        event(out, &mut self.num_events, kind, |out| field(out, "response", &object));
    }

    /// A background response is queued until the model says something.
    fn begin_saying(&mut self, out: &mut BytesMut) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        if let Keeping::Already(_, kept) = &self.making.keeping {
            kept.begin();
            self.lifecycle(out, "response.in_progress", State::InProgress);
        }
    }

    fn end_with(&mut self, out: &mut BytesMut, state: State<'_>) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let number = &mut self.num_events;
        self.making.assembly.finish(cut(state), &mut |index, news| tell(out, number, index, news));
        let kind = match state {
            State::Completed => "response.completed",
            State::Failed(_) => "response.failed",
            _ => "response.incomplete",
        };
        let json = self.making.end(state);
        event(out, number, kind, |out| {
            json::raw(out, ",\"response\":");
            json::raw(out, &json);
        });
    }

    /// Told to stop: clients know no event of that name, but the response says it.
    pub fn cancel(&mut self, out: &mut BytesMut) {
        self.end_with(out, State::Cancelled);
    }
}

impl Dialect for ResponseEvents {
    fn begin(&mut self, out: &mut BytesMut, _usage: Usage) {
        if matches!(self.making.keeping, Keeping::Already(..)) {
            self.lifecycle(out, "response.created", State::Queued);
            self.lifecycle(out, "response.queued", State::Queued);
        } else {
            self.lifecycle(out, "response.created", State::InProgress);
            self.lifecycle(out, "response.in_progress", State::InProgress);
        }
    }

    fn delta(&mut self, out: &mut BytesMut, _choice: usize, delta: &Delta, usage: Usage) {
        self.begin_saying(out);
        self.making.usage = Some(usage);
        let number = &mut self.num_events;
        self.making.assembly.take(delta, &mut |index, news| tell(out, number, index, news));
    }

    fn finish(&mut self, out: &mut BytesMut, _choice: usize, _last: &Delta, finish: &Finish, usage: Usage) {
        self.begin_saying(out);
        self.making.usage = Some(usage);
        self.end_with(out, State::of(finish));
    }

    /// Told with the end of the only choice.
    fn usage(&mut self, _out: &mut BytesMut, _usage: Usage) {}

    fn fail(&mut self, out: &mut BytesMut, error: &ApiError) {
        self.end_with(out, State::Failed(error));
    }

    /// The terminal event was the end.
    fn end(&mut self, _out: &mut BytesMut) {}
}
