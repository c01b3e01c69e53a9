//! What a model writes besides text: its thinking and its calls of tools.
//!
//! One incremental [`Parser`] reads every output, streamed or not. Text goes in as it is decoded, in any pieces, and [`Events`] come
//! out as soon as they are certain: held back is only what can still become a marker, or a call until its name is known. The events
//! of a text do not depend on how it was cut.
//!
//! ```text
//!              start marker               end marker, or a call
//!   lead ─────────────────────▶ thinking ─────────────────────────▶ answer ◀──┐
//!     │                                                               ▲   │   │ the call ends, or was none
//!     └── anything else ──────────────────────────────────────────────┘   └─▶ call
//! ```
//! A call that goes wrong before its name and the beginning of its arguments are there is text, as the model wrote it. After that its
//! arguments are what the model wrote, and a client must expect that they are no JSON; under a grammar they always are. A call that did not
//! go wrong, but whose output was cut before its name was there, is not told: it is no text, and no call that a client could make.

mod arguments;
mod calls;
mod detect;
pub mod grammar;
mod harmony;
mod hermes;
mod json;
mod json_call;
mod llama;
mod marked;
mod markers;
mod mistral;
mod pending;
mod python;
mod pythonic;
mod signature;
mod solar_open;
mod xml;

pub use calls::{Events, IdStyle};
pub use detect::{Choice, OutputFormat, Parsers, ReasoningFormat, ToolFormat};
pub use markers::ReasoningMarkers;
pub use signature::ToolSignature;

use calls::{Calls, Context, Format, Place, Step};
use markers::{Found, Match, find, starts_with};
use pending::Pending;
use std::ops::Range;
use std::sync::Arc;

/// What to look for in one answer.
#[derive(Debug, Clone)]
pub struct ParseOptions {
    /// `None`: thinking is text.
    pub reasoning: Option<ReasoningMarkers>,
    /// `None`: calls are text.
    pub tools: Option<(ToolFormat, Arc<[ToolSignature]>)>,
    /// Different for every answer: the ids of its calls are made of it.
    pub id_stem: Arc<str>,
}

impl ParseOptions {
    /// All of the output is text.
    pub fn text_only() -> Self {
        Self { reasoning: None, tools: None, id_stem: "".into() }
    }
}

/// Why no more text comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The model has said what it had to say.
    Natural,
    /// It would have gone on: a limit on tokens, or a stop of the request.
    Cut,
}

/// How an output ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Whole,
    /// In the middle of the thinking.
    InReasoning,
    /// In the middle of a call, which was told as far as it came: not at all before its name was there.
    InCall,
}

/// A cut output that ends with this many characters of a marker, or with one of those that nobody else writes (`◁`), ends in the marker. Fewer
/// are text: `<` or `</th` have other uses.
const CUT_MARKER_CHARS: usize = 5;

pub struct Parser {
    pending: Pending,
    state: State,
    reasoning: Option<ReasoningMarkers>,
    format: Option<Box<dyn Format>>,
    tools: Arc<[ToolSignature]>,
    calls: Calls,
    /// Nothing but white space was said since the answer or the last call began: it is not told unless something follows it.
    is_blank: bool,
    thinking: Thinking,
    /// Bytes that went by unread, where nothing is looked for.
    unread: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Lead,
    Free(Channel),
    /// In what may be a call.
    Call(Attempt),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    /// Where its text belongs if it is none.
    channel: Channel,
    /// Bytes up to the end of its opener. If it is no call, these are text, and what follows is looked at again.
    opener_len: usize,
    /// Calls before it.
    num_calls: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    Reasoning,
    Answer,
}

/// The bytes of the output that are thinking, without the markers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Thinking {
    start: Option<usize>,
    end: Option<usize>,
}

impl Parser {
    pub fn new(options: ParseOptions) -> Self {
        let ParseOptions { reasoning, tools, id_stem } = options;
        let is_open = reasoning.as_ref().is_some_and(|markers| markers.open_in_prompt);
        let (format, tools) = match tools {
            Some((format, tools)) => (Some(format), tools),
            None => (None, Arc::default()),
        };
        let style = format.map_or(IdStyle::Call, ToolFormat::id_style);
        Self {
            pending: Pending::default(),
            state: State::Lead,
            reasoning,
            format: format.map(ToolFormat::machine),
            tools,
            calls: Calls::new(id_stem, style),
            is_blank: true,
            thinking: Thinking { start: is_open.then_some(0), end: None },
            unread: 0,
        }
    }

