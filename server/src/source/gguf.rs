//! The tokenizer inside a GGUF file, as the tokenizer.json and tokenizer_config.json that it was made from. Sources of the rules: the
//! published tokenizers, and llama.cpp's table of `tokenizer.ggml.pre` (src/llama-vocab.cpp).

use models::gguf::{Gguf, GgufValue};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// ggml's kinds of tokens.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Name and content of both files; none where the file has no tokenizer.
pub fn tokenizer_files(gguf: &Gguf) -> Result<Vec<(String, Vec<u8>)>, String> {
    let text = |key: &str| match gguf.metadata(key) {
        None => Ok(None),
        Some(GgufValue::Text(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("{key} is not a text")),
    };
    let vocabulary = match text("tokenizer.ggml.model")? {
        None | Some("none") => return Ok(Vec::new()),
        Some("gpt2") => {
            byte_level(&Tokens::read(gguf)?, gguf, text("tokenizer.ggml.pre")?.unwrap_or("default"))?
        }
        Some("llama") => sentence_pieces(&Tokens::read(gguf)?, gguf)?,
        Some(other) => {
            return Err(format!("tokenizer.ggml.model: {other:?} is not supported, only gpt2 and llama are"));
        }
    };
    let file = |name: &str, value: Value| (name.to_string(), value.to_string().into_bytes());
    let template = text("tokenizer.chat_template")?;
    Ok(vec![
        file("tokenizer.json", vocabulary),
        file("tokenizer_config.json", configuration(gguf, template)?),
    ])
}

struct Tokens<'a> {
    texts: &'a [String],
    kinds: Vec<i64>,
}

impl<'a> Tokens<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self, String> {
        let texts = texts(gguf, "tokenizer.ggml.tokens")?.ok_or("tokenizer.ggml.tokens is missing")?;
        let kinds = match gguf.metadata("tokenizer.ggml.token_type") {
            None => vec![1; texts.len()],
            Some(GgufValue::Ints(kinds)) if kinds.len() == texts.len() => kinds.clone(),
            Some(_) => return Err("tokenizer.ggml.token_type is not a kind for each token".into()),
        };
        Ok(Self { texts, kinds })
    }

    fn len(&self) -> usize {
        self.texts.len()
    }

    /// Tokens that are found in a text before it is split.
    fn added(&self) -> Vec<Value> {
        let is_added = |kind: &i64| matches!(*kind, CONTROL | USER_DEFINED | UNKNOWN);
        let tokens = self.texts.iter().zip(&self.kinds).enumerate().filter(|(_, (_, kind))| is_added(kind));
        tokens
            .map(|(id, (text, &kind))| {
                json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": kind != USER_DEFINED })
            })
            .collect()
    }

    /// Text to id. Of tokens with one text, the first is the one that text becomes.
    fn vocabulary(&self) -> Map<String, Value> {
        let mut map = Map::new();
        for (id, text) in self.texts.iter().enumerate() {
            map.entry(text.clone()).or_insert_with(|| json!(id));
        }
        map
    }
}

fn texts<'a>(gguf: &'a Gguf, key: &str) -> Result<Option<&'a [String]>, String> {
    match gguf.metadata(key) {
        None => Ok(None),
        Some(GgufValue::Texts(texts)) => Ok(Some(texts)),
        Some(_) => Err(format!("{key} is not a list of texts")),
    }
}

/// How a kind of tokenizer cuts a text before it merges bytes.
struct Split {
    /// Applied one after the other, each to the pieces of the one before.
    patterns: &'static [&'static str],
    /// Text is brought into Unicode's composed form first.
    composes: bool,
    /// A piece that is a token is that token, whatever merges would make of it, as in tiktoken.
    whole_first: bool,
    /// Whether a file that does not say it puts the first token before a text.
    begins: bool,
}

const PLAIN: Split = Split { patterns: &[], composes: false, whole_first: false, begins: false };

