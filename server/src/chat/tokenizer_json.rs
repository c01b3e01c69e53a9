//! `tokenizer.json`, encoded by the `tokenizers` crate. Decoding is ours (`Vocabulary`), so the file's decoder is read as a rule for the
//! bytes of a token.

use super::special::ControlToken;
use super::vocabulary::{LeadingSpace, TokenEntry, Vocabulary};
use scheduler::TokenId;
use serde_json::Value;
use std::collections::HashMap;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{AddedToken, Tokenizer as Inner};

pub(super) struct JsonEncoder {
    /// Control tokens are text to it.
    inner: Inner,
    /// For text that does not begin the prompt, where the tokenizer puts a space before the first word only.
    rest: Option<Box<Inner>>,
}

/// What is read besides the encoder.
pub(super) struct JsonTokenizer {
    pub encoder: JsonEncoder,
    pub vocabulary: Vocabulary,
    /// Tokens that the file's post-processor puts before and after a text.
    pub prefix: Vec<TokenId>,
    pub suffix: Vec<TokenId>,
}

pub(super) fn parse(content: &[u8]) -> Result<JsonTokenizer, String> {
    let mut inner = Inner::from_bytes(content).map_err(|error| error.to_string())?;
    // Some files carry the lengths of the training script; cutting a prompt silently is not for a server.
    inner.with_truncation(None).map_err(|error| error.to_string())?;
    inner.with_padding(None);
    let (prefix, suffix) = post_processor_tokens(&inner)?;
    let vocabulary = vocabulary(&inner)?;
    let controls: Vec<AddedToken> = inner
        .get_added_tokens_decoder()
        .into_values()
        .filter(is_control)
        .map(|token| token.special(true))
        .collect();
    inner.add_special_tokens(controls).map_err(|error| error.to_string())?;
    inner.set_encode_special_tokens(true);
    let rest = without_first_space(&inner).map(Box::new);
    Ok(JsonTokenizer { encoder: JsonEncoder { inner, rest }, vocabulary, prefix, suffix })
}

