//! The constraint of one sequence: what it goes through from its first token to its last.
//!
//! ```text
//!            ┌─ a start marker ──▶ Thinking ──end marker──▶ ┐
//! Opening ───┤                       ├─ budget used up ─▶ Closing: the end marker's tokens, one by one ─▶ ┐
//!            │                       └─ trigger ─▶ Call                                                   │
//!            └─ anything else ─────────────────────────────────────────────────────────────────────▶ Body
//!
//! Body:  Free  |  Grammar  |  Watching ──trigger──▶ Call ──complete──▶ Watching, or the end
//! ```

use super::grammar_state::{GrammarState, only};
use super::marker::Tail;
use super::masks::shared;
use super::spec::{AfterCall, Body, ConstraintSpec, SequenceSpec, Spec, Thinking, Triggered};
use scheduler::{Accepted, Constraint, TokenId, TokenMask};
use std::sync::Arc;

pub struct SequenceConstraint {
    spec: Arc<Spec>,
    phase: Phase,
}

enum Phase {
    /// Before the first text: thinking may begin, and does not have to.
    Opening {
        seen: Vec<u8>,
        grammar: Option<GrammarState>,
        /// Tokens of the start marker that have come and that the grammar took as well: either may go on.
        begun: usize,
    },
    /// The start marker has begun and its tokens from `next` on follow.
    Start {
        next: usize,
    },
    Thinking {
        tail: Tail,
        /// The same for what begins a call.
        call_tail: Tail,
        num_tokens: usize,
        last: Vec<TokenId>,
    },
    /// The end marker's tokens from `next` on follow.
    Closing {
        next: usize,
    },
    Free,
    Grammar(GrammarState),
    Watching {
        tail: Tail,
    },
    Call {
        call: GrammarState,
        after: AfterCall,
    },
}

impl std::fmt::Debug for SequenceConstraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SequenceConstraint").field("phase", &self.phase.name()).finish_non_exhaustive()
    }
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Phase::Opening { .. } => "opening",
            Phase::Start { .. } => "start",
            Phase::Thinking { .. } => "thinking",
            Phase::Closing { .. } => "closing",
            Phase::Free => "free",
            Phase::Grammar(_) => "grammar",
            Phase::Watching { .. } => "watching",
            Phase::Call { .. } => "call",
        }
    }
}

impl SequenceSpec {
    /// For one sequence, at its beginning.
    pub fn begin(&self) -> Box<dyn Constraint> {
        match self {
            SequenceSpec::Constraint(spec) => spec.begin(),
            SequenceSpec::Filter(filter) => filter.begin(),
        }
    }
}

impl ConstraintSpec {
    /// The constraint of one sequence, at its beginning.
    pub fn begin(&self) -> Box<dyn Constraint> {
        Box::new(SequenceConstraint::new(self.0.clone()))
    }
}

impl SequenceConstraint {
    fn new(spec: Arc<Spec>) -> Self {
        let phase = match &spec.thinking {
            None => body(&spec),
            Some(thinking) if thinking.is_open => begin_thinking(thinking),
            Some(_) => {
                let grammar = match &spec.body {
                    Body::Grammar(grammar) => Some(grammar.state(&spec.setting)),
                    Body::Free | Body::Triggered(_) => None,
                };
                Phase::Opening { seen: Vec::new(), grammar, begun: 0 }
            }
        };
        Self { spec, phase }
    }

    fn thinking(&self) -> &Thinking {
        self.spec.thinking.as_ref().expect("phases of thinking are entered only where there is any")
    }

    /// Where `next` of a marker's tokens have come.
    fn after_marker_token(&mut self, next: usize) -> Phase {
        let thinking = self.thinking();
        match &self.phase {
            Phase::Start { .. } if next < thinking.start_tokens.len() => Phase::Start { next },
            Phase::Start { .. } => begin_thinking(thinking),
            _ if next < thinking.end_tokens.len() => Phase::Closing { next },
            _ => body(&self.spec),
        }
    }

    fn accept_opening(&mut self, token: TokenId) -> (Phase, Option<Accepted>) {
        let spec = self.spec.clone();
        let start_tokens = &spec.thinking.as_ref().expect("called while opening").start_tokens;
        let Phase::Opening { seen, grammar, begun } = &mut self.phase else {
            unreachable!("called while opening")
        };
        if let Some(mut grammar) = grammar.take() {
            let (next, begun) = (start_tokens[*begun], *begun + 1);
            let mask = grammar.next_mask(Some(next));
            if token == next && !mask.also_by_grammar() {
                self.phase = Phase::Start { next: 0 };
                return (self.after_marker_token(begun), Some(Accepted::Open));
            }
            if let Some(&after) = start_tokens.get(begun).filter(|_| token == next) {
                grammar.begin_accept_beside(token, after);
                return (Phase::Opening { seen: Vec::new(), grammar: Some(grammar), begun }, None);
            }
            grammar.begin_accept(token, None);
            return (Phase::Grammar(grammar), None);
        }
        seen.extend_from_slice(spec.setting.vocabulary.bytes(token));
        let text = seen.trim_ascii_start();
        let marker = spec.thinking.as_ref().map_or(&[][..], |thinking| thinking.start.as_bytes());
        if text.starts_with(marker) {
            let rest = text[marker.len()..].to_vec();
            self.phase = begin_thinking(self.thinking());
            return if rest.is_empty() {
                (std::mem::replace(&mut self.phase, Phase::Free), Some(Accepted::Open))
            } else {
                said(self.accept_thinking(token, &rest))
            };
        }
        if marker.starts_with(text) {
            let seen = std::mem::take(seen);
            return (Phase::Opening { seen, grammar: None, begun: 0 }, Some(Accepted::Open));
        }
        let seen = std::mem::take(seen);
        self.phase = body(&spec);
        said(self.accept_text(&seen))
    }

