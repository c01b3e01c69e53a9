//! Adapters beside the model: chosen by name, loaded and unloaded while requests run.

use crate::harness;

use harness::batches::{Folder, line, with_limits};
use harness::client::Connection;
use harness::fake::REFUSED_SEED;
use harness::{MODEL, Setup, TestServer, wait_until};
use perilune::adapters::{AdapterModule, AdapterOptions, Root};
use perilune::error::ApiError;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

/// Folders `1`, `2`, … with an adapter of that seed each.
fn folders(name: &str) -> Folder {
    let folder = Folder::new(name);
    for seed in 1..=4 {
        write_seed(&folder, &seed.to_string(), &seed.to_string());
    }
    folder
}

fn write_seed(folder: &Folder, name: &str, seed: &str) {
    let path = folder.0.join(name);
    std::fs::create_dir_all(&path).expect("a folder");
    std::fs::write(path.join("seed"), seed).expect("a file");
}

fn setup(folder: &Folder, max_loras: usize, modules: &[(&str, &str)]) -> Setup {
    let mut setup = Setup::default();
    let module = |&(name, path): &(&str, &str)| AdapterModule {
        name: name.into(),
        path: folder.0.join(path),
        base_model_name: None,
    };
    setup.options.adapters = AdapterOptions {
        max_loras,
        max_cpu_loras: max_loras,
        modules: modules.iter().map(module).collect(),
        root: Some(Root::open(&folder.0).expect("a folder")),
    };
    setup
}

fn load(server: &TestServer, name: &str, path: &str) -> (u16, String) {
    change(server, LOAD, json!({"lora_name": name, "lora_path": path}))
}

fn unload(server: &TestServer, name: &str) -> (u16, String) {
    change(server, UNLOAD, json!({"lora_name": name}))
}

fn change(server: &TestServer, path: &str, body: Value) -> (u16, String) {
    let response = server.post(path, &body);
    (response.status, response.text().to_owned())
}

fn completion(model: &str) -> Value {
    json!({"model": model, "prompt": "is it made of cheese", "max_tokens": 12, "temperature": 0, "ignore_eos": true})
}

fn text(server: &TestServer, model: &str) -> Value {
    server.ask(COMPLETIONS, &completion(model))["choices"][0]["text"].clone()
}

