//! Fetching from the hub, against a stand-in on loopback that breaks, lies and redirects.

use crate::support;

use models::ModelFiles;
use perilune::source::{FoundModel, HubSettings, Needed, SourceError, find};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::hub::{Answer, Asked, StandIn};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A folder that is gone with its value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("perilune-hub-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn settings(cache: &Folder, endpoint: &str) -> HubSettings {
    HubSettings {
        cache: cache.0.clone(),
        endpoint: endpoint.to_string(),
        token: None,
        offline: false,
        retry_pause: Duration::ZERO,
    }
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files of `org/model`: shards are stored elsewhere, under their hash, as on the hub.
#[derive(Clone)]
struct Repository {
    files: BTreeMap<String, Vec<u8>>,
}

impl Repository {
    fn new() -> Self {
        let weights =
            |seed: u32, len: u32| (0..len).map(|i| (i * 31 + seed * 7 + i / 256) as u8).collect::<Vec<u8>>();
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
        let files = [
            ("config.json", b"{\"a\": 1}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("model.safetensors.index.json", index.as_bytes().to_vec()),
            ("model-1.safetensors", weights(1, 300_001)),
            ("model-2.safetensors", weights(2, 77)),
            ("pytorch_model.bin", b"not ours".to_vec()),
            ("README.md", b"not ours".to_vec()),
        ];
        Self { files: files.into_iter().map(|(name, content)| (name.to_string(), content)).collect() }
    }

    fn listing(&self) -> Answer {
        let siblings: Vec<_> =
            self.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        Answer::json(&serde_json::json!({ "sha": COMMIT, "siblings": siblings }))
    }

    fn answer(&self, asked: &Asked) -> Answer {
        if asked.path == "/api/models/org/model/revision/main" {
            return self.listing();
        }
        if let Some(name) = asked.path.strip_prefix("/store/") {
            return Answer::range(&self.files[name], asked.range());
        }
        let prefix = format!("/org/model/resolve/{COMMIT}/");
        let Some(name) = asked.path.strip_prefix(&prefix) else { return Answer::status(404) };
        let Some(content) = self.files.get(name) else { return Answer::status(404) };
        if name.ends_with(".safetensors") {
            return Answer::status(302)
                .header("Location", &format!("/store/{name}"))
                .header("X-Linked-Etag", &format!("\"{}\"", sha256(content)))
                .header("X-Linked-Size", &content.len().to_string());
        }
        Answer::range(content, asked.range()).header("ETag", &format!("\"etag-{name}\""))
    }

    fn serve(&self) -> StandIn {
        let repository = self.clone();
        StandIn::start(move |asked| repository.answer(asked))
    }

    fn assert_fetched(&self, found: &FoundModel) {
        for name in ["config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors"] {
            let content =
                found.files.read(name).expect("readable").unwrap_or_else(|| panic!("{name} is there"));
            assert!(content == self.files[name], "{name}");
        }
        for name in ["pytorch_model.bin", "README.md"] {
            assert_eq!(found.files.read(name).expect("readable"), None, "{name} is not needed");
        }
    }
}

fn find_main(settings: &HubSettings) -> Result<FoundModel, SourceError> {
    find(Some("org/model"), Needed::All, settings)
}

fn error_of(result: Result<FoundModel, SourceError>) -> String {
    result.expect_err("refused").to_string()
}

#[test]
fn fetches_into_the_cache_layout_and_then_finds_it_offline() {
    let (cache, repository) = (Folder::new("layout"), Repository::new());
    let hub = repository.serve();
    let online = settings(&cache, &hub.url());
    let found = find_main(&online).expect("fetched");
    repository.assert_fetched(&found);
    assert_eq!((found.name.as_str(), found.commit.as_deref()), ("org/model", Some(COMMIT)));

    let folder = cache.0.join("models--org--model");
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).expect("ref"), COMMIT);
    let link = std::fs::read_link(folder.join("snapshots").join(COMMIT).join("model-2.safetensors"))
        .expect("a link");
    assert_eq!(link, Path::new("../../blobs").join(sha256(&repository.files["model-2.safetensors"])));
    let blobs: Vec<_> = std::fs::read_dir(folder.join("blobs"))
        .expect("blobs")
        .map(|b| b.expect("entry").file_name())
        .collect();
    assert_eq!(blobs.len(), 5, "{blobs:?}");

    // Again: one question for the commit, nothing is read.
    let before = hub.asked().len();
    find_main(&online).expect("found");
    assert_eq!(hub.asked().len(), before + 1);
    // A commit needs no question; the cache's folder is a model too.
    let pinned = find(Some(&format!("org/model@{COMMIT}")), Needed::All, &online).expect("found");
    repository.assert_fetched(&pinned);
    repository.assert_fetched(&find(folder.to_str(), Needed::All, &online).expect("found"));
    assert_eq!(hub.asked().len(), before + 1);

    let offline = HubSettings { offline: true, ..online.clone() };
    repository.assert_fetched(&find_main(&offline).expect("found"));
    assert!(error_of(find(Some("org/other"), Needed::All, &offline)).contains("HF_HUB_OFFLINE is set"));
    assert_eq!(hub.asked().len(), before + 1);
    // A hub that is away is no trouble for what is cached.
    let away = settings(&cache, "http://127.0.0.1:1");
    repository.assert_fetched(&find_main(&away).expect("found"));
    assert!(error_of(find(Some("org/other"), Needed::All, &away)).contains("failed to reach"));
    std::fs::remove_file(folder.join("snapshots").join(COMMIT).join("model-2.safetensors")).expect("removed");
    assert!(error_of(find_main(&offline)).contains("lacks model-2.safetensors"));
}

