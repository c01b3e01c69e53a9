//! What is answered: both dialects, streamed or not, with everything that a request may ask to be reported.

use crate::harness;

use harness::{Setup, TestServer};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(more: Value) -> Value {
    let mut body = json!({"model": harness::MODEL, "messages": [{"role": "user", "content": "hello moon"}], "max_tokens": 40});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn completion(more: Value) -> Value {
    let mut body = json!({"model": harness::MODEL, "prompt": "hello moon", "max_tokens": 40});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// Puts the chunks of a stream together, into the choices that a response in one piece has.
fn joined(events: &[Value]) -> Vec<Value> {
    let mut choices: Vec<Value> = Vec::new();
    for choice in
        events.iter().flat_map(|event| event["choices"].as_array().expect("every chunk has choices"))
    {
        let index = choice["index"].as_u64().expect("an index") as usize;
        if choices.len() <= index {
            choices.resize(
                index + 1,
                json!({"text": "", "chunks": 0, "finished": false, "token_ids": [], "logprobs": []}),
            );
        }
        let whole = &mut choices[index];
        assert_eq!(whole["finished"], false, "nothing comes after the finish reason");
        let text = match &choice["delta"] {
            Value::Null => &choice["text"],
            delta => {
                let is_first = whole["chunks"] == 0;
                assert_eq!(delta["role"] == "assistant", is_first, "the role comes once, first: {events:?}");
                &delta["content"]
            }
        };
        let text = text.as_str().unwrap_or("");
        assert!(!text.is_empty() || !choice["finish_reason"].is_null(), "an empty delta: {choice}");
        whole["text"] = format!("{}{text}", whole["text"].as_str().expect("text")).into();
        whole["chunks"] = (whole["chunks"].as_u64().expect("a count") + 1).into();
        for (field, part) in
            [("token_ids", &choice["token_ids"]), ("logprobs", &choice["logprobs"]["content"])]
        {
            if let Some(part) = part.as_array() {
                whole[field].as_array_mut().expect("a list").extend(part.iter().cloned());
            }
        }
        if !choice["finish_reason"].is_null() {
            whole["finished"] = true.into();
            whole["finish_reason"] = choice["finish_reason"].clone();
            whole["stop_reason"] = choice["stop_reason"].clone();
        }
    }
    assert!(choices.iter().all(|choice| choice["finished"] == true), "{events:?}");
    choices
}

#[test]
fn a_chat_answer() {
    let server = TestServer::start();
    let answer = server.ask(CHAT, &chat(json!({})));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], harness::MODEL);
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert!(answer["system_fingerprint"].as_str().expect("a fingerprint").starts_with("fp_"));
    let usage = &answer["usage"];
    let sum = usage["prompt_tokens"].as_u64().expect("a count")
        + usage["completion_tokens"].as_u64().expect("a count");
    assert_eq!(usage["total_tokens"], sum);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    // The second time the prompt is found, and the answer is the same.
    let again = server.ask(CHAT, &chat(json!({"temperature": 0})));
    let third = server.ask(CHAT, &chat(json!({"temperature": 0})));
    assert_eq!(again["choices"], third["choices"]);
    assert!(third["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count") > 0);
}

