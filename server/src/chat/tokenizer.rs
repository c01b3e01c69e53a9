//! Text to tokens and tokens to bytes, for models that come with a `tokenizer.json` or a `tiktoken.model`.

use super::special::{ControlToken, Piece};
use super::text::{Shown, decode};
use super::tiktoken::RankBpe;
use super::tokenizer_json::{self, JsonEncoder};
use super::vocabulary::{LeadingSpace, TokenEntry, Vocabulary};
use models::{FileError, ModelFiles};
use scheduler::TokenId;
use serde_json::Value;
use std::collections::HashMap;

/// How control tokens such as `<|im_end|>` are read in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// As the letters they are written with: the text is a user's.
    AsText,
    /// As themselves: the text is a rendered template or a raw completion prompt.
    Allowed,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error(transparent)]
    Read(#[from] FileError),
    #[error("model has neither tokenizer.json nor tiktoken.model: {path}")]
    Missing { path: String },
    #[error("failed to load tokenizer {path}: {message}")]
    File { path: String, message: String },
    #[error("failed to tokenize: {0}")]
    Encode(String),
}

pub struct Tokenizer {
    encoder: Encoder,
    vocabulary: Vocabulary,
    /// What `encode_with_added` puts around a text.
    prefix: Vec<TokenId>,
    suffix: Vec<TokenId>,
    names: SpecialNames,
}

enum Encoder {
    Json(Box<JsonEncoder>),
    Ranks(Box<RankBpe>),
}

/// The strings that chat templates call `bos_token` and so on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialNames {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
    /// `tokenizer_class`: what transformers would load.
    pub class: Option<String>,
}

const TOKENIZER_JSON: &str = "tokenizer.json";
const TIKTOKEN_MODEL: &str = "tiktoken.model";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

impl Tokenizer {
    /// `tokenizer.json` where there is one, else `tiktoken.model`.
    pub fn load(files: &ModelFiles) -> Result<Self, TokenizerError> {
        let config = TokenizerConfig::load(files)?;
        let fail = |name: &str| {
            let path = files.describe(name);
            move |message| TokenizerError::File { path, message }
        };
        if let Some(content) = files.read(TOKENIZER_JSON)? {
            let parsed = tokenizer_json::parse(&content).map_err(fail(TOKENIZER_JSON))?;
            let tokenizer_json::JsonTokenizer { encoder, vocabulary, prefix, suffix } = parsed;
            let tokenizer = Self {
                encoder: Encoder::Json(Box::new(encoder)),
                vocabulary,
                prefix,
                suffix,
                names: config.names.clone(),
            };
            return Ok(tokenizer.with_configured_ends(&config));
        }
        if let Some(content) = files.read(TIKTOKEN_MODEL)? {
            let bpe = RankBpe::parse(&content).map_err(fail(TIKTOKEN_MODEL))?;
            let vocabulary = rank_vocabulary(&bpe, &config).map_err(fail(TOKENIZER_CONFIG))?;
            let tokenizer = Self {
                encoder: Encoder::Ranks(Box::new(bpe)),
                vocabulary,
                prefix: Vec::new(),
                suffix: Vec::new(),
                names: config.names.clone(),
            };
            return Ok(tokenizer.with_configured_ends(&config));
        }
        Err(TokenizerError::Missing { path: files.describe("") })
    }

    /// `add_bos_token` and `add_eos_token` of tokenizer_config.json decide where they are given.
    fn with_configured_ends(mut self, config: &TokenizerConfig) -> Self {
        let bos = self.names.bos.as_deref().and_then(|text| self.token_id(text));
        let eos = self.names.eos.as_deref().and_then(|text| self.token_id(text));
        let settle = |wanted: Option<bool>, token: Option<TokenId>, tokens: &mut Vec<TokenId>| {
            let (Some(wanted), Some(token)) = (wanted, token) else { return };
            tokens.retain(|&t| t != token);
            if wanted {
                tokens.push(token);
            }
        };
        // The first token comes before what else a post-processor adds; nothing known adds more than it.
        settle(config.add_bos, bos, &mut self.prefix);
        settle(config.add_eos, eos, &mut self.suffix);
        self
    }

    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<TokenId>, TokenizerError> {
        let mut tokens = Vec::new();
        match specials {
            Specials::AsText => self.encode_text(text, 0, &mut tokens)?,
            Specials::Allowed => self.encode_pieces(text, None, &mut tokens)?,
        }
        Ok(tokens)
    }

    /// As `Specials::Allowed`, with the tokens around it that the model was trained with, such as `<s>`.
    pub fn encode_with_added(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut tokens = self.prefix.clone();
        self.encode_pieces(text, None, &mut tokens)?;
        tokens.extend_from_slice(&self.suffix);
        Ok(tokens)
    }

    /// Control tokens are found with `mark` in the text and the rest is encoded without it: what `mark` breaks is plain text.
    pub(super) fn encode_masked(&self, text: &str, mark: char) -> Result<Vec<TokenId>, TokenizerError> {
        let mut tokens = Vec::new();
        self.encode_pieces(text, Some(mark), &mut tokens)?;
        Ok(tokens)
    }

    fn encode_pieces(
        &self,
        text: &str,
        mark: Option<char>,
        out: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        for piece in self.vocabulary.control.split(text) {
            match (piece, mark) {
                (Piece::Control(token), _) => out.push(token),
                (Piece::Text { start, text }, Some(mark)) if text.contains(mark) => {
                    self.encode_text(&text.replace(mark, ""), start, out)?;
                }
                (Piece::Text { start, text }, _) => self.encode_text(text, start, out)?,
            }
        }
        Ok(())
    }

