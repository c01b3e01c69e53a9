//! Sets of tokens that do not depend on a grammar: all but some, one alone.

use scheduler::{TokenId, TokenMask};
use std::sync::Arc;

/// A set that is there already.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TokenSet(Vec<u32>);

impl std::fmt::Debug for TokenSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let num_set: u32 = self.0.iter().map(|word| word.count_ones()).sum();
        write!(f, "TokenSet({num_set} tokens)")
    }
}

impl TokenSet {
    pub fn all(num_tokens: usize) -> Self {
        let mut words = vec![u32::MAX; num_tokens.div_ceil(32)];
        if let Some(last) = words.last_mut()
            && !num_tokens.is_multiple_of(32)
        {
            *last = (1 << (num_tokens % 32)) - 1;
        }
        Self(words)
    }

    pub fn of(tokens: &[TokenId]) -> Self {
        let len = tokens.iter().map(|&token| token as usize / 32 + 1).max().unwrap_or(0);
        let mut set = Self(vec![0; len]);
        for &token in tokens {
            set.0[token as usize / 32] |= 1 << (token % 32);
        }
        set
    }

    #[cfg(test)]
    pub fn contains(&self, token: TokenId) -> bool {
        self.0.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    pub fn remove(&mut self, token: TokenId) {
        if let Some(word) = self.0.get_mut(token as usize / 32) {
            *word &= !(1 << (token % 32));
        }
    }

    pub fn without(&self, tokens: impl IntoIterator<Item = TokenId>) -> Self {
        let mut set = self.clone();
        tokens.into_iter().for_each(|token| set.remove(token));
        set
    }
}

impl TokenMask for TokenSet {
    fn allowed(&self) -> Option<&[u32]> {
        Some(&self.0)
    }
}

pub fn shared(set: TokenSet) -> Arc<dyn TokenMask> {
    Arc::new(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_end_where_the_vocabulary_ends() {
        for num_tokens in [0, 1, 31, 32, 33, 64, 163_840] {
            let set = TokenSet::all(num_tokens);
            let held = (0..num_tokens as TokenId + 70).filter(|&token| set.contains(token)).count();
            assert_eq!(held, num_tokens);
        }
    }

    #[test]
    fn tokens_are_put_in_and_taken_out() {
        let set = TokenSet::of(&[3, 32, 95]);
        let held: Vec<TokenId> = (0..200).filter(|&token| set.contains(token)).collect();
        assert_eq!(held, [3, 32, 95]);
        let set = set.without([32, 1000]);
        let held: Vec<TokenId> = (0..200).filter(|&token| set.contains(token)).collect();
        assert_eq!(held, [3, 95]);
        assert_eq!(TokenSet::of(&[]).allowed(), Some(&[][..]));
    }
}
