//! What a parser tells of calls, and what the machines of all formats share.

use super::pending::Pending;
use super::signature::ToolSignature;
use std::ops::Range;
use std::sync::Arc;

/// What an output says, in the order in which it says it. No text is empty.
pub trait Events {
    fn reasoning(&mut self, text: &str);
    fn text(&mut self, text: &str);
    /// Where in the output the next piece of text lies.
    fn text_at(&mut self, _bytes: Range<usize>) {}
    /// Calls are numbered from 0, and one ends before the next begins.
    fn call_start(&mut self, index: usize, id: String, name: String);
    /// The next piece of the JSON text that holds the arguments.
    fn call_arguments(&mut self, index: usize, json: &str);
    fn call_end(&mut self, index: usize);
}

/// How calls are named whose format has no ids of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdStyle {
    /// `call_` and 24 digits.
    Call,
    /// Nine letters and digits: Mistral's templates take no others.
    NineLetters,
    /// Ten letters and digits, as Solar Open is told to make them.
    TenLetters,
}

/// The calls of one answer so far.
#[derive(Debug)]
pub(super) struct Calls {
    stem: Arc<str>,
    style: IdStyle,
    used: Vec<String>,
    /// The last call has not ended; whether it has any arguments.
    open: Option<bool>,
}

impl Calls {
    pub fn new(stem: Arc<str>, style: IdStyle) -> Self {
        Self { stem, style, used: Vec::new(), open: None }
    }

    pub fn len(&self) -> usize {
        self.used.len()
    }

    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// An id that no other answer has, and no other call of this one.
    fn new_id(&self) -> String {
        let hash = blake3::hash(format!("{}:{}", self.stem, self.used.len()).as_bytes());
        match self.style {
            IdStyle::Call => format!("call_{}", &hash.to_hex()[..24]),
            IdStyle::NineLetters => hash.to_hex()[..9].to_owned(),
            IdStyle::TenLetters => hash.to_hex()[..10].to_owned(),
        }
    }

    fn start(&mut self, id: Option<String>, name: String, out: &mut dyn Events) {
        debug_assert!(self.open.is_none());
        // A model that gives two calls the same id would have their results mixed up.
        let id = id.filter(|id| !id.is_empty() && !self.used.contains(id)).unwrap_or_else(|| self.new_id());
        self.used.push(id.clone());
        self.open = Some(false);
        out.call_start(self.used.len() - 1, id, name);
    }

    fn arguments(&mut self, json: &str, out: &mut dyn Events) {
        if !json.is_empty() {
            self.open = Some(true);
            out.call_arguments(self.used.len() - 1, json);
        }
    }

    fn end(&mut self, out: &mut dyn Events) {
        let Some(has_arguments) = self.open.take() else { return };
        let index = self.used.len() - 1;
        if !has_arguments {
            out.call_arguments(index, "{}");
        }
        out.call_end(index);
    }
}

/// What a machine works on.
pub(super) struct Context<'a> {
    pub input: &'a mut Pending,
    pub calls: &'a mut Calls,
    pub tools: &'a [ToolSignature],
    pub out: &'a mut dyn Events,
}

impl Context<'_> {
    /// From here on it is a call: what was taken in of it is used up.
    pub fn start(&mut self, id: Option<String>, name: String) {
        self.input.commit();
        self.calls.start(id, name, self.out);
    }

    pub fn arguments(&mut self, json: &str) {
        self.input.commit();
        self.calls.arguments(json, self.out);
    }

    /// What was taken in belongs to the arguments as it is.
    pub fn taken_arguments(&mut self) {
        let Self { input, calls, out, .. } = self;
        input.tell(|_, text| calls.arguments(text, *out));
    }

    pub fn end(&mut self) {
        self.input.commit();
        self.calls.end(self.out);
    }

    pub fn tool(&self, name: &str) -> Option<&ToolSignature> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// Whether the name of a tool begins like this.
    pub fn begins_a_tool(&self, beginning: &str) -> bool {
        self.tools.iter().any(|tool| tool.name.starts_with(beginning))
    }
}

/// What a machine says when it has taken in all that it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It waits for more text.
    More,
    /// What it has taken in since the last commit is no call.
    NotACall,
    /// The calls are over, and what follows is text again.
    Done,
    /// What was taken in begins thinking, which may come again and again.
    Thinking,
}

/// A string that begins a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opener {
    pub text: &'static str,
    pub place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Anywhere,
    /// Only where nothing was said before it: the string is too common.
    Start,
}

pub(super) const fn anywhere(text: &'static str) -> Opener {
    Opener { text, place: Place::Anywhere }
}

pub(super) const fn at_start(text: &'static str) -> Opener {
    Opener { text, place: Place::Start }
}

/// One format of calls. The machine keeps all its state, so that text may come in any pieces, and reads each byte a bounded number
/// of times. It is total: on any text it ends up with calls or with [`Step::NotACall`].
pub(super) trait Format: Send {
    fn openers(&self) -> &'static [Opener];

    /// The input stands behind this opener.
    fn begin(&mut self, opener: usize);

    fn step(&mut self, context: &mut Context<'_>) -> Step;

    /// What was taken in since the last commit may still become a call, and may as well be an answer's text.
    fn may_be_text(&self) -> bool {
        false
    }
}

/// Longer names than any API takes are not looked for.
const NAME_LEN_MAX: usize = 256;

/// Whether it can be the name of a function, in any of the APIs.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_LEN_MAX
        && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/'))
}

/// Whether a text may still become a name, with white space around it.
pub(super) fn may_be_name(beginning: &str) -> bool {
    let name = beginning.trim();
    beginning.len() <= NAME_LEN_MAX && (name.is_empty() || is_name(name))
}
