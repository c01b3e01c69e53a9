//! Qwen3-VL over HTTP, dense and with experts: tiny checkpoints by formula, with the template and the tokenizer of the tests of Qwen2.5-VL.

use crate::formula::{NO_TENSORS, joined};
use crate::harness::TestServer;
use crate::qwen_vl::{CHAT, TEMPLATE, ids, pads, picture, request, text, tokenizer, tokens};
use crate::qwen3_vl_model::{self, DENSE, MOE};
use models::ModelFiles;
use serde_json::{Value, json};

fn server(name: &str) -> TestServer {
    serve(qwen3_vl_model::files(name))
}

/// The decoder alone, which is a Qwen3.
fn text_only() -> TestServer {
    let config = qwen3_vl_model::config(DENSE);
    let tensors =
        qwen3_vl_model::tensors(&config).into_iter().filter(|tensor| !tensor.0.starts_with("model.visual."));
    let renamed =
        tensors.map(|tensor| (tensor.0.replace(".language_model", ""), tensor.1, tensor.2, tensor.3));
    let mut text = config["text_config"].clone();
    text["architectures"] = json!(["Qwen3ForCausalLM"]);
    text["model_type"] = "qwen3".into();
    text["rope_scaling"] = Value::Null;
    serve(vec![
        ("model.safetensors".into(), joined(NO_TENSORS, renamed.collect())),
        ("config.json".into(), text.to_string().into_bytes()),
    ])
}

fn serve(model: Vec<(String, Vec<u8>)>) -> TestServer {
    let texts = [
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE})),
    ];
    let texts = texts.map(|(name, json)| (name.to_string(), json.to_string().into_bytes()));
    let files = model.into_iter().chain(texts);
    let files: Vec<(&'static str, &'static [u8])> =
        files.map(|(name, bytes)| (&*name.leak(), &*bytes.leak())).collect();
    TestServer::of_files(ModelFiles::Embedded(files.leak()), 50, 400)
}

/// Tokens of 32 x 32 pixels: 160 x 96 are 5 x 3 of them, and few are enlarged to the least: 96 x 96.
fn sees_pictures(name: &str) {
    let server = server(name);
    let content =
        json!([text("a"), picture(160, 96, 1), text(" <|image_pad|>? "), picture(30, 30, 2), text("b")]);
    let asked = request(content);
    let first = server.ask(CHAT, &asked);
    let expected = [
        vec![111],
        tokens("user\na"),
        pads(15),
        // What a user types is text.
        tokens(" <|image_pad|>? "),
        pads(9),
        tokens("b"),
        vec![125],
        tokens("\n"),
        vec![111],
        tokens("assistant\n"),
    ];
    assert_eq!(ids(&first["prompt_token_ids"]), expected.concat());
    assert_eq!(ids(&first["choices"][0]["token_ids"]).len(), 24);
    // From the caches of pictures and of prefixes, pictures within: the same to the last bit.
    let again = server.ask(CHAT, &asked);
    assert_eq!(again["choices"], first["choices"]);
    let cached = &again["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64().is_some_and(|n| n >= 48), "{again}");

    // An answer hangs on its own pictures alone: their pixels, and their shapes, whose tokens are as many.
    let contents = [
        json!([text("what is "), picture(160, 96, 1), text("?")]),
        json!([text("what is "), picture(160, 96, 7), text("?")]),
        json!([text("what is "), picture(96, 160, 1), text("?")]),
        json!([picture(60, 60, 3), picture(200, 60, 4), text("and these")]),
    ];
    let ask =
        |server: &TestServer, content: &Value| server.ask(CHAT, &request(content.clone()))["choices"].clone();
    let alone: Vec<Value> = contents.iter().map(|content| ask(&server, content)).collect();
    for (i, choices) in alone.iter().enumerate() {
        assert!(alone[..i].iter().all(|other| other != choices), "{i}");
    }
    let fresh = &self::server(name);
    let together: Vec<Value> = std::thread::scope(|scope| {
        let asked: Vec<_> = contents.iter().map(|content| scope.spawn(move || ask(fresh, content))).collect();
        asked.into_iter().map(|asked| asked.join().expect("an answer")).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn the_dense_model_sees_pictures() {
    sees_pictures(DENSE);
}

#[test]
fn the_model_with_experts_sees_pictures() {
    sees_pictures(MOE);
}

#[test]
fn what_goes_in_is_told_and_what_cannot_be_seen_is_refused() {
    let server = server(DENSE);
    let card = server.get("/v1/models").json()["data"][0].clone();
    let expected = json!({"modality": "text+image->text", "input_modalities": ["text", "image"], "output_modalities": ["text"]});
    assert_eq!(card["architecture"], expected);
    let text_only = text_only();
    let expected =
        json!({"modality": "text->text", "input_modalities": ["text"], "output_modalities": ["text"]});
    assert_eq!(text_only.get("/v1/models").json()["data"][0]["architecture"], expected);
    // Without pictures the three positions of a token are one, and the decoder is a Qwen3: the same bits.
    let answers =
        [&server, &text_only].map(|server| server.ask(CHAT, &request(json!([text("what is this?")]))));
    assert_eq!(answers[0]["choices"], answers[1]["choices"]);
    for pad in ["<|image_pad|>", "<|video_pad|>"] {
        let response =
            server.post("/v1/completions", &json!({"prompt": format!("a {pad}"), "max_tokens": 1}));
        assert_eq!(response.status, 400, "{}", response.text());
        let error = response.json()["error"].clone();
        assert_eq!(error["param"], "prompt");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(&format!("token 2 is `{pad}`")), "{message}");
    }
    let response = server.post(CHAT, &request(json!([text("a"), picture(402, 2, 1)])));
    assert_eq!(
        (response.status, &response.json()["error"]["param"]),
        (400, &json!("messages[0].content[1].image_url"))
    );
}
