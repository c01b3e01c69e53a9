//! Formats whose calls stand between control tokens, as Kimi K2's and DeepSeek's:
//!
//! ```text
//!   <|tool_calls_section_begin|>
//!     <|tool_call_begin|>functions.NAME:IDX<|tool_call_argument_begin|>{…}<|tool_call_end|> …
//!   <|tool_calls_section_end|>
//!
//!   <｜tool▁calls▁begin｜>
//!     <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n{…}\n```<｜tool▁call▁end｜> …      V3, R1
//!     <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜> …                             V3.1
//!   <｜tool▁calls▁end｜>
//! ```

use super::arguments::Arguments;
use super::calls::{Context, Format, Opener, Step, anywhere, is_name, may_be_name};
use super::markers::{Found, Match, find, starts_with};

pub(super) struct Marks {
    /// Those of a section first, then that of a call.
    openers: &'static [Opener],
    call_begin: &'static str,
    arguments_begin: &'static str,
    call_end: &'static str,
    section_ends: &'static [&'static str],
    head: fn(&str) -> Option<Head>,
}

/// What stands before the arguments.
enum Head {
    Call {
        id: Option<String>,
        name: String,
    },
    /// The name follows, up to the end of its line.
    NameFollows,
}

pub(super) const KIMI_K2: Marks = Marks {
    openers: &[
        anywhere("<|tool_calls_section_begin|>"),
        anywhere("<|tool_call_section_begin|>"),
        anywhere("<|tool_call_begin|>"),
    ],
    call_begin: "<|tool_call_begin|>",
    arguments_begin: "<|tool_call_argument_begin|>",
    call_end: "<|tool_call_end|>",
    section_ends: &["<|tool_calls_section_end|>", "<|tool_call_section_end|>"],
    head: kimi_head,
};

pub(super) const DEEPSEEK: Marks = Marks {
    openers: &[anywhere("<｜tool▁calls▁begin｜>"), anywhere("<｜tool▁call▁begin｜>")],
    call_begin: "<｜tool▁call▁begin｜>",
    arguments_begin: "<｜tool▁sep｜>",
    call_end: "<｜tool▁call▁end｜>",
    section_ends: &["<｜tool▁calls▁end｜>"],
    head: deepseek_head,
};

/// `functions.NAME:IDX`, which is also the call's id.
fn kimi_head(head: &str) -> Option<Head> {
    let id = head.trim();
    let name = id.strip_prefix("functions.").unwrap_or(id);
    let name = match name.rsplit_once(':') {
        Some((name, index)) if index.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => name,
    };
    is_name(name).then(|| Head::Call { id: Some(id.to_owned()), name: name.to_owned() })
}

fn deepseek_head(head: &str) -> Option<Head> {
    match head.trim() {
        "function" => Some(Head::NameFollows),
        name => is_name(name).then(|| Head::Call { id: None, name: name.to_owned() }),
    }
}

pub(super) struct MarkedFormat {
    marks: &'static Marks,
    state: State,
}

#[derive(Debug)]
enum State {
    /// In a section, before its first call.
    Section,
    Head(String),
    NameLine(String),
    Arguments(Arguments),
    /// After a call.
    Between,
}

impl MarkedFormat {
    pub fn new(marks: &'static Marks) -> Self {
        Self { marks, state: State::Section }
    }