    /// Text that a client may see.
    pub fn push(&mut self, text: &str, out: &mut dyn Events) {
        if self.reasoning.is_none() && self.format.is_none() {
            if !text.is_empty() {
                out.text_at(self.unread..self.unread + text.len());
                out.text(text);
                self.unread += text.len();
            }
            return;
        }
        self.pending.push(text);
        self.advance(out);
    }

    /// The text of a control token that a client must not see: it counts as a marker, and is nothing where it is none.
    pub fn push_control(&mut self, text: &str, out: &mut dyn Events) {
        self.pending.push_hidden(text);
        self.advance(out);
    }

    /// No more text comes: what was held back is told, unless it is what was there of a call or a marker when the output was cut.
    pub fn finish(&mut self, ending: Ending, out: &mut dyn Events) -> End {
        self.pending.end();
        if ending == Ending::Cut && self.is_in_beginning() {
            self.pending.discard();
            return match self.state {
                State::Call(_) => End::InCall,
                State::Free(Channel::Reasoning) => End::InReasoning,
                State::Lead | State::Free(Channel::Answer) => End::Whole,
            };
        }
        self.advance(out);
        match self.state {
            State::Call(_) if self.calls.is_open() => {
                self.context(out).1.end();
                End::InCall
            }
            State::Free(Channel::Reasoning) => End::InReasoning,
            _ => End::Whole,
        }
    }

    /// Whether all that is held back is the beginning of a marker, or of a call whose name is not there.
    fn is_in_beginning(&self) -> bool {
        let rest = self.pending.rest().trim_start();
        let is_long = rest.chars().count() >= CUT_MARKER_CHARS || !rest.is_ascii();
        let is_beginning = |marker: &str| is_long && marker.starts_with(rest);
        let openers = self.format.as_ref().map_or(&[][..], |format| format.openers());
        match (self.state, &self.reasoning) {
            (State::Call(_), _) if self.calls.is_open() => false,
            (State::Call(_), _) => !self.format.as_ref().is_some_and(|format| format.may_be_text()),
            (State::Lead, Some(reasoning)) => is_beginning(&reasoning.start),
            (State::Free(Channel::Reasoning), Some(reasoning)) if is_beginning(&reasoning.end) => true,
            (State::Free(_), _) => openers.iter().any(|opener| is_beginning(opener.text)),
            (State::Lead, None) => false,
        }
    }

