//! Tokenizers out of GGUF files, against the same tokenizers in the format that they were published in.

use crate::support;

use perilune::chat::{Specials, Tokenizer};
use perilune::source::{self, HubSettings, Needed};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use support::gguf::GgufWriter;
use support::{byte_level, fixture, from_json, kimi, llama, read_json};

const TEXTS: [&str; 14] = [
    "",
    "hello",
    " hello",
    "  hello world ",
    "hello hello",
    "é猫\u{1F600}",
    "a\nb\t",
    "<s>hello",
    "hello <s> hello</s>",
    "<|begin|>he<|end|> hello",
    "\u{0}\u{7f}",
    "12345 6",
    "It's DON'T",
    "\r\n\r\n  x",
];

/// The tokens of a tokenizer.json in the order of their ids, and their kinds.
fn tokens(tokenizer: &Value) -> (Vec<String>, Vec<i32>) {
    let mut by_id: HashMap<u64, (String, i32)> = HashMap::new();
    for (text, id) in tokenizer["model"]["vocab"].as_object().expect("a vocabulary") {
        by_id
            .insert(id.as_u64().expect("an id"), (text.clone(), if text.starts_with("<0x") { 6 } else { 1 }));
    }
    for added in tokenizer["added_tokens"].as_array().expect("tokens") {
        let text = added["content"].as_str().expect("text").to_string();
        let kind = match (text.as_str(), added["special"] == true) {
            ("<unk>", _) => 2,
            (_, true) => 3,
            (_, false) => 4,
        };
        by_id.insert(added["id"].as_u64().expect("an id"), (text, kind));
    }
    (0..by_id.len() as u64).map(|id| by_id.remove(&id).expect("no gap")).unzip()
}

fn merges(tokenizer: &Value) -> Vec<String> {
    let pair = |merge: &Value| match merge.as_str() {
        Some(text) => text.to_string(),
        None => format!("{} {}", merge[0].as_str().expect("text"), merge[1].as_str().expect("text")),
    };
    tokenizer["model"]["merges"].as_array().expect("merges").iter().map(pair).collect()
}

fn load(path: &Path) -> Tokenizer {
    let found = source::find(path.to_str(), Needed::All, &HubSettings::from_env()).expect("is found");
    Tokenizer::load(&found.files).expect("loads")
}

fn check_alike(found: &Tokenizer, expected: &Tokenizer) {
    for text in TEXTS {
        for specials in [Specials::AsText, Specials::Allowed] {
            let [found, expected] = [found, expected].map(|t| t.encode(text, specials).expect("encodes"));
            assert_eq!(found, expected, "{text:?} {specials:?}");
        }
    }
    for token in 0..expected.vocab_size() as u32 {
        assert_eq!(found.token_bytes(token), expected.token_bytes(token), "token {token}");
        assert_eq!(found.is_special(token), expected.is_special(token), "token {token}");
    }
}

#[test]
fn bytes_with_merges_are_read_as_published() {
    let published = byte_level();
    let (texts, kinds) = tokens(&published);
    let mut file = GgufWriter::llama(texts.len());
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "gpt-2");
    file.texts("tokenizer.ggml.tokens", &texts);
    file.ints("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", &merges(&published));
    check_alike(&load(&file.write("bytes")), &from_json(&published));
}

/// Whatever pieces a text is cut into before its merges, its tokens are all of it.
#[test]
fn every_way_of_cutting_text_keeps_it() {
    let published = byte_level();
    let (texts, kinds) = tokens(&published);
    for pre in [
        "llama-bpe",
        "qwen2",
        "glm4",
        "chatglm-bpe",
        "minimax-m2",
        "olmo",
        "tekken",
        "deepseek-coder",
        "smollm",
    ] {
        let mut file = GgufWriter::llama(texts.len());
        file.text("tokenizer.ggml.model", "gpt2");
        file.text("tokenizer.ggml.pre", pre);
        file.texts("tokenizer.ggml.tokens", &texts);
        file.ints("tokenizer.ggml.token_type", &kinds);
        file.texts("tokenizer.ggml.merges", &merges(&published));
        let found = load(&file.write(&format!("cut-{pre}")));
        for text in ["It's 12345 o'clock, DON'T\n\n  wait / go", "Straße Łódź 你好 x²"] {
            let ids = found.encode(text, Specials::AsText).expect("encodes");
            let bytes: Vec<u8> =
                ids.iter().flat_map(|&id| found.token_bytes(id).expect("a token").to_vec()).collect();
            assert_eq!(String::from_utf8(bytes).as_deref(), Ok(text), "{pre}");
        }
    }
}

