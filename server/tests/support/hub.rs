//! A stand-in for the hub: HTTP/1.1 on loopback, one answer a connection, from a function.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The first byte that is wanted.
    pub fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let first = lines.next()?;
        let mut words = first.split(' ').map(str::to_string);
        let (method, path) = (words.next()?, words.next()?);
        let headers = lines.take_while(|line| !line.is_empty());
        let headers =
            headers.filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_string(), v.to_string())));
        Some(Self { method, path, headers: headers.collect() })
    }
}

pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    broken_after: usize,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), broken_after: usize::MAX }
    }

    pub fn body(body: &[u8]) -> Self {
        Self { body: body.to_vec(), ..Self::status(200) }
    }

    pub fn json(value: &Value) -> Self {
        Self::body(value.to_string().as_bytes())
    }

    /// The content from `start` on, as a server with ranges gives it.
    pub fn range(content: &[u8], start: Option<usize>) -> Self {
        match start {
            None => Self::body(content),
            Some(start) if start >= content.len() => Self::status(416),
            Some(start) => {
                let answer = Self { status: 206, ..Self::body(&content[start..]) };
                answer.header(
                    "Content-Range",
                    &format!("bytes {start}-{}/{}", content.len() - 1, content.len()),
                )
            }
        }
    }

    /// Replaces a header of the same name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(key, _)| key != name);
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    pub fn location(&self) -> Option<String> {
        self.headers.iter().find(|(key, _)| key == "Location").map(|(_, value)| value.clone())
    }

    /// Hangs up after that many bytes of the body.
    pub fn broken_after(self, bytes: usize) -> Self {
        Self { broken_after: bytes, ..self }
    }

    fn write(&self, stream: &mut TcpStream, with_body: bool) -> std::io::Result<()> {
        let mut head = format!(
            "HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n",
            self.status,
            self.body.len()
        );
        self.headers.iter().for_each(|(key, value)| head.push_str(&format!("{key}: {value}\r\n")));
        stream.write_all(head.as_bytes())?;
        stream.write_all(b"\r\n")?;
        if with_body {
            stream.write_all(&self.body[..self.body.len().min(self.broken_after)])?;
        }
        Ok(())
    }
}

pub struct StandIn {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (asked, stopping) = (Arc::clone(&asked), Arc::clone(&stopping));
            move || {
                for mut stream in listener.incoming().map_while(Result::ok) {
                    if stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    let Some(request) = Asked::read(&stream) else { continue };
                    let with_body = request.method != "HEAD";
                    let reply = answer(&request);
                    asked.lock().expect("whole").push(request);
                    // A client that has seen enough hangs up.
                    let _ = reply.write(&mut stream, with_body);
                }
            }
        });
        Self { address, asked, stopping, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("whole").clone()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
