//! The tokens of a model as the grammars see them: the bytes of each in a prefix tree, with those that steer the model kept apart from
//! text, so that no string of an answer can hold one.

use crate::chat::Tokenizer;
use scheduler::TokenId;
use std::sync::Arc;
use toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenizerEnv};

/// What a vocabulary is made from. `words[t]` are the bytes of token `t`; an empty word is a token that no grammar allows.
pub struct Words {
    pub words: Vec<Vec<u8>>,
    /// Added tokens such as `<|im_end|>`: never part of a text.
    pub is_control: Vec<bool>,
    /// The model's ends.
    pub ends: Vec<TokenId>,
}

/// Turns text that a grammar forces into the tokens that the model knows it by.
pub trait Encode: Send + Sync {
    /// Of a text inside an answer; `None` where it cannot be encoded.
    fn encode(&self, text: &str) -> Option<Vec<TokenId>>;
}

pub struct Vocabulary {
    trie: TokTrie,
    encoder: Option<Arc<dyn Encode>>,
}

/// Longer tokens have no place in the tree: its nodes count 1,024 parents.
const TOKEN_LEN_MAX: usize = 1000;

impl Words {
    /// `num_rows`: rows of the model's embedding. Those beyond the tokenizer have no text, tokens beyond the rows cannot be sampled.
    pub fn of(tokenizer: &Tokenizer, num_rows: usize, ends: &[TokenId]) -> Self {
        let size = tokenizer.vocab_size().min(num_rows);
        let mut words: Vec<Vec<u8>> = (0..size as TokenId)
            .map(|token| tokenizer.token_bytes(token).unwrap_or_default().to_vec())
            .collect();
        let mut is_control = vec![false; size];
        for (text, token) in tokenizer.added_tokens() {
            // Runs of blanks that some tokenizers add are text like any other.
            if (token as usize) < size && !text.trim().is_empty() {
                is_control[token as usize] = true;
                // A decoder may show it differently, as with stripped spaces; its name is what it was added as.
                words[token as usize] = text.as_bytes().to_vec();
            }
        }
        let ends = ends.iter().copied().filter(|&end| (end as usize) < size).collect();
        Self { words, is_control, ends }
    }
}

impl Vocabulary {
    pub fn new(words: Words, encoder: Option<Arc<dyn Encode>>) -> Self {
        let Words { mut words, is_control, ends } = words;
        assert_eq!(words.len(), is_control.len(), "one flag a token");
        for (word, &is_control) in words.iter_mut().zip(&is_control) {
            // The byte 0xFF is in no UTF-8 text and marks control tokens in the tree.
            let is_usable = word.len() <= TOKEN_LEN_MAX && !word.contains(&TokTrie::SPECIAL_TOKEN_MARKER);
            if !is_usable {
                word.clear();
            } else if is_control && !word.is_empty() {
                word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
        }
        let first_end = ends.first().copied().unwrap_or(INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, first_end), &words);
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
        Self { trie, encoder }
    }

    /// One more than the largest token that a grammar can allow.
    pub fn len(&self) -> usize {
        self.trie.vocab_size()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a token, those of a control token being its name. Empty for one that no grammar allows.
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        if token as usize >= self.len() {
            return &[];
        }
        let word = self.trie.token(token);
        word.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(word)
    }

    pub fn is_control(&self, token: TokenId) -> bool {
        (token as usize) < self.len() && self.trie.is_special_token(token)
    }

    pub fn control(&self, name: &str) -> Option<TokenId> {
        self.trie.get_special_token(name)
    }

    /// The longest control token whose name the text begins with, and the name's length.
    pub fn control_prefix(&self, text: &str) -> Option<(TokenId, usize)> {
        let mut marked = Vec::with_capacity(1 + text.len().min(TOKEN_LEN_MAX));
        marked.push(TokTrie::SPECIAL_TOKEN_MARKER);
        marked.extend(text.bytes().take(TOKEN_LEN_MAX));
        match self.trie.prefix_token_id(&marked) {
            (token, len) if len > 1 => Some((token, len - 1)),
            _ => None,
        }
    }

    pub fn model_ends(&self) -> &[TokenId] {
        match self.trie.eos_tokens() {
            [INVALID_TOKEN] => &[],
            ends => ends,
        }
    }

    /// The tokens of a text inside an answer.
    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        self.tokenize_bytes(text.as_bytes())
    }

    /// The tokens of a marker: control tokens where it has their names, else text. `None` where no tokens say it.
    pub fn encode_marker(&self, text: &str) -> Option<Vec<TokenId>> {
        let (mut tokens, mut plain, mut at) = (Vec::new(), 0, 0);
        while let Some(first) = text[at..].chars().next() {
            let Some((token, len)) = self.control_prefix(&text[at..]) else {
                at += first.len_utf8();
                continue;
            };
            tokens.extend(self.encode(&text[plain..at]));
            tokens.push(token);
            at += len;
            plain = at;
        }
        tokens.extend(self.encode(&text[plain..]));
        let said: Vec<u8> = tokens.iter().flat_map(|&token| self.bytes(token)).copied().collect();
        (said == text.as_bytes() && !tokens.is_empty()).then_some(tokens)
    }

    /// Tokens of some bytes, found without regard to how the model would cut them.
    pub fn cut(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(bytes)
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encoder = self.encoder.as_ref();
        let text = std::str::from_utf8(bytes).ok();
        let encoded = encoder.zip(text).and_then(|(encoder, text)| encoder.encode(text));
        // Some tokenizers put a space before a text or drop what they do not know; what is forced must be exact.
        let is_exact = |tokens: &Vec<TokenId>| {
            let mut rest = bytes;
            tokens.iter().all(|&token| match rest.strip_prefix(self.bytes(token)) {
                Some(after) if after.len() < rest.len() && !self.is_control(token) => {
                    rest = after;
                    true
                }
                _ => false,
            }) && rest.is_empty()
        };
        encoded.filter(is_exact).unwrap_or_else(|| self.cut(bytes))
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.encoder.is_some()
    }
}

/// The tokenizer's own way of cutting a text.
pub struct TokenizerEncoder(pub Arc<Tokenizer>);

impl Encode for TokenizerEncoder {
    fn encode(&self, text: &str) -> Option<Vec<TokenId>> {
        self.0.encode_inside(text).ok()
    }
}
