//! What an answer is held to, put together from its parts once a request and begun once a sequence.

use super::compiler::Grammar;
use super::filter::TokenFilter;
use super::grammar_state::Setting;
use super::marker::{Markers, Overhang, Tail};
use super::masks::TokenSet;
use crate::chat::parse::ReasoningMarkers;
use scheduler::TokenId;
use std::collections::HashSet;
use std::sync::Arc;

/// A constraint that is ready to begin; cheap to clone.
#[derive(Clone)]
pub struct ConstraintSpec(pub(super) Arc<Spec>);

impl std::fmt::Debug for ConstraintSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintSpec").field("body", &self.0.body.name()).finish_non_exhaustive()
    }
}

/// Anything that a sequence can be held to.
#[derive(Debug, Clone)]
pub enum SequenceSpec {
    Constraint(ConstraintSpec),
    Filter(TokenFilter),
}

impl From<ConstraintSpec> for SequenceSpec {
    fn from(spec: ConstraintSpec) -> Self {
        SequenceSpec::Constraint(spec)
    }
}

impl From<TokenFilter> for SequenceSpec {
    fn from(filter: TokenFilter) -> Self {
        SequenceSpec::Filter(filter)
    }
}

/// The parts that a request names.
#[derive(Clone)]
pub struct ConstraintParts {
    /// How the model thinks, where it does: thinking is outside of what `body` holds it to.
    pub thinking: Option<ThinkingPart>,
    pub body: BodyPart,
}

#[derive(Clone)]
pub struct ThinkingPart {
    pub markers: ReasoningMarkers,
    /// Most tokens of thinking before its end is forced.
    pub budget: Option<usize>,
    /// Calls that may begin within it, which ends it: many a model forgets to say that it has thought enough. Where the body is calls
    /// within text these are the same and need not be given.
    pub calls: Option<CallsPart>,
}

/// Calls within other text: after any of `triggers`, `grammar` follows.
#[derive(Clone)]
pub struct CallsPart {
    pub triggers: Vec<String>,
    pub grammar: Grammar,
    pub after: AfterCall,
}

#[derive(Clone)]
pub enum BodyPart {
    Free,
    /// The answer is this and nothing else.
    Grammar(Grammar),
    /// Free text with calls in it.
    Triggered(CallsPart),
}

/// What follows a grammar that a trigger began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterCall {
    /// Free text, perhaps with another trigger.
    Watch,
    /// The end of the answer.
    End,
}

pub(super) struct Spec {
    pub setting: Setting,
    pub thinking: Option<Thinking>,
    pub body: Body,
    /// Every token of the model.
    pub everything: TokenSet,
}

pub(super) struct Thinking {
    pub start: String,
    pub start_tokens: Vec<TokenId>,
    pub end_tokens: Vec<TokenId>,
    pub end_markers: Markers,
    /// What begins a call, which ends the thinking too.
    pub calls: Option<Arc<Triggered>>,
    /// The prompt has begun it.
    pub is_open: bool,
    pub budget: Option<usize>,
    /// What thinking may consist of, where that is not everything: with something to come after it, it cannot end the answer.
    pub mask: Option<Arc<TokenSet>>,
    /// Tokens that end it and go on with what the body does not begin with.
    misfits: HashSet<(TokenId, usize)>,
}

pub(super) enum Body {
    Free,
    Grammar(Grammar),
    Triggered(Arc<Triggered>),
}

pub(super) struct Triggered {
    pub markers: Markers,
    pub grammar: Grammar,
    pub after: AfterCall,
    /// What may come right after a call.
    pub after_call: Arc<TokenSet>,
    misfits: HashSet<(TokenId, usize)>,
}

impl Body {
    fn name(&self) -> &'static str {
        match self {
            Body::Free => "free",
            Body::Grammar(_) => "grammar",
            Body::Triggered(_) => "triggered",
        }
    }
}

impl Thinking {
    /// The tokens that may not come now: they would end the thinking, or begin a call, and go on with what cannot follow.
    pub fn misfits<'a>(&'a self, end: &'a Tail, call: &'a Tail) -> impl Iterator<Item = TokenId> + 'a {
        let of_end = self.end_markers.overhangs(end);
        let of_end = of_end.filter(|overhang| self.misfits.contains(&(overhang.token, overhang.rest)));
        let of_calls = self.calls.iter().flat_map(|calls| calls.misfits(call));
        of_end.map(|overhang| overhang.token).chain(of_calls)
    }
}

