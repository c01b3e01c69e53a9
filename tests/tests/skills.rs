//! What the embedded model can do besides answering in words, asked through the API about cases that it has not seen in training:
//! calls of tools, thinking, JSON.

use perilune_tests::tree::{read, root};
use perilune_tests::{Client, Server, chat, user};
use serde_json::{Value, json};

/// The share of cases that must be right.
const WANTED: f64 = 0.9;

fn fixture(name: &str) -> Vec<Value> {
    let text = read(&root().join("tests/fixtures/demo").join(name));
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn message(client: &Client, body: &Value) -> Value {
    let reply = client.post("/v1/chat/completions", body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["choices"][0]["message"].clone()
}

/// Case, surrounding blanks and the final full stop do not matter.
fn normal(answer: &Value) -> String {
    answer.as_str().unwrap_or_default().trim().trim_end_matches('.').to_lowercase()
}

/// A question, about the picture that the case names, if it names one.
fn question(case: &Value, pictures: &[Value]) -> Value {
    let picture = case["picture"].as_u64().map(|index| {
        let png = pictures[index as usize]["png"].as_str().expect("a picture");
        format!("data:image/png;base64,{png}")
    });
    user(case["question"].as_str().expect("a question"), picture.as_slice())
}

fn check(cases: &[Value], right: impl Fn(&Value) -> Result<(), String>) {
    let wrong: Vec<String> = cases.iter().filter_map(|case| right(case).err()).collect();
    let share = 1.0 - wrong.len() as f64 / cases.len() as f64;
    println!("{} of {} right", cases.len() - wrong.len(), cases.len());
    assert!(cases.len() >= 100);
    assert!(share >= WANTED, "{share:.3} is below {WANTED}:\n{}", wrong.join("\n"));
}

#[test]
fn it_calls_tools() {
    let server = Server::start(&[]);
    let client = server.client();
    // In the fixture arguments are objects, as templates read them; in the API they are text.
    let as_sent = |message: &Value| {
        let mut message = message.clone();
        for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
            let arguments = &mut call["function"]["arguments"];
            if arguments.is_object() {
                *arguments = json!(arguments.to_string());
            }
        }
        message
    };
    check(&fixture("tools.jsonl"), |case| {
        let messages = case["messages"].as_array().expect("messages").iter().map(as_sent).collect();
        let mut body = chat(messages, 96);
        body["tools"] = case["tools"].clone();
        let said = message(&client, &body);
        let called: Vec<(Value, Value)> = said["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|call| {
                let arguments = call["function"]["arguments"].as_str().expect("text");
                (call["function"]["name"].clone(), serde_json::from_str(arguments).unwrap_or_default())
            })
            .collect();
        let wanted: Vec<(Value, Value)> = case["calls"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|call| (call["function"]["name"].clone(), call["function"]["arguments"].clone()))
            .collect();
        let is_right =
            called == wanted && (!wanted.is_empty() || normal(&said["content"]) == normal(&case["answer"]));
        if is_right { Ok(()) } else { Err(format!("{} — {said}", case["messages"])) }
    });
}

#[test]
fn it_thinks_first_where_it_is_told_to() {
    let server = Server::start(&[]);
    let client = server.client();
    let pictures = fixture("pictures.jsonl");
    check(&fixture("thinking.jsonl"), |case| {
        let mut body = chat(vec![question(case, &pictures)], 128);
        body["chat_template_kwargs"] = json!({"thinking": true});
        let said = message(&client, &body);
        let is_right = !normal(&said["reasoning_content"]).is_empty()
            && said["reasoning_content"] == said["reasoning"]
            && normal(&said["content"]) == normal(&case["answer"]);
        if is_right { Ok(()) } else { Err(format!("{} — {said}", case["question"])) }
    });
}

#[test]
fn it_fills_objects() {
    let server = Server::start(&[]);
    let client = server.client();
    let pictures = fixture("pictures.jsonl");
    check(&fixture("json.jsonl"), |case| {
        let mut body = chat(vec![question(case, &pictures)], 160);
        body["response_format"] = json!({"type": "json_object"});
        let said = message(&client, &body);
        let value: Option<Value> = said["content"].as_str().and_then(|text| serde_json::from_str(text).ok());
        if value.as_ref() == Some(&case["value"]) {
            Ok(())
        } else {
            Err(format!("{} — {said}", case["question"]))
        }
    });
}
