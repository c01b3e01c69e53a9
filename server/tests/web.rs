//! What web pages may do with a server: by which names they may call it, and which of them may read its answers.

use crate::harness;

use harness::client::Response;
use harness::{Setup, TestServer};
use perilune::auth::ApiKeys;
use perilune::web::{Origins, WebPolicy};
use serde_json::json;

const CHAT: &str = "/v1/chat/completions";

fn server(web: WebPolicy) -> TestServer {
    let mut setup = Setup::default();
    setup.options.web = web;
    TestServer::with(setup)
}

fn send(server: &TestServer, line: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let mut connection = server.connect();
    let mut request = format!("{line} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    connection.write(format!("{request}\r\n{body}").as_bytes());
    connection.receive()
}

fn code(response: &Response) -> (u16, String) {
    (response.status, response.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

/// An attacker's page whose name was moved to 127.0.0.1 is told apart by that name.
#[test]
fn a_name_that_is_not_the_servers_is_refused() {
    let server = server(WebPolicy { hosts: Some(vec!["chat.example.org".into()]), ..WebPolicy::default() });
    for host in ["evil.example:8000", "127.0.0.1.evil.example", "\u{e9}"] {
        for line in ["GET /v1/models", "GET /health", "GET /", "POST /v1/chat/completions", "GET /nowhere"] {
            assert_eq!(code(&send(&server, line, &[("host", host)], "")), (403, "host_not_allowed".into()));
        }
    }
    // The target of a request to a proxy counts as well.
    let response = send(&server, "GET http://evil.example/v1/models", &[("host", "localhost")], "");
    assert_eq!(code(&response), (403, "host_not_allowed".into()));
    let response = send(&server, "POST /v1/messages", &[("host", "evil.example")], "{}");
    assert_eq!(response.json()["error"]["type"], "permission_error");
    let message = response.json()["error"]["message"].to_string();
    assert!(message.contains("--allowed-hosts evil.example"), "{message}");
    for host in ["localhost:1", "127.0.0.1:8000", "[::1]:8000", "chat.example.org", "host.docker.internal"] {
        assert_eq!(send(&server, "GET /v1/models", &[("host", host)], "").status, 200, "{host}");
    }
    assert_eq!(send(&server, "GET /v1/models", &[], "").status, 200, "only browsers must say a name");
}

#[test]
fn without_a_list_any_name_will_do() {
    let server = TestServer::start();
    assert_eq!(send(&server, "GET /v1/models", &[("host", "evil.example")], "").status, 200);
}

/// What needs no permission from the server, such as a form with a file, is refused when the browser says that it comes from elsewhere.
#[test]
fn forms_from_elsewhere_are_refused() {
    let server = server(WebPolicy {
        origins: Origins::Listed(vec!["https://chat.example.org".into()]),
        ..WebPolicy::default()
    });
    let form = |site: &str, origin: &str| {
        let headers = [
            ("host", "localhost"),
            ("content-type", "multipart/form-data; boundary=x"),
            ("sec-fetch-site", site),
            ("origin", origin),
        ];
        code(&send(&server, "POST /v1/files", &headers, "--x--"))
    };
    assert_eq!(form("cross-site", "https://evil.example"), (403, "origin_not_allowed".into()));
    assert_eq!(form("cross-site", "https://chat.example.org").0, 501, "there is no folder for files");
    assert_eq!(form("same-origin", "http://localhost").0, 501);
    let cancel = [("host", "localhost"), ("sec-fetch-site", "cross-site")];
    assert_eq!(code(&send(&server, "POST /v1/responses/x/cancel", &cancel, "")).0, 403);
    assert_eq!(send(&server, "GET /v1/models", &cancel, "").status, 200, "a page cannot read it");
}

#[test]
fn pages_need_a_permission() {
    let ask = |server: &TestServer, origin: &str| {
        let headers = [
            ("host", "localhost"),
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, content-type, x-stainless-os"),
        ];
        send(server, &format!("OPTIONS {CHAT}"), &headers, "")
    };
    let closed = TestServer::start();
    let response = ask(&closed, "https://chat.example.org");
    assert_eq!(response.status, 405);
    assert_eq!(response.header("access-control-allow-origin"), None);
    assert_eq!(response.header("vary"), None);

    let listed = Origins::Listed(vec!["https://chat.example.org".into()]);
    for (origins, allow) in [(listed, "https://chat.example.org"), (Origins::Any, "*")] {
        let mut setup = Setup::default();
        setup.options.web = WebPolicy { origins: origins.clone(), ..WebPolicy::default() };
        setup.options.keys = ApiKeys::new(&["secret"]);
        let server = TestServer::with(setup);
        // The question has no key.
        let response = ask(&server, "https://chat.example.org");
        assert_eq!(response.status, 204);
        assert_eq!(response.header("access-control-allow-origin"), Some(allow));
        assert_eq!(
            response.header("access-control-allow-headers"),
            Some("authorization, content-type, x-stainless-os")
        );
        assert!(
            response.header("access-control-allow-methods").is_some_and(|methods| methods.contains("POST"))
        );
        // Answers can be read, errors too.
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).to_string();
        for (key, status) in [("Bearer secret", 200), ("Bearer wrong", 401)] {
            let headers = [
                ("host", "localhost"),
                ("origin", "https://chat.example.org"),
                ("content-type", "application/json"),
                ("authorization", key),
            ];
            let response = send(&server, &format!("POST {CHAT}"), &headers, &body);
            assert_eq!(response.status, status);
            assert_eq!(response.header("access-control-allow-origin"), Some(allow));
            assert!(
                response
                    .header("access-control-expose-headers")
                    .is_some_and(|names| names.contains("x-request-id"))
            );
        }
        if origins != Origins::Any {
            let response = ask(&server, "https://evil.example");
            assert_eq!((response.status, response.header("access-control-allow-origin")), (405, None));
            assert_eq!(response.header("vary"), Some("origin"), "or a cache would mix them up");
        }
    }
}
