//! A call as one JSON object, `{"name": …, "arguments": …}`, in whatever order its members come. The call begins when its name and the
//! first byte of its arguments are there; arguments that come before the name wait for it.

use super::calls::{Context, is_name};
use super::json::{JsonScanner, Scan, escape_controls, unescape};

#[derive(Debug)]
pub(super) struct JsonCall {
    rules: JsonCallRules,
    state: State,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    /// Another member than the name has its value, or the beginning of one.
    has_other: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct JsonCallRules {
    /// Without a marker around it, an object is a call only if it names a tool of the request.
    pub must_be_known: bool,
    /// An object with nothing but a name is not a call.
    pub needs_arguments: bool,
}

#[derive(Debug)]
enum State {
    Open,
    KeyOrEnd,
    /// Its text so far, with the opening quote.
    Key(JsonScanner, String),
    Colon(Member),
    Value(Member),
    InValue(Member, JsonScanner, String),
    CommaOrEnd,
    NextKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    Name,
    Arguments,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonStep {
    More,
    /// The object is complete, and so is the call.
    Done,
    /// It never was a call.
    NotACall,
    /// It was one, until something came that is not JSON: the call was ended.
    Broken,
}

const NAME: &str = "name";
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];
const OTHER: [&str; 2] = ["id", "type"];

/// Longer than any key that is understood, with its quotes.
const KEY_LEN_MAX: usize = 16;
/// A value that has to be whole before anything is told, such as arguments before the name, is not waited for longer.
const EARLY_LEN_MAX: usize = 16 * 1024;

impl JsonCall {
    pub fn new(rules: JsonCallRules) -> Self {
        Self { rules, state: State::Open, name: None, early: None, has_other: false }
    }

    /// What an answer in JSON could be as well: nothing of a tool's name is there, but another value is.
    pub fn may_be_text(&self) -> bool {
        let is_named = self.name.is_some() || matches!(self.state, State::InValue(Member::Name, ..));
        self.rules.must_be_known && self.has_other && !is_named
    }

    /// For an opener that is the object's own bracket.
    pub fn opened(rules: JsonCallRules) -> Self {
        Self { state: State::KeyOrEnd, ..Self::new(rules) }
    }

    pub fn step(&mut self, context: &mut Context<'_>) -> JsonStep {
        loop {
            let is_inside = matches!(self.state, State::Key(..) | State::InValue(..));
            if !is_inside && !context.input.skip_white() || context.input.rest().is_empty() {
                return JsonStep::More;
            }
            let done = match self.advance(context) {
                Some(done) => done,
                None if context.calls.is_open() => {
                    context.end();
                    return JsonStep::Broken;
                }
                None => return JsonStep::NotACall,
            };
            if done {
                return self.complete(context);
            }
        }
    }

    /// Takes something in. `Some(true)`: the object ended. `None`: it is no such object.
    fn advance(&mut self, context: &mut Context<'_>) -> Option<bool> {
        let rest = context.input.plain();
        // A control token is no JSON.
        let first = *rest.as_bytes().first()?;
        match std::mem::replace(&mut self.state, State::Open) {
            State::Open if first == b'{' => {
                context.input.advance(1);
                self.state = State::KeyOrEnd;
            }
            State::KeyOrEnd | State::CommaOrEnd if first == b'}' => {
                context.input.advance(1);
                return Some(true);
            }
            State::CommaOrEnd if first == b',' => {
                context.input.advance(1);
                self.state = State::NextKey;
            }
            State::KeyOrEnd | State::NextKey if first == b'"' => {
                self.state = State::Key(JsonScanner::new(), String::new());
            }
            State::Key(mut scanner, mut text) => {
                let (len, scan) = scanner.take(rest);
                text.push_str(&rest[..len]);
                context.input.advance(len);
                if text.len() > KEY_LEN_MAX {
                    return None;
                }
                self.state = match scan {
                    Scan::More if !begins_a_key(&text) => return None,
                    Scan::More => State::Key(scanner, text),
                    Scan::Done => State::Colon(self.member(&unescape(&text)?)?),
                    Scan::Bad => return None,
                };
            }
            State::Colon(member) if first == b':' => {
                context.input.advance(1);
                self.state = State::Value(member);
            }
            State::Value(member) => {
                if member == Member::Arguments {
                    self.begin_arguments(first, context)?;
                }
                self.has_other |= member != Member::Name;
                self.state = State::InValue(member, JsonScanner::new(), String::new());
            }
            State::InValue(member, scanner, text) => self.value(member, scanner, text, context)?,
            _ => return None,
        }
        Some(false)
    }