    fn encode_text(&self, text: &str, start: usize, out: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        match &self.encoder {
            Encoder::Json(encoder) => encoder.encode(text, start, out).map_err(TokenizerError::Encode),
            Encoder::Ranks(bpe) => {
                bpe.encode(text, out);
                Ok(())
            }
        }
    }

    /// A whole text. Bytes that are not UTF-8 become U+FFFD; ids that the tokenizer does not know have no text.
    pub fn decode(&self, tokens: &[TokenId], shown: Shown) -> String {
        decode(&self.vocabulary, tokens, shown)
    }

    /// The token alone; `None` for an id that the tokenizer does not know.
    pub fn token_text(&self, token: TokenId) -> Option<String> {
        self.token_bytes(token).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.vocabulary.token_bytes(token)
    }

    /// Every added token, control or not, by its text.
    pub fn added_tokens(&self) -> impl Iterator<Item = (&str, TokenId)> {
        self.vocabulary.added_tokens()
    }

    /// The tokens of a text inside an answer: nothing is put before or after it, and control tokens in it are text.
    pub fn encode_inside(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut tokens = Vec::new();
        self.encode_text(text, 1, &mut tokens)?;
        Ok(tokens)
    }

    /// The id of an added token, such as `<|im_end|>`.
    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        self.vocabulary.added_token(text)
    }

    pub fn is_special(&self, token: TokenId) -> bool {
        self.vocabulary.is_special(token)
    }

    /// One more than the largest id. The model's embedding may have more rows, or fewer.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    pub fn names(&self) -> &SpecialNames {
        &self.names
    }

    pub fn bos_token(&self) -> Option<&str> {
        self.names.bos.as_deref()
    }

    pub fn eos_token(&self) -> Option<&str> {
        self.names.eos.as_deref()
    }

    /// The tokens that `encode_with_added` puts before a text.
    pub fn prefix(&self) -> &[TokenId] {
        &self.prefix
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}

/// What we read of tokenizer_config.json.
#[derive(Debug, Default)]
struct TokenizerConfig {
    names: SpecialNames,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    /// `added_tokens_decoder`.
    added: Vec<(TokenId, AddedEntry)>,
}

#[derive(Debug, serde::Deserialize)]
struct AddedEntry {
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

impl TokenizerConfig {
    fn load(files: &ModelFiles) -> Result<Self, TokenizerError> {
        let Some(content) = files.read(TOKENIZER_CONFIG)? else { return Ok(Self::default()) };
        let path = files.describe(TOKENIZER_CONFIG);
        Self::parse(&content).map_err(|message| TokenizerError::File { path, message })
    }

    fn parse(content: &[u8]) -> Result<Self, String> {
        let config: Value = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        // A name is a string, or an object with its `content`.
        let name = |key: &str| {
            let value = &config[key];
            value.as_str().or_else(|| value["content"].as_str()).map(str::to_string)
        };
        let names = SpecialNames {
            bos: name("bos_token"),
            eos: name("eos_token"),
            unk: name("unk_token"),
            pad: name("pad_token"),
            class: name("tokenizer_class"),
        };
        let mut added = Vec::new();
        for (id, entry) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
            let fail = || format!("added_tokens_decoder[{id:?}] is not a token with its id");
            let token = id.parse().map_err(|_| fail())?;
            added.push((token, serde_json::from_value(entry.clone()).map_err(|_| fail())?));
        }
        let flag = |key: &str| config[key].as_bool();
        Ok(Self { names, add_bos: flag("add_bos_token"), add_eos: flag("add_eos_token"), added })
    }
}

/// Ids after the ranks are control tokens; those without a name are reserved.
const NUM_RESERVED: TokenId = 258;

fn rank_vocabulary(bpe: &RankBpe, config: &TokenizerConfig) -> Result<Vocabulary, String> {
    let mut entries: Vec<TokenEntry> =
        bpe.tokens().map(|(bytes, id)| TokenEntry { id, bytes: bytes.to_vec(), special: false }).collect();
    let first = entries.iter().map(|entry| entry.id + 1).max().unwrap_or(0);
    let named: HashMap<TokenId, &AddedEntry> = config.added.iter().map(|(id, entry)| (*id, entry)).collect();
    if let Some((id, entry)) = named.iter().find(|(id, _)| **id < first) {
        return Err(format!(
            "added_tokens_decoder: {:?} has id {id}, which is an ordinary token's",
            entry.content
        ));
    }
    let end = named.keys().map(|id| id + 1).max().unwrap_or(0).max(first + NUM_RESERVED);
    let (mut by_text, mut control) = (HashMap::new(), Vec::new());
    for id in first..end {
        let (text, lstrip, rstrip, special) = match named.get(&id) {
            Some(entry) => (entry.content.clone(), entry.lstrip, entry.rstrip, entry.special),
            None => (format!("<|reserved_token_{id}|>"), false, false, true),
        };
        entries.push(TokenEntry { id, bytes: text.as_bytes().to_vec(), special });
        by_text.insert(text.clone(), id);
        control.push(ControlToken { id, text, lstrip, rstrip });
    }
    Vocabulary::new(entries, by_text, control, LeadingSpace::Keep)
}
