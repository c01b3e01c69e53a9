//! The binary where its surroundings fail it: outputs that nobody reads, a terminal that goes, few open files.

use crate::process::{SMALL, Server, perilune, text};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Of a test that hangs.
const HANGS: Duration = Duration::from_secs(240);

/// The binary behind a line of a shell, where `exec "$0" "$@"` starts it.
fn behind(line: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.env_clear().env("HF_HUB_OFFLINE", "1").env("HOME", "/nonexistent").env("PATH", "/usr/bin:/bin");
    command.args(["-c", line, env!("CARGO_BIN_EXE_perilune")]).args(args);
    command
}

/// Connections that stay open.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(&server.address).expect("connects");
        stream.set_read_timeout(Some(HANGS)).expect("a timeout");
        Self(BufReader::new(stream))
    }

    fn send(&mut self, head: &str, body: &str) {
        let request = format!(
            "{head} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes()).expect("writes");
    }

    /// The status, and the body of an answer that tells its length.
    fn answer(&mut self) -> (u16, String) {
        let (mut status, mut len) = (0, 0);
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("a head in time");
            let line = line.trim_end().to_ascii_lowercase();
            match line.strip_prefix("content-length: ") {
                Some(value) => len = value.parse().expect("a length"),
                None if line.starts_with("http/1.1 ") => status = line[9..12].parse().expect("a status"),
                None if line.is_empty() => break,
                None => {}
            }
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body).expect("a body in time");
        (status, text(&body))
    }
}

/// `/dev/full` takes nothing, and a pipe whose reader has left breaks.
#[cfg(target_os = "linux")]
#[test]
fn outputs_that_fail_are_no_panics() {
    let full = || File::options().write(true).open("/dev/full").expect("opens");
    for args in [&["plan"][..], &["plan", "--json"], &["serve", "--print-config"]] {
        let output = perilune(args).stdout(full()).output().expect("runs");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.starts_with("error: failed to write to standard output: "), "{args:?}: {said}");

        let mut child = perilune(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        // Fast enough, it has written before its reader left: then it has nothing to complain of either.
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{args:?}");
    }
    // What it has to say is lost, the exit code is not.
    for (args, code) in [
        (&["serve", "/nonexistent/model"][..], 3),
        (&["plan", "/nonexistent/model"], 3),
        (&["serve", "--threads", "0"], 2),
        (&["chat", "--url", "http://127.0.0.1:9", "--message", "hi"], 1),
        (&["run-batch", "-i", "/nonexistent/file", "-o", "/nonexistent/other"], 2),
    ] {
        let status = perilune(args).stderr(full()).status().expect("runs");
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
}

/// A pipe holds 64 KiB and the log 4,096 lines more. Nobody reads it for longer than that, and everybody is answered.
#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    if perilune::source::embedded::FILES.is_empty() {
        return;
    }
    let mut server = Server::from(perilune(SMALL));
    let mut client = Client::connect(&server);
    // Each line repeats the id.
    let id = "i".repeat(128);
    let request = format!("GET /version HTTP/1.1\r\nhost: localhost\r\nx-request-id: {id}\r\n\r\n");
    for _ in 0..100 {
        client.0.get_mut().write_all(request.repeat(60).as_bytes()).expect("writes");
        for _ in 0..60 {
            assert_eq!(client.answer().0, 200);
        }
    }
    // Whoever reads it again is told.
    let mut line = String::new();
    let lost = loop {
        line.clear();
        assert!(server.log.read_line(&mut line).expect("reads") > 0, "the log ended");
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        if line["message"].as_str().is_some_and(|message| message.contains("lines of this log were lost")) {
            break line["lines"].as_u64().expect("a number");
        }
    };
    assert!((1..6000).contains(&lost), "{lost}");
    server.signal("-TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("\"stopped\""), "{log}");
}

/// Who closes a terminal does not cut answers off, and `nohup` keeps the server where it is.
#[cfg(target_os = "linux")]
#[test]
fn a_terminal_that_goes_is_a_request_to_stop() {
    if perilune::source::embedded::FILES.is_empty() {
        return;
    }
    let body = json!({
        "prompt": [5], "max_tokens": 1500, "ignore_eos": true, "temperature": 0, "stream": true,
    });
    let server = Server::from(perilune(SMALL));
    let mut client = Client::connect(&server);
    client.send("POST /v1/completions", &body.to_string());
    let mut answer = String::new();
    while !answer.contains("data: ") {
        assert!(client.0.read_line(&mut answer).expect("a stream") > 0, "{answer}");
    }
    server.signal("-HUP");
    client.0.read_to_string(&mut answer).expect("the rest");
    assert!(answer.contains("\"finish_reason\":\"length\"") && answer.contains("[DONE]"), "{answer}");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("SIGHUP") && log.contains("\"stopped\""), "{log}");

    let server = Server::from(behind("trap '' HUP && exec \"$0\" \"$@\"", SMALL));
    server.signal("-HUP");
    let mut client = Client::connect(&server);
    client.send("GET /v1/models", "");
    assert_eq!(client.answer().0, 200);
    server.signal("-TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("SIGHUP"), "{log}");
}

/// Of 64 files connections leave enough for uploads; who finds no place waits for one. And where more may be had, it is.
#[cfg(target_os = "linux")]
#[test]
fn connections_leave_files_for_the_rest() {
    if perilune::source::embedded::FILES.is_empty() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("perilune-{}-few-files", std::process::id()));
    let folder_name = folder.to_str().expect("UTF-8");
    let args = [SMALL, &["--data-dir", folder_name]].concat();
    let server = Server::from(behind("ulimit -n 64 && exec \"$0\" \"$@\"", &args));
    let mut first = Client::connect(&server);
    first.send("GET /v1/models", "");
    assert_eq!(first.answer().0, 200);
    let others: Vec<Client> = (0..80).map(|_| Client::connect(&server)).collect();
    // As many as there is room for are taken in: the metrics say so as soon as they are.
    let connections = loop {
        first.send("GET /metrics", "");
        let (_, metrics) = first.answer();
        let line =
            metrics.lines().find(|line| line.starts_with("perilune:http_connections ")).expect("a gauge");
        let connections: usize = line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number");
        if connections >= 40 {
            break connections;
        }
    };
    assert_eq!(connections, 40);
    let line = "{}\n";
    let part = |name: &str, value: &str| {
        format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let file = format!(
        "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n{line}\r\n--b--\r\n"
    );
    let body = part("purpose", "user_data") + &file;
    let request = format!(
        "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    first.0.get_mut().write_all(request.as_bytes()).expect("writes");
    let (status, answer) = first.answer();
    assert_eq!(status, 200, "{answer}");
    drop(others);
    let mut late = Client::connect(&server);
    late.send("GET /v1/models", "");
    assert_eq!(late.answer().0, 200);
    server.signal("-TERM");
    let (code, log) = server.end();
    std::fs::remove_dir_all(&folder).expect("it is there");
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("all connections are taken") && !log.contains("failed to accept"), "{log}");

    let server = Server::from(behind("ulimit -S -n 64 && exec \"$0\" \"$@\"", SMALL));
    let mut client = Client::connect(&server);
    client.send("GET /metrics", "");
    let (_, metrics) = client.answer();
    let line = metrics.lines().find(|line| line.starts_with("process_max_fds ")).expect("a gauge");
    assert!(
        line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).is_some_and(|max| max > 64.0),
        "{line}"
    );
    server.signal("-KILL");
    server.end();
}
