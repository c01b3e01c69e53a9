//! How probable a prompt was: `echo` with `logprobs` in OpenAI's old form, `prompt_logprobs` in vLLM's.

use crate::harness;

use harness::{Setup, TestServer};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const LISTS: [&str; 4] = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];

fn echo(prompt: Value, max_tokens: usize, more: Value) -> Value {
    let mut body = json!({
        "prompt": prompt, "max_tokens": max_tokens, "echo": true, "logprobs": 3, "temperature": 0, "ignore_eos": true,
        "skip_special_tokens": false,
    });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn list<'a>(choice: &'a Value, name: &str) -> &'a Vec<Value> {
    choice["logprobs"][name].as_array().unwrap_or_else(|| panic!("no {name} in {choice}"))
}

#[test]
fn a_prompt_and_nothing_else() {
    let server = TestServer::start();
    let more = json!({"return_tokens_as_token_ids": true});
    let answer = server.ask(COMPLETIONS, &echo(json!("hé moon"), 0, more));
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "hé moon");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(answer["usage"]["prompt_tokens"], 8);
    // One token a byte: the second byte of a character has the place after it.
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 1, 2, 3, 4, 5, 6]));
    assert!(LISTS.iter().all(|name| list(choice, name).len() == 8), "{choice}");
    assert!(
        choice["logprobs"]["token_logprobs"][0].is_null() && choice["logprobs"]["top_logprobs"][0].is_null()
    );
    for position in 1..8 {
        let logprob = list(choice, "token_logprobs")[position].as_f64().expect("a number");
        let top = list(choice, "top_logprobs")[position].as_object().expect("an object by token");
        let token = list(choice, "tokens")[position].as_str().expect("a token");
        assert_eq!(top[token].as_f64(), Some(logprob), "the token itself is among them");
        assert!((3..=4).contains(&top.len()));
        let most = top.values().next().expect("not empty").as_f64().expect("a number");
        assert!(most >= logprob);
    }
    // A prompt of one token has nothing to tell.
    let one = server.ask(COMPLETIONS, &echo(json!("h"), 0, json!({})));
    assert_eq!(one["choices"][0]["logprobs"]["token_logprobs"], json!([null]));
    // Without log-probabilities an echo alone.
    let plain = server.ask(COMPLETIONS, &json!({"prompt": "hello", "max_tokens": 0, "echo": true}));
    assert_eq!(
        (&plain["choices"][0]["text"], &plain["choices"][0]["logprobs"]),
        (&json!("hello"), &Value::Null)
    );
}

#[test]
fn a_token_is_as_probable_in_a_prompt_as_when_it_was_generated() {
    let server = TestServer::start();
    let request = json!({
        "prompt": "hello moon", "max_tokens": 25, "logprobs": 3, "temperature": 0, "ignore_eos": true, "return_token_ids": true,
        "skip_special_tokens": false, "return_tokens_as_token_ids": true,
    });
    let generated = server.ask(COMPLETIONS, &request)["choices"][0].clone();
    let mut all = generated["prompt_token_ids"].as_array().expect("ids").clone();
    let prompt_len = all.len();
    all.extend(generated["token_ids"].as_array().expect("ids").iter().cloned());
    let more = json!({"return_tokens_as_token_ids": true});
    let read = server.ask(COMPLETIONS, &echo(json!(all), 0, more))["choices"][0].clone();
    for name in ["tokens", "token_logprobs", "top_logprobs"] {
        assert_eq!(list(&read, name)[prompt_len..], list(&generated, name)[..], "{name}");
    }
    let offsets: Vec<u64> =
        list(&generated, "text_offset").iter().map(|offset| 10 + offset.as_u64().expect("a place")).collect();
    assert_eq!(json!(list(&read, "text_offset")[prompt_len..]), json!(offsets));
    // Half of it as a prompt, the rest generated again.
    let half = echo(json!(all[..20]), 15, json!({"return_tokens_as_token_ids": true}));
    let half = server.ask(COMPLETIONS, &half)["choices"][0].clone();
    assert_eq!(half["logprobs"], read["logprobs"]);
    assert_eq!(half["text"], read["text"]);
}

#[test]
fn several_answers_and_several_prompts() {
    let server = TestServer::start();
    let prompts = json!(["hello", "is it made of cheese", "h"]);
    let more = json!({"n": 3, "temperature": 0.8, "seed": 5});
    let choices = server.ask(COMPLETIONS, &echo(prompts.clone(), 6, more))["choices"].clone();
    assert_eq!(choices.as_array().expect("choices").len(), 9);
    for (index, choice) in choices.as_array().expect("choices").iter().enumerate() {
        let prompt = prompts[index / 3].as_str().expect("a text");
        let alone = server.ask(COMPLETIONS, &echo(json!(prompt), 0, json!({})))["choices"][0].clone();
        let ids: Vec<u8> = prompt.bytes().collect();
        let by_id = server.ask(COMPLETIONS, &echo(json!(ids), 0, json!({})))["choices"][0].clone();
        assert_eq!(alone["logprobs"], by_id["logprobs"]);
        for name in LISTS {
            assert_eq!(list(choice, name)[..ids.len()], list(&alone, name)[..], "{name} of choice {index}");
            assert_eq!(list(choice, name).len(), ids.len() + 6);
        }
        assert!(choice["text"].as_str().expect("text").starts_with(prompt));
    }
}

