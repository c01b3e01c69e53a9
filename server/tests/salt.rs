//! `cache_salt` keeps tenants apart: nothing that one of them sent makes an answer to another quicker, or counts as a hit.

use crate::harness;

use base64::Engine;
use harness::{TestServer, small_load};
use serde_json::{Value, json};
use std::io::Cursor;

const CHAT: &str = "/v1/chat/completions";

fn picture() -> String {
    let mut bytes = Cursor::new(Vec::new());
    let picture = image::RgbImage::from_fn(20, 70, |x, y| image::Rgb([x as u8, y as u8, 9]));
    picture.write_to(&mut bytes, image::ImageFormat::Png).expect("encodes");
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes.into_inner()))
}

fn about(url: &str, salt: Option<&str>) -> Value {
    let content = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is to be seen here?"}]);
    json!({
        "messages": [{"role": "user", "content": content}], "max_tokens": 3, "ignore_eos": true, "temperature": 0,
        "cache_salt": salt,
    })
}

/// What a request found there of earlier ones: whether its picture was processed, encoded, and how many tokens of the prompt were known.
#[derive(Debug, PartialEq)]
struct Found {
    processed: bool,
    embedding: bool,
    cached_tokens: bool,
}

const NOTHING: Found = Found { processed: false, embedding: false, cached_tokens: false };
/// All tokens of the picture are among the cached ones, so that its embedding is not needed.
const AGAIN: Found = Found { processed: true, embedding: false, cached_tokens: true };

fn ask(server: &TestServer, request: &Value) -> Found {
    const HITS: [&str; 2] = ["vllm:mm_cache_hits_total", "perilune:embedding_cache_hits_total"];
    let hits = || HITS.map(|name| server.metric(name, ""));
    let (before, made) = (hits(), server.control.images_processed());
    let answer = server.ask(CHAT, request);
    let found = [hits()[0] > before[0], hits()[1] > before[1]];
    // The counter and what was done agree.
    assert_eq!(found[0], server.control.images_processed() == made);
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    Found {
        processed: found[0],
        embedding: found[1],
        cached_tokens: cached.as_u64().is_some_and(|cached| cached > 0),
    }
}

#[test]
fn a_picture_of_another_salt_is_not_known() {
    let server = TestServer::start();
    let url = picture();
    for salt in [None, Some("a"), Some("b"), Some("aa")] {
        assert_eq!(ask(&server, &about(&url, salt)), NOTHING, "{salt:?}, for the first time");
    }
    for salt in [None, Some("a"), Some("b"), Some("aa")] {
        assert_eq!(ask(&server, &about(&url, salt)), AGAIN, "{salt:?}, again");
    }
}

#[test]
fn a_picture_is_known_in_another_prompt_of_its_salt_only() {
    let server = TestServer::start();
    let url = picture();
    let with_text = |salt: Option<&str>| {
        let mut request = about(&url, salt);
        let content = &mut request["messages"][0]["content"];
        *content = json!([{"type": "text", "text": "another beginning"}, content[0].clone()]);
        request
    };
    ask(&server, &about(&url, Some("a")));
    let seen = Found { processed: true, embedding: true, cached_tokens: false };
    assert_eq!(ask(&server, &with_text(None)), NOTHING);
    assert_eq!(ask(&server, &with_text(Some("b"))), NOTHING);
    assert_eq!(ask(&server, &with_text(Some("a"))), seen);
    // What only reads prompts has its salt as well.
    let read = |salt: Option<&str>| {
        let messages = about(&url, salt)["messages"].clone();
        let made = server.control.images_processed();
        server.ask("/v1/embeddings", &json!({"messages": messages, "cache_salt": salt}));
        server.control.images_processed() - made
    };
    assert_eq!((read(Some("c")), read(Some("c")), read(Some("a"))), (1, 0, 0));
}

/// The salt names a picture and does not change what is seen.
#[test]
fn the_same_is_seen_with_every_salt() {
    if perilune::source::embedded::FILES.is_empty() {
        return;
    }
    let server = TestServer::embedded(small_load());
    let url = picture();
    let answers: Vec<Value> = [None, Some("a"), Some("b"), Some("a")]
        .map(|salt| {
            let mut request = about(&url, salt);
            request["logprobs"] = true.into();
            server.ask(CHAT, &request)["choices"].clone()
        })
        .into();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}
