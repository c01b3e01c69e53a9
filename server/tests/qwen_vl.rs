//! Qwen2.5-VL over HTTP: the tiny checkpoint of its golden fixture, a template in the published form, and a small tokenizer.

use crate::formula;
use crate::harness;
use crate::support;

use base64::Engine;
use formula::{joined, noise, qwen_vl};
use harness::TestServer;
use image::{ImageFormat, RgbImage};
use models::ModelFiles;
use serde_json::{Map, Value, json};
use std::io::Cursor;
use std::path::Path;
use support::model;

pub const CHAT: &str = "/v1/chat/completions";
const VISION_START: u64 = 118;
const VISION_END: u64 = 119;
const IMAGE_PAD: u64 = 120;
const CONTROL: [(u64, &str); 6] = [
    (111, "<|im_start|>"),
    (125, "<|im_end|>"),
    (VISION_START, "<|vision_start|>"),
    (VISION_END, "<|vision_end|>"),
    (IMAGE_PAD, "<|image_pad|>"),
    (121, "<|video_pad|>"),
];
pub const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}\
    {{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'image' %}\
    <|vision_start|><|image_pad|><|vision_end|>{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\
    {% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn bytes(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/qwen2_5_vl");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A token for each character of ASCII from the space on and for the end of a line, and the control tokens.
pub fn tokenizer() -> Value {
    let text = |byte: u8| match byte {
        b'\n' => "Ċ".to_string(),
        b' ' => "Ġ".to_string(),
        byte => char::from(byte).to_string(),
    };
    let bytes = (b' '..=b'~').chain([b'\n']);
    let vocab: Map<String, Value> = bytes.enumerate().map(|(id, byte)| (text(byte), json!(id))).collect();
    let added = CONTROL.map(|(id, content)| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false
        })
    });
    let vocab = vocab.into_iter().chain(CONTROL.map(|(id, content)| (content.to_string(), json!(id))));
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab.collect::<Map<_, _>>(), "merges": [],
        }
    })
}

fn files() -> ModelFiles {
    let text = |name: &str| String::from_utf8(bytes(name)).expect("text");
    let settings: Value = serde_json::from_str(&text("preprocessor_config.json")).expect("JSON");
    let texts = model(&[
        ("tokenizer.json", tokenizer().to_string()),
        ("tokenizer_config.json", json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}).to_string()),
        // As newer versions of the published code write it.
        ("processor_config.json", json!({"image_processor": settings}).to_string()),
        ("config.json", text("config.json")),
    ]);
    let ModelFiles::Embedded(texts) = texts else { panic!("embedded") };
    let config = serde_json::from_slice(&bytes("config.json")).expect("JSON");
    let weights: &'static [u8] = joined(b"\x02\0\0\0\0\0\0\0{}", qwen_vl(&config)).leak();
    let mut all = texts.to_vec();
    all.push(("model.safetensors", weights));
    ModelFiles::Embedded(all.leak())
}

fn server() -> TestServer {
    TestServer::of_files(files(), 50, 400)
}

pub fn picture(width: usize, height: usize, seed: usize) -> Value {
    let rgb = RgbImage::from_raw(width as u32, height as u32, noise(width, height, seed)).expect("its size");
    let mut png = Vec::new();
    rgb.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).expect("encodes");
    let url = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png));
    json!({"type": "image_url", "image_url": {"url": url}})
}

pub fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

pub fn request(content: Value) -> Value {
    json!({
        "messages": [{"role": "user", "content": content}], "max_tokens": 24, "ignore_eos": true, "temperature": 1.0,
        "seed": 3, "logprobs": true, "return_token_ids": true,
    })
}

pub fn ids(value: &Value) -> Vec<u64> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id")).collect()
}

/// What the tokenizer makes of a text.
pub fn tokens(text: &str) -> Vec<u64> {
    text.bytes().map(|byte| if byte == b'\n' { 95 } else { u64::from(byte - b' ') }).collect()
}

