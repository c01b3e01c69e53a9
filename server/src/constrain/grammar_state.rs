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
    matcher: Arc<Mutex<Matcher>>,
    setting: Setting,
    /// The mask of this state, once it was asked for.
    mask: Option<Arc<GrammarMask>>,
}

impl GrammarState {
    pub fn new(matcher: Matcher, setting: Setting) -> Self {
        Self { matcher: Arc::new(Mutex::new(matcher)), setting, mask: None }
    }

    /// Begins to compute the mask. `also` is allowed whatever the grammar says.
    pub fn next_mask(&mut self, also: Option<TokenId>) -> Arc<GrammarMask> {
        let make = || {
            let mask = Arc::new(GrammarMask {
                matcher: self.matcher.clone(),
                ends: self.setting.ends.clone(),
                also,
                computed: OnceLock::new(),
            });
            self.setting.pool.start(mask.clone());
            mask
        };
        self.mask.get_or_insert_with(make).clone()
    }

    pub fn accept(&mut self, token: TokenId) -> Accepted {
        self.mask = None;
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

    /// Takes in bytes that came with the end of something else.
    pub fn accept_bytes(&mut self, bytes: &[u8]) -> Accepted {
        let vocabulary = self.setting.vocabulary.clone();
        for token in vocabulary.cut(bytes) {
            match self.accept(token) {
                Accepted::Open => {}
                other => return other,
            }
        }
        Accepted::Open
    }

    pub fn fork(&self) -> Self {
        Self::new(lock(&self.matcher).deep_clone(), self.setting.clone())
    }
}

/// The tokens that a grammar allows in one state.
pub struct GrammarMask {
    matcher: Arc<Mutex<Matcher>>,
    ends: Ends,
    also: Option<TokenId>,
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
        self.wait().map(|computed| computed.allowed.as_slice())
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

    fn wait(&self) -> Option<&Computed> {
        self.computed.get_or_init(|| self.compute()).as_ref()
    }

    fn compute(&self) -> Option<Computed> {
        let mut matcher = lock(&self.matcher);
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
        self.ends.model.iter().for_each(|&end| put(end, false));
        self.ends.stops.iter().for_each(|&end| put(end, may_end));
        if may_end && allowed.is_zero() {
            // Nothing can follow and the request ignores the model's ends: one of them ends the answer all the same.
            self.ends.model.iter().for_each(|&end| {
                if (end as usize) < size {
                    allowed.set(end as usize, true);
                }
            });
        }
        let also_by_grammar =
            self.also.is_some_and(|token| (token as usize) < size && allowed.is_allowed(token));
        if let Some(token) = self.also.filter(|&token| (token as usize) < size) {
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