#[test]
fn weights_are_left_where_nobody_needs_them() {
    let (cache, hub) = (Folder::new("dummy"), Repository::new().serve());
    let found =
        find(Some("org/model"), Needed::WithoutWeights, &settings(&cache, &hub.url())).expect("fetched");
    assert!(found.files.read("config.json").expect("readable").is_some());
    assert_eq!(found.files.read("model-2.safetensors").expect("readable"), None);
}

#[test]
fn a_break_in_the_middle_is_resumed() {
    let (cache, repository) = (Folder::new("break"), Repository::new());
    let served = repository.clone();
    let hub = StandIn::start(move |asked| match asked.path.as_str() {
        "/store/model-1.safetensors" => served.answer(asked).broken_after(70_000),
        _ => served.answer(asked),
    });
    repository.assert_fetched(&find_main(&settings(&cache, &hub.url())).expect("fetched"));
    let starts: Vec<usize> = hub
        .asked()
        .iter()
        .filter(|asked| asked.method == "GET" && asked.path == "/store/model-1.safetensors")
        .map(|asked| asked.range().unwrap_or(0))
        .collect();
    assert_eq!(starts, [0, 70_000, 140_000, 210_000, 280_000]);
}

#[test]
fn the_next_process_goes_on_where_this_one_stopped() {
    let (cache, repository) = (Folder::new("resume"), Repository::new());
    let content = &repository.files["model-1.safetensors"];
    let partial = cache.0.join("models--org--model/blobs").join(format!("{}.incomplete", sha256(content)));
    std::fs::create_dir_all(partial.parent().expect("parent")).expect("a folder");
    std::fs::write(&partial, &content[..123_456]).expect("written");
    let hub = repository.serve();
    repository.assert_fetched(&find_main(&settings(&cache, &hub.url())).expect("fetched"));
    let asked = hub.asked();
    let store =
        asked.iter().find(|asked| asked.method == "GET" && asked.path == "/store/model-1.safetensors");
    assert_eq!(store.expect("asked").range(), Some(123_456));
    assert!(!partial.exists());
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (cache, repository) = (Folder::new("noranges"), Repository::new());
    let content = &repository.files["model-1.safetensors"];
    let partial = cache.0.join("models--org--model/blobs").join(format!("{}.incomplete", sha256(content)));
    std::fs::create_dir_all(partial.parent().expect("parent")).expect("a folder");
    std::fs::write(&partial, &content[..1000]).expect("written");
    let served = repository.clone();
    let hub = StandIn::start(move |asked| match asked.path.strip_prefix("/store/") {
        Some(name) => Answer::range(&served.files[name], None),
        None => served.answer(asked),
    });
    repository.assert_fetched(&find_main(&settings(&cache, &hub.url())).expect("fetched"));
}

#[test]
fn wrong_content_is_refused_and_thrown_away() {
    let repository = Repository::new();
    let refuse = |name: &str, change: fn(&mut Vec<u8>), expected: &str| {
        let cache = Folder::new(name);
        let served = repository.clone();
        let hub = StandIn::start(move |asked| match asked.path.strip_prefix("/store/") {
            Some(name) => {
                let mut content = served.files[name].clone();
                change(&mut content);
                Answer::range(&content, asked.range())
            }
            None => served.answer(asked),
        });
        let error = error_of(find_main(&settings(&cache, &hub.url())));
        assert!(error.contains(expected), "{error}");
        let folder = cache.0.join("models--org--model");
        assert!(!folder.join("snapshots").join(COMMIT).join("model-1.safetensors").exists());
        assert!(!folder.join("refs/main").exists());
    };
    refuse("hash", |content| content[5] ^= 1, "does not have the announced SHA-256");
    refuse("short", |content| content.truncate(60), "60 bytes came, the hub announced 300001");
    refuse("long", |content| content.push(0), "300002 bytes came, the hub announced 300001");
}

