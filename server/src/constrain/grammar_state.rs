//! Where one sequence stands in its grammar.

use super::masks::{TokenSet, shared};
use super::pool::{Job, MaskPool};
use super::vocabulary::Vocabulary;
use llguidance::Matcher;
use scheduler::{Accepted, TokenId, TokenMask};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use toktrie::SimpleVob;

/// What ends a sequence: tokens that the mask allows exactly where the grammar may end.
#[derive(Debug, Clone, Default)]
pub struct Ends {
    /// Of the request: end the sequence when sampled. The model's own are among them unless the request says `ignore_eos`.
    pub stops: Arc<[TokenId]>,
    /// Of the model.
    pub model: Arc<[TokenId]>,
}

impl Ends {
    pub fn contains(&self, token: TokenId) -> bool {
        self.stops.contains(&token) || self.model.contains(&token)
    }

    pub fn all(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.stops.iter().chain(&*self.model).copied()
    }
}

/// What the states of one request share.
#[derive(Clone)]
pub struct Setting {
    pub vocabulary: Arc<Vocabulary>,
    pub pool: Arc<MaskPool>,
    pub ends: Ends,
}

pub struct GrammarState {
    grammar: Arc<Advancing>,
    /// The mask of this state, once it was asked for, or once the token before it is being taken in.
    mask: Option<Arc<GrammarMask>>,
}

/// A grammar that one sequence goes through.
struct Advancing {
    matcher: Mutex<Matcher>,
    setting: Setting,
}

impl GrammarState {
    pub fn new(matcher: Matcher, setting: Setting) -> Self {
        Self { grammar: Arc::new(Advancing { matcher: Mutex::new(matcher), setting }), mask: None }
    }

    /// Begins to compute the mask. `also` is allowed whatever the grammar says.
    pub fn next_mask(&mut self, also: Option<TokenId>) -> Arc<GrammarMask> {
        let grammar = &self.grammar;
        let make = || {
            let mask = grammar.mask(Accepted::Open.into(), Turn { also, ..Turn::default() });
            grammar.setting.pool.start(mask.clone());
            mask
        };
        self.mask.get_or_insert_with(make).clone()
    }

    /// Takes a token in, at once.
    fn accept(&mut self, token: TokenId) -> Accepted {
        self.mask = None;
        self.grammar.accept(token)
    }

    /// Notes a token that is to be taken in before the next mask is computed: `start_accept` has threads begin with both, `finish_accept` says
    /// what came of it. Touches nothing of the grammar. `rest`: what is allowed where the grammar ends with this token and the answer does not.
    pub fn begin_accept(&mut self, token: TokenId, rest: Option<Arc<TokenSet>>) {
        let turn = Turn { token: Some(token), also: None, rest };
        self.mask = Some(self.grammar.mask(OnceLock::new(), turn));
    }

    /// The same; in the mask that follows `also` is allowed whatever the grammar says.
    pub fn begin_accept_beside(&mut self, token: TokenId, also: TokenId) {
        let turn = Turn { token: Some(token), also: Some(also), rest: None };
        self.mask = Some(self.grammar.mask(OnceLock::new(), turn));
    }

    pub fn start_accept(&mut self) {
        if let Some(mask) = &self.mask {
            self.grammar.setting.pool.start(mask.clone());
        }
    }

    pub fn finish_accept(&mut self) -> Accepted {
        self.mask.as_ref().expect("a token is to be taken in").accepted()
    }

    /// Takes in bytes that came with the end of something else.
    pub fn accept_bytes(&mut self, bytes: &[u8]) -> Accepted {
        let grammar = self.grammar.clone();
        for token in grammar.setting.vocabulary.cut(bytes) {
            match self.accept(token) {
                Accepted::Open => {}
                other => return other,
            }
        }
        Accepted::Open
    }

    pub fn fork(&self) -> Self {
        // What is being taken in is part of the state.
        let accepted = self.mask.as_ref().map(|mask| mask.accepted());
        let matcher = lock(&self.grammar.matcher).deep_clone();
        let mut fork = Self::new(matcher, self.grammar.setting.clone());
        if let (Some(accepted), Some(mask)) = (accepted, &self.mask) {
            let Turn { token: _, also, rest } = &mask.turn;
            let turn = Turn { token: None, also: *also, rest: rest.clone() };
            fork.mask = Some(fork.grammar.mask(accepted.into(), turn));
            fork.start_accept();
        }
        fork
    }
}