#[test]
fn streams_say_the_same_as_answers_in_one_piece() {
    let server = TestServer::start();
    for seed in 0..60u64 {
        let more = json!({
            "seed": seed, "n": 1 + seed % 3, "max_tokens": 1 + (seed * 7) % 60, "min_tokens": seed % 2, "return_token_ids": true,
            "temperature": if seed % 4 == 0 { 0.0 } else { 0.7 },
            "stop": if seed % 2 == 0 { json!(["q", "the", "zz"]) } else { Value::Null },
            "include_stop_str_in_output": seed % 8 == 0,
            "skip_special_tokens": seed % 5 != 0,
            "ignore_eos": seed % 3 == 0,
        });
        let mut request = chat(more.clone());
        request["messages"][0]["content"] = format!("question {seed}").into();
        request["logprobs"] = true.into();
        request["top_logprobs"] = 2.into();
        let whole = server.ask(CHAT, &request);
        let parts = joined(&server.stream(CHAT, &request));
        for (whole, part) in whole["choices"].as_array().expect("choices").iter().zip(&parts) {
            assert_eq!(part["text"], whole["message"]["content"], "{request}");
            assert_eq!(part["token_ids"], whole["token_ids"], "{request}");
            assert_eq!(part["finish_reason"], whole["finish_reason"], "{request}");
            assert_eq!(part["stop_reason"], whole["stop_reason"], "{request}");
            assert_eq!(part["logprobs"], whole["logprobs"]["content"], "{request}");
        }
        let request = completion(more);
        let whole = server.ask(COMPLETIONS, &request);
        let parts = joined(&server.stream(COMPLETIONS, &request));
        assert_eq!(whole["choices"].as_array().expect("choices").len(), parts.len());
        for (whole, part) in whole["choices"].as_array().expect("choices").iter().zip(&parts) {
            assert_eq!(part["text"], whole["text"], "{request}");
            assert_eq!(part["token_ids"], whole["token_ids"], "{request}");
            assert_eq!(part["finish_reason"], whole["finish_reason"], "{request}");
        }
    }
}

#[test]
fn usage_comes_last_and_only_when_asked_for() {
    let server = TestServer::start();
    let events = server.stream(CHAT, &chat(json!({"ignore_eos": true})));
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    let events =
        server.stream(CHAT, &chat(json!({"ignore_eos": true, "stream_options": {"include_usage": true}})));
    let (last, others) = events.split_last().expect("events");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 40);
    assert!(others.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let events =
        server.stream(COMPLETIONS, &completion(json!({"ignore_eos": true, "stream_options": options})));
    let counts: Vec<u64> =
        events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().expect("a count")).collect();
    assert!(counts.is_sorted() && counts[0] >= 1 && counts.last() == Some(&40), "{counts:?}");
}

#[test]
fn n_answers_differ_and_the_first_is_the_only_one() {
    let server = TestServer::start();
    let one = server.ask(COMPLETIONS, &completion(json!({"seed": 5})));
    let three = server.ask(COMPLETIONS, &completion(json!({"seed": 5, "n": 3})));
    let texts: Vec<&Value> = (0..3).map(|i| &three["choices"][i]["text"]).collect();
    assert_eq!(&one["choices"][0]["text"], texts[0]);
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2], "{texts:?}");
    assert_eq!(three["choices"][2]["index"], 2);
    // Prompts come first, their answers in a row.
    let many =
        server.ask(COMPLETIONS, &completion(json!({"seed": 5, "n": 2, "prompt": ["other", "hello moon"]})));
    assert_eq!(&many["choices"][2]["text"], texts[0]);
    assert_eq!(&many["choices"][3]["text"], texts[1]);
}

#[test]
fn prompts_in_every_form() {
    let server = TestServer::start();
    let text = server.ask(COMPLETIONS, &completion(json!({"prompt": "hi", "temperature": 0})));
    for prompt in [json!(["hi"]), json!([104, 105]), json!([[104, 105]])] {
        let answer = server.ask(COMPLETIONS, &completion(json!({"prompt": prompt, "temperature": 0})));
        assert_eq!(answer["choices"], text["choices"], "{prompt}");
    }
    let echo =
        server.ask(COMPLETIONS, &completion(json!({"prompt": [[104, 105]], "temperature": 0, "echo": true})));
    let expected = format!("hi{}", text["choices"][0]["text"].as_str().expect("text"));
    assert_eq!(echo["choices"][0]["text"], expected);
    let parts = joined(
        &server.stream(COMPLETIONS, &completion(json!({"prompt": "hi", "temperature": 0, "echo": true}))),
    );
    assert_eq!(parts[0]["text"], expected);
}