fn split(pre: &str) -> Option<Split> {
    Some(match pre {
        "llama3" | "llama-v3" | "llama-bpe" => {
            Split { patterns: &[LLAMA3], whole_first: true, begins: true, ..PLAIN }
        }
        "qwen2" | "deepseek-r1-qwen" => Split { patterns: &[QWEN2], composes: true, ..PLAIN },
        "deepseek-v3" => Split { patterns: &DEEPSEEK_V3, ..PLAIN },
        "deepseek-llm" => Split { patterns: &DEEPSEEK_LLM, ..PLAIN },
        "seed-coder" => Split { patterns: &[SEED], ..PLAIN },
        "kimi-k2" => Split { patterns: &[KIMI], whole_first: true, ..PLAIN },
        "deepseek-coder" => Split { patterns: &DEEPSEEK_CODER, ..PLAIN },
        "glm4" | "chatglm-bpe" | "smaug-bpe" => Split { patterns: &[LLAMA3], ..PLAIN },
        "megrez" => Split { patterns: &[QWEN2], ..PLAIN },
        "minimax-m2" | "gpt-4o" => Split { patterns: &[O200K], ..PLAIN },
        "smollm" => Split { patterns: &SMOLLM, ..PLAIN },
        "tekken" => Split { patterns: &[TEKKEN], whole_first: true, begins: true, ..PLAIN },
        "default" | "gpt-2" | "olmo" => PLAIN,
        _ => return None,
    })
}

const KINDS: &str = "llama-bpe, smaug-bpe, qwen2, deepseek-r1-qwen, megrez, deepseek-v3, deepseek-llm, deepseek-coder, seed-coder, \
                     kimi-k2, glm4, chatglm-bpe, minimax-m2, gpt-4o, tekken, smollm, olmo, gpt-2, default";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI: &str = concat!(
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Mistral's: as the one above, with digits one by one and nothing for English.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// GPT-2's, behind digits one by one.
const SMOLLM: [&str; 2] =
    [r"\p{N}", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"];
const DEEPSEEK_CODER: [&str; 5] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"];
const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const DEEPSEEK_LLM: [&str; 6] = [
    r#"[\r\n]"#,
    r#"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"#,
    r#"\s?[!-/:-~！-／：-～‘-‟　-。]+"#,
    r#"\s+$"#,
    r#"[一-龥ࠀ-一가-퟿]+"#,
    r#"\p{N}+"#,
];

fn bytes(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex })
}

/// A text's pieces, as the printable characters of their bytes.
fn cut(split: &Split) -> Value {
    let pattern = |pattern: &&str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let mut steps: Vec<Value> = split.patterns.iter().map(pattern).collect();
    steps.push(bytes(split.patterns.is_empty()));
    json!({ "type": "Sequence", "pretokenizers": steps })
}

/// As published with GPT-2's bytes: every byte is a printable character, and merges are listed.
fn byte_level(tokens: &Tokens, gguf: &Gguf, pre: &str) -> Result<Value, String> {
    let split = split(pre)
        .ok_or_else(|| format!("tokenizer.ggml.pre: {pre:?} is not supported, these are: {KINDS}"))?;
    let merges = texts(gguf, "tokenizer.ggml.merges")?.ok_or("tokenizer.ggml.merges is missing")?;
    let normalizer = if split.composes { json!({ "type": "NFC" }) } else { Value::Null };
    Ok(json!({
        "version": "1.0",
        "added_tokens": tokens.added(),
        "normalizer": normalizer,
        "pre_tokenizer": cut(&split),
        "decoder": bytes(false),
        "model": { "type": "BPE", "vocab": tokens.vocabulary(), "merges": merges, "ignore_merges": split.whole_first },
    }))
}

/// As published with SentencePiece's vocabulary: the merges are those that its scores stand for, best first.
fn sentence_pieces(tokens: &Tokens, gguf: &Gguf) -> Result<Value, String> {
    let scores = match gguf.metadata("tokenizer.ggml.scores") {
        Some(GgufValue::Floats(scores)) if scores.len() == tokens.len() => scores,
        _ => return Err("tokenizer.ggml.scores is not a score for each token".into()),
    };
    let unknown = tokens.kinds.iter().position(|&kind| kind == UNKNOWN).map(|id| &tokens.texts[id]);
    let space_first =
        !matches!(gguf.metadata("tokenizer.ggml.add_space_prefix"), Some(GgufValue::Bool(false)));
    let mut steps = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
    if space_first {
        steps.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
    }
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if space_first {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": tokens.added(),
        "normalizer": { "type": "Sequence", "normalizers": steps },
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": { "type": "BPE", "vocab": tokens.vocabulary(), "merges": merges(tokens.texts, scores),
                   "unk_token": unknown, "fuse_unk": true, "byte_fallback": true },
    }))
}

