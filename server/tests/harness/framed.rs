//! What a client gets of a model whose answers are framed all through: the same whole and streamed.

use super::scripted::{Script, Scripted};
use super::{Setup, TestServer};
use serde_json::{Value, json};

pub const CHAT: &str = "/v1/chat/completions";

pub struct Framed {
    pub server: TestServer,
    pub script: Script,
    model: &'static Scripted,
}

/// What of an answer is compared: thinking, text, calls by name and arguments, and how it ended.
pub type Said = (Value, Value, Vec<(String, String)>, Value);

pub fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
                            "additionalProperties": false});
    json!([{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}])
}

pub fn ask(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

pub fn call_of(call: &Value) -> (String, String) {
    let text = |key: &str| call["function"][key].as_str().unwrap_or_default().to_owned();
    (text("name"), text("arguments"))
}

impl Framed {
    pub fn new(model: &'static Scripted) -> Self {
        let (server, script) = TestServer::scripted(model, Setup::default().options);
        Self { server, script, model }
    }

    /// What the client gets when the model says this: the same streamed.
    pub fn answer(&self, said: &str, request: &Value) -> Said {
        self.script.set(self.model.encode(said));
        let whole = self.server.ask(CHAT, request)["choices"][0].clone();
        let message = &whole["message"];
        let calls = message["tool_calls"].as_array().into_iter().flatten().map(call_of).collect();
        let whole: Said =
            (message["reasoning"].clone(), message["content"].clone(), calls, whole["finish_reason"].clone());
        let mut streamed: Said = (Value::Null, Value::Null, Vec::new(), Value::Null);
        let add = |to: &mut Value, piece: &Value| {
            if let Some(piece) = piece.as_str().filter(|piece| !piece.is_empty()) {
                *to = format!("{}{piece}", to.as_str().unwrap_or_default()).into();
            }
        };
        for event in self.server.stream(CHAT, request) {
            let choice = &event["choices"][0];
            add(&mut streamed.0, &choice["delta"]["reasoning"]);
            add(&mut streamed.1, &choice["delta"]["content"]);
            for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                let (name, arguments) = call_of(call);
                if call.get("id").is_some() {
                    streamed.2.push((name, String::new()));
                }
                streamed.2.last_mut().expect("a call began").1.push_str(&arguments);
            }
            if !choice["finish_reason"].is_null() {
                streamed.3 = choice["finish_reason"].clone();
            }
        }
        assert_eq!(streamed, whole, "{said}");
        whole
    }

    pub fn prompt(&self, request: &Value) -> String {
        self.server.chat_prompt(request)
    }

    /// Weights of no use call what they must, `most` times at most.
    pub fn check_forced_calls(&self, request: &Value, most: usize) {
        let mut num_calls = 0;
        for seed in 0..8 {
            self.script.draw(seed);
            let answer = self.server.ask(CHAT, request)["choices"][0].clone();
            if answer["finish_reason"] == "length" {
                continue;
            }
            assert_eq!(answer["finish_reason"], "tool_calls", "{answer}");
            let calls = answer["message"]["tool_calls"].as_array().expect("calls");
            assert!((1..=most).contains(&calls.len()), "{answer}");
            for (name, arguments) in calls.iter().map(call_of) {
                let arguments: Value = serde_json::from_str(&arguments).expect("JSON");
                assert!(name == "get_weather" && arguments["city"].is_string(), "{answer}");
            }
            num_calls += 1;
        }
        assert!(num_calls > 0);
    }

    /// Who goes on with a message is in its frame already; a grammar in Lark cannot be put into one.
    pub fn check_frames_of_held_answers(&self) {
        let begun = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "It is "}]);
        let goes_on = ask(
            json!({"messages": begun, "continue_final_message": true, "guided_regex": "[0-9]{2}!", "max_tokens": 50}),
        );
        assert_eq!(self.answer("42!", &goes_on).1, "42!");
        let response = self.server.post(CHAT, &ask(json!({"guided_grammar": "start: \"a\""})));
        assert_eq!((response.status, &response.json()["error"]["param"]), (400, &json!("guided_grammar")));
    }
}