#[test]
fn stop_strings_across_tokens() {
    let server = TestServer::start();
    let free =
        server.ask(COMPLETIONS, &completion(json!({"temperature": 0, "max_tokens": 60, "ignore_eos": true})));
    let text = free["choices"][0]["text"].as_str().expect("text").to_owned();
    let chars: Vec<char> = text.chars().collect();
    assert!(chars.len() > 30, "{text:?}");
    // Three characters that are more than one token.
    let stop: String = chars[20..23].iter().collect();
    let at = text.find(&stop).expect("the stop string is there");
    // As many as there may be.
    let stops: Vec<String> = (0..63).map(|i| format!("☃{i}")).chain([stop.clone()]).collect();
    for (include, end) in [(false, at), (true, at + stop.len())] {
        let request = completion(json!({
            "temperature": 0, "max_tokens": 60, "ignore_eos": true, "stop": stops, "include_stop_str_in_output": include,
        }));
        let answer = server.ask(COMPLETIONS, &request);
        assert_eq!(answer["choices"][0]["text"], text[..end]);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["choices"][0]["stop_reason"], stop);
        assert_eq!(joined(&server.stream(COMPLETIONS, &request))[0]["text"], text[..end]);
    }
}

#[test]
fn stop_tokens_end_without_being_shown() {
    let server = TestServer::start();
    let free = server.ask(
        COMPLETIONS,
        &completion(json!({"temperature": 0, "ignore_eos": true, "return_token_ids": true})),
    );
    let tokens = free["choices"][0]["token_ids"].as_array().expect("ids").clone();
    assert_eq!(tokens.len(), 40);
    let stop = &tokens[9];
    let first = tokens.iter().position(|token| token == stop).expect("it is there");
    let request =
        json!({"temperature": 0, "ignore_eos": true, "return_token_ids": true, "stop_token_ids": [stop]});
    let answer = server.ask(COMPLETIONS, &completion(request));
    let choice = &answer["choices"][0];
    assert_eq!(choice["token_ids"].as_array().expect("ids"), &tokens[..=first]);
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), stop));
    let detokenized = server.ask("/detokenize", &json!({"tokens": tokens[..first]}));
    assert_eq!(detokenized["prompt"], choice["text"]);
}

#[test]
fn the_tokenizer_describes_itself_where_the_operator_allows_it() {
    let refused = TestServer::start().get("/tokenizer_info");
    assert_eq!(refused.status, 404);
    assert!(refused.text().contains("--enable-tokenizer-info-endpoint"), "{}", refused.text());
    let mut setup = Setup::default();
    setup.options.limits.tokenizer_info = true;
    let server = TestServer::with(setup);
    let info = server.get("/tokenizer_info").json();
    assert_eq!((&info["eos_token"], &info["bos_token"]), (&json!("<|im_end|>"), &Value::Null));
    // What is called a token is one.
    let request =
        json!({"prompt": info["eos_token"], "add_special_tokens": false, "return_token_strs": true});
    let tokens = server.ask("/tokenize", &request);
    assert_eq!((&tokens["count"], &tokens["token_strs"][0]), (&json!(1), &info["eos_token"]));
    assert_eq!(tokens["max_model_len"], info["model_max_length"]);
    // The template is the one that renders, and it is shown as it is written.
    let template = info["chat_template"].as_str().expect("a template");
    assert!(template.contains("{%") && template.contains("add_generation_prompt"), "{template}");
}

#[test]
fn logprobs_of_completions() {
    let server = TestServer::start();
    let answer = server.ask(
        COMPLETIONS,
        &completion(
            json!({"logprobs": 3, "max_tokens": 12, "ignore_eos": true, "skip_special_tokens": false}),
        ),
    );
    let choice = &answer["choices"][0];
    let logprobs = &choice["logprobs"];
    let lens: Vec<usize> = ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
        .iter()
        .map(|field| logprobs[*field].as_array().expect("a list").len())
        .collect();
    assert_eq!(lens, [12; 4]);
    assert_eq!(logprobs["token_logprobs"][0], -0.5);
    assert_eq!(logprobs["text_offset"][0], 0);
    let named = server.ask(
        COMPLETIONS,
        &completion(json!({"logprobs": 0, "max_tokens": 2, "return_tokens_as_token_ids": true})),
    );
    let name = named["choices"][0]["logprobs"]["tokens"][0].as_str().expect("a name");
    assert!(name.starts_with("token_id:"), "{name}");
}

