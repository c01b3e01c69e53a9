//! Calls whose arguments are written one by one, without quotes, as Seed-OSS and Qwen3-Coder, MiniMax-M2, and GLM do:
//!
//! ```text
//!   <seed:tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></seed:tool_call>
//!   <minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter>…</invoke>…</minimax:tool_call>
//!   <tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…</tool_call>
//! ```
//! A value's type is that of the tool's schema: text is passed on as it comes, anything else when it is whole.

use super::calls::{Context, Format, Opener, Step, anywhere, is_name, may_be_name};
use super::json::push_escaped;
use super::markers::{Found, Match, find, starts_with};
use super::signature::ParameterKind;

pub(super) struct Tags {
    openers: &'static [Opener],
    close: &'static str,
    /// Around a function; `None`: it has a call for itself, which begins with its name.
    function: Option<FunctionTags>,
    /// Before a parameter's name, and after it.
    key: [&'static str; 2],
    /// Before its value, where the name's end is not the value's beginning.
    value: Option<&'static str>,
    value_end: &'static str,
    /// One line break after the tag and one before the next are the format's, not the value's.
    breaks: bool,
}

#[derive(Clone, Copy)]
struct FunctionTags {
    /// Before a function's name, and after it.
    name: [&'static str; 2],
    end: &'static str,
}

pub(super) const SEED_OSS: Tags = Tags {
    openers: &[anywhere("<seed:tool_call>")],
    close: "</seed:tool_call>",
    function: Some(FunctionTags { name: ["<function=", ">"], end: "</function>" }),
    key: ["<parameter=", ">"],
    value: None,
    value_end: "</parameter>",
    breaks: true,
};
pub(super) const QWEN3_CODER: Tags =
    Tags { openers: &[anywhere("<tool_call>")], close: "</tool_call>", ..SEED_OSS };
pub(super) const MINIMAX_M2: Tags = Tags {
    openers: &[anywhere("<minimax:tool_call>")],
    close: "</minimax:tool_call>",
    function: Some(FunctionTags { name: ["<invoke name=\"", "\">"], end: "</invoke>" }),
    key: ["<parameter name=\"", "\">"],
    ..SEED_OSS
};
pub(super) const GLM: Tags = Tags {
    openers: &[anywhere("<tool_call>")],
    close: "</tool_call>",
    function: None,
    key: ["<arg_key>", "</arg_key>"],
    value: Some("<arg_value>"),
    value_end: "</arg_value>",
    breaks: false,
};

pub(super) struct XmlCalls {
    tags: &'static Tags,
    state: State,
    function: String,
    num_parameters: usize,
}

#[derive(Debug)]
enum State {
    /// Where a function may begin.
    Function,
    Name(String),
    /// Where a parameter may begin.
    Parameter,
    Key(String),
    /// Where the value of this parameter may begin.
    BeforeValue(String),
    Value(Value),
    /// After a function.
    Between,
}

/// A parameter's value, of which some may have come.
#[derive(Debug)]
struct Value {
    kind: ParameterKind,
    /// What came of one that is not text, which is passed on when it is whole.
    text: String,
    is_first: bool,
}

impl XmlCalls {
    pub fn new(tags: &'static Tags) -> Self {
        Self { tags, state: Self::beginning(tags), function: String::new(), num_parameters: 0 }
    }

    fn beginning(tags: &Tags) -> State {
        if tags.function.is_some() { State::Function } else { State::Name(String::new()) }
    }

