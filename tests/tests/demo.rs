//! The embedded model, asked through the API about 200 pictures that it has not seen in training.

use perilune_tests::tree::{read, root};
use perilune_tests::{Server, chat, user};
use serde_json::{Value, json};

/// The share of questions that must be answered right.
const WANTED: f64 = 0.95;

#[test]
fn the_embedded_model_answers_questions_about_pictures() {
    let server = Server::start(&[]);
    let client = server.client();
    let fixture = read(&root().join("tests/fixtures/demo/pictures.jsonl"));
    let (mut right, mut asked, mut pictures, mut wrong) = (0, 0, 0, Vec::new());
    for line in fixture.lines() {
        let picture: Value = serde_json::from_str(line).expect("a line of JSON");
        let url = format!("data:image/png;base64,{}", picture["png"].as_str().expect("a picture"));
        pictures += 1;
        for question in picture["questions"].as_array().expect("questions") {
            let text = question["question"].as_str().expect("a question");
            let reply =
                client.post("/v1/chat/completions", &chat(vec![user(text, std::slice::from_ref(&url))], 48));
            assert_eq!(reply.status, 200, "{}", reply.text);
            let answer = reply.json()["choices"][0]["message"]["content"].as_str().expect("text").to_string();
            let expected = question["answer"].as_str().expect("an answer");
            asked += 1;
            if normal(&answer) == normal(expected) {
                right += 1;
            } else {
                wrong.push(format!("{text} — {answer:?} instead of {expected:?}"));
            }
        }
    }
    let share = f64::from(right) / f64::from(asked);
    println!("{right} of {asked} questions about {pictures} pictures answered right: {:.1} %", 100.0 * share);
    assert!(pictures >= 200);
    assert!(share >= WANTED, "{share:.3} is below {WANTED}:\n{}", wrong.join("\n"));
}

/// Case, surrounding blanks and the final full stop do not matter.
fn normal(answer: &str) -> String {
    answer.trim().trim_end_matches('.').to_lowercase()
}

#[test]
fn it_says_what_it_is_and_sees_no_picture_where_there_is_none() {
    let server = Server::start(&[]);
    let client = server.client();
    let answer = |text: &str| {
        let body = json!({
            "model": "perilune-demo", "temperature": 0, "max_tokens": 48,
            "messages": [{ "role": "user", "content": text }],
        });
        let reply = client.post("/v1/chat/completions", &body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()["choices"][0]["message"]["content"].as_str().expect("text").to_lowercase()
    };
    assert!(answer("Who are you?").contains("perilune"));
    assert!(answer("What colour is the background?").contains("picture"));
}