#[test]
fn logprobs_of_chat_have_bytes() {
    let server = TestServer::start();
    let answer = server
        .ask(CHAT, &chat(json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 5, "ignore_eos": true})));
    let content = answer["choices"][0]["logprobs"]["content"].as_array().expect("a list");
    assert_eq!(content.len(), 5);
    for entry in content {
        assert_eq!(entry["top_logprobs"].as_array().expect("a list").len(), 2);
        assert_eq!(entry["top_logprobs"][0]["token"], entry["token"]);
        let bytes: Vec<u8> = entry["bytes"]
            .as_array()
            .expect("bytes")
            .iter()
            .map(|b| b.as_u64().expect("a byte") as u8)
            .collect();
        assert_eq!(String::from_utf8_lossy(&bytes), entry["token"].as_str().expect("a token"));
    }
}

#[test]
fn the_model_may_have_its_own_defaults() {
    let request = completion(json!({"max_tokens": 30}));
    let mut setup = Setup::default();
    setup.generation.temperature = Some(0.0);
    let greedy = TestServer::with(setup);
    let texts = [0, 1].map(|_| greedy.ask(COMPLETIONS, &request)["choices"][0]["text"].clone());
    assert_eq!(texts[0], texts[1]);
    // The API's default draws, each time with another seed.
    let drawn = TestServer::start();
    let texts = [0, 1].map(|_| drawn.ask(COMPLETIONS, &request)["choices"][0]["text"].clone());
    assert_ne!(texts[0], texts[1]);
}

#[test]
fn timings_when_asked_for() {
    let server = TestServer::start();
    let response = server.post(CHAT, &chat(json!({"timings": true})));
    let header = response.header("server-timing").expect("a header").to_owned();
    assert!(
        ["queue;dur=", "prefill;dur=", "decode;dur=", "device;dur=", "total;dur="]
            .iter()
            .all(|part| header.contains(part))
    );
    assert!(response.json()["choices"][0]["timings"]["prefill_ms"].as_f64().expect("a time") > 0.0);
    let events = server.stream(CHAT, &chat(json!({"timings": true})));
    assert!(
        events.last().expect("events")["choices"][0]["timings"]["device_ms"].as_f64().expect("a time") > 0.0
    );
    assert!(server.ask(CHAT, &chat(json!({})))["choices"][0].get("timings").is_none());
}

#[test]
fn ignored_fields_are_named() {
    let server = TestServer::start();
    let request = chat(
        json!({"user": "u", "metadata": {}, "store": false, "made_up": 1, "tool_choice": "none", "response_format": {"type": "text"}, "service_tier": null}),
    );
    let response = server.post(CHAT, &request);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("x-ignored-params"), Some("user, metadata, store, made_up"));
    assert_eq!(server.metric("perilune:ignored_params_total", ""), 4.0);
    let response = server.post(CHAT, &chat(json!({})));
    assert_eq!(response.header("x-ignored-params"), None);
}