    fn member(&self, key: &str) -> Option<Member> {
        match key {
            NAME if self.name.is_none() => Some(Member::Name),
            key if ARGUMENTS.contains(&key) => Some(Member::Arguments),
            key if OTHER.contains(&key) => Some(Member::Other),
            _ => None,
        }
    }

    /// The name is there and the arguments begin: it is a call. Arguments in a string have to be whole first.
    fn begin_arguments(&mut self, first: u8, context: &mut Context<'_>) -> Option<()> {
        if context.calls.is_open() || self.early.is_some() {
            return None;
        }
        if let Some(name) = self.name.as_ref().filter(|_| first != b'"') {
            context.start(None, name.clone());
        }
        Some(())
    }

    fn value(
        &mut self,
        member: Member,
        mut scanner: JsonScanner,
        mut text: String,
        context: &mut Context<'_>,
    ) -> Option<()> {
        let rest = context.input.plain();
        let before = scanner.clone();
        let (len, scan) = scanner.take(rest);
        let is_streamed = member == Member::Arguments && context.calls.is_open();
        let from = text.len();
        escape_controls(&rest[..len], &before, &mut text);
        context.input.advance(len);
        if text.len() > EARLY_LEN_MAX && !is_streamed {
            return None;
        }
        if is_streamed {
            context.arguments(&text[from..]);
            text.clear();
        }
        match scan {
            Scan::Bad => return None,
            Scan::More if member == Member::Name && !self.may_name(&text, context) => return None,
            Scan::More => self.state = State::InValue(member, scanner, text),
            Scan::Done => {
                self.state = State::CommaOrEnd;
                match member {
                    Member::Name => {
                        let name: String = serde_json::from_str(&text).ok()?;
                        let is_known = !self.rules.must_be_known || context.tool(&name).is_some();
                        self.name = Some(name).filter(|name| is_name(name) && is_known);
                        self.name.as_ref()?;
                    }
                    Member::Arguments if !is_streamed => self.early = Some(object_in_string(text)),
                    Member::Arguments | Member::Other => {}
                }
                self.flush_early(context);
            }
        }
        Some(())
    }

    /// Whether the beginning of a string may become a name.
    fn may_name(&self, beginning: &str, context: &Context<'_>) -> bool {
        let name = beginning.strip_prefix('"').unwrap_or(beginning);
        !self.rules.must_be_known || name.contains('\\') || context.begins_a_tool(name)
    }

    /// Arguments that waited for the name, or were a string and had to be whole.
    fn flush_early(&mut self, context: &mut Context<'_>) {
        if let (Some(name), Some(_), false) = (&self.name, &self.early, context.calls.is_open()) {
            context.start(None, name.clone());
            context.arguments(self.early.as_deref().unwrap_or_default());
        }
    }

    fn complete(&mut self, context: &mut Context<'_>) -> JsonStep {
        if !context.calls.is_open() {
            match &self.name {
                Some(name) if !self.rules.needs_arguments => context.start(None, name.clone()),
                _ => return JsonStep::NotACall,
            }
        }
        context.end();
        JsonStep::Done
    }
}

/// Whether a key that is understood begins like this, its opening quote included.
fn begins_a_key(beginning: &str) -> bool {
    let key = beginning.strip_prefix('"').unwrap_or(beginning);
    let mut keys = ARGUMENTS.iter().chain(&OTHER).chain([&NAME]);
    key.contains('\\') || keys.any(|known| known.starts_with(key))
}

/// Some models put the arguments into a string, as the API does; the object in it is what they mean.
fn object_in_string(text: String) -> String {
    match serde_json::from_str::<String>(&text) {
        Ok(inner) if inner.trim_start().starts_with('{') => inner,
        _ => text,
    }
}
