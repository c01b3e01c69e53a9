//! The API's own document: it says what the code does, and it is what OpenAPI 3.1 calls a document.

use crate::harness;

use harness::batches::{Folder, line, setup};
use harness::{MODEL, TestServer};
use perilune::adapters::Root;
use perilune::router::route_table;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The parts of OpenAPI 3.1 that the document uses; a member that the standard does not have is an error.
mod standard {
    #![allow(dead_code, reason = "members are read to see that they are as the standard has them")]

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub struct Document {
        pub openapi: String,
        pub json_schema_dialect: String,
        pub info: Info,
        pub paths: BTreeMap<String, PathItem>,
        pub components: Components,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Info {
        pub title: String,
        pub version: String,
        pub description: String,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct PathItem {
        #[serde(rename = "$ref")]
        pub reference: Option<String>,
        pub get: Option<Operation>,
        pub post: Option<Operation>,
        pub delete: Option<Operation>,
        pub put: Option<Operation>,
        pub patch: Option<Operation>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub struct Operation {
        pub operation_id: String,
        pub summary: Option<String>,
        #[serde(default)]
        pub parameters: Vec<Parameter>,
        pub request_body: Option<RequestBody>,
        pub responses: BTreeMap<String, Response>,
        pub security: Vec<BTreeMap<String, Vec<String>>>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Parameter {
        pub name: String,
        pub r#in: String,
        pub description: Option<String>,
        pub required: bool,
        pub schema: Value,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct RequestBody {
        pub content: BTreeMap<String, MediaType>,
        pub required: Option<bool>,
    }

    #[derive(Deserialize)]
    #[serde(untagged, deny_unknown_fields)]
    pub enum Response {
        Reference {
            #[serde(rename = "$ref")]
            reference: String,
        },
        Inline {
            description: String,
            #[serde(default)]
            content: BTreeMap<String, MediaType>,
        },
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct MediaType {
        pub schema: Value,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub struct Components {
        pub schemas: BTreeMap<String, Value>,
        pub responses: BTreeMap<String, Response>,
        pub security_schemes: BTreeMap<String, Value>,
    }
}

/// Of the routes that are served.
fn document() -> Value {
    perilune::openapi::document(&route_table())
}

fn parsed() -> standard::Document {
    serde_json::from_value(document()).expect("an OpenAPI document")
}

/// Every schema of the document, with the place where it is.
fn schemas(document: &Value) -> Vec<(String, &Value)> {
    fn walk<'a>(place: String, value: &'a Value, out: &mut Vec<(String, &'a Value)>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let place = format!("{place}/{key}");
                    match key.as_str() {
                        "schema" => out.push((place, value)),
                        _ => walk(place, value, out),
                    }
                }
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(i, item)| walk(format!("{place}/{i}"), item, out));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk("paths".into(), &document["paths"], &mut found);
    walk("responses".into(), &document["components"]["responses"], &mut found);
    let named = document["components"]["schemas"].as_object().expect("schemas");
    found.extend(named.iter().map(|(name, schema)| (name.clone(), schema)));
    found
}

#[test]
fn it_is_an_openapi_document() {
    let text = document();
    let document = parsed();
    assert_eq!(document.openapi, "3.1.0");
    let mut ids = BTreeSet::new();
    for (path, item) in &document.paths {
        assert!(path.starts_with('/'), "{path}");
        let operations = [&item.get, &item.post, &item.delete, &item.put, &item.patch].into_iter().flatten();
        let operations: Vec<_> = operations.collect();
        assert_ne!(item.reference.is_some(), !operations.is_empty(), "{path}: a reference or operations");
        for operation in operations {
            assert!(ids.insert(operation.operation_id.clone()), "twice: {}", operation.operation_id);
            assert!(operation.responses.contains_key("200"), "{path}");
            let of_path = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
            let declared = operation.parameters.iter().filter(|parameter| parameter.r#in == "path");
            let declared: Vec<&str> = declared.map(|parameter| parameter.name.as_str()).collect();
            assert_eq!(declared, of_path.collect::<Vec<_>>(), "{path}");
            assert!(operation.parameters.iter().all(|p| p.required == (p.r#in == "path")), "{path}");
            for name in operation.security.iter().flat_map(BTreeMap::keys) {
                assert!(document.components.security_schemes.contains_key(name), "{path}: {name}");
            }
        }
    }
    for (place, schema) in schemas(&text) {
        if let Err(error) = jsonschema::meta::validate(schema) {
            panic!("{place} is not a JSON schema: {error}");
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(value: &Value, document: &Value, count: &mut usize) {
        match value {
            Value::Object(map) => {
                if let Some(target) = map.get("$ref") {
                    let target = target.as_str().expect("a string");
                    let pointer = target.strip_prefix('#').expect("inside the document");
                    assert!(document.pointer(pointer).is_some(), "{target}");
                    *count += 1;
                }
                map.values().for_each(|value| walk(value, document, count));
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, document, count)),
            _ => {}
        }
    }
    let document = document();
    let mut count = 0;
    walk(&document, &document, &mut count);
    assert!(count > 10, "{count} references");
}

#[test]
fn every_route_is_in_it() {
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    for route in route_table() {
        let path = route.path.replace("{*", "{");
        let mut item = &paths[&path];
        if let Some(target) = item["$ref"].as_str() {
            item = document.pointer(target.trim_start_matches('#')).expect("resolves");
        }
        assert!(item[route.method.to_lowercase()].is_object(), "{} {path}", route.method);
    }
    let routes: BTreeSet<String> = route_table().iter().map(|route| route.path.replace("{*", "{")).collect();
    assert_eq!(routes, paths.keys().cloned().collect::<BTreeSet<_>>());
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// The requests that the sources declare: names and fields, from the text of each `request_fields!`.
fn declared() -> Vec<(String, Vec<String>)> {
    let mut paths = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut paths);
    let mut found = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a source");
        for block in text.split("\nrequest_fields! {").skip(1) {
            let block = block.split("\n}").next().expect("an end");
            let lines = block.lines().map(str::trim).filter(|line| !line.starts_with("//"));
            let mut name = None;
            let mut fields = Vec::new();
            for line in lines {
                if let Some(rest) = line.strip_prefix("pub struct ") {
                    name = rest.split([' ', '{']).next().map(str::to_owned);
                } else if let Some((field, _)) = line.split_once(": ").filter(|_| !line.starts_with("#[")) {
                    fields.push(field.to_owned());
                }
            }
            found.push((name.unwrap_or_else(|| panic!("no name in {}", path.display())), fields));
        }
    }
    found
}

#[test]
fn every_field_that_is_parsed_is_in_it() {
    let document = document();
    let declared = declared();
    assert!(declared.len() >= 5, "{declared:?}");
    for (name, fields) in declared {
        let schema = &document["components"]["schemas"][&name];
        assert!(schema.is_object(), "{name} is in no operation: add it to server/src/openapi/operations.rs");
        assert!(!fields.is_empty(), "{name}");
        for field in fields {
            assert!(schema["properties"][&field].is_object(), "{name}.{field}");
        }
    }
}

/// Whether `value` is what the document says that an operation gives.
fn check(operation: &str, value: &Value) {
    let document = document();
    let (method, path) = operation.split_once(' ').expect("METHOD path");
    let schema = &document["paths"][path][method.to_lowercase()]["responses"]["200"]["content"]["application/json"]
        ["schema"];
    conforms(&document, schema, operation, value);
}

fn conforms(document: &Value, schema: &Value, name: &str, value: &Value) {
    assert!(schema.is_object(), "{name} has no schema");
    let mut whole = Map::new();
    whole.insert("components".into(), document["components"].clone());
    whole.extend(schema.as_object().expect("an object").clone());
    let whole = Value::Object(whole);
    let validator = jsonschema::validator_for(&whole).expect("a schema");
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{name}: {errors:?}\n{value}");
}

#[test]
fn answers_are_what_it_says() {
    let folder = Folder::new("openapi-answers");
    let mut setup = setup(&folder.0);
    setup.options.limits.tokenizer_info = true;
    let server = TestServer::with(setup);
    let chat = json!({
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "n": 2, "logprobs": true, "top_logprobs": 2,
        "return_token_ids": true, "timings": true,
    });
    check("POST /v1/chat/completions", &server.ask("/v1/chat/completions", &chat));
    let completion = json!({"prompt": ["a", "b"], "max_tokens": 4, "logprobs": 2, "timings": true});
    check("POST /v1/completions", &server.ask("/v1/completions", &completion));
    let message = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    check("POST /v1/messages", &server.ask("/v1/messages", &message));
    check("POST /v1/messages/count_tokens", &server.ask("/v1/messages/count_tokens", &message));
    let asked = json!({
        "input": "hi", "max_output_tokens": 4, "include": ["message.output_text.logprobs"], "top_logprobs": 2,
        "tools": [{"type": "function", "name": "f", "parameters": {}}], "tool_choice": "none",
    });
    let response = server.ask("/v1/responses", &asked);
    check("POST /v1/responses", &response);
    check("POST /v1/responses/input_tokens", &server.ask("/v1/responses/input_tokens", &asked));
    let path = format!("/v1/responses/{}", response["id"].as_str().expect("an id"));
    check("GET /v1/responses/{id}", &server.get(&path).json());
    check("GET /v1/responses/{id}/input_items", &server.get(&format!("{path}/input_items")).json());
    check("DELETE /v1/responses/{id}", &server.delete(&path).json());
    let begun =
        server.ask("/v1/responses", &json!({"input": "hi", "max_output_tokens": 4, "background": true}));
    check("POST /v1/responses", &begun);
    let path = format!("/v1/responses/{}/cancel", begun["id"].as_str().expect("an id"));
    check("POST /v1/responses/{id}/cancel", &server.ask(&path, &json!({})));
    check("POST /tokenize", &server.ask("/tokenize", &json!({"prompt": "a", "return_token_strs": true})));
    check("POST /v1/chat/completions/render", &server.ask("/v1/chat/completions/render", &chat));
    check(
        "POST /v1/completions/render",
        &server.ask("/v1/completions/render", &json!({"prompt": ["a", "b"]})),
    );
    let rewards = json!({"prompt": "a", "chosen": "b", "rejected": "c", "return_token_ids": true});
    check("POST /v1/rewards", &server.ask("/v1/rewards", &rewards));
    check("POST /detokenize", &server.ask("/detokenize", &json!({"tokens": [1]})));
    for path in ["/v1/models", "/version", "/tokenizer_info"] {
        check(&format!("GET {path}"), &server.get(path).json());
    }
    let file = server.upload(&line("a", json!({"prompt": "a"})));
    check("POST /v1/files", &file);
    check("GET /v1/files", &server.get("/v1/files").json());
    let request =
        json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
    let batch = server.ask("/v1/batches", &request);
    check("POST /v1/batches", &batch);
    let ended = server.wait_for_status(batch["id"].as_str().expect("an id"), "completed");
    check("GET /v1/batches/{id}", &ended);
    let failed = server.wait_for_status(&server.batch("x", "24h"), "failed");
    check("GET /v1/batches/{id}", &failed);
    check("GET /v1/batches", &server.get("/v1/batches").json());
    let id = file["id"].as_str().expect("an id");
    check("DELETE /v1/files/{id}", &server.send("DELETE", &format!("/v1/files/{id}"), &[], b"").json());
    check("GET /v1/models/{id}", &server.get(&format!("/v1/models/{MODEL}")).json());
    let document = document();
    let error = &document["components"]["responses"]["Error"]["content"]["application/json"]["schema"];
    for path in ["/v1/chat/completions", "/v1/completions"] {
        conforms(&document, error, "error", &server.post(path, &json!({})).json());
    }
}

#[test]
fn what_it_says_is_required_is() {
    let folder = Folder::new("openapi-required");
    let mut setup = setup(&folder.0);
    // Routes that are off ask for nothing.
    setup.options.adapters.root = Some(Root::open(&folder.0).expect("a folder"));
    let server = TestServer::with(setup);
    let document = document();
    let mut count = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        let schema = &item["post"]["requestBody"]["content"]["application/json"]["schema"];
        let required =
            schema["allOf"].as_array().into_iter().flatten().filter_map(|part| part["required"].as_array());
        let Some(first) = required.flatten().next() else { continue };
        let response = server.post(path, &json!({}));
        let error = response.json()["error"].clone();
        // Anthropic's errors name a field in words.
        let names_it = match error.get("param") {
            Some(param) => param == first,
            None => error["message"].to_string().contains(&format!("`{}`", first.as_str().expect("a name"))),
        };
        assert!(response.status == 400 && names_it, "{path}: {error}");
        count += 1;
    }
    assert!(count >= 5, "{count} routes");
}

#[test]
fn both_forms_are_served() {
    let server = TestServer::start();
    let response = server.get("/openapi.json");
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    assert_eq!(response.json(), document());
    let page = server.get("/docs");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let text = page.text();
    for outside in ["<script", "http://", "https://", "src=", "@import", "url("] {
        assert!(!text.contains(outside), "the page has {outside}");
    }
    for (path, _) in document()["paths"].as_object().expect("paths") {
        assert!(text.contains(&format!("{path}</code>")), "the page lacks {path}");
    }
    for name in ["temperature", "stop_token_ids", "max_completion_tokens", "prompt_tokens_details"] {
        assert!(text.contains(&format!("<code>{name}</code>")), "the page lacks {name}");
    }
    for target in text.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(text.contains(&format!("id=\"{target}\"")), "a link to {target}, which is not there");
    }
}
