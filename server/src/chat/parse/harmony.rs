//! Harmony, the format of gpt-oss. An output is messages; the header of each says whom it is for, and the prompt ends where the first header begins:
//!
//! ```text
//!   <|channel|>analysis<|message|>…<|end|>                                                  thinking
//!   <|start|>assistant<|channel|>commentary<|message|>…<|end|>                              said before calls
//!   <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
//!   <|start|>assistant<|channel|>final<|message|>…<|return|>                                the answer
//! ```
//! The recipient may stand before the channel as well. `<|call|>` and `<|return|>` end the model's turn.

use super::arguments::Arguments;
use super::calls::{Context, Format, Opener, Step, anywhere, at_start, is_name};
use super::markers::{Found, find};

pub(super) struct Harmony {
    state: State,
}

#[derive(Debug)]
enum State {
    /// Whether what was there before it belongs to the header.
    Header {
        to: bool,
    },
    Arguments(Arguments),
    /// A message ended that was no call.
    End,
}

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const ENDS: [&str; 4] = ["<|call|>", "<|end|>", "<|return|>", START];
/// Of the recipient.
const TO: &str = "to=";
const FUNCTIONS: &str = "functions.";

/// Longer headers are not waited for.
const HEADER_LEN_MAX: usize = 512;

/// What the header of a message says.
enum Header {
    /// Of a function of this name.
    Call(String),
    Thinking,
    Text,
}

impl Harmony {
    pub fn new() -> Self {
        Self { state: State::End }
    }

    /// `None`: it is not whole. Takes it in, up to the message.
    fn header(to: bool, context: &mut Context<'_>) -> Option<Result<Header, Step>> {
        let (rest, is_end) = (context.input.rest(), context.input.is_end());
        let found = find(rest, &[MESSAGE, ENDS[0], ENDS[1], ENDS[2], ENDS[3]], is_end);
        let at = match found {
            Found::At(at, 0) if at <= HEADER_LEN_MAX => at,
            Found::Held(_) if rest.len() <= HEADER_LEN_MAX && !is_end => return None,
            _ => return Some(Err(Step::NotACall)),
        };
        let header = read(&rest[..at], to, context);
        context.input.advance(at + MESSAGE.len());
        Some(Ok(header))
    }
}

/// A call is one of a function, or of a tool of the request; where there are no tools, there is nobody to call.
fn read(header: &str, to: bool, context: &Context<'_>) -> Header {
    let until_space = |text: &str| {
        let end = text.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(text.len());
        text[..end].to_owned()
    };
    let recipient = match (to, header.split_once(TO)) {
        (true, _) => Some(until_space(header)),
        (false, Some((_, recipient))) => Some(until_space(recipient)),
        (false, None) => None,
    };
    let function = recipient.and_then(|recipient| match recipient.strip_prefix(FUNCTIONS) {
        Some(name) => Some(name.to_owned()),
        None => context.tool(&recipient).is_some().then_some(recipient),
    });
    if let Some(name) = function.filter(|name| is_name(name) && !context.tools.is_empty()) {
        return Header::Call(name);
    }
    // The header of the first message begins behind the channel's marker.
    let channel = header.split_once(CHANNEL).map_or(header, |(_, channel)| channel);
    if until_space(channel.trim_start()) == "analysis" { Header::Thinking } else { Header::Text }
}

impl Format for Harmony {
    fn openers(&self) -> &'static [Opener] {
        const {
            &[
                anywhere(CHANNEL),
                anywhere(START),
                at_start("to="),
                anywhere("<|end|>"),
                anywhere("<|call|>"),
                anywhere("<|return|>"),
            ]
        }
    }

    fn begin(&mut self, opener: usize) {
        self.state = match opener {
            0 | 1 => State::Header { to: false },
            2 => State::Header { to: true },
            _ => State::End,
        };
    }

    fn may_be_text(&self) -> bool {
        matches!(self.state, State::Header { to: true })
    }

    fn step(&mut self, context: &mut Context<'_>) -> Step {
        loop {
            match &mut self.state {
                State::End => return Step::Done,
                State::Header { to } => {
                    // Anybody may begin an answer like this.
                    if *to && !context.input.rest().starts_with(FUNCTIONS) {
                        let may_come = FUNCTIONS.starts_with(context.input.rest());
                        return if may_come && !context.input.is_end() { Step::More } else { Step::NotACall };
                    }
                    match Self::header(*to, context) {
                        None => return Step::More,
                        Some(Err(step)) => return step,
                        Some(Ok(Header::Text)) => return Step::Done,
                        Some(Ok(Header::Thinking)) => return Step::Thinking,
                        Some(Ok(Header::Call(name))) => {
                            context.start(None, name);
                            self.state = State::Arguments(Arguments::Before);
                        }
                    }
                }
                State::Arguments(arguments) => {
                    let end = arguments.step(&ENDS, context);
                    let is_whole = matches!(arguments, Arguments::After) && context.input.is_end();
                    match end {
                        Some(end) => {
                            context.end();
                            self.state =
                                if ENDS[end] == START { State::Header { to: false } } else { State::End };
                        }
                        // What ends a call ends the turn, and is not shown; what is left is a piece of a marker.
                        None if is_whole => {
                            context.input.advance(context.input.rest().len());
                            context.end();
                            self.state = State::End;
                        }
                        None => return Step::More,
                    }
                }
            }
        }
    }
}