/// Every way to put a token together from two others, the token with the best score first; of one token's ways, the one with the first
/// left part.
fn merges(texts: &[String], scores: &[f32]) -> Vec<String> {
    let ids: HashMap<&str, usize> = texts.iter().map(String::as_str).zip(0..).collect();
    let mut found = Vec::new();
    for (text, score) in texts.iter().zip(scores) {
        let borders = text.char_indices().map(|(at, _)| at).skip(1);
        let ways = borders.filter_map(|at| {
            let (left, right) = text.split_at(at);
            Some((ids.get(left)?, ids.get(right)?, left, right))
        });
        let mut ways: Vec<_> = ways.collect();
        ways.sort_unstable();
        found.extend(ways.into_iter().map(|(.., left, right)| (score, format!("{left} {right}"))));
    }
    found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    found.into_iter().map(|(_, merge)| merge).collect()
}

fn configuration(gguf: &Gguf, template: Option<&str>) -> Result<Value, String> {
    let tokens = Tokens::read(gguf)?;
    let mut config = Map::new();
    let names =
        [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")];
    for (name, key) in names {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let token = match gguf.metadata(&key) {
            None => continue,
            Some(GgufValue::Int(id)) => usize::try_from(*id).ok().and_then(|id| tokens.texts.get(id)),
            Some(_) => None,
        };
        config.insert(name.into(), json!(token.ok_or_else(|| format!("{key} is not a token's id"))?));
    }
    let begins_by_default = match (gguf.metadata("tokenizer.ggml.model"), gguf.metadata("tokenizer.ggml.pre"))
    {
        (Some(GgufValue::Text(model)), _) if model == "llama" => true,
        (_, Some(GgufValue::Text(pre))) => split(pre).is_some_and(|split| split.begins),
        _ => false,
    };
    for (name, default) in [("add_bos_token", begins_by_default), ("add_eos_token", false)] {
        let key = format!("tokenizer.ggml.{name}");
        let value = match gguf.metadata(&key) {
            None => default,
            Some(GgufValue::Bool(value)) => *value,
            Some(_) => return Err(format!("{key} is not true or false")),
        };
        config.insert(name.into(), json!(value));
    }
    if let Some(template) = template {
        config.insert("chat_template".into(), json!(template));
    }
    Ok(Value::Object(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

    /// The pieces that a kind of tokenizer cuts a text into, one after the other.
    fn pieces(pre: &str, text: &str) -> Vec<String> {
        let split = split(pre).expect("is supported");
        let cut: PreTokenizerWrapper = serde_json::from_value(cut(&split)).expect("a pre-tokenizer");
        let mut pieces = PreTokenizedString::from(text);
        cut.pre_tokenize(&mut pieces).expect("cuts");
        let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(_, (start, end), _)| text[start..end].to_string()).collect()
    }

    #[test]
    fn texts_are_cut_as_published() {
        for (pre, expected) in [
            ("gpt-2", "Don|'t| shoutIT|:| 1234| \u{fc}bers|/|\n\n | x"),
            ("smollm", "Don|'t| shoutIT|:| |1|2|3|4| \u{fc}bers|/|\n\n | x"),
            ("llama-bpe", "Don|'t| shoutIT|:| |123|4| \u{fc}bers|/\n\n| | x"),
            ("qwen2", "Don|'t| shoutIT|:| |1|2|3|4| \u{fc}bers|/\n\n| | x"),
            ("gpt-4o", "Don't| shout|IT|:| |123|4| \u{fc}bers|/\n\n| | x"),
            ("tekken", "Don|'t| shout|IT|:| |1|2|3|4| \u{fc}bers|/\n\n| | x"),
            ("deepseek-coder", "Don|'|t| shoutIT|:| |1|2|3|4| \u{fc}bers|/|\n|\n| | x"),
        ] {
            assert_eq!(pieces(pre, &expected.replace('|', "")).join("|"), expected, "{pre}");
        }
    }
}
