//! What an answer is held to, put together from its parts once a request and begun once a sequence.

use super::compiler::Grammar;
use super::filter::TokenFilter;
use super::grammar_state::Setting;
use super::marker::{Markers, Overhang};
use super::masks::TokenSet;
use super::sequence::SequenceConstraint;
use crate::chat::parse::ReasoningMarkers;
use scheduler::{Constraint, TokenId};
use std::collections::HashSet;
use std::sync::Arc;

/// A constraint that is ready to begin; cheap to clone.
#[derive(Clone)]
pub struct ConstraintSpec(Arc<Spec>);

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

impl SequenceSpec {
    /// For one sequence, at its beginning.
    pub fn begin(&self) -> Box<dyn Constraint> {
        match self {
            SequenceSpec::Constraint(spec) => spec.begin(),
            SequenceSpec::Filter(filter) => filter.begin(),
        }
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
}

#[derive(Clone)]
pub enum BodyPart {
    Free,
    /// The answer is this and nothing else.
    Grammar(Grammar),
    /// Free text in which, after any of `triggers`, `grammar` follows.
    Triggered {
        triggers: Vec<String>,
        grammar: Grammar,
        after: AfterCall,
    },
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
    Triggered(Triggered),
}

pub(super) struct Triggered {
    pub markers: Markers,
    pub grammar: Grammar,
    pub after: AfterCall,
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
    pub fn fits(&self, overhang: &Overhang) -> bool {
        !self.misfits.contains(&(overhang.token, overhang.rest))
    }
}

impl Triggered {
    pub fn fits(&self, overhang: &Overhang) -> bool {
        !self.misfits.contains(&(overhang.token, overhang.rest))
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
        let thinking = thinking.and_then(|part| make_thinking(part, &body, &setting, &everything));
        let body = match body {
            BodyPart::Free => Body::Free,
            BodyPart::Grammar(grammar) => Body::Grammar(grammar),
            BodyPart::Triggered { triggers, grammar, after } => {
                let triggers: Vec<&str> = triggers.iter().map(String::as_str).collect();
                let markers = Markers::new(&triggers, &setting.vocabulary);
                let misfits = misfits(&markers, &setting, &grammar);
                Body::Triggered(Triggered { markers, grammar, after, misfits })
            }
        };
        Some(Self(Arc::new(Spec { setting, thinking, body, everything })))
    }

    /// The constraint of one sequence, at its beginning.
    pub fn begin(&self) -> Box<dyn Constraint> {
        Box::new(SequenceConstraint::new(self.0.clone()))
    }
}

/// `None` for markers that this vocabulary cannot say: then nobody thinks between them.
fn make_thinking(
    part: ThinkingPart,
    body: &BodyPart,
    setting: &Setting,
    everything: &TokenSet,
) -> Option<Thinking> {
    let ThinkingPart { markers: ReasoningMarkers { start, end, open_in_prompt }, budget } = part;
    let vocabulary = &setting.vocabulary;
    let end_markers = Markers::new(&[&end], vocabulary);
    let (mask, misfits) = match body {
        BodyPart::Grammar(grammar) => {
            (Some(Arc::new(everything.without(setting.ends.all()))), misfits(&end_markers, setting, grammar))
        }
        BodyPart::Free | BodyPart::Triggered { .. } => (None, HashSet::new()),
    };
    Some(Thinking {
        start_tokens: vocabulary.encode_marker(&start)?,
        end_tokens: vocabulary.encode_marker(&end)?,
        start,
        end_markers,
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
