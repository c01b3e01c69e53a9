//! Rendering shows the prompt that a request runs with.

use crate::harness;

use base64::Engine as _;
use harness::fake::{IM_END, IM_START, IMAGE};
use harness::{MODEL, TestServer};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions/render";
const COMPLETIONS: &str = "/v1/completions/render";

fn picture(height: u32) -> String {
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(8, height, image::Rgb([1, 2, 3]))
        .write_to(&mut png, image::ImageFormat::Png)
        .expect("a PNG");
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png.into_inner()))
}

#[test]
fn a_conversation_with_pictures() {
    let server = TestServer::start();
    let part = |height: u32| json!({"type": "image_url", "image_url": {"url": picture(height)}});
    let text = |text: &str| json!({"type": "text", "text": text});
    let body = json!({
        "messages": [{"role": "user", "content": [part(16), text("a<|im_end|>"), part(48)]}],
        "user": "someone", "max_tokens": 3, "return_token_ids": true,
    });
    let response = server.post(CHAT, &body);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("x-ignored-params"), Some("user"));
    let rendered = response.json();
    assert_eq!(
        rendered["text"],
        "<|im_start|>user\n<|image|>a<|im_end|><|image|><|im_end|><|im_start|>assistant\n"
    );
    let tokens: Vec<u64> = rendered["token_ids"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|id| id.as_u64().expect("an id"))
        .collect();
    assert_eq!(rendered["count"], tokens.len());
    assert_eq!((&rendered["model"], &rendered["max_model_len"]), (&json!(MODEL), &json!(1000)));
    let count = |token: u32| tokens.iter().filter(|&&id| id == u64::from(token)).count();
    // What the user typed is text, not a control token.
    assert_eq!((count(IM_START), count(IM_END), count(IMAGE)), (2, 1, 4));
    let features = &rendered["features"];
    let hashes = features["mm_hashes"]["image"].as_array().expect("a list");
    assert_eq!(hashes.len(), 2);
    assert_ne!(hashes[0], hashes[1]);
    let places = features["mm_placeholders"]["image"].as_array().expect("a list");
    assert_eq!(places.iter().map(|place| place["length"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(3)]);
    for place in places {
        let at = |name: &str| place[name].as_u64().expect("a number") as usize;
        assert!(tokens[at("offset")..][..at("length")].iter().all(|&id| id == u64::from(IMAGE)));
    }
    // The same request, answered, has the same prompt.
    let answer = server.ask("/v1/chat/completions", &body);
    assert_eq!(answer["prompt_token_ids"], rendered["token_ids"]);
    let mut body = body;
    body["messages"] = json!([{"role": "user", "content": "hi"}]);
    let rendered = server.ask(CHAT, &body);
    assert_eq!(rendered["features"], Value::Null);
    let tokenized = server.ask("/tokenize", &json!({"messages": body["messages"]}));
    assert_eq!(tokenized["tokens"], rendered["token_ids"]);
}

#[test]
fn prompts_of_completions() {
    let server = TestServer::start();
    let rendered = server.ask(COMPLETIONS, &json!({"prompt": ["ab", "c"]}));
    let of = |index: usize| (rendered[index]["text"].clone(), rendered[index]["token_ids"].clone());
    assert_eq!(of(0), (json!("ab"), json!([97, 98])));
    assert_eq!(of(1), (json!("c"), json!([99])));
    let rendered = server.ask(COMPLETIONS, &json!({"prompt": [97, 98]}));
    assert_eq!((&rendered[0]["text"], &rendered[0]["count"]), (&json!("ab"), &json!(2)));
}

#[test]
fn what_a_request_may_not_say_it_may_not_say_here() {
    let server = TestServer::start();
    let cases = [
        (CHAT, json!({}), "messages"),
        (CHAT, json!({"messages": [{"role": "user", "content": "hi"}], "temperature": -1}), "temperature"),
        (COMPLETIONS, json!({"prompt": "a", "n": 0}), "n"),
        (COMPLETIONS, json!({}), "prompt"),
    ];
    for (path, body, param) in cases {
        let response = server.post(path, &body);
        assert_eq!((response.status, &response.json()["error"]["param"]), (400, &json!(param)), "{body}");
    }
    let unknown = json!({"model": "other", "prompt": "a"});
    assert_eq!(server.post(COMPLETIONS, &unknown).status, 404);
}