    /// `Some` where there is nothing more to be taken in.
    fn advance(&mut self, context: &mut Context<'_>) -> Option<Step> {
        let tags = self.tags;
        let white = if matches!(self.state, State::Value(_)) { 0 } else { context.input.white() };
        let (rest, is_end) = (context.input.rest(), context.input.is_end());
        match &mut self.state {
            State::Function => {
                let begin = tags.function.map_or("", |function| function.name[0]);
                match starts_with(&rest[white..], &[begin], is_end) {
                    Match::Partly => return Some(Step::More),
                    Match::No => return Some(Step::NotACall),
                    Match::Yes(_) => {
                        context.input.advance(white + begin.len());
                        self.state = State::Name(String::new());
                    }
                }
            }
            State::Name(name) => {
                let is_whole = match tags.function {
                    Some(function) => collect_tag(name, function.name[1], context),
                    None => collect_line(name, context),
                };
                if !may_be_name(name) || (is_whole && !is_name(name.trim())) {
                    return Some(Step::NotACall);
                }
                if !is_whole {
                    return Some(Step::More);
                }
                self.function = name.trim().to_owned();
                self.num_parameters = 0;
                context.start(None, self.function.clone());
                self.state = State::Parameter;
            }
            State::Parameter => return self.parameter_or_end(white, context),
            State::Key(key) => {
                if !collect_tag(key, tags.key[1], context) {
                    return Some(Step::More);
                }
                let key = std::mem::take(key);
                self.state = match tags.value {
                    None => State::Value(self.begin_value(&key, context)),
                    Some(_) => State::BeforeValue(key),
                };
            }
            State::BeforeValue(key) => {
                let begin = tags.value.unwrap_or("");
                match starts_with(&rest[white..], &[begin], false) {
                    Match::Partly => return Some(Step::More),
                    // A parameter without a value is none.
                    Match::No => {
                        self.close(context);
                        return Some(Step::Done);
                    }
                    Match::Yes(_) => {
                        let key = std::mem::take(key);
                        context.input.advance(white + begin.len());
                        self.state = State::Value(self.begin_value(&key, context));
                    }
                }
            }
            State::Value(value) => match value.take(tags, context) {
                None => {}
                Some(false) => return Some(Step::More),
                Some(true) => self.state = State::Parameter,
            },
            State::Between => {
                let begin = tags.function.map_or(tags.close, |function| function.name[0]);
                match starts_with(&rest[white..], &[tags.close, begin], is_end) {
                    Match::Partly => return Some(Step::More),
                    Match::No => return Some(Step::Done),
                    Match::Yes(0) => {
                        context.input.advance(white + tags.close.len());
                        return Some(Step::Done);
                    }
                    Match::Yes(_) => self.state = State::Function,
                }
            }
        }
        None
    }

    fn parameter_or_end(&mut self, white: usize, context: &mut Context<'_>) -> Option<Step> {
        let (tags, rest) = (self.tags, context.input.rest());
        let function_end = tags.function.map_or(tags.close, |function| function.end);
        // At the end of the output the call is unfinished, whatever would have come.
        match starts_with(&rest[white..], &[tags.key[0], tags.close, function_end], false) {
            Match::Partly => Some(Step::More),
            Match::Yes(0) => {
                context.input.advance(white + tags.key[0].len());
                self.state = State::Key(String::new());
                None
            }
            Match::Yes(1) => {
                context.input.advance(white + tags.close.len());
                self.close(context);
                Some(Step::Done)
            }
            Match::Yes(_) => {
                context.input.advance(white + function_end.len());
                self.close(context);
                self.state = State::Between;
                None
            }
            Match::No => {
                self.close(context);
                Some(Step::Done)
            }
        }
    }

    fn begin_value(&mut self, key: &str, context: &mut Context<'_>) -> Value {
        let tool = context.tool(&self.function);
        let kind = tool.map_or(ParameterKind::Text, |tool| tool.parameter(key));
        let mut json = String::from(if self.num_parameters == 0 { "{\"" } else { ", \"" });
        push_escaped(key, &mut json);
        json.push_str(if kind == ParameterKind::Text { "\": \"" } else { "\": " });
        context.arguments(&json);
        self.num_parameters += 1;
        Value { kind, text: String::new(), is_first: true }
    }