#[test]
fn pictures_count_and_matter() {
    let server = TestServer::start();
    // A 1x1 and a 1x2 picture, as BMP.
    let bmp = |height: u32, blue: u8| {
        let pixels: Vec<u8> = (0..height).flat_map(|_| [blue, 0, 0, 0]).collect();
        let mut file = b"BM".to_vec();
        for value in
            [54 + pixels.len() as u32, 0, 54, 40, 1, height, 0x0018_0001, 0, pixels.len() as u32, 0, 0, 0, 0]
        {
            file.extend(value.to_le_bytes());
        }
        file.extend(pixels);
        let encoded = base64_encode(&file);
        json!([{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": format!("data:image/bmp;base64,{encoded}"), "detail": "low"}}])
    };
    let ask = |content: Value| {
        let body = json!({"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 20, "ignore_eos": true});
        server.ask(CHAT, &body)
    };
    let (short, tall, other) = (ask(bmp(1, 9)), ask(bmp(40, 9)), ask(bmp(1, 10)));
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().expect("a count");
    assert_eq!(tokens(&tall), tokens(&short) + 2);
    assert_ne!(short["choices"], other["choices"], "pixels matter");
    let again = ask(bmp(1, 9));
    assert_eq!(short["choices"], again["choices"]);
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count") > 0);
}

fn base64_encode(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The next step is begun before the results of the one that runs are read; what is said is the same.
#[test]
fn a_device_that_takes_steps_ahead_says_the_same() {
    let [usual, ahead] = [TestServer::start(), TestServer::working_ahead()];
    let stop: Vec<u32> = (0..60).map(|i| 4 * i).collect();
    let requests = [
        chat(json!({"n": 3, "logprobs": true, "seed": 5})),
        chat(json!({"temperature": 0, "max_tokens": 30, "stop_token_ids": stop})),
        chat(json!({"temperature": 0, "max_tokens": 30, "stop": ["e", "a"]})),
        chat(json!({"seed": 3, "max_tokens": 5, "presence_penalty": 0.3})),
        chat(json!({"seed": 3, "max_tokens": 8, "response_format": {"type": "json_object"}})),
    ];
    for request in &requests {
        let [usual, ahead] = [&usual, &ahead].map(|server| server.ask(CHAT, request)["choices"].clone());
        assert_eq!(ahead, usual);
    }
    let [usual, ahead] = [&usual, &ahead].map(|server| {
        server.wait_for_metric("vllm:num_requests_running", 0.0);
        ["steps_ahead", "dropped_tokens"].map(|name| server.metric(&format!("perilune:{name}_total"), ""))
    });
    assert_eq!(usual, [0.0, 0.0]);
    assert!(ahead[0] > 20.0 && ahead[1] > 0.0, "{ahead:?}");
}

#[test]
fn a_step_is_begun_before_the_one_that_runs_is_read() {
    use harness::fake::Doing::{Begin, Draw, Read};
    let server = TestServer::working_ahead();
    server.control.close();
    let mut connection = server.connect();
    let body = chat(json!({"temperature": 0, "max_tokens": 4, "ignore_eos": true}));
    connection.send_json(CHAT, &body);
    server.control.wait_until_blocked();
    assert_eq!(
        server.control.doings(),
        [Begin, Draw, Begin, Draw],
        "nothing was read, and two steps were begun"
    );
    server.control.permit(1);
    server.control.wait_until_blocked();
    assert_eq!(server.control.doings()[4..], [Read, Begin, Draw]);
    server.control.open();
    let answer = connection.receive().json();
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    // The last token is known to be the last: four steps, not five.
    assert_eq!(server.control.doings()[7..], [Read, Begin, Draw, Read, Read]);
}

/// What a grammar allows is known when the token before it is: the rows are computed meanwhile, and drawn when its mask is there.
#[test]
fn rows_of_a_structured_answer_are_begun_before_its_last_token_is_read() {
    use harness::fake::Doing::{Begin, Draw, Read};
    for held in [
        json!({"structured_outputs": {"regex": "[a-z]{30,40}"}}),
        json!({"bad_words": ["the"]}),
        json!({"presence_penalty": 0.5}),
    ] {
        let server = TestServer::working_ahead();
        server.control.close();
        let mut connection = server.connect();
        let mut body = chat(json!({"temperature": 0, "max_tokens": 4, "ignore_eos": true}));
        body.as_object_mut().expect("fields").extend(held.as_object().expect("fields").clone());
        connection.send_json(CHAT, &body);
        server.control.wait_until_blocked();
        assert_eq!(server.control.doings(), [Begin, Draw, Begin], "{held}");
        for step in 1..3 {
            server.control.permit(1);
            server.control.wait_until_blocked();
            let doings = server.control.doings();
            assert_eq!(doings[3 * step..], [Read, Draw, Begin], "{held}");
        }
        server.control.open();
        let answer = connection.receive();
        assert_eq!(answer.json()["usage"]["completion_tokens"], 4, "{}", answer.text());
        assert_eq!(server.control.doings()[9..], [Read, Draw, Read], "{held}");
        server.wait_for_metric("vllm:num_requests_running", 0.0);
        assert_eq!(server.metric("perilune:steps_ahead_total", ""), 3.0);
    }
}

/// What a step says is told while the next one runs; what is said is the same.
#[test]
fn a_device_that_works_alone_says_the_same() {
    let [usual, alone] = [TestServer::start(), TestServer::working_alone()];
    let requests = [chat(json!({"n": 3, "logprobs": true, "seed": 5})), chat(json!({"temperature": 0}))];
    for request in &requests {
        let [usual, alone] = [&usual, &alone].map(|server| server.ask(CHAT, request)["choices"].clone());
        assert_eq!(alone, usual);
    }
}