impl Triggered {
    fn new(part: CallsPart, setting: &Setting, everything: &TokenSet) -> Self {
        let CallsPart { triggers, grammar, after } = part;
        let triggers: Vec<&str> = triggers.iter().map(String::as_str).collect();
        let markers = Markers::new(&triggers, &setting.vocabulary);
        let misfits = misfits(&markers, setting, &grammar);
        let mut triggered = Self { markers, grammar, after, after_call: Arc::default(), misfits };
        triggered.after_call = Arc::new(everything.without(triggered.misfits(&Tail::default())));
        triggered
    }

    /// The tokens that may not come now: they would begin a call and go on with what is none.
    pub fn misfits<'a>(&'a self, tail: &'a Tail) -> impl Iterator<Item = TokenId> + 'a {
        let overhangs = self.markers.overhangs(tail);
        let misfits = overhangs.filter(|overhang| self.misfits.contains(&(overhang.token, overhang.rest)));
        misfits.map(|overhang| overhang.token)
    }
}

impl ConstraintSpec {
    /// Looks through the vocabulary for markers, which is not for an async thread. `num_rows`: tokens that the model can sample.
    /// `None` where the parts ask for nothing.
    pub fn new(parts: ConstraintParts, setting: Setting, num_rows: usize) -> Option<Self> {
        let ConstraintParts { thinking, body } = parts;
        // Thinking that is neither bounded nor followed by anything is as free as the rest.
        let thinking =
            thinking.filter(|thinking| thinking.budget.is_some() || !matches!(body, BodyPart::Free));
        if thinking.is_none() && matches!(body, BodyPart::Free) {
            return None;
        }
        let everything = TokenSet::all(num_rows);
        let body = match body {
            BodyPart::Free => Body::Free,
            BodyPart::Grammar(grammar) => Body::Grammar(grammar),
            BodyPart::Triggered(part) => {
                Body::Triggered(Arc::new(Triggered::new(part, &setting, &everything)))
            }
        };
        let thinking = thinking.and_then(|part| make_thinking(part, &body, &setting, &everything));
        Some(Self(Arc::new(Spec { setting, thinking, body, everything })))
    }
}

/// `None` for markers that this vocabulary cannot say: then nobody thinks between them.
fn make_thinking(
    part: ThinkingPart,
    body: &Body,
    setting: &Setting,
    everything: &TokenSet,
) -> Option<Thinking> {
    let ThinkingPart { markers: ReasoningMarkers { start, end, open_in_prompt }, budget, calls } = part;
    let vocabulary = &setting.vocabulary;
    let end_markers = Markers::new(&[&end], vocabulary);
    let (mask, misfits) = match body {
        Body::Grammar(grammar) => {
            (Some(Arc::new(everything.without(setting.ends.all()))), misfits(&end_markers, setting, grammar))
        }
        Body::Free | Body::Triggered(_) => (None, HashSet::new()),
    };
    let calls = match body {
        Body::Triggered(triggered) => Some(triggered.clone()),
        Body::Free | Body::Grammar(_) => {
            calls.map(|part| Arc::new(Triggered::new(part, setting, everything)))
        }
    };
    Some(Thinking {
        start_tokens: vocabulary.encode_marker(&start)?,
        end_tokens: vocabulary.encode_marker(&end)?,
        start,
        end_markers,
        calls,
        is_open: open_in_prompt,
        budget,
        mask,
        misfits,
    })
}

/// Tokens whose bytes after a marker's end are no beginning of the grammar.
fn misfits(markers: &Markers, setting: &Setting, grammar: &Grammar) -> HashSet<(TokenId, usize)> {
    let vocabulary = &setting.vocabulary;
    let mut checker = grammar.checker();
    let rest = |overhang: &Overhang| vocabulary.cut(&vocabulary.bytes(overhang.token)[overhang.rest..]);
    markers
        .all_overhangs()
        .filter(|overhang| !checker.can_begin_with(&rest(overhang)))
        .map(|overhang| (overhang.token, overhang.rest))
        .collect()
}
