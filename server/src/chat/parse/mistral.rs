//! Mistral's calls, in its two forms: `[TOOL_CALLS][{"name": …, "arguments": …}, …]`, and from version 11 of its tokenizer on
//! `[TOOL_CALLS]NAME{…}[TOOL_CALLS]NAME{…}`, with `[CALL_ID]` and `[ARGS]` or without.

use super::calls::{Context, Format, Opener, Step, anywhere, is_name, may_be_name};
use super::json::{JsonScanner, Scan, escape_controls};
use super::json_call::{JsonCall, JsonCallRules, JsonStep};
use super::markers::{Found, find};

pub(super) struct Mistral {
    state: State,
}

enum State {
    Begin,
    /// In the list.
    Call(JsonCall),
    Between,
    Name(String),
    Id {
        name: String,
        id: String,
    },
    Arguments(JsonScanner),
}

const RULES: JsonCallRules = JsonCallRules { must_be_known: false, needs_arguments: false };
const HEAD_ENDS: [&str; 3] = ["{", "[ARGS]", "[CALL_ID]"];

impl Mistral {
    pub fn new() -> Self {
        Self { state: State::Begin }
    }

    fn advance(&mut self, context: &mut Context<'_>) -> Option<Step> {
        match &mut self.state {
            State::Begin => {
                if !context.input.skip_white() {
                    return Some(Step::More);
                }
                self.state = match context.input.rest().as_bytes()[0] {
                    b'[' => {
                        context.input.advance(1);
                        State::Call(JsonCall::new(RULES))
                    }
                    b'{' => State::Call(JsonCall::new(RULES)),
                    _ => State::Name(String::new()),
                };
            }
            State::Call(call) => match call.step(context) {
                JsonStep::More => return Some(Step::More),
                JsonStep::NotACall => return Some(Step::NotACall),
                JsonStep::Broken => return Some(Step::Done),
                JsonStep::Done => self.state = State::Between,
            },
            State::Between => {
                let white = context.input.white();
                let rest = context.input.rest();
                match rest[white..].chars().next() {
                    None if !context.input.is_end() => return Some(Step::More),
                    Some(',') => {
                        context.input.advance(white + 1);
                        self.state = State::Call(JsonCall::new(RULES));
                    }
                    Some(']') => {
                        context.input.advance(white + 1);
                        return Some(Step::Done);
                    }
                    _ => return Some(Step::Done),
                }
            }
            State::Name(name) => {
                let found = collect(name, &HEAD_ENDS, context);
                if !may_be_name(name) {
                    return Some(Step::NotACall);
                }
                let Some(end) = found else { return Some(Step::More) };
                let name = name.trim().to_owned();
                if !is_name(&name) {
                    return Some(Step::NotACall);
                }
                self.state = match end {
                    2 => State::Id { name, id: String::new() },
                    _ => {
                        context.start(None, name);
                        State::Arguments(JsonScanner::new())
                    }
                };
            }
            State::Id { name, id } => {
                let found = collect(id, &HEAD_ENDS[..2], context);
                if !may_be_name(id) {
                    return Some(Step::NotACall);
                }
                if found.is_none() {
                    return Some(Step::More);
                }
                context.start(Some(id.trim().to_owned()), std::mem::take(name));
                self.state = State::Arguments(JsonScanner::new());
            }
            State::Arguments(scanner) => {
                let plain = context.input.plain();
                let is_cut = plain.len() < context.input.rest().len();
                let before = scanner.clone();
                let (len, scan) = scanner.take(plain);
                let mut json = String::with_capacity(len);
                escape_controls(&plain[..len], &before, &mut json);
                context.input.advance(len);
                context.arguments(&json);
                if scan == Scan::More && !is_cut {
                    return Some(Step::More);
                }
                context.end();
                return Some(Step::Done);
            }
        }
        None
    }
}

/// Adds text up to one of the markers; takes the marker in, but for the bracket of the arguments. `None`: it is not there yet.
fn collect(head: &mut String, ends: &[&str], context: &mut Context<'_>) -> Option<usize> {
    let rest = context.input.rest();
    let found = find(rest, ends, context.input.is_end());
    let len = match found {
        Found::At(at, _) => at,
        Found::Held(held) => rest.len() - held,
    };
    head.push_str(&rest[..len]);
    context.input.advance(len);
    match found {
        Found::Held(_) => None,
        Found::At(_, 0) => Some(0),
        Found::At(_, end) => {
            context.input.advance(ends[end].len());
            Some(end)
        }
    }
}

impl Format for Mistral {
    fn openers(&self) -> &'static [Opener] {
        const { &[anywhere("[TOOL_CALLS]")] }
    }

    fn begin(&mut self, _: usize) {
        self.state = State::Begin;
    }

    fn step(&mut self, context: &mut Context<'_>) -> Step {
        loop {
            if let Some(step) = self.advance(context) {
                return step;
            }
        }
    }
}
