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
        let white = match self.state {
            State::Section | State::Between => context.input.white(),
            _ => 0,
        };
        let (rest, is_end) = (context.input.rest(), context.input.is_end());
        match &mut self.state {
            State::Section | State::Between => {
                // White space between calls is nobody's; before a text it is the text's.
                let nothing = if matches!(self.state, State::Between) { Step::Done } else { Step::NotACall };
                let mut markers = vec![self.marks.call_begin];
                markers.extend(self.marks.section_ends);
                match starts_with(&rest[white..], &markers, is_end) {
                    Match::Partly => return Some(Step::More),
                    Match::No => return Some(nothing),
                    Match::Yes(marker) => {
                        context.input.advance(white + markers[marker].len());
                        if marker > 0 {
                            return Some(nothing);
                        }
                        self.state = State::Head(String::new());
                    }
                }
            }
            State::Head(head) => {
                let found = find(rest, &[self.marks.arguments_begin, self.marks.call_end], is_end);
                let len = match found {
                    Found::At(at, _) => at,
                    Found::Held(held) => rest.len() - held,
                };
                head.push_str(&rest[..len]);
                context.input.advance(len);
                if !may_be_name(head) {
                    return Some(Step::NotACall);
                }
                let Found::At(_, marker) = found else { return Some(Step::More) };
                let Some(parsed) = (self.marks.head)(head) else { return Some(Step::NotACall) };
                let has_arguments = marker == 0;
                context.input.advance([self.marks.arguments_begin, self.marks.call_end][marker].len());
                self.state = match (parsed, has_arguments) {
                    (Head::Call { id, name }, true) => {
                        context.start(id, name);
                        State::Arguments(Arguments::Before)
                    }
                    (Head::Call { id, name }, false) => {
                        context.start(id, name);
                        context.end();
                        State::Between
                    }
                    (Head::NameFollows, true) => State::NameLine(String::new()),
                    (Head::NameFollows, false) => return Some(Step::NotACall),
                };
            }
            State::NameLine(line) => {
                // In the other form a function may be called `function`.
                if line.is_empty() && rest.trim_start().starts_with('{') {
                    context.start(None, "function".to_owned());
                    self.state = State::Arguments(Arguments::Before);
                    return None;
                }
                let len = rest.find('\n').unwrap_or(rest.len());
                line.push_str(&rest[..len]);
                let is_whole = len < rest.len();
                context.input.advance(len);
                if !may_be_name(line) {
                    return Some(Step::NotACall);
                }
                if !is_whole {
                    return Some(Step::More);
                }
                let name = line.trim();
                if !is_name(name) {
                    return Some(Step::NotACall);
                }
                context.start(None, name.to_owned());
                self.state = State::Arguments(Arguments::Before);
            }
            State::Arguments(_) => {
                let ends = self.ends();
                let State::Arguments(arguments) = &mut self.state else { return Some(Step::More) };
                let Some(end) = arguments.step(&ends, context) else { return Some(Step::More) };
                context.end();
                match end {
                    0 => self.state = State::Between,
                    1 => self.state = State::Head(String::new()),
                    _ => return Some(Step::Done),
                }
            }
        }
        None
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
