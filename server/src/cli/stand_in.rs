//! A server for tests: answers connections one after the other with what it was given, and remembers what it was asked.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

pub struct StandIn {
    address: std::net::SocketAddr,
    thread: JoinHandle<Vec<Request>>,
}

/// What came over one connection.
#[derive(Debug)]
pub struct Request {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Answer {
    pub fn json(status: u16, body: Value) -> Self {
        Self { status, content_type: "application/json", body: body.to_string() }
    }

    pub fn stream(body: String) -> Self {
        Self { status: 200, content_type: "text/event-stream", body }
    }
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn read(stream: &TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let header = |line: &String| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let headers = lines[1..].iter().map(header).collect();
        let mut request = Self { line: lines[0].clone(), headers, body: Vec::new() };
        let len = request.header("content-length").map_or(0, |len| len.parse().unwrap());
        request.body.resize(len, 0);
        reader.read_exact(&mut request.body).unwrap();
        request
    }
}

impl StandIn {
    /// One answer for each connection; then it stops listening.
    pub fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = move || {
            let answer = |answer: Answer| {
                let (mut stream, _) = listener.accept().unwrap();
                let request = Request::read(&stream);
                let Answer { status, content_type, body } = answer;
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\nconnection: close\r\n\r\n"
                );
                stream.write_all((head + &body).as_bytes()).unwrap();
                request
            };
            answers.into_iter().map(answer).collect()
        };
        Self { address, thread: std::thread::spawn(serve) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until all answers were given.
    pub fn finish(self) -> Vec<Request> {
        self.thread.join().unwrap()
    }
}