/// In a file of SentencePiece's there are scores, which fall in the order in which merges are made.
#[test]
fn pieces_with_scores_are_read_as_published() {
    let published = llama();
    let (texts, kinds) = tokens(&published);
    let order: HashMap<String, usize> =
        merges(&published).into_iter().map(|merge| merge.replace(' ', "")).zip(0..).collect();
    let score = |text: &String| order.get(text).map_or(-1e4, |&place| -(place as f32));
    let mut file = GgufWriter::llama(texts.len());
    file.text("tokenizer.ggml.model", "llama");
    file.texts("tokenizer.ggml.tokens", &texts);
    file.floats("tokenizer.ggml.scores", &texts.iter().map(score).collect::<Vec<_>>());
    file.ints("tokenizer.ggml.token_type", &kinds);
    file.int("tokenizer.ggml.bos_token_id", 1);
    file.int("tokenizer.ggml.eos_token_id", 2);
    file.text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}");
    let found = load(&file.write("pieces"));
    check_alike(&found, &from_json(&published));
    assert_eq!((found.bos_token(), found.eos_token(), found.prefix()), (Some("<s>"), Some("</s>"), &[1][..]));
}

/// The two tokens that byte-pair encoding makes of a token's bytes with the merges before it.
fn last_merge<'a>(ranks: &HashMap<&[u8], u32>, token: &'a [u8], rank: u32) -> Option<[&'a [u8]; 2]> {
    let mut borders: Vec<usize> = (0..=token.len()).collect();
    loop {
        let pair =
            |i: usize| ranks.get(&token[borders[i]..borders[i + 2]]).filter(|&&r| r < rank).map(|&r| (r, i));
        match (0..borders.len().saturating_sub(2)).filter_map(pair).min() {
            Some((_, i)) => borders.remove(i + 1),
            None => break,
        };
    }
    (borders.len() == 3).then(|| [&token[..borders[1]], &token[borders[1]..]])
}

#[test]
fn kimis_ranks_as_merges_encode_as_tiktoken_does() {
    let vectors = read_json("tiktoken/vectors.json");
    let published = kimi();
    let num_ranks = vectors["num_ranks"].as_u64().expect("a number") as u32;
    let ranks: HashMap<&[u8], u32> =
        (0..num_ranks).map(|id| (published.token_bytes(id).expect("a token"), id)).collect();
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others: Vec<u8> = (0..=255).filter(|&byte| !printable(byte)).collect();
    let letters = |bytes: &[u8]| -> String {
        let letter = |&byte: &u8| match others.iter().position(|&other| other == byte) {
            Some(place) => char::from_u32(0x100 + place as u32).expect("a letter"),
            None => char::from(byte),
        };
        bytes.iter().map(letter).collect()
    };
    let (mut texts, mut kinds, mut merges) = (Vec::new(), Vec::new(), Vec::new());
    for id in 0..published.vocab_size() as u32 {
        let bytes = published.token_bytes(id).expect("a token");
        let is_added = id >= num_ranks;
        texts.push(if is_added { String::from_utf8(bytes.to_vec()).expect("text") } else { letters(bytes) });
        kinds.push(if is_added { if published.is_special(id) { 3 } else { 4 } } else { 1 });
        if !is_added && let Some([left, right]) = last_merge(&ranks, bytes, id) {
            merges.push(format!("{} {}", letters(left), letters(right)));
        }
    }
    let mut file = GgufWriter::llama(texts.len());
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "kimi-k2");
    file.texts("tokenizer.ggml.tokens", &texts);
    file.ints("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", &merges);
    let found = load(&file.write("kimi"));
    for (key, specials) in [("plain", Specials::AsText), ("with_special_tokens", Specials::Allowed)] {
        for case in vectors[key].as_array().expect("cases") {
            let text = case["text"].as_str().expect("text");
            let tokens = found.encode(text, specials).expect("encodes");
            let expected: Vec<u64> =
                case["ids"].as_array().expect("ids").iter().filter_map(Value::as_u64).collect();
            assert_eq!(tokens.into_iter().map(u64::from).collect::<Vec<_>>(), expected, "{key} {text:?}");
        }
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let mut unknown = GgufWriter::llama(1);
    unknown.text("tokenizer.ggml.model", "gpt2");
    unknown.text("tokenizer.ggml.pre", "falcon");
    unknown.texts("tokenizer.ggml.tokens", &["a"]);
    let mut kind = GgufWriter::llama(1);
    kind.text("tokenizer.ggml.model", "bert");
    let mut architecture = GgufWriter::default();
    architecture.text("general.architecture", "mamba");
    let mut no_size = GgufWriter::default();
    no_size.text("general.architecture", "llama");
    no_size.zeros("token_embd.weight", &[4, 8]);
    let cases = [
        (unknown, "tokenizer.ggml.pre: \"falcon\" is not supported"),
        (kind, "tokenizer.ggml.model: \"bert\" is not supported"),
        (architecture, "general.architecture: \"mamba\" is not supported"),
        (no_size, "llama.embedding_length: is missing"),
    ];
    for (i, (file, message)) in cases.into_iter().enumerate() {
        let path = file.write(&format!("wrong-{i}"));
        let error = source::find(path.to_str(), Needed::All, &HubSettings::from_env())
            .expect_err(message)
            .to_string();
        assert!(error.contains(message), "{error}");
    }
    let readme = fixture("README.md");
    let error = source::find(readme.to_str(), Needed::All, &HubSettings::from_env()).expect_err("no model");
    assert!(error.to_string().contains("is a file and not a .gguf"), "{error}");
}
