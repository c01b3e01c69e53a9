//! Small tokenizers in the formats of published checkpoints, and random numbers.

#![allow(dead_code, reason = "every test binary uses its part")]

pub mod gguf;
pub mod hub;

use models::ModelFiles;
use perilune::chat::Tokenizer;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

pub fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn read_json(name: &str) -> Value {
    let content = std::fs::read(fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    serde_json::from_slice(&content).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A model of the given files. They live as long as the test binary.
pub fn model(files: &[(&'static str, String)]) -> ModelFiles {
    let leak = |(name, content): &(&'static str, String)| (*name, &*content.clone().into_bytes().leak());
    ModelFiles::Embedded(files.iter().map(leak).collect::<Vec<_>>().leak())
}

pub fn kimi() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::load(&ModelFiles::Directory(fixture("tiktoken"))).expect("loads"))
}

pub fn from_json(tokenizer: &Value) -> Arc<Tokenizer> {
    from_json_and_config(tokenizer, &json!({}))
}

pub fn from_json_and_config(tokenizer: &Value, config: &Value) -> Arc<Tokenizer> {
    let files = [("tokenizer.json", tokenizer.to_string()), ("tokenizer_config.json", config.to_string())];
    Arc::new(Tokenizer::load(&model(&files)).expect("loads"))
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "special": special,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false
    })
}

/// In the style of LLaMA 1 and 2: SentencePiece's `▁` for spaces, bytes as `<0x0A>`.
pub fn llama() -> Value {
    let mut vocab = vec!["<unk>".to_string(), "<s>".to_string(), "</s>".to_string()];
    vocab.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = [
        "▁", "a", "b", "c", "h", "e", "l", "o", "w", "é", ".", "<", ">", "/", "s", "▁h", "▁he", "ll",
        "▁hell", "▁hello", "▁▁", "▁w",
    ];
    vocab.extend(pieces.map(str::to_string));
    let vocab: Map<String, Value> =
        vocab.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let merges = [["▁", "h"], ["▁h", "e"], ["l", "l"], ["▁he", "ll"], ["▁hell", "o"], ["▁", "▁"], ["▁", "w"]];
    json!({
        "version": "1.0", "truncation": { "max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": null,
        "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } }
        },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 }
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges
        }
    })
}

/// As `llama`, in the newer form: the space is put before the first word of the whole text only.
pub fn llama_first_only() -> Value {
    let mut tokenizer = llama();
    tokenizer["normalizer"] = Value::Null;
    tokenizer["pre_tokenizer"] =
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false });
    tokenizer
}

/// In the style of GPT-2, LLaMA 3, Qwen and DeepSeek: every byte is a character.
pub fn byte_level() -> Value {
    let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let other: Vec<u8> = (0..=255u8).filter(|byte| !printable(byte)).collect();
    let character = |byte: u8| match other.iter().position(|&b| b == byte) {
        Some(at) => char::from_u32(0x100 + at as u32).expect("a character"),
        None => char::from(byte),
    };
    let text = |text: &str| text.bytes().map(character).collect::<String>();
    let mut vocab: Vec<String> = (0..=255u8).map(|byte| character(byte).to_string()).collect();
    let mut merges = Vec::new();
    for (left, right) in [("h", "e"), (" ", "he"), ("l", "l")] {
        merges.push(json!([text(left), text(right)]));
        vocab.push(text(&format!("{left}{right}")));
    }
    // The two bytes of é.
    let bytes = text("é");
    let mut halves = bytes.chars().map(String::from);
    merges.push(json!([halves.next(), halves.next()]));
    vocab.push(bytes);
    let size = vocab.len();
    let vocab: Map<String, Value> =
        vocab.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            added(size, "<|begin|>", true), added(size + 1, "<|end|>", true),
            added(size + 2, "<｜User｜>", false), added(size + 3, "<think>", false),
        ],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges
        }
    })
}

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}
