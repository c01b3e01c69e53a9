//! Llama 3's calls: an answer that is nothing but `{"name": …, "parameters": …}`, several with `;` between them, `<|python_tag|>` before
//! them or not.

use super::calls::{Context, Format, Opener, Step, anywhere, at_start};
use super::json_call::{JsonCall, JsonCallRules, JsonStep};

pub(super) struct Llama3Json {
    /// `None` between calls.
    call: Option<JsonCall>,
    rules: JsonCallRules,
}

/// An answer may be an object of its own, so that only one with a tool's name is a call.
const BARE: JsonCallRules = JsonCallRules { must_be_known: true, needs_arguments: true };
const TAGGED: JsonCallRules = JsonCallRules { must_be_known: false, needs_arguments: true };

impl Llama3Json {
    pub fn new() -> Self {
        Self { call: None, rules: BARE }
    }
}

impl Format for Llama3Json {
    fn openers(&self) -> &'static [Opener] {
        const { &[at_start("{"), anywhere("<|python_tag|>")] }
    }

    fn begin(&mut self, opener: usize) {
        (self.rules, self.call) = match opener {
            0 => (BARE, Some(JsonCall::opened(BARE))),
            _ => (TAGGED, Some(JsonCall::new(TAGGED))),
        };
    }

    fn may_be_text(&self) -> bool {
        self.call.as_ref().is_some_and(JsonCall::may_be_text)
    }

    fn step(&mut self, context: &mut Context<'_>) -> Step {
        loop {
            if let Some(call) = &mut self.call {
                match call.step(context) {
                    JsonStep::More => return Step::More,
                    JsonStep::NotACall => return Step::NotACall,
                    JsonStep::Broken => return Step::Done,
                    JsonStep::Done => self.call = None,
                }
            }
            let white = context.input.white();
            let rest = context.input.rest();
            match rest[white..].chars().next() {
                None if !context.input.is_end() => return Step::More,
                Some(';') => {
                    context.input.advance(white + 1);
                    self.call = Some(JsonCall::new(self.rules));
                }
                Some('{') => {
                    context.input.advance(white);
                    self.call = Some(JsonCall::new(self.rules));
                }
                _ => return Step::Done,
            }
        }
    }
}