impl JsonEncoder {
    /// `start`: where the text lies in the whole one.
    pub fn encode(&self, text: &str, start: usize, out: &mut Vec<TokenId>) -> Result<(), String> {
        let inner = match &self.rest {
            Some(rest) if start > 0 => rest,
            _ => &self.inner,
        };
        let encoding = inner.encode_fast(text, false).map_err(|error| error.to_string())?;
        out.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

/// Tokens that steer the model. Some checkpoints forget to mark the borders of turns as special (`<｜User｜>`), so those are told by their
/// shape; `<think>` and `<tool_call>` without the mark are vocabulary that clients rightly send back in a history.
fn is_control(token: &AddedToken) -> bool {
    let text = token.content.trim();
    let framed = |open: &str, close: &str| text.starts_with(open) && text.ends_with(close);
    token.special || framed("<|", "|>") || framed("<｜", "｜>")
}

fn vocabulary(inner: &Inner) -> Result<Vocabulary, String> {
    let rule = DecodeRule::read(inner)?;
    let added = inner.get_added_tokens_decoder();
    let mut entries = Vec::with_capacity(inner.get_vocab_size(true));
    for (text, id) in inner.get_vocab(false) {
        entries.push(TokenEntry { id, bytes: rule.bytes(&text), special: false });
    }
    let (mut by_text, mut control) = (HashMap::new(), Vec::new());
    for (id, token) in added {
        entries.push(TokenEntry { id, bytes: rule.added_bytes(&token.content), special: token.special });
        if is_control(&token) {
            let AddedToken { content: text, lstrip, rstrip, .. } = token.clone();
            control.push(ControlToken { id, text, lstrip, rstrip });
        }
        by_text.insert(token.content, id);
    }
    Vocabulary::new(entries, by_text, control, rule.leading_space)
}

/// Asks the post-processor with a word instead of reading its many forms.
fn post_processor_tokens(inner: &Inner) -> Result<(Vec<TokenId>, Vec<TokenId>), String> {
    let encode = |special| inner.encode_fast("a", special).map_err(|error| error.to_string());
    let (with, without) = (encode(true)?, encode(false)?);
    let (with, without) = (with.get_ids(), without.get_ids());
    let at = (0..=with.len().saturating_sub(without.len())).find(|&at| with[at..].starts_with(without));
    let at = at.ok_or("post-processor changes the text's own tokens")?;
    Ok((with[..at].to_vec(), with[at + without.len()..].to_vec()))
}

fn without_first_space(inner: &Inner) -> Option<Inner> {
    let mut rest = inner.clone();
    let mut pre_tokenizer = inner.get_pre_tokenizer()?.clone();
    let changed = match &mut pre_tokenizer {
        PreTokenizerWrapper::Metaspace(space) if space.get_prepend_scheme() == PrependScheme::First => {
            space.set_prepend_scheme(PrependScheme::Never);
            true
        }
        PreTokenizerWrapper::Sequence(sequence) => {
            let mut changed = false;
            for step in sequence.as_mut() {
                if let PreTokenizerWrapper::Metaspace(space) = step
                    && space.get_prepend_scheme() == PrependScheme::First
                {
                    space.set_prepend_scheme(PrependScheme::Never);
                    changed = true;
                }
            }
            changed
        }
        _ => false,
    };
    changed.then(|| {
        rest.with_pre_tokenizer(Some(pre_tokenizer));
        rest
    })
}

/// How a token's text in the file becomes bytes.
struct DecodeRule {
    steps: Vec<Step>,
    leading_space: LeadingSpace,
}

enum Step {
    Replace {
        from: String,
        to: String,
    },
    /// `<0x0A>` is a byte.
    ByteFallback,
    /// Every character stands for a byte, as in GPT-2.
    ByteLevel(HashMap<char, u8>),
    /// Words are joined by spaces.
    SpaceBefore,
}

impl DecodeRule {
    fn read(inner: &Inner) -> Result<Self, String> {
        let mut rule = DecodeRule { steps: Vec::new(), leading_space: LeadingSpace::Keep };
        match inner.get_decoder() {
            None => {
                rule.steps.push(Step::SpaceBefore);
                rule.leading_space = LeadingSpace::DropOne;
            }
            Some(decoder) => {
                let decoder = serde_json::to_value(decoder).map_err(|error| error.to_string())?;
                rule.add(&decoder, false)?;
            }
        }
        Ok(rule)
    }

    fn add(&mut self, decoder: &Value, fused: bool) -> Result<(), String> {
        let kind = decoder["type"].as_str().unwrap_or("without a type");
        match kind {
            "Sequence" => {
                let mut fused = false;
                for step in decoder["decoders"].as_array().into_iter().flatten() {
                    self.add(step, fused)?;
                    fused |= step["type"] == "Fuse";
                }
            }
            "ByteLevel" => self.steps.push(Step::ByteLevel(byte_characters())),
            "ByteFallback" => self.steps.push(Step::ByteFallback),
            "Fuse" => {}
            "Replace" => {
                let from = decoder["pattern"]["String"].as_str();
                let from = from.ok_or("decoder Replace has a pattern that is not a string")?.to_string();
                let to = decoder["content"].as_str().unwrap_or_default().to_string();
                self.steps.push(Step::Replace { from, to });
            }
            "Metaspace" => {
                let from = decoder["replacement"].as_str().unwrap_or("▁").to_string();
                self.steps.push(Step::Replace { from, to: " ".to_string() });
                if decoder["prepend_scheme"] != "never" {
                    self.leading_space = LeadingSpace::DropInFirstToken;
                }
            }
            "Strip" if fused && decoder["content"] == " " && decoder["stop"] == 0 => {
                match decoder["start"].as_u64() {
                    Some(0) => {}
                    Some(1) => self.leading_space = LeadingSpace::DropOne,
                    _ => return Err("decoder Strip drops more than one space".to_string()),
                }
            }
            other => return Err(format!("decoder {other} is not supported")),
        }
        Ok(())
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        let mut text = token.to_string();
        for step in &self.steps {
            match step {
                Step::Replace { from, to } => text = text.replace(from, to),
                Step::SpaceBefore => text.insert(0, ' '),
                Step::ByteFallback => {
                    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                    if let Some(digits) = digits.filter(|digits| digits.len() == 2)
                        && let Ok(byte) = u8::from_str_radix(digits, 16)
                    {
                        return vec![byte];
                    }
                }
                Step::ByteLevel(characters) => {
                    let bytes: Option<Vec<u8>> = text.chars().map(|c| characters.get(&c).copied()).collect();
                    return bytes.unwrap_or_else(|| text.into_bytes());
                }
            }
        }
        text.into_bytes()
    }

    /// Added tokens are written as they are, also where the vocabulary is in byte characters.
    fn added_bytes(&self, token: &str) -> Vec<u8> {
        if self.steps.iter().any(|step| matches!(step, Step::ByteLevel(_))) {
            return token.as_bytes().to_vec();
        }
        self.bytes(token)
    }
}

/// GPT-2's printable stand-ins: printable Latin-1 characters are themselves, the other bytes are U+0100 and up.
fn byte_characters() -> HashMap<char, u8> {
    let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let own = (0..=255u8).filter(printable).map(|byte| (char::from(byte), byte));
    let other = (0..=255u8).filter(|byte| !printable(byte)).zip(0x100u32..);
    own.chain(other.filter_map(|(byte, code)| Some((char::from_u32(code)?, byte)))).collect()
}
