//! A small HTTP client on plain sockets, because tests here misuse connections in ways that no client library lets them.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The data of the events of a stream, with the framing checked: `data: …` lines and comments, each closed by an empty line.
    pub fn events(&self) -> Vec<String> {
        parse_events(self.text())
    }
}

pub fn parse_events(text: &str) -> Vec<String> {
    assert!(text.ends_with("\n\n"), "a stream ends with an empty line");
    assert!(!text.contains('\r'), "lines end with \\n alone");
    let mut events = Vec::new();
    for event in text.trim_end_matches('\n').split("\n\n") {
        if event.starts_with(':') {
            continue;
        }
        let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("not an event: {event:?}"));
        assert!(!data.contains('\n'), "one line an event");
        events.push(data.to_owned());
    }
    events
}

/// The data of a stream's events, each of which says its type twice; signs of life are left out.
pub fn typed_events(text: &str) -> Vec<Value> {
    assert!(text.ends_with("\n\n") && !text.contains('\r'));
    let event = |event: &str| {
        let (kind, data) = event.split_once('\n').unwrap_or_else(|| panic!("not an event: {event:?}"));
        let kind = kind.strip_prefix("event: ").expect("a type");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(data["type"], kind);
        data
    };
    let events = text.trim_end_matches('\n').split("\n\n").filter(|event| !event.starts_with(':'));
    events.map(event).filter(|event| event["type"] != "ping").collect()
}

/// Over TCP, or whatever else carries bytes.
pub struct Connection<S = TcpStream> {
    pub stream: BufReader<S>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        Self::over(open_socket(address))
    }
}

/// A socket on which a test that hangs ends.
pub fn open_socket(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(super::PATIENCE)).expect("a timeout");
    stream.set_nodelay(true).expect("no delay");
    stream
}

impl<S: Read + Write> Connection<S> {
    pub fn over(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("writes");
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        self.write(&bytes);
    }

    pub fn send_json(&mut self, path: &str, body: &Value) {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes());
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Status and headers.
    pub fn head(&mut self) -> Response {
        let status = self.line();
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {status:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Response { status: status.parse().expect("a status"), headers, body: Vec::new() }
    }

    /// One chunk of a chunked body; empty at its end.
    pub fn chunk(&mut self) -> Vec<u8> {
        let line = self.line();
        let len = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("not a chunk: {line:?}"));
        let mut data = vec![0; len + 2];
        self.stream.read_exact(&mut data).expect("a whole chunk");
        data.truncate(len);
        data
    }

    pub fn receive(&mut self) -> Response {
        let mut response = self.head();
        if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                response.body.extend(chunk);
            }
        } else if let Some(length) = response.header("content-length") {
            response.body = vec![0; length.parse().expect("a length")];
            self.stream.read_exact(&mut response.body).expect("a whole body");
        }
        response
    }

    /// The rest of a chunked body whose head was read.
    pub fn receive_rest(&mut self) -> String {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk();
            if chunk.is_empty() {
                return String::from_utf8(body).expect("UTF-8");
            }
            body.extend(chunk);
        }
    }

    /// Waits for the first byte of an answer; false when the server closed the connection instead.
    pub fn is_answered(&mut self) -> bool {
        match self.stream.fill_buf() {
            Ok(bytes) => !bytes.is_empty(),
            Err(error) => {
                assert!(is_reset(&error), "{error}");
                false
            }
        }
    }

    /// Whether the server closed the connection, which it has to within the read timeout.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => is_reset(&error),
        }
    }
}

fn is_reset(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ConnectionReset
}