fn names(server: &TestServer) -> Vec<String> {
    let list = server.get("/v1/models").json();
    let data = list["data"].as_array().expect("a list");
    data.iter().map(|card| card["id"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_model_is_the_base_or_an_adapter_by_its_name() {
    let folder = folders("adapters-by-name");
    let server = TestServer::with(setup(&folder, 2, &[("one", "1"), ("two", "2")]));
    assert_eq!(names(&server), [MODEL, "alias", "one", "two"]);
    let card = server.get("/v1/models/two").json();
    assert_eq!(card["root"], folder.0.join("2").display().to_string());
    assert_eq!(
        (&card["id"], &card["parent"], &card["object"]),
        (&json!("two"), &json!(MODEL), &json!("model"))
    );
    assert_eq!(server.get(&format!("/v1/models/{MODEL}")).json()["parent"], Value::Null);
    let texts = [MODEL, "one", "two"].map(|model| text(&server, model));
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2], "{texts:?}");
    // In every dialect, with the name that was asked for.
    let messages = json!([{"role": "user", "content": "hello"}]);
    let fingerprints = ["one", "two", "alias"].map(|model| {
        let chat = json!({"model": model, "messages": messages, "max_tokens": 4});
        let answer = server.ask(CHAT, &chat);
        assert_eq!(answer["model"], model);
        let events = server.stream(CHAT, &chat);
        assert!(events.iter().all(|event| event["model"] == model));
        for (path, body) in [
            ("/v1/messages", chat.clone()),
            ("/v1/responses", json!({"model": model, "input": "hello", "max_output_tokens": 4})),
            ("/v1/embeddings", json!({"model": model, "input": "hello"})),
            ("/v1/score", json!({"model": model, "text_1": "a", "text_2": "b"})),
            ("/v1/rerank", json!({"model": model, "query": "a", "documents": ["b"]})),
        ] {
            assert_eq!(server.ask(path, &body)["model"], model, "{path}");
        }
        for path in ["/tokenize", "/v1/completions/render"] {
            server.ask(path, &json!({"model": model, "prompt": "hello"}));
        }
        answer["system_fingerprint"].clone()
    });
    assert!(fingerprints[0] != fingerprints[1] && fingerprints[1] != fingerprints[2]);
    let vector = |model: &str| {
        server.ask("/v1/embeddings", &json!({"model": model, "input": "hello"}))["data"].clone()
    };
    assert!(vector("one") != vector("two") && vector("one") != vector(MODEL));
    for (path, body) in [
        (COMPLETIONS, completion("three")),
        (CHAT, json!({"model": "three", "messages": messages})),
        ("/v1/embeddings", json!({"model": "three", "input": "hello"})),
        ("/v1/score", json!({"model": "three", "text_1": "a", "text_2": "b"})),
    ] {
        let response = server.post(path, &body);
        assert_eq!((response.status, &response.json()["error"]["code"]), (404, &json!("model_not_found")));
    }
    assert_eq!(server.get("/v1/models/three").status, 404);
}

#[test]
fn company_and_caches_do_not_mix_adapters() {
    let folder = folders("adapters-company");
    let server = TestServer::with(setup(&folder, 2, &[("one", "1"), ("two", "2")]));
    let models = [MODEL, "one", "two"];
    let alone = models.map(|model| text(&server, model));
    server.control.close();
    let mut connections: Vec<(usize, Connection)> = (0..12)
        .map(|index| {
            let mut connection = server.connect();
            let mut body = completion(models[index % 3]);
            body["n"] = (1 + index / 6).into();
            connection.send_json(COMPLETIONS, &body);
            (index, connection)
        })
        .collect();
    server.control.wait_until_blocked();
    server.control.open();
    for (index, connection) in &mut connections {
        let answer = connection.receive().json();
        for choice in answer["choices"].as_array().expect("choices") {
            assert_eq!(choice["text"], alone[*index % 3], "request {index}");
        }
    }
    // Found in the cache, and found to be another's.
    assert_eq!(models.map(|model| text(&server, model)), alone);
}

#[test]
fn loaded_and_unloaded_at_run_time() {
    let folder = folders("adapters-run-time");
    write_seed(&folder, "refused", &REFUSED_SEED.to_string());
    write_seed(&folder, "broken", "no number");
    std::fs::create_dir_all(folder.0.join("empty")).expect("a folder");
    let server = TestServer::with(setup(&folder, 2, &[]));
    let (status, message) = load(&server, "one", "1");
    assert_eq!((status, message.as_str()), (200, "Success: LoRA adapter 'one' added successfully."));
    let whole = folder.0.join("2").canonicalize().expect("there").display().to_string();
    assert_eq!(load(&server, "two", &whole).0, 200);
    assert_eq!(names(&server), [MODEL, "alias", "one", "two"]);
    let first = text(&server, "one");
    let error = |(status, text): (u16, String)| {
        let error = serde_json::from_str::<Value>(&text).expect("JSON")["error"].clone();
        (status, error["param"].clone(), error["message"].as_str().expect("a message").to_owned())
    };
    let (status, param, message) = error(load(&server, "one", "2"));
    assert_eq!((status, param), (400, json!("lora_name")));
    assert!(message.contains("has already been loaded"), "{message}");
    // All slots are taken.
    let (status, _, message) = error(load(&server, "three", "3"));
    assert_eq!(status, 409);
    assert!(message.contains("--max-loras"), "{message}");
    let (status, message) = unload(&server, "two");
    assert_eq!((status, message.as_str()), (200, "Success: LoRA adapter 'two' removed successfully."));
    assert_eq!(server.post(COMPLETIONS, &completion("two")).status, 404);
    let (status, param, message) = error(unload(&server, "two"));
    assert_eq!((status, param), (404, json!("lora_name")));
    assert!(message.contains("cannot be found"), "{message}");
    // A slot that a failure took would be missing in the end.
    for _ in 0..3 {
        for (path, status, part) in [
            ("none", 404, "No adapter found for 'none'"),
            ("../..", 404, "No adapter found for '../..'"),
            ("empty", 400, "seed"),
            ("broken", 400, "seed"),
            ("refused", 400, "no room"),
        ] {
            let (found, param, message) = error(load(&server, "bad", path));
            assert_eq!((found, param), (status, json!("lora_path")), "{path}");
            assert!(message.contains(part), "{message}");
        }
    }
    for (body, param) in [
        (json!({"lora_path": "1"}), "lora_name"),
        (json!({"lora_name": "three"}), "lora_path"),
        (json!({"lora_name": "", "lora_path": "1"}), "lora_name"),
        (json!({"lora_name": "three", "lora_path": ""}), "lora_path"),
        (json!({"lora_name": MODEL, "lora_path": "1"}), "lora_name"),
        (json!({"lora_name": "alias", "lora_path": "1"}), "lora_name"),
        (json!({"lora_name": "a,b", "lora_path": "1"}), "lora_name"),
        (json!({"lora_name": "a\nb", "lora_path": "1"}), "lora_name"),
        (json!({"lora_name": "a".repeat(257), "lora_path": "1"}), "lora_name"),
        (json!({"lora_name": 7, "lora_path": "1"}), "lora_name"),
        (json!({"lora_name": "three", "lora_path": "1", "load_inplace": "yes"}), "load_inplace"),
    ] {
        let (status, found, _) = error(change(&server, LOAD, body));
        assert_eq!((status, found), (400, json!(param)));
    }
    assert_eq!(error(change(&server, UNLOAD, json!({}))).0, 400);
    assert_eq!(
        change(&server, LOAD, json!({"lora_name": "three", "lora_path": "3", "base_model_name": "b"})).0,
        200
    );
    assert_eq!(server.get("/v1/models/three").json()["parent"], "b");
    // The same name and folder again is the same model again.
    assert_eq!((unload(&server, "one").0, load(&server, "one", "1").0), (200, 200));
    assert_eq!(text(&server, "one"), first);
}

#[test]
fn what_is_off_says_so() {
    let off = TestServer::start();
    let folder = folders("adapters-off");
    let mut fixed = setup(&folder, 1, &[("one", "1")]);
    fixed.options.adapters.root = None;
    let fixed = TestServer::with(fixed);
    for server in [&off, &fixed] {
        for path in [LOAD, UNLOAD] {
            let response = server.post(path, &json!({"lora_name": "one", "lora_path": "1"}));
            assert_eq!(response.status, 404);
            assert!(response.text().contains("--enable-runtime-lora-updating"), "{}", response.text());
        }
    }
    assert_eq!(names(&fixed), [MODEL, "alias", "one"]);
    assert_eq!(names(&off), [MODEL, "alias"]);
    assert!(!off.get("/metrics").text().contains("lora_requests_info"));
}

#[test]
fn running_requests_end_before_their_adapter_goes() {
    for server in [TestServer::with as fn(Setup) -> TestServer, working_ahead] {
        let folder = folders("adapters-running");
        let server = server(setup(&folder, 1, &[("one", "1")]));
        let before = text(&server, "one");
        server.control.close();
        let mut running = server.connect();
        running.send_json(COMPLETIONS, &completion("one"));
        server.control.wait_until_blocked();
        let mut unloading = server.connect();
        unloading.send_json(UNLOAD, &json!({"lora_name": "one"}));
        wait_until("the name is gone", || !names(&server).contains(&"one".to_owned()));
        assert_eq!(server.post(COMPLETIONS, &completion("one")).status, 404);
        // Its place is not free yet, and neither is that of a name that comes again.
        assert_eq!((load(&server, "two", "2").0, load(&server, "one", "1").0), (409, 409));
        server.control.open();
        assert_eq!(running.receive().json()["choices"][0]["text"], before);
        assert_eq!(unloading.receive().status, 200);
        assert_eq!(load(&server, "one", "1").0, 200);
        assert_eq!(text(&server, "one"), before);
    }
}

fn working_ahead(setup: Setup) -> TestServer {
    let server = TestServer::with(setup);
    server.control.works_alone.store(true, Relaxed);
    server.control.takes_ahead.store(true, Relaxed);
    server
}

#[test]
fn an_adapter_whose_clients_hang_up_goes_and_the_rest_goes_on() {
    let folder = folders("adapters-hang-up");
    let server = working_ahead(setup(&folder, 1, &[("one", "1")]));
    let base = text(&server, MODEL);
    server.control.close();
    let mut stays = server.connect();
    stays.send_json(COMPLETIONS, &completion(MODEL));
    let mut leaves = server.connect();
    leaves.send_json(COMPLETIONS, &completion("one"));
    server.control.wait_until_blocked();
    let mut unloading = server.connect();
    unloading.send_json(UNLOAD, &json!({"lora_name": "one"}));
    wait_until("the name is gone", || !names(&server).contains(&"one".to_owned()));
    drop(leaves);
    // Nor does a change end with its client.
    drop(unloading);
    server.control.open();
    assert_eq!(stays.receive().json()["choices"][0]["text"], base);
    wait_until("there is room", || load(&server, "two", "2").0 == 200);
}

#[test]
fn in_place() {
    let folder = folders("adapters-in-place");
    for max_loras in [1, 2] {
        let server = TestServer::with(setup(&folder, max_loras, &[("it", "1")]));
        let old = text(&server, "it");
        let replace = json!({"lora_name": "it", "lora_path": "2", "load_inplace": true});
        // What cannot be read changes nothing.
        let broken = json!({"lora_name": "it", "lora_path": "none", "load_inplace": true});
        assert_eq!(change(&server, LOAD, broken).0, 404);
        assert_eq!(text(&server, "it"), old);
        server.control.close();
        let mut running = server.connect();
        running.send_json(COMPLETIONS, &completion("it"));
        server.control.wait_until_blocked();
        let mut loading = server.connect();
        loading.send_json(LOAD, &replace);
        server.control.open();
        assert_eq!(running.receive().json()["choices"][0]["text"], old);
        let response = loading.receive();
        assert_eq!(response.status, 200, "{}", response.text());
        let new = text(&server, "it");
        assert_ne!(new, old);
        assert_eq!(names(&server), [MODEL, "alias", "it"]);
        assert_eq!(
            server.get("/v1/models/it").json()["root"],
            folder.0.join("2").canonicalize().expect("there").display().to_string()
        );
        // A name that is free is loaded as any other.
        assert_eq!(unload(&server, "it").0, 200);
        assert_eq!(change(&server, LOAD, replace).0, 200);
        assert_eq!(text(&server, "it"), new);
    }
}

#[test]
fn reading_holds_up_nobody() {
    let folder = folders("adapters-reading");
    let server = TestServer::with(setup(&folder, 2, &[]));
    server.control.hold_images(true);
    let mut loading = server.connect();
    loading.send_json(LOAD, &json!({"lora_name": "one", "lora_path": "1"}));
    server.control.wait_for_images(1);
    assert!(text(&server, MODEL).is_string());
    // The name is taken, and not there.
    assert_eq!(load(&server, "one", "2").0, 409);
    assert_eq!((unload(&server, "one").0, server.post(COMPLETIONS, &completion("one")).status), (404, 404));
    server.control.hold_images(false);
    assert_eq!(loading.receive().status, 200);
    assert!(text(&server, "one").is_string());
}

#[test]
fn metrics_name_those_that_wait_and_run() {
    let folder = folders("adapters-metrics");
    let server = TestServer::with(setup(&folder, 3, &[("one", "1"), ("two", "2")]));
    let series = || {
        let text = server.get("/metrics").text().to_owned();
        let lines = text.lines().filter(|line| line.starts_with("vllm:lora_requests_info{"));
        lines.map(|line| line[..line.rfind(' ').expect("a value")].to_owned()).collect::<Vec<_>>()
    };
    let expected = |waiting: &str, running: &str| {
        vec![format!(
            "vllm:lora_requests_info{{engine=\"0\",max_lora=\"3\",model_name=\"{MODEL}\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"{waiting}\"}}"
        )]
    };
    assert_eq!(series(), expected("", ""));
    server.control.close();
    let mut first = server.connect();
    first.send_json(COMPLETIONS, &completion("two"));
    server.control.wait_until_blocked();
    assert_eq!(series(), expected("two", ""));
    server.control.permit(1);
    wait_until("the first runs", || series() == expected("", "two"));
    server.control.wait_until_blocked();
    let mut second = server.connect();
    second.send_json(COMPLETIONS, &completion("one"));
    // It is seen between two steps.
    server.wait_for_pending(1);
    server.control.permit(1);
    wait_until("the second waits", || series() == expected("one", "two"));
    server.control.permit(1);
    wait_until("both run", || series() == expected("", "one,two"));
    server.control.open();
    assert_eq!((first.receive().status, second.receive().status), (200, 200));
    wait_until("nobody is left", || series() == expected("", ""));
    let value = server.metric("vllm:lora_requests_info", "");
    assert!(value > 1.6e9, "{value} is a time");
}

#[test]
fn everything_at_once() {
    const ROUNDS: usize = 25;
    let folder = folders("adapters-race");
    let server = TestServer::with(setup(&folder, 2, &[]));
    // What each adapter says, and the base.
    let said = ["1", "2", "3"].map(|path| {
        assert_eq!(load(&server, path, path).0, 200);
        let said = text(&server, path);
        assert_eq!(unload(&server, path).0, 200);
        said
    });
    let base = text(&server, MODEL);
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for changer in 0..3 {
            let (server, answered) = (&server, &answered);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let name = ["1", "2", "3"][(changer + round) % 3];
                    let in_place = round % 4 == 3;
                    let body = json!({"lora_name": name, "lora_path": name, "load_inplace": in_place});
                    let (status, message) = change(server, LOAD, body);
                    assert!([200, 400, 409].contains(&status), "{message}");
                    if status == 200 {
                        answered.fetch_add(1, Relaxed);
                    }
                    let (status, message) = unload(server, name);
                    assert!([200, 404].contains(&status), "{message}");
                }
            });
        }
        for asker in 0..3 {
            let (server, said, base) = (&server, &said, &base);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let index = (asker + round) % 4;
                    let Some(expected) = said.get(index) else {
                        assert_eq!(text(server, MODEL), *base);
                        continue;
                    };
                    let response = server.post(COMPLETIONS, &completion(["1", "2", "3"][index]));
                    match response.status {
                        200 => assert_eq!(response.json()["choices"][0]["text"], *expected),
                        status => assert_eq!(status, 404, "{}", response.text()),
                    }
                }
            });
        }
    });
    assert!(answered.into_inner() > 0);
    // Nothing is left over: neither a name nor a slot.
    assert_eq!(names(&server), [MODEL, "alias"]);
    for name in ["1", "2"] {
        assert_eq!(load(&server, name, name).0, 200);
    }
    assert_eq!([text(&server, "1"), text(&server, "2")], said[..2]);
}