#[test]
fn the_hubs_refusals_are_told_apart() {
    for (status, expected) in [
        (401, "needs a token"),
        (403, "is gated"),
        (404, "org/model does not exist on http://127.0.0.1"),
        (500, "hub answered 500"),
    ] {
        let cache = Folder::new(&format!("status{status}"));
        let hub = StandIn::start(move |_| Answer::status(status));
        let error = error_of(find_main(&settings(&cache, &hub.url())));
        assert!(error.contains(expected), "{error}");
    }
    for (body, expected) in [("{", "makes no sense"), ("{\"sha\": \"../..\"}", "names no commit")] {
        let cache = Folder::new("nonsense");
        let hub = StandIn::start(move |_| Answer::body(body.as_bytes()));
        assert!(error_of(find_main(&settings(&cache, &hub.url()))).contains(expected));
    }
    let cache = Folder::new("loop");
    let hub = StandIn::start(|asked| Answer::status(302).header("Location", &asked.path));
    assert!(error_of(find_main(&settings(&cache, &hub.url()))).contains("redirects without end"));
}

#[test]
fn names_from_the_hub_stay_inside_the_cache() {
    let (cache, mut repository) = (Folder::new("names"), Repository::new());
    for name in
        ["../../evil.json", "/etc/evil.safetensors", "a/../config.json", "..", "chat_template.jinja/x"]
    {
        repository.files.insert(name.to_string(), b"evil".to_vec());
    }
    let hub = repository.serve();
    repository.assert_fetched(&find_main(&settings(&cache, &hub.url())).expect("fetched"));
    assert!(hub.asked().iter().all(|asked| !asked.path.contains("evil")));

    for shard in ["../../../evil.safetensors", "/tmp/evil.safetensors", "evil.bin", ".safetensors"] {
        let cache = Folder::new("shards");
        let mut repository = Repository::new();
        let index = serde_json::json!({ "weight_map": { "a": shard } }).to_string();
        repository.files.insert("model.safetensors.index.json".to_string(), index.into_bytes());
        repository.files.insert(shard.to_string(), b"evil".to_vec());
        let hub = repository.serve();
        let error = error_of(find_main(&settings(&cache, &hub.url())));
        assert!(error.contains("is not a file name that could be used"), "{error}");
    }
    let cache = Folder::new("etag");
    let repository = Repository::new();
    let hub = StandIn::start(move |asked| match asked.path.ends_with("config.json") {
        true => Answer::body(b"{}").header("ETag", "\"../../evil\""),
        false => repository.answer(asked),
    });
    assert!(error_of(find_main(&settings(&cache, &hub.url()))).contains("no usable etag"));
}

#[test]
fn the_token_goes_to_the_endpoint_and_nowhere_else() {
    let (cache, repository) = (Folder::new("token"), Repository::new());
    let served = repository.clone();
    let store = StandIn::start(move |asked| served.answer(asked));
    let (served, elsewhere) = (repository.clone(), store.url());
    let hub = StandIn::start(move |asked| {
        let mut answer = served.answer(asked);
        if let Some(path) = answer.location() {
            answer = answer.header("Location", &format!("{elsewhere}{path}"));
        }
        answer
    });
    let with_token = HubSettings { token: Some("secret".to_string()), ..settings(&cache, &hub.url()) };
    repository.assert_fetched(&find_main(&with_token).expect("fetched"));
    assert!(hub.asked().iter().all(|asked| asked.header("authorization") == Some("Bearer secret")));
    let asked = store.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| asked.header("authorization").is_none()));
}

#[test]
fn missing_files_and_wrong_models_are_named() {
    let check = |file: &str| {
        let (cache, mut repository) = (Folder::new("missing"), Repository::new());
        repository.files.remove(file);
        let hub = repository.serve();
        let error = error_of(find_main(&settings(&cache, &hub.url())));
        assert_eq!(error, format!("org/model has no {file}"));
    };
    check("config.json");
    check("model-2.safetensors");

    let cache = Folder::new("local");
    let local = settings(&cache, "http://127.0.0.1:1");
    let find = |model: &str| error_of(find(Some(model), Needed::All, &local));
    assert!(find("no-such-folder").contains("there is no directory no-such-folder, and it is no hub name"));
    assert!(find("/no/such/folder").contains("there is no directory /no/such/folder"));
    // The name of a file is not asked for at the hub.
    assert_eq!(find("models/none.gguf"), "there is no file models/none.gguf");
    assert!(find(cache.0.to_str().expect("UTF-8")).contains("has no config.json"));
    let file = cache.0.join("model.safetensors");
    std::fs::write(&file, "x").expect("written");
    assert!(find(file.to_str().expect("UTF-8")).contains("is a file"));
    std::fs::write(cache.0.join("config.json"), "{}").expect("written");
    let found = perilune::source::find(cache.0.to_str(), Needed::All, &local).expect("found");
    assert!(matches!(found.files, ModelFiles::Directory(path) if path == cache.0));
}

#[test]
fn two_processes_at_once_fetch_each_file_once() {
    let (cache, repository) = (Folder::new("twice"), Repository::new());
    let hub = Arc::new(repository.serve());
    let settings = settings(&cache, &hub.url());
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| results.lock().expect("whole").push(find_main(&settings)));
        }
    });
    for found in results.into_inner().expect("whole") {
        repository.assert_fetched(&found.expect("fetched"));
    }
    let stored =
        hub.asked().iter().filter(|asked| asked.method == "GET" && asked.path.starts_with("/store/")).count();
    assert_eq!(stored, 2);
}
