//! DPO's implicit reward of answers, under a fake model and its adapters.

use crate::harness;

use harness::batches::Folder;
use harness::fake::IM_END;
use harness::{MODEL, Setup, TestServer};
use perilune::adapters::{AdapterModule, AdapterOptions};
use serde_json::{Value, json};

const REWARDS: &str = "/v1/rewards";
const COMPLETIONS: &str = "/v1/completions";
const ANSWERS: [&str; 3] = ["The moon is made of cheese.", "No: of rock.", "é"];

/// With the adapters `one` and `two`.
fn server(name: &str) -> (TestServer, Folder) {
    let folder = Folder::new(name);
    let module = |(name, seed): (&str, &str)| {
        let path = folder.0.join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        std::fs::write(path.join("seed"), seed).expect("a file");
        AdapterModule { name: name.into(), path, base_model_name: None }
    };
    let mut setup = Setup::default();
    let modules = [("one", "1"), ("two", "2")].map(module).to_vec();
    setup.options.adapters = AdapterOptions { max_loras: 2, max_cpu_loras: 2, modules, root: None };
    (TestServer::with(setup), folder)
}

fn with(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

/// The sum of the log-probabilities of the last tokens, as completions tell them.
fn sum(server: &TestServer, model: &str, prompt: &Value, answer: &Value) -> f64 {
    let tokens: Vec<Value> = list(prompt).iter().chain(list(answer)).cloned().collect();
    let body = json!({"model": model, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 0});
    let told = server.ask(COMPLETIONS, &body)["choices"][0]["prompt_logprobs"].clone();
    let own = list(&told).iter().zip(&tokens).skip(list(prompt).len());
    own.map(|(entry, token)| f64::from(number(&entry[token.to_string()]["logprob"]) as f32)).sum()
}

#[test]
fn a_reward_is_what_the_log_probabilities_of_prompts_say() {
    let (server, _folder) = server("rewards-sums");
    let messages = json!([{"role": "user", "content": "What is the moon made of?"}]);
    for (context, ends) in
        [(json!({"prompt": "What is the moon made of? "}), false), (json!({"messages": messages}), true)]
    {
        for (policy, reference) in [("one", MODEL), ("one", "two"), (MODEL, "two")] {
            let more = json!({"model": policy, "reference": reference, "completions": ANSWERS, "return_token_ids": true});
            let answer = server.ask(REWARDS, &with(&context, more));
            assert_eq!((&answer["model"], &answer["reference"]), (&json!(policy), &json!(reference)));
            assert_eq!((&answer["object"], &answer["beta"]), (&json!("list"), &json!(0.1)));
            let prompt = &answer["prompt_token_ids"];
            let data = list(&answer["data"]);
            let mut num_tokens = 0;
            for (index, (reward, text)) in data.iter().zip(ANSWERS).enumerate() {
                let mut tokens: Vec<u32> = text.bytes().map(u32::from).collect();
                tokens.extend(ends.then_some(IM_END));
                assert_eq!(reward["token_ids"], json!(tokens));
                assert_eq!((&reward["index"], &reward["num_tokens"]), (&json!(index), &json!(tokens.len())));
                let [logprob, reference_logprob] =
                    [policy, reference].map(|model| sum(&server, model, prompt, &reward["token_ids"]));
                assert_eq!(number(&reward["logprob"]), logprob);
                assert_eq!(number(&reward["reference_logprob"]), reference_logprob);
                assert_eq!(number(&reward["reward"]), 0.1 * (logprob - reference_logprob));
                assert_ne!(logprob, reference_logprob);
                num_tokens += 2 * (list(prompt).len() + tokens.len());
            }
            assert_eq!(answer["usage"]["prompt_tokens"], num_tokens);
            let margins = list(&answer["margins"]);
            for (margin, (chosen, rejected)) in margins.iter().zip([(0, 1), (0, 2), (1, 2)]) {
                assert_eq!((&margin["chosen"], &margin["rejected"]), (&json!(chosen), &json!(rejected)));
                let difference = number(&data[chosen]["reward"]) - number(&data[rejected]["reward"]);
                assert_eq!(number(&margin["margin"]), difference);
                let probability = 1.0 / (1.0 + (-difference).exp());
                assert!((number(&margin["probability"]) - probability).abs() < 1e-12);
            }
            assert_eq!(margins.len(), 3);
        }
    }
    // The prompt of messages is that of a chat.
    let render = server.ask("/v1/chat/completions/render", &json!({"messages": messages}));
    let told =
        server.ask(REWARDS, &json!({"messages": messages, "completions": ["a"], "return_token_ids": true}));
    assert_eq!(told["prompt_token_ids"], render["token_ids"]);
    assert_eq!(told["margins"], json!([]));
}

#[test]
fn a_pair_scales_with_beta_and_swaps_its_sign() {
    let (server, _folder) = server("rewards-pair");
    let pair = |chosen: &str, rejected: &str, beta: f64| {
        server.ask(
            REWARDS,
            &json!({"model": "one", "prompt": "Hm? ", "chosen": chosen, "rejected": rejected, "beta": beta}),
        )
    };
    let [a, b, _] = ANSWERS;
    let (one, swapped) = (pair(a, b, 0.5), pair(b, a, 0.5));
    assert_eq!(one["reference"], MODEL, "the base is the default");
    let margin = |answer: &Value| number(&answer["margins"][0]["margin"]);
    assert_eq!(margin(&one), -margin(&swapped));
    let probability = |answer: &Value| number(&answer["margins"][0]["probability"]);
    assert!((probability(&one) + probability(&swapped) - 1.0).abs() < 1e-12);
    let same =
        server.ask(REWARDS, &json!({"model": "one", "prompt": "Hm? ", "completions": [a, b], "beta": 0.5}));
    assert_eq!((&same["data"], &same["margins"]), (&one["data"], &one["margins"]));
    // Powers of two scale to the bit.
    for scale in [0.25, 1.0, 8.0] {
        let scaled = pair(a, b, scale);
        assert_eq!(margin(&scaled), margin(&one) * scale / 0.5);
        assert_eq!(scaled["data"][0]["logprob"], one["data"][0]["logprob"]);
    }
    // In company the same as alone, and as token ids as in texts.
    let messages = json!([{"role": "user", "content": "Hm?"}]);
    let ask = |answers: Value| {
        let answer =
            server.ask(REWARDS, &json!({"model": "two", "messages": messages, "completions": answers}));
        list(&answer["data"]).iter().map(|reward| reward["reward"].clone()).collect::<Vec<_>>()
    };
    let all = ask(json!(ANSWERS));
    for (text, reward) in ANSWERS.iter().zip(&all) {
        assert_eq!(ask(json!([text]))[0], *reward);
        assert_eq!(ask(json!([text.as_bytes()]))[0], *reward);
    }
}

#[test]
fn a_model_is_no_better_than_itself() {
    let (adapted, _folder) = server("rewards-same");
    let plain = TestServer::start();
    for (server, models) in [(&adapted, vec![MODEL, "alias", "one"]), (&plain, vec![MODEL, "alias"])] {
        for model in models {
            let reference = if model == "alias" { MODEL } else { model };
            let body =
                json!({"model": model, "reference": reference, "prompt": "Hm? ", "completions": ANSWERS});
            let answer = server.ask(REWARDS, &body);
            for reward in list(&answer["data"]) {
                assert_eq!(number(&reward["reward"]), 0.0);
                assert!(number(&reward["logprob"]) < 0.0);
                assert_eq!(reward["logprob"], reward["reference_logprob"]);
            }
            for margin in list(&answer["margins"]) {
                assert_eq!((number(&margin["margin"]), number(&margin["probability"])), (0.0, 0.5));
            }
            // And reads nothing twice.
            let num_tokens: usize = ANSWERS.iter().map(|answer| 4 + answer.len()).sum();
            assert_eq!(answer["usage"]["prompt_tokens"], num_tokens);
        }
    }
}

#[test]
fn the_token_that_ends_an_answer() {
    let server = TestServer::start();
    let messages = json!([{"role": "user", "content": "Hm?"}]);
    let tokens = |context: Value, more: Value| {
        let body = with(&context, json!({"completions": ["a", "a<|im_end|>", ""], "return_token_ids": true}));
        let answer = server.ask(REWARDS, &with(&body, more));
        list(&answer["data"]).iter().map(|reward| reward["token_ids"].clone()).collect::<Vec<_>>()
    };
    let (chat, text) = (json!({"messages": messages}), json!({"prompt": "Hm?"}));
    let ended = [json!([97, IM_END]), json!([97, IM_END]), json!([IM_END])];
    assert_eq!(tokens(chat.clone(), json!({})), ended);
    assert_eq!(tokens(text.clone(), json!({"add_end_token": true})), ended);
    for (context, more) in [(chat, json!({"add_end_token": false})), (text, json!({}))] {
        let body = with(&context, json!({"completions": ["a", "a<|im_end|>"], "return_token_ids": true}));
        let answer = server.ask(REWARDS, &with(&body, more.clone()));
        assert_eq!(answer["data"][0]["token_ids"], json!([97]));
        assert_eq!(answer["data"][1]["token_ids"], json!([97, IM_END]));
        let empty = server.post(REWARDS, &with(&with(&context, json!({"completions": ["a", ""]})), more));
        assert_eq!((empty.status, &empty.json()["error"]["param"]), (400, &json!("completions[1]")));
    }
}

#[test]
fn mistakes_name_their_field() {
    let server = TestServer::start();
    let sound = json!({"prompt": "Hm?", "completions": ["a", "b"]});
    server.ask(REWARDS, &sound);
    let messages = json!([{"role": "user", "content": "Hm?"}]);
    let many = vec!["a"; 129];
    for (more, status, param) in [
        (json!({"prompt": null}), 400, "prompt"),
        (json!({"prompt": []}), 400, "prompt"),
        (json!({"prompt": ""}), 400, "prompt"),
        (json!({"prompt": [1, 999_999]}), 400, "prompt"),
        (json!({"prompt": "a<|image|>"}), 400, "prompt"),
        (json!({"prompt": 7}), 400, "prompt"),
        (json!({"messages": messages}), 400, "prompt"),
        (json!({"prompt": null, "messages": []}), 400, "messages"),
        (
            json!({"prompt": null, "messages": messages, "add_special_tokens": true}),
            400,
            "add_special_tokens",
        ),
        (json!({"tools": []}), 400, "tools"),
        (json!({"chat_template_kwargs": {}}), 400, "chat_template_kwargs"),
        (json!({"completions": null}), 400, "completions"),
        (json!({"completions": []}), 400, "completions"),
        (json!({"completions": many}), 400, "completions"),
        (json!({"completions": ["a", 7]}), 400, "completions[1]"),
        (json!({"completions": ["a", [999_999]]}), 400, "completions[1]"),
        (json!({"completions": ["a".repeat(2000)]}), 400, "completions"),
        (json!({"chosen": "a"}), 400, "chosen"),
        (json!({"rejected": "a"}), 400, "rejected"),
        (json!({"completions": null, "chosen": "a"}), 400, "rejected"),
        (json!({"completions": null, "rejected": "a"}), 400, "chosen"),
        (json!({"completions": null, "chosen": "a", "rejected": ""}), 400, "rejected"),
        (json!({"completions": null, "chosen": [999_999], "rejected": "a"}), 400, "chosen"),
        (json!({"beta": 0}), 400, "beta"),
        (json!({"beta": -0.1}), 400, "beta"),
        (json!({"beta": "much"}), 400, "beta"),
        (json!({"model": "none"}), 404, "model"),
        (json!({"reference": "none"}), 404, "reference"),
    ] {
        let response = server.post(REWARDS, &with(&sound, more.clone()));
        assert_eq!(response.status, status, "{more}: {}", response.text());
        assert_eq!(response.json()["error"]["param"], param, "{more}: {}", response.text());
    }
    // No field is dropped in silence.
    let response = server.post(REWARDS, &with(&sound, json!({"user": "me"})));
    assert_eq!((response.status, response.header("x-ignored-params")), (200, Some("user")));
}
