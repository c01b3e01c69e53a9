//! Pictures that are tokens, over HTTP: Chameleon's tiny checkpoint with its encoder, its template and a small tokenizer.

use crate::formula;
use crate::harness;
use crate::support;

use base64::Engine;
use formula::{encoder, joined, noise};
use harness::TestServer;
use image::{DynamicImage, ImageFormat, RgbImage, RgbaImage};
use models::ModelFiles;
use serde_json::{Map, Value, json};
use std::io::Cursor;
use std::path::Path;
use support::model;

const CHAT: &str = "/v1/chat/completions";
const BOS: u64 = 0;
const END_OF_PICTURE: u64 = 102;
const BEGIN_OF_PICTURE: u64 = 103;
const SEPARATOR: u64 = 104;
/// Tokens of the codebook.
const CODES: std::ops::Range<u64> = 86..102;

fn fixture(name: &str) -> Value {
    serde_json::from_slice(&bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn bytes(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/chameleon");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A token for each character from the space to `r`, and the names of config.json that are no text.
fn tokenizer(config: &Value) -> Value {
    let text = |byte: u8| if byte == b' ' { "Ġ".to_string() } else { char::from(byte).to_string() };
    let mut vocab: Map<String, Value> =
        (b' '..=b'r').map(|byte| (text(byte), json!(3 + byte - b' '))).collect();
    let names = config["vocabulary_map"].as_object().expect("a map");
    let is_control = |name: &&String| name.starts_with('<') || name.starts_with("IMGIMG");
    let mut added: Vec<(u64, &String)> = names
        .iter()
        .filter(|(name, _)| is_control(name))
        .map(|(name, id)| (id.as_u64().expect("an id"), name))
        .collect();
    added.sort_unstable();
    // Added tokens keep their ids where the model's vocabulary has them, as in the published file; others are numbered after it.
    vocab.extend(added.iter().map(|(id, name)| (name.to_string(), json!(id))));
    let added = added.iter().map(|(id, name)| {
        json!({
            "id": id, "content": name, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false
        })
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [],
        }
    })
}

fn files() -> ModelFiles {
    let (mut config, pictures) = (fixture("config.json"), fixture("pictures.json"));
    config["vq_config"] = pictures["vq_config"].clone();
    let texts = model(&[
        ("tokenizer.json", tokenizer(&config).to_string()),
        ("tokenizer_config.json", json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string()),
        ("preprocessor_config.json", pictures["preprocessor_config"].to_string()),
        ("config.json", config.to_string()),
    ]);
    let ModelFiles::Embedded(texts) = texts else { panic!("embedded") };
    let weights: &'static [u8] = joined(&bytes("model.safetensors"), encoder()).leak();
    let mut all = texts.to_vec();
    all.push(("model.safetensors", weights));
    ModelFiles::Embedded(all.leak())
}

fn server() -> TestServer {
    TestServer::of_files(files(), 100, 300)
}

fn url(picture: DynamicImage) -> String {
    let mut png = Vec::new();
    picture.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).expect("encodes");
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png))
}

/// The second picture of the golden file.
fn golden() -> String {
    url(RgbImage::from_raw(16, 16, noise(16, 16, 2)).expect("its size").into())
}

fn part(url: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": url}})
}

fn request(content: Value) -> Value {
    json!({
        "messages": [{"role": "user", "content": content}], "max_tokens": 40, "ignore_eos": true, "temperature": 1.0, "seed": 3,
        "logprobs": true, "return_token_ids": true,
    })
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id")).collect()
}

/// Tokens of a picture as the golden file has them.
fn codes() -> Vec<u64> {
    let map = fixture("config.json")["vocabulary_map"].clone();
    let code = |code: &Value| {
        let letters: String = code.to_string().bytes().map(|digit| char::from(b'A' + digit - b'0')).collect();
        map[format!("IMGIMG{letters}Z")].as_u64().expect("a token")
    };
    fixture("pictures.json")["pictures"][1]["codes"].as_array().expect("codes").iter().map(code).collect()
}

fn text(text: &str) -> Vec<u64> {
    text.bytes().map(|byte| u64::from(3 + byte - b' ')).collect()
}

#[test]
fn a_picture_is_tokens_of_the_prompt_and_no_answer_has_any() {
    let server = server();
    let content =
        json!([{"type": "text", "text": "hi: "}, part(&golden()), {"type": "text", "text": " <image>?"}]);
    let request = request(content);
    let first = server.ask(CHAT, &request);
    let prompt = ids(&first["prompt_token_ids"]);
    let typed = text(" <image>?");
    let expected = [
        &[BOS][..],
        &text("hi: "),
        &[BEGIN_OF_PICTURE],
        &codes(),
        &[END_OF_PICTURE],
        // What a user types is text.
        &typed,
        &[SEPARATOR],
    ];
    assert_eq!(prompt, expected.concat());
    let answer = ids(&first["choices"][0]["token_ids"]);
    assert_eq!(answer.len(), 40);
    assert!(answer.iter().all(|id| !CODES.contains(id)), "{answer:?}");
    // The same again: from the cache of pictures, and of prefixes, which are tokens.
    let again = server.ask(CHAT, &request);
    assert_eq!(again["choices"], first["choices"]);
    assert!(
        again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().is_some_and(|n| n >= 64),
        "{again}"
    );
    assert_eq!(first["usage"]["prompt_tokens"], json!(prompt.len()));
}

#[test]
fn white_shows_through() {
    let server = server();
    let seen = |picture: DynamicImage| {
        ids(&server.ask(CHAT, &request(json!([part(&url(picture))])))["prompt_token_ids"])
    };
    let white = seen(RgbImage::from_pixel(20, 16, image::Rgb([255; 3])).into());
    let black = seen(RgbImage::from_pixel(20, 16, image::Rgb([0; 3])).into());
    let clear = seen(RgbaImage::from_pixel(20, 16, image::Rgba([0, 0, 0, 0])).into());
    assert_eq!(clear, white);
    assert_ne!(black, white);
}

#[test]
fn what_is_too_much_or_out_of_place_is_refused() {
    let server = server();
    let refused = |path: &str, body: &Value| {
        let response = server.post(path, body);
        assert_eq!(response.status, 400, "{}", response.text());
        response.json()["error"].clone()
    };
    // 66 tokens each: five do not fit into 300, and are not encoded to find that out.
    let error = refused(CHAT, &request((0..5).map(|_| part(&golden())).collect()));
    assert_eq!(error["param"], "messages[0].content[4].image_url");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("may hold 4 pictures")), "{error}");
    // Four do, but not with 40 tokens after them.
    let error = refused(CHAT, &request((0..4).map(|_| part(&golden())).collect()));
    assert_eq!(error["code"], "context_length_exceeded");
    let raw = json!({"prompt": "a <image> b", "max_tokens": 1});
    assert_eq!(refused("/v1/completions", &raw)["param"], "prompt");
    let roles = json!({"messages": [{"role": "tool", "content": "1", "tool_call_id": "1"}], "max_tokens": 1});
    assert_eq!(refused(CHAT, &roles)["param"], "messages");
}