/// Three adapters and one place.
fn crowded(folder: &Folder) -> Setup {
    let mut setup = setup(folder, 1, &[("one", "1"), ("two", "2"), ("three", "3")]);
    setup.options.adapters.max_cpu_loras = 3;
    setup
}

const THREE: [&str; 3] = ["one", "two", "three"];

#[test]
fn more_adapters_than_places() {
    let folder = folders("adapters-crowded");
    let roomy = TestServer::with(setup(&folder, 3, &[("one", "1"), ("two", "2"), ("three", "3")]));
    let said = THREE.map(|name| text(&roomy, name));
    for server in [TestServer::with as fn(Setup) -> TestServer, working_ahead] {
        let server = server(crowded(&folder));
        assert_eq!(names(&server), [MODEL, "alias", "one", "two", "three"]);
        let base = text(&server, MODEL);
        // Each makes room for the next.
        for _ in 0..2 {
            assert_eq!(THREE.map(|name| text(&server, name)), said);
        }
        let moved = server.metric("perilune:adapters_moved_in_total", "");
        assert_eq!(moved, 5.0, "the first had its place from the start");
        // And all at once, with the base: nobody is lost.
        server.control.close();
        let mut connections: Vec<(usize, Connection)> = (0..16)
            .map(|index| {
                let mut connection = server.connect();
                let mut body = completion([MODEL, "one", "two", "three"][index % 4]);
                body["n"] = (1 + index / 8).into();
                connection.send_json(COMPLETIONS, &body);
                (index, connection)
            })
            .collect();
        server.control.wait_until_blocked();
        server.control.open();
        for (index, connection) in &mut connections {
            let expected = if *index % 4 == 0 { &base } else { &said[*index % 4 - 1] };
            let answer = connection.receive().json();
            let choices = answer["choices"].as_array().expect("choices");
            assert!(choices.iter().all(|choice| choice["text"] == *expected), "request {index}: {answer}");
        }
        assert_eq!(server.metric("perilune:adapter_waiting_sequences", ""), 0.0);
        // All that there may be are loaded.
        assert_eq!(load(&server, "four", "4").0, 409);
        assert_eq!((unload(&server, "two").0, load(&server, "four", "4").0), (200, 200));
        assert_eq!([text(&server, "four"), text(&server, "one")][1], said[0]);
        assert_eq!(server.post(COMPLETIONS, &completion("two")).status, 404);
    }
}

