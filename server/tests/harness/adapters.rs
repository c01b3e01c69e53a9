//! A server with adapters beside its model, as a client changes and uses them. An adapter of the fake model is a folder with a seed.

use super::batches::Folder;
use super::{Setup, TestServer};
use perilune::adapters::{AdapterModule, AdapterOptions, Root};
use serde_json::{Value, json};
use std::sync::atomic::Ordering::Relaxed;

pub const COMPLETIONS: &str = "/v1/completions";
pub const LOAD: &str = "/v1/load_lora_adapter";
pub const UNLOAD: &str = "/v1/unload_lora_adapter";

/// Folders `1`, `2`, … with an adapter of that seed each.
pub fn folders(name: &str) -> Folder {
    let folder = Folder::new(name);
    for seed in 1..=4 {
        write_seed(&folder, &seed.to_string(), &seed.to_string());
    }
    folder
}

pub fn write_seed(folder: &Folder, name: &str, seed: &str) {
    let path = folder.0.join(name);
    std::fs::create_dir_all(&path).expect("a folder");
    std::fs::write(path.join("seed"), seed).expect("a file");
}

pub fn setup(folder: &Folder, max_loras: usize, modules: &[(&str, &str)]) -> Setup {
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

pub fn load(server: &TestServer, name: &str, path: &str) -> (u16, String) {
    change(server, LOAD, json!({"lora_name": name, "lora_path": path}))
}

pub fn unload(server: &TestServer, name: &str) -> (u16, String) {
    change(server, UNLOAD, json!({"lora_name": name}))
}

pub fn change(server: &TestServer, path: &str, body: Value) -> (u16, String) {
    let response = server.post(path, &body);
    (response.status, response.text().to_owned())
}

pub fn completion(model: &str) -> Value {
    json!({"model": model, "prompt": "is it made of cheese", "max_tokens": 12, "temperature": 0, "ignore_eos": true})
}

pub fn text(server: &TestServer, model: &str) -> Value {
    server.ask(COMPLETIONS, &completion(model))["choices"][0]["text"].clone()
}

pub fn names(server: &TestServer) -> Vec<String> {
    let list = server.get("/v1/models").json();
    let data = list["data"].as_array().expect("a list");
    data.iter().map(|card| card["id"].as_str().expect("a name").to_owned()).collect()
}

pub fn working_ahead(setup: Setup) -> TestServer {
    let server = TestServer::with(setup);
    server.control.works_alone.store(true, Relaxed);
    server.control.takes_ahead.store(true, Relaxed);
    server
}
