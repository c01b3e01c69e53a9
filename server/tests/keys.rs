//! With keys configured, every route but the probes, the metrics and the page asks for one; the list of routes is the router's own.

use crate::harness;

use harness::{Setup, TestServer};
use perilune::auth::ApiKeys;
use perilune::route::Access;
use perilune::router::route_table;

fn guarded() -> TestServer {
    let mut setup = Setup::default();
    setup.options.keys = ApiKeys::new(&["first-key", "second-key"]);
    TestServer::with(setup)
}

fn status(server: &TestServer, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
    let mut connection = server.connect();
    let mut all = vec![("content-type", "application/json")];
    all.extend(headers);
    connection.send(method, path, &all, b"{}");
    let response = connection.receive();
    if response.status == 401 {
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        let error = &response.json()["error"];
        if path.contains("/messages") {
            assert_eq!(error["type"], "authentication_error");
        } else {
            assert_eq!(error["code"], "invalid_api_key");
        }
        assert!(!response.text().contains("first-key"));
    }
    response.status
}

#[test]
fn every_route() {
    let server = guarded();
    let open = [
        "/health",
        "/ping",
        "/load",
        "/livez",
        "/live",
        "/readyz",
        "/ready",
        "/version",
        "/metrics",
        "/openapi.json",
        "/docs",
    ];
    for route in route_table() {
        let path = route.path.replace("{*id}", harness::MODEL);
        let is_page = path == "/" || path.starts_with("/page/");
        let is_open = is_page || open.contains(&path.strip_prefix("/v1").unwrap_or(&path));
        assert_eq!(route.access == Access::Open, is_open, "{path}");
        for headers in [
            &[][..],
            &[("authorization", "Bearer wrong")],
            &[("authorization", "")],
            &[("authorization", "Bearer first-key2")],
            &[("x-api-key", "first-key2")],
        ] {
            let expected = if is_open { 200 } else { 401 };
            assert_eq!(status(&server, route.method, &path, headers), expected, "{path} {headers:?}");
        }
        for (header, key) in [
            ("authorization", "Bearer first-key"),
            ("authorization", "bearer second-key"),
            ("x-api-key", "second-key"),
        ] {
            // Whatever the route says of an empty request, it is the route that says it.
            let status = status(&server, route.method, &path, &[(header, key)]);
            assert!(status != 401 && (status < 500 || status == 501), "{path}: {status}");
        }
    }
}

#[test]
fn hosts_and_targets_do_not_matter() {
    let server = guarded();
    for host in ["localhost/health", "localhost?x=/health", "a@b", "x#", "x\\y", "metrics", ""] {
        let mut connection = server.connect();
        connection.write(
            format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nx-forwarded-uri: /health\r\n\r\n").as_bytes(),
        );
        let status = connection.head().status;
        assert!([400, 401].contains(&status), "{host}: {status}");
    }
    for target in [
        "http://localhost/v1/models",
        "/v1/models?x=/health",
        "/v1/models/../health",
        "/health/../v1/models",
        "//v1/models",
        "/v1/%6dodels",
        "/v1/models;/health",
        "/v1/models/%2e%2e/health",
    ] {
        let mut connection = server.connect();
        connection.write(format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
        let status = connection.head().status;
        assert!([400, 401, 404].contains(&status), "{target}: {status}");
    }
}

#[test]
fn without_keys_any_header_passes() {
    let server = TestServer::start();
    for headers in [&[][..], &[("authorization", "")], &[("authorization", "Bearer x")]] {
        assert_eq!(status(&server, "GET", "/v1/models", headers), 200);
    }
}