#[test]
fn requests_that_wait_for_a_place() {
    let folder = folders("adapters-parked");
    let mut server = working_ahead(crowded(&folder));
    let said = THREE.map(|name| text(&server, name));
    server.control.close();
    let ask = |model: &str| {
        let mut connection = server.connect();
        connection.send_json(COMPLETIONS, &completion(model));
        connection
    };
    let parked = || server.metric("perilune:adapter_waiting_sequences", "");
    // Longer than it takes until the others are seen.
    let mut running = server.connect();
    let mut long = completion("three");
    long["max_tokens"] = 800.into();
    running.send_json(COMPLETIONS, &long);
    server.control.wait_until_blocked();
    let (mut first, leaves, mut last) = (ask("one"), ask("two"), ask("two"));
    // They are seen between two steps.
    let until = |count: f64| {
        wait_until("they are parked", || {
            server.control.permit(1);
            parked() == count
        });
    };
    until(3.0);
    let mut unloading = server.connect();
    unloading.send_json(UNLOAD, &json!({"lora_name": "one"}));
    wait_until("the name is gone", || !names(&server).contains(&"one".to_owned()));
    drop(leaves);
    server.control.open();
    let long = running.receive().json()["choices"][0]["text"].as_str().expect("a text").to_owned();
    assert!(long.starts_with(said[2].as_str().expect("a text")), "{long}");
    // One that was unloaded meanwhile is moved in for those that asked before.
    assert_eq!(first.receive().json()["choices"][0]["text"], said[0]);
    assert_eq!(last.receive().json()["choices"][0]["text"], said[1]);
    assert_eq!(unloading.receive().status, 200);
    wait_until("nobody is parked", || parked() == 0.0);
    // Who waits when the server goes down is told.
    server.control.close();
    let mut running = ask("three");
    server.control.wait_until_blocked();
    let mut waiting = ask("two");
    let drained = server.stop_at_once();
    server.control.open();
    for connection in [&mut running, &mut waiting] {
        assert!([200, 503].contains(&connection.receive().status));
    }
    server.runtime.block_on(drained).expect("no panic");
}

