//! Adapters beside the model: chosen by name, loaded and unloaded by requests, in company and in batches.

use crate::harness;

use harness::adapters::{
    COMPLETIONS, LOAD, UNLOAD, change, completion, folders, load, names, setup, text, unload, write_seed,
};
use harness::batches::{Folder, line, with_limits};
use harness::client::Connection;
use harness::fake::REFUSED_SEED;
use harness::{MODEL, TestServer, wait_until};
use perilune::adapters::Root;
use perilune::error::ApiError;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

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
