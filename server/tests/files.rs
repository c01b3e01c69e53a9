//! `/v1/files`: what is taken in comes back, in pages, within limits; and nothing a client says becomes a path.

use crate::harness;

use harness::batches::{Folder, setup, with_limits};
use harness::{MODEL, TestServer};
use perilune::batch::store::BatchLimits;
use perilune::disk::files::FileLimits;
use serde_json::{Value, json};

fn error(response: &harness::client::Response) -> (u16, Value, Value) {
    let error = &response.json()["error"];
    (response.status, error["param"].clone(), error["code"].clone())
}

#[test]
fn a_file_comes_back_as_it_went_in() {
    let folder = Folder::new("round-trip");
    let server = TestServer::with(setup(&folder.0));
    // Over a chunk's border, with everything in it that a form is made of.
    let mut content = "--a-boundary\r\n\0é".repeat(100_000);
    content.push('\n');
    let file = server.upload(&content);
    let id = file["id"].as_str().expect("an id");
    assert!(id.starts_with("file-") && id.len() == 37, "{id}");
    assert_eq!((&file["object"], &file["bytes"]), (&json!("file"), &json!(content.len())));
    assert_eq!((&file["purpose"], &file["filename"]), (&json!("batch"), &json!("in.jsonl")));
    assert_eq!(server.get(&format!("/v1/files/{id}")).json(), file);
    let back = server.get(&format!("/v1/files/{id}/content"));
    assert!(back.text() == content, "the content is another");
    assert_eq!(back.header("x-content-type-options"), Some("nosniff"));
    let deleted = server.send("DELETE", &format!("/v1/files/{id}"), &[], b"");
    assert_eq!(deleted.json(), json!({"id": id, "object": "file", "deleted": true}));
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        assert_eq!(error(&server.get(&path)), (404, json!("id"), json!("not_found")));
    }
    assert_eq!(server.send("DELETE", &format!("/v1/files/{id}"), &[], b"").status, 404);
}

#[test]
fn lists_have_pages() {
    let folder = Folder::new("pages");
    let server = TestServer::with(setup(&folder.0));
    let ids: Vec<Value> = (0..5).map(|i| server.upload(&format!("{i}"))["id"].clone()).collect();
    let list = |query: &str| server.get(&format!("/v1/files{query}")).json();
    let of = |list: &Value| -> Vec<Value> {
        list["data"].as_array().expect("a list").iter().map(|file| file["id"].clone()).collect()
    };
    let newest: Vec<Value> = ids.iter().rev().cloned().collect();
    let all = list("");
    assert_eq!((of(&all), &all["has_more"]), (newest.clone(), &json!(false)));
    assert_eq!((&all["first_id"], &all["last_id"]), (&newest[0], &newest[4]));
    let first = list("?limit=2");
    assert_eq!((of(&first), &first["has_more"]), (newest[..2].to_vec(), &json!(true)));
    let after = newest[1].as_str().expect("an id");
    assert_eq!(of(&list(&format!("?limit=2&after={after}"))), newest[2..4]);
    assert_eq!(of(&list("?order=asc&limit=1")), ids[..1]);
    assert_eq!(of(&list("?purpose=batch_output")), [] as [Value; 0]);
    for (query, param) in [
        ("?limit=0", "limit"),
        ("?limit=10001", "limit"),
        ("?limit=x", "limit"),
        ("?order=up", "order"),
        ("?after=file-1", "after"),
    ] {
        let response = server.get(&format!("/v1/files{query}"));
        assert_eq!((response.status, &response.json()["error"]["param"]), (400, &json!(param)), "{query}");
    }
}

#[test]
fn uploads_that_are_refused() {
    let folder = Folder::new("refused");
    let files = FileLimits { file_len_max: 1000, total_len_max: 2500, num_files_max: 100 };
    let server = TestServer::with(with_limits(&folder.0, files, BatchLimits::default()));
    let file = ("file", Some("a"), &b"x"[..]);
    let purpose = ("purpose", None, &b"batch"[..]);
    let long = vec![b'x'; 1001];
    let expiry = |seconds: &'static [u8]| {
        [("expires_after[anchor]", None, &b"created_at"[..]), ("expires_after[seconds]", None, seconds)]
    };
    let [anchor, soon] = expiry(b"5");
    type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);
    let cases: &[(&[Part], u16, &str)] = &[
        (&[purpose], 400, "file"),
        (&[file], 400, "purpose"),
        (&[file, ("purpose", None, b"profit")], 400, "purpose"),
        (&[file, ("purpose", None, b"batch_output")], 400, "purpose"),
        (&[file, ("purpose", None, &long), file], 400, "file"),
        (&[file, file, purpose], 400, "file"),
        (&[file, purpose, anchor, soon], 400, "expires_after.seconds"),
        (&[file, purpose, ("response_format", None, b"x")], 400, "response_format"),
        (&[("file", Some("a"), &long), purpose], 413, ""),
    ];
    for (parts, status, param) in cases {
        let response = server.post_form(parts);
        let expected = if param.is_empty() { Value::Null } else { json!(param) };
        assert_eq!((response.status, &response.json()["error"]["param"]), (*status, &expected), "{parts:?}");
    }
    let json = server.post("/v1/files", &json!({}));
    assert_eq!(error(&json).0, 415);
    let torn = [("content-type", "multipart/form-data; boundary=x")];
    assert_eq!(server.send("POST", "/v1/files", &torn, b"--x\r\ncontent-disp").status, 400);
    let [anchor, fine] = expiry(b"3600");
    let kept = server.post_form(&[file, purpose, anchor, fine]).json();
    let time = |name: &str| kept[name].as_u64().expect("a time");
    assert_eq!(time("expires_at"), time("created_at") + 3600);
    // Names stay names, and what was refused took no room.
    let path = server.post_form(&[("file", Some("../../../tmp/name"), &long[..1000]), purpose]);
    assert_eq!(path.json()["filename"], "../../../tmp/name");
    assert_eq!(server.post_form(&[("file", Some("b"), &long[..1000]), purpose]).status, 200);
    let full = server.post_form(&[("file", Some("c"), &long[..1000]), purpose]);
    assert_eq!(error(&full), (400, Value::Null, json!("storage_limit_exceeded")));
    assert_eq!(std::fs::read_dir(folder.0.join("files")).expect("reads").count(), 6);
    for id in ["..", "%2e%2e", "..%2flock", "%2fetc%2fpasswd", "lock", MODEL] {
        assert_eq!(server.get(&format!("/v1/files/{id}/content")).status, 404, "{id}");
    }
}

#[test]
fn without_a_folder_the_routes_name_the_flag() {
    let server = TestServer::start();
    let all = [
        ("GET", "/v1/files"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files/file-1"),
        ("DELETE", "/v1/files/file-1"),
        ("GET", "/v1/files/file-1/content"),
        ("GET", "/v1/batches"),
        ("POST", "/v1/batches"),
        ("GET", "/v1/batches/batch_1"),
        ("POST", "/v1/batches/batch_1/cancel"),
    ];
    for (method, path) in all {
        let response = server.send(method, path, &[("content-type", "application/json")], b"{}");
        assert_eq!(error(&response), (501, Value::Null, json!("no_data_dir")), "{method} {path}");
        assert!(response.text().contains("--data-dir"));
    }
}
