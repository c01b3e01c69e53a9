//! The bytes of every token. Decoding is concatenation: a token's bytes do not depend on its neighbours, except for the space
//! that SentencePiece puts before a text.

use super::special::{ControlFinder, ControlToken};
use scheduler::TokenId;
use std::collections::HashMap;

/// What decoding does with the space before the first word of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeadingSpace {
    Keep,
    /// The text's first character is dropped where it is a space.
    DropOne,
    /// All spaces of the first token are dropped.
    DropInFirstToken,
}

pub(super) struct Vocabulary {
    /// All tokens' bytes, one after the other; token `t` ends at `ends[t]`.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    known: Vec<bool>,
    /// Not shown by `Shown::WithoutSpecials`.
    special: Vec<bool>,
    /// Every added token by its text, control or not.
    added: HashMap<String, TokenId>,
    pub control: ControlFinder,
    pub leading_space: LeadingSpace,
}

/// What a tokenizer file says of one token.
pub(super) struct TokenEntry {
    pub id: TokenId,
    pub bytes: Vec<u8>,
    pub special: bool,
}

impl Vocabulary {
    /// Ids may have gaps; they keep their numbers.
    pub fn new(
        mut entries: Vec<TokenEntry>,
        added: HashMap<String, TokenId>,
        control: Vec<ControlToken>,
        leading_space: LeadingSpace,
    ) -> Result<Self, String> {
        // Added tokens come last and win over a vocabulary entry of the same id.
        entries.sort_by_key(|entry| entry.id);
        let size = entries.last().map_or(0, |entry| entry.id as usize + 1);
        if size > MAX_TOKENS {
            return Err(format!("token id {} is above the limit of {MAX_TOKENS}", size - 1));
        }
        let control = ControlFinder::new(control).map_err(|error| error.to_string())?;
        let (mut known, mut special) = (vec![false; size], vec![false; size]);
        let (mut bytes, mut ends) = (Vec::<u8>::new(), Vec::<u32>::with_capacity(size));
        for entry in entries {
            let id = entry.id as usize;
            if known[id] {
                let start = if id == 0 { 0 } else { ends[id - 1] as usize };
                bytes.truncate(start);
                ends.truncate(id);
            }
            ends.resize(id, bytes.len() as u32);
            bytes.extend_from_slice(&entry.bytes);
            ends.push(bytes.len() as u32);
            known[id] = true;
            special[id] = entry.special;
        }
        Ok(Self { bytes, ends, known, special, added, control, leading_space })
    }

    /// One more than the largest id.
    pub fn size(&self) -> usize {
        self.ends.len()
    }

    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        let token = token as usize;
        if !self.known.get(token).copied().unwrap_or(false) {
            return None;
        }
        let start = if token == 0 { 0 } else { self.ends[token - 1] as usize };
        Some(&self.bytes[start..self.ends[token] as usize])
    }

    pub fn is_special(&self, token: TokenId) -> bool {
        self.special.get(token as usize).copied().unwrap_or(false)
    }

    pub fn added_tokens(&self) -> impl Iterator<Item = (&str, TokenId)> {
        self.added.iter().map(|(text, token)| (text.as_str(), *token))
    }

    pub fn added_token(&self, text: &str) -> Option<TokenId> {
        self.added.get(text).copied()
    }
}

/// Far above any vocabulary: a wrong id in a file must not allocate gigabytes.
const MAX_TOKENS: usize = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_keep_their_numbers_and_the_last_entry_of_an_id_wins() {
        let entry = |id, text: &str, special| TokenEntry { id, bytes: text.as_bytes().to_vec(), special };
        let entries = vec![
            entry(4, "four", false),
            entry(1, "one", false),
            entry(4, "FOUR!", true),
            entry(6, "", false),
        ];
        let vocabulary =
            Vocabulary::new(entries, HashMap::new(), Vec::new(), LeadingSpace::Keep).expect("small");
        assert_eq!(vocabulary.size(), 7);
        assert_eq!(vocabulary.token_bytes(0), None);
        assert_eq!(vocabulary.token_bytes(1), Some(&b"one"[..]));
        assert_eq!(vocabulary.token_bytes(4), Some(&b"FOUR!"[..]));
        assert_eq!(vocabulary.token_bytes(5), None);
        assert_eq!(vocabulary.token_bytes(6), Some(&b""[..]));
        assert_eq!(vocabulary.token_bytes(7), None);
        assert!(vocabulary.is_special(4) && !vocabulary.is_special(1) && !vocabulary.is_special(99));
    }

    #[test]
    fn an_absurd_id_is_an_error() {
        let entries = vec![TokenEntry { id: u32::MAX, bytes: Vec::new(), special: false }];
        assert!(Vocabulary::new(entries, HashMap::new(), Vec::new(), LeadingSpace::Keep).is_err());
    }
}