#[test]
fn streams_say_the_same() {
    let server = TestServer::start();
    for (n, max_tokens) in [(1, 0), (1, 9), (3, 9)] {
        let request = echo(json!("hello moon"), max_tokens, json!({"n": n, "temperature": 0.8, "seed": 3}));
        let whole = server.ask(COMPLETIONS, &request)["choices"].clone();
        let mut joined =
            vec![json!({"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}); n];
        let mut texts = vec![String::new(); n];
        for event in server.stream(COMPLETIONS, &request) {
            for choice in event["choices"].as_array().expect("choices") {
                let index = choice["index"].as_u64().expect("an index") as usize;
                texts[index] += choice["text"].as_str().expect("text");
                for name in LISTS {
                    let part = choice["logprobs"][name].as_array().cloned().unwrap_or_default();
                    joined[index][name].as_array_mut().expect("a list").extend(part);
                }
            }
        }
        for index in 0..n {
            assert_eq!(joined[index], whole[index]["logprobs"], "choice {index} of {n}");
            assert_eq!(texts[index], whole[index]["text"]);
        }
    }
}

#[test]
fn in_vllms_form() {
    let server = TestServer::start();
    let completion = json!({"prompt": "hello", "max_tokens": 2, "temperature": 0, "ignore_eos": true, "prompt_logprobs": 2});
    let answer = server.ask(COMPLETIONS, &completion);
    let entries = answer["choices"][0]["prompt_logprobs"].as_array().expect("a list").clone();
    assert_eq!(entries.len(), 5);
    assert!(entries[0].is_null());
    for (entry, byte) in entries[1..].iter().zip("ello".bytes()) {
        let entry = entry.as_object().expect("an object by token id");
        let own = &entry[&byte.to_string()];
        assert_eq!(own["decoded_token"], char::from(byte).to_string());
        let rank = own["rank"].as_u64().expect("a rank");
        assert_eq!(entry.len(), if rank <= 2 { 2 } else { 3 });
        let mut ranks: Vec<u64> =
            entry.values().map(|other| other["rank"].as_u64().expect("a rank")).collect();
        ranks.sort_unstable();
        assert_eq!(ranks[..2], [1, 2]);
    }
    // 0 is the prompt's own tokens.
    let mut own = completion.clone();
    own["prompt_logprobs"] = 0.into();
    let own = server.ask(COMPLETIONS, &own)["choices"][0]["prompt_logprobs"].clone();
    for (own, entry) in own.as_array().expect("a list").iter().zip(&entries).skip(1) {
        let own = own.as_object().expect("an object");
        assert_eq!(own.len(), 1);
        assert!(own.iter().all(|(token, value)| entry[token] == *value));
    }
    // With an echo each has its own number of alternatives.
    let both = echo(json!("hello"), 0, json!({"logprobs": 1, "prompt_logprobs": 2}));
    let both = server.ask(COMPLETIONS, &both)["choices"][0].clone();
    assert_eq!(both["prompt_logprobs"], json!(entries));
    assert!(
        list(&both, "top_logprobs").iter().skip(1).all(|top| top.as_object().expect("an object").len() <= 2)
    );
}

#[test]
fn of_a_chat_with_a_picture() {
    use base64::Engine;
    let server = TestServer::start();
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(20, 40).write_to(&mut png, image::ImageFormat::Png).expect("a picture");
    let url = format!(
        "data:image/png;base64,{}",
        base64::engine::general_purpose::STANDARD.encode(png.into_inner())
    );
    let content =
        json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it?"}]);
    let body = json!({
        "messages": [{"role": "user", "content": content}], "max_tokens": 3, "temperature": 0, "prompt_logprobs": 1,
        "n": 2, "return_token_ids": true,
    });
    let answer = server.ask(CHAT, &body);
    let tokens = answer["prompt_token_ids"].as_array().expect("ids");
    let entries = answer["prompt_logprobs"].as_array().expect("a list");
    assert_eq!(entries.len(), tokens.len());
    assert!(entries[0].is_null());
    for (entry, token) in entries.iter().zip(tokens).skip(1) {
        assert!(entry.get(token.to_string()).is_some(), "{entry} has {token}");
    }
    assert_eq!(
        server.ask(CHAT, &body)["prompt_logprobs"],
        answer["prompt_logprobs"],
        "also when it is cached"
    );
}

#[test]
fn however_the_prompt_is_cut() {
    let request = |i: usize| echo(json!("all the moons of the sun ".repeat(2 + i)), 4 * (i % 2), json!({}));
    let answers = |max_batched_tokens, max_running| {
        let mut setup = Setup::default();
        (setup.config.max_batched_tokens, setup.config.max_running) = (max_batched_tokens, max_running);
        let server = TestServer::with(setup);
        let asked: Vec<Value> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..6)
                .map(|i| {
                    scope.spawn({
                        let server = &server;
                        move || server.ask(COMPLETIONS, &request(i))
                    })
                })
                .collect();
            asked.into_iter().map(|asked| asked.join().expect("an answer")["choices"].clone()).collect()
        });
        asked
    };
    let whole = answers(512, 300);
    assert_eq!(answers(7, 3), whole);
    assert_eq!(answers(1, 1), whole);
}

#[test]
fn too_many_for_one_response() {
    let server = TestServer::start();
    let prompts = json!(vec!["a".repeat(900); 60]);
    for (more, param) in [
        (json!({"prompt": prompts, "echo": true, "logprobs": 20}), "logprobs"),
        (json!({"prompt": prompts, "prompt_logprobs": 4, "n": 4}), "prompt_logprobs"),
    ] {
        let mut body = more.clone();
        body["max_tokens"] = 1.into();
        let response = server.post(COMPLETIONS, &body);
        assert_eq!(response.status, 400);
        assert_eq!(response.json()["error"]["param"], param);
    }
}
