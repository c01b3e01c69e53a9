//! The binary and who may talk to it: HTTPS with certificates that are read again on SIGHUP, keys in a file, a socket that is a file.

use crate::certificates::Authority;
use crate::process::{Folder, Server, perilune, text};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// What `perilune chat` says to standard output, or to standard error where it fails.
fn chat(url: &str, args: &[&str]) -> Result<String, String> {
    let mut all = vec!["chat", "--url", url, "--message", "hi", "--max-tokens", "3"];
    all.extend(args);
    let output = perilune(&all).output().expect("runs");
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

#[test]
fn certificates_are_shown_believed_and_changed() {
    if perilune::source::embedded::FILES.is_empty() {
        return;
    }
    let [before, after] = ["before", "after"].map(Authority::new);
    let folder = Folder::new("secure");
    let pair = before.issue("server");
    let [certificate, key] = [("certificate.pem", &pair.certificate), ("key.pem", &pair.key)]
        .map(|(name, pem)| folder.write(name, pem));
    let authorities = [folder.write("before.pem", &before.pem()), folder.write("after.pem", &after.pem())];
    let mut server = Server::start(&["--ssl-certfile", &certificate, "--ssl-key-file", &key]);
    let url = server.url.clone();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let [old, new] = authorities.each_ref().map(|file| ["--ca", file.as_str()]);
    assert!(chat(&url, &old).is_ok());
    assert!(chat(&url, &["--insecure"]).is_ok());
    for unbelieved in [&[][..], &new] {
        let said = chat(&url, unbelieved).expect_err("no authority");
        assert!(said.contains("failed to reach https://") && said.contains("UnknownIssuer"), "{said}");
    }
    let said = chat(&url.replace("https", "http"), &[]).expect_err("in the clear");
    assert!(said.contains("this port speaks https"), "{said}");
    let said = chat(&url, &["--ca", "/nonexistent/file"]).expect_err("no file");
    assert!(said.contains("--ca: /nonexistent/file cannot be read"), "{said}");

    // Half of what is new is an error that names the file, and the server serves on.
    let next = after.issue("server");
    folder.write("certificate.pem", &next.certificate);
    server.signal("-HUP");
    let line = server.wait_for_line("failed to read again");
    let error = line["error"].as_str().expect("a message");
    assert!(error.starts_with("--ssl-keyfile: ") && error.contains(&key), "{error}");
    assert!(chat(&url, &old).is_ok());
    folder.write("key.pem", &next.key);
    server.signal("-HUP");
    server.wait_for_line("read again: in use from now on");
    assert!(chat(&url, &new).is_ok() && chat(&url, &old).is_err());
    let (code, log) = server.terminate();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn clients_show_certificates() {
    if perilune::source::embedded::FILES.is_empty() {
        return;
    }
    let authority = Authority::new("authority");
    let folder = Folder::new("mutual");
    let (pair, client) = (authority.issue("server"), authority.issue("client"));
    let both = folder.write("server.pem", &(pair.certificate + &pair.key));
    let ca = folder.write("ca.pem", &authority.pem());
    let [cert, key] = [("client.pem", &client.certificate), ("client.key", &client.key)]
        .map(|(name, pem)| folder.write(name, pem));
    let server = Server::start(&["--ssl-certfile", &both, "--ssl-ca-certs", &ca]);
    let url = server.url.clone();
    assert!(chat(&url, &["--ca", &ca, "--cert", &cert, "--key", &key]).is_ok());
    let said = chat(&url, &["--ca", &ca]).expect_err("no certificate");
    assert!(said.contains("CertificateRequired"), "{said}");
    assert_eq!(server.terminate().0, Some(0));
}

/// The head and body of the answer to a request without more headers than these.
fn ask(socket: &str, line: &str, headers: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("the server listens");
    let len = body.len();
    write!(stream, "{line} HTTP/1.1\r\nhost: chat.example.org\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n{headers}\r\n{body}")
        .expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("reads");
    answer
}

#[test]
fn a_file_takes_the_place_of_a_port() {
    if perilune::source::embedded::FILES.is_empty() {
        return;
    }
    let folder = Folder::new("socket");
    let socket = folder.0.join("socket").to_str().expect("UTF-8").to_owned();
    let keys = folder.write("keys", "first\n");
    let flags =
        ["--uds", &socket, "--api-key-file", &keys, "--root-path", "/models/a", "--disable-access-log"];
    let mut server = Server::start(&flags);
    assert_eq!(server.url, format!("http+unix:{socket}"));
    let status = |path: &str, key: &str| {
        let answer = ask(&socket, &format!("GET {path}"), &format!("authorization: Bearer {key}\r\n"), "");
        answer.split(' ').nth(1).expect("a status").to_owned()
    };
    for path in ["/v1/models", "/models/a/v1/models", "/models/a/models"] {
        assert_eq!([status(path, "first"), status(path, "second")], ["200", "401"], "{path}");
    }
    assert_eq!(status("/models/ab/v1/models", "first"), "404");
    let document = ask(&socket, "GET /models/a/openapi.json", "", "");
    assert!(document.contains("{\"servers\":[{\"url\":\"/models/a\"}],\"openapi\":"), "{}", &document[..300]);

    // A key is taken back while the server serves.
    folder.write("keys", "second\n");
    server.signal("-HUP");
    server.wait_for_line("read again: in use from now on");
    assert_eq!([status("/v1/models", "first"), status("/v1/models", "second")], ["401", "200"]);

    // Whoever hangs up is noticed here as well.
    let body = json!({"prompt": "red", "max_tokens": 400, "ignore_eos": true, "stream": true}).to_string();
    let metric = |sign: &str| {
        let text = ask(&socket, "GET /metrics", "", "");
        let line = text
            .lines()
            .find(|line| !line.starts_with('#') && line.contains(sign))
            .expect("a series")
            .to_owned();
        line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number")
    };
    while metric("finished_reason=\"abort\"") == 0.0 {
        let mut leaver = UnixStream::connect(&socket).expect("the server listens");
        write!(leaver, "POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer second\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            .expect("writes");
        leaver.read_exact(&mut [0; 100]).expect("an answer begins");
    }
    while metric("perilune:http_connections") > 1.0 {}

    let second = perilune(&["serve", "--uds", &socket]).output().expect("runs");
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another process listens there"));
    // Killed, it leaves the file; stopped, it does not.
    server.signal("-KILL");
    drop(server.terminate());
    assert!(std::fs::exists(&socket).expect("looks"));
    let server = Server::start(&flags);
    assert_eq!(status("/v1/models", "second"), "200");
    let (code, log) = server.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("/v1/models"), "{log}");
    assert!(!std::fs::exists(&socket).expect("looks"));
}
