//! Solar Open's format. An output is messages between control tokens, and the prompt ends in the header of the first:
//!
//! ```text
//!                      <|think|>…<|end|>                                            thinking
//!   <|begin|>assistant<|content|>…<|end|>                                           said before calls
//!   <|begin|>assistant<|tool_calls|>
//!     <|tool_call:begin|>ID<|tool_call:name|>NAME<|tool_call:args|>{…}<|tool_call:end|> …
//!   <|calls|>
//!   <|begin|>assistant<|content|>…<|flush|>                                         the answer
//! ```
//! `<|flush|>` and `<|calls|>` end the model's turn. Who speaks is the only word of a header; what kind of message follows is a token's to say.

use super::arguments::Arguments;
use super::calls::{Context, Format, Opener, Step, anywhere, is_name, may_be_name};
use super::markers::{Match, starts_with};

pub(super) struct SolarOpen {
    state: State,
}

#[derive(Debug)]
enum State {
    /// The name of who speaks.
    Header,
    Thinking,
    /// In a message of calls; whether one is there already.
    Calls {
        any: bool,
    },
    Id,
    /// The call's id is there, and its name follows.
    Name(String),
    Arguments(Arguments),
    /// A message of text begins, or one of any kind ended.
    Text,
}

const BEGIN: &str = "<|begin|>";
const THINK: &str = "<|think|>";
const TOOL_CALLS: &str = "<|tool_calls|>";
const CALL_BEGIN: &str = "<|tool_call:begin|>";
const CALL_NAME: &str = "<|tool_call:name|>";
const CALL_ARGUMENTS: &str = "<|tool_call:args|>";
const CALL_END: &str = "<|tool_call:end|>";
const CALLS_END: &str = "<|calls|>";

const OPENERS: [Opener; 9] = [
    anywhere(BEGIN),
    anywhere(THINK),
    anywhere(TOOL_CALLS),
    anywhere(CALL_BEGIN),
    anywhere("<|content|>"),
    anywhere(CALL_END),
    anywhere(CALLS_END),
    anywhere("<|end|>"),
    anywhere("<|flush|>"),
];
/// What ends the arguments of a call: its own end, another call, the message of calls, any message, the header of the next.
const ENDS: [&str; 6] = [CALL_END, CALL_BEGIN, CALLS_END, "<|end|>", "<|flush|>", BEGIN];

/// The model's own role: what is left of a header where an output ends in it.
const ROLE: &str = "assistant";
/// Longer words are no roles.
const ROLE_LEN_MAX: usize = 32;

impl SolarOpen {
    pub fn new() -> Self {
        Self { state: State::Text }
    }

    /// `Some` where there is nothing more to be taken in.
    fn advance(&mut self, context: &mut Context<'_>) -> Option<Step> {
        match &mut self.state {
            State::Text => return Some(Step::Done),
            State::Thinking => return Some(Step::Thinking),
            State::Header => return Some(header(context)),
            State::Calls { any } => match call_begins(*any, context) {
                Ok(()) => self.state = State::Id,
                Err(step) => return Some(step),
            },
            State::Id => match word(&[CALL_NAME], context) {
                Ok((id, _)) => self.state = State::Name(id),
                Err(step) => return Some(step),
            },
            State::Name(id) => match word(&[CALL_ARGUMENTS, CALL_END], context) {
                Ok((name, _)) if !is_name(&name) => return Some(Step::NotACall),
                // Where there are no tools, there is nobody to call: the arguments are what it says.
                Ok(_) if context.tools.is_empty() => return Some(Step::Done),
                Ok((name, marker)) => {
                    context.start(Some(std::mem::take(id)), name);
                    if marker == 0 {
                        self.state = State::Arguments(Arguments::Before);
                    } else {
                        context.end();
                        self.state = State::Calls { any: true };
                    }
                }
                Err(step) => return Some(step),
            },
            State::Arguments(arguments) => {
                let Some(end) = arguments.step(&ENDS, context) else { return Some(Step::More) };
                context.end();
                self.state = match ENDS[end] {
                    CALL_END => State::Calls { any: true },
                    CALL_BEGIN => State::Id,
                    BEGIN => State::Header,
                    _ => State::Text,
                };
            }
        }
        None
    }
}

/// Takes in who speaks; the token behind it says what.
fn header(context: &mut Context<'_>) -> Step {
    let (rest, is_end) = (context.input.rest(), context.input.is_end());
    let len = rest.find('<').unwrap_or(rest.len());
    let role = rest[..len].trim();
    if len > ROLE_LEN_MAX || !role.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
        return Step::NotACall;
    }
    let markers = OPENERS.map(|opener| opener.text);
    match starts_with(&rest[len..], &markers, is_end) {
        Match::Partly => return Step::More,
        Match::Yes(_) => {}
        Match::No if is_end && len == rest.len() && ROLE.starts_with(role) => {}
        Match::No => return Step::NotACall,
    }
    context.input.advance(len);
    Step::Done
}

/// Takes in the token that begins a call. White space between calls is nobody's; before a text it is the text's.
fn call_begins(any: bool, context: &mut Context<'_>) -> Result<(), Step> {
    let white = context.input.white();
    match starts_with(&context.input.rest()[white..], &[CALL_BEGIN, CALLS_END], context.input.is_end()) {
        Match::Partly => Err(Step::More),
        Match::Yes(0) => {
            context.input.advance(white + CALL_BEGIN.len());
            Ok(())
        }
        Match::Yes(_) if any => {
            context.input.advance(white + CALLS_END.len());
            Err(Step::Done)
        }
        Match::No if any => Err(Step::Done),
        Match::Yes(_) | Match::No => Err(Step::NotACall),
    }
}

/// Takes in an id or a name and the marker behind it: which one that is.
fn word(markers: &[&str], context: &mut Context<'_>) -> Result<(String, usize), Step> {
    let (rest, is_end) = (context.input.rest(), context.input.is_end());
    let len = rest.find('<').unwrap_or(rest.len());
    if !may_be_name(&rest[..len]) {
        return Err(Step::NotACall);
    }
    match starts_with(&rest[len..], markers, is_end) {
        Match::Partly => Err(Step::More),
        Match::No => Err(Step::NotACall),
        Match::Yes(marker) => {
            let word = rest[..len].trim().to_owned();
            context.input.advance(len + markers[marker].len());
            Ok((word, marker))
        }
    }
}

impl Format for SolarOpen {
    fn openers(&self) -> &'static [Opener] {
        const { &OPENERS }
    }

    fn begin(&mut self, opener: usize) {
        self.state = match OPENERS[opener].text {
            BEGIN => State::Header,
            THINK => State::Thinking,
            TOOL_CALLS => State::Calls { any: false },
            CALL_BEGIN => State::Id,
            _ => State::Text,
        };
    }

    fn step(&mut self, context: &mut Context<'_>) -> Step {
        loop {
            if let Some(step) = self.advance(context) {
                return step;
            }
        }
    }
}