#[test]
fn the_server_goes_down_in_the_middle_of_a_change() {
    let folder = folders("adapters-down");
    let mut server = TestServer::with(setup(&folder, 2, &[("one", "1")]));
    server.control.close();
    let mut running = server.connect();
    running.send_json(COMPLETIONS, &completion("one"));
    server.control.wait_until_blocked();
    let mut unloading = server.connect();
    unloading.send_json(UNLOAD, &json!({"lora_name": "one"}));
    wait_until("the name is gone", || !names(&server).contains(&"one".to_owned()));
    let drained = server.stop_at_once();
    server.control.open();
    // In order or cut off, but nobody is left waiting.
    assert!([200, 503].contains(&running.receive().status));
    assert!([200, 503].contains(&unloading.receive().status));
    server.runtime.block_on(drained).expect("no panic");
}

#[test]
fn lines_of_a_batch_name_adapters() {
    let folder = folders("adapters-batch");
    let data = Folder::new("adapters-batch-data");
    let adapters = setup(&folder, 1, &[("one", "1")]).options.adapters;
    let mut setup = with_limits(&data.0, Default::default(), Default::default());
    setup.options.adapters = adapters;
    let server = TestServer::with(setup);
    let lines = [line("a", completion("one")), line("b", completion(MODEL)), line("c", completion("gone"))];
    let id = server.batch(&lines.concat(), "24h");
    let object = server.wait_for_status(&id, "completed");
    let results = server.results(&object["output_file_id"]);
    for (custom_id, model) in [("a", "one"), ("b", MODEL)] {
        let result = results.iter().find(|result| result["custom_id"] == custom_id).expect("a result");
        let body = &result["response"]["body"];
        assert_eq!((&body["model"], &body["choices"][0]["text"]), (&json!(model), &text(&server, model)));
    }
    let errors = server.results(&object["error_file_id"]);
    assert_eq!(errors[0]["response"]["status_code"], 404);
}