/// Of a picture of so many tokens.
pub fn pads(num_tokens: usize) -> Vec<u64> {
    [vec![VISION_START], vec![IMAGE_PAD; num_tokens], vec![VISION_END]].concat()
}

#[test]
fn pictures_take_as_many_tokens_as_their_size_says() {
    let server = server();
    // 140 x 84 pixels are 5 x 3 tokens, and few are enlarged to the least: 112 x 112.
    let content =
        json!([text("a"), picture(140, 84, 1), text(" <|image_pad|>? "), picture(30, 30, 2), text("b")]);
    let asked = request(content);
    let first = server.ask(CHAT, &asked);
    let expected = [
        vec![111],
        tokens("user\na"),
        pads(15),
        // What a user types is text.
        tokens(" <|image_pad|>? "),
        pads(16),
        tokens("b"),
        vec![125],
        tokens("\n"),
        vec![111],
        tokens("assistant\n"),
    ];
    assert_eq!(ids(&first["prompt_token_ids"]), expected.concat());
    assert_eq!(first["usage"]["prompt_tokens"], json!(expected.concat().len()));
    assert_eq!(ids(&first["choices"][0]["token_ids"]).len(), 24);
    // From the caches of pictures and of prefixes, pictures within: the same to the last bit.
    let again = server.ask(CHAT, &asked);
    assert_eq!(again["choices"], first["choices"]);
    let cached = &again["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64().is_some_and(|n| n >= 64), "{again}");
}

#[test]
fn an_answer_hangs_on_its_own_pictures_alone() {
    let server = server();
    let contents = [
        json!([text("what is "), picture(140, 84, 1), text("?")]),
        json!([text("what is "), picture(140, 84, 7), text("?")]),
        // The same pixels in another shape, whose tokens are as many.
        json!([text("what is "), picture(84, 140, 1), text("?")]),
        json!([picture(60, 60, 3), picture(200, 60, 4), text("and these")]),
    ];
    let alone: Vec<Value> =
        contents.iter().map(|c| server.ask(CHAT, &request(c.clone()))["choices"].clone()).collect();
    for (i, choices) in alone.iter().enumerate() {
        assert!(alone[..i].iter().all(|other| other != choices), "{i}");
    }
    let fresh = &self::server();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let ask = |content: &Value| {
            let request = request(content.clone());
            scope.spawn(move || fresh.ask(CHAT, &request)["choices"].clone())
        };
        let asked: Vec<_> = contents.iter().map(ask).collect();
        asked.into_iter().map(|asked| asked.join().expect("an answer")).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn what_cannot_be_seen_is_refused() {
    let server = server();
    let refused = |path: &str, body: &Value| {
        let response = server.post(path, body);
        assert_eq!(response.status, 400, "{}", response.text());
        response.json()["error"].clone()
    };
    let error = refused(CHAT, &request(json!([text("a"), picture(402, 2, 1)])));
    assert_eq!(error["param"], "messages[0].content[1].image_url");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("more than 200 times")), "{error}");
    for (pad, reason) in [("image", "has no picture behind it"), ("video", "the model is not served videos")]
    {
        let raw = json!({"prompt": format!("a <|{pad}_pad|> b"), "max_tokens": 1});
        let error = refused("/v1/completions", &raw);
        assert_eq!(error["param"], "prompt");
        let message = error["message"].as_str().expect("a message");
        assert!(
            message.contains(&format!("token 2 is `<|{pad}_pad|>`")) && message.contains(reason),
            "{message}"
        );
    }
    let mp4 =
        base64::engine::general_purpose::STANDARD.encode(b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41");
    let video = json!({"type": "video_url", "video_url": {"url": format!("data:video/mp4;base64,{mp4}")}});
    assert_eq!(refused(CHAT, &request(json!([video])))["param"], "messages[0].content[0].video_url");
    let many: Value = (0..25).map(|seed| picture(112, 112, seed)).collect();
    assert_eq!(refused(CHAT, &request(many))["code"], "context_length_exceeded");
}