    fn accept_thinking(&mut self, token: TokenId, bytes: &[u8]) -> (Phase, Accepted) {
        let spec = self.spec.clone();
        let thinking =
            spec.thinking.as_ref().expect("phases of thinking are entered only where there is any");
        let Phase::Thinking { tail, call_tail, num_tokens, last } = &mut self.phase else {
            unreachable!("called while thinking")
        };
        let end = thinking.end_markers.push(tail, bytes);
        let call =
            thinking.calls.as_ref().and_then(|calls| Some((calls, calls.markers.push(call_tail, bytes)?)));
        if let Some((calls, at)) = call
            && end.is_none_or(|end| at < end)
        {
            return self.begin_call(calls, &bytes[at..]);
        }
        if let Some(end) = end {
            self.phase = body(&spec);
            return self.accept_text(&bytes[end..]);
        }
        last.push(token);
        if last.len() >= thinking.end_tokens.len() {
            last.remove(0);
        }
        let (tail, call_tail) = (std::mem::take(tail), std::mem::take(call_tail));
        let (num_tokens, last) = (*num_tokens + 1, std::mem::take(last));
        if thinking.budget.is_some_and(|budget| num_tokens >= budget) {
            return (close(thinking, &last), Accepted::Open);
        }
        (Phase::Thinking { tail, call_tail, num_tokens, last }, Accepted::Open)
    }

    /// Takes in text that the body begins or goes on with.
    fn accept_text(&mut self, bytes: &[u8]) -> (Phase, Accepted) {
        let spec = self.spec.clone();
        match std::mem::replace(&mut self.phase, Phase::Free) {
            Phase::Grammar(mut grammar) if !bytes.is_empty() => {
                let accepted = grammar.accept_bytes(bytes);
                (Phase::Grammar(grammar), accepted)
            }
            Phase::Watching { mut tail } => {
                let Body::Triggered(triggered) = &spec.body else { unreachable!("watches for a trigger") };
                let Some(end) = triggered.markers.push(&mut tail, bytes) else {
                    return (Phase::Watching { tail }, Accepted::Open);
                };
                self.begin_call(triggered, &bytes[end..])
            }
            Phase::Call { mut call, after } => {
                let accepted = call.accept_bytes(bytes);
                after_call(call, after, accepted)
            }
            other => (other, Accepted::Open),
        }
    }

    /// `bytes` follow what begins a call.
    fn begin_call(&self, triggered: &Triggered, bytes: &[u8]) -> (Phase, Accepted) {
        let mut call = triggered.grammar.state(&self.spec.setting);
        let accepted = call.accept_bytes(bytes);
        after_call(call, triggered.after, accepted)
    }
}

/// Only grammars take their time.
fn said((phase, accepted): (Phase, Accepted)) -> (Phase, Option<Accepted>) {
    (phase, Some(accepted))
}

fn after_call(call: GrammarState, after: AfterCall, accepted: Accepted) -> (Phase, Accepted) {
    match (accepted, after) {
        (Accepted::Complete, AfterCall::Watch) => (Phase::Watching { tail: Tail::default() }, Accepted::Open),
        (accepted, _) => (Phase::Call { call, after }, accepted),
    }
}

fn body(spec: &Spec) -> Phase {
    match &spec.body {
        Body::Free => Phase::Free,
        Body::Grammar(grammar) => Phase::Grammar(grammar.state(&spec.setting)),
        Body::Triggered(_) => Phase::Watching { tail: Tail::default() },
    }
}

fn begin_thinking(thinking: &Thinking) -> Phase {
    match thinking.budget {
        Some(0) => Phase::Closing { next: 0 },
        _ => Phase::Thinking {
            tail: Tail::default(),
            call_tail: Tail::default(),
            num_tokens: 0,
            last: Vec::new(),
        },
    }
}

/// What of the end marker the model has begun by itself is not said again.
fn close(thinking: &Thinking, last: &[TokenId]) -> Phase {
    let tokens = &thinking.end_tokens;
    let begun = (0..tokens.len()).rev().find(|&begun| last.ends_with(&tokens[..begun])).unwrap_or(0);
    Phase::Closing { next: begun }
}