#[test]
fn requests_name_folders_inside_the_root_and_nothing_else() {
    let folder = Folder::new("adapters-root");
    let base = &folder.0;
    for folder in ["root/a/b", "outside", "root-too"] {
        std::fs::create_dir_all(base.join(folder)).expect("a folder");
    }
    std::fs::write(base.join("root/file"), b"").expect("a file");
    std::os::unix::fs::symlink(base.join("outside"), base.join("root/out")).expect("a link");
    std::os::unix::fs::symlink(base.join("root/a"), base.join("root/in")).expect("a link");
    let root = Root::open(&base.join("root")).expect("a folder");
    let whole = root.path().join("a").display().to_string();
    for (path, inside) in [("a", "a"), ("a/b", "a/b"), ("in", "a"), ("a/../a/b/..", "a"), (&whole, "a")] {
        assert_eq!(root.folder(path), Ok(root.path().join(inside)), "{path}");
    }
    let outside = root.path().parent().expect("one above").join("outside").display().to_string();
    for path in ["out", "../outside", "../root-too", "..", "/", "/etc", &outside, "file", "none", "a\0"] {
        let Err(ApiError::AdapterNotFound { param, message }) = root.folder(path) else {
            panic!("{path} is taken");
        };
        assert_eq!(param, "lora_path");
        assert_eq!(message, format!("No adapter found for '{path}': it is not a folder inside --lora-root"));
    }
    assert!(Root::open(&base.join("none")).is_err());
    assert!(Root::open(&base.join("root/file")).is_err());
}
