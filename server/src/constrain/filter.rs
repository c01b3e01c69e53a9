//! Tokens that an answer may not have, without any grammar: all but some, or those that would complete a forbidden run.

use super::masks::{TokenSet, shared};
use scheduler::{Accepted, Constraint, TokenId, TokenMask};
use std::sync::Arc;

/// Of one request; cheap to clone.
#[derive(Debug, Clone)]
pub struct TokenFilter(Arc<Filter>);

#[derive(Debug)]
struct Filter {
    allowed: Arc<TokenSet>,
    /// Runs of tokens that may not come about, none of them empty.
    forbidden: Vec<Vec<TokenId>>,
    /// Tokens before the last of the longest run.
    memory: usize,
}

impl TokenFilter {
    /// `allowed`: `None` are all `num_rows`.
    pub fn new(allowed: Option<&[TokenId]>, forbidden: Vec<Vec<TokenId>>, num_rows: usize) -> Self {
        let allowed = allowed.map_or_else(|| TokenSet::all(num_rows), TokenSet::of);
        let forbidden: Vec<Vec<TokenId>> = forbidden.into_iter().filter(|run| !run.is_empty()).collect();
        let always = forbidden.iter().filter(|run| run.len() == 1).map(|run| run[0]);
        let allowed = Arc::new(allowed.without(always));
        let memory = forbidden.iter().map(|run| run.len() - 1).max().unwrap_or(0);
        Self(Arc::new(Filter { allowed, forbidden, memory }))
    }

    pub fn begin(&self) -> Box<dyn Constraint> {
        Box::new(FilterState { filter: self.0.clone(), recent: Vec::new() })
    }
}

#[derive(Debug, Clone)]
struct FilterState {
    filter: Arc<Filter>,
    recent: Vec<TokenId>,
}

impl Constraint for FilterState {
    fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>> {
        let completes = |run: &&Vec<TokenId>| run.len() > 1 && self.recent.ends_with(&run[..run.len() - 1]);
        let last = |run: &Vec<TokenId>| *run.last().expect("runs are not empty");
        let now: Vec<TokenId> = self.filter.forbidden.iter().filter(completes).map(last).collect();
        match now.is_empty() {
            true => Some(self.filter.allowed.clone()),
            false => Some(shared(self.filter.allowed.without(now))),
        }
    }

    fn accept(&mut self, token: TokenId) -> Accepted {
        self.recent.push(token);
        if self.recent.len() > self.filter.memory {
            self.recent.remove(0);
        }
        Accepted::Open
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_cut_before_its_last_token() {
        let filter = TokenFilter::new(None, vec![vec![5], vec![1, 2, 3], vec![2, 4]], 40);
        let mut state = filter.begin();
        let forbidden = |state: &mut Box<dyn Constraint>| {
            let mask = state.next_mask().expect("a filter has a mask");
            let words = mask.allowed().expect("is there").to_vec();
            (0..40).filter(|token| words[token / 32] >> (token % 32) & 1 == 0).collect::<Vec<_>>()
        };
        assert_eq!(forbidden(&mut state), [5]);
        for (token, expected) in [(1, vec![5]), (2, vec![3, 4, 5]), (9, vec![5]), (2, vec![4, 5])] {
            assert_eq!(state.accept(token), Accepted::Open);
            assert_eq!(forbidden(&mut state), expected, "after {token}");
        }
    }

    #[test]
    fn only_what_is_allowed_and_not_forbidden_is_left() {
        let filter = TokenFilter::new(Some(&[3, 7, 39]), vec![vec![7]], 40);
        let mask = filter.begin().next_mask().expect("a filter has a mask");
        assert_eq!(mask.allowed(), Some(&[1 << 3, 1 << 7][..]));
    }
}