impl Constraint for SequenceConstraint {
    fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>> {
        let spec = &self.spec;
        let thinking = spec.thinking.as_ref();
        match &mut self.phase {
            Phase::Free => None,
            Phase::Opening { grammar: None, .. } => None,
            Phase::Opening { grammar: Some(grammar), begun, .. } => {
                let next = thinking.and_then(|thinking| thinking.start_tokens.get(*begun).copied());
                Some(grammar.next_mask(next))
            }
            Phase::Start { next } => Some(only(thinking?.start_tokens[*next])),
            Phase::Closing { next } => Some(only(thinking?.end_tokens[*next])),
            Phase::Thinking { tail, call_tail, .. } => {
                let thinking = thinking?;
                let bad: Vec<TokenId> = thinking.misfits(tail, call_tail).collect();
                match (&thinking.mask, bad.is_empty()) {
                    (None, true) => None,
                    (Some(mask), true) => Some(mask.clone()),
                    (Some(mask), false) => Some(shared(mask.without(bad))),
                    (None, false) => Some(shared(spec.everything.without(bad))),
                }
            }
            Phase::Watching { tail } => {
                let Body::Triggered(triggered) = &spec.body else { unreachable!("watches for a trigger") };
                let bad: Vec<TokenId> = triggered.misfits(tail).collect();
                (!bad.is_empty()).then(|| shared(spec.everything.without(bad)))
            }
            Phase::Grammar(grammar) | Phase::Call { call: grammar, .. } => Some(grammar.next_mask(None)),
        }
    }

    fn accept(&mut self, token: TokenId) -> Accepted {
        self.begin_accept(token).unwrap_or_else(|| {
            self.start_accept();
            self.finish_accept()
        })
    }

    fn begin_accept(&mut self, token: TokenId) -> Option<Accepted> {
        match &mut self.phase {
            Phase::Free => return Some(Accepted::Open),
            Phase::Grammar(grammar) => {
                grammar.begin_accept(token, None);
                return None;
            }
            Phase::Call { call, after } => {
                let rest = match (after, &self.spec.body) {
                    (AfterCall::Watch, Body::Triggered(triggered)) => Some(triggered.after_call.clone()),
                    _ => None,
                };
                call.begin_accept(token, rest);
                return None;
            }
            _ => {}
        }
        let spec = self.spec.clone();
        let bytes = spec.setting.vocabulary.bytes(token);
        let (phase, accepted) = match &self.phase {
            Phase::Opening { .. } => self.accept_opening(token),
            Phase::Start { next } | Phase::Closing { next } => {
                let next = *next + 1;
                (self.after_marker_token(next), Some(Accepted::Open))
            }
            Phase::Thinking { .. } => said(self.accept_thinking(token, bytes)),
            Phase::Watching { .. } => said(self.accept_text(bytes)),
            Phase::Free | Phase::Grammar(_) | Phase::Call { .. } => unreachable!("dealt with above"),
        };
        self.phase = phase;
        accepted
    }

    /// The next mask begins with the token before it.
    fn start_accept(&mut self) {
        if let Phase::Grammar(grammar)
        | Phase::Call { call: grammar, .. }
        | Phase::Opening { grammar: Some(grammar), .. } = &mut self.phase
        {
            grammar.start_accept();
        }
    }

    fn finish_accept(&mut self) -> Accepted {
        match &mut self.phase {
            Phase::Grammar(grammar) | Phase::Opening { grammar: Some(grammar), .. } => {
                grammar.finish_accept()
            }
            Phase::Call { call, after } => match (call.finish_accept(), after) {
                (Accepted::Complete, AfterCall::Watch) => {
                    self.phase = Phase::Watching { tail: Tail::default() };
                    Accepted::Open
                }
                (accepted, _) => accepted,
            },
            other => unreachable!("{}: only grammars take their time", other.name()),
        }
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        let phase = match &self.phase {
            Phase::Opening { seen, grammar, begun } => Phase::Opening {
                seen: seen.clone(),
                grammar: grammar.as_ref().map(GrammarState::fork),
                begun: *begun,
            },
            Phase::Start { next } => Phase::Start { next: *next },
            Phase::Thinking { tail, call_tail, num_tokens, last } => Phase::Thinking {
                tail: tail.clone(),
                call_tail: call_tail.clone(),
                num_tokens: *num_tokens,
                last: last.clone(),
            },
            Phase::Closing { next } => Phase::Closing { next: *next },
            Phase::Free => Phase::Free,
            Phase::Grammar(grammar) => Phase::Grammar(grammar.fork()),
            Phase::Watching { tail } => Phase::Watching { tail: tail.clone() },
            Phase::Call { call, after } => Phase::Call { call: call.fork(), after: *after },
        };
        Box::new(Self { spec: self.spec.clone(), phase })
    }
}
