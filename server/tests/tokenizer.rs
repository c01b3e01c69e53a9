//! Tokenizers in every supported format, against tiktoken's answers and the `tokenizers` crate's.

use crate::support;

use models::ModelFiles;
use perilune::chat::{IncrementalDecoder, Shown, Specials, Tokenizer};
use serde_json::{Value, json};
use std::sync::Arc;
use support::{
    Random, byte_level, fixture, from_json, from_json_and_config, kimi, llama, llama_first_only, model,
    read_json,
};

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("id") as u32).collect()
}

#[test]
fn tiktoken_encodes_and_decodes_as_the_library_does() {
    let vectors = read_json("tiktoken/vectors.json");
    let tokenizer = kimi();
    for (key, specials) in [("plain", Specials::AsText), ("with_special_tokens", Specials::Allowed)] {
        let cases = vectors[key].as_array().expect("cases");
        assert!(cases.len() > 5, "{key}");
        for case in cases {
            let text = case["text"].as_str().expect("text");
            let tokens = tokenizer.encode(text, specials).expect("encodes");
            assert_eq!(tokens, ids(&case["ids"]), "{key} {text:?}");
            assert_eq!(tokenizer.decode(&tokens, Shown::All), text);
        }
    }
    for case in vectors["decode"].as_array().expect("cases") {
        let hex = |token: u32| -> String {
            tokenizer.token_bytes(token).expect("known").iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let expected: Vec<&str> =
            case["token_bytes_hex"].as_array().expect("hex").iter().filter_map(Value::as_str).collect();
        assert_eq!(ids(&case["ids"]).into_iter().map(hex).collect::<Vec<_>>(), expected);
    }
    assert_eq!(tokenizer.vocab_size() as u64, vectors["num_ids"].as_u64().expect("a number"));
}

#[test]
fn tiktoken_keeps_gaps_and_names() {
    let tokenizer = kimi();
    let ranks = read_json("tiktoken/vectors.json")["num_ranks"].as_u64().expect("a number") as u32;
    let config = read_json("tiktoken/tokenizer_config.json");
    for (id, token) in config["added_tokens_decoder"].as_object().expect("tokens") {
        assert_eq!(tokenizer.token_id(token["content"].as_str().expect("text")), id.parse().ok());
    }
    let reserved =
        (ranks..).find(|id| config["added_tokens_decoder"].get(id.to_string()).is_none()).expect("a gap");
    assert_eq!(tokenizer.token_text(reserved), Some(format!("<|reserved_token_{reserved}|>")));
    assert_eq!(tokenizer.bos_token(), Some("[BOS]"));
    assert_eq!(tokenizer.eos_token(), Some("[EOS]"));
    assert_eq!(tokenizer.token_bytes(tokenizer.vocab_size() as u32), None);
    assert_eq!(
        tokenizer.encode_with_added("a").expect("encodes"),
        tokenizer.encode("a", Specials::Allowed).expect("encodes")
    );
}

const TEXTS: [&str; 12] = [
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
    "<｜User｜>hell<think>",
    "\u{0}\u{7f}",
];

fn oracle(tokenizer: &Value) -> tokenizers::Tokenizer {
    let mut oracle = tokenizers::Tokenizer::from_bytes(tokenizer.to_string()).expect("loads");
    oracle.with_truncation(None).expect("no truncation");
    oracle
}

#[test]
fn tokenizer_json_encodes_as_the_crate_does() {
    for tokenizer in [llama(), llama_first_only(), byte_level()] {
        let (ours, oracle) = (from_json(&tokenizer), oracle(&tokenizer));
        for text in TEXTS {
            let expected = |special| oracle.encode(text, special).expect("encodes").get_ids().to_vec();
            assert_eq!(ours.encode(text, Specials::Allowed).expect("encodes"), expected(false), "{text:?}");
            assert_eq!(ours.encode_with_added(text).expect("encodes"), expected(true), "{text:?}");
        }
    }
}

#[test]
fn special_tokens_of_users_are_text() {
    for (tokenizer, specials) in [
        (llama(), vec!["<s>", "</s>", "<unk>"]),
        (llama_first_only(), vec!["<s>", "</s>"]),
        (byte_level(), vec!["<|begin|>", "<|end|>", "<｜User｜>"]),
    ] {
        let tokenizer = from_json(&tokenizer);
        for special in specials {
            let id = tokenizer.token_id(special).expect("added");
            assert_eq!(tokenizer.encode(special, Specials::Allowed).expect("encodes"), [id]);
            let tokens = tokenizer.encode(&format!("a{special}"), Specials::AsText).expect("encodes");
            assert!(!tokens.contains(&id), "{special}");
            assert_eq!(tokenizer.decode(&tokens, Shown::WithoutSpecials), format!("a{special}"));
        }
    }
    // Vocabulary that clients send back in a history.
    let tokenizer = from_json(&byte_level());
    let think = tokenizer.token_id("<think>").expect("added");
    assert_eq!(tokenizer.encode("<think>", Specials::AsText).expect("encodes"), [think]);
}

#[test]
fn the_configuration_decides_on_bos_and_eos() {
    let encode =
        |config: Value| from_json_and_config(&llama(), &config).encode_with_added("a").expect("encodes");
    let names = |add_bos: Value, add_eos: Value| {
        json!({
            "bos_token": { "content": "<s>" }, "eos_token": "</s>", "add_bos_token": add_bos, "add_eos_token": add_eos
        })
    };
    let word = from_json(&llama()).encode("a", Specials::AsText).expect("encodes");
    let around = |before: &[u32], after: &[u32]| [before, &word, after].concat();
    assert_eq!(encode(json!({})), around(&[1], &[]));
    assert_eq!(encode(names(Value::Null, Value::Null)), around(&[1], &[]));
    assert_eq!(encode(names(json!(false), json!(true))), around(&[], &[2]));
    assert_eq!(encode(names(json!(true), json!(false))), around(&[1], &[]));
    let byte_level =
        from_json_and_config(&byte_level(), &json!({ "bos_token": "<|begin|>", "add_bos_token": true }));
    assert_eq!(byte_level.prefix(), [byte_level.token_id("<|begin|>").expect("added")]);
}

/// Decoding is the crate's wherever the bytes are whole characters. Where they are not, ours shows the whole characters of a run of bytes
/// and U+FFFD for the rest, whatever came before; the crate replaces the whole run for one bad byte.
#[test]
fn decodes_as_the_crate_does() {
    for tokenizer in [llama(), llama_first_only(), byte_level()] {
        let (ours, oracle) = (from_json(&tokenizer), oracle(&tokenizer));
        for text in TEXTS {
            let tokens = ours.encode(text, Specials::Allowed).expect("encodes");
            assert_eq!(
                ours.decode(&tokens, Shown::All),
                oracle.decode(&tokens, false).expect("decodes"),
                "{text:?}"
            );
            let shown = ours.decode(&tokens, Shown::WithoutSpecials);
            assert_eq!(shown, oracle.decode(&tokens, true).expect("decodes"), "{text:?}");
        }
    }
    let ours = from_json(&byte_level());
    let oracle = oracle(&byte_level());
    let mut random = Random(5);
    for _ in 0..500 {
        let len = random.below(12);
        let tokens: Vec<u32> = (0..len).map(|_| random.below(300) as u32).collect();
        assert_eq!(
            ours.decode(&tokens, Shown::All),
            oracle.decode(&tokens, false).expect("decodes"),
            "{tokens:?}"
        );
    }
}

fn stream(mut decoder: IncrementalDecoder, tokens: &[u32]) -> String {
    let mut all = String::new();
    for (i, &token) in tokens.iter().enumerate() {
        let whole = decoder.whole(token).map(str::to_owned);
        let mut delta = String::new();
        // What is whole by itself is the same with and without being pushed.
        match &whole {
            Some(text) if i % 2 == 0 => delta.push_str(text),
            _ => decoder.push(token, &mut delta),
        }
        assert!(whole.is_none_or(|text| text == delta), "token {token}");
        all.push_str(&delta);
    }
    decoder.finish(&mut all);
    all
}

#[test]
fn deltas_together_are_the_full_decode() {
    let mut random = Random(1);
    for tokenizer in [from_json(&llama()), from_json(&llama_first_only()), from_json(&byte_level()), kimi()] {
        for _ in 0..2000 {
            let size = tokenizer.vocab_size() + 3;
            let len = random.below(20);
            // Half of them from the first ids, where the single bytes are.
            let tokens: Vec<u32> = (0..len)
                .map(|_| random.below(if len.is_multiple_of(2) { size } else { 259 }) as u32)
                .collect();
            for shown in [Shown::All, Shown::WithoutSpecials] {
                let streamed = stream(IncrementalDecoder::new(Arc::clone(&tokenizer), shown), &tokens);
                assert_eq!(streamed, tokenizer.decode(&tokens, shown), "{tokens:?}");
            }
        }
    }
}

#[test]
fn a_character_is_shown_when_it_is_whole() {
    let tokenizer = kimi();
    let bytes: Vec<u32> = "◁!"
        .bytes()
        .map(|byte| {
            (0..).find(|&id| tokenizer.token_bytes(id) == Some(&[byte])).expect("every byte is a token")
        })
        .collect();
    let mut decoder = IncrementalDecoder::new(Arc::clone(&tokenizer), Shown::All);
    let mut deltas = Vec::new();
    for token in &bytes {
        let mut delta = String::new();
        decoder.push(*token, &mut delta);
        deltas.push(delta);
    }
    assert_eq!(deltas, ["", "", "◁", "!"]);
    assert_eq!(stream(IncrementalDecoder::new(Arc::clone(&tokenizer), Shown::All), &bytes[..2]), "\u{FFFD}");
}

#[test]
fn an_answer_keeps_the_space_that_a_text_loses() {
    let tokenizer = from_json(&llama());
    let tokens = tokenizer.encode("hello", Specials::AsText).expect("encodes");
    assert_eq!(tokenizer.decode(&tokens, Shown::All), "hello");
    assert_eq!(stream(IncrementalDecoder::after_prompt(tokenizer, Shown::All), &tokens), " hello");
}

#[test]
fn long_and_odd_texts_come_back() {
    let texts = ["a", " ", "\n", "!", "é", "\u{1F600}", "\u{0}", "e\u{301}", "שלום", "猫 "]
        .map(|unit| unit.repeat(60_000));
    for tokenizer in [kimi(), from_json(&byte_level())] {
        for text in &texts {
            let tokens = tokenizer.encode(text, Specials::AsText).expect("encodes");
            assert!(tokenizer.decode(&tokens, Shown::All) == *text, "{:?}", text.chars().next());
        }
    }
}

#[test]
fn bad_files_are_named() {
    let refuse = |files: &[(&'static str, String)], expected: &str| {
        let error = Tokenizer::load(&model(files)).err().expect("refused").to_string();
        assert!(error.contains(expected), "{error}");
    };
    refuse(&[], "neither tokenizer.json nor tiktoken.model");
    refuse(&[("tokenizer.json", "{".to_string())], "embedded tokenizer.json");
    refuse(&[("tiktoken.model", "YQ== x".to_string())], "embedded tiktoken.model: line 1");
    let mut word_piece = byte_level();
    word_piece["decoder"] = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    refuse(&[("tokenizer.json", word_piece.to_string())], "decoder WordPiece is not supported");
    refuse(
        &[("tokenizer.json", byte_level().to_string()), ("tokenizer_config.json", "[".to_string())],
        "embedded tokenizer_config.json",
    );
    let config = json!({ "added_tokens_decoder": { "x": { "content": "<a>" } } });
    refuse(
        &[("tokenizer.json", byte_level().to_string()), ("tokenizer_config.json", config.to_string())],
        "added_tokens_decoder[\"x\"]",
    );
    let ranks = std::fs::read_to_string(fixture("tiktoken/tiktoken.model")).expect("fixture");
    let config = json!({ "added_tokens_decoder": { "5": { "content": "<a>" } } });
    refuse(&[("tiktoken.model", ranks), ("tokenizer_config.json", config.to_string())], "has id 5");
    let error = Tokenizer::load(&ModelFiles::Directory("/nonexistent/model".into()))
        .err()
        .expect("refused")
        .to_string();
    assert!(error.contains("/nonexistent/model"), "{error}");
}
