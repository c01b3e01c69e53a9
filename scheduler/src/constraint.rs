//! What a sequence may say next, where that is not up to the model alone: a grammar, a budget of thinking, a marker that must come
//! now. Its state belongs to the sequence and outlives a preemption; its mask belongs to one step.
//!
//! ```text
//! schedule: next_mask() ──▶ Sample::mask     begins to be computed, on whatever threads the caller has, unless a token is to be taken in first
//! execute:  forward pass … Batch::choose_deferred(): which rows go on without theirs   … sampler: TokenMask::allowed()
//!           (of a step that was made ahead the forward pass begins first, and next_mask() is called when the step before was taken in)
//! commit:   begin_accept(token) ──▶ Open | Complete | Failed, or nothing yet
//!                                                             or, of a row that was deferred, nothing: next_mask() comes again
//! where nothing came yet, at the end of the commit, or on a device that works alone while it runs the next step:
//!           start_accept() of each, then finish_accept() ──▶ Open | Complete | Failed
//! ```

use crate::TokenId;
use std::fmt::Debug;
use std::sync::Arc;

/// The state of a constraint of one sequence. It is a function of the tokens accepted so far and of nothing else.
pub trait Constraint: Debug + Send + Sync {
    /// The tokens that may come next; `None` where any may. Asked before each token, and again where no token came of it; what is being
    /// computed then goes on. Must not wait: the work may go on while the model runs. Also asked between `begin_accept` and `finish_accept`,
    /// which may say that nothing comes next: then what is drawn under the mask is not looked at.
    fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>>;

    /// Takes in the token that was sampled under the last mask. The next one may begin to be computed.
    fn accept(&mut self, token: TokenId) -> Accepted;

    /// Does what `accept` does, or only notes the token: then [`Constraint::finish_accept`] is to be asked for the result, before the next token.
    /// Everybody waits for this call.
    fn begin_accept(&mut self, token: TokenId) -> Option<Accepted> {
        Some(self.accept(token))
    }

    /// Has other threads, where there are some, take in what `begin_accept` noted, and compute the mask after it.
    fn start_accept(&mut self) {}

    /// What became of the last token, where `begin_accept` did not say; waits for it.
    fn finish_accept(&mut self) -> Accepted {
        unreachable!("{self:?}: begin_accept has said all")
    }

    /// The same state once more, for another sequence.
    fn boxed_clone(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// More may follow.
    Open,
    /// Nothing may follow: the sequence is complete.
    Complete,
    /// The constraint cannot go on, as when it reached a limit of time or memory.
    Failed,
}

/// A set of tokens, perhaps still being computed.
pub trait TokenMask: Debug + Send + Sync {
    /// Bit `i % 32` of word `i / 32` says whether token `i` may come next. Tokens beyond the last word may not. Waits until the mask
    /// is there; `None` where it could not be computed.
    fn allowed(&self) -> Option<&[u32]>;

    /// Whether `allowed` answers without waiting. Once true it stays so.
    fn is_ready(&self) -> bool {
        true
    }
}
