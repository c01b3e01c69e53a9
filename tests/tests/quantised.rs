//! The embedded model with quantised weights, asked through the API about pictures that it has not seen in training, and a quantised
//! copy of it. `cargo test -p perilune-tests --test quantised -- --nocapture` prints the shares of docs/quantization.md.

use perilune_tests::tree::{read, root};
use perilune_tests::{Server, chat, run, user};
use serde_json::{Value, json};

/// Every second picture of the fixture: 100 of them.
fn share_of_right_answers(flags: &[&str]) -> f64 {
    let server = Server::start(flags);
    let client = server.client();
    let fixture = read(&root().join("tests/fixtures/demo/pictures.jsonl"));
    let (mut right, mut asked) = (0, 0);
    for line in fixture.lines().step_by(2) {
        let picture: Value = serde_json::from_str(line).expect("a line of JSON");
        let url = format!("data:image/png;base64,{}", picture["png"].as_str().expect("a picture"));
        for question in picture["questions"].as_array().expect("questions") {
            let text = question["question"].as_str().expect("a question");
            let body = chat(vec![user(text, std::slice::from_ref(&url))], 48);
            let reply = client.post("/v1/chat/completions", &body);
            assert_eq!(reply.status, 200, "{}", reply.text);
            let answer = reply.json()["choices"][0]["message"]["content"].as_str().expect("text").to_string();
            asked += 1;
            right += i32::from(normal(&answer) == normal(question["answer"].as_str().expect("an answer")));
        }
    }
    let share = f64::from(right) / f64::from(asked);
    println!("{flags:?}: {right} of {asked} questions answered right: {:.1} %", 100.0 * share);
    share
}

/// Case, surrounding blanks and the final full stop do not matter.
fn normal(answer: &str) -> String {
    answer.trim().trim_end_matches('.').to_lowercase()
}

#[test]
fn questions_about_pictures_with_quantised_weights() {
    let float = share_of_right_answers(&[]);
    for (quantization, loss) in [("int8", 0.01), ("int4", 0.05)] {
        let share = share_of_right_answers(&["--quantization", quantization]);
        assert!(share >= float - loss, "{quantization}: {share:.3} beside {float:.3}");
    }
}

#[test]
fn a_quantised_copy_says_the_same() {
    let folder = std::env::temp_dir().join(format!("perilune-quantised-{}", std::process::id()));
    let output = folder.to_str().expect("a name in UTF-8");
    let done = run(&["quantize", "--quantization", "int4", "--output", output]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains(" matrices quantised, "), "{said}");
    let again = run(&["quantize", "--quantization", "int4", "--output", output]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("the folder is not empty"));
    let request = json!({
        "model": "m", "messages": [{"role": "user", "content": "What is a perilune?"}], "max_tokens": 24,
        "temperature": 0, "ignore_eos": true, "logprobs": true, "top_logprobs": 5,
    });
    let answer = |flags: &[&str]| {
        let server = Server::start(&[flags, &["--served-model-name", "m"]].concat());
        let reply = server.client().post("/v1/chat/completions", &request);
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()["choices"][0].clone()
    };
    assert_eq!(answer(&[output]), answer(&["--quantization", "int4"]));
    std::fs::remove_dir_all(&folder).expect("it can be removed");
}
