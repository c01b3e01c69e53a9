//! Files and batches as a client uses them.

use super::client::Response;
use super::{PATIENCE, Setup, TestServer};
use perilune::batch::store::{BatchLimits, Store};
use perilune::disk::files::FileLimits;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A data folder of one test, gone when it is dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("perilune-data-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn setup(folder: &Path) -> Setup {
    with_limits(folder, FileLimits::default(), BatchLimits::default())
}

pub fn with_limits(folder: &Path, files: FileLimits, batches: BatchLimits) -> Setup {
    let mut setup = Setup::default();
    setup.options.store = Some(Arc::new(Store::open(folder, files, batches).expect("a data folder")));
    setup
}

/// A line of a batch of completions.
pub fn line(custom_id: &str, body: Value) -> String {
    json!({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}).to_string()
        + "\n"
}

const BOUNDARY: &str = "a-boundary";

/// A form: names, file names, contents.
pub fn form(parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, filename, content) in parts {
        let filename = filename.map_or(String::new(), |filename| format!("; filename=\"{filename}\""));
        let head =
            format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{filename}\r\n\r\n");
        body.extend(head.into_bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").into_bytes());
    body
}

impl TestServer {
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut connection = self.connect();
        connection.send(method, path, headers, body);
        connection.receive()
    }

    pub fn post_form(&self, parts: &[(&str, Option<&str>, &[u8])]) -> Response {
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        self.send("POST", "/v1/files", &[("content-type", &kind)], &form(parts))
    }

    pub fn upload(&self, content: &str) -> Value {
        let parts = [("purpose", None, &b"batch"[..]), ("file", Some("in.jsonl"), content.as_bytes())];
        let response = self.post_form(&parts);
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    /// Uploads lines and makes a batch of them; returns its id.
    pub fn batch(&self, lines: &str, window: &str) -> String {
        let file = self.upload(lines);
        let request =
            json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": window});
        self.ask("/v1/batches", &request)["id"].as_str().expect("an id").to_owned()
    }

    pub fn batch_object(&self, id: &str) -> Value {
        let response = self.get(&format!("/v1/batches/{id}"));
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    /// Waits until `is_reached` holds of the batch.
    pub fn wait_for_batch(&self, id: &str, is_reached: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let batch = self.batch_object(id);
            if is_reached(&batch) {
                return batch;
            }
            assert!(start.elapsed() < PATIENCE, "{batch}");
            std::thread::yield_now();
        }
    }

    pub fn wait_for_status(&self, id: &str, status: &str) -> Value {
        self.wait_for_batch(id, |batch| batch["status"] == status)
    }

    /// The lines of a file that a batch made; none where it made none.
    pub fn results(&self, file: &Value) -> Vec<Value> {
        let Some(id) = file.as_str() else { return Vec::new() };
        let response = self.get(&format!("/v1/files/{id}/content"));
        assert_eq!(response.status, 200);
        response.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}
