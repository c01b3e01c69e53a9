//! `<tool_call>{"name": …, "arguments": …}</tool_call>`, the format of Hermes and Qwen.

use super::calls::{Context, Format, Opener, Step, anywhere};
use super::json_call::{JsonCall, JsonCallRules, JsonStep};
use super::markers::{Match, starts_with};

pub(super) struct Hermes {
    /// `None` behind the object.
    call: Option<JsonCall>,
}

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";
const RULES: JsonCallRules = JsonCallRules { must_be_known: false, needs_arguments: false };

impl Hermes {
    pub fn new() -> Self {
        Self { call: None }
    }
}

impl Format for Hermes {
    fn openers(&self) -> &'static [Opener] {
        const { &[anywhere(OPEN)] }
    }

    fn begin(&mut self, _: usize) {
        self.call = Some(JsonCall::new(RULES));
    }

    fn step(&mut self, context: &mut Context<'_>) -> Step {
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
        match starts_with(&rest[white..], &[CLOSE], context.input.is_end()) {
            Match::Partly => Step::More,
            Match::No => Step::Done,
            Match::Yes(_) => {
                context.input.advance(white + CLOSE.len());
                Step::Done
            }
        }
    }
}
