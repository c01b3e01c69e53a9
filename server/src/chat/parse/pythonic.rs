//! Calls as Python writes them, `[f(a=1, b="x"), g()]`, of Llama 3.2 and 4. The arguments leave as JSON while they come.

use super::calls::{Context, Format, Opener, Step, anywhere, at_start};
use super::markers::{Match, starts_with};
use super::python::{Python, PythonScan};

pub(super) struct Pythonic {
    state: State,
    name: String,
    num_arguments: usize,
    is_marked: bool,
}

enum State {
    Begin,
    Name(String),
    /// After `(`: a keyword, or the end.
    KeyOrEnd,
    /// After a comma: the same, for Python allows a last one.
    NextKey,
    Key(String),
    Value(Python),
    CommaOrEnd,
    /// After `)`.
    Between,
    /// After `]`.
    Close,
}

const OPEN: &str = "<|python_start|>";
const CLOSE: &str = "<|python_end|>";

impl Pythonic {
    pub fn new() -> Self {
        Self { state: State::Begin, name: String::new(), num_arguments: 0, is_marked: false }
    }

    fn advance(&mut self, context: &mut Context<'_>) -> Option<Step> {
        let is_value = matches!(self.state, State::Value(_));
        if matches!(self.state, State::Close) {
            return self.close(context);
        }
        if !is_value && !context.input.skip_white() {
            return Some(Step::More);
        }
        let Some(first) = context.input.plain().chars().next() else {
            // A control token, or nothing.
            return Some(if context.input.rest().is_empty() { Step::More } else { self.broken(context) });
        };
        match &mut self.state {
            State::Begin if first == '[' => {
                context.input.advance(1);
                self.state = State::Name(String::new());
            }
            State::Name(name) if first == '(' && context.tool(name).is_some() => {
                context.input.advance(1);
                self.name = std::mem::take(name);
                self.num_arguments = 0;
                self.state = State::KeyOrEnd;
            }
            State::Name(name) if is_word(first) && name.len() < NAME_LEN_MAX => {
                collect_word(name, context);
                if !context.begins_a_tool(name) {
                    return Some(self.broken(context));
                }
            }
            State::KeyOrEnd | State::CommaOrEnd | State::NextKey if first == ')' => {
                context.input.advance(1);
                if !context.calls.is_open() {
                    context.start(None, std::mem::take(&mut self.name));
                }
                context.arguments(if self.num_arguments == 0 { "{}" } else { "}" });
                context.end();
                self.state = State::Between;
            }
            State::KeyOrEnd | State::NextKey if is_word(first) => self.state = State::Key(String::new()),
            State::Key(key) if first == '=' && !key.is_empty() => {
                context.input.advance(1);
                let json = format!("{}\"{key}\": ", if self.num_arguments == 0 { "{" } else { ", " });
                if !context.calls.is_open() {
                    context.start(None, std::mem::take(&mut self.name));
                }
                context.arguments(&json);
                self.num_arguments += 1;
                self.state = State::Value(Python::new());
            }
            State::Key(key) if is_word(first) && key.len() < NAME_LEN_MAX => collect_word(key, context),
            State::Value(value) => {
                let mut json = String::new();
                let (len, scan) = value.take(context.input.plain(), &mut json);
                context.input.advance(len);
                context.arguments(&json);
                match scan {
                    PythonScan::More => {}
                    PythonScan::Done => self.state = State::CommaOrEnd,
                    PythonScan::Bad => return Some(self.broken(context)),
                }
            }
            State::CommaOrEnd if first == ',' => {
                context.input.advance(1);
                self.state = State::NextKey;
            }
            State::Between if first == ',' => {
                context.input.advance(1);
                self.state = State::Name(String::new());
            }
            State::Between if first == ']' => {
                context.input.advance(1);
                self.state = State::Close;
            }
            _ => return Some(self.broken(context)),
        }
        None
    }

    fn close(&mut self, context: &mut Context<'_>) -> Option<Step> {
        if !self.is_marked {
            return Some(Step::Done);
        }
        let white = context.input.white();
        let rest = context.input.rest();
        match starts_with(&rest[white..], &[CLOSE], context.input.is_end()) {
            Match::Partly => Some(Step::More),
            Match::No => Some(Step::Done),
            Match::Yes(_) => {
                context.input.advance(white + CLOSE.len());
                Some(Step::Done)
            }
        }
    }

    fn broken(&self, context: &mut Context<'_>) -> Step {
        if context.calls.is_open() {
            context.end();
            return Step::Done;
        }
        Step::NotACall
    }
}

const NAME_LEN_MAX: usize = 256;

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '-')
}

fn collect_word(word: &mut String, context: &mut Context<'_>) {
    let plain = context.input.plain();
    let len = plain.find(|c| !is_word(c)).unwrap_or(plain.len());
    word.push_str(&plain[..len]);
    context.input.advance(len);
}

impl Format for Pythonic {
    fn openers(&self) -> &'static [Opener] {
        const { &[at_start("["), anywhere(OPEN)] }
    }

    fn begin(&mut self, opener: usize) {
        self.is_marked = opener == 1;
        self.state = if self.is_marked { State::Begin } else { State::Name(String::new()) };
    }

    fn step(&mut self, context: &mut Context<'_>) -> Step {
        loop {
            if let Some(step) = self.advance(context) {
                return step;
            }
        }
    }
}