    fn close(&self, context: &mut Context<'_>) {
        context.arguments(if self.num_parameters == 0 { "{}" } else { "}" });
        context.end();
    }
}

impl Value {
    /// Takes in what there is: whether that was its end. `None`: only the line break before it.
    fn take(&mut self, tags: &Tags, context: &mut Context<'_>) -> Option<bool> {
        let rest = context.input.rest();
        // A control token ends the value too: it can only be the call's own end.
        let plain = context.input.plain();
        let is_cut = plain.len() < rest.len();
        let end = tags.value_end;
        let (mut len, end_len) = match find(plain, &[end], is_cut) {
            Found::At(at, _) => (at, end.len()),
            Found::Held(_) if is_cut && rest[plain.len()..].starts_with(end) => (plain.len(), end.len()),
            Found::Held(held) => (plain.len() - held, 0),
        };
        let is_whole = end_len > 0 || is_cut;
        if tags.breaks && self.is_first && len > 0 {
            self.is_first = false;
            let breaks = usize::from(rest.starts_with('\n'));
            context.input.advance(breaks);
            return None;
        }
        let mut value = &rest[..len];
        if is_whole {
            value = value.strip_suffix('\n').filter(|_| tags.breaks).unwrap_or(value);
            len += end_len;
        } else if tags.breaks && value.ends_with('\n') {
            len -= 1;
            value = &rest[..len];
        }
        let mut json = String::new();
        if self.kind == ParameterKind::Text {
            push_escaped(value, &mut json);
            json.push_str(if is_whole { "\"" } else { "" });
        } else {
            self.text.push_str(value);
            if is_whole {
                push_typed(&self.text, self.kind, &mut json);
            }
        }
        context.input.advance(len);
        context.arguments(&json);
        Some(is_whole)
    }
}

/// Adds the text up to `end`, and takes that in; says whether it is there.
fn collect_tag(text: &mut String, end: &str, context: &mut Context<'_>) -> bool {
    let (rest, is_end) = (context.input.rest(), context.input.is_end());
    let (len, end_len) = match find(rest, &[end], is_end) {
        Found::At(at, _) => (at, end.len()),
        Found::Held(held) => (rest.len() - held, 0),
    };
    text.push_str(&rest[..len]);
    context.input.advance(len + end_len);
    end_len > 0
}

/// Adds the text up to the end of a line that has some, or to the next tag; says whether that is there.
fn collect_line(text: &mut String, context: &mut Context<'_>) -> bool {
    let rest = context.input.rest();
    let before = if text.trim().is_empty() { rest.len() - rest.trim_start().len() } else { 0 };
    let end = rest[before..].find(['\n', '<']).map(|end| before + end);
    text.push_str(&rest[..end.unwrap_or(rest.len())]);
    let len = end.unwrap_or(rest.len());
    context.input.advance(len);
    end.is_some()
}

/// A value that its schema does not call text: JSON where it is that, Python's words for it, else text after all.
fn push_typed(value: &str, kind: ParameterKind, out: &mut String) {
    let trimmed = value.trim();
    let word = match trimmed.to_ascii_lowercase().as_str() {
        "null" | "none" => Some("null"),
        "true" if kind == ParameterKind::Json => Some("true"),
        "false" if kind == ParameterKind::Json => Some("false"),
        _ => None,
    };
    if let Some(word) = word {
        out.push_str(word);
    } else if kind == ParameterKind::Json && serde_json::from_str::<serde::de::IgnoredAny>(trimmed).is_ok() {
        out.push_str(trimmed);
    } else {
        out.push('"');
        push_escaped(value, out);
        out.push('"');
    }
}

impl Format for XmlCalls {
    fn openers(&self) -> &'static [Opener] {
        self.tags.openers
    }

    fn begin(&mut self, _: usize) {
        self.state = Self::beginning(self.tags);
    }

    fn step(&mut self, context: &mut Context<'_>) -> Step {
        loop {
            if let Some(step) = self.advance(context) {
                return step;
            }
        }
    }
}