    /// Bytes of the output so far.
    pub fn len(&self) -> usize {
        self.unread + self.pending.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn num_calls(&self) -> usize {
        self.calls.len()
    }

    /// A call was told, and is not complete.
    pub fn is_in_call(&self) -> bool {
        self.calls.is_open()
    }

    /// The bytes of the output that are thinking, as far as it is known where it ends.
    pub fn thinking(&self) -> Option<Range<usize>> {
        let Thinking { start, end } = self.thinking;
        Some(start?..end.unwrap_or(usize::MAX))
    }

    fn advance(&mut self, out: &mut dyn Events) {
        while match self.state {
            State::Lead => self.lead(),
            State::Free(channel) => self.free(channel, out),
            State::Call(attempt) => self.call(attempt, out),
        } {}
        self.pending.compact();
    }

    /// Before anything was said. Says whether to go on.
    fn lead(&mut self) -> bool {
        let Some(ReasoningMarkers { start, open_in_prompt, .. }) = &self.reasoning else {
            self.state = State::Free(Channel::Answer);
            return true;
        };
        let white = self.pending.white();
        let rest = self.pending.rest();
        self.state = match starts_with(&rest[white..], &[start], self.pending.is_end()) {
            Match::Partly => return false,
            Match::No if *open_in_prompt => State::Free(Channel::Reasoning),
            Match::No => State::Free(Channel::Answer),
            // A model may repeat the marker that the prompt already had.
            Match::Yes(_) => {
                self.pending.advance(white + start.len());
                self.pending.commit();
                self.thinking.start = Some(self.pending.offset());
                State::Free(Channel::Reasoning)
            }
        };
        true
    }

    /// In text, up to the next marker.
    fn free(&mut self, channel: Channel, out: &mut dyn Events) -> bool {
        let openers = self.format.as_ref().map_or(&[][..], |format| format.openers());
        let white = match (channel, self.is_blank) {
            (Channel::Answer, true) => self.pending.white(),
            _ => 0,
        };
        let (rest, is_end) = (self.pending.rest(), self.pending.is_end());
        if channel == Channel::Answer && self.is_blank {
            if white == rest.len() {
                // White space after a call, with nothing behind it, is nobody's.
                if is_end && self.calls.len() == 0 {
                    self.pending.advance(white);
                    self.say(channel, out);
                }
                return false;
            }
            for (index, opener) in
                openers.iter().enumerate().filter(|(_, opener)| opener.place == Place::Start)
            {
                match starts_with(&rest[white..], &[opener.text], is_end) {
                    Match::Yes(_) => return self.begin(index, white + opener.text.len(), channel),
                    Match::Partly => return false,
                    Match::No => {}
                }
            }
        }
        let mut markers: Vec<&str> = Vec::with_capacity(openers.len() + 1);
        let mut meanings = Vec::with_capacity(openers.len() + 1);
        if let (Channel::Reasoning, Some(reasoning)) = (channel, &self.reasoning) {
            markers.push(&reasoning.end);
            meanings.push(None);
        }
        for (index, opener) in
            openers.iter().enumerate().filter(|(_, opener)| opener.place == Place::Anywhere)
        {
            markers.push(opener.text);
            meanings.push(Some(index));
        }
        let found = find(rest, &markers, is_end);
        let len = match found {
            Found::At(at, _) => at,
            Found::Held(held) => rest.len() - held,
        };
        let marker_len = match found {
            Found::At(_, marker) => markers[marker].len(),
            Found::Held(_) => 0,
        };
        // White space before a call goes with it; if it is no call, both are text.
        if len > white {
            self.pending.advance(len);
            self.say(channel, out);
        }
        let Found::At(_, marker) = found else { return false };
        let before = if len > white { 0 } else { len };
        match meanings[marker] {
            Some(opener) => self.begin(opener, before + marker_len, channel),
            None => {
                self.thinking.end = Some(self.pending.offset() + before);
                self.pending.advance(before + marker_len);
                self.pending.commit();
                self.enter_answer();
                true
            }
        }
    }

    fn begin(&mut self, opener: usize, opener_len: usize, channel: Channel) -> bool {
        self.pending.advance(opener_len);
        if let Some(format) = &mut self.format {
            format.begin(opener);
            self.state = State::Call(Attempt { channel, opener_len, num_calls: self.calls.len() });
        }
        true
    }

    fn call(&mut self, attempt: Attempt, out: &mut dyn Events) -> bool {
        let (before, opened_at) = (self.calls.len(), self.pending.told());
        let (format, mut context) = self.context(out);
        let Some(format) = format else { return false };
        let mut step = format.step(&mut context);
        if self.calls.len() > before && attempt.channel == Channel::Reasoning {
            // Whoever calls has done thinking, with the end marker or without.
            self.thinking.end.get_or_insert(opened_at);
        }
        if step == Step::More && self.pending.is_end() && !self.calls.is_open() {
            step = Step::NotACall;
        }
        match step {
            Step::More => return false,
            Step::Done => {
                if attempt.channel == Channel::Reasoning {
                    self.thinking.end.get_or_insert(opened_at);
                }
                self.pending.commit();
                self.enter_answer();
            }
            // Where thinking is text it is told as such.
            Step::Thinking => {
                self.pending.commit();
                if self.reasoning.is_some() {
                    self.thinking.start.get_or_insert(self.pending.offset());
                    self.thinking.end = None;
                    self.state = State::Free(Channel::Reasoning);
                } else {
                    self.enter_answer();
                }
            }
            // After a call of the same attempt the next one is tried on its own.
            Step::NotACall if self.calls.len() > attempt.num_calls => {
                self.pending.rewind(0);
                self.enter_answer();
            }
            Step::NotACall => {
                self.pending.rewind(attempt.opener_len);
                self.say(attempt.channel, out);
                self.state = State::Free(attempt.channel);
            }
        }
        true
    }

    fn enter_answer(&mut self) {
        self.state = State::Free(Channel::Answer);
        self.is_blank = true;
    }

    fn context<'a>(&'a mut self, out: &'a mut dyn Events) -> (Option<&'a mut Box<dyn Format>>, Context<'a>) {
        let Self { pending, calls, tools, format, .. } = self;
        (format.as_mut(), Context { input: pending, calls, tools, out })
    }

    /// Tells what was taken in as text.
    fn say(&mut self, channel: Channel, out: &mut dyn Events) {
        let is_blank = &mut self.is_blank;
        self.pending.tell(|at, text| match channel {
            Channel::Reasoning => out.reasoning(text),
            Channel::Answer => {
                *is_blank &= text.trim_start().is_empty();
                out.text_at(at..at + text.len());
                out.text(text);
            }
        });
    }
}

#[cfg(test)]
mod tests;