impl Advancing {
    fn mask(self: &Arc<Self>, accepted: OnceLock<Accepted>, turn: Turn) -> Arc<GrammarMask> {
        Arc::new(GrammarMask { grammar: self.clone(), turn, accepted, computed: OnceLock::new() })
    }

    fn accept(&self, token: TokenId) -> Accepted {
        if self.setting.ends.contains(token) {
            return Accepted::Complete;
        }
        let mut matcher = lock(&self.matcher);
        match matcher.consume_token(token) {
            Err(error) => {
                tracing::warn!(error = first_line(&error.to_string()), "a grammar failed");
                Accepted::Failed
            }
            Ok(()) if matcher.is_stopped() => Accepted::Complete,
            Ok(()) => Accepted::Open,
        }
    }
}

/// What comes before a mask, and beside the grammar.
#[derive(Default)]
struct Turn {
    /// To be taken in first.
    token: Option<TokenId>,
    /// Allowed whatever the grammar says.
    also: Option<TokenId>,
    /// What is allowed instead where the grammar ends with the token.
    rest: Option<Arc<TokenSet>>,
}

/// The tokens that a grammar allows in one state, and what the token that led to it made of the grammar. Both are computed once, by whoever comes
/// first.
pub struct GrammarMask {
    grammar: Arc<Advancing>,
    turn: Turn,
    accepted: OnceLock<Accepted>,
    computed: OnceLock<Option<Computed>>,
}

struct Computed {
    allowed: SimpleVob,
    /// `also` is allowed by the grammar too.
    also_by_grammar: bool,
}

impl std::fmt::Debug for GrammarMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarMask").field("is_computed", &self.computed.get().is_some()).finish()
    }
}

impl Job for GrammarMask {
    fn run(&self) {
        self.wait();
    }
}

impl TokenMask for GrammarMask {
    fn allowed(&self) -> Option<&[u32]> {
        let computed = self.wait();
        match (&self.turn.rest, self.accepted()) {
            (Some(rest), Accepted::Complete) => rest.allowed(),
            _ => computed.map(|computed| computed.allowed.as_slice()),
        }
    }

    fn is_ready(&self) -> bool {
        self.computed.get().is_some()
    }
}

impl GrammarMask {
    /// Whether the token that was let in beside the grammar would have been allowed anyway.
    pub fn also_by_grammar(&self) -> bool {
        self.wait().is_some_and(|computed| computed.also_by_grammar)
    }

    fn accepted(&self) -> Accepted {
        let accept = || self.turn.token.map_or(Accepted::Open, |token| self.grammar.accept(token));
        *self.accepted.get_or_init(accept)
    }

    fn wait(&self) -> Option<&Computed> {
        self.computed.get_or_init(|| self.compute()).as_ref()
    }

    fn compute(&self) -> Option<Computed> {
        // Nobody is told of a failure twice.
        if self.accepted() == Accepted::Failed {
            return None;
        }
        let Advancing { matcher, setting: Setting { ends, .. } } = &*self.grammar;
        let mut matcher = lock(matcher);
        let mut allowed = match matcher.compute_mask_or_eos() {
            Ok(mask) => mask,
            Err(error) => {
                tracing::warn!(error = first_line(&error.to_string()), "failed to compute a mask");
                return None;
            }
        };
        let may_end = matcher.is_stopped() || matcher.is_accepting().unwrap_or(false);
        drop(matcher);
        let size = allowed.len();
        let mut put = |token: TokenId, is_allowed: bool| {
            if (token as usize) < size {
                allowed.set(token as usize, is_allowed);
            }
        };
        ends.model.iter().for_each(|&end| put(end, false));
        ends.stops.iter().for_each(|&end| put(end, may_end));
        if may_end && allowed.is_zero() {
            // Nothing can follow and the request ignores the model's ends: one of them ends the answer all the same.
            ends.model.iter().for_each(|&end| {
                if (end as usize) < size {
                    allowed.set(end as usize, true);
                }
            });
        }
        let also_by_grammar =
            self.turn.also.is_some_and(|token| (token as usize) < size && allowed.is_allowed(token));
        if let Some(token) = self.turn.also.filter(|&token| (token as usize) < size) {
            allowed.allow_token(token);
        }
        Some(Computed { allowed, also_by_grammar })
    }
}

fn lock(matcher: &Mutex<Matcher>) -> MutexGuard<'_, Matcher> {
    matcher.lock().unwrap_or_else(PoisonError::into_inner)
}

fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

/// A mask of one token.
pub fn only(token: TokenId) -> Arc<dyn TokenMask> {
    shared(TokenSet::of(&[token]))
}