    /// What may end the arguments: the call's end first, the next call's beginning second.
    fn ends(&self) -> Vec<&'static str> {
        let mut ends = vec![self.marks.call_end, self.marks.call_begin];
        ends.extend(self.marks.section_ends);
        ends
    }

    /// `Some` where there is nothing more to be taken in.
    fn advance(&mut self, context: &mut Context<'_>) -> Option<Step> {
        match &mut self.state {
            // White space between calls is nobody's; before a text it is the text's.
            State::Section => self.call_or_end(Step::NotACall, context),
            State::Between => self.call_or_end(Step::Done, context),
            State::Head(head) => match self.marks.take_head(head, context) {
                Ok(next) => {
                    self.state = next;
                    None
                }
                Err(step) => Some(step),
            },
            State::NameLine(line) => {
                // In the other form a function may be called `function`.
                let rest = context.input.rest();
                let name = if line.is_empty() && rest.trim_start().starts_with('{') {
                    "function".to_owned()
                } else {
                    match name_line(line, context) {
                        Ok(name) => name,
                        Err(step) => return Some(step),
                    }
                };
                context.start(None, name);
                self.state = State::Arguments(Arguments::Before);
                None
            }
            State::Arguments(_) => {
                let ends = self.ends();
                let State::Arguments(arguments) = &mut self.state else { return Some(Step::More) };
                let Some(end) = arguments.step(&ends, context) else { return Some(Step::More) };
                context.end();
                self.state = match end {
                    0 => State::Between,
                    1 => State::Head(String::new()),
                    _ => return Some(Step::Done),
                };
                None
            }
        }
    }

    /// `nothing`: what it is if no call begins here.
    fn call_or_end(&mut self, nothing: Step, context: &mut Context<'_>) -> Option<Step> {
        let white = context.input.white();
        let mut markers = vec![self.marks.call_begin];
        markers.extend(self.marks.section_ends);
        match starts_with(&context.input.rest()[white..], &markers, context.input.is_end()) {
            Match::Partly => Some(Step::More),
            Match::No => Some(nothing),
            Match::Yes(marker) => {
                context.input.advance(white + markers[marker].len());
                if marker > 0 {
                    return Some(nothing);
                }
                self.state = State::Head(String::new());
                None
            }
        }
    }
}

impl Marks {
    /// Takes in a call's head, of which `head` has what came before: what follows it, when it is whole.
    fn take_head(&self, head: &mut String, context: &mut Context<'_>) -> Result<State, Step> {
        let rest = context.input.rest();
        let found = find(rest, &[self.arguments_begin, self.call_end], context.input.is_end());
        let len = match found {
            Found::At(at, _) => at,
            Found::Held(held) => rest.len() - held,
        };
        head.push_str(&rest[..len]);
        context.input.advance(len);
        if !may_be_name(head) {
            return Err(Step::NotACall);
        }
        let Found::At(_, marker) = found else { return Err(Step::More) };
        let parsed = (self.head)(head).ok_or(Step::NotACall)?;
        let has_arguments = marker == 0;
        context.input.advance([self.arguments_begin, self.call_end][marker].len());
        match (parsed, has_arguments) {
            (Head::Call { id, name }, true) => {
                context.start(id, name);
                Ok(State::Arguments(Arguments::Before))
            }
            (Head::Call { id, name }, false) => {
                context.start(id, name);
                context.end();
                Ok(State::Between)
            }
            (Head::NameFollows, true) => Ok(State::NameLine(String::new())),
            (Head::NameFollows, false) => Err(Step::NotACall),
        }
    }
}

/// The name in a line of its own, of which `line` has what came before.
fn name_line(line: &mut String, context: &mut Context<'_>) -> Result<String, Step> {
    let rest = context.input.rest();
    let len = rest.find('\n').unwrap_or(rest.len());
    line.push_str(&rest[..len]);
    let is_whole = len < rest.len();
    context.input.advance(len);
    match line.trim() {
        _ if !may_be_name(line) => Err(Step::NotACall),
        _ if !is_whole => Err(Step::More),
        name if is_name(name) => Ok(name.to_owned()),
        _ => Err(Step::NotACall),
    }
}

impl Format for MarkedFormat {
    fn openers(&self) -> &'static [Opener] {
        self.marks.openers
    }

    fn begin(&mut self, opener: usize) {
        let is_call = opener + 1 == self.marks.openers.len();
        self.state = if is_call { State::Head(String::new()) } else { State::Section };
    }

    fn step(&mut self, context: &mut Context<'_>) -> Step {
        loop {
            if let Some(step) = self.advance(context) {
                return step;
            }
        }
    }
}
